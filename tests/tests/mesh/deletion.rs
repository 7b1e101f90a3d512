//! `isobar waypoint delete`: a waypoint goes only when nobody is left without one.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use isobar_tests::yaml::namespace;
use isobar_tests::{Mesh, MeshOptions, samples};

use crate::fixture::{AMBIENT, run};

const FILED: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: filed
  namespace: hello
spec:
  gatewayClassName: isobar-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
";

/// What the command printed on both outputs, and whether it went well.
async fn said(mesh: &Mesh, args: &[&str]) -> Result<(bool, String)> {
    let output = mesh.isobar_output(args).await?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((output.status.success(), text))
}

#[test]
fn a_waypoint_that_is_named_is_not_deleted() {
    run(async {
        let options = MeshOptions {
            sample: Some(samples().join("hello")),
            ..MeshOptions::default()
        };
        let mesh = Mesh::start_with(options, &[]).await?;
        mesh.settled("hello/httpbin", "enrolled").await?;
        let apply = ["waypoint", "apply", "-n", "hello"];
        mesh.isobar(&[&apply[..], &["--enroll-namespace", "--wait"]].concat())
            .await?;
        let caller = mesh.caller("hello/httpbin").await?;
        let to: SocketAddr = (mesh.service_ip("hello/svc-hello").await?, 8080).into();
        let host = "svc-hello:8080";
        mesh.answers(&caller, to, host, "/").await?;

        // The user writes the same label into a file.
        let named = [AMBIENT, ("istio.io/use-waypoint", "waypoint")];
        mesh.apply("namespace.yaml", &namespace("hello", &named))?;
        let (good, text) = said(&mesh, &["waypoint", "delete", "-n", "hello"]).await?;
        let words = [
            "Namespace hello (",
            "namespace.yaml:1",
            "istio.io/use-waypoint",
            "--force",
        ];
        ensure!(
            !good && words.iter().all(|word| text.contains(word)),
            "{text}"
        );
        ensure!(!text.contains("unbound"), "half the way: {text}");
        mesh.answers(&caller, to, host, "/").await?;

        mesh.apply("namespace.yaml", &namespace("hello", &[AMBIENT]))?;
        let (good, text) = said(&mesh, &["waypoint", "delete", "-n", "hello"]).await?;
        ensure!(good && text.contains("Namespace hello unbound"), "{text}");
        for _ in 0..20 {
            let reply = caller.request(to, "GET", host, "/", &[]).await?;
            ensure!(reply.status == 200, "{reply:?}");
        }
        of_a_file(&mesh, &apply).await?;
        mesh.down()
    });
}

/// A Gateway in a file is bound to as it is; deleting leaves it, and deletes the others.
async fn of_a_file(mesh: &Mesh, apply: &[&str]) -> Result<()> {
    mesh.apply("gateway.yaml", FILED)?;
    let (good, text) = said(mesh, &[apply, &["--name", "filed"]].concat()).await?;
    ensure!(good && text.contains("gateway.yaml:1"), "{text}");
    mesh.isobar(&[apply, &["--name", "own"]].concat()).await?;
    let (good, text) = said(mesh, &["waypoint", "delete", "-n", "hello", "--all"]).await?;
    let words = [
        "waypoint hello/own deleted",
        "hello/filed is in",
        "gateway.yaml:1",
    ];
    ensure!(
        !good && words.iter().all(|word| text.contains(word)),
        "{text}"
    );
    let list = mesh.isobar(&["waypoint", "list"]).await?;
    ensure!(list.contains("filed") && !list.contains("own"), "{list}");
    let written = mesh.lab().paths().overlay().join("cli");
    let left = std::fs::read_dir(written)?.count();
    ensure!(left == 0, "the command left {left} files of its own");
    Ok(())
}
