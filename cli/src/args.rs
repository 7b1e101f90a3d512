use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Isobar, an ambient service mesh.
///
/// Today the mesh runs in a lab on this machine: nodes and pods are network namespaces, the mesh's
/// programs are the real ones, and a folder of Kubernetes and Istio YAML takes the place of the API
/// server. Editing a file in it is `kubectl apply`.
#[derive(Debug, Parser)]
#[command(
    name = "isobar",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:
  isobar lab up -f manifests/samples/hello       start a mesh of two nodes from a folder of YAML
  isobar lab exec -n hello httpbin -- curl -s http://svc-hello:8080
  isobar status                                  is every proxy in step with the control plane?
  isobar waypoint apply -n hello --enroll-namespace --wait
  isobar proxy-config waypoint -n hello waypoint routes
  isobar lab down                                remove everything"
)]
pub(crate) struct Options {
    /// Lab to talk to; needed only when several run.
    #[arg(long, global = true, env = "ISOBAR_LAB", value_name = "NAME")]
    pub(crate) lab: Option<String>,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start, use and end a mesh on this machine.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Show every proxy and whether it is in step with the control plane.
    #[command(visible_alias = "proxy-status")]
    Status {
        /// Also show everything the control plane has to say about the objects.
        #[arg(short, long)]
        verbose: bool,
    },
    /// Show what a proxy has been told.
    #[command(subcommand, visible_alias = "pc")]
    ProxyConfig(ProxyCommand),
    /// Deploy, list and remove waypoints.
    #[command(subcommand)]
    Waypoint(WaypointCommand),
    /// Check objects without a mesh: exit code 1 if any is wrong.
    Validate {
        /// Folders or files of YAML.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start a lab and wait until all of it is ready.
    Up(Up),
    /// End a lab and remove everything of it, also after a crash.
    Down {
        /// Lab to end; as --lab.
        #[arg(long)]
        name: Option<String>,
        /// End every lab of this user.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Show nodes, programs, pods and services.
    Status,
    /// Show the labs of this user.
    List,
    /// Run a command in a pod: isobar lab exec [-n NAMESPACE] POD -- COMMAND
    Exec {
        /// Namespace of the pod.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Pod or Deployment; `node:NAME` and `outer` are places too.
        pod: String,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print the log of a pod or of a program of the mesh (isobard, ztunnel-NODE, isobar-cni-NODE).
    Logs {
        /// Namespace of the pod.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Whose log.
        of: String,
        /// Go on printing what is added.
        #[arg(short, long)]
        follow: bool,
    },
    /// Open a port of this machine onto a pod or service: isobar lab forward -n NS svc/NAME 9080
    Forward {
        /// Namespace of the target.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Pod, or svc/NAME.
        target: String,
        /// LOCAL:REMOTE, or one number for both.
        ports: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Folder or file of YAML: the lab's objects. May be repeated. Subfolders are not read.
    #[arg(short, long = "file", required = true, value_name = "DIR")]
    pub(crate) files: Vec<PathBuf>,
    /// Name of the lab.
    #[arg(long, default_value = "lab")]
    pub(crate) name: String,
    /// Number of nodes.
    #[arg(long, default_value_t = 2)]
    pub(crate) nodes: u8,
    /// Folder of the mesh's programs, if not that of this one.
    #[arg(long, value_name = "DIR")]
    pub(crate) bin: Option<PathBuf>,
    /// Longest wait, in seconds.
    #[arg(long, default_value_t = 60)]
    pub(crate) timeout: u64,
    /// Environment of the mesh's programs, as NAME=VALUE; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    /// A node proxy: isobar proxy-config ztunnel node-1 workloads
    Ztunnel {
        /// Node.
        node: String,
        /// Which part.
        #[arg(value_enum, default_value_t = ZtunnelPart::Workloads)]
        part: ZtunnelPart,
    },
    /// A waypoint: isobar proxy-config waypoint -n shop waypoint routes
    Waypoint {
        /// Namespace of its Gateway.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Name of its Gateway.
        name: String,
        /// Which part.
        #[arg(value_enum, default_value_t = WaypointPart::All)]
        part: WaypointPart,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ZtunnelPart {
    /// Workloads it knows.
    Workloads,
    /// Services it knows.
    Services,
    /// L4 policies.
    Policies,
    /// Certificates it holds.
    Certificates,
    /// Everything, as the proxy dumps it.
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaypointPart {
    /// Services and subsets it can send to.
    Clusters,
    /// Ports it answers on.
    Listeners,
    /// Routes, with the VirtualService each comes from.
    Routes,
    /// Endpoints of its services.
    Endpoints,
    /// L7 policies.
    Policies,
    /// Certificates it holds.
    Certificates,
    /// The four views of clusters, listeners, routes and endpoints.
    All,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WaypointCommand {
    /// Deploy a waypoint for a namespace or for one service account.
    Apply(Apply),
    /// Show waypoints and who uses them.
    #[command(visible_alias = "status")]
    List {
        /// Only this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// Unbind what uses a waypoint, then remove it.
    Delete {
        /// Namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Name.
        #[arg(default_value = "waypoint")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Name; by default `waypoint`, or the service account's name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Serve the workloads of this account only, and label it to use the waypoint.
    #[arg(long, value_name = "NAME")]
    pub(crate) service_account: Option<String>,
    /// Which traffic it takes; by default service, and all with --service-account.
    #[arg(long = "for", value_enum)]
    pub(crate) traffic: Option<Traffic>,
    /// Label the namespace to use the waypoint.
    #[arg(long, conflicts_with = "service_account")]
    pub(crate) enroll_namespace: bool,
    /// Wait until it serves.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Traffic a waypoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Traffic {
    /// Calls to service addresses.
    Service,
    /// Calls to pod addresses.
    Workload,
    /// Both.
    All,
    /// None.
    None,
}

impl Traffic {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Options;

    #[test]
    fn the_grammar_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn commands_of_the_documentation_parse() {
        for line in [
            "isobar lab up -f d --name n --nodes 3",
            "isobar lab exec -n hello httpbin -- sh -c true",
            "isobar lab forward -n bookinfo svc/productpage 9080",
            "isobar lab logs ztunnel-node-1 -f",
            "isobar status -o json",
            "isobar proxy-status",
            "isobar pc ztunnel node-1 services",
            "isobar proxy-config waypoint -n a b routes",
            "isobar waypoint apply -n a --service-account b --for all --wait",
            "isobar waypoint delete -n a",
            "isobar completion bash",
        ] {
            assert!(Options::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "isobar",
            "isobar lab exec httpbin",
            "isobar waypoint apply --for some",
        ] {
            assert!(Options::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
