//! What an operator writes for a proxy without a control plane.

use isobar_state::Snapshot;
use ztunnel::local::LocalMesh;

/// A mesh told in a file.
///
/// # Panics
/// When an accepted mesh cannot be applied, or twice is not as once.
pub fn local_mesh(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(mesh) = LocalMesh::parse(text) else {
        return;
    };
    let once = mesh.apply(&Snapshot::default());
    let twice = once.as_ref().ok().map(|once| mesh.apply(once));
    let sizes = |made: &Snapshot| made.sizes();
    let twice = twice.and_then(Result::ok).as_ref().map(sizes);
    assert!(twice.is_some() && twice == once.as_ref().ok().map(sizes));
}
