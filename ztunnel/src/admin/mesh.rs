//! Workloads and services in the shape of Istio's dump.

use isobar_state::{
    BalanceMode, GatewayAddress, HealthPolicy, IpFamilies, NetworkMode, PortMap, RoutingScope,
    Service, Snapshot, TunnelProtocol, Visibility, Workload,
};
use isobar_types::{DEFAULT_TRUST_DOMAIN, Str};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::dump::InTurn;

/// All workloads, by uid.
pub(super) fn workloads(snapshot: &Snapshot) -> impl Serialize {
    let mut all: Vec<_> = snapshot.workloads().collect();
    all.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
    InTurn::new(all, |w| workload(w))
}

/// All services, by namespace and host.
pub(super) fn services(snapshot: &Snapshot) -> impl Serialize {
    let mut all: Vec<_> = snapshot.services().collect();
    all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    InTurn::new(all, move |s| service(snapshot, s))
}

fn workload(w: &Workload) -> Value {
    let mut map = Map::new();
    put(&mut map, "uid", &w.uid);
    map.insert("workloadIps".into(), json!(&*w.addresses));
    if let Some(gateway) = &w.waypoint {
        map.insert("waypoint".into(), gateway_address(gateway));
    }
    if let Some(gateway) = &w.network_gateway {
        map.insert("networkGateway".into(), gateway_address(gateway));
    }
    map.insert("protocol".into(), protocol(w.tunnel).into());
    let mode = match w.network_mode {
        NetworkMode::Standard => "Standard",
        NetworkMode::HostNetwork => "HostNetwork",
    };
    map.insert("networkMode".into(), mode.into());
    map.insert("name".into(), (&*w.name).into());
    map.insert("namespace".into(), (&*w.namespace).into());
    if *w.trust_domain != *DEFAULT_TRUST_DOMAIN {
        put(&mut map, "trustDomain", &w.trust_domain);
    }
    put(&mut map, "serviceAccount", &w.service_account);
    put(&mut map, "network", &w.network);
    put(&mut map, "workloadName", &w.workload_name);
    map.insert("workloadType".into(), w.workload_type.as_str().into());
    put(&mut map, "canonicalName", &w.canonical_name);
    put(&mut map, "canonicalRevision", &w.canonical_revision);
    put(&mut map, "hostname", &w.hostname);
    put(&mut map, "node", &w.node);
    if w.native_tunnel {
        map.insert("nativeTunnel".into(), true.into());
    }
    if let Some(tunnel) = w.application_tunnel {
        let protocol = if tunnel.proxy_protocol {
            "PROXY"
        } else {
            "NONE"
        };
        let value = json!({ "protocol": protocol, "port": tunnel.port });
        map.insert("applicationTunnel".into(), value);
    }
    if !w.authorization_policies.is_empty() {
        let keys: Vec<_> = w
            .authorization_policies
            .iter()
            .map(ToString::to_string)
            .collect();
        map.insert("authorizationPolicies".into(), json!(keys));
    }
    map.insert("status".into(), health(w.healthy).into());
    put(&mut map, "clusterId", &w.cluster_id);
    let locality = &w.locality;
    if !(locality.region.is_empty() && locality.zone.is_empty() && locality.subzone.is_empty()) {
        let value = json!({
            "region": &*locality.region, "zone": &*locality.zone, "subzone": &*locality.subzone,
        });
        map.insert("locality".into(), value);
    }
    if !w.services.is_empty() {
        let keys: Vec<_> = w.services.keys().map(ToString::to_string).collect();
        map.insert("services".into(), json!(keys));
    }
    map.insert("capacity".into(), w.capacity.into());
    Value::Object(map)
}

