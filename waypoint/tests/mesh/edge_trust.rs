//! Certificates that change while callers of the mesh are connected to a gateway.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use isobar_proto::isobar::v1::listener::Protocol;
use isobar_tls::{
    PeerTrust, RevocationLists, Revocations, WorkloadCertificate, ca::Authority, csr,
};
use isobar_types::Identity;
use isobar_xds::{CertError, CertSource};

use crate::bed::*;
use crate::edge::{open, rules};
use crate::edge_mesh::{caller_of, endless, events, of_mesh, waiting_as};

const HOUR: Duration = Duration::from_secs(3600);

/// Signs whatever is asked for, and takes back what it has signed.
pub(crate) struct Certificates {
    folder: tempfile::TempDir,
    authority: Authority,
    lists: Revocations,
    /// Serial numbers of what was signed, in hexadecimal, with the accounts.
    signed: Mutex<Vec<(String, String)>>,
}

impl Certificates {
    pub(crate) fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        Arc::new(Self {
            authority: Authority::load_or_create(folder.path()).unwrap(),
            folder,
            lists: Revocations::new(RevocationLists::default()),
            signed: Mutex::default(),
        })
    }

    fn make(&self, identity: &Identity) -> WorkloadCertificate {
        let (request, key) = csr::generate(identity).unwrap();
        let parts = self.authority.sign(&request, identity, HOUR).unwrap();
        let peers = PeerTrust {
            revocations: self.lists.clone(),
            ..PeerTrust::default()
        };
        let made = WorkloadCertificate::trusting(identity, &parts, &key, &peers).unwrap();
        let number: u128 = made.chain()[0].serial.parse().unwrap();
        let number = format!("{number:x}");
        let even = format!("{}{number}", "0".repeat(number.len() % 2));
        let mut signed = self.signed.lock().unwrap();
        signed.push((identity.service_account.to_string(), even));
        made
    }

    pub(crate) fn serials(&self, account: &str) -> Vec<String> {
        let signed = self.signed.lock().unwrap();
        let own = signed.iter().filter(|(of, _)| of == account);
        own.map(|(_, serial)| serial.clone()).collect()
    }

    pub(crate) fn revoke(&self, serials: &[String]) {
        let list = list(self.folder.path(), serials);
        self.lists.replace(RevocationLists::parse(&list).unwrap());
    }
}

impl CertSource for Certificates {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Arc<WorkloadCertificate>, CertError>> {
        let made = Arc::new(self.make(identity));
        Box::pin(async move { Ok(made) })
    }
}

/// A list signed by the authority whose files are in `ca`.
fn list(ca: &Path, serials: &[String]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let line = |serial| format!("R\t350101000000Z\t260101000000Z\t{serial}\tunknown\t/CN=x\n");
    let lines: String = serials.iter().map(line).collect();
    std::fs::write(at("index"), lines).unwrap();
    std::fs::write(at("number"), "01\n").unwrap();
    let (index, number) = (at("index"), at("number"));
    let config = format!(
        "[ca]\ndefault_ca = own\n[own]\ndatabase = {}\ncrlnumber = {}\n\
         default_md = sha256\ndefault_crl_days = 1\n",
        index.display(),
        number.display()
    );
    std::fs::write(at("config"), config).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["ca", "-gencrl", "-config"]).arg(at("config"));
    openssl.arg("-keyfile").arg(ca.join("ca-key.pem"));
    openssl.arg("-cert").arg(ca.join("root-cert.pem"));
    let made = openssl.output().unwrap();
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{told}");
    made.stdout
}

#[test]
fn a_certificate_that_is_taken_back_ends_what_was_opened_with_it_and_nothing_else() {
    run(|bed| async move {
        endless(&bed).await;
        let source = Certificates::new();
        bed.worker.world.credentials.tell_mesh(source.clone());
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Https, port, "svc"));
        rules(&bed);
        let client = caller_of(&*source, Some("client")).await;
        let (mut sender, mut body) = waiting_as(&bed, &client, at).await;
        let of_client = source.serials("client");
        let other = caller_of(&*source, Some("client")).await;
        let (mut same_account, mut goes_on) = waiting_as(&bed, &other, at).await;

        source.revoke(&of_client);
        let ends = tokio::time::timeout(Duration::from_secs(5), body.frame());
        let end = ends.await.expect("it goes on");
        assert!(end.is_none_or(|frame| frame.is_err()), "it was not cut");
        assert!(sender.send_request(events()).await.is_err());
        let metrics = bed.registry.encode();
        assert!(
            metrics.contains("reason=\"certificate_revoked\"} 1"),
            "{metrics}"
        );
        // The account has another certificate: what it opened with that stays.
        let response = same_account.send_request(events()).await.unwrap();
        assert_eq!(response.status(), 200);
        let more = tokio::time::timeout(Duration::from_millis(200), goes_on.frame());
        assert!(more.await.is_err(), "it has ended");
    });
}

#[test]
fn a_new_certificate_of_the_gateway_is_for_new_connections() {
    run(|bed| async move {
        endless(&bed).await;
        let source = Certificates::new();
        bed.worker.world.credentials.tell_mesh(source.clone());
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Https, port, "svc"));
        rules(&bed);
        let client = caller_of(&*source, Some("client")).await;
        let (mut before, _body) = waiting_as(&bed, &client, at).await;
        let old = source.serials("wp");
        let (mut after, _other) = waiting_as(&bed, &client, at).await;
        let both = source.serials("wp");
        assert_eq!(both.len(), old.len() + 1, "a new one was asked for");
        for sender in [&mut before, &mut after] {
            let response = sender.send_request(events()).await.unwrap();
            assert_eq!(response.status(), 200);
        }
    });
}
