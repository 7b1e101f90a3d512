//! Our side: a waypoint for each configuration, fed as by discovery, reached over HBONE.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use isobar_control_plane::Told;
use isobar_hbone::{Authority, ConnectHeaders, Pool, PoolOptions, TunnelKey, TunnelStream};
use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::type_url;
use isobar_runtime::LocalScope;
use isobar_telemetry::Registry;
use isobar_tls::{WorkloadCertificate, ca};
use isobar_types::Identity;
use isobar_waypoint::access_log::AccessLog;
use isobar_waypoint::listener;
use isobar_waypoint::metrics::Metrics;
use isobar_waypoint::run::{Fetch, worker};
use isobar_waypoint::session::Worker;
use isobar_waypoint::upstream::{Dial, HboneDialer};
use isobar_waypoint::world::{Own, World};
use isobar_xds::{CertError, CertSource, ResourceHandler};
use prost::Message;

use crate::objects::{NAMESPACE, Resolved, WAYPOINT};
use crate::scenario::Configuration;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Signs whatever is asked for, once.
pub(crate) struct Certificates {
    authority: ca::Authority,
    issued: std::sync::Mutex<std::collections::HashMap<String, Arc<WorkloadCertificate>>>,
}

impl Certificates {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            authority: ca::Authority::generate("oracle").unwrap(),
            issued: std::sync::Mutex::default(),
        })
    }
}

impl CertSource for Certificates {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Arc<WorkloadCertificate>, CertError>> {
        let mut issued = self.issued.lock().unwrap();
        let hour = Duration::from_secs(3600);
        let made = issued.entry(identity.to_string()).or_insert_with(|| {
            let made = self.authority.issue_workload(identity, hour);
            Arc::new(made.expect("a certificate"))
        });
        let made = made.clone();
        Box::pin(async move { Ok(made) })
    }
}

/// A waypoint that serves one configuration.
pub(crate) struct Ours {
    at: SocketAddr,
    tunnels: Pool,
}

impl Ours {
    /// Starts it and feeds it. Panics when it rejects a resource.
    pub(crate) fn start(
        configuration: &Configuration,
        resolved: &Resolved,
        certificates: Arc<Certificates>,
        scope: &Rc<LocalScope>,
    ) -> Self {
        let certificates: Arc<dyn CertSource> = certificates;
        let world = World::new(own(WAYPOINT));
        let key = format!("{NAMESPACE}/{WAYPOINT}");
        feed(&configuration.name, &world, &resolved.told, &key);
        let fetch = Rc::new(Fetch(certificates.clone()));
        let worker = started(world, fetch.clone(), scope);
        let listener = listener::listen(SocketAddr::new(LOOPBACK, 0), false).unwrap();
        let at = listener.local_addr().unwrap();
        let accept = listener::accept(worker, listener, certificates);
        scope.spawn("waypoint", accept);
        Self {
            at,
            tunnels: Pool::new(PoolOptions::default(), fetch),
        }
    }

    /// A stream to `authority` as the account `caller`.
    pub(crate) async fn open(
        &self,
        namespace: &str,
        caller: &str,
        authority: &str,
    ) -> Result<TunnelStream, String> {
        let key = TunnelKey {
            source: Identity::new("cluster.local", namespace, caller),
            expect: vec![Identity::new("cluster.local", NAMESPACE, WAYPOINT)],
            to: self.at,
            from: LOOPBACK,
            workload: "".into(),
        };
        let authority = Authority::parse(authority).ok_or("not an authority")?;
        let headers = ConnectHeaders::new(authority);
        let opened = self.tunnels.open(&key, &headers).await;
        opened.map_err(|error| error.to_string())
    }
}

/// A gateway at the edge that runs as the account `account`, and was told what `key` names. Its ports are
/// not open yet.
pub(crate) fn gateway(
    told: &Told,
    (key, account): (&str, &str),
    certificates: Arc<Certificates>,
    scope: &Rc<LocalScope>,
) -> Rc<Worker> {
    let world = World::new(own(account));
    feed(key, &world, told, key);
    let certificates: Arc<dyn CertSource> = certificates;
    world.credentials.tell_mesh(certificates.clone());
    started(world, Rc::new(Fetch(certificates)), scope)
}

fn own(account: &str) -> Own {
    Own {
        identity: Identity::new("cluster.local", NAMESPACE, account),
        pod: format!("{account}-1").into(),
        ip: LOOPBACK,
        network: "".into(),
        cluster_id: "Kubernetes".into(),
    }
}

fn started(world: World, fetch: Rc<Fetch>, scope: &Rc<LocalScope>) -> Rc<Worker> {
    let metrics = Metrics::new(&Registry::new());
    let dialled = Pool::new(PoolOptions::default(), fetch);
    let dialer: Rc<dyn Dial> = Rc::new(HboneDialer::new(world.own.clone(), dialled));
    worker(world, metrics, AccessLog::off(), dialer, scope.clone())
}

/// Hands the messages over in the bytes in which discovery would bring them.
fn feed(name: &str, world: &World, all: &Told, key: &str) {
    let mut draft = world.store.load().draft();
    for address in &all.addresses {
        draft.upsert_address(address).unwrap();
    }
    for policy in &all.authorizations {
        draft.upsert_authorization(policy).unwrap();
    }
    world.store.publish(draft.finish());
    let told = &all.waypoints[key];
    for mut handler in world.feed.handlers() {
        let resources: Vec<Resource> = match handler.type_url() {
            type_url::WAYPOINT => vec![resource(key.to_owned(), &told.waypoint)],
            type_url::VIRTUAL_SERVICE => (told.virtual_services.iter())
                .map(|m| resource(format!("{}/{}", m.namespace, m.name), m))
                .collect(),
            type_url::DESTINATION_RULE => (told.destination_rules.iter())
                .map(|m| resource(format!("{}/{}", m.namespace, m.name), m))
                .collect(),
            type_url::WAYPOINT_AUTHORIZATION => (told.authorizations.iter())
                .map(|m| resource(format!("{}/{}", m.namespace, m.name), m))
                .collect(),
            type_url::WORKLOAD_LABELS => (told.labels.iter())
                .map(|m| resource(m.uid.clone(), m))
                .collect(),
            // Envoy's own limits are of another shape: no scenario has one.
            type_url::RATE_LIMIT_POLICY => Vec::new(),
            other => panic!("{name}: a waypoint takes {other}, and the oracle does not know it"),
        };
        apply(name, &mut *handler, &resources);
    }
}

fn apply(name: &str, handler: &mut dyn ResourceHandler, resources: &[Resource]) {
    let rejected = handler.apply(resources, &[]);
    assert!(rejected.is_empty(), "{name}: {rejected:#?}");
}

fn resource(name: String, message: &impl Message) -> Resource {
    Resource {
        name,
        resource: Some(prost_types::Any {
            type_url: String::new(),
            value: message.encode_to_vec(),
        }),
        ..Resource::default()
    }
}
