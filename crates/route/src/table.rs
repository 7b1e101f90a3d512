use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use isobar_proto::isobar::v1 as proto;
use isobar_types::{NamespacedHostname, NamespacedName, Str};

use crate::authorization::Policy;
use crate::call::Labels;
use crate::destination_rule::{Combined, DestinationRule, NO_RULES, Subset};
use crate::listener::Listener;
use crate::log_form::Lines;
use crate::path::Normalization;
use crate::rate_limit::RateLimits;
use crate::traces::Tracing;
use crate::traffic::TrafficRules;
use crate::virtual_service::VirtualService;

/// Parts that the labels are kept in: a change of one workload copies one part.
const LABEL_PARTS: usize = 256;

type LabelPart = HashMap<Str, Arc<Labels>, RandomState>;

/// A resource that cannot be used as it is. The rest stays in force, and so does the last good form
/// of the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {object}: {field}: {problem}")]
pub struct ResourceError {
    /// Kind of the object.
    pub kind: &'static str,
    /// `namespace/name`.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// What is wrong.
    pub problem: String,
}

/// What a waypoint knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaypointInfo {
    /// The Gateway object.
    pub name: NamespacedName,
    /// Host name that services and workloads refer to.
    pub hostname: Str,
    /// Takes traffic addressed to services.
    pub for_services: bool,
    /// Takes traffic addressed to workloads.
    pub for_workloads: bool,
    /// The account whose workloads it serves; `None` for a namespace waypoint.
    pub account: Option<Str>,
    /// Ports of a gateway at the edge of the mesh.
    pub listeners: Vec<Arc<Listener>>,
    /// Services whose own waypoint sees what comes through this gateway.
    pub through_waypoint: BTreeSet<NamespacedHostname>,
    /// What is done with lines for requests and connections.
    pub lines: Lines,
    /// How far paths are normalised.
    pub paths: Normalization,
    /// Where spans of requests go; `None`: there are none.
    pub tracing: Option<Tracing>,
}

impl WaypointInfo {
    /// A listener by its name.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|one| &*one.name == name)
    }
}

/// One immutable version of everything beyond workloads and services. Cloning copies pointers.
#[derive(Debug, Clone)]
pub struct Tables {
    version: u64,
    waypoint: Option<Arc<WaypointInfo>>,
    labels: Arc<[Arc<LabelPart>]>,
    virtual_services: Arc<BTreeMap<NamespacedName, Arc<VirtualService>>>,
    destination_rules: Arc<BTreeMap<NamespacedName, Arc<DestinationRule>>>,
    policies: Arc<BTreeMap<NamespacedName, Arc<Policy>>>,
    rate_limits: Arc<BTreeMap<NamespacedName, Arc<RateLimits>>>,
    index: Arc<Index>,
}

type ByHost<T> = HashMap<NamespacedHostname, T, RandomState>;

/// What is derived from the objects, by service.
#[derive(Debug, Default)]
struct Index {
    routes: ByHost<Vec<Arc<VirtualService>>>,
    rules: ByHost<Combined>,
    policies: ByHost<Vec<Arc<Policy>>>,
    whole: Vec<Arc<Policy>>,
    /// Some policy is an audit or a dry run.
    observes: bool,
    rates: ByHost<Vec<Arc<RateLimits>>>,
    rates_of_all: Vec<Arc<RateLimits>>,
}

impl Default for Tables {
    fn default() -> Self {
        let empty = Arc::new(LabelPart::default());
        Self {
            version: 0,
            waypoint: None,
            labels: (0..LABEL_PARTS).map(|_| Arc::clone(&empty)).collect(),
            virtual_services: Arc::default(),
            destination_rules: Arc::default(),
            policies: Arc::default(),
            rate_limits: Arc::default(),
            index: Arc::default(),
        }
    }
}

impl Tables {
    /// Starts the next version.
    #[must_use]
    pub fn draft(&self) -> Draft {
        Draft {
            next: self.clone(),
            reindex: false,
        }
    }

