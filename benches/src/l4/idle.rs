use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::rig::{ClientLoad, Rig};
use super::{Contender, Options};
use crate::client::Kind;

/// Open streams at each step.
const STREAMS: [usize; 2] = [1_000, 10_000];
/// Open connections, with one stream each.
const CONNECTIONS: usize = 1_000;
/// For proxies to give back what they need only while connections are made.
const REST: Duration = Duration::from_secs(3);
/// Longer than any measurement.
const HELD: u64 = 600;

/// Memory with so much open and silent.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(super) contender: Contender,
    pub(super) what: &'static str,
    pub(super) open: usize,
    pub(super) near_rss_kib: u64,
    pub(super) far_rss_kib: u64,
    /// KiB for each that is open, above the memory of a proxy that has just started.
    pub(super) near_each_kib: f64,
    pub(super) far_each_kib: f64,
}

/// Streams on shared tunnels, then tunnels with one stream each.
pub(super) async fn all(options: &Options, into: &mut Vec<Sample>) -> Result<()> {
    for (contender, program) in options.contenders() {
        let rig = Rig::start(contender, program, &[]).await?;
        measure(&rig, "streams", &STREAMS, into).await?;
        rig.down().await?;
        let one = [("POOL_MAX_STREAMS_PER_CONNECTION", "1")];
        let rig = Rig::start(contender, program, &one).await?;
        measure(&rig, "connections", &[CONNECTIONS], into).await?;
        rig.down().await?;
    }
    Ok(())
}

async fn measure(
    rig: &Rig,
    what: &'static str,
    steps: &[usize],
    into: &mut Vec<Sample>,
) -> Result<()> {
    tokio::time::sleep(REST).await;
    let base = rig.used(rig.contender);
    into.push(Sample {
        contender: rig.contender,
        what: "nothing",
        open: 0,
        near_rss_kib: base.near.rss_kib,
        far_rss_kib: base.far.rss_kib,
        near_each_kib: 0.0,
        far_each_kib: 0.0,
    });
    let (mut held, mut open) = (Vec::new(), 0);
    for step in steps {
        eprintln!("{}: {step} idle {what}", rig.contender.name());
        let load = ClientLoad {
            kind: Kind::Idle,
            connections: step - open,
            seconds: HELD,
            rate: 0,
        };
        let argv = load.argv(rig.far().await?)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        held.push(rig.start_process("bench-mesh/client", &argv, &[]).await?);
        open = *step;
        tokio::time::sleep(REST).await;
        let used = rig.used(rig.contender);
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / open as f64;
        into.push(Sample {
            contender: rig.contender,
            what,
            open,
            near_rss_kib: used.near.rss_kib,
            far_rss_kib: used.far.rss_kib,
            near_each_kib: each(used.near.rss_kib, base.near.rss_kib),
            far_each_kib: each(used.far.rss_kib, base.far.rss_kib),
        });
    }
    Ok(())
}
