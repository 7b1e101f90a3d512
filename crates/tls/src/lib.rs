//! TLS, SPIFFE verification, certificate requests, the signing half of the CA, bound tokens.
//!
//! The only crate that names rustls and BoringSSL; others use the stream types re-exported here.
//! Between workloads: TLS 1.3, mutual, ALPN `h2`, identities as SPIFFE URIs ([`server_config`],
//! [`client_config`]). To the control plane: server certificate only ([`control`]).

#![forbid(unsafe_code)]

pub mod ca;
mod callers;
mod certificate;
pub mod control;
pub mod csr;
mod domains;
pub mod edge;
mod failure;
mod hello;
pub mod https;
mod key;
mod mesh;
mod names;
pub mod outwards;
mod peer;
mod pem;
mod provider;
mod revocation;
mod system;
#[cfg(test)]
mod tests;
pub mod token;
mod verify;

pub use certificate::{CertificateError, CertificateInfo, WorkloadCertificate};
pub use domains::{PeerTrust, TrustDomains};
pub use failure::CryptoFailure;
pub use hello::Hello;
pub use key::PrivateKey;
pub use mesh::{ClientTls, HandshakeError, ServerTls, client_config, server_config};
pub use peer::{PeerError, VerifiedPeer};
pub use provider::{PolicyInForce, TlsPolicy, description, provider, random, set_policy};
pub use revocation::{RevocationError, RevocationLists, Revocations};
pub use system::system_roots;
pub use tokio_rustls::client::TlsStream as ClientStream;
pub use tokio_rustls::server::TlsStream as ServerStream;