    /// Grows by one with each finished draft.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The waypoint's own description, once received.
    #[must_use]
    pub fn waypoint(&self) -> Option<&Arc<WaypointInfo>> {
        self.waypoint.as_ref()
    }

    /// Labels of a workload by uid.
    #[must_use]
    pub fn labels(&self, uid: &str) -> Option<&Arc<Labels>> {
        self.labels[part_of(uid)].get(uid)
    }

    /// Number of workloads with labels.
    #[must_use]
    pub fn labelled_workloads(&self) -> usize {
        self.labels.iter().map(|part| part.len()).sum()
    }

    /// All `VirtualService`s, by name.
    pub fn virtual_services(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.virtual_services.values()
    }

    /// The `VirtualService`s of a service, the oldest first, then by namespace and name.
    #[must_use]
    pub fn virtual_services_of(&self, service: &NamespacedHostname) -> &[Arc<VirtualService>] {
        self.index.routes.get(service).map_or(&[], Vec::as_slice)
    }

    /// Names of all `DestinationRule`s with their hosts.
    pub fn destination_rules(&self) -> impl Iterator<Item = (&NamespacedName, &str)> {
        self.destination_rules
            .values()
            .map(|r| (&r.name, r.host.as_str()))
    }

    /// Names of the `DestinationRule`s of a service, the oldest first.
    #[must_use]
    pub fn destination_rules_of(&self, service: &NamespacedHostname) -> &[NamespacedName] {
        self.index.rules.get(service).map_or(&[], |c| &c.names)
    }

    /// The subsets of a service.
    #[must_use]
    pub fn subsets(&self, service: &NamespacedHostname) -> &[Arc<Subset>] {
        self.index.rules.get(service).map_or(&[], |c| &c.subsets)
    }

    /// One subset of a service.
    #[must_use]
    pub fn subset(&self, service: &NamespacedHostname, name: &str) -> Option<&Arc<Subset>> {
        self.subsets(service).iter().find(|s| &*s.name == name)
    }

    /// Traffic rules of a service, or of one of its subsets, at one of its ports.
    #[must_use]
    pub fn traffic<'a>(
        &'a self,
        service: &NamespacedHostname,
        subset: Option<&'a Subset>,
        port: u16,
    ) -> &'a Arc<TrafficRules> {
        match (subset, self.index.rules.get(service)) {
            (Some(subset), _) => subset.traffic.at(port),
            (None, Some(combined)) => combined.traffic.at(port),
            (None, None) => &NO_RULES,
        }
    }

    /// All policies, by name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// True if no policy was written, changed or removed between `other` and this.
    #[must_use]
    pub fn same_policies(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policies, &other.policies)
    }

    /// The policies that apply to a service (or, for `None`, to a pod's own address).
    pub fn policies_of(
        &self,
        service: Option<&NamespacedHostname>,
    ) -> impl Iterator<Item = &Arc<Policy>> {
        let own = service.and_then(|s| self.index.policies.get(s));
        self.index.whole.iter().chain(own.into_iter().flatten())
    }

    /// True if some policy is an audit or a dry run.
    #[must_use]
    pub fn observes(&self) -> bool {
        self.index.observes
    }

    /// All rate limits, by name.
    pub fn rate_limits(&self) -> impl Iterator<Item = &Arc<RateLimits>> {
        self.rate_limits.values()
    }

    /// The rate limits that apply to a service (or, for `None`, to a pod's own address).
    pub fn rate_limits_of(
        &self,
        service: Option<&NamespacedHostname>,
    ) -> impl Iterator<Item = &Arc<RateLimits>> {
        let own = service.and_then(|s| self.index.rates.get(s));
        let all = &self.index.rates_of_all;
        all.iter().chain(own.into_iter().flatten())
    }

    pub(crate) fn has_policies(&self, service: Option<&NamespacedHostname>) -> bool {
        self.policies_of(service).next().is_some()
    }
}

