//! The counters of connections between the same ends, and how long they are shown: the pods of a node come and
//! go, and each pair of them has series of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use isobar_runtime::Lifetime;
use isobar_state::Snapshot;
use isobar_telemetry::Registry;
use isobar_types::{NamespacedHostname, Reason, Str};
use isobar_xds::Store;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{EndLabels, Metrics, ReporterLabels, ServiceLabels, TrafficLabels};

/// Series are shown for so long after the last connection, then until one of their ends is gone: several scrapes
/// see the last counts.
const SHOWN: Duration = Duration::from_secs(300);
/// How often it is looked what has been idle.
pub(crate) const LOOK: Duration = Duration::from_secs(60);

/// The families of the traffic metrics, and which series of them are shown.
#[derive(Debug, Clone)]
pub(super) struct Traffic {
    families: Families,
    // Held to look up, add or forget one; nothing is counted under it.
    shown: Arc<Mutex<HashMap<TrafficLabels, Shown>>>,
}

#[derive(Debug, Clone)]
struct Families {
    opened: Family<TrafficLabels, Counter>,
    closed: Family<TrafficLabels, Counter>,
    failed: Family<TrafficLabels, Counter>,
    received: Family<TrafficLabels, Counter>,
    sent: Family<TrafficLabels, Counter>,
    open: Family<ReporterLabels, Gauge>,
}

#[derive(Debug)]
struct Shown {
    /// Open connections hold it too.
    series: Arc<Series>,
    idle: Idle,
}

impl Shown {
    /// True if this is idle, and has been for long enough.
    fn is_due(&mut self, now: Instant) -> bool {
        let open = Arc::strong_count(&self.series) > 1;
        self.idle.is_due(self.series.opened.get(), open, now)
    }
}

/// For how long a series has not been used, as far as looks now and then tell.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    /// As of the last look.
    count: u64,
    /// When it was first seen to be unused.
    since: Option<Instant>,
}

impl Idle {
    /// True if no look has found another `count`, or that somebody counts, for five minutes.
    pub(crate) fn is_due(&mut self, count: u64, used: bool, now: Instant) -> bool {
        if used || count != self.count {
            self.count = count;
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(since) >= SHOWN
    }
}

impl Traffic {
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| registry.register(name, help, Family::default());
        let families = Families {
            opened: counter(
                "istio_tcp_connections_opened",
                "The total number of TCP connections opened",
            ),
            closed: counter(
                "istio_tcp_connections_closed",
                "The total number of TCP connections closed",
            ),
            failed: counter(
                "istio_tcp_connections_failed",
                "The total number of TCP connections that failed (unstable)",
            ),
            received: counter(
                "istio_tcp_received_bytes",
                "The size of total bytes received during request in case of a TCP connection",
            ),
            sent: counter(
                "istio_tcp_sent_bytes",
                "The total number of bytes sent during response in case of a TCP connection",
            ),
            open: registry.register(
                "istio_tcp_sockets_open",
                "The current number of open TCP connections (unstable)",
                Family::default(),
            ),
        };
        Self {
            families,
            shown: Arc::default(),
        }
    }

    fn shown(&self) -> MutexGuard<'_, HashMap<TrafficLabels, Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metrics {
    /// The counters of connections with these labels, which are those of an open one. They are shown for as
    /// long as somebody holds them, and a while after that.
    #[must_use]
    pub fn series(&self, labels: TrafficLabels) -> Arc<Series> {
        let mut shown = self.traffic.shown();
        if let Some(known) = shown.get(&labels) {
            return known.series.clone();
        }
        let series = Arc::new(Series::new(&self.traffic.families, labels.clone()));
        let entry = Shown {
            series: series.clone(),
            idle: Idle::default(),
        };
        shown.insert(labels, entry);
        series
    }

