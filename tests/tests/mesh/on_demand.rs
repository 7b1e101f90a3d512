//! A node proxy that asks for addresses one by one.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use isobar_lab::Target;

use isobar_tests::{Mesh, MeshOptions};

use crate::fixture::{ambient, client, hello, run, server};

/// Uids of the workloads that the node proxy of node-1 knows.
async fn known(mesh: &Mesh) -> Result<Vec<String>> {
    let page = mesh
        .page(Target::node("node-1"), 15000, "/config_dump")
        .await?;
    let dump: serde_json::Value = serde_json::from_str(&page)?;
    let all = dump["workloads"].as_array().cloned().unwrap_or_default();
    let uids = all.iter().filter_map(|w| w["uid"].as_str());
    Ok(uids.map(str::to_owned).collect())
}

#[test]
fn a_node_proxy_knows_what_its_pods_have_asked_for() {
    run(async {
        let switches = [("XDS_ON_DEMAND", "true"), ("DNS_CAPTURE", "false")];
        let switches = switches.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let options = MeshOptions {
            program_env: BTreeMap::from([("ztunnel".to_owned(), BTreeMap::from(switches))]),
            ..MeshOptions::default()
        };
        let (namespace, client, server, hello) = (
            ambient("shop"),
            client("shop"),
            server("shop", &[]),
            hello("shop"),
        );
        let files = [
            ("ns.yaml", &*namespace),
            ("client.yaml", &client),
            ("server.yaml", &server),
            ("hello.yaml", &hello),
        ];
        let mesh = Mesh::start_with(options, &files).await?;
        for pod in ["shop/client", "shop/server", "shop/hello-v2"] {
            mesh.settled(pod, "enrolled").await?;
        }
        let has = |uids: &[String], name: &str| uids.iter().any(|uid| uid.ends_with(name));
        let before = known(&mesh).await?;
        ensure!(has(&before, "/client"), "its own pod: {before:?}");
        ensure!(
            !has(&before, "/server"),
            "what nobody asked for: {before:?}"
        );

        let caller = mesh.caller("shop/client").await?;
        let to = (mesh.service_ip("shop/server").await?, 80).into();
        mesh.answers(&caller, to, "server", "/ip").await?;
        let after = known(&mesh).await?;
        ensure!(has(&after, "/server"), "what was asked for: {after:?}");
        ensure!(
            !has(&after, "/hello-v2"),
            "what nobody asked for: {after:?}"
        );
        // A pod by its address, through a tunnel as well.
        let to = (mesh.pod_ip("shop/hello-v2").await?, 8080).into();
        mesh.answers(&caller, to, "hello-v2", "/").await?;
        ensure!(has(&known(&mesh).await?, "/hello-v2"));
        let log = mesh.log("ztunnel-node-1").await?;
        ensure!(log.contains("hello-v2"), "not through the mesh:\n{log}");
        mesh.down()
    });
}
