use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use isobar_types::Str;

use super::catalog::{Catalog, Resource, Resources, Scope};
use super::kind::Kind;
use super::names::{AddressNames, with_aliases};

/// How long the first addresses wait for a client to subscribe to the kinds that go before them.
pub(crate) const SUBSCRIPTION_GRACE: Duration = Duration::from_secs(1);
/// Names one client may ask for by name, per kind.
const MAX_NAMES: usize = 65_536;

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// The client asked for a type that is not served.
    #[error("type {0:?} is not served here")]
    UnknownType(String),
    /// The client asked for more names than are kept.
    #[error("more than {MAX_NAMES} names asked for one type")]
    TooManyNames,
}

/// What to send; the caller encodes it.
#[derive(Debug)]
pub(crate) struct Response {
    /// Type of everything in it.
    pub(crate) kind: Kind,
    /// Unique in the session.
    pub(crate) nonce: String,
    /// Version of the catalog it was made from, for display.
    pub(crate) revision: u64,
    /// Added or changed, in sending order.
    pub(crate) resources: Vec<Arc<Resource>>,
    /// Names the client must forget; clients apply them after the resources.
    pub(crate) removed: Vec<Str>,
}

/// One client's delta discovery stream, without the stream: what it asked for, what it holds, what
/// is on the way. Pure: time comes as an argument.
#[derive(Debug)]
pub(crate) struct Session {
    scope: Scope,
    expected: &'static [Kind],
    started: Instant,
    subscriptions: [Option<Subscription>; Kind::ALL.len()],
    nonces: u64,
}

/// State of one type in one session.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    wildcard: bool,
    names: BTreeSet<Str>,
    /// Names that an answer is owed for, even if the client holds what they lead to.
    asked: BTreeSet<Str>,
    /// Names asked for that do not exist, and of which the client has been told so.
    absent: HashSet<Str>,
    /// Versions the client has acknowledged, or claimed when it connected.
    held: HashMap<Str, u64>,
    /// Versions the client has refused.
    rejected: HashMap<Str, u64>,
    in_flight: Option<InFlight>,
    pending: Pending,
    answered: bool,
    settled_once: bool,
    /// Last time the client acknowledged.
    pub(crate) acked: Option<Instant>,
    /// Revision last acknowledged.
    pub(crate) acked_revision: u64,
    /// Text of the last refusal, until the next acknowledgement.
    pub(crate) error: Option<String>,
}

/// What the client does not hold as it is, kept until either side changes.
#[derive(Debug, Default)]
struct Pending {
    /// What it was compared with; none when it has to be compared again.
    with: Option<Arc<Resources>>,
    adds: Vec<Arc<Resource>>,
    gone: Vec<Str>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    revision: u64,
    sent: Instant,
    resources: Vec<(Str, u64)>,
    removed: Vec<Str>,
}

/// How far one type has come, for `isobar status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing subscribed or nothing sent.
    NotSent,
    /// Acknowledged, nothing outstanding.
    Synced,
    /// Something is outstanding, since that moment.
    Stale,
    /// The client refused something.
    Error,
}

struct Difference {
    resources: Vec<Arc<Resource>>,
    removed: Vec<Str>,
}

impl Session {
    /// A session of a client with `scope` that is expected to subscribe to `expected`.
    pub(crate) fn new(scope: Scope, expected: &'static [Kind], now: Instant) -> Self {
        Self {
            scope,
            expected,
            started: now,
            subscriptions: [const { None }; Kind::ALL.len()],
            nonces: 0,
        }
    }

