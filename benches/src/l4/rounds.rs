use anyhow::Result;
use serde::Serialize;

use super::rig::{ClientLoad, Rig, Where};
use super::{Contender, Options};
use crate::client::{Kind, Measured};

/// Connections of the load at a fixed rate.
const PACED_CONNECTIONS: usize = 16;
/// Its requests a second: far below what any contender can do.
const PACED_RATE: u32 = 1_000;
/// Seconds each of its rounds takes: many short rounds, since tails come and go.
const PACED_SECONDS: u64 = 2;

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(super) load: &'static str,
    pub(super) unit: Unit,
    pub(super) contender: Contender,
    pub(super) round: u32,
    pub(super) measured: Measured,
    /// CPU seconds of the proxy on the client's node.
    pub(super) near_cpu: f64,
    /// CPU seconds of the proxy on the server's node; the same process on one node.
    pub(super) far_cpu: f64,
    pub(super) near_rss_kib: u64,
    pub(super) far_rss_kib: u64,
}

/// What a load counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Unit {
    Bytes,
    Requests,
    Connections,
}

struct Plan {
    name: &'static str,
    unit: Unit,
    kind: Kind,
    connections: usize,
    place: Where,
}

const fn plan(
    name: &'static str,
    unit: Unit,
    kind: Kind,
    connections: usize,
    place: Where,
) -> Plan {
    Plan {
        name,
        unit,
        kind,
        connections,
        place,
    }
}

const PLANS: [Plan; 7] = [
    plan("bulk, 1 stream", Unit::Bytes, Kind::Bulk, 1, Where::Across),
    plan(
        "bulk, 64 streams",
        Unit::Bytes,
        Kind::Bulk,
        64,
        Where::Across,
    ),
    plan(
        "HTTP, 64 keep-alive",
        Unit::Requests,
        Kind::Requests,
        64,
        Where::Across,
    ),
    plan(
        "new connections, 16 at once",
        Unit::Connections,
        Kind::Connections,
        16,
        Where::Across,
    ),
    plan(
        "same node: bulk, 1 stream",
        Unit::Bytes,
        Kind::Bulk,
        1,
        Where::SameNode,
    ),
    plan(
        "same node: HTTP, 64 keep-alive",
        Unit::Requests,
        Kind::Requests,
        64,
        Where::SameNode,
    ),
    plan(
        "same node: new connections",
        Unit::Connections,
        Kind::Connections,
        16,
        Where::SameNode,
    ),
];

/// Every load as fast as it goes.
pub(super) async fn loads(rigs: &[Rig], options: &Options, into: &mut Vec<Sample>) -> Result<()> {
    let _floor = rigs[0].start_floor().await?;
    for round in 1..=options.rounds {
        for plan in &PLANS {
            if options
                .load
                .as_ref()
                .is_some_and(|part| !plan.name.contains(&**part))
            {
                continue;
            }
            let load = ClientLoad {
                kind: plan.kind,
                connections: plan.connections,
                seconds: options.seconds,
                rate: 0,
            };
            // The floor has a TLS connection for each TCP connection: nothing to compare new
            // connections with, and no proxy at all on one node.
            let floor = plan.place == Where::Across && plan.kind != Kind::Connections;
            for (contender, rig) in order(rigs, round, plan.place, floor) {
                eprintln!("round {round}: {}, {}", plan.name, contender.name());
                into.push(one(rig, contender, plan, &load, round).await?);
            }
        }
    }
    Ok(())
}

/// Latency at a fixed rate.
pub(super) async fn paced(rigs: &[Rig], options: &Options, into: &mut Vec<Sample>) -> Result<()> {
    let plan = plan(
        "HTTP, 1,000 requests/s on 16",
        Unit::Requests,
        Kind::Paced,
        PACED_CONNECTIONS,
        Where::Across,
    );
    let load = ClientLoad {
        kind: plan.kind,
        connections: plan.connections,
        seconds: PACED_SECONDS,
        rate: PACED_RATE,
    };
    for round in 1..=options.pairs {
        eprintln!("pair {round} of {}: {}", options.pairs, plan.name);
        for (contender, rig) in order(rigs, round, plan.place, false) {
            into.push(one(rig, contender, &plan, &load, round).await?);
        }
    }
    Ok(())
}

/// Who is measured in a round, in turn from either end.
fn order(rigs: &[Rig], round: u32, place: Where, floor: bool) -> Vec<(Contender, &Rig)> {
    let mut all = vec![(Contender::NoMesh, &rigs[0])];
    if floor {
        all.push((Contender::Floor, &rigs[0]));
    }
    // Between nodes there is no short cut.
    let of = |rig: &&Rig| place == Where::SameNode || rig.contender != Contender::ShortCut;
    let rigs = rigs.iter().filter(of);
    all.extend(rigs.map(|rig| (rig.contender, rig)));
    if round.is_multiple_of(2) {
        all.reverse();
    }
    all
}

async fn one(
    rig: &Rig,
    contender: Contender,
    plan: &Plan,
    load: &ClientLoad,
    round: u32,
) -> Result<Sample> {
    let (measured, before, after) = rig.load(contender, plan.place, load).await?;
    Ok(Sample {
        load: plan.name,
        unit: plan.unit,
        contender,
        round,
        measured,
        near_cpu: after.near.cpu_seconds - before.near.cpu_seconds,
        far_cpu: after.far.cpu_seconds - before.far.cpu_seconds,
        near_rss_kib: after.near.rss_kib,
        far_rss_kib: after.far.rss_kib,
    })
}
