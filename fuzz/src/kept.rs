//! What a proxy kept of its last life, on a disk that others may have written to.

use isobar_proto::istio;
use isobar_state::Snapshot;
use isobar_types::Identity;
use isobar_xds::{SavedCertificates, SavedMesh};
use prost::Message as _;

/// What the files of the corpus are of.
const ORIGIN: &str = "fuzz";

/// A file of the mesh, whole or without its seal. What it tells is taken as from a control plane.
///
/// # Panics
/// When a resource without a type was taken.
pub fn mesh_file(data: &[u8]) {
    let Ok(resources) = SavedMesh::read(ORIGIN, data) else {
        return;
    };
    let mut draft = Snapshot::default().draft();
    for resource in resources.into_values().flatten() {
        assert!(resource.resource.is_some());
        let bytes = resource.resource.unwrap_or_default().value;
        if let Ok(address) = istio::workload::Address::decode(&bytes[..]) {
            let _ = draft.upsert_address(&address);
        }
    }
    let _ = draft.finish();
}

/// A file of a certificate and its key, whole or without its seal.
///
/// # Panics
/// When the certificate is of nobody's that one can be made for.
pub fn certificate_file(data: &[u8]) {
    if let Ok(found) = SavedCertificates::read(data) {
        let identity = found.identity().to_string();
        assert_eq!(
            identity.parse::<Identity>().ok().as_ref(),
            Some(found.identity())
        );
    }
}
