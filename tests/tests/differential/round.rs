//! One round: everything is started, every request sent to both sides, everything compared.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use isobar_runtime::LocalScope;
use isobar_tests::envoy::{Call, Envoy, Export};
use isobar_tests::eventually_within;
use tokio::net::TcpStream;

use crate::backends::{Backends, Book};
use crate::caller::{Stream, call};
use crate::divergence::Divergences;
use crate::objects::{NAMESPACE, WAYPOINT, hostname, resolve, vip};
use crate::observed::{Difference, Got, Observed};
use crate::ours::{Certificates, Ours};
use crate::scenario::{Case, Configuration};

/// Requests under way at once. More would blur what deadlines tell.
const AT_ONCE: usize = 8;
/// For copies to come to a mirror.
const FOR_COPIES: Duration = Duration::from_secs(5);
/// For everything.
const LIMIT: Duration = Duration::from_secs(600);

/// A request that did not end alike, or not as it was to.
struct Mismatch {
    scenario: String,
    differences: Vec<Difference>,
    envoys: Observed,
}

/// Sends all requests to both sides. Panics with every mismatch there is.
pub(crate) fn compare(name: &str, all: &[Configuration], divergences: &Divergences) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let mismatches = local.block_on(&runtime, async {
        let round = tokio::time::timeout(LIMIT, round(name, all, divergences));
        round.await.expect("it took too long")
    });
    let text = report(&mismatches);
    assert!(
        mismatches.is_empty(),
        "{} scenarios differ:\n{text}",
        mismatches.len()
    );
}

/// One configuration with both sides running.
struct Table<'a> {
    configuration: &'a Configuration,
    ours: Ours,
    envoy: Rc<Envoy>,
    book: Book,
}

async fn round(name: &str, all: &[Configuration], divergences: &Divergences) -> Vec<Mismatch> {
    let scope = Rc::new(LocalScope::new("oracle"));
    let certificates = Certificates::new();
    let backends = Backends::new(scope.clone());
    let mut export = Export::default();
    let mut waypoints = Vec::new();
    for configuration in all {
        let running = backends.start(configuration).await;
        let resolved = resolve(configuration, &running);
        let waypoint = format!("{NAMESPACE}/{WAYPOINT}");
        let calls = configuration.cases.iter();
        let calls: BTreeSet<Call> = calls.map(|case| call_of(configuration, case)).collect();
        export.add(&configuration.name, &resolved.told, &waypoint, calls);
        let ours = Ours::start(configuration, &resolved, certificates.clone(), &scope);
        waypoints.push(ours);
    }
    let envoy = Envoy::start(name, export).await;
    let envoy = Rc::new(envoy.unwrap_or_else(|error| panic!("{error:#}")));
    let tables: Vec<Table<'_>> = all
        .iter()
        .zip(waypoints)
        .map(|(configuration, ours)| Table {
            configuration,
            ours,
            envoy: envoy.clone(),
            book: backends.book.clone(),
        })
        .collect();
    let mismatches = RefCell::new(Vec::new());
    let cases = tables.iter().flat_map(|table| {
        let cases = table.configuration.cases.iter();
        cases.map(move |case| (table, case))
    });
    stream::iter(cases.enumerate())
        .for_each_concurrent(AT_ONCE, |(index, (table, case))| {
            let mismatches = &mismatches;
            async move {
                let found = table.try_case(index, case, divergences).await;
                mismatches.borrow_mut().extend(found);
            }
        })
        .await;
    mismatches.into_inner()
}

