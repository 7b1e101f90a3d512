//! `make interop`: our node proxy and another's in one mesh of ours, and what they make of each other.
//!
//! Node 1 has our node proxy, nodes 2 and 3 the other; the control plane, the authority, the node
//! agents and the waypoints are ours. Every cell of the matrix is one thing that was seen.

mod call;
mod closed;
mod figures;
mod l4;
mod matrix;
mod names;
mod passage;
mod peer;
mod policy;
mod ports;
mod restart;
mod scenery;
mod six;
mod upgrade;
mod weights;

use std::path::PathBuf;

use anyhow::{Context, Result};

use matrix::Matrix;
pub use peer::Peer;
use scenery::Scene;

/// What to run, and where to write what was seen.
#[derive(Debug, Clone)]
pub struct Options {
    /// The other node proxy.
    pub peer: Peer,
    /// Folder of the two files.
    pub out: PathBuf,
    /// Their name.
    pub name: String,
    /// Only these groups; all if empty.
    pub only: Vec<String>,
}

/// Runs every scenario, writes the matrix and prints it; true if no cell fails.
///
/// # Errors
/// When the mesh does not start, or the matrix cannot be written.
pub async fn run(options: &Options) -> Result<bool> {
    let scene = Scene::start(&options.peer).await?;
    let mut matrix = Matrix::new(&options.peer);
    let wants = |group: &str| options.only.is_empty() || options.only.iter().any(|o| o == group);
    macro_rules! groups {
        ($($group:ident),*) => {$(
            if wants(stringify!($group))
                && let Err(error) = $group::all(&scene, &mut matrix).await
            {
                matrix.broken(stringify!($group), &error);
            }
        )*};
    }
    groups!(
        l4, policy, passage, weights, closed, names, figures, ports, six, restart, upgrade
    );
    scene.down()?;
    if options.only.is_empty() {
        matrix
            .write(&options.out, &options.name)
            .with_context(|| format!("writing to {}", options.out.display()))?;
    }
    println!("{}", matrix.markdown());
    Ok(matrix.good())
}
