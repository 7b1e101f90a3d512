//! The NetworkPolicy of a service that goes into the mesh, found and mended by the command.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_tests::{Caller, Mesh, MeshOptions, eventually};

use crate::fixture::{outside, run};

async fn answers(caller: &Caller, to: SocketAddr) -> Result<()> {
    let reply = tokio::time::timeout(Duration::from_secs(1), caller.get(to, "/")).await??;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(())
}

#[test]
fn seed_004_np_the_policy_of_my_app_is_found_and_fixed() {
    run(async {
        let options = MeshOptions {
            sample: Some(isobar_tests::samples().join("networkpolicy")),
            ..MeshOptions::default()
        };
        let mesh = Mesh::start_with(options, &[("outside.yaml", &outside())]).await?;
        for pod in ["shop/client", "shop/my-app"] {
            mesh.settled(pod, "enrolled").await?;
        }
        let inside = mesh.caller("shop/client").await?;
        let outside = mesh.caller("outside/outsider").await?;
        let app = SocketAddr::new(mesh.pod_ip("shop/my-app").await?, 8080);
        answers(&outside, app).await?;
        ensure!(
            answers(&inside, app).await.is_err(),
            "15008 is open already"
        );

        let found = mesh.isobar_output(&["netpol", "check"]).await?;
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        ensure!(found.status.code() == Some(1), "{found:?}");
        for word in [
            "shop/my-app-allow",
            "spec.ingress[0].ports",
            "15008",
            "shop/my-app",
        ] {
            ensure!(text.contains(word), "{word} is not in\n{text}");
        }
        let diff = mesh.isobar(&["netpol", "fix"]).await?;
        let added: Vec<&str> = diff.lines().filter(|l| l.starts_with("+ ")).collect();
        ensure!(
            added.iter().any(|line| line.ends_with("port: 15008")),
            "{diff}"
        );
        let removed = diff.lines().any(|line| line.starts_with("- "));
        ensure!(!removed, "the application's port stays:\n{diff}");
        ensure!(
            answers(&inside, app).await.is_err(),
            "a look changes nothing"
        );

        mesh.isobar(&["netpol", "fix", "--apply"]).await?;
        eventually("callers in the mesh come in", async || {
            answers(&inside, app).await
        })
        .await?;
        answers(&outside, app).await?;
        let again = mesh.isobar_output(&["netpol", "check"]).await?;
        ensure!(again.status.success(), "{again:?}");
        mesh.down()
    });
}
