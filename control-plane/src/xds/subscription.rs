use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use isobar_types::Str;

use super::allowance::Names;
use super::catalog::{Catalog, Resource};
use super::held::Held;
use super::kind::Kind;
use super::names::{AddressNames, with_aliases};
use super::resources::Resources;
use super::session::Response;

/// How much is kept of what a client says about a refusal, in bytes; enough for a page.
const ERROR: usize = 4096;

/// State of one type in one session.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    pub(super) wildcard: bool,
    /// What of the fields below comes from the client: names asked for, and versions claimed, which
    /// count as long as the subscription is there.
    pub(super) kept: Names,
    pub(super) names: BTreeSet<Str>,
    /// Names that an answer is owed for, even if the client holds what they lead to.
    pub(super) asked: BTreeSet<Str>,
    /// Names asked for that do not exist, and of which the client has been told so.
    pub(super) absent: HashSet<Str>,
    /// Versions the client has acknowledged, or claimed when it connected.
    pub(super) held: Held,
    /// Versions the client has refused.
    pub(super) rejected: HashMap<Str, u64>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) pending: Pending,
    pub(super) answered: bool,
    pub(super) settled_once: bool,
    /// Last time the client acknowledged.
    pub(crate) acked: Option<Instant>,
    /// Revision last acknowledged.
    pub(crate) acked_revision: u64,
    /// Newest revision of which everything has been answered.
    pub(super) complete_revision: u64,
    /// Text of the last refusal, until the next acknowledgement.
    pub(crate) error: Option<String>,
}

/// What the client does not hold as it is and is not on the way either, kept until one side changes.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// What it was compared with; none when everything has to be compared again.
    pub(super) with: Option<Arc<Resources>>,
    /// Names to be compared again in any case.
    pub(super) again: Vec<Str>,
    pub(super) adds: BTreeMap<Str, Arc<Resource>>,
    pub(super) gone: BTreeSet<Str>,
}

