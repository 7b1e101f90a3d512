//! The objects as proxies see them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_control_plane::{ForeignAddress, Started, Told, imagined, told_by};
use isobar_objects::enrolment::EnrolmentRules;
use isobar_objects::{ObjectHead as _, ObjectSet};
use isobar_route::Tables;
use isobar_state::{GatewayAddress, GatewayDestination, Service, Snapshot, Workload};
use isobar_types::NetworkAddress;

use crate::answer::{Outcome, Way};
use crate::caller::Caller;
use crate::left_out::{LeftOut, counting};
use crate::names::cluster_ips;

/// A mesh to ask questions about.
#[derive(Debug)]
pub struct World {
    pub(crate) objects: ObjectSet,
    pub(crate) snapshot: Snapshot,
    /// Whose pods node agents take into the mesh.
    pub(crate) enrolment: EnrolmentRules,
    /// Namespace of what is for the whole mesh.
    root: String,
    /// Policies that do not count.
    left_out: Vec<LeftOut>,
    /// By the host name of the waypoint's Service.
    waypoints: BTreeMap<String, Tables>,
    /// Waypoints that somebody else runs, and where they are reached.
    foreign: Vec<(String, ForeignAddress)>,
    problems: Vec<String>,
}

impl World {
    /// The mesh of these objects, with the pods that they name.
    #[must_use]
    pub fn of(objects: ObjectSet) -> Self {
        Self::by(&Started::default(), objects)
    }

    /// The same, as a control plane has it that was started so: what does not count for it is left out.
    #[must_use]
    pub fn by(started: &Started, objects: ObjectSet) -> Self {
        let (objects, left_out) = counting(started, objects);
        let told = told_by(started, &objects);
        let mut problems = Vec::new();
        let snapshot = snapshot(&told, &mut problems);
        let all = || told.waypoints.iter();
        let foreign = all().filter_map(|(name, told)| Some((name.clone(), told.foreign.clone()?)));
        let foreign = foreign.collect();
        let ours = all().filter(|(_, waypoint)| waypoint.foreign.is_none());
        let waypoints = ours.map(|(_, waypoint)| {
            let tables = tables(waypoint, &mut problems);
            (waypoint.waypoint.hostname.to_ascii_lowercase(), tables)
        });
        let waypoints = waypoints.collect();
        problems.extend(
            told.complaints
                .iter()
                .map(|(object, text)| format!("{object}: {text}")),
        );
        Self {
            objects,
            snapshot,
            enrolment: started.enrolment().clone(),
            root: started.root_namespace().to_owned(),
            left_out,
            waypoints,
            foreign,
            problems,
        }
    }

    /// The mesh as it would be if everything that these objects ask for ran: every Deployment's pods,
    /// every waypoint, all ready.
    #[must_use]
    pub fn imagined(objects: &ObjectSet) -> Self {
        Self::of(imagined(objects))
    }

    /// What is not in force as it is written: an object and a sentence.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Policies that do not count and are where one about the call would be: in the root namespace, and
    /// where what is called (by one of `addresses`) and its waypoints are.
    pub(crate) fn left_out_for(
        &self,
        caller: &Caller,
        addresses: &[SocketAddr],
        ways: &[Way],
    ) -> Vec<LeftOut> {
        let mut namespaces = BTreeSet::from([&*self.root]);
        for address in addresses {
            let at = NetworkAddress::new("".into(), address.ip());
            let service = self
                .snapshot
                .service_by_vip(&at, Some(&*caller.workload.namespace));
            let workload = self.snapshot.workload_by_address(&at);
            namespaces.extend(service.map(|service| &*service.key.namespace));
            namespaces.extend(workload.map(|workload| &*workload.namespace));
            let of_service = service
                .into_iter()
                .flat_map(|service| service.accepted_waypoints());
            let of_workload = workload.and_then(|workload| workload.waypoint.as_ref());
            namespaces.extend(of_service.chain(of_workload).filter_map(namespace_of));
        }
        namespaces.extend(ways.iter().flat_map(|way| reached(&way.outcome)));
        let all = self.left_out.iter();
        let there = all.filter(|one| namespaces.contains(&*one.policy.namespace));
        there.cloned().collect()
    }

