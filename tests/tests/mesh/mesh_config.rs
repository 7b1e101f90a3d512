//! Istio's MeshConfig among a lab's files.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{Caller, Mesh, eventually};

use crate::fixture::{Shop, ambient, client, other, run, server, shop};

/// Names callers by the name that the mesh had before.
const OLD_NAME: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [old.example/ns/shop/sa/client]}}]}]
";

const SETTINGS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomainAliases: [old.example]
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
";

/// The control plane's pages: an address that the mesh knows nothing about.
const ELSEWHERE: ([u8; 4], u16) = ([172, 30, 0, 1], 15014);

async fn answers(caller: &Caller, to: SocketAddr, path: &str) -> Result<()> {
    let reply = caller.get(to, path).await?;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(())
}

async fn refused(caller: &Caller, to: SocketAddr, path: &str) -> Result<()> {
    ensure!(answers(caller, to, path).await.is_err(), "it was let in");
    Ok(())
}

#[test]
fn the_mesh_config_of_a_lab_counts_while_it_is_there() {
    run(async {
        let mesh = Mesh::start(&[
            ("ns.yaml", &ambient("shop")),
            ("client.yaml", &client("shop")),
            ("other.yaml", &other("shop")),
            ("server.yaml", &server("shop", &[])),
        ])
        .await?;
        for pod in ["shop/client", "shop/other", "shop/server"] {
            mesh.settled(pod, "enrolled").await?;
        }
        let to: SocketAddr = (mesh.service_ip("shop/server").await?, 80).into();
        let elsewhere = SocketAddr::from(ELSEWHERE);
        let (client, other) = (
            mesh.caller("shop/client").await?,
            mesh.caller("shop/other").await?,
        );
        eventually("the mesh works", async || answers(&client, to, "/ip").await).await?;
        mesh.apply("policy.yaml", OLD_NAME)?;
        eventually("the name is that of no mesh", async || {
            refused(&client, to, "/ip").await
        })
        .await?;
        answers(&client, elsewhere, "/version").await?;

        mesh.apply("settings.yaml", SETTINGS)?;
        eventually("it is a name of this one", async || {
            answers(&client, to, "/ip").await
        })
        .await?;
        refused(&other, to, "/ip").await?;
        eventually("only the mesh is reached", async || {
            refused(&client, elsewhere, "/version").await
        })
        .await?;

        mesh.delete("settings.yaml")?;
        eventually("nothing of it counts", async || {
            refused(&client, to, "/ip").await?;
            answers(&client, elsewhere, "/version").await
        })
        .await?;
        mesh.down()
    });
}

/// What the waypoint writes of requests, as the settings want it.
fn lines(settings: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |\n    {settings}\n"
    )
}

#[test]
fn one_setting_turns_lines_on_off_and_over_while_the_mesh_runs() {
    run(async {
        let Shop { mesh, caller, to } = shop(&[]).await?;
        let apply = ["waypoint", "apply", "-n", "shop", "--enroll-namespace"];
        mesh.isobar(&[&apply[..], &["--wait"]].concat()).await?;
        // Lines for requests to this path; requests go on until there are some that are so.
        let of = async |path: &str| -> Result<Vec<String>> {
            answers(&caller, to, path).await?;
            let log = mesh.log("shop/waypoint").await?;
            let all = log.lines().filter(|line| line.contains(path));
            Ok(all.map(str::to_owned).collect())
        };
        let becomes = async |path: &str, start: &str| {
            eventually(&format!("lines begin with {start}"), async || {
                let all = of(path).await?;
                let last = all.last().context("no line")?;
                ensure!(last.starts_with(start), "{last}");
                Ok(())
            })
            .await
        };
        becomes("/ip?usual", "[").await?;
        mesh.apply("settings.yaml", &lines("accessLogEncoding: JSON"))?;
        becomes("/ip?json", "{\"authority\"").await?;
        let text = "accessLogFormat: 'seen %REQ(:PATH)% %RESPONSE_CODE%'";
        mesh.apply("settings.yaml", &lines(text))?;
        becomes("/ip?text", "seen /ip?text 200").await?;
        mesh.apply("settings.yaml", &lines("accessLogFile: ''"))?;
        eventually("there are no more", async || {
            let before = of("/ip?none").await?.len();
            // A line that is on its way is there by the next request's end.
            of("/ip?none").await?;
            let now = of("/ip?none").await?.len();
            ensure!(now == before, "{before} {now}");
            Ok(())
        })
        .await?;
        mesh.delete("settings.yaml")?;
        becomes("/ip?again", "[").await?;
        mesh.down()
    });
}
