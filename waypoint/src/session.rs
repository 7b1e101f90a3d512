//! One tunnel: who called, what for, and what the worker holds to serve it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_runtime::LocalScope;
use isobar_state::{AppProtocol, Workload, authorize_through};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::access_log::AccessLog;
use crate::attribution::{Attributed, Peer, attribute, attribute_in_time};
use crate::credentials::Version;
use crate::edge;
use crate::endpoint::{Endpoint, Turns};
use crate::http::{Heads, Live};
use crate::kept::Kept;
use crate::metrics::{Metrics, Recent};
use crate::protocol::{Protocol, detect};
use crate::stream::{AnyStream, Rewound, Stream};
use crate::target::{self, Addressed, Target, TargetRefusal};
use crate::upstream::Pool;
use crate::world::{View, World};

/// What is open when its target leaves this waypoint may go on for so long, as when the waypoint
/// itself ends: the policies for it are gone by then, so no later one would be kept.
pub(crate) const STAY: Duration = Duration::from_secs(5);

/// What one worker thread holds.
pub struct Worker {
    /// The shared state.
    pub world: World,
    /// Connections to endpoints.
    pub pool: Pool,
    /// Whose turn it is.
    pub turns: Turns,
    /// Tasks that serve callers: a drain waits for them.
    pub scope: Rc<LocalScope>,
    /// Connections to endpoints: they end when nobody is served any more.
    pub upstreams: Rc<LocalScope>,
    /// Counters.
    pub metrics: Metrics,
    /// Those used lately.
    pub recent: Recent,
    /// Requests that are being served.
    pub live: Rc<Live>,
    /// HTTP connections of callers.
    pub(crate) kept: Rc<Kept>,
    /// Where lines go.
    pub access_log: AccessLog,
    /// The source of reachability where the caller is not known.
    pub own_workload: Arc<Workload>,
    /// TLS of its listeners.
    pub(crate) servers: edge::Servers,
}

/// A tunnel that was accepted.
pub struct Session {
    /// The worker it lives on.
    pub worker: Rc<Worker>,
    /// Who called.
    pub peer: Peer,
    /// What for.
    pub addressed: Addressed,
    /// Told when its connection must end at once: something on it may not go on and does not end.
    pub(crate) cut: Notify,
    /// Told when its connection should take no further requests.
    pub(crate) leave: Notify,
    /// The request heads that are on their way over HTTP/1.1, and the first one from outside.
    pub(crate) heads: Heads,
    /// When what is open must end, as the target is not this waypoint's any more.
    ends: Cell<Option<Instant>>,
    known: RefCell<Option<Known>>,
    served: RefCell<Option<Served>>,
}

/// Whether the target is this waypoint's, as of some versions of snapshot, tables and credentials.
struct Served {
    versions: (u64, u64, Version),
    verdict: Result<(), TargetRefusal>,
}

/// The caller as of some versions of snapshot and tables.
#[derive(Clone)]
struct Known {
    versions: (u64, u64),
    caller: Arc<Attributed>,
}

impl Session {
    /// A session that has not looked at its caller yet.
    #[must_use]
    pub fn new(worker: Rc<Worker>, peer: Peer, addressed: Addressed) -> Rc<Self> {
        Rc::new(Self {
            worker,
            peer,
            addressed,
            cut: Notify::new(),
            leave: Notify::new(),
            heads: Heads::default(),
            ends: Cell::default(),
            known: RefCell::default(),
            served: RefCell::default(),
        })
    }

