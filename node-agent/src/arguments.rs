//! The agent's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use isobar_node_agent::backend::Choice;
use isobar_node_agent::cni::config::{Exempt, Settings};
use isobar_node_agent::cni::{PODS, RUN_DIR};
use isobar_node_agent::install::{Mode, Placement};

/// Keeps the pods of one node redirected, or not, as their labels say.
///
/// SIGTERM ends the agent and leaves rules and plugin in place: enrolled pods stay in the mesh, and
/// no pod starts on the node before an agent is back. With --cleanup, or once the DaemonSet named by
/// --daemon-set is gone, all of it is taken away.
#[derive(Debug, Parser)]
#[command(name = "isobar-cni", version)]
pub(crate) struct Arguments {
    /// Take namespaces and this node's pods from the Kubernetes API server that KUBECONFIG names, or
    /// else from that of the pod this runs in, and write annotations, conditions and events to it.
    #[arg(long, conflicts_with_all = ["objects", "overlay"])]
    pub(crate) kubernetes: bool,
    /// Folders of objects; may be given several times.
    #[arg(long, required_unless_present = "kubernetes", value_name = "DIR")]
    pub(crate) objects: Vec<PathBuf>,
    /// Root of what the mesh writes; annotations go into its folder `node-NODE`.
    #[arg(long, required_unless_present = "kubernetes", value_name = "DIR")]
    pub(crate) overlay: Option<PathBuf>,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node: String,
    /// Folder of sandbox records, one per pod. Default: `pods` in --run-dir.
    #[arg(long, required_unless_present = "run_dir", value_name = "DIR")]
    pods_dir: Option<PathBuf>,
    /// Folder that the CNI plugin shares with the agent: its questions come to a socket there.
    /// Without it no plugin is answered.
    #[arg(long, env = "CNI_AGENT_RUN_DIR", value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Socket for node proxies.
    #[arg(
        long,
        env = "ZTUNNEL_UDS_ADDRESS",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    pub(crate) zds_socket: PathBuf,
    /// Folder of its own for the last good version of every object; the agent falls back on it when
    /// it starts while a file is broken. Default: `isobar-cni` beside the socket.
    #[arg(long, env = "STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Address of /healthz/ready, /metrics and /pods.
    #[arg(long, default_value = "127.0.0.1:15030", value_name = "IP:PORT")]
    pub(crate) status_addr: SocketAddr,
    /// Tool that writes rules.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) backend: Choice,
    /// DNS capture of pods that do not say; `ambient.istio.io/dns-capture` on a pod overrides it.
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) dns_capture: bool,
    /// Namespaces whose pods never take part.
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        default_value = "kube-system",
        value_delimiter = ','
    )]
    pub(crate) exclude_namespaces: Vec<String>,
    /// Find pods that nobody wrote down by their processes. Default with --kubernetes.
    #[arg(long)]
    discover: bool,
    /// The host's /proc, where this process sees it.
    #[arg(long, default_value = "/proc", value_name = "DIR")]
    pub(crate) host_proc: PathBuf,
    /// Seconds between two verifications of a pod; changes that the kernel tells are seen at once.
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) verify_every: Duration,
    /// Seconds for callers to learn that a pod no longer takes HBONE; it still does so long.
    #[arg(long, default_value = "1.5", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) leave_grace: Duration,
    /// Seconds for open connections of a leaving pod; what is open then is cut.
    #[arg(long, default_value = "3600", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) drain_timeout: Duration,
    /// Seconds that a pod whose rules cannot be looked at stays advertised after they were last seen
    /// in force.
    #[arg(long, default_value = "10", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) blind_limit: Duration,
    /// On SIGTERM remove the CNI plugin, all rules and annotations; this cuts connections.
    #[arg(long)]
    pub(crate) cleanup: bool,
    /// Name of the DaemonSet that this runs for, in the namespace POD_NAMESPACE: when it is gone at
    /// SIGTERM the agent cleans up as with --cleanup; while it is there, another agent follows.
    #[arg(long, env = "DAEMON_SET_NAME", requires_all = ["kubernetes", "pod_namespace"], value_name = "NAME")]
    pub(crate) daemon_set: Option<String>,
    /// Namespace that the agent's own pod is in.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) pod_namespace: Option<String>,
    #[command(flatten)]
    plugin: PluginArguments,
    /// What to log: a level, or TARGET=LEVEL, separated by commas.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub(crate) log_level: String,
    /// `text` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: String,
}