    /// Takes a request: subscription change, acknowledgement or refusal.
    pub(crate) fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        now: Instant,
    ) -> Result<Option<Kind>, SessionError> {
        let kind = Kind::from_url(&request.type_url)
            .ok_or_else(|| SessionError::UnknownType(request.type_url.clone()))?;
        let slot = &mut self.subscriptions[kind.index()];
        let first = slot.is_none();
        let subscription = slot.get_or_insert_default();
        subscription.pending.with = None;
        if first {
            subscription.wildcard = request.resource_names_subscribe.is_empty();
            subscription.claim(request);
        }
        subscription.change(request, first)?;
        if first && !subscription.wildcard {
            subscription.adopt(request);
        }
        subscription.answer(request, now);
        Ok(first.then_some(kind))
    }

    /// The next response to send now, if any. Call again until `None`.
    pub(crate) fn next(&mut self, catalog: &Catalog, now: Instant) -> Option<Response> {
        if catalog.revision == 0 {
            return None;
        }
        self.refresh(catalog);
        Kind::ALL
            .into_iter()
            .find_map(|kind| self.next_of(kind, catalog, now))
    }

    /// When to call [`Session::next`] again even if nothing happens.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let end = self.started + SUBSCRIPTION_GRACE;
        (now < end && !self.expected_subscribed()).then_some(end)
    }

    /// State of a type, if the client subscribed to it.
    pub(crate) fn subscription(&self, kind: Kind) -> Option<&Subscription> {
        self.subscriptions[kind.index()].as_ref()
    }

    /// How far `kind` has come.
    pub(crate) fn progress(&self, kind: Kind, catalog: &Catalog) -> Progress {
        let Some(subscription) = self.subscription(kind) else {
            return Progress::NotSent;
        };
        if subscription.error.is_some() {
            return Progress::Error;
        }
        if !subscription.answered {
            return Progress::NotSent;
        }
        if self.outstanding(kind, catalog) {
            Progress::Stale
        } else {
            Progress::Synced
        }
    }

    /// Kinds this client is expected to subscribe to.
    pub(crate) fn expected(&self) -> &'static [Kind] {
        self.expected
    }

    /// Gives a client its scope once it is known.
    pub(crate) fn rescope(&mut self, scope: Scope, expected: &'static [Kind]) {
        self.scope = scope;
        self.expected = expected;
        for subscription in self.subscriptions.iter_mut().flatten() {
            subscription.pending.with = None;
        }
    }

    fn expected_subscribed(&self) -> bool {
        self.expected
            .iter()
            .all(|kind| self.subscriptions[kind.index()].is_some())
    }

    fn next_of(&mut self, kind: Kind, catalog: &Catalog, now: Instant) -> Option<Response> {
        let subscription = self.subscription(kind)?;
        // A waypoint whose Gateway is not known yet waits: an empty answer would read as "no rules".
        catalog.resources(&self.scope, kind)?;
        if subscription.in_flight.is_some() || !self.may_add(kind, catalog, now) {
            return None;
        }
        let difference = self.difference(kind, catalog);
        let first = !subscription.answered;
        if difference.resources.is_empty() && difference.removed.is_empty() && !first {
            return None;
        }
        self.nonces += 1;
        let response = Response {
            kind,
            nonce: format!("{:x}-{}", catalog.revision, self.nonces),
            revision: catalog.revision,
            resources: difference.resources,
            removed: difference.removed,
        };
        let subscription = self.subscriptions[kind.index()].as_mut()?;
        let response = subscription.personal(response, catalog);
        subscription.answered = true;
        subscription.in_flight = Some(InFlight {
            nonce: response.nonce.clone(),
            revision: response.revision,
            sent: now,
            resources: response
                .resources
                .iter()
                .map(|r| (r.name.clone(), r.version))
                .collect(),
            removed: response.removed.clone(),
        });
        Some(response)
    }

    /// Additions of a kind wait for those of the kinds before it. Towards a node proxy the wait is
    /// per resource (see [`Self::withheld`]), after the first answer of each kind is settled.
    fn may_add(&self, kind: Kind, catalog: &Catalog, now: Instant) -> bool {
        let waited = now >= self.started + SUBSCRIPTION_GRACE;
        let by_resource = kind == Kind::Address && self.scope.waypoint.is_none();
        Kind::ALL[..kind.index()]
            .iter()
            .all(|earlier| match self.subscription(*earlier) {
                None => waited || !self.expected.contains(earlier),
                Some(state) if !state.settled_once => false,
                Some(_) if by_resource => true,
                Some(state) => state.in_flight.is_none() && !self.has_additions(*earlier, catalog),
            })
    }

    fn difference(&self, kind: Kind, catalog: &Catalog) -> Difference {
        let mut resources = self.additions(kind, catalog);
        resources.sort_by(|a, b| (a.rank, &a.name).cmp(&(b.rank, &b.name)));
        let removed = if self.may_remove(kind, catalog) {
            self.removals(kind)
        } else {
            Vec::new()
        };
        Difference { resources, removed }
    }

    /// Removals of a kind wait until the kinds after it are up to date.
    fn may_remove(&self, kind: Kind, catalog: &Catalog) -> bool {
        Kind::ALL[kind.index() + 1..].iter().all(|later| {
            self.subscription(*later).is_none_or(|state| {
                state.in_flight.is_none() && !self.has_additions(*later, catalog)
            })
        })
    }

    fn outstanding(&self, kind: Kind, catalog: &Catalog) -> bool {
        self.subscription(kind)
            .is_some_and(|s| s.in_flight.is_some())
            || self.has_additions(kind, catalog)
            || self
                .subscription(kind)
                .is_some_and(|s| !s.pending.gone.is_empty())
    }

    /// Compares what clients hold with what there is, for kinds in which either changed.
    fn refresh(&mut self, catalog: &Catalog) {
        for kind in Kind::ALL {
            let all = catalog.resources(&self.scope, kind);
            if let (Some(state), Some(all)) = (&mut self.subscriptions[kind.index()], all) {
                let named = kind == Kind::Address && !state.wildcard;
                let names = named.then(|| catalog.address_names());
                state.compare(all, names, self.scope.node.as_deref());
            }
        }
    }

    fn additions(&self, kind: Kind, catalog: &Catalog) -> Vec<Arc<Resource>> {
        let pending = self.subscription(kind).map(|state| &state.pending.adds);
        pending
            .into_iter()
            .flatten()
            .filter(|resource| !self.withheld(resource, catalog))
            .cloned()
            .collect()
    }

    fn has_additions(&self, kind: Kind, catalog: &Catalog) -> bool {
        self.subscription(kind).is_some_and(|state| {
            let adds = &state.pending.adds;
            adds.iter()
                .any(|resource| !self.withheld(resource, catalog))
        })
    }

    /// A client skips policies that it does not know, so a workload that names one waits until the
    /// client has acknowledged it.
    fn withheld(&self, resource: &Resource, catalog: &Catalog) -> bool {
        let Some(policies) = self.subscription(Kind::Authorization) else {
            return false;
        };
        resource
            .needs
            .iter()
            .any(|key| catalog.authorizations.contains_key(key) && !policies.held.contains_key(key))
    }

    fn removals(&self, kind: Kind) -> Vec<Str> {
        self.subscription(kind)
            .map(|state| state.pending.gone.clone())
            .unwrap_or_default()
    }
}

