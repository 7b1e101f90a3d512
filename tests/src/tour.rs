//! The tour that `make demo` gives: each stop shows what it does, what it expects and what it saw.

mod stage;
mod stops;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::mesh::{Mesh, MeshOptions, binaries, samples};
use stage::Stage;
pub use stage::{Step, next_steps};

/// Name of the demo's lab.
const LAB: &str = "demo";

/// Gives the tour; true if everything was as expected. `keep` leaves the lab up. With `api_server` its
/// objects are in a real API server, and nothing but kubectl changes them.
///
/// # Errors
/// When a step cannot be carried out at all.
pub async fn run(keep: bool, api_server: Option<PathBuf>) -> Result<bool> {
    let start = Instant::now();
    let mut stage = Stage::new();
    stage.title("A mesh on this machine");
    stage.command("isobar lab up -f manifests/samples/hello --name demo");
    if api_server.is_none() {
        // A demo that was left up earlier would be in the way of this one.
        isobar_lab::down(&isobar_lab::LabRoot::from_env(), LAB)?;
    }
    let options = MeshOptions {
        // Beside the demo that somebody may have left up.
        name: api_server.is_none().then(|| LAB.to_owned()),
        api_server: api_server.clone(),
        sample: Some(samples().join("hello")),
        ..MeshOptions::default()
    };
    let mesh = Mesh::start_with(options, &[]).await?;
    for pod in [
        "hello/httpbin",
        "hello/hello-server-v1",
        "hello/hello-server-v2",
    ] {
        mesh.settled(pod, "enrolled").await?;
    }
    let status = mesh.status().await?;
    stage.check(
        "nodes, pods and programs up",
        "2 nodes, 3 pods, all ready",
        &format!(
            "{} nodes, {} pods, {} programs, {:.1} s",
            status.nodes.len(),
            status.pods.len(),
            status.components.len(),
            start.elapsed().as_secs_f32()
        ),
        status.ready && status.nodes.len() == 2 && status.pods.len() == 3,
    );
    let result = stops::all(&mesh, &mut stage).await;
    if let Err(error) = &result {
        stage.failed(&format!("{error:#}"));
    }
    stage.summary(start.elapsed());
    if keep {
        let objects = mesh.keep();
        stage.next_steps(LAB, &objects, &binaries()?);
    } else {
        mesh.down()?;
    }
    Ok(stage.good())
}
