//! Arguments of what looks into proxies.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

pub(super) const ZTUNNEL_HELP: &str = "\
Without a pod or --node all node proxies are asked, and what they say is put together: each line once.
In a cluster they are reached by `kubectl port-forward`, so kubectl has to be there (KUBECTL names
another).

Examples:
  isobar ztunnel-config workloads
  isobar ztunnel-config services --node node-1
  isobar ztunnel-config certificates -n hello httpbin     the proxy of that pod's node
  isobar ztunnel-config policies -f config_dump.json      what was saved of one";

/// `isobar ztunnel-config`.
#[derive(Debug, Args)]
pub(crate) struct ZtunnelConfig {
    /// What to show.
    #[arg(value_enum, default_value_t = ZtunnelSection::All)]
    pub(crate) what: ZtunnelSection,
    /// A pod: its node's proxy is asked.
    pub(crate) pod: Option<String>,
    /// Namespace of the pod.
    #[arg(short, long, requires = "pod")]
    pub(crate) namespace: Option<String>,
    /// Only this node's proxy.
    #[arg(long, conflicts_with = "pod")]
    pub(crate) node: Option<String>,
    /// A page `config_dump` that was saved, instead of a proxy that runs.
    #[arg(short, long, conflicts_with_all = ["pod", "node"], value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Only workloads, and connections of workloads, of this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) workload_namespace: Option<String>,
    /// Only workloads with this address.
    #[arg(long)]
    pub(crate) address: Option<String>,
    /// Only services of this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) service_namespace: Option<String>,
    /// Only policies of this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) policy_namespace: Option<String>,
}

/// One proxy.
#[derive(Debug, Subcommand)]
pub(crate) enum ProxyConfig {
    /// A node proxy.
    #[command(after_help = "\
Examples:
  isobar proxy-config ztunnel node-1 workloads
  isobar proxy-config ztunnel hello/httpbin services    the proxy of that pod's node")]
    Ztunnel {
        /// A node, or a pod (its node's proxy is asked).
        name: String,
        /// What to show.
        #[arg(value_enum, default_value_t = ZtunnelSection::All)]
        what: ZtunnelSection,
        /// Namespace of the pod.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// A waypoint.
    #[command(after_help = "\
Example:
  isobar proxy-config waypoint -n hello waypoint routes")]
    Waypoint {
        /// Gateway or pod.
        name: String,
        /// What to show.
        #[arg(value_enum, default_value_t = WaypointSection::All)]
        what: WaypointSection,
        /// Namespace of the waypoint.
        #[arg(short, long)]
        namespace: Option<String>,
    },
}

/// Parts of what a node proxy knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ZtunnelSection {
    #[value(alias = "workload", alias = "w")]
    Workloads,
    #[value(alias = "service", alias = "s")]
    Services,
    #[value(alias = "policy")]
    Policies,
    #[value(alias = "certificate", alias = "c")]
    Certificates,
    #[value(alias = "connection")]
    Connections,
    All,
}

/// Parts of what a waypoint knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaypointSection {
    #[value(alias = "listener")]
    Listeners,
    #[value(alias = "route")]
    Routes,
    #[value(alias = "cluster")]
    Clusters,
    #[value(alias = "endpoint")]
    Endpoints,
    #[value(alias = "workload")]
    Workloads,
    #[value(alias = "policy")]
    Policies,
    #[value(alias = "certificate")]
    Certificates,
    All,
}
