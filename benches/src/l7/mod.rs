//! `make bench-l7`: the waypoint beside a real Envoy with the same routes, as a plain hop and between tunnels, round
//! by round in the same run. Everything is on loopback; each proxy has one worker and a processor of its own.

mod answers;
pub(crate) mod caller;
mod feed;
mod frames;
mod hbone;
mod memory;
mod push;
mod report;
mod rig;
mod rounds;
mod routes;
mod scene;
pub(crate) mod server;

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use hbone::Mesh;
use rig::{Application, Rig};
use scene::Scene;

use crate::cores;

const GRPC: &str = "application/grpc";

/// What to compare, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Folder `l7.md` and `l7.json` are written to.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Seconds each load runs.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds of the loads that ask how much; the report shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Rounds of the loads at a fixed rate.
    #[arg(long, default_value_t = 20)]
    pairs: u32,
    /// Requests a second of the loads at a fixed rate.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Changes of routes under load.
    #[arg(long, default_value_t = 100)]
    pushes: u32,
    /// Only the parts named: `loads`, `hbone`, `policies`, `paced`, `routes`, `push`, `memory`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only loads whose name contains this.
    #[arg(long)]
    load: Option<String>,
    /// Numbers of routes for `routes`.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000])]
    routes: Vec<u32>,
    /// Services nobody calls for `memory`.
    #[arg(long, default_value_t = 1_000)]
    services: u32,
}

/// Whose cost is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// The application alone: what the load generator and it cost.
    NoProxy,
    /// Our waypoint.
    Ours,
    /// Envoy.
    Envoy,
}

/// Those that are compared.
const PROXIES: [Contender; 2] = [Contender::Ours, Contender::Envoy];

impl Contender {
    const fn name(self) -> &'static str {
        match self {
            Self::NoProxy => "no proxy",
            Self::Ours => "isobar",
            Self::Envoy => "Envoy",
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    kernel: String,
    cores: usize,
    loads: Vec<rounds::Sample>,
    pushes: Vec<push::Sample>,
    memory: Vec<memory::Sample>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|p| p == part)
    }
}

/// Runs everything asked for, in a `LocalSet`, and writes the report after each part.
pub(crate) async fn run(options: &Options) -> Result<()> {
    isobar_net::raise_open_files()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut results = Results {
        kernel: kernel.trim().to_owned(),
        cores: cores::count(),
        ..Results::default()
    };
    let out = options.out.clone().unwrap_or_else(|| "target/bench".into());
    let application = Application::start(None).await?;
    if options.wants("loads") || options.wants("paced") {
        let rigs = rigs(&Scene::plain(), &application).await?;
        if options.wants("loads") {
            let plain = rounds::plain();
            rounds::loads(&rigs, &application, &plain, options, &mut results.loads).await?;
            report::write(&results, &out)?;
        }
        if options.wants("paced") {
            rounds::paced(&rigs, &application, options, &mut results.loads).await?;
            report::write(&results, &out)?;
        }
    }
    if options.wants("hbone") {
        let application = Application::start(Some(Mesh::new()?)).await?;
        let rigs = rigs(&Scene::hbone(), &application).await?;
        let plans = rounds::hbone();
        rounds::loads(&rigs, &application, &plans, options, &mut results.loads).await?;
        report::write(&results, &out)?;
    }
    if options.wants("policies") {
        let rigs = rigs(&Scene::policies(), &application).await?;
        let plans = rounds::policies();
        rounds::loads(&rigs, &application, &plans, options, &mut results.loads).await?;
        report::write(&results, &out)?;
    }
    if options.wants("routes") {
        routes::all(&application, options, &mut results.loads).await?;
        report::write(&results, &out)?;
    }
    if options.wants("push") {
        push::all(&application, options, &mut results.pushes).await?;
        report::write(&results, &out)?;
    }
    if options.wants("memory") {
        memory::all(&application, options, &mut results.memory).await?;
    }
    report::write(&results, &out)?;
    println!("{}", report::markdown(&results));
    println!("Written to {}", out.display());
    Ok(())
}

/// Each contender with one scene, the proxies alone where the scene is more than a hop.
async fn rigs(scene: &Scene, application: &Application) -> Result<Vec<Rig>> {
    let mut rigs = Vec::new();
    if scene.is_hop() {
        rigs.push(Rig::start(Contender::NoProxy, scene, application).await?);
    }
    for contender in PROXIES {
        rigs.push(Rig::start(contender, scene, application).await?);
    }
    Ok(rigs)
}
