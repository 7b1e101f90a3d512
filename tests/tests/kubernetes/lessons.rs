//! The lessons of the samples, with a real API server as the source and kubectl as the only input.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isobar_tests::{Mesh, MeshOptions, eventually, kube_tools, samples, tour};

use crate::alone;

const POD: &str = "hello/httpbin";

async fn hello() -> Result<Mesh> {
    let options = MeshOptions {
        api_server: Some(kube_tools()?),
        sample: Some(samples().join("hello")),
        ..MeshOptions::default()
    };
    Mesh::start_with(options, &[]).await
}

fn annotation(mesh: &Mesh) -> Result<String> {
    let path = r"jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}";
    mesh.kubectl(&["get", "pod", "httpbin", "-n", "hello", "-o", path])
}

#[test]
fn the_hello_lesson() {
    alone(async {
        let is_good = tour::run(false, Some(kube_tools()?)).await?;
        ensure!(is_good, "a stop of the tour was not as expected");
        Ok(())
    });
}

#[test]
fn a_label_enrols_and_its_removal_gives_back() {
    alone(async {
        let mesh = hello().await?;
        mesh.settled(POD, "enrolled").await?;
        eventually("the annotation tells", async || {
            ensure!(annotation(&mesh)? == "enabled");
            Ok(())
        })
        .await?;
        for (label, then) in [
            ("istio.io/dataplane-mode-", "plain"),
            ("istio.io/dataplane-mode=ambient", "enrolled"),
        ] {
            mesh.kubectl(&["label", "namespace", "hello", label])?;
            let since = Instant::now();
            mesh.settled(POD, then).await?;
            let took = since.elapsed();
            println!("{then} after {took:?}");
            ensure!(took < Duration::from_secs(2), "{then} after {took:?}");
        }
        mesh.down()
    });
}

#[test]
fn a_waypoint_is_deployed_and_its_gateway_says_so() {
    alone(async {
        let mesh = hello().await?;
        mesh.settled(POD, "enrolled").await?;
        let lesson = samples().join("hello/lesson/waypoint.yaml");
        mesh.apply_file(&lesson, "waypoint.yaml")?;
        mesh.kubectl(&[
            "wait",
            "--for=condition=Programmed",
            "gateway/waypoint",
            "-n",
            "hello",
            "--timeout=30s",
        ])?;
        let owner = ["-o", "jsonpath={.metadata.ownerReferences[0].kind}"];
        for kind in ["deployment", "service", "serviceaccount"] {
            let get = ["get", kind, "waypoint", "-n", "hello"];
            ensure!(mesh.kubectl(&[&get[..], &owner].concat())? == "Gateway");
        }
        mesh.down()
    });
}
