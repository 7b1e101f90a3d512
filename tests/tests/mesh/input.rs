//! Bad input is named, changes nothing else, and keeps the last good version in force.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::{Mesh, eventually};
use serde_json::Value;

use crate::fixture::{ambient, client, hello, outside, run, server};

/// What goes wrong, in which object and field, in a file of its own.
const WRONG: [(&str, &str, &[&str]); 6] = [
    (
        "broken.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: [broken\n",
        &["broken.yaml"],
    ),
    (
        "unknown-field.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: odd\n  namespace: shop\nspec:\n  host: svc-hello\n  subset:\n  - name: v1\n",
        &[
            "unknown-field.yaml",
            "DestinationRule",
            "odd",
            "spec.subset",
        ],
    ),
    (
        "unknown-kind.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServce\nmetadata:\n  name: typo\n  namespace: shop\n",
        &["unknown-kind.yaml", "VirtualServce", "typo", "kind"],
    ),
    (
        "negative.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: negative\n  namespace: shop\nspec:\n  hosts: [negative]\n  http:\n  - route:\n    - destination: {host: svc-hello-v1}\n      weight: -1\n    - destination: {host: svc-hello-v2}\n      weight: 101\n",
        &["negative.yaml", "VirtualService", "negative", "weight"],
    ),
    (
        "regex.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: pattern\n  namespace: shop\nspec:\n  hosts: [pattern]\n  http:\n  - match:\n    - uri: {regex: \"a(b\"}\n    route:\n    - destination: {host: svc-hello-v1}\n",
        &["regex.yaml", "VirtualService", "pattern", "regex"],
    ),
    (
        "zz-duplicate.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: second\n  namespace: shop\nspec:\n  hosts: [svc-hello]\n  http:\n  - route:\n    - destination: {host: svc-hello-v2}\n",
        &["zz-duplicate.yaml", "VirtualService", "second", "hosts"],
    ),
];

/// Refuses the client.
const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: no-client
  namespace: shop
spec:
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/client]
";

const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: shop
spec:
  mtls:
    mode: STRICT
";

const GOOD: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: hello
  namespace: shop
spec:
  hosts:
  - svc-hello
  http:
  - route:
    - destination:
        host: svc-hello-v1
        port:
          number: 8080
";

fn validate(folder: &Path) -> Result<(Option<i32>, String)> {
    let isobard = isobar_tests::binaries()?.join("isobard");
    let output = Command::new(isobard)
        .arg("--validate")
        .arg(folder)
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn validation_names_file_object_and_field() {
    run(async {
        let folder = isobar_tests::scratch()?;
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text);
        write("ns.yaml", &ambient("shop"))?;
        write("hello.yaml", &hello("shop"))?;
        write("good.yaml", GOOD)?;
        let (code, text) = validate(folder.path())?;
        ensure!(code == Some(0), "good objects were refused: {text}");
        for (file, wrong, words) in WRONG {
            write(file, wrong)?;
            let (code, text) = validate(folder.path())?;
            ensure!(code == Some(1), "{file}: exit code {code:?}: {text}");
            let line = text
                .lines()
                .find(|l| words.iter().all(|w| l.contains(w)))
                .with_context(|| format!("{file}: no line has all of {words:?} in:\n{text}"))?;
            ensure!(line.len() < 500, "{line}");
            std::fs::remove_file(folder.path().join(file))?;
        }
        Ok(())
    });
}

#[test]
fn bad_objects_leave_the_rest_and_their_own_last_version_in_force() {
    run(async {
        let namespace = ambient("shop") + "    istio.io/use-waypoint: waypoint\n";
        let mesh = Mesh::start(&[
            ("ns.yaml", &namespace),
            ("client.yaml", &client("shop")),
            ("hello.yaml", &hello("shop")),
            ("good.yaml", GOOD),
        ])
        .await?;
        mesh.isobar(&["waypoint", "apply", "-n", "shop", "--wait"])
            .await?;
        let caller = mesh.caller("shop/client").await?;
        let to: SocketAddr = (mesh.service_ip("shop/svc-hello").await?, 8080).into();
        let goes_to = async |version: &str| {
            eventually(&format!("requests go to {version}"), async || {
                let reply = caller
                    .request(to, "GET", "svc-hello:8080", "/", &[])
                    .await?;
                ensure!(
                    reply.status == 200 && reply.body.contains(version),
                    "{reply:?}"
                );
                Ok(())
            })
            .await
        };
        goes_to("v1").await?;
        for (file, wrong, words) in WRONG {
            mesh.apply(file, wrong)?;
            eventually(&format!("{file} is reported"), async || {
                let findings = mesh.page(Target::Outer, 15014, "/debug/findings").await?;
                ensure!(words.iter().all(|w| findings.contains(w)), "{findings}");
                Ok(())
            })
            .await?;
            goes_to("v1").await?;
            mesh.delete(file)?;
        }
        // The object itself turns bad: its last good version stays; mended, the new one is in force.
        mesh.apply("good.yaml", &GOOD.replace("route:", "rout:"))?;
        eventually("the bad version is reported", async || {
            let findings = mesh.page(Target::Outer, 15014, "/debug/findings").await?;
            ensure!(findings.contains("rout"), "{findings}");
            Ok(())
        })
        .await?;
        goes_to("v1").await?;
        mesh.apply("good.yaml", &GOOD.replace("svc-hello-v1", "svc-hello-v2"))?;
        goes_to("v2").await?;
        mesh.down()
    });
}

