use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, Method};
use isobar_types::Identity;

/// Labels of a workload: only the keys that some rule or subset names.
pub type Labels = BTreeMap<String, String>;

/// Who calls. Only `identity` authorises; labels may route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The one identity of the peer's certificate; `None` without mutual TLS.
    pub identity: Option<Identity>,
    /// Address of the peer: the caller's pod.
    pub ip: IpAddr,
    /// Labels of the calling workload, where it is known; `None` never matches `sourceLabels`.
    pub labels: Option<Arc<Labels>>,
}

impl Caller {
    /// Namespace of the calling account, by certificate.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.identity.as_ref().map(|id| &*id.namespace)
    }

    /// True if every wanted label is known and equal; wanting none is always met.
    #[must_use]
    pub fn has_labels(&self, wanted: &Labels) -> bool {
        wanted.is_empty()
            || self.labels.as_deref().is_some_and(|have| {
                wanted
                    .iter()
                    .all(|(key, value)| have.get(key) == Some(value))
            })
    }
}

/// The parts of a request that rules look at, already normalised (see [`crate::path`]).
#[derive(Debug, Clone, Copy)]
pub struct HttpCall<'a> {
    /// Request method.
    pub method: &'a Method,
    /// Normalised path, without the query.
    pub path: &'a str,
    /// Query without the question mark.
    pub query: Option<&'a str>,
    /// Normalised authority: lower case, no trailing dot, port only if it is not the scheme's.
    pub authority: &'a str,
    /// Authority as the caller wrote it, without a trailing dot: routes tell upper from lower case.
    pub written_authority: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Request headers after sanitising.
    pub headers: &'a HeaderMap,
    /// Where the call goes, as addressed: the service address and port, or the pod's.
    pub destination: SocketAddr,
}

/// The parts of an opaque connection that rules look at.
#[derive(Debug, Clone, Copy)]
pub struct TcpCall<'a> {
    /// Where the call goes, as addressed.
    pub destination: SocketAddr,
    /// Server name of a TLS hello, if one was seen.
    pub sni: Option<&'a str>,
}
