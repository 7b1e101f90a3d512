//! Clients that ask for addresses by name.

use std::sync::OnceLock;
use std::time::Instant;

use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isobar_proto::istio::workload::{
    Address, NetworkAddress, PortList, Service, Workload, address,
};
use prost::Message;

use super::catalog::{Catalog, Resource, Scope};
use super::kind::Kind;
use super::resources::share;
use super::session::{Response, Session};

const CART: &str = "shop/cart.shop.svc.cluster.local";

fn workload(name: &str, ip: u8, node: &str, services: &[&str]) -> Resource {
    let uid = format!("c//Pod/shop/{name}");
    let services = services
        .iter()
        .map(|key| ((*key).to_owned(), PortList::default()));
    let workload = Workload {
        uid: uid.clone(),
        addresses: vec![vec![10, 0, 0, ip]],
        node: node.to_owned(),
        services: services.collect(),
        ..Workload::default()
    };
    address(&uid, address::Type::Workload(workload))
}

fn service(ip: u8) -> Resource {
    let (namespace, hostname) = CART.split_once('/').unwrap();
    let vip = NetworkAddress {
        network: "west".to_owned(),
        address: vec![10, 96, 0, ip],
        length: None,
    };
    let service = Service {
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        addresses: vec![vip],
        ..Service::default()
    };
    address(CART, address::Type::Service(service))
}

