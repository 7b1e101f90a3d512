//! Static configuration: read once at start from Istio's environment variables and proxy config.
//!
//! Nothing else in this crate reads the environment.

mod environment;
mod proxy_config;
mod section;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::zds::PodInfo;

use crate::local::LocalMesh;
pub use environment::Environment;
pub use section::{Dns, Http2, Keepalive, Logging, Ports, RootSource, Tls, TokenSource, Upstream};

/// Everything this process was told at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Whose traffic it carries.
    pub mode: Mode,
    /// Name of the pod this process runs in; empty if not told.
    pub pod_name: String,
    /// Namespace of that pod.
    pub pod_namespace: String,
    /// Service account of that pod.
    pub service_account: String,
    /// Address of that pod, for the node id only.
    pub instance_ip: IpAddr,
    /// Node whose workloads are local.
    pub node_name: Option<String>,
    /// Cluster id, sent with every call to the control plane.
    pub cluster_id: String,
    /// Network of this node, part of every address.
    pub network: String,
    /// Trust domain of this process's own identity.
    pub trust_domain: String,
    /// Metadata sent with the node id.
    pub metadata: std::collections::BTreeMap<String, serde_json::Value>,
    /// Discovery; `None` when switched off with an empty address.
    pub xds: Option<Upstream>,
    /// Addresses are asked for one by one instead of all at once (`XDS_ON_DEMAND`).
    pub on_demand: bool,
    /// What TLS offers and accepts.
    pub tls: Tls,
    /// Certificate authority.
    pub ca: Upstream,
    /// Bearer token for calls to the control plane.
    pub token: Option<TokenSource>,
    /// Lifetime asked for certificates.
    #[serde(with = "value::seconds")]
    pub secret_ttl: Duration,
    /// Numbers of the listeners.
    pub ports: Ports,
    /// Socket of the node agent.
    pub zds_socket: PathBuf,
    /// `SO_MARK` of sockets; `None` leaves them unmarked.
    pub packet_mark: Option<u32>,
    /// Whether listeners share their port between workers and processes.
    pub port_reuse: bool,
    /// Keep the client's source address towards the application: `None` tries.
    pub original_source: Option<bool>,
    /// A workload bound to a waypoint takes traffic from its waypoint only. Istio's ztunnel does not
    /// insist (`ISOBAR_REQUIRE_WAYPOINT=false`).
    pub require_waypoint: bool,
    /// Connections between two pods of this process take no tunnel.
    pub same_node: bool,
    /// Lists of revoked certificates, PEM or DER, followed while they change (`CRL_PATH`).
    pub revocation_file: Option<PathBuf>,
    /// Where the mesh and, if it is in memory, certificates are kept for the next start
    /// (`ISOBAR_STATE_DIR`); `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Dual-stack listeners and AAAA answers.
    pub ipv6: bool,
    /// TCP keepalive on plain connections.
    pub keepalive: Option<Keepalive>,
    /// HBONE's HTTP/2 parameters.
    pub http2: Http2,
    /// Send the destination's labels in the 200 and read the caller's.
    pub response_baggage: bool,
    /// How long open connections may run on once the end was asked for.
    #[serde(with = "value::seconds")]
    pub drain: Duration,
    /// Data-path threads.
    pub worker_threads: usize,
    /// DNS proxy; `None` when switched off.
    pub dns: Option<Dns>,
    /// Log format and levels.
    pub logging: Logging,
    /// PROXY headers go to the application over loopback.
    pub localhost_app_tunnel: bool,
    /// Objects known without a control plane; shown under `staticConfig`.
    #[serde(skip)]
    pub local: LocalMesh,
}

/// Whose traffic a ztunnel carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Mode {
    /// Every pod the node agent announces.
    Shared,
    /// One workload, in the network namespace of this process.
    Dedicated {
        /// Pod name.
        name: String,
        /// Its namespace.
        namespace: String,
        /// Its service account.
        service_account: String,
    },
}

/// A setting that cannot be used; the text names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The value of a variable does not have the form it must have.
    #[error("{variable}={value:?}: {expected}")]
    Value {
        /// Name of the environment variable or key.
        variable: String,
        /// What was given.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A variable that must be set is not.
    #[error("{variable} must be set: {why}")]
    Missing {
        /// Name of the environment variable.
        variable: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
    /// Istio knows the feature, this program does not have it.
    #[error("{variable}={value:?}: {feature} is not supported")]
    Unsupported {
        /// Name of the environment variable.
        variable: &'static str,
        /// What was given.
        value: String,
        /// What it would switch on.
        feature: &'static str,
    },
    /// Objects told locally cannot be used.
    #[error("{variable}: {reason}")]
    Local {
        /// Name of the environment variable.
        variable: &'static str,
        /// Which object, and what is wrong.
        reason: String,
    },
    /// A configuration file cannot be read.
    #[error("reading {path}: {reason}")]
    File {
        /// Its path.
        path: String,
        /// Why not.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn value(variable: &str, value: &str, expected: impl Into<String>) -> Self {
        Self::Value {
            variable: variable.to_owned(),
            value: value.to_owned(),
            expected: expected.into(),
        }
    }
}

impl Config {
    /// The id under which the control plane knows this proxy.
    #[must_use]
    pub fn node_id(&self) -> String {
        format!(
            "ztunnel~{}~{}.{ns}~{ns}.svc.cluster.local",
            self.instance_ip,
            self.pod_name,
            ns = self.pod_namespace
        )
    }

    /// Who this process is itself, if its pod was told: it then takes HBONE for its own pod.
    #[must_use]
    pub fn own_pod(&self) -> Option<PodInfo> {
        let told = [&self.pod_name, &self.pod_namespace, &self.service_account];
        let shared = self.mode == Mode::Shared;
        (shared && told.iter().all(|t| !t.is_empty())).then(|| PodInfo {
            name: self.pod_name.clone(),
            namespace: self.pod_namespace.clone(),
            service_account: self.service_account.clone(),
        })
    }

    /// Wildcard address for a listener: dual stack where IPv6 is on.
    #[must_use]
    pub fn wildcard(&self, port: u16) -> SocketAddr {
        if self.ipv6 {
            (std::net::Ipv6Addr::UNSPECIFIED, port).into()
        } else {
            (std::net::Ipv4Addr::UNSPECIFIED, port).into()
        }
    }

    /// Loopback addresses for a listener of this process.
    #[must_use]
    pub fn loopback(&self, port: u16) -> Vec<SocketAddr> {
        let mut addresses = vec![SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port))];
        if self.ipv6 {
            addresses.push((std::net::Ipv6Addr::LOCALHOST, port).into());
        }
        addresses
    }
}

#[cfg(test)]
mod tests;
