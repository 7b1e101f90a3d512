//! Plans brought up to date where only pods have changed.
//!
//! Pods come, go and become ready all the time; everything else changes when somebody changes it.
//! What one pod decides about others is little: whether a waypoint is ready, whose address selectors
//! of NetworkPolicies admit, which account a bound Service has, what is told about policies. Where
//! a change touches none of that, only the pod itself is planned again; otherwise everything is. The
//! rule is always [`plan`](super::plan): the same comes out, and tests hold this against it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_objects::{Change, Held, Kind, ObjectHead, ObjectRef, ObjectSet, Pod};
use isobar_types::{NamespacedName, labels};
use xxhash_rust::xxh64::xxh64;

use super::authorization::L4Policies;
use super::bindings::Bindings;
use super::gateways::waypoints;
use super::ingress;
use super::network_policy::{Standing, Standings, as_peer};
use super::peer_authentication::PeerAuthentications;
use super::plan::{Plan, record};
use super::pods::PodFacts;
use super::presence;
use super::room::{Room, listed};
use super::selection::Selection;
use super::service_entries::concern_entries;
use super::services::{ServicePlan, selects};
use super::settings::Settings;
use super::slices;
use super::workloads::{Membership, WorkloadPlan, plan_workload, uid, waypoints_of};
use crate::ca::PodRecord;

/// With more pods at once, planning everything is no more work.
const MOST: usize = 512;

/// How many pods have the same to do with waypoints and policies.
pub(crate) type Relations = HashMap<u64, usize>;

/// Counts what workloads have to do with waypoints and policies.
pub(crate) fn relations(
    workloads: &[WorkloadPlan],
    any_waypoint: bool,
    objects: &ObjectSet,
) -> Relations {
    let mut relations = Relations::new();
    let both = |one: &WorkloadPlan| {
        [
            relation(one, any_waypoint),
            presence::relation(one, objects),
        ]
    };
    for relation in workloads.iter().flat_map(both).flatten() {
        *relations.entry(relation).or_default() += 1;
    }
    relations
}

/// What is kept of a plan to bring it up to date.
pub(crate) struct Kept {
    planned: Instant,
    objects: Arc<ObjectSet>,
    services: Arc<Plan>,
    bindings: Bindings,
    /// Pods that a Gateway may be ready by.
    of_waypoints: Vec<NamespacedName>,
    relations: Relations,
    /// Keys of policies made from NetworkPolicies, by the class of pods that have them.
    network_keys: HashMap<u64, String>,
    room: Room,
}

/// One pod, planned.
#[derive(Default)]
struct Planned {
    workload: Option<WorkloadPlan>,
    standing: Standing,
    /// As one that NetworkPolicies let in or out.
    peer: Option<u64>,
}

/// What follows from changed pods.
pub(crate) struct Patch {
    /// The pods.
    pub(crate) pods: Vec<PatchedPod>,
    /// Objects besides pods have changed that nothing is served from.
    pub(crate) others: bool,
}

/// One changed pod.
pub(crate) struct PatchedPod {
    /// `namespace/name`.
    pub(crate) key: NamespacedName,
    /// Name of its workload.
    pub(crate) uid: String,
    /// What becomes of its workload.
    pub(crate) workload: Outcome,
    /// Its labels, while it has an address.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// For the certificate authority; none for one that has finished or is gone.
    pub(crate) record: Option<PodRecord>,
}

/// What becomes of a workload.
pub(crate) enum Outcome {
    /// It stays as it was.
    Same,
    /// It is new or another.
    Put(Box<WorkloadPlan>),
    /// It is gone.
    Gone,
}

/// What a pod is planned with, the same for all pods of a namespace.
struct Surroundings<'a> {
    selection: &'a Selection<'a>,
    l4: L4Policies<'a>,
    peers: &'a PeerAuthentications<'a>,
}

impl Kept {
    /// Keeps what is needed of a plan that was just made from `objects`. `relations` are those of its
    /// workloads.
    pub(crate) fn of(
        objects: Arc<ObjectSet>,
        plan: Arc<Plan>,
        mut relations: Relations,
        standings: Standings,
    ) -> Self {
        for (relation, count) in standings.counts {
            *relations.entry(relation).or_default() += count;
        }
        let pods = objects.pods.iter();
        let labelled = pods.filter(|pod| serves_others(pod.namespace(), pod.labels(), &objects));
        Self {
            planned: Instant::now(),
            of_waypoints: labelled.map(|pod| key(&pod.reference())).collect(),
            bindings: Bindings {
                accounts: plan.accounts.clone(),
                ..Bindings::default()
            },
            room: plan.room.clone(),
            services: plan,
            relations,
            network_keys: standings.keys,
            objects,
        }
    }

    /// Since everything was planned.
    pub(crate) fn age(&self) -> Duration {
        self.planned.elapsed()
    }

    /// The plan this is about; what is told to proxies is not in it any more.
    pub(crate) const fn plan(&self) -> &Arc<Plan> {
        &self.services
    }

