//! What is known of one connection, and its end: the access line and the metrics.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use foldhash::fast::RandomState;
use isobar_state::{Service, Workload};
use isobar_telemetry::access::{self, Direction, Party};
use isobar_types::{Identity, Reason};
use isobar_xds::Store;

use crate::metrics::{EndLabels, Metrics, Series, ServiceLabels, TrafficLabels, response_flags};
use isobar_hbone::Baggage;

/// One end of a connection: its workload if known, else what the peer told of it.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// The workload.
    pub workload: Option<Arc<Workload>>,
    /// Identity proven in mutual TLS.
    pub identity: Option<Identity>,
    /// What the peer told; used where there is no workload.
    pub baggage: Option<Box<Baggage>>,
}

/// A connection whose way is known.
#[derive(Debug)]
pub struct Route {
    /// Side of the proxy.
    pub direction: Direction,
    /// Address of the client.
    pub source_address: SocketAddr,
    /// The client.
    pub source: End,
    /// Where the proxy connects to.
    pub destination_address: SocketAddr,
    /// Authority of the tunnel.
    pub hbone_address: Option<String>,
    /// The destination.
    pub destination: End,
    /// The service called.
    pub service: Option<Arc<Service>>,
    /// Mutual TLS on the wire.
    pub mutual_tls: bool,
    /// The identities are proven by certificates.
    pub proven: bool,
}

/// Counters of connections between the same ends that are remembered; beyond, all are looked up anew.
const KNOWN: usize = 64;

/// The counters of the connections of one pod on one thread.
#[derive(Debug)]
pub struct Accounts {
    metrics: Metrics,
    store: Store,
    /// Of this version of the mesh, so that nothing of earlier ones is kept.
    version: Cell<u64>,
    known: RefCell<HashMap<Ends, Known, RandomState>>,
}

/// Connections whose labels are the same. Objects count by their place in memory.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Ends {
    direction: Direction,
    mutual_tls: bool,
    workloads: [*const Workload; 2],
    identities: [Option<Identity>; 2],
    service: Option<*const Service>,
}

#[derive(Debug)]
struct Known {
    /// What is remembered must not keep it shown.
    series: Weak<Series>,
    /// Held, so that their places in memory stay theirs.
    _workloads: [Arc<Workload>; 2],
    _service: Option<Arc<Service>>,
}

impl Accounts {
    /// None yet.
    #[must_use]
    pub fn new(metrics: Metrics, store: Store) -> Self {
        Self {
            metrics,
            store,
            version: Cell::new(0),
            known: RefCell::default(),
        }
    }

    fn series(&self, route: &Route) -> Arc<Series> {
        let (Some(source), Some(destination)) =
            (&route.source.workload, &route.destination.workload)
        else {
            return self.metrics.series(labels(&self.metrics, route));
        };
        let version = self.store.load().version();
        let mut known = self.known.borrow_mut();
        if self.version.replace(version) != version || known.len() >= KNOWN {
            known.clear();
        }
        let ends = Ends {
            direction: route.direction,
            mutual_tls: route.mutual_tls,
            workloads: [source, destination].map(Arc::as_ptr),
            identities: [&route.source, &route.destination].map(|end| end.identity.clone()),
            service: route.service.as_ref().map(Arc::as_ptr),
        };
        if let Some(series) = known.get(&ends).and_then(|known| known.series.upgrade()) {
            return series;
        }
        let series = self.metrics.series(labels(&self.metrics, route));
        let entry = Known {
            series: Arc::downgrade(&series),
            _workloads: [source, destination].map(Arc::clone),
            _service: route.service.clone(),
        };
        known.insert(ends, entry);
        series
    }
}

fn labels(metrics: &Metrics, route: &Route) -> TrafficLabels {
    TrafficLabels {
        direction: route.direction,
        mutual_tls: route.mutual_tls,
        flags: "-",
        reason: None,
        source: Arc::new(end_labels(metrics, &route.source, None)),
        // The destination's identity is told even where nothing proves it.
        destination: Arc::new(end_labels(
            metrics,
            &route.destination,
            route.destination.workload.as_ref().map(|w| w.identity()),
        )),
        service: Arc::new(service_labels(route.service.as_deref())),
    }
}

/// A connection counted as opened. Must be closed; a drop without [`Ledger::close`] is a fault of
/// ours and is told as such.
#[derive(Debug)]
pub struct Ledger {
    series: Arc<Series>,
    route: Route,
    counted: (u64, u64),
    opened: Instant,
    closed: bool,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: Reason,
    /// What to tell the operator; `None` for an orderly end.
    pub detail: Option<String>,
    /// Both sides see the end of the stream, and no reset.
    gentle: bool,
}

impl Ending {
    /// An orderly end.
    #[must_use]
    pub const fn complete() -> Self {
        Self {
            reason: Reason::Complete,
            detail: None,
            gentle: true,
        }
    }

    /// One side went away in the midst of it, as applications do: told, but no error.
    #[must_use]
    pub const fn broken(reason: Reason) -> Self {
        Self {
            reason,
            detail: None,
            gentle: false,
        }
    }

    /// An end that is worth a text.
    #[must_use]
    pub fn failed(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: Some(detail.into()),
            gentle: matches!(reason, Reason::Drained),
        }
    }

    /// The same, but both sides see the end of the stream, as at the end of a drain.
    #[must_use]
    pub fn gently(self) -> Self {
        Self {
            gentle: true,
            ..self
        }
    }

    /// True if both sides are to see the end of the stream; else a reset.
    #[must_use]
    pub const fn is_gentle(&self) -> bool {
        self.gentle
    }
}

