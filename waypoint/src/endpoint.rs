//! Which endpoint of a service takes the next request; turns are kept per worker.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use isobar_route::{LoadBalancer, Place, Preference, Session, Subset, TrafficRules, Warmup};
use isobar_runtime::LocalScope;
use isobar_state::balance::{self, Candidate, Purpose, next_dice};
use isobar_state::{Service, TunnelProtocol, Workload};
use isobar_types::{NetworkAddress, Reason, Str};

use crate::cluster::{self, Cluster, ClusterKey, Clusters};
use crate::outlier;
use crate::resolved::{Answers, Asked, Missing, Resolver, told};
use crate::world::{Own, View, World};

/// One pod and port to send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Address and port of the application in it.
    pub address: SocketAddr,
}

impl Endpoint {
    /// Where its tunnels end: at the application's own address, or at the waypoint that is asked for it.
    pub(crate) fn tunnel_ip(&self) -> IpAddr {
        let asked = self.address.ip();
        let own = &self.workload.addresses;
        if own.contains(&asked) {
            return asked;
        }
        own.first().copied().unwrap_or(asked)
    }
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

impl NoEndpoint {
    fn of(wanted: &Wanted<'_>) -> Self {
        let key = &wanted.service.key;
        Self {
            reason: Reason::NoHealthyUpstream,
            detail: match wanted.subset {
                _ if key.hostname.starts_with("*.") => format!(
                    "{:?} is no host outside the mesh that service {key} stands for",
                    wanted.asked.map_or("", |asked| asked.host)
                ),
                Some(subset) => format!(
                    "subset {} of service {key} has no ready endpoint",
                    subset.name
                ),
                None => format!("service {key} has no ready endpoint"),
            },
        }
    }
}

impl Unchosen {
    fn reason(self) -> NoEndpoint {
        match self {
            Self::None(none) | Self::Names(_, none) => none,
        }
    }
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
    pub rules: &'a TrafficRules,
    /// What is remembered of the service, where the rules ask for it.
    pub cluster: Option<&'a Arc<Cluster>>,
    /// What stands for the request, where it decides.
    pub hash: Option<u64>,
    /// For whom: reachability and locality are looked at from here.
    pub source: &'a Workload,
    /// Uids that were tried before; taken again only if nothing else is left.
    pub tried: &'a [Str],
    /// Places that are farther away come before endpoints that were tried.
    pub remote: bool,
    /// The address the caller dialled, if it is one of this service: for services whose addresses
    /// stand for themselves.
    pub dialled: Option<IpAddr>,
    /// The host that the request is for, where the service stands for all of a domain.
    pub asked: Option<Asked<'a>>,
    /// Stands for the endpoint that the caller should stay with.
    pub session: Option<u64>,
    /// Any random number.
    pub dice: u64,
}

/// Turns and open requests of one worker.
#[derive(Debug)]
pub struct Turns {
    next: RefCell<HashMap<ClusterKey, u64, RandomState>>,
    clusters: Clusters,
    known: RefCell<HashMap<ClusterKey, Arc<Cluster>, RandomState>>,
    busy: RefCell<HashMap<Str, Rc<Cell<usize>>, RandomState>>,
    own: Arc<Own>,
    resolver: Resolver,
}

/// Why there is no choice.
enum Unchosen {
    /// Nothing can be sent to.
    None(NoEndpoint),
    /// These host names have to be asked for first; without them there is nothing.
    Names(Vec<Missing>, NoEndpoint),
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

impl Turns {
    /// No turn taken.
    #[must_use]
    pub fn new(world: &World, scope: Rc<LocalScope>) -> Self {
        Self {
            next: RefCell::default(),
            clusters: world.clusters.clone(),
            own: world.own.clone(),
            resolver: Resolver::new(world.names.clone(), scope),
            known: RefCell::default(),
            busy: RefCell::default(),
        }
    }