    /// Forgets series that nobody will count in any more, now and then, until `life` is stopped.
    pub async fn tidy(self, store: Store, life: Lifetime) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = life.stopped() => return,
                _ = look.tick() => {}
            }
            let forgotten = self.forget_gone(&store.load(), Instant::now());
            if forgotten > 0 {
                tracing::debug!(forgotten, "series of ends that are gone");
            }
        }
    }

    /// Forgets the series without a connection in the last five minutes, of which an end is not known to the
    /// mesh any more. What comes back begins anew. Returns how many. Looks at all workloads of the mesh once:
    /// for control threads.
    pub fn forget_gone(&self, snapshot: &Snapshot, now: Instant) -> usize {
        let mut due = Vec::new();
        for (labels, shown) in self.traffic.shown().iter_mut() {
            if shown.is_due(now) {
                due.push(labels.clone());
            }
        }
        if due.is_empty() {
            return 0;
        }
        let ends = due.iter().flat_map(|l| [&*l.source, &*l.destination]);
        let mut away: HashSet<_> = ends.filter_map(Named::of_labels).collect();
        for workload in snapshot.workloads() {
            away.remove(&Named {
                namespace: &workload.namespace,
                workload: &workload.workload_name,
            });
        }
        let gone = due.iter().filter(|labels| {
            let ends = [&labels.source, &labels.destination];
            let gone = |end: &Arc<EndLabels>| match Named::of_labels(end) {
                Some(named) => away.contains(&named),
                // Only what its certificate proved is known of it.
                None => end.principal.is_some() && end.canonical_service.is_none(),
            };
            ends.into_iter().any(gone) || is_gone(&labels.service, snapshot)
        });
        let gone: Vec<_> = gone.cloned().collect();
        let mut forgotten = 0;
        for labels in &gone {
            let mut shown = self.traffic.shown();
            let Some(known) = shown.get(labels) else {
                continue;
            };
            // A connection may have come before this looks. One that comes in this very moment, by what its pod
            // keeps of the series, counts into nothing: after five idle minutes, for workloads that are gone.
            let series = &known.series;
            if Arc::strong_count(series) == 1 && series.opened.get() == known.idle.count {
                series.hide();
                shown.remove(labels);
                forgotten += 1;
            }
        }
        self.forget_told(&gone);
        forgotten
    }

    /// Makes room for other ends known from what peers tell, where nothing shows these any more.
    fn forget_told(&self, gone: &[TrafficLabels]) {
        let ends = gone.iter().flat_map(|l| [&*l.source, &*l.destination]);
        let mut free: HashSet<&EndLabels> = {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            ends.filter(|end| told.contains(*end)).collect()
        };
        if free.is_empty() {
            return;
        }
        let shown: Vec<_> = self.traffic.shown().keys().cloned().collect();
        for labels in &shown {
            free.remove(&*labels.source);
            free.remove(&*labels.destination);
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for end in free {
            told.remove(end);
        }
    }
}

/// What a workload is called in labels.
#[derive(PartialEq, Eq, Hash)]
struct Named<'a> {
    namespace: &'a str,
    workload: &'a str,
}

impl<'a> Named<'a> {
    fn of_labels(end: &'a EndLabels) -> Option<Self> {
        Some(Self {
            namespace: end.namespace.as_deref().unwrap_or_default(),
            workload: end.workload.as_deref()?,
        })
    }
}

fn is_gone(service: &ServiceLabels, snapshot: &Snapshot) -> bool {
    let (Some(namespace), Some(hostname)) = (&service.namespace, &service.host) else {
        return false;
    };
    let key = NamespacedHostname {
        namespace: Str::clone(namespace),
        hostname: Str::clone(hostname),
    };
    snapshot.service(&key).is_none()
}