/// Kills the control plane and waits until its next life has told every node proxy everything.
async fn restart_control_plane(mesh: &Mesh) -> Result<()> {
    mesh.lab().kill_component("isobard").await?;
    mesh.lab().start_component("isobard").await?;
    eventually("every node proxy is synced again", async || {
        let page = mesh.page(Target::Outer, 15014, "/debug/syncz").await?;
        let page: Value = serde_json::from_str(&page)?;
        let clients = page["clients"].as_array().context("no clients")?;
        let types = clients
            .iter()
            .filter_map(|client| client["types"].as_object());
        let words: Vec<_> = types
            .flat_map(|types| types.values().map(|one| one["status"].as_str()))
            .collect();
        let synced = words.iter().all(|word| *word == Some("SYNCED"));
        ensure!(clients.len() == 2 && words.len() == 4 && synced, "{page}");
        Ok(())
    })
    .await
}

/// Kills the agent of the server's node and waits until its next life has judged the server.
async fn restart_agent(mesh: &Mesh) -> Result<()> {
    mesh.lab().kill_component("isobar-cni-node-2").await?;
    mesh.lab().start_component("isobar-cni-node-2").await?;
    eventually("the server is found enrolled", async || {
        let page = mesh.page(Target::node("node-2"), 15030, "/pods").await?;
        let page: Value = serde_json::from_str(&page)?;
        let pods = page["pods"].as_array().context("no pods")?;
        let server = pods.iter().find(|pod| pod["name"] == "server");
        let standing = server.map(|pod| &pod["standing"]);
        ensure!(standing == Some(&Value::from("enrolled")), "{page}");
        Ok(())
    })
    .await
}

/// Broken text is no news; neither is a restart while the text is broken.
#[test]
fn a_restart_while_files_are_broken_opens_nothing_and_loses_nothing() {
    run(async {
        let mesh = Mesh::start(&[
            ("ns.yaml", &ambient("shop")),
            ("client.yaml", &client("shop")),
            ("server.yaml", &server("shop", &[])),
            ("outside.yaml", &outside()),
            ("deny.yaml", DENY),
            ("strict.yaml", STRICT),
        ])
        .await?;
        mesh.settled("shop/client", "enrolled").await?;
        mesh.settled("shop/server", "enrolled").await?;
        let to: SocketAddr = (mesh.service_ip("shop/server").await?, 80).into();
        let inside = mesh.caller("shop/client").await?;
        let outsider = mesh.caller("outside/outsider").await?;
        let refused = async |when: &str| {
            for (who, caller) in [("the client", &inside), ("the outsider", &outsider)] {
                let reply = caller.get(to, "/ip").await;
                ensure!(reply.is_err(), "{when}: {who} is let in");
            }
            anyhow::Ok(())
        };
        refused("at first").await?;
        for (what, broken) in [
            ("a misspelt field", DENY.replace("rules:", "ruls:")),
            ("broken text", DENY.to_owned() + "foo: [bar\n"),
        ] {
            mesh.apply("deny.yaml", &broken)?;
            restart_control_plane(&mesh).await?;
            refused(what).await?;
        }

        let away = mesh.objects().with_extension("away");
        std::fs::rename(mesh.objects(), &away)?;
        restart_control_plane(&mesh).await?;
        refused("the folder is away").await?;
        std::fs::rename(&away, mesh.objects())?;

        for (what, broken) in [
            ("misspelt", ambient("shop").replace("labels:", "lbels:")),
            ("unclosed", ambient("shop") + "x: {\n"),
        ] {
            mesh.apply("ns.yaml", &broken)?;
            restart_agent(&mesh).await?;
            refused(what).await?;
        }

        let pod = server("shop", &[]).replace("spec:", "sepc:");
        mesh.apply("server.yaml", &pod)?;
        restart_control_plane(&mesh).await?;
        restart_agent(&mesh).await?;
        refused("the pod's file is broken").await?;
        // What was deleted while nobody looked is gone, and the pod is still known.
        mesh.lab().kill_component("isobard").await?;
        mesh.delete("deny.yaml")?;
        mesh.lab().start_component("isobard").await?;
        mesh.answers(&inside, to, "server", "/ip").await?;
        let reply = outsider.get(to, "/ip").await;
        ensure!(reply.is_err(), "the outsider is let in under STRICT");
        mesh.down()
    });
}
