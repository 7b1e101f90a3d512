//! Which endpoint of a service takes the next request; turns are kept per worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use isobar_route::{LoadBalancer, Subset};
use isobar_state::balance::{self, Candidate, Purpose, next_dice};
use isobar_state::{Service, Workload};
use isobar_types::{NamespacedHostname, Reason, Str};

use crate::world::View;

/// One pod and port to send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Address and port of the application in it.
    pub address: SocketAddr,
}

/// The account whose pods alone may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlyAccount<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub account: &'a str,
}

impl<'a> OnlyAccount<'a> {
    /// A waypoint of one account serves that account's pods: of a service that several accounts
    /// run, each account's waypoint balances over its own. `None` for a namespace's waypoint.
    #[must_use]
    pub fn of(view: &'a View) -> Option<Self> {
        let info = view.tables.waypoint()?;
        Some(Self {
            namespace: &info.name.namespace,
            account: info.account.as_deref()?,
        })
    }

    fn has(self, workload: &Workload) -> bool {
        *workload.namespace == *self.namespace && *workload.service_account == *self.account
    }
}

/// Why nothing can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoEndpoint {
    /// `NoHealthyUpstream` or `NoCluster`.
    pub reason: Reason,
    /// Names what is missing.
    pub detail: String,
}

/// What a choice is made from.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its port.
    pub port: u16,
    /// Only endpoints of this subset.
    pub subset: Option<&'a Subset>,
    /// How to choose.
    pub balancer: LoadBalancer,
    /// For whom: reachability and locality are looked at from here.
    pub source: &'a Workload,
    /// Uids that were tried before; taken again only if nothing else is left.
    pub tried: &'a [Str],
    /// Any random number.
    pub dice: u64,
}

type Cluster = (NamespacedHostname, Option<Str>, u16);

/// Turns and open requests of one worker.
#[derive(Debug)]
pub struct Turns {
    next: RefCell<HashMap<Cluster, u64>>,
    busy: RefCell<HashMap<Str, Rc<Cell<usize>>>>,
}

/// Counts a request at an endpoint for as long as it lives.
#[derive(Debug)]
pub struct Busy(Rc<Cell<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Entries that bookkeeping may hold before those without use are dropped.
const MOST_ENTRIES: usize = 16 * 1024;

impl Default for Turns {
    fn default() -> Self {
        Self::new()
    }
}

impl Turns {
    /// No turn taken.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: RefCell::default(),
            busy: RefCell::default(),
        }
    }

    /// Chooses an endpoint.
    ///
    /// # Errors
    /// [`Reason::NoHealthyUpstream`] if none is ready, [`Reason::NoCluster`] without such a port.
    pub fn choose(&self, view: &View, wanted: &Wanted<'_>) -> Result<Endpoint, NoEndpoint> {
        let all = balance::endpoints(
            &view.snapshot,
            wanted.service,
            wanted.port,
            wanted.source,
            Purpose::Call,
        )
        .map_err(|refusal| NoEndpoint {
            reason: match refusal.reason {
                Reason::NoSuchPort => Reason::NoCluster,
                other => other,
            },
            detail: refusal.detail,
        })?;
        let candidates = allowed(view, wanted, all);
        let fresh: Vec<_> = candidates
            .iter()
            .filter(|c| !wanted.tried.contains(&c.endpoint.workload.uid))
            .copied()
            .collect();
        let pool = if fresh.is_empty() {
            &candidates
        } else {
            &fresh
        };
        self.pick(pool, wanted)
            .and_then(|c| endpoint_of(c, wanted.source))
            .ok_or_else(|| NoEndpoint {
                reason: Reason::NoHealthyUpstream,
                detail: match wanted.subset {
                    Some(subset) => format!(
                        "subset {} of service {} has no ready endpoint",
                        subset.name, wanted.service.key
                    ),
                    None => format!("service {} has no ready endpoint", wanted.service.key),
                },
            })
    }

    fn pick<'a>(&self, pool: &[Candidate<'a>], wanted: &Wanted<'_>) -> Option<Candidate<'a>> {
        match wanted.balancer {
            // Consecutive numbers as dice give every endpoint its turns in order.
            LoadBalancer::RoundRobin => balance::pick(pool, self.turn(wanted)),
            LoadBalancer::Random => balance::pick(pool, wanted.dice),
            LoadBalancer::LeastRequest => {
                let one = balance::pick(pool, wanted.dice)?;
                let two = balance::pick(pool, next_dice(wanted.dice))?;
                let load = |c: &Candidate<'_>| self.open_requests(&c.endpoint.workload.uid);
                Some(if load(&two) < load(&one) { two } else { one })
            }
        }
    }

    fn turn(&self, wanted: &Wanted<'_>) -> u64 {
        let mut next = self.next.borrow_mut();
        if next.len() > MOST_ENTRIES {
            next.clear();
        }
        let subset = wanted.subset.map(|s| s.name.clone());
        let key = (wanted.service.key.clone(), subset, wanted.port);
        // Workers start at different places, or all would begin with the same endpoint.
        let turn = next.entry(key).or_insert(wanted.dice);
        *turn = turn.wrapping_add(1);
        *turn
    }

    fn open_requests(&self, uid: &Str) -> usize {
        self.busy.borrow().get(uid).map_or(0, |count| count.get())
    }

    /// Counts a request at this endpoint until the returned value is dropped.
    #[must_use]
    pub fn busy(&self, uid: &Str) -> Busy {
        let mut busy = self.busy.borrow_mut();
        if busy.len() > MOST_ENTRIES {
            busy.retain(|_, count| count.get() > 0);
        }
        let count = busy.entry(uid.clone()).or_default().clone();
        count.set(count.get() + 1);
        Busy(count)
    }
}

fn allowed<'a>(
    view: &View,
    wanted: &Wanted<'_>,
    mut all: Vec<Candidate<'a>>,
) -> Vec<Candidate<'a>> {
    let own_service = crate::target::names_us(view, wanted.service);
    if let Some(only) = OnlyAccount::of(view).filter(|_| own_service) {
        all.retain(|c| only.has(&c.endpoint.workload));
    }
    if let Some(subset) = wanted.subset {
        all.retain(|c| {
            let labels = view.tables.labels(&c.endpoint.workload.uid);
            subset.contains(labels.map(|l| &**l))
        });
    }
    all
}

fn endpoint_of(candidate: Candidate<'_>, source: &Workload) -> Option<Endpoint> {
    let workload = &candidate.endpoint.workload;
    let v4 = source.addresses.first().is_none_or(IpAddr::is_ipv4);
    let ip = workload
        .addresses
        .iter()
        .find(|ip| ip.is_ipv4() == v4)
        .or_else(|| workload.addresses.first())?;
    Some(Endpoint {
        workload: workload.clone(),
        address: SocketAddr::new(*ip, candidate.port),
    })
}
