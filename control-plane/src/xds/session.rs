use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use isobar_types::discovery::MORE;
use isobar_types::{Str, converted};

use super::allowance::Names;
use super::catalog::{Catalog, Resource, Scope};
use super::kind::Kind;
use super::portion::{self, PORTION};
use super::subscription::{InFlight, Subscription, beginning};

/// How long the first addresses wait for a client to subscribe to the kinds that go before them.
pub(crate) const SUBSCRIPTION_GRACE: Duration = Duration::from_secs(1);

/// How much of a type that is not served is told back, in bytes.
const TYPE: usize = 200;

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// The client asked for a type that is not served.
    #[error("type {0:?} is not served here")]
    UnknownType(String),
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
    pub(crate) resources: Arc<[Arc<Resource>]>,
    /// Names the client must forget; clients apply them after the resources.
    pub(crate) removed: Vec<Str>,
}

/// One client's delta discovery stream, without the stream: what it asked for, what it holds, what
/// is on the way. Pure: time comes as an argument.
#[derive(Debug)]
pub(crate) struct Session {
    scope: Scope,
    expected: &'static [Kind],
    /// Bytes of resources in one response.
    pub(super) portion: usize,
    started: Instant,
    subscriptions: [Option<Subscription>; Kind::ALL.len()],
    nonces: u64,
    confirmed: u64,
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
            portion: PORTION,
            started: now,
            subscriptions: [const { None }; Kind::ALL.len()],
            nonces: 0,
            confirmed: 0,
        }
    }

    /// Takes a request: subscription change, acknowledgement or refusal.
    pub(crate) fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        now: Instant,
    ) -> Result<Option<Kind>, SessionError> {
        let kind = Kind::from_url(&request.type_url).ok_or_else(|| {
            SessionError::UnknownType(beginning(&request.type_url, TYPE).to_owned())
        })?;
        let slot = &mut self.subscriptions[kind.index()];
        let first = slot.is_none();
        let subscription = slot.get_or_insert_default();
        let asks = &request.resource_names_subscribe;
        if first || !asks.is_empty() || !request.resource_names_unsubscribe.is_empty() {
            subscription.pending.with = None;
        }
        if first {
            subscription.wildcard = request.resource_names_subscribe.is_empty();
            subscription.claim(request);
        }
        subscription.change(request, first);
        if first && !subscription.wildcard {
            subscription.adopt(request);
        }
        subscription.answer(request, now);
        Ok(first.then_some(kind))
    }

    /// Names kept of what the client has said.
    pub(crate) fn kept(&self) -> Names {
        let subscriptions = self.subscriptions.iter().flatten();
        subscriptions.map(|subscription| subscription.kept).sum()
    }

    /// The next response to send now, if any. Call again until `None`.
    pub(crate) fn next(&mut self, catalog: &Catalog, now: Instant) -> Option<Response> {
        if catalog.revision == 0 {
            return None;
        }
        self.refresh(catalog);
        self.confirm(catalog);
        Kind::ALL
            .into_iter()
            .find_map(|kind| self.next_of(kind, catalog, now))
    }

    /// Newest revision of which the client has taken or refused all addresses.
    pub(crate) const fn confirmed(&self) -> u64 {
        self.confirmed
    }

    fn confirm(&mut self, catalog: &Catalog) {
        let Some(state) = &self.subscriptions[Kind::Address.index()] else {
            return;
        };
        let idle = state.settled_once && state.in_flight.is_none();
        let revision = match idle && state.pending.adds.is_empty() {
            true => catalog.revision,
            // Where there is always something new, what was answered last counts.
            false => state.complete_revision,
        };
        self.confirmed = self.confirmed.max(revision);
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
        let mut difference = self.difference(kind, catalog);
        let is_part = portion::cut(&mut difference.resources, self.portion);
        if is_part {
            // They come after everything that is added.
            difference.removed.clear();
        }
        let first = !subscription.answered;
        if difference.resources.is_empty() && difference.removed.is_empty() && !first {
            return None;
        }
        self.nonces += 1;
        let response = Response {
            kind,
            nonce: match is_part {
                true => format!("{:x}-{}{MORE}", catalog.revision, self.nonces),
                false => format!("{:x}-{}", catalog.revision, self.nonces),
            },
            revision: catalog.revision,
            resources: difference.resources.into(),
            removed: difference.removed,
        };
        let subscription = self.subscriptions[kind.index()].as_mut()?;
        let response = subscription.personal(response, catalog);
        subscription.answered |= !is_part;
        // The answer decides whether they are still to be sent.
        let adds = &mut subscription.pending.adds;
        if adds.len() == response.resources.len() {
            adds.clear();
        } else {
            for resource in &*response.resources {
                adds.remove(&resource.name);
            }
        }
        subscription.in_flight = Some(InFlight {
            nonce: response.nonce.clone(),
            revision: response.revision,
            is_part,
            is_all: subscription.pending.adds.is_empty(),
            sent: now,
            with: subscription.pending.with.clone(),
            resources: response.resources.clone(),
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
            self.removals(kind, catalog)
        } else {
            Vec::new()
        };
        Difference { resources, removed }
    }

    /// Removals of a kind wait until the kinds after it are up to date: also those that wait for a
    /// policy themselves, for until then the client has workloads that name what is to go.
    fn may_remove(&self, kind: Kind, catalog: &Catalog) -> bool {
        if kind == Kind::Authorization && self.waits_for_policies(catalog) {
            return false;
        }
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
                let mut adds = state.pending.adds.values();
                if let Some(resource) = adds.find(|resource| resource.is_too_long()) {
                    state.error.get_or_insert_with(|| portion::told(resource));
                }
            }
        }
    }

    fn additions(&self, kind: Kind, catalog: &Catalog) -> Vec<Arc<Resource>> {
        let pending = self.subscription(kind).map(|state| &state.pending.adds);
        pending
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|resource| !self.withheld(resource, catalog))
            .cloned()
            .collect()
    }

    fn has_additions(&self, kind: Kind, catalog: &Catalog) -> bool {
        self.subscription(kind).is_some_and(|state| {
            let adds = &state.pending.adds;
            adds.values()
                .any(|resource| !self.withheld(resource, catalog))
        })
    }

    /// A client skips policies that it does not know, so a workload that names one waits until the
    /// client has acknowledged it.
    fn withheld(&self, resource: &Resource, catalog: &Catalog) -> bool {
        if resource.is_too_long() {
            return true;
        }
        let Some(policies) = self.subscription(Kind::Authorization) else {
            return false;
        };
        resource
            .needs
            .iter()
            .any(|key| catalog.authorizations.contains_key(key) && policies.held.get(key).is_none())
    }

    /// True if an address waits for a policy that the client has not refused.
    fn waits_for_policies(&self, catalog: &Catalog) -> bool {
        let Some(policies) = self.subscription(Kind::Authorization) else {
            return false;
        };
        let is_due = |key: &Str| {
            let policy = catalog.authorizations.get(key);
            policy.is_some_and(|policy| !policy.is_too_long())
                && policies.held.get(key).is_none()
                && !policies.rejected.contains_key(key)
        };
        self.subscription(Kind::Address).is_some_and(|state| {
            let adds = state.pending.adds.values();
            adds.flat_map(|resource| &resource.needs).any(is_due)
        })
    }

    fn removals(&self, kind: Kind, catalog: &Catalog) -> Vec<Str> {
        let Some(state) = self.subscription(kind) else {
            return Vec::new();
        };
        // A client that refuses a policy keeps the workloads of before, and what those name has to
        // stay with it. What is made for workloads is in force for nobody else.
        let keeps = kind == Kind::Authorization
            && self.subscription(Kind::Address).is_some_and(|addresses| {
                let mut adds = addresses.pending.adds.values();
                adds.any(|resource| self.withheld(resource, catalog))
            });
        let of_workloads = |name: &Str| {
            let name = name.split_once('/').map_or(&**name, |(_, name)| name);
            name.starts_with(converted::NETWORK_POLICY) || name.starts_with(converted::WAYPOINT)
        };
        let gone = state.pending.gone.iter();
        gone.filter(|name| !(keeps && of_workloads(name)))
            .cloned()
            .collect()
    }
}
