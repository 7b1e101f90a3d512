//! The command line.

mod inspect;
mod install;
mod lab;
mod proxies;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use isobar_types::DEFAULT_ROOT_NAMESPACE;

pub(crate) use self::inspect::{Analyze, BugReport, Dashboard, Grafana, Suppressed, Threshold};
pub(crate) use self::install::{Chosen, Install, Manifest, Named, Uninstall, Upgrade, Writing};
pub(crate) use self::lab::{Lab, Up};
pub(crate) use self::proxies::{ProxyConfig, WaypointSection, ZtunnelConfig, ZtunnelSection};
use crate::output::Format;

/// Isobar: an ambient service mesh, in a lab on this machine or in a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(
    name = "isobar",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  isobar lab up -f manifests/samples/hello      start a mesh of two nodes over a folder of YAML
  isobar lab exec -n hello httpbin -- curl -s http://svc-hello:8080
  isobar status                                 is every proxy in step with the control plane?
  isobar waypoint apply -n hello --enroll-namespace --wait
  isobar ztunnel-config workloads --node node-1 what a node proxy knows
  isobar lab down                               remove everything
  isobar waypoint list --context prod           the mesh of a Kubernetes cluster
  isobar install --dry-run                      what would change in a Kubernetes cluster

Environment:
  KUBECONFIG        the cluster of `install`, `upgrade` and `uninstall`, unless flags name another
  ISOBAR_LAB        which lab, as --lab
  ISOBAR_LAB_ROOT   folder of the state of all labs; without it /run/isobar/lab as root, else
                    isobar/lab in $XDG_RUNTIME_DIR or /tmp/isobar-UID/lab"
)]
pub(crate) struct Isobar {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Which lab; not needed while only one runs.
    #[arg(long, global = true, env = "ISOBAR_LAB", value_name = "LAB")]
    pub(crate) lab: Option<String>,
    /// A mesh in a Kubernetes cluster instead of a lab: the kubeconfig file to find it with.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The same: a context of --kubeconfig, else of what KUBECONFIG names, else of ~/.kube/config.
    #[arg(long, global = true, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,
    /// Namespace of the control plane in a cluster.
    #[arg(long, global = true, default_value = DEFAULT_ROOT_NAMESPACE, value_name = "NAMESPACE")]
    pub(crate) mesh_namespace: String,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Called as a plugin of kubectl: about its cluster, not about a lab.
    #[arg(skip)]
    pub(crate) is_plugin: bool,
}

impl Global {
    /// True if the mesh of a cluster is meant, not that of a lab.
    pub(crate) const fn means_cluster(&self) -> bool {
        self.names_cluster() || self.is_plugin
    }

    /// True if flags say which cluster.
    pub(crate) const fn names_cluster(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }
}

impl Command {
    /// What the command is called, if it is about labs only.
    pub(crate) const fn needs_lab(&self) -> Option<&'static str> {
        match self {
            Self::Lab(_) => Some("lab"),
            _ => None,
        }
    }

    /// What the command is called, if what it prints has no other form than text.
    pub(crate) const fn prints_only_text(&self) -> Option<&'static str> {
        match self {
            Self::Completion { .. } => Some("completion"),
            Self::Dashboard(_) => Some("dashboard"),
            Self::Manifest(Manifest::Generate(_)) => Some("manifest generate"),
            Self::Lab(Lab::Exec { .. }) => Some("lab exec"),
            Self::Lab(Lab::Logs { .. }) => Some("lab logs"),
            Self::Lab(Lab::Forward { .. }) => Some("lab forward"),
            _ => None,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole mesh on this machine.
    #[command(subcommand)]
    Lab(Lab),
    /// Install the mesh into a Kubernetes cluster. Doing it again changes nothing.
    #[command(after_help = install::INSTALL_HELP)]
    Install(Install),
    /// Bring an installed mesh to the version of this program, or change its values.
    #[command(after_help = install::UPGRADE_HELP)]
    Upgrade(Upgrade),
    /// Remove what was installed, and nothing else.
    #[command(after_help = install::UNINSTALL_HELP)]
    Uninstall(Uninstall),
    /// Print what would be installed.
    #[command(subcommand)]
    Manifest(Manifest),
    /// Show how far every proxy is in step with the control plane.
    #[command(
        visible_alias = "proxy-status",
        after_help = "\
Each resource type is SYNCED (with the age of the last acknowledgement), NOT SENT (there is nothing
of that type for this proxy), STALE (sent, not acknowledged yet) or ERROR (refused: the reason is
printed below). Findings about the objects themselves are printed with -v, and whenever there is an
error."
    )]
    Status {
        /// Also print findings about objects.
        #[arg(short, long)]
        verbose: bool,
    },
    /// Show what one proxy knows.
    #[command(subcommand, visible_alias = "pc")]
    ProxyConfig(ProxyConfig),
    /// Show what node proxies know: all of them, or one.
    #[command(visible_alias = "zc", after_help = proxies::ZTUNNEL_HELP)]
    ZtunnelConfig(ZtunnelConfig),
    /// Deploy, list and delete waypoints.
    #[command(subcommand)]
    Waypoint(Waypoint),
    /// Find what NetworkPolicies shut and the mesh needs open, and fix it.
    #[command(subcommand)]
    Netpol(Netpol),
    /// Say what would happen to a call: who sees it, what decides, and why.
    #[command(after_help = "\
