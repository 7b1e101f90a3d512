use std::net::IpAddr;

use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload as wire;
use serde_json::{Value, json};

use super::listener::Mesh;
use super::route::seconds;

/// Name of the cluster of a service port, or of a subset of it.
pub(super) fn cluster_name(mesh: &Mesh<'_>, hostname: &str, port: u32, subset: &str) -> String {
    format!("{}|{hostname}|{port}|{subset}", mesh.name)
}

/// Every service port and subset.
pub(super) fn clusters(mesh: &Mesh<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    for service in &mesh.services {
        let rules = rules(mesh, service);
        for port in &service.ports {
            all.push(cluster(mesh, service, port, None));
            for subset in rules.iter().flat_map(|rule| &rule.subsets) {
                all.push(cluster(mesh, service, port, Some(subset)));
            }
        }
    }
    all
}

/// Settings in force for a subset (or none, by the empty name) at a service port: blocks of a subset
/// replace those of the service, and a port's settings replace all others.
pub(super) fn policy(
    mesh: &Mesh<'_>,
    hostname: &str,
    subset: &str,
    port: u32,
) -> proto::TrafficPolicy {
    let at_port = |policy: &proto::TrafficPolicy| {
        let mut own = policy.port_level.iter().filter(|one| one.port == port);
        own.next().map(|one| one.policy.clone().unwrap_or_default())
    };
    let Some(service) = mesh.service(hostname) else {
        return proto::TrafficPolicy::default();
    };
    let rules = rules(mesh, service);
    let top = rules.iter().find_map(|rule| rule.traffic_policy.clone());
    let top = top.unwrap_or_default();
    let mut subsets = rules.iter().flat_map(|rule| &rule.subsets);
    let own = subsets.find(|one| one.name == subset);
    let own = own.and_then(|one| one.traffic_policy.as_ref());
    // Ports have no such setting of their own.
    let told = own.map_or(0, |own| own.proxy_protocol);
    let proxy_protocol = if told == 0 { top.proxy_protocol } else { told };
    let with = |policy: proto::TrafficPolicy| proto::TrafficPolicy {
        proxy_protocol,
        ..policy
    };
    let inherited = at_port(&top).unwrap_or(top);
    let Some(own) = own else {
        return with(inherited);
    };
    if let Some(own) = at_port(own) {
        return with(own);
    }
    let balances = own.load_balancer != 0
        || own.consistent_hash.is_some()
        || own.locality.is_some()
        || own.warmup.is_some();
    let balancing = if balances { own } else { &inherited };
    proto::TrafficPolicy {
        load_balancer: balancing.load_balancer,
        consistent_hash: balancing.consistent_hash.clone(),
        locality: balancing.locality.clone(),
        warmup: balancing.warmup,
        connection_pool: own.connection_pool.or(inherited.connection_pool),
        outlier_detection: own.outlier_detection.or(inherited.outlier_detection),
        retry_budget: own.retry_budget.or(inherited.retry_budget),
        tls: own.tls.clone().or(inherited.tls),
        port_level: Vec::new(),
        proxy_protocol,
    }
}

/// The rules of a service, the oldest first.
pub(super) fn rules<'a>(
    mesh: &Mesh<'a>,
    service: &wire::Service,
) -> Vec<&'a proto::DestinationRule> {
    let about = |rule: &&proto::DestinationRule| {
        let mut services = rule.services.iter();
        services.any(|s| s.hostname == service.hostname)
    };
    let mut rules: Vec<_> = mesh.destination_rules.iter().filter(about).collect();
    rules.sort_by_key(|rule| (rule.created, &rule.namespace, &rule.name));
    rules
}

fn cluster(
    mesh: &Mesh<'_>,
    service: &wire::Service,
    port: &wire::Port,
    subset: Option<&proto::Subset>,
) -> Value {
    use proto::traffic_policy::{LoadBalancer, ProxyProtocol};

    let subset_name = subset.map_or("", |subset| subset.name.as_str());
    let name = cluster_name(mesh, &service.hostname, port.service_port, subset_name);
    let policy = policy(mesh, &service.hostname, subset_name, port.service_port);
    let balancer = match policy.load_balancer() {
        _ if policy.consistent_hash.is_some() => "RING_HASH",
        LoadBalancer::RoundRobin => "ROUND_ROBIN",
        LoadBalancer::Random => "RANDOM",
        _ => "LEAST_REQUEST",
    };
    let proxy = match policy.proxy_protocol() {
        ProxyProtocol::None => None,
        ProxyProtocol::V1 => Some("V1"),
        ProxyProtocol::V2 => Some("V2"),
    };
    let pool = policy.connection_pool.unwrap_or_default();
    let http = pool.http.unwrap_or_default();
    let or_most = |limit: u32| if limit == 0 { u32::MAX } else { limit };
    let mut thresholds = json!({
        "max_connections": or_most(pool.max_connections),
        "max_pending_requests": or_most(http.max_pending),
        "max_requests": or_most(http.max_requests),
        "max_retries": or_most(http.max_retries)});
    if let Some(budget) = &policy.retry_budget {
        thresholds["retry_budget"] = json!({
            "budget_percent": {"value": budget.percent.unwrap_or(20.0)},
            "min_retry_concurrency": budget.min_concurrency.unwrap_or(3)});
    }
    let connect = pool.connect_timeout.as_ref();
    let endpoints = endpoints(mesh, service, port, subset);
    let mut out = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": connect.map_or("10s".to_owned(), seconds),
        "lb_policy": balancer,
        // Only where a rule asks for it are all used when few are well.
        "common_lb_config": {"healthy_panic_threshold":
            {"value": policy.outlier_detection.map_or(0, |o| o.min_health_percent)}},
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol(port, &http)},
    });
    if let Some(outliers) = &policy.outlier_detection {
        out["outlier_detection"] = outlier_detection(outliers);
    }
    if let Some(version) = proxy {
        out["transport_socket"] = who_calls(version);
    }
    out
}

