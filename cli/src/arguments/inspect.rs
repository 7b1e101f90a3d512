//! Arguments of what looks at a mesh as a whole.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use isobar_objects::Code;

use super::seconds;

pub(super) const ANALYZE_HELP: &str = "\
Without PATHS it is about the objects of the running mesh, and about its proxies; with them about
files, as if everything they ask for ran. Every finding has a code, a place, a way out and a page.

Exit code: 0 without findings of the threshold, 1 with them, 2 when nothing could be looked at.

Examples:
  isobar analyze manifests/samples/hello
  isobar analyze -n shop
  isobar analyze --context prod --failure-threshold warning -o json
  isobar analyze -S ISO0108 -S 'ISO0401=Pod shop/batch-*' objects/
  isobar analyze --list                         every code and what it means";

pub(super) const BUG_REPORT_HELP: &str = "\
Writes one archive: versions, the objects that the mesh reads, what the control plane and every proxy
that can be reached say of themselves, logs, metrics and findings. What may be secret is left out:
values of Secrets and of environment variables, private keys, tokens, values of headers and fields that
hold such. Look into it all the same before you give it away. What could not be had is listed in it.

Examples:
  isobar bug-report
  isobar bug-report --context prod --tail 5000 --file report.tar.gz";

pub(super) const DASHBOARD_HELP: &str = "\
Listens on this machine's loopback and prints the address; Ctrl-C ends it. In a cluster that is done by
`kubectl port-forward`, so kubectl has to be there (KUBECTL names another).

Examples:
  isobar dashboard control-plane
  isobar dashboard ztunnel node-1 --port 15000
  isobar dashboard waypoint -n hello waypoint
  isobar dashboard grafana traffic > traffic.json     for Grafana's import page";

/// `isobar analyze`.
#[derive(Debug, Args)]
pub(crate) struct Analyze {
    /// Folders or files of YAML to look at instead of a mesh that runs.
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Only findings about objects of this namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Of several control planes in a cluster: the one whose settings count.
    #[arg(long, value_name = "NAME", conflicts_with = "paths")]
    pub(crate) revision: Option<String>,
    /// Findings of every namespace, which is so anyway.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Leave a code out, or with `=KIND NAMESPACE/NAME` for such objects only (`*` at the end stands
    /// for any rest); may be given several times.
    #[arg(short = 'S', long = "suppress", value_parser = suppressed, value_name = "CODE[=OBJECT]")]
    pub(crate) suppress: Vec<Suppressed>,
    /// Also print what objects keep back by the annotation galley.istio.io/analyze-suppress.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// From which gravity on the exit code is 1.
    #[arg(long, value_enum, default_value_t = Threshold::Error, value_name = "GRAVITY")]
    pub(crate) failure_threshold: Threshold,
    /// Print every code and what it means, and look at nothing.
    #[arg(short = 'L', long)]
    pub(crate) list: bool,
}

/// From which gravity on findings make the command fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Threshold {
    /// Errors.
    Error,
    /// Warnings too.
    Warning,
}

/// A code that is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suppressed {
    /// The code.
    pub(crate) code: Code,
    /// As an object is written; `None` for all.
    pub(crate) object: Option<String>,
}

fn suppressed(text: &str) -> Result<Suppressed, String> {
    let (code, object) = match text.split_once('=') {
        Some((code, object)) => (code, Some(object.trim().to_owned())),
        None => (text, None),
    };
    let unknown = || format!("there is no code {code}; `isobar analyze --list` prints all");
    Ok(Suppressed {
        code: Code::parse(code.trim()).ok_or_else(unknown)?,
        object,
    })
}

/// `isobar bug-report`.
#[derive(Debug, Args)]
pub(crate) struct BugReport {
    /// Where to write it; by default isobar-report-TIME.tar.gz in this folder.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Last lines of each log.
    #[arg(long, default_value_t = 2000, value_name = "LINES")]
    pub(crate) tail: u32,
    /// Seconds for one answer of one process.
    #[arg(long, default_value = "10", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}

/// `isobar dashboard`.
#[derive(Debug, Subcommand)]
pub(crate) enum Dashboard {
    /// The pages of the control plane.
    ControlPlane {
        /// Port to listen on; 0 picks a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// The admin pages of a node proxy.
    Ztunnel {
        /// Its node.
        node: String,
        /// Port to listen on; 0 picks a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// The admin pages of a waypoint.
    Waypoint {
        /// Gateway.
        #[arg(default_value = "waypoint")]
        name: String,
        /// Namespace of the waypoint.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Port to listen on; 0 picks a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Print a dashboard for Grafana as JSON.
    Grafana {
        /// Which.
        #[arg(value_enum)]
        which: Grafana,
    },
}

/// Dashboards for Grafana.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grafana {
    /// What goes through the mesh.
    Traffic,
    /// How the mesh itself does.
    Operation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_suppressed_whole_or_for_objects() {
        let whole = suppressed("iso0108").unwrap();
        assert_eq!(whole.code, Code::KIND_NOT_USED);
        assert_eq!(whole.object, None);
        let one = suppressed("ISO0401=Pod shop/a").unwrap();
        assert_eq!(one.object.as_deref(), Some("Pod shop/a"));
        assert!(suppressed("ISO9").unwrap_err().contains("--list"));
    }
}
