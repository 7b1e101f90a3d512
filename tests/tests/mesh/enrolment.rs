//! Labels enrol and un-enrol, and neither cuts anything.

use anyhow::{Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::{documents, namespace};
use isobar_tests::{Load, LoadKind, Mesh, eventually};

use crate::fixture::{AMBIENT, client, run, server, shop};

const NONE: (&str, &str) = ("istio.io/dataplane-mode", "none");

/// Enrolled, as seen on the wire rather than in a status: the server learns it from its proxy's log.
async fn enrolled_pods(mesh: &Mesh, node: &str) -> Result<String> {
    mesh.page(Target::node(node), 15000, "/config_dump").await
}

#[test]
fn both_labels_enrol_and_none_opts_out() {
    run(async {
        let objects = documents([
            namespace("long", &[AMBIENT]),
            namespace("plain", &[("dataplane-mode", "ambient")]),
            namespace("both", &[AMBIENT, ("dataplane-mode", "none")]),
            namespace("beyond", &[]),
        ]);
        let mesh = Mesh::start(&[
            ("ns.yaml", &objects),
            ("long.yaml", &server("long", &[])),
            ("plain.yaml", &server("plain", &[])),
            ("both.yaml", &server("both", &[])),
            ("beyond.yaml", &server("beyond", &[])),
            (
                "optout.yaml",
                &client("long").replace(
                    "app: \"client\"\n",
                    "app: \"client\"\n    istio.io/dataplane-mode: none\n",
                ),
            ),
        ])
        .await?;
        for pod in ["long/server", "plain/server", "both/server"] {
            mesh.settled(pod, "enrolled").await?;
        }
        for pod in ["beyond/server", "long/client"] {
            mesh.settled(pod, "plain").await?;
        }
        let dump = enrolled_pods(&mesh, "node-2").await?;
        for (ns, enrolled) in [
            ("long", true),
            ("plain", true),
            ("both", true),
            ("beyond", false),
        ] {
            let ip = mesh.pod_ip(&format!("{ns}/server")).await?;
            ensure!(
                dump.contains(&ip.to_string()),
                "{ns} is not in the mesh's state"
            );
            let listening = mesh
                .exec(&format!("{ns}/server"), &["ss", "-Hltn"])
                .await?
                .stdout
                .contains(":15008");
            ensure!(listening == enrolled, "{ns}: HBONE port open: {listening}");
        }

        unlabelled(&mesh, &objects.replacen("ambient", "none", 1)).await?;
        mesh.down()
    });
}

/// The pod is plain after its label is gone, and nothing of ours is left in it.
async fn unlabelled(mesh: &Mesh, objects: &str) -> Result<()> {
    // The pod is the same one after its label is gone: same address, no restart.
    let before = mesh.pod("long/server").await?;
    mesh.apply("ns.yaml", objects)?;
    mesh.settled("long/server", "plain").await?;
    let after = mesh.pod("long/server").await?;
    ensure!((before.ip, before.restarts, &before.uid) == (after.ip, after.restarts, &after.uid));
    let ip = after.ip.expect("it had one");
    let reply = mesh
        .caller("beyond/server")
        .await?
        .get((ip, 80).into(), "/ip")
        .await?;
    ensure!(reply.status == 200);
    eventually("nothing of ours is left in the pod", async || {
        let rules = mesh.exec("long/server", &["nft", "list", "tables"]).await?;
        let sockets = mesh.exec("long/server", &["ss", "-Hltn"]).await?;
        ensure!(
            !rules.stdout.contains("isobar") && !rules.stdout.contains("istio"),
            "{rules:?}"
        );
        ensure!(!sockets.stdout.contains(":150"), "{sockets:?}");
        Ok(())
    })
    .await
}

#[test]
fn relabelling_under_load_cuts_nothing() {
    run(async {
        let labelled = |client: (&str, &str), server: (&str, &str)| {
            documents([namespace("caller", &[client]), namespace("app", &[server])])
        };
        let mesh = Mesh::start(&[
            ("ns.yaml", &labelled(NONE, NONE)),
            ("client.yaml", &client("caller")),
            ("server.yaml", &server("app", &[])),
        ])
        .await?;
        let to = (mesh.service_ip("app/server").await?, 80).into();
        let caller = mesh.caller("caller/client").await?;
        let kept = Load::start(
            caller.clone(),
            to,
            "server.app",
            "/ip",
            LoadKind::KeepAlive,
            100,
        );
        let fresh = Load::start(
            caller,
            to,
            "server.app",
            "/ip",
            LoadKind::NewConnections,
            100,
        );
        let mut steps = Vec::new();
        for (client, server) in [
            (AMBIENT, NONE),
            (AMBIENT, AMBIENT),
            (NONE, AMBIENT),
            (NONE, NONE),
        ] {
            mesh.apply("ns.yaml", &labelled(client, server))?;
            for (pod, label) in [("caller/client", client), ("app/server", server)] {
                let wanted = if label == AMBIENT {
                    "enrolled"
                } else {
                    "plain"
                };
                mesh.settled(pod, wanted).await?;
            }
            steps.push((client.1, server.1, fresh.answered()));
            fresh.progress(150).await?;
            kept.progress(50).await?;
        }
        for (name, load) in [("keep-alive", kept), ("new connections", fresh)] {
            let tally = load.stop().await;
            ensure!(
                tally.bad.is_empty(),
                "{name}, steps {steps:?}: {:?}",
                tally.bad
            );
            ensure!(tally.good > 400, "{name}: only {}", tally.good);
        }
        mesh.down()
    });
}

#[test]
fn names_of_the_mesh_and_names_of_nobody_are_answered_at_once() {
    run(async {
        let mesh = shop(&[]).await?.mesh;
        let call = async |name: &str| {
            let url = format!("http://{name}/get");
            mesh.exec("shop/client", &["curl", "-s", "-m", "10", &url])
                .await
        };
        for known in ["server", "server.shop", "server.shop.svc.cluster.local"] {
            let reply = call(known).await?;
            ensure!(reply.code == 0, "{known}: {reply:?}");
        }
        // 6: the name was not resolved. A name server that does not answer would be 28, a time-out.
        for unknown in ["nobody", "nobody.shop.svc.cluster.local", "nobody.example"] {
            let reply = call(unknown).await?;
            ensure!(reply.code == 6, "{unknown}: {reply:?}");
        }
        mesh.down()
    });
}
