//! Plain text that no proxy of ours takes at its sender: to whom it is outside the mesh, there are the
//! Services and pods of Kubernetes and nothing else.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_objects::pods::probed_ports;
use isobar_state::balance::{Purpose, endpoints};
use isobar_state::{Peer, TunnelProtocol, Workload};
use isobar_types::Reason;

use crate::answer::{Outcome, Step, Way};
use crate::caller::Caller;
use crate::destination::Destination;
use crate::node::{arrive, at_home, dropped_on_the_way};
use crate::world::World;

/// Who opens a plain connection.
pub(crate) struct Sender<'a> {
    /// The pod.
    pub(crate) workload: &'a Workload,
    /// Its address.
    pub(crate) ip: IpAddr,
    /// Where it is decided that it is plain, and why.
    pub(crate) place: String,
    pub(crate) because: String,
    /// A pod of its node's network that may run as root.
    pub(crate) may_probe: bool,
}

/// A call of a caller that is not captured.
pub(crate) fn outside_the_mesh(world: &World, caller: &Caller, to: &Destination) -> Vec<Way> {
    if let Some(way) = at_home(caller, to) {
        return vec![way];
    }
    let sender = Sender {
        workload: &caller.workload,
        ip: caller.ip,
        place: format!("node {}", caller.workload.node),
        because: format!("the caller is outside the mesh: {}", caller.enrolment),
        may_probe: caller.on_host && !caller.is_unprivileged,
    };
    sender.send(world, to.address)
}

/// True for addresses that are known without the mesh.
pub(crate) fn is_of_cluster(world: &World, ip: IpAddr) -> bool {
    world.pod_at(ip).is_some() || world.cluster_service_at(ip).is_some()
}

impl Sender<'_> {
    fn step(&self, decision: &str) -> Step {
        Step::new(&self.place, decision, &self.because)
    }

    /// What becomes of a connection to this address.
    pub(crate) fn send(&self, world: &World, to: SocketAddr) -> Vec<Way> {
        if let Some(ways) = self.to_service(world, to) {
            return ways;
        }
        let before = [self.step("in plain text")];
        let way = match world.pod_at(to.ip()) {
            Some(pod) => self.to_pod(world, pod, to),
            None => {
                let from = (self.workload, self.ip);
                let dropped = dropped_on_the_way(world, from, None, to);
                let leaves = || Way::new(1.0, Vec::new(), Outcome::Leaves { to });
                dropped.unwrap_or_else(leaves)
            }
        };
        vec![way.after(1.0, &before)]
    }

    /// The cluster's own balancing over the pods of a Service.
    fn to_service(&self, world: &World, to: SocketAddr) -> Option<Vec<Way>> {
        let service = world.cluster_service_at(to.ip())?;
        let refused = |reason, detail: String| {
            let step = self.step("nobody to send it to");
            Some(vec![Way::new(
                1.0,
                vec![step],
                Outcome::closed(reason, detail),
            )])
        };
        let found = endpoints(
            &world.snapshot,
            service,
            to.port(),
            self.workload,
            Purpose::Call,
        );
        let mut all = match found {
            Ok(all) => all,
            Err(refusal) => return refused(refusal.reason, refusal.detail),
        };
        // Entries of the mesh are nothing to the cluster.
        all.retain(|one| !one.endpoint.workload.node.is_empty());
        if all.is_empty() {
            let detail = format!("no ready pod of {}", service.key);
            return refused(Reason::NoHealthyUpstream, detail);
        }
        let share = 1.0 / all.len() as f64;
        let before = [self.step("in plain text, to any ready pod")];
        let arriving = all.iter().filter_map(|candidate| {
            let pod = &candidate.endpoint.workload;
            let own = pod.addresses.iter();
            let same = own.clone().find(|ip| ip.is_ipv4() == to.is_ipv4());
            let at = SocketAddr::new(*same.or(pod.addresses.first())?, candidate.port);
            Some(self.to_pod(world, pod, at).after(share, &before))
        });
        Some(arriving.collect())
    }

    fn to_pod(&self, world: &World, pod: &Arc<Workload>, at: SocketAddr) -> Way {
        let from = (self.workload, self.ip);
        let peer = Peer {
            identity: None,
            ip: self.ip,
        };
        let dropped = dropped_on_the_way(world, from, Some(pod), at);
        dropped
            .or_else(|| self.probes(world, pod, at))
            .unwrap_or_else(|| arrive(world, pod, at, &peer))
    }

    /// What root on a node opens to probed ports of that node's pods passes for a probe.
    fn probes(&self, world: &World, pod: &Workload, at: SocketAddr) -> Option<Way> {
        let is_near = self.may_probe && pod.node == self.workload.node;
        let held = world.objects.pods.get(&pod.namespace, &pod.name)?;
        let is_probe = is_near
            && pod.tunnel == TunnelProtocol::Hbone
            && !pod.native_tunnel
            && probed_ports(&held.object).contains(&at.port());
        is_probe.then(|| {
            let because =
                "the port has a probe, and root on its node passes for one; other users do not";
            let step = Step::new(&self.place, "let in as a probe", because);
            Way::new(1.0, vec![step], crate::node::reaches(pod, at.port()))
        })
    }
}
