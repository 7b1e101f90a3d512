//! What all threads of a waypoint share.

use std::net::IpAddr;
use std::sync::Arc;

use isobar_hbone::Admission;
use isobar_route::Tables;
use isobar_spans::Spans;
use isobar_state::{
    Locality, NetworkMode, Profile, Service, ServicePorts, Snapshot, TunnelProtocol, Workload,
    WorkloadType,
};
use isobar_types::{Identity, NamespacedHostname, NetworkAddress, Str};
use isobar_xds::Store;

use crate::cluster::Clusters;
use crate::credentials::Credentials;
use crate::edge::Room;
use crate::feed::Feed;
use crate::names::Names;
use crate::rates::Rates;

/// Who this waypoint is.
#[derive(Debug, Clone)]
pub struct Own {
    /// The identity it shows to callers and endpoints.
    pub identity: Identity,
    /// Name of its pod.
    pub pod: Str,
    /// Its address.
    pub ip: IpAddr,
    /// Its network.
    pub network: Str,
    /// Its cluster.
    pub cluster_id: Str,
}

/// The newest state, readable from any thread without waiting.
#[derive(Debug, Clone)]
pub struct World {
    /// Who this waypoint is.
    pub own: Arc<Own>,
    /// Workloads and services.
    pub store: Store,
    /// Routes, rules, policies and labels.
    pub feed: Feed,
    /// What callers may have open, on all workers.
    pub admission: Admission,
    /// What is under way to each destination, and who is out, on all workers.
    pub clusters: Clusters,
    /// What has been counted for rate limits, on all workers.
    pub rates: Rates,
    /// What a gateway shows to callers from outside.
    pub credentials: Credentials,
    /// How many callers from outside may be there, on all workers.
    pub room: Room,
    /// Where endpoints are that are told by a host name, for all workers.
    pub names: Names,
    /// Spans that wait to be sent, of all workers.
    pub spans: Spans,
}

/// One moment of the world; a decision looks at one view only.
#[derive(Debug, Clone)]
pub struct View {
    /// Workloads and services.
    pub snapshot: Arc<Snapshot>,
    /// Routes, rules, policies and labels.
    pub tables: Arc<Tables>,
}

impl World {
    /// A world in which nothing is known but who this waypoint is.
    #[must_use]
    pub fn new(own: Own) -> Self {
        let names = Names::of_process(own.ip.is_ipv6());
        Self {
            own: Arc::new(own),
            names,
            store: Store::default(),
            feed: Feed::default(),
            admission: Admission::default(),
            clusters: Clusters::default(),
            rates: Rates::default(),
            credentials: Credentials::default(),
            room: Room::default(),
            spans: Spans::default(),
        }
    }

    /// The state now.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            snapshot: self.store.load(),
            tables: self.feed.load(),
        }
    }
}

impl World {
    /// True if this view shows the newest of both: cheaper than another.
    pub(crate) fn is_newest(&self, view: &View) -> bool {
        self.store.is_newest(&view.snapshot) && self.feed.is_newest(&view.tables)
    }
}

impl View {
    /// The workload that is this waypoint, if it is known.
    #[must_use]
    pub fn own_workload(&self, own: &Own) -> Option<&Arc<Workload>> {
        let at = NetworkAddress::new(own.network.clone(), own.ip);
        self.snapshot
            .workloads_at(&at)
            .iter()
            .find(|w| self.snapshot.has_identity(w, &own.identity))
    }

    /// True if what is sent to this endpoint may come back: it is this waypoint, something that runs as it
    /// does, or a service with such endpoints, whatever object tells of it.
    pub(crate) fn leads_back(&self, own: &Own, workload: &Workload, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let runs_as_we = |one: &Workload| self.snapshot.has_identity(one, &own.identity);
        let at = NetworkAddress::new(own.network.clone(), ip);
        let mut there = self.snapshot.workloads_at(&at).iter();
        let through = self.snapshot.service_by_vip(&at, None);
        ip == own.ip
            || workload.addresses.contains(&own.ip)
            || runs_as_we(workload)
            || there.any(|one| runs_as_we(one))
            || through.is_some_and(|service| {
                let mut all = self.snapshot.endpoints(&service.key);
                all.any(|one| runs_as_we(&one.workload))
            })
    }