fn address(name: &str, content: address::Type) -> Resource {
    let content = Some(content);
    Resource::new(Kind::Address, name, &Address { r#type: content })
}

struct World {
    catalog: Catalog,
    session: Session,
    now: Instant,
}

impl World {
    /// Of a client on `node`, whose first request holds `known`: names with the version or `""`.
    fn new(all: Vec<Resource>, node: &str, known: &[(&str, &str)]) -> Self {
        let now = Instant::now();
        let scope = Scope {
            node: Some(node.into()),
            ..Scope::default()
        };
        let mut world = Self {
            catalog: Catalog::default(),
            session: Session::new(scope, &[Kind::Address], now),
            now,
        };
        world.put(all);
        let pairs = known.iter();
        world.send(&DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["*".to_owned()],
            resource_names_unsubscribe: vec!["*".to_owned()],
            initial_resource_versions: pairs
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        });
        world
    }

    fn put(&mut self, all: Vec<Resource>) {
        self.catalog = Catalog {
            revision: self.catalog.revision + 1,
            addresses: share(&self.catalog.addresses, all),
            names: OnceLock::new(),
            ..Catalog::default()
        };
    }

    fn send(&mut self, request: &DeltaDiscoveryRequest) {
        let request = DeltaDiscoveryRequest {
            type_url: Kind::Address.url().to_owned(),
            ..request.clone()
        };
        self.session.request(&request, self.now).unwrap();
    }

    fn ask(&mut self, names: &[&str]) {
        self.send(&DeltaDiscoveryRequest {
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        });
    }

    fn forget(&mut self, names: &[&str]) {
        self.send(&DeltaDiscoveryRequest {
            resource_names_unsubscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        });
    }

    /// Everything that is sent, acknowledged.
    fn told(&mut self) -> String {
        let mut all = Vec::new();
        while let Some(response) = self.session.next(&self.catalog, self.now) {
            all.push(shown(&response));
            self.send(&DeltaDiscoveryRequest {
                response_nonce: response.nonce.clone(),
                ..DeltaDiscoveryRequest::default()
            });
        }
        all.join("; ")
    }
}

/// `+name(aliases)` and `-name`, without what all names have in common.
fn shown(response: &Response) -> String {
    let short = |name: &str| name.trim_start_matches("c//Pod/shop/").to_owned();
    let added = response.resources.iter().map(|resource| {
        let alone = DeltaDiscoveryResponse::decode(&resource.field[..]).unwrap();
        let wire = &alone.resources[0];
        assert_eq!(wire.name, *resource.name);
        let aliases = wire.aliases.join(" ");
        format!("+{}({aliases})", short(&wire.name))
    });
    let removed = response
        .removed
        .iter()
        .map(|name| format!("-{}", short(name)));
    added.chain(removed).collect::<Vec<_>>().join(" ")
}

fn mesh() -> Vec<Resource> {
    vec![
        service(1),
        workload("a", 1, "node-1", &[]),
        workload("b", 2, "node-2", &[CART]),
        workload("c", 3, "node-2", &[CART]),
        workload("d", 4, "node-2", &[]),
    ]
}

#[test]
fn a_node_proxy_gets_the_workloads_of_its_node_and_what_it_asks_for() {
    let mut world = World::new(mesh(), "node-1", &[]);
    assert_eq!(world.told(), "+a()");
    world.ask(&["/10.0.0.4"]);
    assert_eq!(world.told(), "+d(/10.0.0.4)");
    world.ask(&["c//Pod/shop/b"]);
    assert_eq!(world.told(), "+b()");
    // With its workloads; those that are there already are not sent again.
    world.ask(&["west/10.96.0.1"]);
    assert_eq!(world.told(), format!("+c() +{CART}(west/10.96.0.1)"));
    assert_eq!(world.told(), "");
}

#[test]
fn an_address_in_a_range_leads_to_the_service_that_stands_for_it() {
    let range = Service {
        namespace: "shop".to_owned(),
        hostname: "far.example".to_owned(),
        addresses: vec![NetworkAddress {
            network: String::new(),
            address: vec![192, 0, 2, 0],
            length: Some(24),
        }],
        ..Service::default()
    };
    let mut all = mesh();
    all.push(address("shop/far.example", address::Type::Service(range)));
    let mut world = World::new(all, "node-1", &[]);
    world.told();
    world.ask(&["/192.0.2.7", "west/192.0.2.7", "/192.0.3.7", "/192.0.2.0"]);
    assert_eq!(
        world.told(),
        "+shop/far.example(/192.0.2.0 /192.0.2.7) -/192.0.3.7 -west/192.0.2.7"
    );
}

#[test]
fn an_answer_is_owed_even_for_what_is_held() {
    let mut world = World::new(mesh(), "node-1", &[]);
    world.told();
    world.ask(&["/10.0.0.1"]);
    assert_eq!(world.told(), "+a(/10.0.0.1)");
    world.ask(&["c//Pod/shop/a"]);
    assert_eq!(world.told(), "+a(/10.0.0.1)");
    world.ask(&["/10.0.0.1"]);
    assert_eq!(world.told(), "+a(/10.0.0.1)");
}

#[test]
fn what_is_not_there_is_told_once_and_again_when_it_comes_and_goes() {
    let mut world = World::new(vec![], "node-1", &[]);
    assert_eq!(world.told(), "");
    world.ask(&["/10.0.0.2", CART]);
    assert_eq!(world.told(), format!("-/10.0.0.2 -{CART}"));
    world.put(vec![workload("x", 9, "node-2", &[])]);
    assert_eq!(world.told(), "");
    // Asked again: told again.
    world.ask(&["/10.0.0.2"]);
    assert_eq!(world.told(), "-/10.0.0.2");
    world.put(mesh());
    assert_eq!(world.told(), format!("+a() +b(/10.0.0.2) +c() +{CART}()"));
    let gone = mesh().into_iter().filter(|r| !r.name.ends_with("/b"));
    world.put(gone.collect());
    assert_eq!(world.told(), "-/10.0.0.2 -b");
    world.put(mesh());
    assert_eq!(world.told(), "+b(/10.0.0.2)");
}

#[test]
fn what_is_held_follows_its_changes_and_new_members_come_by_themselves() {
    let mut world = World::new(mesh(), "node-1", &[]);
    world.ask(&[CART]);
    assert_eq!(world.told(), format!("+a() +b() +c() +{CART}()"));
    let mut all = mesh();
    all[3] = workload("c", 33, "node-2", &[]);
    all.push(workload("e", 5, "node-3", &[CART]));
    world.put(all);
    assert_eq!(world.told(), "+c() +e()");
    // What it does not want any more is not told.
    world.forget(&[CART]);
    let mut all = mesh();
    all[0] = service(9);
    world.put(all);
    assert_eq!(world.told(), "+c() -e");
}

#[test]
fn what_a_new_stream_says_it_holds_is_asked_for_and_not_sent_again() {
    let b = workload("b", 2, "node-2", &[CART]);
    let version = super::catalog::version_text(b.version);
    let known = [
        ("c//Pod/shop/b", version.as_str()),
        ("c//Pod/shop/gone", "1"),
        ("/10.0.0.4", ""),
        ("/10.0.0.77", ""),
    ];
    let mut world = World::new(mesh(), "node-1", &known);
    assert_eq!(world.told(), "+a() +d(/10.0.0.4) -/10.0.0.77 -gone");
    let mut all = mesh();
    all[2] = workload("b", 22, "node-2", &[CART]);
    world.put(all);
    assert_eq!(world.told(), "+b()");
}

#[test]
fn whoever_asks_for_everything_gets_it_without_aliases() {
    let mut world = World::new(mesh(), "node-1", &[]);
    world.told();
    world.ask(&["*"]);
    assert_eq!(world.told(), format!("+b() +c() +d() +{CART}()"));
}