    /// What is remembered of a destination, if its rules ask for that.
    #[must_use]
    pub fn cluster(
        &self,
        rules: &TrafficRules,
        service: &Service,
        subset: Option<&Subset>,
        port: u16,
    ) -> Option<Arc<Cluster>> {
        if !cluster::remembers(rules) {
            return None;
        }
        let key = (service.key.clone(), subset.map(|s| s.name.clone()), port);
        let mut known = self.known.borrow_mut();
        if known.len() > MOST_ENTRIES {
            known.clear();
        }
        let found = known.entry(key);
        Some(
            found
                .or_insert_with_key(|key| self.clusters.get(key))
                .clone(),
        )
    }

    /// Chooses an endpoint; host names of which nothing is known are asked for first.
    ///
    /// # Errors
    /// [`Reason::NoHealthyUpstream`] if none is ready, [`Reason::NoCluster`] without such a port.
    pub async fn choose(&self, view: &View, wanted: &Wanted<'_>) -> Result<Endpoint, NoEndpoint> {
        let answers = match self.look(view, wanted, &Answers::new()) {
            Err(Unchosen::Names(names, _)) => Box::pin(self.resolver.wait(names)).await,
            found => return found.map_err(Unchosen::reason),
        };
        // With what was answered: it may be forgotten already.
        self.look(view, wanted, &answers).map_err(Unchosen::reason)
    }

    /// As [`Self::choose`], without those whose host names are not known yet.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn choose_now(&self, view: &View, wanted: &Wanted<'_>) -> Result<Endpoint, NoEndpoint> {
        self.look(view, wanted, &Answers::new())
            .map_err(Unchosen::reason)
    }

