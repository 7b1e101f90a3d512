//! `CRL_PATH`: lists of revoked certificates, written while connections are open.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::http;
use crate::process::{Node, Process};
use crate::rig::{Place, VIP};
use crate::stage::{echoes, ends_soon, greeted, until};

/// The serial number, in hexadecimal, of the certificate the process holds for `account`.
async fn serial(process: &Process, account: &str) -> String {
    let dump = http::get(&process.place, "127.0.0.1:15000", "/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&dump.unwrap().body).unwrap();
    let certificates = dump["certificates"].as_array().unwrap();
    let of_account = |c: &&serde_json::Value| {
        c["identity"].as_str().unwrap() == format!("spiffe://cluster.local/ns/ns/sa/{account}")
    };
    let certificate = certificates.iter().find(of_account).unwrap();
    let decimal = &certificate["certChain"][0]["serialNumber"];
    let number: u128 = decimal.as_str().unwrap().parse().unwrap();
    let hexadecimal = format!("{number:x}");
    format!("{}{hexadecimal}", "0".repeat(hexadecimal.len() % 2))
}

/// A list signed by the authority whose files are in `ca`.
fn list(ca: &Path, revoked: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let lines = revoked.iter().map(|serial| {
        // Status, end of validity, time of revocation, serial, file, subject; all tabs.
        format!("R\t350101000000Z\t260101000000Z\t{serial}\tunknown\t/CN=x\n")
    });
    std::fs::write(at("index"), lines.collect::<String>()).unwrap();
    std::fs::write(at("number"), "01\n").unwrap();
    let database = at("index");
    let config = format!(
        "[ca]\ndefault_ca = own\n[own]\ndatabase = {}\ncrlnumber = {}\n\
         default_md = sha256\ndefault_crl_days = 1\n",
        database.display(),
        at("number").display()
    );
    std::fs::write(at("config"), config).unwrap();
    let made = Command::new("openssl")
        .args(["ca", "-gencrl", "-config"])
        .arg(at("config"))
        .arg("-keyfile")
        .arg(ca.join("ca-key.pem"))
        .arg("-cert")
        .arg(ca.join("root-cert.pem"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{told}");
    made.stdout
}

/// As Kubernetes and careful editors do: whole or not at all.
fn replace(file: &Path, content: &[u8]) {
    let beside: PathBuf = file.with_extension("new");
    std::fs::write(&beside, content).unwrap();
    std::fs::rename(beside, file).unwrap();
}

/// With or without a tunnel between the two pods.
pub(crate) async fn revoked(same_node: bool) {
    let node = Node::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca-crl.pem");
    let settings = [
        ("CRL_PATH", file.to_str().unwrap()),
        ("ISOBAR_SAME_NODE", if same_node { "true" } else { "false" }),
    ];
    let process = node.serving(Place::new("zt", "10.0.0.11"), &settings).await;
    // The file is not there yet: nothing is revoked.
    until("the missing file is told", || {
        process.lines_with("revocation lists cannot be read").len() == 1
    })
    .await;
    let mut open = greeted(&node.client, "10.0.0.2:").await;
    let web = format!("{VIP}:80");

    // Somebody else's certificate concerns nobody here.
    replace(&file, &list(node.ca.path(), &["0123"]));
    until("the first list is in force", || {
        !process.lines_with("revocation lists in force").is_empty()
    })
    .await;
    echoes(&mut open).await;
    assert_eq!(node.client.ask(&web, "x").await, "10.0.0.2:x");

    let client = serial(&process, "client").await;
    replace(&file, &list(node.ca.path(), &["0123", &client]));
    ends_soon(&mut open).await;
    until("both sides tell why", || {
        let lines = process.lines_with("certificate_revoked");
        lines.iter().any(|l| l.contains("direction=\"inbound\""))
    })
    .await;
    assert_eq!(node.client.ask(&web, "x").await, "");
    let page = http::get(&process.place, "127.0.0.1:15020", "/metrics").await;
    let page = page.unwrap().body;
    let refused = "istio_crl_policy_rejections_total{reporter=\"destination\"} 1";
    assert!(page.contains(refused), "{page}");
    let flagged = |line: &str| {
        line.starts_with("istio_tcp_connections_closed_total")
            && line.contains("response_flags=\"CERT_REVOKED\"")
    };
    assert!(page.lines().any(flagged), "{page}");

    // What cannot be read leaves the lists in force.
    replace(
        &file,
        b"-----BEGIN X509 CRL-----\nno\n-----END X509 CRL-----\n",
    );
    until("the bad file is told", || {
        !process
            .lines_with("revocation lists cannot be used")
            .is_empty()
    })
    .await;
    assert_eq!(node.client.ask(&web, "x").await, "");
    replace(&file, b"");
    until("an empty file revokes nothing", || {
        process.lines_with("revocation lists in force").len() == 3
    })
    .await;
    assert_eq!(node.client.ask(&web, "x").await, "10.0.0.2:x");
}