/// The counters of connections between the same ends: looking them up by all their labels costs
/// more than counting.
#[derive(Debug)]
pub struct Series {
    families: Families,
    labels: TrafficLabels,
    opened: Counter,
    open: Gauge,
    /// Bytes towards the destination.
    pub received: Counter,
    /// Bytes from the destination.
    pub sent: Counter,
    /// Orderly ends; made with the first.
    complete: OnceLock<Counter>,
    /// The other ends that were counted, for when they are forgotten.
    ends: Mutex<Vec<(Reason, &'static str)>>,
}

impl Series {
    fn new(families: &Families, labels: TrafficLabels) -> Self {
        let Families {
            opened,
            received,
            sent,
            open,
            ..
        } = families;
        Self {
            opened: opened.get_or_create_owned(&labels),
            open: open.get_or_create_owned(&ReporterLabels(labels.direction)),
            // At both sides "received" is what the destination receives (Istio's historic view).
            received: received.get_or_create_owned(&labels),
            sent: sent.get_or_create_owned(&labels),
            complete: OnceLock::new(),
            ends: Mutex::default(),
            families: families.clone(),
            labels,
        }
    }

    /// Counts a connection whose way is known.
    pub fn opened(&self) {
        self.opened.inc();
        self.open.inc();
    }

    /// Counts the end of a connection that was counted as opened, with Istio's `flags`.
    pub fn closed(&self, reason: Reason, flags: &'static str) {
        self.open.dec();
        let Families { closed, failed, .. } = &self.families;
        if reason == Reason::Complete && flags == "-" {
            let first = || closed.get_or_create_owned(&self.ended(reason, flags));
            self.complete.get_or_init(first).inc();
            return;
        }
        let labels = self.ended(reason, flags);
        if flags != "-" {
            failed.get_or_create(&labels).inc();
        }
        closed.get_or_create(&labels).inc();
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if !ends.contains(&(reason, flags)) {
            ends.push((reason, flags));
        }
    }

    fn ended(&self, reason: Reason, flags: &'static str) -> TrafficLabels {
        TrafficLabels {
            flags,
            reason: Some(reason),
            ..self.labels.clone()
        }
    }