/// Where the CNI plugin goes. Nothing is installed without --cni-conf-dir.
#[derive(Debug, Args)]
#[command(next_help_heading = "CNI plugin")]
struct PluginArguments {
    /// Folder of network configurations that the container runtime reads, as this process sees it;
    /// the plugin is put into one and kept there.
    #[arg(long, env = "MOUNTED_CNI_NET_DIR", requires_all = ["cni_bin_dir", "run_dir"], value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Folder of CNI plugins that the container runtime runs, as this process sees it.
    #[arg(long, env = "MOUNTED_CNI_BIN_DIR", value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// The plugin's program. Default: `isobar-cni-plugin` beside this one.
    #[arg(long, value_name = "FILE")]
    cni_plugin: Option<PathBuf>,
    /// File of the primary network; by default the first that is a network's configuration.
    #[arg(long, env = "CNI_CONF_NAME", value_name = "NAME")]
    cni_conf_name: Option<String>,
    /// Into which configuration the plugin's entry goes.
    #[arg(long, value_enum, default_value = "owned")]
    cni_conf_mode: Mode,
    /// Name of the own file with --cni-conf-mode=owned; it must be the first of the folder.
    #[arg(long, default_value = "00-isobar-cni.conflist", value_name = "NAME")]
    cni_owned_name: String,
    /// Where the host has --run-dir, if that is elsewhere than here.
    #[arg(long, value_name = "DIR")]
    host_run_dir: Option<PathBuf>,
    /// Pods that start without asking the agent, as NAMESPACE/NAME-PREFIX: the agent's own pod, if
    /// it does not use its node's network.
    #[arg(long, value_parser = exempt, value_delimiter = ',', value_name = "POD")]
    cni_exempt: Vec<Exempt>,
    /// Seconds that a pod waits for the agent before the container runtime is told to try again.
    #[arg(long, default_value = "20", value_parser = seconds, value_name = "SECONDS")]
    cni_wait: Duration,
}

impl Arguments {
    /// Folder of sandbox records.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        let beside = || self.run_dir.clone().unwrap_or_else(|| RUN_DIR.into());
        self.pods_dir.clone().unwrap_or_else(|| beside().join(PODS))
    }

    /// Whether pods are looked for by their processes.
    pub(crate) const fn discovers(&self) -> bool {
        self.kubernetes || self.discover
    }

    /// Where the plugin goes, if anywhere.
    pub(crate) fn placement(&self) -> Option<Placement> {
        let plugin = &self.plugin;
        let run_dir = plugin.host_run_dir.clone().or_else(|| self.run_dir.clone());
        Some(Placement {
            program: plugin.cni_plugin.clone().unwrap_or_else(|| {
                let own = std::env::current_exe().unwrap_or_default();
                own.with_file_name("isobar-cni-plugin")
            }),
            programs: plugin.cni_bin_dir.clone()?,
            configurations: plugin.cni_conf_dir.clone()?,
            primary: plugin.cni_conf_name.clone().filter(|name| !name.is_empty()),
            mode: plugin.cni_conf_mode,
            owned: plugin.cni_owned_name.clone(),
            settings: Settings {
                run_dir: run_dir?,
                exclude_namespaces: self.exclude_namespaces.iter().cloned().collect(),
                exempt: plugin.cni_exempt.clone(),
                wait_seconds: plugin.cni_wait.as_secs_f64(),
            },
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn exempt(text: &str) -> Result<Exempt, String> {
    match text.split_once('/') {
        Some((namespace, prefix)) if !namespace.is_empty() && !prefix.is_empty() => Ok(Exempt {
            namespace: namespace.to_owned(),
            name_prefix: prefix.to_owned(),
        }),
        _ => Err(format!("{text:?} is not NAMESPACE/NAME-PREFIX")),
    }
}