/// A response that was sent and not answered.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) nonce: String,
    pub(super) revision: u64,
    /// More follows when it is answered.
    pub(super) is_part: bool,
    /// Nothing that the client lacks is left out.
    pub(super) is_all: bool,
    pub(super) sent: Instant,
    /// What the client was compared with.
    pub(super) with: Option<Arc<Resources>>,
    pub(super) resources: Arc<[Arc<Resource>]>,
    pub(super) removed: Vec<Str>,
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

    pub(super) fn compare(
        &mut self,
        all: &Arc<Resources>,
        names: Option<&AddressNames>,
        node: Option<&str>,
    ) {
        let again = std::mem::take(&mut self.pending.again);
        if let Some(with) = self.pending.with.clone() {
            if again.is_empty() && Arc::ptr_eq(&with, all) {
                return;
            }
            if self.wants_all()
                && let Some(changed) = all.changes_since(&with)
            {
                let names: BTreeSet<&Str> = changed.chain(&again).collect();
                for name in names {
                    self.look(name, all);
                }
                self.forget_refusals(all);
                self.compared(all);
                return;
            }
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
        let gone = self.held.names().filter(|name| !all.contains_key(name));
        let unknown = self
            .names
            .iter()
            .filter(|name| !exists(name) && !self.absent.contains(*name))
            .filter(|name| self.held.get(name).is_none());
        self.pending.gone = gone.chain(unknown).cloned().collect();
        let adds = adds.into_iter().map(|one| (one.name.clone(), one));
        self.pending.adds = adds.collect();
        self.forget_refusals(all);
        self.compared(all);
    }

    /// A refusal of what is gone is over: no acknowledgement will ever come that ends it.
    fn forget_refusals(&mut self, all: &Resources) {
        if self.rejected.is_empty() {
            return;
        }
        self.rejected.retain(|name, _| all.contains_key(name));
        if self.rejected.is_empty() {
            self.error = None;
        }
    }

    /// True if names play no part: what there is, is what the client should hold.
    fn wants_all(&self) -> bool {
        self.wildcard && self.names.is_empty()
    }

    /// Compares one resource.
    fn look(&mut self, name: &Str, all: &Resources) {
        let present = all.get(name);
        if let Some(resource) = present.filter(|resource| self.wants(resource)) {
            self.pending.adds.insert(name.clone(), resource.clone());
        } else {
            self.pending.adds.remove(name);
        }
        if present.is_none() && self.held.get(name).is_some() {
            self.pending.gone.insert(name.clone());
        } else {
            self.pending.gone.remove(name);
        }
    }

    /// Notes that `all` was compared. A client that holds exactly that needs no list of its own.
    fn compared(&mut self, all: &Arc<Resources>) {
        self.pending.with = Some(all.clone());
        let caught_up = self.pending.adds.is_empty() && self.pending.gone.is_empty();
        if caught_up && self.wants_all() && self.in_flight.is_none() && self.rejected.is_empty() {
            self.held.settle(all);
        }
    }

    /// True if the client neither holds nor refuses this version.
    fn wants(&self, resource: &Resource) -> bool {
        let version = resource.version;
        self.held.get(&resource.name) != Some(version)
            && self.rejected.get(&resource.name) != Some(&version)
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
        let held = self.held.names().filter_map(|name| all.get(name));
        let more = here.chain(held).filter(|r| self.wants(r));
        adds.extend(more.map(|r| (&r.name, r)));
        adds.into_values().cloned().collect()
    }

    /// Notes which names `response` answers, and says so in it.
    pub(super) fn personal(&mut self, mut response: Response, catalog: &Catalog) -> Response {
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
        let resources = response.resources.iter();
        let named = resources.map(|resource| with_aliases(resource, &self.names));
        response.resources = named.collect();
        response
    }

    /// What a client that asks by name says it holds, it asks for; without a version it only asks.
    pub(super) fn adopt(&mut self, request: &DeltaDiscoveryRequest) {
        for (name, version) in &request.initial_resource_versions {
            let name: Str = name.as_str().into();
            if version.is_empty() {
                self.held.remove(&name);
                self.asked.insert(name.clone());
            }
            self.ask(&name);
        }
    }

    fn ask(&mut self, name: &Str) {
        if self.names.insert(name.clone()) {
            self.kept.add(name);
        }
    }

    pub(super) fn claim(&mut self, request: &DeltaDiscoveryRequest) {
        for (name, version) in &request.initial_resource_versions {
            // A version that is not ours can equal none of ours; 0 stands for it.
            let version = u64::from_str_radix(version, 16).unwrap_or(0);
            self.held.insert(name.as_str().into(), version);
            self.kept.add(name);
        }
    }

    pub(super) fn change(&mut self, request: &DeltaDiscoveryRequest, first: bool) {
        for name in &request.resource_names_subscribe {
            if name == "*" {
                self.wildcard = true;
            } else {
                let asked = self.names.get(name.as_str()).cloned();
                let name = asked.unwrap_or_else(|| name.as_str().into());
                self.absent.remove(&name);
                if !first || self.held.get(&name).is_none() {
                    self.asked.insert(name.clone());
                }
                self.ask(&name);
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
            } else {
                if self.names.remove(name.as_str()) {
                    self.kept.remove(name);
                }
                self.absent.remove(name.as_str());
                self.asked.remove(name.as_str());
                if !self.wildcard {
                    self.held.remove(name.as_str());
                }
            }
        }
    }

    /// What the client holds now if it took `flight`: everything, where nothing was left over and
    /// nothing has changed since.
    fn completed_by(&self, flight: &InFlight) -> Option<Arc<Resources>> {
        let (with, pending) = (flight.with.as_ref()?, &self.pending);
        let is_now = pending
            .with
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, with));
        let is_all = pending.adds.is_empty() && pending.gone.len() == flight.removed.len();
        (is_now && is_all && self.wants_all() && self.rejected.is_empty()).then(|| with.clone())
    }

    fn acknowledged(&mut self, revision: u64, now: Instant) {
        self.acked = Some(now);
        self.acked_revision = revision;
        self.error = (!self.rejected.is_empty())
            .then(|| self.error.take())
            .flatten();
    }

    pub(super) fn answer(&mut self, request: &DeltaDiscoveryRequest, now: Instant) {
        if request.response_nonce.is_empty() {
            return;
        }
        let Some(flight) = self
            .in_flight
            .take_if(|flight| flight.nonce == request.response_nonce)
        else {
            return;
        };
        self.settled_once |= !flight.is_part;
        if flight.is_all {
            self.complete_revision = flight.revision;
        }
        if request.error_detail.is_none()
            && let Some(all) = self.completed_by(&flight)
        {
            self.held.settle(&all);
            self.pending.gone.clear();
            self.acknowledged(flight.revision, now);
            return;
        }
        if self.wants_all() {
            let sent = flight.resources.iter().map(|one| &one.name);
            self.pending.again = sent.chain(&flight.removed).cloned().collect();
        } else {
            self.pending.with = None;
        }
        for name in flight.removed {
            self.held.remove(&name);
            self.rejected.remove(&name);
            if self.names.contains(&name) {
                self.absent.insert(name);
            }
        }
        let Some(error) = &request.error_detail else {
            for resource in &*flight.resources {
                self.rejected.remove(&resource.name);
                self.held.insert(resource.name.clone(), resource.version);
            }
            self.acknowledged(flight.revision, now);
            return;
        };
        // Clients apply what they can and name what they refuse. One that names nothing we sent
        // is taken to have refused everything.
        let named = |name: &str| names(&error.message, name);
        let any = flight.resources.iter().any(|one| named(&one.name));
        for resource in &*flight.resources {
            let (name, version) = (resource.name.clone(), resource.version);
            if !any || named(&name) {
                self.rejected.insert(name, version);
            } else {
                self.held.insert(name, version);
            }
        }
        self.error = Some(beginning(&error.message, ERROR).to_owned());
    }
}

