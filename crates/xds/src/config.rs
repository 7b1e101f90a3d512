use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

/// Where discovery comes from, and who asks.
#[derive(Debug, Clone)]
pub struct AdsConfig {
    /// `https://HOST:PORT`; the scheme may be missing.
    pub address: String,
    /// Whom to trust; a file is read again at every connect.
    pub roots: Roots,
    /// Name accepted from the server besides the host of `address`.
    pub alt_hostname: Option<String>,
    /// Proof of who asks; a file is read again at every call.
    pub token: Option<Token>,
    /// Cluster of the asking proxy, sent together with the token.
    pub cluster_id: String,
    /// Further request headers.
    pub headers: Vec<(String, String)>,
    /// Node id: `TYPE~IP~NAME.NAMESPACE~NAMESPACE.svc.cluster.local`.
    pub node_id: String,
    /// Node metadata.
    pub metadata: Map<String, Value>,
}

/// Where certificates come from.
#[derive(Debug, Clone)]
pub struct CaConfig {
    /// `https://HOST:PORT`; the scheme may be missing.
    pub address: String,
    /// Whom to trust; a file is read again before every request.
    pub roots: Roots,
    /// Name accepted from the server besides the host of `address`.
    pub alt_hostname: Option<String>,
    /// Proof of who asks; a file is read again at every call.
    pub token: Option<Token>,
    /// Cluster of the asking proxy, sent together with the token.
    pub cluster_id: String,
    /// Further request headers.
    pub headers: Vec<(String, String)>,
    /// Validity to ask for.
    pub ttl: Duration,
    /// Name the wanted identity in the request: a node proxy asks for its pods. Otherwise the
    /// authority takes the identity from the token.
    pub impersonate: bool,
}

/// Certificates to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// PEM file.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// Those that the operating system trusts.
    System,
}

impl From<PathBuf> for Roots {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// A bearer token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// File with the token.
    File(PathBuf),
    /// The token.
    Literal(String),
}

impl From<PathBuf> for Token {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

/// What discovery and certificates have in common about their server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) roots: Roots,
    pub(crate) alt_hostname: Option<String>,
    pub(crate) token: Option<Token>,
    pub(crate) cluster_id: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl From<CaConfig> for Server {
    fn from(config: CaConfig) -> Self {
        Self {
            address: config.address,
            roots: config.roots,
            alt_hostname: config.alt_hostname,
            token: config.token,
            cluster_id: config.cluster_id,
            headers: config.headers,
        }
    }
}

impl AdsConfig {
    /// The server, the node id and the metadata.
    pub(crate) fn split(self) -> (Server, String, Map<String, Value>) {
        let server = Server {
            address: self.address,
            roots: self.roots,
            alt_hostname: self.alt_hostname,
            token: self.token,
            cluster_id: self.cluster_id,
            headers: self.headers,
        };
        (server, self.node_id, self.metadata)
    }
}
