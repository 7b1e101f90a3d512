use isobar_objects::ObjectHead;
use isobar_objects::istio as from;
use isobar_objects::istio::{DestinationRule, SimpleBalancer, TlsMode};
use isobar_proto::isobar::v1 as wire;
use wire::traffic_policy::LoadBalancer;

use super::hosts::Hosts;
use super::string_match::duration;

/// One object as a waypoint gets it, without its services, and what is not honoured in it.
#[derive(Debug)]
pub(super) struct Converted {
    /// The message; `services` is filled in per waypoint.
    pub(super) wire: wire::DestinationRule,
    /// Fields that are not honoured.
    pub(super) unsupported: Vec<String>,
}

/// Converts one object.
pub(super) fn convert(object: &DestinationRule, hosts: &Hosts) -> Converted {
    let spec = &object.spec;
    let mut unsupported = Vec::new();
    let mut subsets = Vec::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let at = format!("subsets[{index}].trafficPolicy");
        subsets.push(wire::Subset {
            name: subset.name.clone(),
            labels: subset.labels.clone(),
            traffic_policy: policy(subset.traffic_policy.as_ref(), &at, &mut unsupported),
        });
    }
    let traffic_policy = policy(
        spec.traffic_policy.as_ref(),
        "trafficPolicy",
        &mut unsupported,
    );
    if spec.workload_selector.is_some() {
        unsupported.push("workloadSelector".to_owned());
    }
    let wire = wire::DestinationRule {
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        subsets,
        traffic_policy,
        created: object.created(),
        host: hosts.resolve(&spec.host, object.namespace()),
        ..wire::DestinationRule::default()
    };
    unsupported.extend(isobar_route::unsupported_in_destination_rule(&wire));
    Converted { wire, unsupported }
}

fn policy(
    from: Option<&from::TrafficPolicy>,
    at: &str,
    unsupported: &mut Vec<String>,
) -> Option<wire::TrafficPolicy> {
    let from = from?;
    let mut note = |field: &str, set: bool| {
        if set {
            unsupported.push(format!("{at}.{field}"));
        }
    };
    note("outlierDetection", from.outlier_detection.is_some());
    note("portLevelSettings", !from.port_level_settings.is_empty());
    note("tunnel", from.tunnel.is_some());
    note("proxyProtocol", from.proxy_protocol.is_some());
    note("retryBudget", from.retry_budget.is_some());
    // The mesh's own mutual TLS is used towards endpoints whatever these two say.
    let own_tls = from
        .tls
        .as_ref()
        .and_then(|tls| tls.mode)
        .is_none_or(|mode| matches!(mode, TlsMode::Disable | TlsMode::IstioMutual));
    note("tls", !own_tls);
    let balancer = from.load_balancer.as_ref();
    if let Some(balancer) = balancer {
        note(
            "loadBalancer.consistentHash",
            balancer.consistent_hash.is_some(),
        );
        note(
            "loadBalancer.localityLbSetting",
            balancer.locality_lb_setting.is_some(),
        );
        note(
            "loadBalancer.zoneAwareLbSetting",
            balancer.zone_aware_lb_setting.is_some(),
        );
        let warmup = balancer.warmup.is_some() || balancer.warmup_duration_secs.is_some();
        note("loadBalancer.warmup", warmup);
    }
    let tcp = from
        .connection_pool
        .as_ref()
        .and_then(|pool| pool.tcp.as_ref());
    if let Some(tcp) = tcp {
        note(
            "connectionPool.tcp.tcpKeepalive",
            tcp.tcp_keepalive.is_some(),
        );
        let limits = tcp.max_connection_duration.is_some() || tcp.idle_timeout.is_some();
        note("connectionPool.tcp.idleTimeout", limits);
    }
    let http = from
        .connection_pool
        .as_ref()
        .is_some_and(|pool| pool.http.is_some());
    note("connectionPool.http", http);
    Some(wire::TrafficPolicy {
        load_balancer: simple(balancer.and_then(|b| b.simple)).into(),
        connection_pool: tcp.map(|tcp| wire::ConnectionPool {
            connect_timeout: tcp.connect_timeout.map(duration),
            max_connections: tcp
                .max_connections
                .and_then(|most| u32::try_from(most).ok())
                .unwrap_or_default(),
        }),
    })
}

const fn simple(from: Option<SimpleBalancer>) -> LoadBalancer {
    match from {
        None | Some(SimpleBalancer::Unspecified) => LoadBalancer::Unspecified,
        Some(SimpleBalancer::LeastConn | SimpleBalancer::LeastRequest) => {
            LoadBalancer::LeastRequest
        }
        Some(SimpleBalancer::Random) => LoadBalancer::Random,
        Some(SimpleBalancer::Passthrough) => LoadBalancer::Passthrough,
        Some(SimpleBalancer::RoundRobin) => LoadBalancer::RoundRobin,
    }
}