fn part_of(uid: &str) -> usize {
    // FNV-1a: stable, cheap, and a bad spread only costs a larger copy.
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from(hash % LABEL_PARTS as u64).unwrap_or(0)
}

/// The next version of [`Tables`] in the making.
#[derive(Debug)]
pub struct Draft {
    next: Tables,
    reindex: bool,
}

impl Draft {
    /// Replaces the waypoint's own description.
    ///
    /// # Errors
    /// When the kind of traffic or the form of paths is not known to this version, or a port cannot be
    /// opened as it is told; the draft is unchanged.
    pub fn set_waypoint(&mut self, from: &proto::Waypoint) -> Result<(), ResourceError> {
        use proto::waypoint::Traffic;
        let object = format!("{}/{}", from.namespace, from.name);
        let unknown = |field: &str, problem: String| ResourceError {
            kind: "Waypoint",
            object: object.clone(),
            field: field.into(),
            problem,
        };
        let traffic = Traffic::try_from(from.traffic).map_err(|_| {
            let problem = format!("{} is not a kind of traffic", from.traffic);
            unknown("traffic", problem)
        })?;
        let paths = Normalization::compile(from.path_normalization).ok_or_else(|| {
            let problem = format!("{} is no form of paths", from.path_normalization);
            unknown("path_normalization", problem)
        })?;
        let listeners = from.listeners.iter();
        let listeners = listeners.map(|one| Listener::compile(one, &object).map(Arc::new));
        let through = from.through_waypoint.iter().map(|one| NamespacedHostname {
            namespace: one.namespace.as_str().into(),
            hostname: one.hostname.as_str().into(),
        });
        self.next.waypoint = Some(Arc::new(WaypointInfo {
            listeners: listeners.collect::<Result<_, _>>()?,
            through_waypoint: through.collect(),
            lines: Lines::compile(from.access_log.as_ref()),
            paths,
            tracing: Tracing::compile(from.tracing.as_ref()),
            name: NamespacedName {
                namespace: from.namespace.as_str().into(),
                name: from.name.as_str().into(),
            },
            hostname: from.hostname.to_ascii_lowercase().into(),
            for_services: matches!(traffic, Traffic::Service | Traffic::All),
            for_workloads: matches!(traffic, Traffic::Workload | Traffic::All),
            account: Some(from.for_service_account.as_str())
                .filter(|a| !a.is_empty())
                .map(Into::into),
        }));
        Ok(())
    }

    /// Forgets the waypoint's own description: it serves nothing until it gets another.
    pub fn clear_waypoint(&mut self) {
        self.next.waypoint = None;
    }

    /// Adds or replaces the labels of a workload.
    pub fn upsert_labels(&mut self, from: &proto::WorkloadLabels) {
        let labels = Arc::new(from.labels.clone());
        self.part_mut(&from.uid)
            .insert(from.uid.as_str().into(), labels);
    }

    /// Forgets the labels of a workload.
    pub fn remove_labels(&mut self, uid: &str) {
        if self.next.labels(uid).is_some() {
            self.part_mut(uid).remove(uid);
        }
    }

    fn part_mut(&mut self, uid: &str) -> &mut LabelPart {
        Arc::make_mut(&mut Arc::make_mut(&mut self.next.labels)[part_of(uid)])
    }

    /// Adds or replaces a `VirtualService`.
    ///
    /// # Errors
    /// Names the field that cannot be used; the draft is unchanged.
    pub fn upsert_virtual_service(
        &mut self,
        from: &proto::VirtualService,
    ) -> Result<(), ResourceError> {
        let object = Arc::new(VirtualService::compile(from)?);
        Arc::make_mut(&mut self.next.virtual_services).insert(object.name.clone(), object);
        self.reindex = true;
        Ok(())
    }

    /// Adds or replaces a `DestinationRule`.
    ///
    /// # Errors
    /// Names the field that cannot be used; the draft is unchanged.
    pub fn upsert_destination_rule(
        &mut self,
        from: &proto::DestinationRule,
    ) -> Result<(), ResourceError> {
        let object = Arc::new(DestinationRule::compile(from)?);
        Arc::make_mut(&mut self.next.destination_rules).insert(object.name.clone(), object);
        self.reindex = true;
        Ok(())
    }