    fn look(
        &self,
        view: &View,
        wanted: &Wanted<'_>,
        answers: &Answers,
    ) -> Result<Endpoint, Unchosen> {
        if wanted.service.is_passthrough() {
            return self.itself(view, wanted).map_err(Unchosen::None);
        }
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
        });
        let mut candidates = allowed(view, wanted, all.map_err(Unchosen::None)?);
        let resolver = &self.resolver;
        let resolved = resolver.resolve(view, &mut candidates, wanted.asked, answers);
        let found = resolved.endpoints.iter();
        candidates.extend(found.map(|(endpoint, port)| Candidate {
            endpoint,
            port: *port,
        }));
        let none = || {
            let none = NoEndpoint::of(wanted);
            match resolved.missing.is_empty() {
                true => Unchosen::None(none),
                false => Unchosen::Names(resolved.missing.clone(), none),
            }
        };
        if wanted.rules.balancer() == LoadBalancer::Passthrough {
            return self.as_dialled(view, wanted, candidates).ok_or_else(none);
        }
        // Before anything else leaves some of them out: who comes back from there is not new.
        let new = new_ones(view, wanted, &candidates);
        leave_out(view, wanted, &mut candidates);
        if wanted.remote {
            fresh(wanted, &mut candidates);
        }
        // Where a try has failed is no place to stay.
        let stays = staying(wanted, &candidates).filter(|_| wanted.tried.is_empty());
        if let Some(stays) = stays {
            return Ok(stays);
        }
        nearest(view, wanted, &mut candidates);
        fresh(wanted, &mut candidates);
        self.pick(&candidates, wanted, new.as_ref())
            .and_then(|c| endpoint_of(c, wanted.source))
            .ok_or_else(none)
    }

    /// For rules that say PASSTHROUGH: the endpoint at the address that was dialled. An address of the
    /// service itself is dialled as it is where it has endpoints and all are outside the mesh; otherwise
    /// it stands for any of them, as it does without a waypoint.
    fn as_dialled(
        &self,
        view: &View,
        wanted: &Wanted<'_>,
        mut candidates: Vec<Candidate<'_>>,
    ) -> Option<Endpoint> {
        if let Some(ip) = wanted.dialled {
            let at = |c: &&Candidate<'_>| c.endpoint.workload.addresses.contains(&ip);
            if let Some(dialled) = candidates.iter().find(at) {
                return Some(Endpoint {
                    workload: dialled.endpoint.workload.clone(),
                    address: SocketAddr::new(ip, dialled.port),
                });
            }
        }
        let mut all = view.snapshot.endpoints(&wanted.service.key).peekable();
        // A cluster's service has none for a while: nothing says that it is outside.
        let outside = all.peek().is_some()
            && all.all(|one| {
                let workload = &one.workload;
                workload.tunnel == TunnelProtocol::None && workload.node.is_empty()
            });
        if outside && wanted.dialled.is_some_and(|ip| !is_given_out(ip)) {
            return self.itself(view, wanted).ok();
        }
        fresh(wanted, &mut candidates);
        let any = balance::pick(&candidates, wanted.dice)?;
        endpoint_of(any, wanted.source)
    }

    /// The address that was dialled, for services whose addresses stand for themselves.
    fn itself(&self, view: &View, wanted: &Wanted<'_>) -> Result<Endpoint, NoEndpoint> {
        let service = wanted.service;
        let target = service.ports.target(wanted.port);
        let target = target.ok_or_else(|| NoEndpoint {
            reason: Reason::NoCluster,
            detail: format!("service {} has no port {}", service.key, wanted.port),
        })?;
        let ip = wanted.dialled.ok_or_else(|| NoEndpoint {
            reason: Reason::NoHealthyUpstream,
            detail: format!(
                "the addresses of service {} stand for themselves, and the caller dialled none of them",
                service.key
            ),
        })?;
        let at = NetworkAddress::new(self.own.network.clone(), ip);
        let known = view.snapshot.workload_by_address(&at).cloned();
        let port = if target == 0 { wanted.port } else { target };
        Ok(Endpoint {
            workload: known.unwrap_or_else(|| Arc::new(self.own.elsewhere(service, ip))),
            address: SocketAddr::new(ip, port),
        })
    }

    fn pick<'a>(
        &self,
        pool: &[Candidate<'a>],
        wanted: &Wanted<'_>,
        new: Option<&Newcomers>,
    ) -> Option<Candidate<'a>> {
        if let Some(key) = wanted.hash {
            let score = |c: &Candidate<'_>| {
                let workload = &c.endpoint.workload;
                isobar_route::score(key, &workload.uid, workload.capacity)
            };
            let best = |a: &&Candidate<'_>, b: &&Candidate<'_>| score(a).total_cmp(&score(b));
            return pool.iter().max_by(best).copied();
        }
        let dice = wanted.dice;
        let chosen = self.pick_plainly(pool, wanted, dice)?;
        let Some(new) = new else {
            return Some(chosen);
        };
        let Some(age) = new.ages.get(&chosen.endpoint.workload.uid) else {
            return Some(chosen);
        };
        // A new endpoint takes its share of its turns and leaves the others to those that are not new.
        let dice = next_dice(dice);
        let drawn = f64::from(u32::try_from(dice >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        let warm = |c: &&Candidate<'_>| !new.ages.contains_key(&c.endpoint.workload.uid);
        let old: Vec<_> = pool.iter().filter(warm).copied().collect();
        if drawn < new.warmup.share(*age) || old.is_empty() {
            return Some(chosen);
        }
        balance::pick(&old, next_dice(dice))
    }

    fn pick_plainly<'a>(
        &self,
        pool: &[Candidate<'a>],
        wanted: &Wanted<'_>,
        dice: u64,
    ) -> Option<Candidate<'a>> {
        match wanted.rules.balancer() {
            // Consecutive numbers as dice give every endpoint its turns in order.
            LoadBalancer::RoundRobin => balance::pick(pool, self.turn(wanted)),
            LoadBalancer::Random | LoadBalancer::Passthrough => balance::pick(pool, dice),
            LoadBalancer::LeastRequest => {
                let one = balance::pick(pool, dice)?;
                let two = balance::pick(pool, next_dice(dice))?;
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

    /// Requests that are under way there.
    pub(crate) fn open_requests(&self, uid: &Str) -> usize {
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

/// Leaves out those that were tried, unless nothing else is left.
fn fresh(wanted: &Wanted<'_>, all: &mut Vec<Candidate<'_>>) {
    let is = |c: &Candidate<'_>| !wanted.tried.contains(&c.endpoint.workload.uid);
    if !wanted.tried.is_empty() && all.iter().any(is) {
        all.retain(is);
    }
}

/// True for addresses that the control plane gives to hosts without one: nobody is there. The ranges are
/// Istio's.
fn is_given_out(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [240, 240],
        IpAddr::V6(ip) => ip.segments()[..3] == [0x2001, 2, 0],
    }
}

/// The endpoint that a caller's session is with, if it is there.
fn staying(wanted: &Wanted<'_>, candidates: &[Candidate<'_>]) -> Option<Endpoint> {
    let number = wanted.session?;
    let is = |c: &&Candidate<'_>| Session::endpoint(&c.endpoint.workload.uid) == number;
    endpoint_of(*candidates.iter().find(is)?, wanted.source)
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

/// Endpoints that are new, and how they are warmed up.
struct Newcomers {
    warmup: Warmup,
    ages: BTreeMap<Str, Duration>,
}

fn new_ones(view: &View, wanted: &Wanted<'_>, all: &[Candidate<'_>]) -> Option<Newcomers> {
    let warmup = wanted.rules.balancing.as_ref()?.warmup?;
    let state = (view.snapshot.version(), view.tables.version());
    let there = all.iter().map(|c| &c.endpoint.workload.uid);
    let cluster = wanted.cluster?;
    let ages = cluster.new_ones(state, there, warmup.window, Instant::now())?;
    Some(Newcomers { warmup, ages })
}

/// Leaves out who fails again and again, unless too few would remain.
fn leave_out(view: &View, wanted: &Wanted<'_>, candidates: &mut Vec<Candidate<'_>>) {
    let Some(cluster) = wanted.cluster else {
        return;
    };
    let all = candidates.len();
    cluster.endpoints.store(all, Ordering::Relaxed);
    let Some(rules) = &wanted.rules.outliers else {
        return;
    };
    let Some(out) = cluster.outliers.out(Instant::now()) else {
        return;
    };
    // Who is gone must not take a place among those that may be out.
    let there = |uid: &Str| view.snapshot.workload_by_uid(told(uid)).is_some();
    cluster.outliers.keep_only(there);
    let is_in = |c: &Candidate<'_>| !out.contains(&c.endpoint.workload.uid);
    let left = candidates.iter().filter(|c| is_in(c)).count();
    if !outlier::panics(rules, all, all - left) {
        candidates.retain(is_in);
    }
}

/// Keeps those that the caller's place prefers.
fn nearest(view: &View, wanted: &Wanted<'_>, candidates: &mut Vec<Candidate<'_>>) {
    let balancing = wanted.rules.balancing.as_ref();
    let Some(rules) = balancing.and_then(|b| b.locality.as_ref()) else {
        return;
    };
    if !rules.counts(wanted.rules.outliers.is_some()) {
        return;
    }
    let caller = place(view, wanted.source);
    let preference =
        |c: &Candidate<'_>| rules.preference(&caller, &place(view, &c.endpoint.workload));
    let mut rank = u32::MAX;
    let mut shares: BTreeMap<usize, u32> = BTreeMap::new();
    for candidate in candidates.iter() {
        match preference(candidate) {
            Preference::Rank(own) => rank = rank.min(own),
            Preference::Share(group, share) => {
                shares.insert(group, share);
            }
            Preference::Never => {}
        }
    }
    let total: u64 = shares.values().map(|share| u64::from(*share)).sum();
    let mut left = next_dice(wanted.dice).checked_rem(total).unwrap_or(0);
    let group = shares.iter().find(|(_, share)| {
        let share = u64::from(**share);
        let here = left < share;
        left = left.saturating_sub(share);
        here
    });
    let group = group.map(|(group, _)| *group);
    candidates.retain(|c| match preference(c) {
        Preference::Rank(own) => own == rank,
        Preference::Share(own, _) => Some(own) == group,
        Preference::Never => false,
    });
}

fn place<'a>(view: &'a View, workload: &'a Workload) -> Place<'a> {
    let locality = &workload.locality;
    Place {
        region: &locality.region,
        zone: &locality.zone,
        subzone: &locality.subzone,
        labels: view
            .tables
            .labels(told(&workload.uid))
            .map(|labels| &**labels),
    }
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

#[cfg(test)]
mod tests;
