//! Envoy as a gateway at the edge, for callers of the mesh and for connections that go on by their server name.

use isobar_control_plane::Told;
use isobar_proto::isobar::v1 as proto;
use proto::listener::Protocol;
use serde_json::{Value, json};

use super::cluster::{cluster_name, clusters};
use super::listener::{Caller, Export, Mesh};
use super::route::Routes;

/// What a gateway shows to callers of the mesh, and by what it knows them, as PEM.
#[derive(Debug, Clone, Copy)]
pub struct OfMesh<'a> {
    /// Its certificate and those above it.
    pub chain: &'a str,
    /// The key.
    pub key: &'a str,
    /// Whoever signs callers' certificates.
    pub roots: &'a str,
}

impl Export {
    /// Adds a listener for each port that the gateway `namespace/name` was told of, called `name|PORT`. Policies
    /// are left out: Envoy would know its callers by other means than a waypoint.
    ///
    /// # Panics
    /// When there is no such gateway, or what it was told has no counterpart here.
    pub fn add_gateway(&mut self, name: &str, told: &Told, gateway: &str, of_mesh: OfMesh<'_>) {
        let mesh = Mesh::of(name, told, gateway);
        self.clusters.extend(clusters(&mesh));
        let all = &told.waypoints[gateway].waypoint.listeners;
        let ports: std::collections::BTreeSet<_> = all.iter().map(|one| one.port).collect();
        for port in ports {
            let here = all.iter().filter(|one| one.port == port);
            let chains: Vec<Value> = here.flat_map(|one| chains(&mesh, one, of_mesh)).collect();
            let inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
            self.listeners.push(json!({
                "name": format!("{name}|{port}"),
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                "listener_filters": [{"name": "envoy.filters.listener.tls_inspector",
                    "typed_config": {"@type": inspector}}],
                "filter_chains": chains,
            }));
        }
    }
}

fn chains(mesh: &Mesh<'_>, listener: &proto::Listener, of_mesh: OfMesh<'_>) -> Vec<Value> {
    let chain = |names: &[String], filter: Value| {
        let mut made = json!({"filters": [filter]});
        // Everything is written by leaving it out.
        if !names.iter().any(|name| name == "*") {
            made["filter_chain_match"] = json!({"server_names": names});
        }
        if let Some(tls) = &listener.tls {
            assert!(tls.mesh, "only certificates of the mesh have a counterpart");
            made["transport_socket"] = transport(listener, tls, of_mesh);
        }
        made
    };
    let names = &listener.server_names;
    if listener.raw {
        let rules = rules(mesh, listener).flat_map(|vs| &vs.tls);
        let chains = rules.flat_map(|rule| {
            let filter = passed_on(mesh, listener, &rule.destinations);
            let names = rule.matches.iter().map(|one| &one.sni_hosts);
            let made = names.map(|names| chain(names, filter.clone()));
            made.collect::<Vec<_>>()
        });
        return chains.collect();
    }
    match listener.protocol() {
        Protocol::Https => vec![chain(names, requests(mesh, listener))],
        Protocol::Tls | Protocol::Tcp => {
            let mut rules = rules(mesh, listener).flat_map(|vs| &vs.tcp);
            let rule = rules.next().expect("a rule for connections");
            vec![chain(names, passed_on(mesh, listener, &rule.destinations))]
        }
        Protocol::Http => panic!("a gateway without TLS has no counterpart here"),
    }
}

/// The rules for any host of a listener.
fn rules<'a>(
    mesh: &'a Mesh<'a>,
    listener: &'a proto::Listener,
) -> impl Iterator<Item = &'a proto::VirtualService> {
    let hosts = listener.virtual_hosts.iter();
    let hosts: Vec<_> = hosts.filter_map(|host| host.rules.as_ref()).collect();
    let all = mesh.virtual_services.iter().copied();
    all.filter(move |vs| vs.parents.iter().any(|parent| hosts.contains(&parent)))
}

fn passed_on(
    mesh: &Mesh<'_>,
    listener: &proto::Listener,
    to: &[proto::WeightedDestination],
) -> Value {
    let [only] = to else {
        panic!("connections go to one destination here");
    };
    let to = only.destination.clone().unwrap_or_default();
    let hostname = to
        .service
        .map(|service| service.hostname)
        .unwrap_or_default();
    let port = match to.port {
        0 => listener.service_port,
        port => port,
    };
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "oracle",
        "cluster": cluster_name(mesh, &hostname, port, &to.subset)}})
}

fn requests(mesh: &Mesh<'_>, listener: &proto::Listener) -> Value {
    let nobody = Caller {
        namespace: String::new(),
        account: String::new(),
        labels: std::collections::BTreeMap::new(),
    };
    let port = u16::try_from(listener.service_port).unwrap_or_default();
    let routes = Routes {
        mesh,
        caller: &nobody,
        port,
    };
    let hosts = listener.virtual_hosts.iter().map(|host| {
        let rules = host.rules.as_ref().map_or("", |rules| &rules.hostname);
        let domains = match &*host.host {
            "*" => vec!["*".to_owned()],
            name => vec![name.to_owned(), format!("{name}:*")],
        };
        json!({"name": host.host, "domains": domains, "routes": routes.of(rules)})
    });
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type": "AUTO",
        "stat_prefix": "oracle",
        "use_remote_address": true,
        "server_name": "istio-envoy",
        "stream_idle_timeout": "0s",
        "route_config": {"name": "routes", "validate_clusters": false,
            "virtual_hosts": hosts.collect::<Vec<_>>()},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]});
    mesh.normalise(&mut manager);
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
}

fn transport(listener: &proto::Listener, tls: &proto::ListenerTls, of_mesh: OfMesh<'_>) -> Value {
    let mut validation = json!({"trusted_ca": {"inline_string": of_mesh.roots}});
    if !tls.client_names.is_empty() {
        let names = tls.client_names.iter();
        let names = names.map(|name| json!({"san_type": "URI", "matcher": {"exact": name}}));
        validation["match_typed_subject_alt_names"] = names.collect();
    }
    let protocols = match listener.protocol() {
        Protocol::Https => json!(["h2", "http/1.1"]),
        _ => json!([]),
    };
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": protocols,
            "tls_certificates": [{
                "certificate_chain": {"inline_string": of_mesh.chain},
                "private_key": {"inline_string": of_mesh.key}}],
            "validation_context": validation}}})
}
