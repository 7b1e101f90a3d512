use anyhow::Result;
use serde::Serialize;

use super::caller::{Load, Measured, Protocol};
use super::rig::{Application, Rig, measured};
use super::{Contender, Options};

const CONNECTIONS: usize = 16;
const STREAMS: usize = 4;
/// Seconds each round at a fixed rate takes: many short rounds, since tails come and go.
const PACED_SECONDS: f64 = 2.0;
const SMALL: usize = 1024;
const LARGE: usize = 64 * 1024;

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(super) load: String,
    pub(super) contender: Contender,
    pub(super) round: u32,
    pub(super) measured: Measured,
    /// CPU seconds of the proxy.
    pub(super) proxy_cpu: f64,
    /// CPU seconds of proxy, application and load generator.
    pub(super) all_cpu: f64,
    /// Memory of the proxy after the load.
    pub(super) rss_kib: u64,
}

/// A load as it is asked for.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    service: &'static str,
    protocol: Protocol,
    connections: usize,
    streams: usize,
    body: usize,
    seconds: Option<f64>,
    rate: u32,
}

impl Plan {
    fn http1(name: &str, connections: usize, body: usize) -> Self {
        Self {
            name: name.to_owned(),
            service: "web",
            protocol: Protocol::Http1,
            connections,
            streams: 1,
            body,
            seconds: None,
            rate: 0,
        }
    }

    /// The load of all figures that are about something else.
    pub(super) fn usual(name: &str) -> Self {
        Self::http1(name, 64, SMALL)
    }

    fn shared(name: &str, service: &'static str, protocol: Protocol, body: usize) -> Self {
        Self {
            service,
            protocol,
            connections: CONNECTIONS,
            streams: STREAMS,
            ..Self::http1(name, 0, body)
        }
    }

    /// At a fixed rate.
    pub(super) fn paced(self, rate: u32, seconds: f64) -> Self {
        Self {
            seconds: Some(seconds),
            rate,
            ..self
        }
    }

    /// The load on one proxy.
    pub(super) fn load(&self, rig: &Rig, options: &Options) -> Result<Load> {
        let called = rig.scene.service(self.service);
        Ok(Load {
            protocol: self.protocol,
            door: rig.door(self.service)?,
            path: called.map_or_else(|| "/".to_owned(), |c| c.path(self.body)),
            connections: self.connections,
            streams: self.streams,
            seconds: self.seconds.unwrap_or(options.seconds),
            rate: self.rate,
        })
    }
}

/// A plain hop.
pub(super) fn plain() -> Vec<Plan> {
    vec![
        Plan::http1("HTTP/1.1, 1 connection, 1 KB", 1, SMALL),
        Plan::http1("HTTP/1.1, 64 connections, 1 KB", 64, SMALL),
        Plan::http1("HTTP/1.1, 64 connections, 64 KB", 64, LARGE),
        Plan::shared(
            "HTTP/2, 16 connections of 4 streams, 1 KB",
            "two",
            Protocol::Http2,
            SMALL,
        ),
        Plan::shared(
            "HTTP/2, 16 connections of 4 streams, 64 KB",
            "two",
            Protocol::Http2,
            LARGE,
        ),
        Plan::shared(
            "gRPC unary, 16 connections of 4 streams",
            "unary",
            Protocol::Grpc,
            SMALL,
        ),
    ]
}

/// Through tunnels on both sides of the proxy.
pub(super) fn hbone() -> Vec<Plan> {
    let wanted = |plan: &Plan| {
        let many = plan.connections > 1;
        many && (plan.body == SMALL || plan.protocol == Protocol::Http1)
    };
    let plans = plain().into_iter().filter(wanted).map(|plan| Plan {
        name: format!("Through HBONE: {}", plan.name),
        ..plan
    });
    plans.collect()
}

/// With ten policies.
pub(super) fn policies() -> Vec<Plan> {
    vec![
        Plan::usual("Ten policies: HTTP/1.1, 64 connections, 1 KB"),
        Plan::shared(
            "Ten policies: HTTP/2, 16 x 4, 1 KB",
            "two",
            Protocol::Http2,
            SMALL,
        ),
        Plan::shared(
            "Ten policies: gRPC unary, 16 x 4",
            "unary",
            Protocol::Grpc,
            SMALL,
        ),
    ]
}

/// Every load as fast as it goes.
pub(super) async fn loads(
    rigs: &[Rig],
    application: &Application,
    plans: &[Plan],
    options: &Options,
    into: &mut Vec<Sample>,
) -> Result<()> {
    let part = options.load.as_deref().unwrap_or("");
    let plans: Vec<_> = plans.iter().filter(|p| p.name.contains(part)).collect();
    for round in 1..=options.rounds {
        for plan in &plans {
            for rig in in_turn(rigs, round) {
                into.push(one(rig, application, plan, options, round).await?);
            }
        }
    }
    Ok(())
}

/// Latency at a fixed rate.
pub(super) async fn paced(
    rigs: &[Rig],
    application: &Application,
    options: &Options,
    into: &mut Vec<Sample>,
) -> Result<()> {
    let rate = options.rate;
    let one_one = format!("HTTP/1.1, {rate} requests/s on 16 connections, 1 KB");
    let two = format!("HTTP/2, {rate} requests/s on 16 connections of 4 streams, 1 KB");
    let plans = [
        Plan::http1(&one_one, CONNECTIONS, SMALL),
        Plan::shared(&two, "two", Protocol::Http2, SMALL),
    ];
    for round in 1..=options.pairs {
        for plan in &plans {
            let plan = plan.clone().paced(rate, PACED_SECONDS);
            for rig in in_turn(rigs, round) {
                into.push(one(rig, application, &plan, options, round).await?);
            }
        }
    }
    Ok(())
}

/// Who is measured in a round, in turn from either end.
pub(super) fn in_turn(rigs: &[Rig], round: u32) -> Vec<&Rig> {
    let mut all: Vec<_> = rigs.iter().collect();
    if round.is_multiple_of(2) {
        all.reverse();
    }
    all
}

/// Runs one load.
pub(super) async fn one(
    rig: &Rig,
    application: &Application,
    plan: &Plan,
    options: &Options,
    round: u32,
) -> Result<Sample> {
    eprintln!("round {round}: {}, {}", plan.name, rig.contender.name());
    application.answer_with(plan.body).await?;
    let (before, served_before) = (rig.used(), application.used());
    let measured = measured(rig.start_load(&plan.load(rig, options)?)?).await?;
    let (after, served) = (rig.used(), application.used());
    if let Some(failure) = &measured.first_failure {
        eprintln!("{} failed; first: {failure}", measured.failed);
    }
    let proxy_cpu = after.cpu_seconds - before.cpu_seconds;
    let served = served.cpu_seconds - served_before.cpu_seconds;
    Ok(Sample {
        load: plan.name.clone(),
        contender: rig.contender,
        round,
        all_cpu: proxy_cpu + served + measured.cpu_seconds,
        proxy_cpu,
        rss_kib: after.rss_kib,
        measured,
    })
}