/// What of `text` fits into so many bytes.
pub(super) fn beginning(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// True if `text` has `name` as a whole, not as a part of a longer name.
fn names(text: &str, name: &str) -> bool {
    let of_name = |c: char| c.is_alphanumeric() || "-_/.".contains(c);
    let mut found = text.match_indices(name);
    found.any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let mut after = text[at + name.len()..].chars();
        let goes_on = match after.next() {
            // The end of a sentence, or more of the name.
            Some('.') => after.next().is_some_and(of_name),
            next => next.is_some_and(of_name),
        };
        !goes_on && !before.is_some_and(of_name)
    })
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::workload::Workload;

    use super::*;

    #[test]
    fn a_refusal_ends_with_what_was_refused() {
        let resource = |name| Arc::new(Resource::new(Kind::Address, name, &Workload::default()));
        let all: Arc<Resources> = Arc::new(["a", "b"].map(resource).into_iter().collect());
        for by_name in [false, true] {
            let mut state = Subscription {
                wildcard: !by_name,
                ..Subscription::default()
            };
            if by_name {
                state.names.extend(["a".into(), "b".into()]);
            }
            for one in all.values() {
                state.held.insert(one.name.clone(), one.version);
            }
            state.held.remove("b");
            state.rejected = all
                .values()
                .filter(|one| &*one.name == "b")
                .map(|one| (one.name.clone(), one.version))
                .collect();
            state.error = Some("b: too long".to_owned());
            state.compare(&all, None, None);
            assert!(state.rejected.len() == 1 && state.error.is_some());
            assert!(state.pending.adds.is_empty(), "{:?}", state.pending);
            let fewer = all.patched(Vec::new(), &["b".into()]);
            state.compare(&fewer, None, None);
            assert!(state.rejected.is_empty() && state.error.is_none());
        }
    }

    #[test]
    fn what_is_kept_is_counted_once_until_it_goes() {
        let request = |asks: &[&str], ends: &[&str]| DeltaDiscoveryRequest {
            resource_names_subscribe: asks.iter().map(|n| (*n).to_owned()).collect(),
            resource_names_unsubscribe: ends.iter().map(|n| (*n).to_owned()).collect(),
            initial_resource_versions: [("held".to_owned(), "1".to_owned())].into(),
            ..DeltaDiscoveryRequest::default()
        };
        let mut state = Subscription::default();
        state.claim(&request(&[], &[]));
        assert_eq!((state.kept.count, state.kept.bytes), (1, 4));
        for _ in 0..3 {
            state.change(&request(&["a", "bb", "*"], &["c"]), false);
            assert_eq!((state.kept.count, state.kept.bytes), (3, 7));
        }
        state.change(&request(&[], &["a", "bb", "bb", "*"]), false);
        assert_eq!((state.kept.count, state.kept.bytes), (1, 4));
    }

    #[test]
    fn a_refusal_is_about_whole_names() {
        let text = "shop/cart-2: no such port. K//Pod/shop/pay, `a/b.c`; last web/all.";
        for name in ["shop/cart-2", "K//Pod/shop/pay", "a/b.c", "web/all"] {
            assert!(names(text, name), "{name}");
        }
        for name in ["shop/cart", "cart-2", "shop/pay", "a/b", "web"] {
            assert!(!names(text, name), "{name}");
        }
    }
}