DST is HOST[:PORT], a URL, IP:PORT or pod/NAMESPACE/NAME:PORT; short host names are looked up from
the caller's namespace. Nothing is sent: the answer is worked out from the objects with the proxies'
own rules. It is about the running lab, or with -f about files as if all they ask for ran.

Examples:
  isobar explain -n hello httpbin svc-hello:8080
  isobar explain hello/httpbin http://svc-hello:8080/headers
  isobar explain shop/cart reviews:80 POST /reviews -H 'end-user: jason' -o json
  isobar explain -f manifests/samples/hello hello/httpbin svc-hello:8080 GET /")]
    Explain(Explain),
    /// Say everything that is wrong or doubtful: objects, enrolment, NetworkPolicies, proxies.
    #[command(after_help = inspect::ANALYZE_HELP)]
    Analyze(Analyze),
    /// Collect what a bug report needs into one archive, without secrets.
    #[command(after_help = inspect::BUG_REPORT_HELP)]
    BugReport(BugReport),
    /// Open the pages of the control plane or of a proxy, or print a dashboard for Grafana.
    #[command(subcommand, after_help = inspect::DASHBOARD_HELP)]
    Dashboard(Dashboard),
    /// Check a folder of YAML without a lab. Exit code 1 if there is an error.
    #[command(after_help = "\
Example:
  isobar validate manifests/samples/hello")]
    Validate {
        /// Folders or files.
        #[arg(required = true, value_name = "DIR")]
        paths: Vec<PathBuf>,
    },
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    #[command(after_help = "\
Examples:
  source <(isobar completion bash)
  isobar completion zsh > \"${fpath[1]}/_isobar\"
  isobar completion fish > ~/.config/fish/completions/isobar.fish")]
    Completion {
        /// Shell.
        shell: clap_complete::Shell,
    },
}

/// NetworkPolicies.
#[derive(Debug, Subcommand)]
pub(crate) enum Netpol {
    /// List what policies shut: which policy, which field, which port, for which pods. Exit code 1 if
    /// there is anything, or a file has errors.
    #[command(after_help = "\
Callers in the mesh reach a pod on port 15008 only, whatever port of the application they ask for. A
policy that opens the application's port alone cuts them; node proxies hold them to the application's
ports once 15008 is open.

Examples:
  isobar netpol check
  isobar netpol check -f manifests/samples/my-app")]
    Check {
        /// Folder or file of YAML to look at instead of a lab; may be given several times.
        #[arg(short = 'f', long = "file", value_name = "DIR")]
        files: Vec<PathBuf>,
    },
    /// Show the smallest change that opens it, as a diff; --apply makes it.
    #[command(after_help = "\
The ports that a policy opens stay as they are; 15008 is added beside them. Node proxies hold callers to
a policy's ingress rules inside tunnels, where the namespace has them do so; nobody holds them to egress
rules there. A change that opens more than its policy says is marked, and made with --accept-wider only.

Examples:
  isobar netpol fix
  isobar netpol fix default/my-app --apply
  isobar netpol fix -f manifests/samples/my-app")]
    Fix {
        /// Only this policy, `NAMESPACE/NAME`.
        policy: Option<String>,
        /// Make the change.
        #[arg(long, conflicts_with = "files")]
        apply: bool,
        /// With --apply: make changes too that open more than their policy says.
        #[arg(long, requires = "apply")]
        accept_wider: bool,
        /// Folder or file of YAML to look at instead of a lab; may be given several times.
        #[arg(short = 'f', long = "file", value_name = "DIR")]
        files: Vec<PathBuf>,
    },
}

