use std::sync::Arc;

use isobar_objects::Published;
use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isobar_proto::istio::workload::{Address, GatewayAddress, address, gateway_address};
use isobar_telemetry::Registry;
use prost::Message;
use tokio::sync::watch;

use super::super::Engine;
use super::*;
use crate::metrics::Metrics;
use crate::model::KeptKeys;
use crate::model::golden_tests::{gateway, namespace, objects, pod, settings};
use crate::xds::allowance::Allowance;
use crate::xds::catalog::{Catalog, Resource, Scope};
use crate::xds::clients::{ClientState, Registration};
use crate::xds::kind::Kind;
use crate::xds::session::Session;

const POD: &str = "Kubernetes//Pod/shop/cart-1";
const SERVICE: &str = "shop/cart.shop.svc.cluster.local";

/// A pod, its Service, a route of that, and two waypoints; `labels` are those of pod and Service.
fn mesh(labels: &str) -> String {
    let all = ", labels: {istio.io/waypoint-for: all}";
    let instance = |name: &str| {
        let label = format!("gateway.networking.k8s.io/gateway-name: {name}");
        pod(&format!("{name}-pod"), name, &label, true)
    };
    let pod = pod("cart-1", "cart", &format!("app: cart, {labels}"), true);
    format!(
        "{}{}{}{}{}{pod}---
apiVersion: v1
kind: Service
metadata: {{name: cart, namespace: shop, labels: {{{labels}}}}}
spec: {{clusterIP: 10.96.0.7, selector: {{app: cart}}, ports: [{{name: http, port: 80, targetPort: web}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: r, namespace: shop}}
spec: {{hosts: [cart], http: [{{route: [{{destination: {{host: cart}}}}]}}]}}
",
        namespace(""),
        gateway("wp", all),
        gateway("wq", all),
        instance("wp"),
        instance("wq"),
    )
}

fn bound(to: &str) -> String {
    mesh(&format!("istio.io/use-waypoint: {to}"))
}

/// A control plane with one node proxy.
struct World {
    engine: Engine,
    node: Session,
    place: Registration,
    yaml: String,
    now: Instant,
}

impl World {
    fn new(yaml: String) -> Self {
        let clients = Clients::default();
        let now = Instant::now();
        let state = ClientState {
            identity: String::new(),
            kind: "ztunnel",
            node: "node-1".to_owned(),
            namespace: "istio-system".to_owned(),
            pod: "ztunnel-1".to_owned(),
            gateway: String::new(),
            version: String::new(),
            peer: String::new(),
            connected: now,
            connected_at: String::new(),
            revision: 0,
            confirmed: 0,
            kinds: Vec::new(),
        };
        let mut world = Self {
            place: clients.register(state, Allowance::NODE).unwrap(),
            engine: Engine {
                settings: settings(),
                catalogs: watch::Sender::default(),
                rosters: watch::Sender::default(),
                plans: watch::Sender::new(None),
                metrics: Metrics::new(&Registry::new()),
                kept_keys: KeptKeys::default(),
                clients,
                changeover: Changeover::default(),
            },
            node: Session::new(Scope::default(), Kind::NODE, now),
            yaml,
            now,
        };
        world.publish();
        for kind in Kind::NODE {
            world.request(*kind, "");
        }
        world.confirm();
        world
    }

    fn publish(&mut self) {
        let published = Arc::new(Published {
            objects: Arc::new(objects(&self.yaml)),
            synced: true,
            ..Published::default()
        });
        self.engine.publish(published, None);
    }

    fn change(&mut self, yaml: String) {
        self.yaml = yaml;
        self.publish();
    }

    fn request(&mut self, kind: Kind, nonce: &str) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        self.node.request(&request, self.now).unwrap();
    }

    /// The node proxy takes everything there is.
    fn confirm(&mut self) {
        let catalog = self.catalog();
        while let Some(response) = self.node.next(&catalog, self.now) {
            // Not before the client has answered; policies go after that.
            if response.kind == Kind::Address {
                self.place.confirm(self.node.confirmed());
                assert!(!self.advance(Duration::ZERO), "nobody has confirmed");
            }
            self.request(response.kind, &response.nonce);
        }
        self.place.confirm(self.node.confirmed());
    }

    /// Looks at the clock `after` now; makes the next plan if there is to be one.
    fn advance(&mut self, after: Duration) -> bool {
        let clients = self.engine.clients.clone();
        let now = Instant::now() + after;
        let stepped = self.engine.changeover.advance(&clients, now);
        if stepped {
            self.publish();
        }
        stepped
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.engine.catalogs.borrow().clone()
    }

    /// Where callers are sent to, and by whom else traffic may be brought; `direct` without anybody.
    fn ways(&self, name: &str) -> String {
        let catalog = self.catalog();
        match told(catalog.addresses.get(name).unwrap()) {
            address::Type::Service(one) => ways(one.waypoint.as_ref(), &one.also_waypoints, false),
            address::Type::Workload(one) => {
                ways(one.waypoint.as_ref(), &one.also_waypoints, one.also_direct)
            }
        }
    }

    /// Waypoints that have the Service's route.
    fn routed(&self) -> Vec<String> {
        let catalog = self.catalog();
        let all = catalog.waypoints.iter();
        let with = all.filter(|(_, kinds)| kinds[Kind::VirtualService.index()].len() > 0);
        with.map(|(key, _)| key.to_string()).collect()
    }

    fn policies(&self) -> Vec<String> {
        match told(self.catalog().addresses.get(POD).unwrap()) {
            address::Type::Workload(one) => one.authorization_policies,
            address::Type::Service(_) => unreachable!("it is a pod"),
        }
    }
}

fn told(resource: &Resource) -> address::Type {
    let alone = DeltaDiscoveryResponse::decode(&resource.field[..]).unwrap();
    let body = alone.resources[0].resource.clone().unwrap();
    let address = Address::decode(&body.value[..]).unwrap();
    address.r#type.unwrap()
}

fn ways(front: Option<&GatewayAddress>, also: &[GatewayAddress], direct: bool) -> String {
    let name = |one: &GatewayAddress| match one.destination.as_ref().unwrap() {
        gateway_address::Destination::Hostname(host) => {
            host.hostname.split('.').next().unwrap().to_owned()
        }
        gateway_address::Destination::Address(_) => unreachable!("waypoints have names"),
    };
    let mut text = front.map_or_else(|| "direct".to_owned(), name);
    for one in also {
        text += &format!(" also {}", name(one));
    }
    if direct {
        text += " also direct";
    }
    text
}

#[test]
fn a_binding_ends_in_steps_that_every_proxy_confirms() {
    let mut world = World::new(bound("wp"));
    assert_eq!(world.ways(POD), "wp");
    assert_eq!(world.catalog().changing, 0);
    world.change(mesh(""));
    // The pod is opened before anybody is sent to it directly.
    assert_eq!(world.ways(POD), "wp also direct");
    assert_eq!(world.ways(SERVICE), "wp");
    assert!(world.policies().is_empty(), "{:?}", world.policies());
    assert_eq!(world.catalog().changing, 2);
    world.confirm();
    assert!(world.advance(Duration::ZERO));
    // Callers that do not know yet are served as before.
    assert_eq!(world.ways(POD), "direct also wp");
    assert_eq!(world.ways(SERVICE), "direct also wp");
    assert_eq!(world.routed(), ["shop/wp"]);
    world.confirm();
    assert!(!world.advance(Duration::ZERO), "some are on their way");
    assert!(world.advance(GRACE));
    assert_eq!(world.ways(POD), "direct");
    assert_eq!(world.ways(SERVICE), "direct");
    assert!(world.routed().is_empty());
    assert_eq!(world.catalog().changing, 0);
    assert_eq!(world.engine.changeover.deadline(), None);
}

#[test]
fn a_binding_moves_with_both_waypoints_serving() {
    let mut world = World::new(bound("wp"));
    world.change(bound("wq"));
    assert_eq!(world.ways(POD), "wp also wq");
    assert_eq!(world.ways(SERVICE), "wp also wq");
    assert_eq!(world.routed(), ["shop/wp", "shop/wq"]);
    let both = world.policies();
    assert!(
        both.len() == 1 && both[0].contains("shop.wp+shop.wq"),
        "{both:?}"
    );
    world.confirm();
    assert!(world.advance(Duration::ZERO));
    assert_eq!(world.ways(POD), "wq also wp");
    assert_eq!(world.ways(SERVICE), "wq also wp");
    assert_eq!(world.routed(), ["shop/wp", "shop/wq"]);
    world.confirm();
    world.advance(Duration::ZERO);
    assert!(world.advance(GRACE));
    assert_eq!(world.ways(POD), "wq");
    assert_eq!(world.routed(), ["shop/wq"]);
    assert!(!world.policies()[0].contains("shop.wp+"));
}

#[test]
fn a_proxy_that_never_confirms_is_not_waited_for_for_ever() {
    let mut world = World::new(bound("wp"));
    world.change(mesh(""));
    assert!(!world.advance(Duration::from_secs(1)));
    assert!(world.advance(OPENED));
    assert_eq!(world.ways(POD), "direct also wp");
    assert!(!world.advance(OPENED));
    assert!(!world.advance(TURNED), "the grace follows");
    assert!(world.advance(TURNED + GRACE));
    assert_eq!(world.ways(POD), "direct");
    // A client that is gone is waited for as little.
    let mut world = World::new(bound("wp"));
    world.change(mesh(""));
    drop(std::mem::replace(
        &mut world.place,
        World::new(mesh("")).place,
    ));
    assert!(world.advance(Duration::ZERO));
}

#[test]
fn what_is_refused_is_refused_at_once_and_what_is_made_anew_is_not_a_change() {
    let mut world = World::new(bound("wp"));
    // A waypoint that takes nothing of that kind any more.
    let none = bound("wp").replacen("waypoint-for: all", "waypoint-for: none", 1);
    world.change(none);
    assert!(world.ways(POD).starts_with("denied"), "{}", world.ways(POD));
    assert_eq!(world.catalog().changing, 0);
    // A waypoint without a ready pod; one that goes with its pods.
    world.change(bound("wp"));
    world.change(bound("missing"));
    assert_eq!(
        (world.ways(POD), world.catalog().changing),
        ("missing".to_owned(), 0)
    );
    // A pod that was never there before, and one that goes.
    let mut world = World::new(namespace(""));
    world.change(bound("wp"));
    assert_eq!(world.catalog().changing, 0);
    world.change(namespace(""));
    assert_eq!(world.catalog().changing, 0);
}

#[test]
fn who_turns_back_is_where_he_was() {
    let mut world = World::new(bound("wp"));
    world.change(mesh(""));
    world.change(bound("wp"));
    assert_eq!(
        (world.ways(POD), world.catalog().changing),
        ("wp".to_owned(), 0)
    );
    // On the way to one waypoint, another one is chosen.
    world.change(bound("wq"));
    world.confirm();
    assert!(world.advance(Duration::ZERO));
    world.change(mesh(""));
    assert_eq!(world.ways(POD), "wq also direct");
    // Its waypoint goes while the binding changes.
    let gone = mesh("").replace("name: wq,", "name: other,");
    world.change(gone);
    assert_eq!(
        (world.ways(POD), world.catalog().changing),
        ("direct".to_owned(), 0)
    );
}

#[test]
fn an_account_and_its_waypoint_that_are_made_anew_open_nothing() {
    let account = "---\napiVersion: v1\nkind: ServiceAccount\n\
         metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: ws}}\n";
    let consents = ", labels: {istio.io/waypoint-for: all}, \
         annotations: {istio.io/for-service-account: cart}";
    let waypoint = gateway("ws", consents);
    let label = "gateway.networking.k8s.io/gateway-name: ws";
    let ready = pod("ws-pod", "ws", label, true);
    let mut world = World::new(format!("{}{waypoint}{ready}{account}", mesh("")));
    assert_eq!((&*world.ways(POD), &*world.ways(SERVICE)), ("ws", "ws"));
    for yaml in [
        format!("{waypoint}{ready}"),
        String::new(),
        account.to_owned(),
        format!("{waypoint}{account}"),
        format!("{waypoint}{ready}{account}"),
    ] {
        world.change(format!("{}{yaml}", mesh("")));
        assert_eq!(world.ways(POD), "ws", "{yaml}");
        assert_eq!(world.ways(SERVICE), "ws", "{yaml}");
    }
    // Whoever takes the label away from an account that is there means it.
    world.change(format!(
        "{}{waypoint}{ready}{}",
        mesh(""),
        account.replace("ws", "none")
    ));
    assert_eq!(world.ways(POD), "ws also direct");
}