    /// Takes all of this out of what is shown.
    fn hide(&self) {
        let Families {
            opened,
            closed,
            failed,
            received,
            sent,
            ..
        } = &self.families;
        for family in [opened, received, sent] {
            family.remove(&self.labels);
        }
        closed.remove(&self.ended(Reason::Complete, "-"));
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, flags) in ends.iter() {
            let labels = self.ended(*reason, flags);
            closed.remove(&labels);
            failed.remove(&labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::workload as wire;
    use isobar_telemetry::access::Direction;
    use wire::address::Type;

    use super::*;

    fn end(workload: &str) -> Arc<EndLabels> {
        Arc::new(EndLabels {
            workload: Some(workload.into()),
            namespace: Some("shop".into()),
            ..EndLabels::default()
        })
    }

    fn between(source: &str, destination: &str) -> TrafficLabels {
        TrafficLabels {
            direction: Direction::Inbound,
            mutual_tls: true,
            flags: "-",
            reason: None,
            source: end(source),
            destination: end(destination),
            service: Arc::default(),
        }
    }

    /// A mesh of one pod each of these workloads.
    fn mesh(workloads: &[&str]) -> Snapshot {
        let mut draft = Snapshot::default().draft();
        for name in workloads {
            let workload = wire::Workload {
                uid: (*name).to_owned(),
                name: format!("{name}-xyz"),
                workload_name: (*name).to_owned(),
                namespace: "shop".to_owned(),
                ..wire::Workload::default()
            };
            let address = wire::Address {
                r#type: Some(Type::Workload(workload)),
            };
            draft.upsert_address(&address).unwrap();
        }
        draft.finish()
    }

    struct Bed {
        registry: Registry,
        metrics: Metrics,
        start: Instant,
    }

    impl Bed {
        fn new() -> Self {
            let registry = Registry::new();
            Self {
                metrics: Metrics::new(&registry),
                registry,
                start: Instant::now(),
            }
        }

        fn call(&self, source: &str, destination: &str, reason: Reason, flags: &'static str) {
            let series = self.metrics.series(between(source, destination));
            series.opened();
            series.closed(reason, flags);
        }

        fn look(&self, snapshot: &Snapshot, minute: u64) -> usize {
            let now = self.start + Duration::from_secs(60 * minute);
            self.metrics.forget_gone(snapshot, now)
        }

        /// Lines that name this caller.
        fn lines(&self, source: &str) -> Vec<String> {
            let wanted = format!("source_workload=\"{source}\"");
            let text = self.registry.encode();
            let lines = text.lines().filter(|line| line.contains(&wanted));
            lines.map(str::to_owned).collect()
        }
    }

    #[test]
    fn series_of_what_is_gone_are_forgotten() {
        let bed = Bed::new();
        bed.call("job", "cart", Reason::Complete, "-");
        bed.call("job", "cart", Reason::PolicyDenied, "DENY");
        bed.call("front", "cart", Reason::Complete, "-");
        assert_eq!(bed.lines("job").len(), 6, "{:#?}", bed.lines("job"));
        let now = mesh(&["cart", "front"]);
        for minute in 0..=5 {
            // First seen, first seen idle, and five minutes after that.
            assert_eq!(bed.look(&now, minute), 0, "{minute}");
        }
        assert_eq!(bed.look(&now, 6), 1);
        assert_eq!(bed.lines("job"), [""; 0]);
        assert_eq!(bed.lines("front").len(), 4, "its workload is there");
        // What comes back begins anew.
        bed.call("job", "cart", Reason::Complete, "-");
        assert!(bed.lines("job").iter().any(|line| line.ends_with("} 1")));
    }

    #[test]
    fn series_that_are_used_stay() {
        let bed = Bed::new();
        let open = bed.metrics.series(between("job", "cart"));
        open.opened();
        let nobody = mesh(&[]);
        for minute in 0..20 {
            assert_eq!(bed.look(&nobody, minute), 0, "a connection is open");
        }
        open.closed(Reason::Complete, "-");
        drop(open);
        for minute in (20..60).step_by(4) {
            assert_eq!(bed.look(&nobody, minute), 0, "there was a connection");
            bed.call("job", "cart", Reason::Complete, "-");
        }
        let opened = bed.lines("job").into_iter();
        let counts: Vec<_> = opened.filter(|l| l.contains("opened_total")).collect();
        assert!(
            counts.len() == 1 && counts[0].ends_with("} 11"),
            "{counts:?}"
        );
        assert_eq!(bed.look(&nobody, 60), 0);
        assert_eq!(bed.look(&nobody, 61), 0);
        assert_eq!(bed.look(&nobody, 66), 1);
    }

    #[test]
    fn services_that_are_gone_take_their_series_along() {
        let bed = Bed::new();
        let mut labels = between("front", "cart");
        labels.service = Arc::new(ServiceLabels {
            host: Some("preview.shop.svc.cluster.local".into()),
            namespace: Some("shop".into()),
            name: Some("preview".into()),
        });
        drop(bed.metrics.series(labels));
        bed.call("front", "cart", Reason::Complete, "-");
        let now = mesh(&["cart", "front"]);
        let forgotten: usize = (0..10).map(|minute| bed.look(&now, minute)).sum();
        assert_eq!(forgotten, 1);
        assert!(!bed.registry.encode().contains("preview"));
    }

    #[test]
    fn what_peers_told_makes_room() {
        let bed = Bed::new();
        let proven = EndLabels::default;
        for number in 0..super::super::TOLD_ENDS {
            let told = bed
                .metrics
                .told_end(proven(), (*end(&number.to_string())).clone());
            let mut labels = between("", "cart");
            labels.source = Arc::new(told);
            drop(bed.metrics.series(labels));
        }
        let late = (*end("late")).clone();
        assert_eq!(bed.metrics.told_end(proven(), late.clone()), proven());
        let now = mesh(&["cart"]);
        for minute in 0..10 {
            bed.look(&now, minute);
        }
        assert_eq!(bed.metrics.told_end(proven(), late.clone()), late);
    }
}