impl Table<'_> {
    async fn try_case(
        &self,
        index: usize,
        case: &Case,
        divergences: &Divergences,
    ) -> Option<Mismatch> {
        let scenario = format!("{}: {}", self.configuration.name, case.name);
        let turns = case.settle + case.repeat;
        let both = (0..turns).map(|turn| async move {
            tokio::join!(
                self.once(case, format!("ours-{index}-{turn}"), true),
                self.once(case, format!("envoy-{index}-{turn}"), false),
            )
        });
        let at_once = if case.at_once { turns } else { 1 };
        let pairs: Vec<_> = stream::iter(both).buffered(at_once).collect().await;
        let counted = pairs.into_iter().skip(case.settle);
        let (mut ours, mut envoys): (Vec<_>, Vec<_>) = counted.unzip();
        let (ours, envoys) = if case.repeat == 1 {
            (ours.remove(0), envoys.remove(0))
        } else {
            let fold = |all: &[Observed]| Observed::folded(all, case.same);
            (fold(&ours), fold(&envoys))
        };
        let mut differences = ours.differences(&envoys);
        differences.retain(|difference| !divergences.accepts(&scenario, difference));
        differences.extend(unexpected(case, &ours));
        (!differences.is_empty()).then_some(Mismatch {
            scenario,
            differences,
            envoys,
        })
    }

    async fn once(&self, case: &Case, key: String, ours: bool) -> Observed {
        self.book.open(&key, &case.answers);
        let started = Instant::now();
        let got = match self.stream(case, ours).await {
            Ok(stream) => call(stream, case, &key).await,
            Err(error) => Got::nothing(format!("no connection: {error}")),
        };
        let took = started.elapsed();
        let late = case
            .within_ms
            .map(|limit| took > Duration::from_millis(limit));
        if case.copies > 0 {
            let arrived = || async {
                let seen = self.book.count(&key);
                anyhow::ensure!(seen > case.copies, "{seen} came");
                Ok(())
            };
            // What did not come shows in the comparison.
            let _ = eventually_within("every copy arrives", FOR_COPIES, arrived).await;
        }
        let mut seen = self.book.close(&key);
        if case.copies > 0 {
            seen.sort_by(|a, b| (&a.backend, &a.headers).cmp(&(&b.backend, &b.headers)));
        }
        Observed::of(&got, &seen, late)
    }

    async fn stream(&self, case: &Case, ours: bool) -> Result<Box<dyn Stream>, String> {
        let called = call_of(self.configuration, case);
        if ours {
            let authority = format!("{}:{}", vip(0), called.port);
            let opened = self
                .ours
                .open(&called.namespace, &called.account, &authority);
            let opened = opened.await;
            return opened.map(|stream| Box::new(stream) as Box<dyn Stream>);
        }
        let name = called.listener(&self.configuration.name);
        let opened = TcpStream::connect(self.envoy.address(&name)).await;
        let opened = opened.map_err(|error| error.to_string())?;
        opened
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        Ok(Box::new(opened))
    }
}

/// Who calls what in a request.
fn call_of(configuration: &Configuration, case: &Case) -> Call {
    let caller = configuration.callers.get(&case.caller);
    let namespace = caller.and_then(|caller| caller.namespace.as_deref());
    Call {
        namespace: namespace.unwrap_or(NAMESPACE).to_owned(),
        account: case.caller.clone(),
        hostname: hostname("svc"),
        port: configuration.port_of(case),
    }
}

/// What both were to give, where a scenario says it: two may be wrong in the same way.
fn unexpected(case: &Case, ours: &Observed) -> Option<Difference> {
    let wanted = case.status?.to_string();
    let got = ours.fields.get("status");
    (case.repeat == 1 && got != Some(&wanted)).then(|| Difference {
        field: "status that the scenario expects".to_owned(),
        ours: got.cloned(),
        envoys: Some(wanted),
    })
}

fn report(mismatches: &[Mismatch]) -> String {
    let mut text = String::new();
    for one in mismatches {
        let _ = writeln!(text, "{}", one.scenario);
        for difference in &one.differences {
            let side = |value: &Option<String>| match value {
                Some(value) => format!("{value:?}"),
                None => "-".to_owned(),
            };
            let _ = writeln!(
                text,
                "    {}: ours {}, Envoy's {}",
                difference.field,
                side(&difference.ours),
                side(&difference.envoys)
            );
        }
        let status = one.envoys.fields.get("status");
        let _ = writeln!(text, "    (Envoy's status {})", status.map_or("-", |s| s));
    }
    text
}
