//! Arguments of `isobar lab`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{pair, ports, seconds};

#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Start a lab over a folder of YAML; editing a file there is `kubectl apply`.
    #[command(after_help = "\
Example:
  isobar lab up -f manifests/samples/bookinfo --name books --nodes 3")]
    Up(Up),
    /// End a lab and remove everything of it, also after a crash.
    Down {
        /// Which lab (the same as --lab).
        #[arg(long)]
        name: Option<String>,
        /// Every lab of this user.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Show nodes, processes, pods and services.
    Status,
    /// List all labs.
    #[command(visible_alias = "ls")]
    List,
    /// Run a command inside a pod.
    #[command(after_help = "\
Examples:
  isobar lab exec -n hello httpbin -- curl -s http://svc-hello:8080
  isobar lab exec node:node-1 -- ip route      a node's own network
  isobar lab exec outer -- ss -tln             the network between the nodes

The exit code is the command's own.")]
    Exec {
        /// A pod or Deployment, `node:NAME`, or `outer`.
        pod: String,
        /// Namespace of the pod.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Command and arguments, after `--`.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Print the log of a pod or of a process of the mesh.
    #[command(after_help = "\
Examples:
  isobar lab logs ztunnel-node-1 -f
  isobar lab logs -n hello hello-server-v1
Processes are isobard, isobar-cni-NODE, ztunnel-NODE and supervisor.")]
    Logs {
        /// A pod, a Deployment or a process.
        name: String,
        /// Namespace of the pod.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Go on printing what comes.
        #[arg(short, long)]
        follow: bool,
    },
    /// Listen on this machine and carry connections into the lab.
    #[command(after_help = "\
Examples:
  isobar lab forward -n bookinfo svc/productpage 9080:9080
  isobar lab forward node:node-1 15000:15000    the admin page of a node proxy")]
    Forward {
        /// `svc/NAME`, a pod or Deployment, `node:NAME`, or `outer`.
        target: String,
        /// Port here and port there; one number for both; 0 here picks a free one.
        #[arg(value_name = "LOCAL:REMOTE", value_parser = ports)]
        ports: (u16, u16),
        /// Namespace of the pod or service.
        #[arg(short, long)]
        namespace: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Folder (or file) of YAML; may be given several times. Subfolders are not read.
    #[arg(short, long = "file", required = true, value_name = "DIR")]
    pub(crate) files: Vec<PathBuf>,
    /// Name of the lab.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Number of nodes.
    #[arg(long, default_value_t = 2)]
    pub(crate) nodes: u8,
    /// Folder of the mesh's programs, if not that of this one.
    #[arg(long, value_name = "DIR")]
    pub(crate) bin: Option<PathBuf>,
    /// Environment of the mesh's programs; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// IPv6 addresses for nodes and pods beside the others. Services have none by themselves, and
    /// NetworkPolicies hold for IPv4 only.
    #[arg(long)]
    pub(crate) dual_stack: bool,
    /// Only pods, services and DNS; no mesh.
    #[arg(long)]
    pub(crate) no_mesh: bool,
    /// Seconds until everything must be ready.
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}