    /// Host name under which services and workloads name this waypoint, once it is known.
    #[must_use]
    pub fn own_hostname(&self) -> Option<NamespacedHostname> {
        let info = self.tables.waypoint()?;
        Some(NamespacedHostname {
            namespace: info.name.namespace.clone(),
            hostname: info.hostname.clone(),
        })
    }
}

impl Own {
    /// A stand-in for what lies at an address that stands for itself: nothing of the mesh.
    #[must_use]
    pub fn elsewhere(&self, service: &Service, ip: IpAddr) -> Workload {
        let itself = self.as_workload();
        let profile = Profile {
            namespace: service.key.namespace.clone(),
            service_account: "default".into(),
            tunnel: TunnelProtocol::None,
            native_tunnel: false,
            canonical_name: service.name.clone(),
            workload_name: service.name.clone(),
            ..Profile::clone(&itself.profile)
        };
        Workload {
            uid: format!("{}@{ip}", service.key).into(),
            name: service.name.clone().into(),
            addresses: vec![ip].into(),
            profile: Arc::new(profile),
            ..itself
        }
    }

    /// A stand-in for this waypoint's workload, from which endpoints are looked at where nothing
    /// better is known.
    #[must_use]
    pub fn as_workload(&self) -> Workload {
        let empty: Str = "".into();
        let profile = Profile {
            namespace: self.identity.namespace.clone(),
            service_account: self.identity.service_account.clone(),
            trust_domain: self.identity.trust_domain.clone(),
            hostname: empty.clone(),
            network: self.network.clone(),
            network_mode: NetworkMode::Standard,
            cluster_id: self.cluster_id.clone(),
            tunnel: TunnelProtocol::Hbone,
            native_tunnel: true,
            application_tunnel: None,
            waypoint: None,
            also_waypoints: Vec::new(),
            also_direct: false,
            network_gateway: None,
            canonical_name: empty.clone(),
            canonical_revision: empty.clone(),
            workload_type: WorkloadType::Deployment,
            workload_name: empty.clone(),
            authorization_policies: Vec::new(),
            services: ServicePorts::default(),
            locality: Locality::default(),
            capacity: 1,
        };
        Workload {
            uid: empty.clone(),
            name: self.pod.clone().into(),
            node: empty,
            addresses: vec![self.ip].into(),
            healthy: true,
            profile: Arc::new(profile),
        }
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::workload as wire;

    use crate::testing::{HOST, Mesh, pod};

    #[test]
    fn whatever_tells_of_it_a_gateway_knows_what_leads_back_to_it() {
        let mesh = Mesh::new();
        let own = mesh.world.own.clone();
        let twin = wire::Workload {
            service_account: "wp".into(),
            services: [].into(),
            ..pod("twin", "10.0.1.2")
        };
        mesh.pods([pod("a", "10.0.1.1"), twin.clone()]);
        let (a, known) = (mesh.known_pod("a"), mesh.known_pod("twin"));
        let back = |workload: &isobar_state::Workload, ip: &str| {
            mesh.view().leads_back(&own, workload, ip.parse().unwrap())
        };
        assert!(!back(&a, "10.0.1.1"));
        assert!(back(&known, "10.0.1.2"));
        let outside = |ip: &str| own.elsewhere(&mesh.known_service(HOST), ip.parse().unwrap());
        for (ip, expect) in [
            ("10.0.1.1", false),
            ("10.96.0.1", false),
            ("10.0.0.250", true),
            ("::ffff:10.0.0.250", true),
            ("10.0.1.2", true),
        ] {
            assert_eq!(back(&outside(ip), ip), expect, "{ip}");
        }
        let services = pod("twin", "10.0.1.2").services;
        mesh.pods([wire::Workload { services, ..twin }]);
        assert!(back(&outside("10.96.0.1"), "10.96.0.1"));
    }
}
