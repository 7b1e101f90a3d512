use isobar_objects::istio as from;
use isobar_objects::istio::{H2UpgradePolicy, SimpleBalancer};
use isobar_proto::isobar::v1 as wire;
use wire::traffic_policy::LoadBalancer;

use super::string_match::duration;

/// The blocks that a port's policy has too.
pub(super) fn blocks(
    balancer: Option<&from::LoadBalancer>,
    pool: Option<&from::ConnectionPool>,
    outliers: Option<&from::OutlierDetection>,
) -> wire::TrafficPolicy {
    let hash = balancer.and_then(|b| b.consistent_hash.as_ref());
    wire::TrafficPolicy {
        load_balancer: simple(balancer.and_then(|b| b.simple)).into(),
        consistent_hash: hash.and_then(consistent_hash),
        locality: balancer
            .and_then(|b| b.locality_lb_setting.as_ref())
            .map(locality),
        warmup: balancer.and_then(warmup),
        connection_pool: pool.map(connection_pool),
        outlier_detection: outliers.map(outlier_detection),
        ..wire::TrafficPolicy::default()
    }
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

/// `None` without a key: validation has refused that already.
fn consistent_hash(from: &from::ConsistentHash) -> Option<wire::ConsistentHash> {
    use wire::consistent_hash::Key;
    let key = if let Some(name) = &from.http_header_name {
        Key::Header(name.clone())
    } else if let Some(cookie) = &from.http_cookie {
        Key::Cookie(wire::HashCookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl: cookie.ttl.map(duration),
            attributes: cookie
                .attributes
                .iter()
                .map(|one| wire::CookieAttribute {
                    name: one.name.clone(),
                    value: one.value.clone(),
                })
                .collect(),
        })
    } else if let Some(name) = &from.http_query_parameter_name {
        Key::QueryParameter(name.clone())
    } else if from.use_source_ip == Some(true) {
        Key::SourceIp(true)
    } else {
        return None;
    };
    Some(wire::ConsistentHash { key: Some(key) })
}

fn locality(from: &from::LocalitySetting) -> wire::LocalityBalancing {
    use wire::locality_balancing::{Distribute, Failover};
    wire::LocalityBalancing {
        off: from.enabled == Some(false),
        distribute: from
            .distribute
            .iter()
            .map(|one| Distribute {
                from: one.from.clone(),
                to: one.to.clone(),
            })
            .collect(),
        failover: from
            .failover
            .iter()
            .map(|one| Failover {
                from: one.from.clone(),
                to: one.to.clone(),
            })
            .collect(),
        failover_priority: from.failover_priority.clone(),
    }
}

fn warmup(from: &from::LoadBalancer) -> Option<wire::Warmup> {
    let new = from.warmup.clone().unwrap_or_default();
    let time = new.duration.or(from.warmup_duration_secs)?;
    Some(wire::Warmup {
        duration: Some(duration(time)),
        minimum_percent: new.minimum_percent.unwrap_or_default(),
        aggression: new.aggression.unwrap_or_default(),
    })
}

fn connection_pool(from: &from::ConnectionPool) -> wire::ConnectionPool {
    let tcp = from.tcp.clone().unwrap_or_default();
    wire::ConnectionPool {
        connect_timeout: tcp.connect_timeout.map(duration),
        max_connections: limit(tcp.max_connections),
        tcp_keepalive: tcp.tcp_keepalive.map(|keepalive| wire::TcpKeepalive {
            probes: keepalive.probes.unwrap_or_default(),
            time: keepalive.time.map(duration),
            interval: keepalive.interval.map(duration),
        }),
        max_connection_duration: tcp.max_connection_duration.map(duration),
        tcp_idle_timeout: tcp.idle_timeout.map(duration),
        http: from.http.as_ref().map(http_pool),
    }
}

fn http_pool(from: &from::HttpPool) -> wire::HttpPool {
    use wire::http_pool::Upgrade;
    let ping = from.http2_keep_alive.clone().unwrap_or_default();
    wire::HttpPool {
        max_pending: limit(from.http1_max_pending_requests),
        max_requests: limit(from.http2_max_requests),
        max_requests_per_connection: limit(from.max_requests_per_connection),
        max_retries: limit(from.max_retries),
        idle_timeout: from.idle_timeout.map(duration),
        h2_upgrade: match from.h2_upgrade_policy {
            None | Some(H2UpgradePolicy::Default) => Upgrade::Default,
            Some(H2UpgradePolicy::DoNotUpgrade) => Upgrade::DoNotUpgrade,
            Some(H2UpgradePolicy::Upgrade) => Upgrade::Upgrade,
        }
        .into(),
        use_client_protocol: from.use_client_protocol == Some(true),
        max_concurrent_streams: limit(from.max_concurrent_streams),
        ping_interval: ping.interval.map(duration),
        ping_timeout: ping.timeout.map(duration),
    }
}

fn outlier_detection(from: &from::OutlierDetection) -> wire::OutlierDetection {
    wire::OutlierDetection {
        consecutive_5xx: from.consecutive_5xx_errors,
        consecutive_gateway_errors: from.consecutive_gateway_errors.unwrap_or_default(),
        split_local_errors: from.split_external_local_origin_errors == Some(true),
        consecutive_local_failures: from.consecutive_local_origin_failures,
        interval: from.interval.map(duration),
        base_ejection_time: from.base_ejection_time.map(duration),
        max_ejection_percent: limit(from.max_ejection_percent),
        min_health_percent: limit(from.min_health_percent),
    }
}

/// A number that limits; absent, 0 and what validation refuses are none.
fn limit(from: Option<i32>) -> u32 {
    from.and_then(|most| u32::try_from(most).ok())
        .unwrap_or_default()
}
