//! Arguments of what is done to a Kubernetes cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::seconds;

pub(super) const INSTALL_HELP: &str = "\
The cluster is the one of --kubeconfig and --context, else that of KUBECONFIG or ~/.kube/config; the
mesh's own parts go into the namespace --mesh-namespace, which is made if it is missing.

The charts are in this program: definitions of kinds (crds), the control plane, and the parts of every
node. Values are those of the charts, under the chart's name or under `global`. What somebody else
made is never changed: an object of that name ends the command before anything is written, and
definitions that the cluster already has stay as they are.

Examples:
  isobar install --dry-run
  isobar install --set global.hub=registry.example/isobar --set control-plane.replicaCount=2
  isobar install -f values.yaml --timeout 120
  isobar install --revision canary --set global.tag=0.2.0     a second control plane beside the first

With --revision only a control plane of that name is installed, beside the one without: its objects have
the name behind theirs, Gateways and objects whose label istio.io/rev has it are its own, and definitions
and the parts of nodes stay those of the first.";

pub(super) const UPGRADE_HELP: &str = "\
Values given before stay, and those given now come on top. What the new version no longer has is
removed. Pods go one by one: a node proxy hands over to its successor while both run.

Examples:
  isobar upgrade --dry-run
  isobar upgrade
  isobar upgrade --set global.logLevel=debug
  isobar upgrade --revision canary --set control-plane.replicaCount=2";

pub(super) const UNINSTALL_HELP: &str = "\
Removes the objects that `isobar install` made, the roots that the control plane put into namespaces
and its lease. Definitions of kinds stay, and with them every object of a user; so does the authority's
secret, so that certificates of a later installation have the same root.

Namespaces that are still in the mesh, and waypoints, end the command before anything is removed:
without a node proxy their traffic would stop.

Examples:
  isobar uninstall --dry-run
  isobar uninstall
  isobar uninstall --purge      also the definitions of which there is no object, and the secret
  isobar uninstall --revision canary      only that control plane";

/// Values of the charts.
#[derive(Debug, Args)]
pub(crate) struct Chosen {
    /// File of values; may be given several times, the last one counts.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// A value, as in Helm; may be given several times, and counts over files.
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,
}

/// How objects are written.
#[derive(Debug, Args)]
pub(crate) struct Writing {
    /// Only print what would change, as a diff.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Take fields back that others changed since.
    #[arg(long)]
    pub(crate) force_conflicts: bool,
    /// Although node proxies and agents go: what they carry is plain then.
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not wait until everything is ready.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Seconds until everything must be ready.
    #[arg(long, default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}

/// Which of several control planes.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of a control plane beside the first one; without, the first one and everything else.
    #[arg(long, value_name = "NAME", value_parser = revision)]
    pub(crate) revision: Option<String>,
}

/// A part of names of objects: small letters, digits and hyphens, and not the name of the first one.
fn revision(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name = !text.is_empty() && text.len() <= 40 && text.chars().all(is_plain);
    if !is_name || text.starts_with('-') || text.ends_with('-') {
        return Err("small letters, digits and hyphens between them".to_owned());
    }
    if text == "default" {
        return Err("that is the first one, which needs no name".to_owned());
    }
    Ok(text.to_owned())
}

/// `isobar install`.
#[derive(Debug, Args)]
pub(crate) struct Install {
    #[command(flatten)]
    pub(crate) named: Named,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) writing: Writing,
}

/// `isobar upgrade`.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub(crate) named: Named,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Forget the values given before.
    #[arg(long)]
    pub(crate) reset_values: bool,
    /// Go back to an older version.
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
    #[command(flatten)]
    pub(crate) writing: Writing,
}

/// `isobar uninstall`.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Only print what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also the definitions of kinds of which there is no object, and the authority's secret.
    #[arg(long, conflicts_with = "revision")]
    pub(crate) purge: bool,
    /// Although namespaces are in the mesh, or there are waypoints: their traffic stops.
    #[arg(long)]
    pub(crate) force: bool,
    /// Seconds until everything must be gone.
    #[arg(long, default_value = "120", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}

/// What would be installed.
#[derive(Debug, Subcommand)]
pub(crate) enum Manifest {
    /// Render the charts as YAML, as `helm template` does. Needs no cluster.
    #[command(after_help = "\
Examples:
  isobar manifest generate > mesh.yaml
  isobar manifest generate --chart node --set global.tag=0.1.0
  isobar manifest generate -f values.yaml | kubectl apply --server-side -f -")]
    Generate(Generate),
}

/// `isobar manifest generate`.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Only this chart: `crds`, `control-plane` or `node`; may be given several times.
    #[arg(long, value_name = "CHART")]
    pub(crate) chart: Vec<String>,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
}