impl Ledger {
    /// Counts the connection as opened. `since` is when it was accepted.
    #[must_use]
    pub fn open(accounts: &Accounts, route: Route, since: Instant) -> Self {
        let series = accounts.series(&route);
        series.opened();
        tracing::debug!(
            target: "access",
            { src.addr = %route.source_address, dst.addr = %route.destination_address,
              direction = route.direction.as_str() },
            "connection opened"
        );
        Self {
            series,
            route,
            counted: (0, 0),
            opened: since,
            closed: false,
        }
    }

    /// The peer has proven to be this one of those expected.
    pub fn prove_destination(&mut self, identity: &Identity) {
        self.route.destination.identity = Some(identity.clone());
    }

    /// Brings the byte counters up to the totals so far: towards the destination, and from it.
    pub fn count(&mut self, towards: u64, from: u64) {
        self.series
            .received
            .inc_by(towards.saturating_sub(self.counted.0));
        self.series.sent.inc_by(from.saturating_sub(self.counted.1));
        self.counted = (towards.max(self.counted.0), from.max(self.counted.1));
    }

    /// Ends the connection: counts it and writes its line.
    pub fn close(mut self, ending: Ending) {
        let Ending { reason, detail, .. } = ending;
        self.finish(reason, detail.as_deref());
    }

    fn finish(&mut self, reason: Reason, error: Option<&str>) {
        self.closed = true;
        // An orderly end has no flag, whoever went first.
        let flags = match error {
            Some(_) => response_flags(reason, self.route.direction),
            None => "-",
        };
        self.series.closed(reason, flags);
        let route = &self.route;
        let (towards, from) = self.counted;
        // Each side tells what it sent and received itself: the caller's proxy towards the
        // destination, the destination's towards the caller.
        let (bytes_sent, bytes_received) = match route.direction {
            Direction::Outbound => (towards, from),
            Direction::Inbound => (from, towards),
        };
        access::Connection {
            direction: route.direction,
            source_address: route.source_address,
            source: party(&route.source, route.proven),
            destination_address: Some(route.destination_address),
            hbone_address: route.hbone_address.as_deref(),
            service: route.service.as_ref().map(|s| &*s.key.hostname),
            destination: party(&route.destination, route.proven),
            bytes_sent,
            bytes_received,
            duration: self.opened.elapsed(),
            reason,
            error,
        }
        .log();
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if !self.closed {
            // The task ended without its ending: stopped with its scope, or a panic.
            let reason = if std::thread::panicking() {
                Reason::Internal
            } else {
                Reason::Drained
            };
            self.finish(reason, Some("connection was dropped"));
        }
    }
}

fn end_labels(metrics: &Metrics, end: &End, presumed: Option<Identity>) -> EndLabels {
    let principal = end.identity.clone().or(presumed);
    let principal = principal.map(|i| i.to_string().into());
    let some = |s: &isobar_types::Str| (!s.is_empty()).then(|| s.clone());
    if let Some(workload) = &end.workload {
        return EndLabels {
            workload: some(&workload.workload_name),
            canonical_service: some(&workload.canonical_name),
            canonical_revision: some(&workload.canonical_revision),
            namespace: some(&workload.namespace),
            principal,
            app: some(&workload.canonical_name),
            version: some(&workload.canonical_revision),
            cluster: some(&workload.cluster_id),
            region: some(&workload.locality.region),
            zone: some(&workload.locality.zone),
        };
    }
    let proven = EndLabels {
        namespace: end.identity.as_ref().map(|i| i.namespace.clone()),
        principal,
        ..EndLabels::default()
    };
    let Some(told) = end.baggage.as_deref().cloned() else {
        return proven;
    };
    let shared = |s: Option<String>| s.map(isobar_types::Str::from);
    let described = EndLabels {
        workload: shared(told.workload.clone()),
        canonical_service: shared(told.service),
        canonical_revision: shared(told.revision.clone()),
        namespace: proven.namespace.clone().or_else(|| shared(told.namespace)),
        principal: proven.principal.clone(),
        app: shared(told.workload),
        version: shared(told.revision),
        cluster: shared(told.cluster),
        region: shared(told.region),
        zone: shared(told.zone),
    };
    metrics.told_end(proven, described)
}

fn service_labels(service: Option<&Service>) -> ServiceLabels {
    service.map_or_else(ServiceLabels::default, |s| ServiceLabels {
        host: Some(s.key.hostname.clone()),
        namespace: Some(s.key.namespace.clone()),
        name: Some(s.name.clone()),
    })
}

fn party(end: &End, proven: bool) -> Party<'_> {
    let identity = end.identity.as_ref().filter(|_| proven);
    if let Some(workload) = &end.workload {
        return Party {
            workload: Some(&workload.name),
            namespace: Some(&workload.namespace),
            identity,
            cluster: Some(&workload.cluster_id),
        };
    }
    let told = end.baggage.as_deref();
    Party {
        workload: told.and_then(|told| told.service.as_deref()),
        namespace: identity
            .map(|i| &*i.namespace)
            .or_else(|| told.and_then(|told| told.namespace.as_deref())),
        identity,
        cluster: told.and_then(|told| told.cluster.as_deref()),
    }
}
