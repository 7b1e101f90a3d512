use isobar_objects::istio as from;
use isobar_objects::istio::{H2UpgradePolicy, SimpleBalancer, TlsMode};
use isobar_proto::isobar::v1 as wire;
use wire::traffic_policy::LoadBalancer;

use super::credentials;
use super::string_match::duration;

/// The blocks that a port's policy has too.
pub(super) fn blocks(
    balancer: Option<&from::LoadBalancer>,
    pool: Option<&from::ConnectionPool>,
    outliers: Option<&from::OutlierDetection>,
    (tls, namespace): (Option<&from::TlsSettings>, &str),
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
        tls: tls.map(|tls| endpoint_tls(tls, namespace)),
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

/// `None` without a key, which validation has refused already, and for pseudo-headers, which it warns of.
fn consistent_hash(from: &from::ConsistentHash) -> Option<wire::ConsistentHash> {
    use wire::consistent_hash::Key;
    let key = if let Some(name) = &from.http_header_name {
        if name.starts_with(':') {
            return None;
        }
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

/// TLS that waypoints begin. What is missing for it has calls refused: they would go out otherwise
/// than its author means.
fn endpoint_tls(from: &from::TlsSettings, namespace: &str) -> wire::EndpointTls {
    let begun = matches!(from.mode, Some(TlsMode::Simple | TlsMode::Mutual));
    if !begun {
        return wire::EndpointTls {
            off: true,
            ..wire::EndpointTls::default()
        };
    }
    let mutual = from.mode == Some(TlsMode::Mutual);
    let unverified = from.insecure_skip_verify == Some(true);
    let by_name = !from.credential_name.is_empty();
    let files = [&from.client_certificate, &from.private_key];
    let incomplete = files.iter().any(|file| file.is_empty());
    let refuse = if !from.ca_crl.is_empty() {
        "tls.caCrl is not supported"
    } else if mutual && !by_name && incomplete {
        "tls.mode MUTUAL needs clientCertificate and privateKey"
    } else {
        ""
    };
    // Files do not count beside a Secret, nor does half of what is needed.
    let shown = |file: &String, counts: bool| match counts && !by_name && refuse.is_empty() {
        true => file.clone(),
        false => String::new(),
    };
    let named = |counts: bool, name: fn(&str, &str) -> String| match counts && by_name {
        true => name(namespace, &from.credential_name),
        false => String::new(),
    };
    wire::EndpointTls {
        off: false,
        sni: from.sni.clone(),
        subject_alt_names: from.subject_alt_names.clone(),
        ca_certificates: shown(&from.ca_certificates, !unverified),
        client_certificate: shown(&from.client_certificate, mutual),
        private_key: shown(&from.private_key, mutual),
        credential: named(mutual, credentials::identity),
        authority: named(!unverified, credentials::authority),
        unverified,
        refuse: refuse.to_owned(),
    }
}

/// A number that limits; absent, 0 and what validation refuses are none.
fn limit(from: Option<i32>) -> u32 {
    from.and_then(|most| u32::try_from(most).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slow_start_may_be_written_in_its_old_form() {
        let old = from::LoadBalancer {
            warmup_duration_secs: Some(Duration::from_secs(30)),
            ..from::LoadBalancer::default()
        };
        let seconds = |from: &from::LoadBalancer| warmup(from)?.duration.map(|d| d.seconds);
        assert_eq!(seconds(&old), Some(30));
        let both = from::LoadBalancer {
            warmup: Some(from::Warmup {
                duration: Some(Duration::from_secs(10)),
                ..from::Warmup::default()
            }),
            ..old
        };
        assert_eq!(seconds(&both), Some(10));
        assert_eq!(seconds(&from::LoadBalancer::default()), None);
    }

    #[test]
    fn tls_that_cannot_be_begun_as_written_refuses() {
        let mutual = from::TlsSettings {
            mode: Some(TlsMode::Mutual),
            client_certificate: "/c".into(),
            private_key: "/k".into(),
            sni: "a.example".into(),
            ..from::TlsSettings::default()
        };
        let made = endpoint_tls(&mutual, "ns");
        assert_eq!(
            (&*made.client_certificate, &*made.private_key),
            ("/c", "/k")
        );
        assert_eq!(
            (&*made.sni, &*made.refuse, made.off),
            ("a.example", "", false)
        );
        let simple = from::TlsSettings {
            mode: Some(TlsMode::Simple),
            ..mutual.clone()
        };
        assert!(endpoint_tls(&simple, "ns").client_certificate.is_empty());
        for (bad, word) in [
            (
                from::TlsSettings {
                    ca_crl: "/l".into(),
                    ..simple
                },
                "caCrl",
            ),
            (
                from::TlsSettings {
                    private_key: String::new(),
                    ..mutual.clone()
                },
                "privateKey",
            ),
        ] {
            let made = endpoint_tls(&bad, "ns");
            assert!(
                made.refuse.contains(word) && made.client_certificate.is_empty(),
                "{made:?}"
            );
        }
        for mode in [None, Some(TlsMode::Disable), Some(TlsMode::IstioMutual)] {
            assert!(
                endpoint_tls(
                    &from::TlsSettings {
                        mode,
                        ..mutual.clone()
                    },
                    "ns"
                )
                .off
            );
        }
    }

    #[test]
    fn a_secret_takes_the_place_of_files() {
        let mutual = from::TlsSettings {
            mode: Some(TlsMode::Mutual),
            credential_name: "kubernetes://keys".into(),
            client_certificate: "/c".into(),
            ca_certificates: "/r".into(),
            ..from::TlsSettings::default()
        };
        let of = |from: &from::TlsSettings| {
            let made = endpoint_tls(from, "ns");
            let files = [&made.ca_certificates, &made.client_certificate];
            assert!(files.iter().all(|file| file.is_empty()), "{made:?}");
            assert!(!made.off && made.refuse.is_empty(), "{made:?}");
            (made.credential, made.authority, made.unverified)
        };
        let both = ("ns/keys".to_owned(), "ns/keys-cacert".to_owned(), false);
        assert_eq!(of(&mutual), both);
        let simple = from::TlsSettings {
            mode: Some(TlsMode::Simple),
            ..mutual
        };
        let roots = (String::new(), both.1, false);
        assert_eq!(of(&simple), roots);
        let blind = from::TlsSettings {
            insecure_skip_verify: Some(true),
            ..simple
        };
        assert_eq!(of(&blind), (String::new(), String::new(), true));
    }
}