/// What is asked.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Who calls: a pod or Deployment, `NAMESPACE/NAME`.
    #[arg(value_name = "SRC")]
    pub(crate) source: String,
    /// Whom.
    #[arg(value_name = "DST")]
    pub(crate) destination: String,
    /// Method of the request.
    #[arg(value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// Path of the request, with its query.
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// A header of the request, `NAME: VALUE`; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub(crate) headers: Vec<String>,
    /// Namespace of names that have none.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Folder or file of YAML to ask about instead of a lab; may be given several times.
    #[arg(short = 'f', long = "file", value_name = "DIR")]
    pub(crate) files: Vec<PathBuf>,
    /// Of several control planes in a cluster: the one that is asked about.
    #[arg(long, value_name = "NAME", conflicts_with = "files")]
    pub(crate) revision: Option<String>,
}

const DELETE_HELP: &str = "\
Nothing is refused on the way, and nothing let through that a policy at the waypoint refuses: while it
enforces one (an AuthorizationPolicy or a RateLimitPolicy whose targetRefs name it, its class, or a
Service it serves) the waypoint stays, the policies are named, and the exit code is 1. Then choose:

  --unbind   traffic goes on without these policies
  --force    the waypoint goes and what was bound to it stays bound, as with kubectl delete gateway:
             its traffic is refused until a waypoint of this name is there again, or --unbind

Examples:
  isobar waypoint delete -n hello
  isobar waypoint delete -n bookinfo bookinfo-reviews-waypoint --unbind";

#[derive(Debug, Subcommand)]
pub(crate) enum Waypoint {
    /// Deploy a waypoint, and bind a namespace or a service account to it.
    #[command(after_help = "\
Traffic goes on while this runs: the waypoint is deployed first, and bound only when it is ready and
holds its routes and policies. If that does not happen in time nothing is bound, and the exit code is
1. With --wait the command returns when every proxy has confirmed the binding: from then on the routes
are in force. Without it, proxies follow within moments of its return.

A binding that covers pod addresses (--service-account, --for all) closes the direct way at the same
moment: a connection that goes past the waypoint just then is cut, since it would evade its policies.

What flags do not say stays as it is when a waypoint is applied again. With --overwrite what was bound
to another waypoint changes over: both ways are open until every proxy knows, and connections through
the other one are asked to end meanwhile; one that stays idle ends with status 503 at its next request.

Examples:
  isobar waypoint apply -n hello --enroll-namespace --wait
  isobar waypoint apply -n bookinfo --service-account bookinfo-reviews --for all --wait")]
    Apply(Apply),
    /// Print the objects that `apply` with the same flags would write, and write nothing.
    #[command(after_help = "\
No mesh is asked: what objects say that are there already is not in it.

Examples:
  isobar waypoint generate -n hello
  isobar waypoint generate -n bookinfo --service-account bookinfo-reviews --for all | kubectl apply -f -")]
    Generate(Apply),
    /// List waypoints.
    #[command(visible_alias = "ls")]
    List {
        /// Only this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Those of every namespace, which is so anyway.
        #[arg(short = 'A', long, conflicts_with = "namespace")]
        all_namespaces: bool,
    },
    /// Show the conditions of waypoints.
    Status {
        /// Only this waypoint.
        name: Option<String>,
        /// Only this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Those of every namespace, which is so anyway.
        #[arg(short = 'A', long, conflicts_with = "namespace")]
        all_namespaces: bool,
    },
    /// Unbind what `apply` bound, wait until proxies know, then delete the waypoint.
    #[command(after_help = DELETE_HELP)]
    Delete {
        /// Waypoints.
        #[arg(default_value = "waypoint")]
        names: Vec<String>,
        /// Every waypoint of the namespace.
        #[arg(long)]
        all: bool,
        /// Delete although traffic is refused then: what YAML files bind to it, and what its policies
        /// guard, stays bound.
        #[arg(long, conflicts_with = "unbind")]
        force: bool,
        /// Unbind although the waypoint enforces policies: traffic goes on without them.
        #[arg(long)]
        unbind: bool,
        /// Namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Name; by default `waypoint`, or the service account's with `-waypoint` behind it.
    #[arg(long, value_parser = waypoint_name)]
    pub(crate) name: Option<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Bind every workload that runs as this account.
    #[arg(long, value_name = "NAME", value_parser = account_name)]
    pub(crate) service_account: Option<String>,
    /// Which traffic a new one takes; by default `service`, and `all` with --service-account.
    #[arg(long = "for", value_enum, value_name = "TRAFFIC")]
    pub(crate) traffic: Option<Traffic>,
    /// Bind the whole namespace.
    #[arg(long, conflicts_with = "service_account")]
    pub(crate) enroll_namespace: bool,
    /// Bind although the namespace or account is bound to another waypoint, and change a waypoint
    /// although traffic that it takes now would be refused.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Wait until the routes are in force at every proxy.
    #[arg(short, long)]
    pub(crate) wait: bool,
    /// Seconds to wait, before binding and with --wait after it.
    #[arg(long = "waypoint-timeout", default_value = "90", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Traffic {
    /// To service addresses.
    Service,
    /// To pod addresses.
    Workload,
    /// Both.
    All,
    /// Neither.
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

/// Longest name of a Service, which a waypoint has, in bytes.
const LABEL: usize = 63;
/// Longest name of any object, in bytes.
const SUBDOMAIN: usize = 253;

/// Checks a name by the rules of Kubernetes for Services: the waypoint gets one of its name.
pub(crate) fn waypoint_name(text: &str) -> Result<String, String> {
    if text == "none" {
        return Err("a waypoint cannot be called none: that value of the label opts out".into());
    }
    if text.len() > LABEL || !is_label(text) {
        return Err(format!(
            "a waypoint's name has at most {LABEL} lower-case letters, digits and inner hyphens"
        ));
    }
    Ok(text.to_owned())
}

fn account_name(text: &str) -> Result<String, String> {
    if text.len() > SUBDOMAIN || !text.split('.').all(is_label) {
        return Err(format!(
            "an account's name has at most {SUBDOMAIN} lower-case letters, digits, inner hyphens \
             and dots"
        ));
    }
    Ok(text.to_owned())
}

fn is_label(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(fits)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let text = text.trim_end_matches('s');
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("{text:?} is no port; write LOCAL:REMOTE, as in 8080:80"))
    };
    let (local, remote) = match text.split_once(':') {
        Some((local, remote)) => (port(local)?, port(remote)?),
        None => (port(text)?, port(text)?),
    };
    if remote == 0 {
        return Err("nothing listens on port 0 there; only the local port may be 0".to_owned());
    }
    Ok((local, remote))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Isobar, clap::Error> {
        Isobar::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Isobar::command().debug_assert();
    }