    /// What follows from `objects`, which are the new ones; `None` if everything has to be planned,
    /// and then this must not be used any more.
    pub(crate) fn patch(&mut self, objects: &Arc<ObjectSet>, settings: &Settings) -> Option<Patch> {
        let before = std::mem::replace(&mut self.objects, objects.clone());
        let changes = objects.changes_since(&before);
        let is_pod = |change: &Change| change.object.known() == Some(Kind::Pod);
        let (pods, others): (Vec<Change>, Vec<Change>) = changes.into_iter().partition(is_pod);
        if pods.len() > MOST || !others.iter().all(|one| is_apart(one, &before, objects)) {
            return None;
        }
        let of_waypoints = self.of_waypoints.iter().filter_map(|key| {
            let pod = objects.pods.get(&key.namespace, &key.name)?;
            PodFacts::read(&pod.object)
        });
        let of_waypoints: Vec<PodFacts<'_>> = of_waypoints.collect();
        let gateways = waypoints(objects, &of_waypoints, settings);
        let selection = Selection {
            set: objects,
            settings,
            gateways: &gateways,
            bindings: &self.bindings,
        };
        let peers = PeerAuthentications::read(objects, &settings.root_namespace);
        let any = !gateways.is_empty();
        let mut changed: HashMap<u64, isize> = HashMap::new();
        let mut patched = Vec::with_capacity(pods.len());
        for change in &pods {
            let object = &change.object;
            let (old, new) = (held(&before, object), held(objects, object));
            let facts = [old, new].map(|pod| pod.and_then(|pod| PodFacts::read(&pod.object)));
            let [old, new] = &facts;
            if !self.is_alone(old.as_ref(), new.as_ref(), objects)
                || slices::name_pods(objects, &object.namespace)
            {
                return None;
            }
            let uid = uid(&settings.cluster_id, &key(object));
            let around = Surroundings {
                selection: &selection,
                l4: L4Policies::selecting(objects, &settings.root_namespace, &object.namespace),
                peers: &peers,
            };
            let planned = |pod: &PodFacts<'_>| self.planned(pod, &around);
            let was = old.as_ref().map(planned).unwrap_or_default();
            let is = new.as_ref().map(planned).unwrap_or_default();
            let listed =
                [&was, &is].map(|one| one.workload.as_ref().map_or(0, |o| listed(&o.wire)));
            let fits = self.room.change(&object.namespace, listed[0], listed[1]);
            if !fits || !self.is_same_neighbour(&was, &is, &object.namespace) {
                return None;
            }
            for (planned, count) in [(&was, -1), (&is, 1)] {
                let workload = planned.workload.as_ref();
                let Standing { class, ways } = planned.standing;
                let relation = workload.and_then(|one| relation(one, any));
                let presence = workload.and_then(|one| presence::relation(one, objects));
                for relation in [relation, presence, class, ways].into_iter().flatten() {
                    *changed.entry(relation).or_default() += count;
                }
            }
            let both = (was.workload, is.workload);
            patched.push(patched_pod(key(object), uid, both, new.as_ref()));
        }
        self.follow(changed).then_some(Patch {
            pods: patched,
            others: !others.is_empty(),
        })
    }

    /// True if what became of this pod decides about nothing but itself.
    fn is_alone(
        &self,
        old: Option<&PodFacts<'_>>,
        new: Option<&PodFacts<'_>>,
        set: &ObjectSet,
    ) -> bool {
        let both = [old, new].into_iter().flatten();
        let Some(any) = old.or(new) else {
            return true;
        };
        let namespace = &any.key.namespace;
        let pair = old.zip(new);
        let same = |is_same: fn(&PodFacts<'_>, &PodFacts<'_>) -> bool| {
            pair.is_some_and(|(old, new)| is_same(old, new))
        };
        let of_waypoint = both
            .clone()
            .any(|pod| serves_others(namespace, pod.labels, set));
        // Whose endpoint it is, and as which account.
        let selected_as_before =
            same(|old, new| old.labels == new.labels && old.account == new.account);
        let is_bound = || {
            let mut bound = self.bindings.accounts.keys();
            bound.any(|account| account.namespace == *namespace)
        };
        let has_entries = || {
            let mut entries = set.service_entries.iter();
            entries.any(|entry| {
                let selects = entry.spec.workload_selector.is_some();
                selects && entry.namespace() == &**namespace
            })
        };
        // An entry or endpoint must not describe the address of another namespace's pod.
        let same_address =
            same(|old, new| old.ips == new.ips && old.host_network() == new.host_network());
        !of_waypoint
            && (selected_as_before || !is_bound())
            && (set.network_policies.is_empty() || set.namespaces.get("", namespace).is_some())
            && !has_entries()
            && (same_address || !both.into_iter().any(|pod| concern_entries(set, &pod.ips)))
    }