impl Subscription {
    /// Age of what has been sent and not been answered.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|flight| flight.sent)
    }

    /// Number of resources the client holds.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    fn compare(&mut self, all: &Arc<Resources>, names: Option<&AddressNames>, node: Option<&str>) {
        if let Some(with) = &self.pending.with
            && Arc::ptr_eq(with, all)
        {
            return;
        }
        let none = AddressNames::default();
        let names = names.unwrap_or(&none);
        let exists = |name: &Str| names.called(all, name).next().is_some();
        self.absent.retain(|name| !exists(name));
        let adds = if self.wildcard {
            let changed = all.values().filter(|resource| self.wants(resource));
            changed.cloned().collect()
        } else {
            self.named(all, names, node)
        };
        let gone = self.held.keys().filter(|name| !all.contains_key(*name));
        let unknown = self
            .names
            .iter()
            .filter(|name| !exists(name) && !self.absent.contains(*name))
            .filter(|name| !self.held.contains_key(*name));
        let mut gone: Vec<Str> = gone.chain(unknown).cloned().collect();
        gone.sort_unstable();
        self.pending = Pending {
            with: Some(all.clone()),
            adds,
            gone,
        };
    }

    /// True if the client neither holds nor refuses this version.
    fn wants(&self, resource: &Resource) -> bool {
        let version = Some(&resource.version);
        self.held.get(&resource.name) != version && self.rejected.get(&resource.name) != version
    }

    /// What to send a client that asks by name: what the names lead to and the workloads of services
    /// among it, those of its node, and what it holds besides.
    fn named(
        &self,
        all: &Resources,
        names: &AddressNames,
        node: Option<&str>,
    ) -> Vec<Arc<Resource>> {
        let mut adds = BTreeMap::new();
        for name in &self.names {
            let owed = self.asked.contains(name);
            for resource in names.called(all, name) {
                if owed || self.wants(resource) {
                    adds.insert(&resource.name, resource);
                }
                let members = names.members(all, &resource.name);
                adds.extend(members.filter(|r| self.wants(r)).map(|r| (&r.name, r)));
            }
        }
        let here = node.into_iter().flat_map(|node| names.on_node(all, node));
        let held = self.held.keys().filter_map(|name| all.get(name));
        let more = here.chain(held).filter(|r| self.wants(r));
        adds.extend(more.map(|r| (&r.name, r)));
        adds.into_values().cloned().collect()
    }

    /// Notes which names `response` answers, and says so in it.
    fn personal(&mut self, mut response: Response, catalog: &Catalog) -> Response {
        if response.kind != Kind::Address || self.wildcard {
            self.asked.clear();
            return response;
        }
        let sent: HashSet<_> = response.resources.iter().map(|r| &r.name).collect();
        let names = catalog.address_names();
        self.asked.retain(|name| {
            let mut leads_to = names.called(&catalog.addresses, name).peekable();
            match leads_to.peek() {
                Some(_) => !leads_to.all(|resource| sent.contains(&resource.name)),
                None => !response.removed.contains(name),
            }
        });
        for resource in &mut response.resources {
            *resource = with_aliases(resource, &self.names);
        }
        response
    }

    /// What a client that asks by name says it holds, it asks for; without a version it only asks.
    fn adopt(&mut self, request: &DeltaDiscoveryRequest) {
        for (name, version) in &request.initial_resource_versions {
            let name: Str = name.as_str().into();
            if version.is_empty() {
                self.held.remove(&name);
                self.asked.insert(name.clone());
            }
            self.names.insert(name);
        }
    }

    fn claim(&mut self, request: &DeltaDiscoveryRequest) {
        for (name, version) in &request.initial_resource_versions {
            // A version that is not ours can equal none of ours; 0 stands for it.
            let version = u64::from_str_radix(version, 16).unwrap_or(0);
            self.held.insert(name.as_str().into(), version);
        }
    }

    fn change(&mut self, request: &DeltaDiscoveryRequest, first: bool) -> Result<(), SessionError> {
        for name in &request.resource_names_subscribe {
            if name == "*" {
                self.wildcard = true;
            } else {
                let name: Str = name.as_str().into();
                self.absent.remove(&name);
                if !first || !self.held.contains_key(&name) {
                    self.asked.insert(name.clone());
                }
                self.names.insert(name);
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
            } else {
                self.names.remove(name.as_str());
                self.absent.remove(name.as_str());
                self.asked.remove(name.as_str());
                if !self.wildcard {
                    self.held.remove(name.as_str());
                }
            }
        }
        if self.names.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames);
        }
        Ok(())
    }

    fn answer(&mut self, request: &DeltaDiscoveryRequest, now: Instant) {
        if request.response_nonce.is_empty() {
            return;
        }
        let Some(flight) = self
            .in_flight
            .take_if(|flight| flight.nonce == request.response_nonce)
        else {
            return;
        };
        self.settled_once = true;
        for name in flight.removed {
            self.held.remove(&name);
            self.rejected.remove(&name);
            if self.names.contains(&name) {
                self.absent.insert(name);
            }
        }
        let Some(error) = &request.error_detail else {
            for (name, version) in flight.resources {
                self.rejected.remove(&name);
                self.held.insert(name, version);
            }
            self.acked = Some(now);
            self.acked_revision = flight.revision;
            self.error = (!self.rejected.is_empty())
                .then(|| self.error.take())
                .flatten();
            return;
        };
        // Clients apply what they can and name what they refuse. One that names nothing we sent
        // is taken to have refused everything.
        let named = |name: &str| error.message.contains(name);
        let any = flight.resources.iter().any(|(name, _)| named(name));
        for (name, version) in flight.resources {
            if !any || named(&name) {
                self.rejected.insert(name, version);
            } else {
                self.held.insert(name, version);
            }
        }
        self.error = Some(error.message.clone());
    }
}