    #[test]
    fn ports_are_pairs_or_one_number() {
        assert_eq!(ports("8080:80"), Ok((8080, 80)));
        assert_eq!(ports("9080"), Ok((9080, 9080)));
        assert_eq!(ports("0:80"), Ok((0, 80)));
        for bad in ["a:80", "80:0", "0", "80:", "70000"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_comes_behind_two_hyphens_is_the_command() {
        let parsed = parse("isobar lab exec -n hello httpbin -- curl -s -o /dev/null").unwrap();
        let Command::Lab(Lab::Exec { pod, command, .. }) = parsed.command else {
            panic!("another command");
        };
        assert_eq!(pod, "httpbin");
        assert_eq!(command, ["curl", "-s", "-o", "/dev/null"]);
        assert!(parse("isobar lab exec httpbin").is_err());
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        let long = "x".repeat(64);
        for bad in [
            "", "none", "Bad_Name", "UP", "second.", "a.b", "-a", "a-", &long,
        ] {
            assert!(waypoint_name(bad).is_err(), "{bad}");
        }
        for good in ["a", "waypoint-2", &long[1..]] {
            assert_eq!(waypoint_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "A", "a..b", "a.", "a_b", &"x".repeat(254)] {
            assert!(account_name(bad).is_err(), "{bad}");
        }
        for good in ["none", "a.b", &long] {
            assert!(account_name(good).is_ok(), "{good}");
        }
        assert!(parse("isobar waypoint apply --name Bad_Name").is_err());
        assert!(parse("isobar waypoint apply --service-account Bad_Name").is_err());
    }

    #[test]
    fn aliases_and_mistakes() {
        assert!(parse("isobar proxy-status -v -o json").is_ok());
        assert!(parse("isobar pc ztunnel node-1 workload").is_ok());
        let error = parse("isobar waypiont list").unwrap_err().to_string();
        assert!(error.contains("waypoint"), "{error}");
        assert!(parse("isobar waypoint apply --name none").is_err());
        assert!(parse("isobar waypoint delete -n a").is_ok());
        assert!(parse("isobar lab down --all").is_ok());
        assert!(parse("isobar lab up -f d --env RUST_LOG=debug --bin b").is_ok());
        assert!(parse("isobar lab up -f d --env RUST_LOG").is_err());
        assert!(parse("isobar waypoint delete --all").is_ok());
        assert!(parse("isobar waypoint delete --force --unbind").is_err());
        assert!(parse("isobar pc ztunnel -n hello httpbin").is_ok());
        assert!(parse("isobar zc w --node node-1").is_ok());
        assert!(parse("isobar ztunnel-config policy httpbin -n hello -o json").is_ok());
        assert!(parse("isobar zc w httpbin --node node-1").is_err());
        assert!(parse("isobar waypoint generate -n a --enroll-namespace").is_ok());
    }
}