fn service(snapshot: &Snapshot, s: &Service) -> Value {
    let mut map = Map::new();
    map.insert("name".into(), (&*s.name).into());
    map.insert("namespace".into(), (&*s.key.namespace).into());
    map.insert("hostname".into(), (&*s.key.hostname).into());
    let vips: Vec<_> = s.vips.iter().map(ToString::to_string).collect();
    map.insert("vips".into(), json!(vips));
    if !s.cidr_vips.is_empty() {
        let ranges = s.cidr_vips.iter();
        let ranges: Vec<_> = ranges
            .map(|(network, cidr)| json!({ "network": &**network, "cidr": cidr.to_string() }))
            .collect();
        map.insert("cidrVips".into(), json!(ranges));
    }
    map.insert("ports".into(), ports(&s.ports));
    map.insert("endpoints".into(), endpoints(snapshot, s));
    let names: Vec<_> = s
        .subject_alt_names
        .iter()
        .map(ToString::to_string)
        .collect();
    map.insert("subjectAltNames".into(), json!(names));
    if let Some(gateway) = &s.waypoint {
        map.insert("waypoint".into(), gateway_address(gateway));
    }
    if !s.weighted_waypoints.is_empty() {
        let list: Vec<_> = s
            .weighted_waypoints
            .iter()
            .map(|w| json!({ "destination": gateway_address(&w.destination), "weight": w.weight }))
            .collect();
        map.insert("weightedWaypoints".into(), json!(list));
    }
    if let Some(lb) = &s.load_balancing {
        let preferences: Vec<_> = lb.routing_preference.iter().map(|p| scope(*p)).collect();
        let value = json!({
            "routingPreferences": preferences,
            "mode": mode(lb.mode),
            "healthPolicy": match lb.health_policy {
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
                HealthPolicy::AllowAll => "AllowAll",
            },
        });
        map.insert("loadBalancer".into(), value);
    }
    let families = match s.ip_families {
        IpFamilies::Automatic => None,
        IpFamilies::V4 => Some("IPv4"),
        IpFamilies::V6 => Some("IPv6"),
        IpFamilies::Dual => Some("Dual"),
    };
    if let Some(families) = families {
        map.insert("ipFamilies".into(), families.into());
    }
    map.insert("canonical".into(), s.canonical.into());
    let visibility = match s.visibility {
        Visibility::Public => "Public",
        Visibility::Namespace => "Namespace",
    };
    map.insert("visibility".into(), visibility.into());
    Value::Object(map)
}

fn endpoints(snapshot: &Snapshot, service: &Service) -> Value {
    let all = snapshot.endpoints(&service.key).map(|e| {
        let value = json!({
            "workloadUid": &*e.workload.uid,
            "port": ports(&e.ports),
            "status": health(e.workload.healthy),
        });
        (e.workload.uid.to_string(), value)
    });
    Value::Object(all.collect())
}

fn ports(map: &PortMap) -> Value {
    let pairs = map.iter();
    Value::Object(pairs.map(|(s, t)| (s.to_string(), t.into())).collect())
}

fn gateway_address(gateway: &GatewayAddress) -> Value {
    json!({
        "destination": gateway.destination.to_string(),
        "hboneMtlsPort": gateway.hbone_port,
    })
}

fn put(map: &mut Map<String, Value>, key: &str, value: &Str) {
    if !value.is_empty() {
        map.insert(key.to_owned(), (&**value).into());
    }
}

const fn protocol(tunnel: TunnelProtocol) -> &'static str {
    match tunnel {
        TunnelProtocol::None => "TCP",
        TunnelProtocol::Hbone => "HBONE",
    }
}

const fn health(healthy: bool) -> &'static str {
    if healthy { "Healthy" } else { "Unhealthy" }
}

const fn mode(mode: BalanceMode) -> &'static str {
    match mode {
        BalanceMode::Standard => "Standard",
        BalanceMode::Strict => "Strict",
        BalanceMode::Failover => "Failover",
        BalanceMode::Passthrough => "Passthrough",
    }
}

const fn scope(scope: RoutingScope) -> &'static str {
    match scope {
        RoutingScope::Region => "Region",
        RoutingScope::Zone => "Zone",
        RoutingScope::Subzone => "Subzone",
        RoutingScope::Node => "Node",
        RoutingScope::Cluster => "Cluster",
        RoutingScope::Network => "Network",
    }
}