/// Tells endpoints who calls before any other byte.
fn who_calls(version: &str) -> Value {
    const SOCKETS: &str = "type.googleapis.com/envoy.extensions.transport_sockets";
    json!({"name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": {
        "@type": format!("{SOCKETS}.proxy_protocol.v3.ProxyProtocolUpstreamTransport"),
        "config": {"version": version},
        "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {
            "@type": format!("{SOCKETS}.raw_buffer.v3.RawBuffer")}}}})
}

fn outlier_detection(from: &proto::OutlierDetection) -> Value {
    let mut out = json!({
        "consecutive_5xx": from.consecutive_5xx.unwrap_or(5),
        "consecutive_gateway_failure": from.consecutive_gateway_errors,
        "enforcing_consecutive_gateway_failure":
            if from.consecutive_gateway_errors > 0 { 100 } else { 0 },
        "enforcing_consecutive_5xx": if from.consecutive_5xx == Some(0) { 0 } else { 100 },
        "enforcing_success_rate": 0,
        "split_external_local_origin_errors": from.split_local_errors,
        "consecutive_local_origin_failure": from.consecutive_local_failures.unwrap_or(5),
        "max_ejection_percent": match from.max_ejection_percent { 0 => 10, share => share },
    });
    for (field, time) in [
        ("interval", &from.interval),
        ("base_ejection_time", &from.base_ejection_time),
    ] {
        if let Some(time) = time {
            out[field] = json!(seconds(time));
        }
    }
    out
}

fn protocol(port: &wire::Port, http: &proto::HttpPool) -> Value {
    use proto::http_pool::Upgrade;
    use wire::AppProtocol;

    let mut two = json!({});
    if http.max_concurrent_streams > 0 {
        two["max_concurrent_streams"] = json!(http.max_concurrent_streams);
    }
    let as_caller = json!({"use_downstream_protocol_config": {
        "http_protocol_options": {}, "http2_protocol_options": two}});
    let only_two = json!({"explicit_http_config": {"http2_protocol_options": two}});
    let mut options = match port.app_protocol() {
        _ if http.use_client_protocol => as_caller,
        AppProtocol::Http2 | AppProtocol::Grpc => only_two,
        AppProtocol::Http11 | AppProtocol::Unknown if http.h2_upgrade() == Upgrade::Upgrade => {
            only_two
        }
        AppProtocol::Unknown => as_caller,
        _ => json!({"explicit_http_config": {"http_protocol_options": {}}}),
    };
    if http.max_requests_per_connection > 0 {
        options["common_http_protocol_options"] =
            json!({"max_requests_per_connection": http.max_requests_per_connection});
    }
    let kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    options["@type"] = json!(kind);
    options
}

fn endpoints(
    mesh: &Mesh<'_>,
    service: &wire::Service,
    port: &wire::Port,
    subset: Option<&proto::Subset>,
) -> Vec<Value> {
    let key = format!("{}/{}", service.namespace, service.hostname);
    let mut all = Vec::new();
    for workload in &mesh.workloads {
        let Some(ports) = workload.services.get(&key) else {
            continue;
        };
        let labels = mesh.labels_of(&workload.uid);
        let in_subset = subset.is_none_or(|subset| {
            let mut wanted = subset.labels.iter();
            wanted.all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
        });
        let healthy = workload.status() == wire::WorkloadStatus::Healthy;
        let target = ports
            .ports
            .iter()
            .find(|p| p.service_port == port.service_port);
        let address = workload.addresses.first().and_then(|bytes| address(bytes));
        if let (true, true, Some(target), Some(address)) = (in_subset, healthy, target, address) {
            all.push(json!({"endpoint": {"address": {"socket_address": {
                "address": address.to_string(), "port_value": target.target_port}}}}));
        }
    }
    all
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four: Option<[u8; 4]> = bytes.try_into().ok();
    let sixteen: Option<[u8; 16]> = bytes.try_into().ok();
    four.map(IpAddr::from).or(sixteen.map(IpAddr::from))
}