    /// Serves `stream` to its end.
    pub async fn serve<S: Stream>(self: Rc<Self>, stream: S) {
        // One make from here on: what speaks HTTP would be there once for each otherwise.
        let mut stream: AnyStream = Box::new(stream);
        let found = match detect(self.declared(), &mut stream).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "a tunnel ended before it showed its protocol");
                return;
            }
        };
        let stream = Rewound::new(found.first, stream);
        let worker = self.worker.clone();
        let _place = (found.protocol != Protocol::Tcp).then(|| worker.kept.add(&self));
        match found.protocol {
            Protocol::Http1 => crate::http::serve1(self, stream).await,
            Protocol::Http2 => crate::http::serve2(self, stream).await,
            Protocol::Tcp => crate::tcp::serve(self, stream, found.server_name).await,
        }
    }

    /// For a pod's own address: what the service on that port declares, if all that do agree.
    pub(crate) fn declared(&self) -> Option<AppProtocol> {
        let port = self.addressed.destination.port();
        match &self.addressed.target {
            Target::Service(service) => service.protocol(port),
            Target::Listener(listener) => Some(edge::declared(listener)),
            Target::Workload(workload) => {
                let snapshot = self.worker.world.store.load();
                let mut declared = workload.services.iter().flat_map(|(key, ports)| {
                    let service = snapshot.service(key);
                    let on_port = ports.iter().filter(|(_, target)| *target == port);
                    on_port
                        .filter_map(move |(port, _)| service.and_then(|s| s.protocol(port)))
                        .collect::<Vec<_>>()
                });
                let first = declared.next()?;
                declared.all(|other| other == first).then_some(first)
            }
        }
    }

    /// The caller, if it was looked up in this view.
    pub(crate) fn known_caller(&self, view: &View) -> Option<Arc<Attributed>> {
        let versions = (view.snapshot.version(), view.tables.version());
        let known = self.known.borrow();
        let known = known.as_ref().filter(|known| known.versions == versions);
        known.map(|known| known.caller.clone())
    }

    /// The caller in this view; looked up again when something has changed. The first look may wait
    /// for discovery.
    pub async fn caller(&self, view: &View) -> Arc<Attributed> {
        if let Some(caller) = self.known_caller(view) {
            return caller;
        }
        let versions = (view.snapshot.version(), view.tables.version());
        let first = self.known.borrow().is_none();
        let caller = match first {
            false => attribute(view, &self.worker.world.own.network, &self.peer),
            true => Box::pin(attribute_in_time(&self.worker.world, &self.peer)).await,
        };
        let caller = Arc::new(caller);
        *self.known.borrow_mut() = Some(Known {
            versions,
            caller: caller.clone(),
        });
        caller
    }

    /// Whether a new tunnel to the same authority would still be taken and mean the same object: a
    /// request on an old one gets no other answer. A pod that is gone is the caller's to find out.
    ///
    /// # Errors
    /// What the new tunnel would be told.
    pub fn still_served(&self, view: &View) -> Result<(), TargetRefusal> {
        let world = &self.worker.world;
        let (snapshot, tables) = (view.snapshot.version(), view.tables.version());
        let versions = (snapshot, tables, world.credentials.version());
        if let Some(served) = &*self.served.borrow()
            && served.versions == versions
        {
            return served.verdict.clone();
        }
        let verdict = target::again(view, world, &self.addressed, &self.peer);
        if verdict.is_ok() {
            self.ends.set(None);
            if target::is_leaving(view, &world.own, &self.addressed) {
                self.leave.notify_one();
            }
        }
        *self.served.borrow_mut() = Some(Served {
            versions,
            verdict: verdict.clone(),
        });
        verdict
    }

    /// True if what it was opened for is not this waypoint's any more, or soon will not be.
    pub(crate) fn leaves(&self, view: &View) -> bool {
        let world = &self.worker.world;
        !matches!(self.addressed.target, Target::Listener(_))
            && (target::is_leaving(view, &world.own, &self.addressed)
                || target::again(view, world, &self.addressed, &self.peer).is_err())
    }

    /// Whether what is open may go on, and until when if not for as long as it likes.
    ///
    /// # Errors
    /// What a new tunnel would be told, once the time is over.
    pub(crate) fn may_stay(&self, view: &View) -> Result<Option<Instant>, TargetRefusal> {
        let Err(refusal) = self.still_served(view) else {
            return Ok(None);
        };
        let now = Instant::now();
        let end = self.ends.get().unwrap_or(now + STAY);
        self.ends.set(Some(end));
        if now < end {
            Ok(Some(end))
        } else {
            Err(refusal)
        }
    }

    /// Whether the policies of an endpoint's node proxy let the caller in: the node proxy itself sees
    /// only this waypoint.
    ///
    /// # Errors
    /// The detail for the log, naming the policy.
    pub fn admitted(&self, view: &View, endpoint: &Endpoint) -> Result<(), String> {
        if let Target::Listener(_) = self.addressed.target {
            // To the endpoint a gateway is the caller, as its certificate says.
            return Ok(());
        }
        let caller = isobar_state::Peer {
            identity: self.peer.identity.clone(),
            ip: self.peer.address.ip(),
        };
        let own = &self.worker.world.own.identity;
        let now = view.snapshot.workload_by_uid(&endpoint.workload.uid);
        let workload = now.unwrap_or(&endpoint.workload);
        let asked = authorize_through(&view.snapshot, own, &caller, workload, endpoint.address);
        asked.map_err(|denied| match denied.policy {
            Some(by) => format!(
                "rbac_access_denied_matched_policy[ns[{}]-policy[{}]]",
                by.namespace, by.name
            ),
            None => denied.detail,
        })
    }

    /// From where endpoints are looked at: the caller, or this waypoint itself.
    #[must_use]
    pub fn source<'a>(&'a self, caller: &'a Attributed) -> &'a Workload {
        caller
            .workload
            .as_deref()
            .unwrap_or(&self.worker.own_workload)
    }
}

/// Ends at this time; without one, never.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