    /// A pod by its name, whatever else is called so or has its address.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let end = format!("//Pod/{namespace}/{name}");
        self.snapshot
            .workloads()
            .find(|one| one.uid.ends_with(&end))
    }

    /// The pod at an address, as networks know it.
    pub(crate) fn pod_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let at = NetworkAddress::new("".into(), ip);
        let mut there = self.snapshot.workloads_at(&at).iter();
        // What is told by ServiceEntries and WorkloadEntries is on no node.
        there.find(|one| !one.node.is_empty())
    }

    /// A Service of Kubernetes by its name.
    pub(crate) fn cluster_service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.objects.services.get(namespace, name)?;
        let begin = format!("{name}.{namespace}.svc.");
        let is = |s: &&Arc<Service>| {
            *s.key.namespace == *namespace && s.key.hostname.starts_with(&begin) && s.canonical
        };
        self.snapshot.services().find(is)
    }

    /// The Service of Kubernetes that has an address: all there is to who is outside the mesh.
    pub(crate) fn cluster_service_at(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        let mut all = self.objects.services.iter();
        let held = all.find(|held| cluster_ips(&held.object).any(|own| own == ip))?;
        self.cluster_service(held.object.namespace(), held.object.name())
    }

    /// What the waypoint that `workload` is an instance of was told.
    pub(crate) fn tables_of(&self, workload: &Workload) -> Option<&Tables> {
        let mut hosts = workload.services.keys();
        hosts.find_map(|key| self.waypoints.get(&*key.hostname))
    }

    /// Name of the waypoint that `workload` is an instance of, if somebody else runs it.
    pub(crate) fn foreign(&self, workload: &Workload) -> Option<&str> {
        let mut all = self.foreign.iter();
        let found = all.find(|(_, at)| match at {
            ForeignAddress::Host {
                namespace,
                hostname,
            } => {
                let mut services = workload.services.keys();
                *workload.hostname == **hostname
                    || services
                        .any(|key| *key.hostname == **hostname && *key.namespace == **namespace)
            }
            ForeignAddress::Ip(ip) => {
                let services = workload.services.keys();
                let mut services = services.filter_map(|key| self.snapshot.service(key));
                workload.addresses.contains(ip)
                    || services.any(|service| service.vips.iter().any(|vip| vip.ip == *ip))
            }
        });
        found.map(|(name, _)| name.as_str())
    }

    /// The workload as it is known now.
    pub(crate) fn workload<'a>(&'a self, workload: &'a Arc<Workload>) -> &'a Arc<Workload> {
        let now = self.snapshot.workload_by_uid(&workload.uid);
        now.unwrap_or(workload)
    }
}

fn namespace_of(waypoint: &GatewayAddress) -> Option<&str> {
    match &waypoint.destination {
        GatewayDestination::Hostname(host) => Some(&host.namespace),
        GatewayDestination::Address(_) => None,
    }
}

/// Namespaces of the pods that get a call.
fn reached(outcome: &Outcome) -> impl Iterator<Item = &str> {
    let pods = match outcome {
        Outcome::Reaches { pods, .. } => &pods[..],
        _ => &[],
    };
    pods.iter().filter_map(|pod| Some(pod.split_once('/')?.0))
}

fn snapshot(told: &Told, problems: &mut Vec<String>) -> Snapshot {
    let mut draft = Snapshot::default().draft();
    let mut failed = |error: Result<(), isobar_state::ConvertError>| {
        problems.extend(error.err().map(|error| error.to_string()));
    };
    for policy in &told.authorizations {
        failed(draft.upsert_authorization(policy));
    }
    for address in &told.addresses {
        failed(draft.upsert_address(address));
    }
    for policy in &told.outbound {
        failed(draft.upsert_outbound_policy(policy));
    }
    draft.finish()
}

fn tables(told: &isobar_control_plane::ToldWaypoint, problems: &mut Vec<String>) -> Tables {
    let mut draft = Tables::default().draft();
    let mut failed = |error: Result<(), isobar_route::ResourceError>| {
        problems.extend(error.err().map(|error| error.to_string()));
    };
    failed(draft.set_waypoint(&told.waypoint));
    for labels in &told.labels {
        draft.upsert_labels(labels);
    }
    for service in &told.virtual_services {
        failed(draft.upsert_virtual_service(service));
    }
    for rule in &told.destination_rules {
        failed(draft.upsert_destination_rule(rule));
    }
    for policy in &told.authorizations {
        draft.upsert_policy(policy);
    }
    for limits in &told.rate_limits {
        failed(draft.upsert_rate_limits(limits));
    }
    draft.finish()
}
