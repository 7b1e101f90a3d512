//! What travels between the nodes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use isobar_tests::{Capture, Mesh, MeshOptions};

use crate::fixture::{ambient, client, run, server};

const MARKER: &str = "marker-6f1c9b20a7";

#[test]
fn everything_between_two_pods_is_mutual_tls() {
    run(async {
        let folder = isobar_tests::scratch()?;
        let keys = folder.path().join("keys.log");
        let log = (
            "SSLKEYLOGFILE".to_owned(),
            keys.to_string_lossy().into_owned(),
        );
        let options = MeshOptions {
            program_env: BTreeMap::from([("ztunnel".to_owned(), BTreeMap::from([log]))]),
            ..MeshOptions::default()
        };
        let files = [
            ("ns.yaml", ambient("wire")),
            ("c.yaml", client("wire")),
            ("s.yaml", server("wire", &[])),
        ];
        let files: Vec<_> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
        let mesh = Mesh::start_with(options, &files).await?;
        mesh.settled("wire/client", "enrolled").await?;
        mesh.settled("wire/server", "enrolled").await?;

        let (from, to) = (
            mesh.pod_ip("wire/client").await?,
            mesh.pod_ip("wire/server").await?,
        );
        let service = mesh.service_ip("wire/server").await?;
        let capture = Capture::start(mesh.lab(), folder.path()).await?;
        let caller = mesh.caller("wire/client").await?;
        for address in [service, to] {
            let reply = caller
                .get((address, 80).into(), &format!("/ip?{MARKER}"))
                .await?;
            ensure!(reply.status == 200, "{reply:?}");
            ensure!(
                reply.body.contains(&from.to_string()),
                "the server saw {}",
                reply.body
            );
        }
        let recorded = capture.stop().await?;

        let between = format!("tcp && ip.addr=={from} && ip.addr=={to}");
        let ports = recorded
            .fields(&between, &["tcp.srcport", "tcp.dstport"], None)
            .await?;
        ensure!(!ports.is_empty(), "nothing was seen between the pods");
        for line in &ports {
            ensure!(
                line.split('\t').any(|p| p == "15008"),
                "a segment outside the tunnel: {line}"
            );
        }
        let bytes = recorded.bytes()?;
        ensure!(
            !bytes.windows(MARKER.len()).any(|w| w == MARKER.as_bytes()),
            "the client's bytes are readable on the wire"
        );
        hellos_offer_only_h2(&recorded).await?;
        decrypted(&recorded, &keys).await?;
        mesh.down()
    });
}

async fn hellos_offer_only_h2(recorded: &isobar_tests::Recorded) -> Result<()> {
    let offers = recorded
        .fields(
            "tls.handshake.type==1",
            &["tls.handshake.extensions_alpn_str"],
            None,
        )
        .await?;
    ensure!(!offers.is_empty(), "no ClientHello was seen");
    ensure!(offers.iter().all(|o| o == "h2"), "{offers:?}");
    Ok(())
}

/// With the key log the handshake can be read: both certificates name the workloads.
async fn decrypted(recorded: &isobar_tests::Recorded, keys: &std::path::Path) -> Result<()> {
    let versions = recorded
        .fields(
            "tls.handshake.type==2",
            &["tls.handshake.extensions.supported_version"],
            Some(keys),
        )
        .await?;
    ensure!(
        !versions.is_empty() && versions.iter().all(|v| v == "0x0304"),
        "{versions:?}"
    );
    let names: BTreeSet<_> = recorded
        .fields(
            "tls.handshake.type==11",
            &["x509ce.uniformResourceIdentifier"],
            Some(keys),
        )
        .await?
        .into_iter()
        .flat_map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|name| !name.is_empty())
        .collect();
    let wanted = BTreeSet::from(
        ["client", "server"].map(|sa| format!("spiffe://cluster.local/ns/wire/sa/{sa}")),
    );
    ensure!(names == wanted, "certificates name {names:?}");
    Ok(())
}