    /// True if other pods' policies, and what is told about NetworkPolicies, do not change with it.
    /// Classes that come or go are counted elsewhere.
    fn is_same_neighbour(&self, was: &Planned, is: &Planned, namespace: &str) -> bool {
        let names_pods = || {
            let mut remedies = self.services.remedies.iter();
            remedies.any(|remedy| remedy.after.namespace() == namespace)
        };
        was.peer == is.peer && (was.standing.class == is.standing.class || !names_pods())
    }

    fn planned(&self, pod: &PodFacts<'_>, around: &Surroundings<'_>) -> Planned {
        let set = around.selection.set;
        let mut of = Membership::default();
        for service in set.services.in_namespace(&pod.key.namespace) {
            if selects(service, pod.labels)
                && let Some(plan) = self.service(service.namespace(), service.name())
                && plan.takes(pod)
            {
                of.join(pod, plan, service);
            }
        }
        let mut policies = around.l4.keys_for(pod);
        policies.extend(around.peers.key_for(pod));
        let (mut standing, mut peer) = (Standing::default(), None);
        if !set.network_policies.is_empty() {
            let waypoints = waypoints_of(pod, Some(&of), around.selection);
            standing = Standing::of(around.selection, pod, &waypoints);
            peer = as_peer(around.selection, pod, &waypoints);
            let class = standing.class.as_ref();
            policies.extend(class.and_then(|class| self.network_keys.get(class).cloned()));
        }
        Planned {
            workload: plan_workload(pod, of, policies, around.selection),
            standing,
            peer,
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&ServicePlan> {
        let all = &self.services.services;
        let wanted = (namespace, name);
        let at = all.binary_search_by(|one| (&*one.key.namespace, &*one.key.name).cmp(&wanted));
        all.get(at.ok()?)
    }

    /// Counts relations anew; false if one is new or was the last of its kind: what is told about
    /// policies, and which of them there are, may then be otherwise.
    fn follow(&mut self, changed: HashMap<u64, isize>) -> bool {
        for (relation, by) in changed.into_iter().filter(|(_, by)| *by != 0) {
            let count = self.relations.entry(relation).or_default();
            let next = count.saturating_add_signed(by);
            if *count == 0 || next == 0 {
                return false;
            }
            *count = next;
        }
        true
    }
}

fn patched_pod(
    key: NamespacedName,
    uid: String,
    (was, is): (Option<WorkloadPlan>, Option<WorkloadPlan>),
    new: Option<&PodFacts<'_>>,
) -> PatchedPod {
    let workload = match (was, is) {
        (None, None) => Outcome::Same,
        (Some(_), None) => Outcome::Gone,
        (Some(was), Some(is)) if was.wire == is.wire => Outcome::Same,
        (_, Some(is)) => Outcome::Put(Box::new(is)),
    };
    PatchedPod {
        key,
        uid,
        workload,
        labels: new
            .filter(|pod| !pod.ips.is_empty())
            .map(|pod| pod.labels.clone()),
        record: new.map(record),
    }
}

fn held<'s>(set: &'s ObjectSet, object: &ObjectRef) -> Option<&'s Held<Pod>> {
    let pod = set.pods.get(&object.namespace, &object.name);
    pod.map(|pod| &**pod)
}

fn key(object: &ObjectRef) -> NamespacedName {
    NamespacedName {
        namespace: object.namespace.clone(),
        name: object.name.clone(),
    }
}

/// True for the labels of a pod that may be a waypoint's or at the edge of the mesh.
fn serves_others(namespace: &str, all: &BTreeMap<String, String>, set: &ObjectSet) -> bool {
    let mut edges = set.istio_gateways.in_namespace(namespace);
    all.contains_key(labels::GATEWAY_NAME) || edges.any(|edge| ingress::selects(&edge.object, all))
}

/// True for changes that nothing follows from: of Deployments, whose pods count, and of Nodes that
/// are where they were.
fn is_apart(change: &Change, old: &ObjectSet, new: &ObjectSet) -> bool {
    match change.object.known() {
        Some(Kind::Deployment) => true,
        Some(Kind::Node) => {
            let node = |set: &'_ ObjectSet| {
                let node = &set.nodes.get("", &change.object.name)?.object;
                let status = node.status.as_ref();
                let addresses = status.and_then(|status| status.addresses.clone());
                Some((node.labels().clone(), addresses))
            };
            node(old).is_some() && node(old) == node(new)
        }
        _ => false,
    }
}

/// What a workload has to do with waypoints and policies, as a number; the same for those that have
/// the same. None where there is nothing of the kind.
fn relation(workload: &WorkloadPlan, any_waypoint: bool) -> Option<u64> {
    let wire = &workload.wire;
    if (!any_waypoint && workload.only_through.is_none()) || workload.instance_of.is_some() {
        return None;
    }
    let services: Vec<&String> = wire.services.keys().collect();
    let text = format!(
        "{:?}",
        (
            &wire.namespace,
            &wire.authorization_policies,
            &wire.waypoint,
            services,
            &workload.only_through,
        )
    );
    Some(xxh64(text.as_bytes(), 0))
}