    /// Adds or replaces a policy. Never fails: see [`Policy`].
    pub fn upsert_policy(&mut self, from: &proto::Authorization) {
        let object = Arc::new(Policy::compile(from));
        Arc::make_mut(&mut self.next.policies).insert(object.name.clone(), object);
        self.reindex = true;
    }

    /// Adds or replaces rate limits.
    ///
    /// # Errors
    /// Names the field that cannot be used; the draft is unchanged.
    pub fn upsert_rate_limits(
        &mut self,
        from: &proto::RateLimitPolicy,
    ) -> Result<(), ResourceError> {
        let object = Arc::new(RateLimits::compile(from)?);
        Arc::make_mut(&mut self.next.rate_limits).insert(object.name.clone(), object);
        self.reindex = true;
        Ok(())
    }

    /// Removes rate limits by resource name.
    pub fn remove_rate_limits(&mut self, name: &str) {
        self.reindex |= remove(&mut self.next.rate_limits, name);
    }

    /// Removes a `VirtualService` by resource name (`namespace/name`).
    pub fn remove_virtual_service(&mut self, name: &str) {
        self.reindex |= remove(&mut self.next.virtual_services, name);
    }

    /// Removes a `DestinationRule` by resource name.
    pub fn remove_destination_rule(&mut self, name: &str) {
        self.reindex |= remove(&mut self.next.destination_rules, name);
    }

    /// Removes a policy by resource name.
    pub fn remove_policy(&mut self, name: &str) {
        self.reindex |= remove(&mut self.next.policies, name);
    }

    /// The finished version.
    #[must_use]
    pub fn finish(mut self) -> Tables {
        if self.reindex {
            self.next.index = Arc::new(index(&self.next));
        }
        self.next.version += 1;
        self.next
    }
}

fn remove<T>(map: &mut Arc<BTreeMap<NamespacedName, Arc<T>>>, name: &str) -> bool {
    NamespacedName::parse(name)
        .filter(|key| map.contains_key(key))
        .is_some_and(|key| Arc::make_mut(map).remove(&key).is_some())
}

fn index(tables: &Tables) -> Index {
    let mut index = Index::default();
    // The maps are ordered by name, so sorting by age alone leaves names as the second key.
    let mut by_age: Vec<_> = tables.virtual_services.values().collect();
    by_age.sort_by_key(|object| object.created);
    for object in by_age {
        for parent in &object.parents {
            let list = index.routes.entry(parent.clone()).or_default();
            if list.iter().all(|have| have.name != object.name) {
                list.push(Arc::clone(object));
            }
        }
    }
    let mut by_age: Vec<_> = tables.destination_rules.values().collect();
    by_age.sort_by_key(|object| object.created);
    let mut of: HashMap<NamespacedHostname, Vec<&DestinationRule>> = HashMap::new();
    for object in by_age {
        for service in &object.services {
            of.entry(service.clone()).or_default().push(object);
        }
    }
    let combined = of.into_iter();
    index.rules = combined
        .map(|(service, rules)| (service, Combined::of(&rules)))
        .collect();
    for limits in tables.rate_limits.values() {
        if limits.whole_waypoint {
            index.rates_of_all.push(Arc::clone(limits));
            continue;
        }
        for service in &limits.services {
            let list = index.rates.entry(service.clone()).or_default();
            list.push(Arc::clone(limits));
        }
    }
    index.observes = tables.policies.values().any(|policy| policy.observes());
    for policy in tables.policies.values() {
        if policy.whole_waypoint {
            index.whole.push(Arc::clone(policy));
            continue;
        }
        for service in &policy.services {
            let list = index.policies.entry(service.clone()).or_default();
            list.push(Arc::clone(policy));
        }
    }
    index
}

#[cfg(test)]
mod tests;
