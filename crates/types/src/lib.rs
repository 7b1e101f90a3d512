//! Words of the mesh: identities, addresses, ports, labels and the one list of reasons.
//!
//! Nothing here decides anything, reads a clock or opens a socket; every other crate may use it.

#![forbid(unsafe_code)]

mod address;
pub mod converted;
pub mod discovery;
mod framing;
pub mod hex;
mod identity;
pub mod labels;
pub mod ports;
mod reason;

pub use address::{AddressText, NamespacedHostname, NamespacedName, NetworkAddress, canonical_ip};
pub use framing::is_framing;
pub use identity::{Identity, IdentityError};
pub use reason::{Reason, Side};

/// A shared immutable string: cheap to clone, compared by content.
pub type Str = std::sync::Arc<str>;

/// Trust domain meant by an empty `trust_domain` field on the wire.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Cluster id meant by an empty `cluster_id` field on the wire.
pub const DEFAULT_CLUSTER_ID: &str = "Kubernetes";
/// DNS suffix of service host names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Namespace whose policies apply to the whole mesh, unless configured otherwise.
pub const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";
/// Audience a bound service account token must carry to be accepted on 15012.
pub const TOKEN_AUDIENCE: &str = "istio-ca";
