//! `make bench-l4`: the node proxy beside no mesh, beside a plain TLS relay and, round by round in
//! the same run, beside a peer that takes the same environment.

mod idle;
mod report;
mod rig;
mod rounds;
mod scale;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

pub(crate) use report::median;
use rig::Rig;

/// What to compare, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A ztunnel to compare with.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Folder `l4.md` and `l4.json` are written to.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Seconds each load runs.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Rounds of the loads that ask how much; the report shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Rounds of the load at a fixed rate.
    #[arg(long, default_value_t = 20)]
    pairs: u32,
    /// Only the parts named: `loads`, `paced`, `idle`, `scale`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only loads whose name contains this.
    #[arg(long)]
    load: Option<String>,
    /// Numbers of workloads for `scale`.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    workloads: Vec<u32>,
}

/// Whose cost is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// Two pods outside the mesh.
    NoMesh,
    /// Two processes that carry TCP in TLS and do nothing else.
    Floor,
    /// Our proxy.
    Ours,
    /// Our proxy, with its short cut between pods of a node.
    ShortCut,
    /// The other one.
    Peer,
}

impl Contender {
    const fn name(self) -> &'static str {
        match self {
            Self::NoMesh => "no mesh",
            Self::Floor => "TLS floor",
            Self::Ours => "isobar",
            Self::ShortCut => "isobar, short cut",
            Self::Peer => "peer",
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    machine: Machine,
    loads: Vec<rounds::Sample>,
    idle: Vec<idle::Sample>,
    scale: Vec<scale::Sample>,
}

/// Where and with what.
#[derive(Debug, Default, Serialize)]
struct Machine {
    kernel: String,
    cores: usize,
    peer: Option<String>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|p| p == part)
    }

    fn contenders(&self) -> Vec<(Contender, Option<&Path>)> {
        let peer = self.peer.as_deref();
        let mut all = vec![(Contender::Ours, None)];
        all.extend(peer.map(|path| (Contender::Peer, Some(path))));
        all
    }
}

/// Runs everything asked for, and writes the report.
pub(crate) async fn run(options: &Options) -> Result<()> {
    // Thousands of connections: children inherit the limit.
    isobar_net::raise_open_files()?;
    let mut results = Results {
        machine: machine(options),
        ..Results::default()
    };
    let out = options.out.clone().unwrap_or_else(|| "target/bench".into());
    if ["loads", "paced", "idle", "scale"]
        .iter()
        .any(|p| options.wants(p) && *p != "idle")
    {
        let mut rigs = Vec::new();
        for (contender, program) in options.contenders() {
            rigs.push(Rig::start(contender, program, &[]).await?);
        }
        if options.wants("loads") {
            let on = [("ISOBAR_SAME_NODE", "true")];
            rigs.push(Rig::start(Contender::ShortCut, None, &on).await?);
        }
        if options.wants("loads") {
            rounds::loads(&rigs, options, &mut results.loads).await?;
            report::write(&results, &out)?;
        }
        if options.wants("paced") {
            rounds::paced(&rigs, options, &mut results.loads).await?;
            report::write(&results, &out)?;
        }
        if options.wants("scale") {
            scale::all(&rigs, options, &mut results.scale).await?;
        }
        for rig in rigs {
            rig.down().await?;
        }
    }
    if options.wants("idle") {
        idle::all(options, &mut results.idle).await?;
    }
    report::write(&results, &out)?;
    println!("{}", report::markdown(&results));
    println!("Written to {}", out.display());
    Ok(())
}

fn machine(options: &Options) -> Machine {
    let version = |path: &PathBuf| {
        let output = std::process::Command::new(path).arg("version").output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    };
    Machine {
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map(|text| text.trim().to_owned())
            .unwrap_or_default(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        peer: options.peer.as_ref().and_then(|path| version(path).ok()),
    }
}
