use std::time::Duration;

use super::Report;
use super::virtual_service::host_name;
use crate::istio::{
    ConnectionPool, DestinationRuleSpec, HttpCookie, LoadBalancer, OutlierDetection, TcpPool,
    TlsMode, TlsSettings, TrafficPolicy,
};
use crate::names;

pub(super) fn check(spec: &DestinationRuleSpec, report: &mut Report) {
    if spec.host.is_empty() {
        report.error("spec.host", "must not be empty");
    } else {
        host_name("spec.host", &spec.host, report);
    }
    policy("spec.trafficPolicy", spec.traffic_policy.as_ref(), report);
    for (index, subset) in spec.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        if subset.name.is_empty() {
            report.error(format!("{field}.name"), "must not be empty");
        } else if !names::is_label(&subset.name) {
            let message = format!("{:?} is not a subset name", subset.name);
            report.error(format!("{field}.name"), message);
        }
        report.labels(&format!("{field}.labels"), Some(&subset.labels));
        let policy_field = format!("{field}.trafficPolicy");
        policy(&policy_field, subset.traffic_policy.as_ref(), report);
    }
    let named = spec.subsets.iter().enumerate();
    report.unique(
        "subset",
        named.map(|(index, subset)| {
            let field = format!("spec.subsets[{index}].name");
            (field, subset.name.as_str())
        }),
    );
}

fn policy(field: &str, policy: Option<&TrafficPolicy>, report: &mut Report) {
    let Some(policy) = policy else { return };
    balancer(field, policy.load_balancer.as_ref(), report);
    pool(field, policy.connection_pool.as_ref(), report);
    outliers(field, policy.outlier_detection.as_ref(), report);
    tls(field, policy.tls.as_ref(), report);
    let proxy = policy.proxy_protocol.as_ref();
    let version = proxy.map_or("", |proxy| &proxy.version);
    if !matches!(version, "" | "V1" | "V2") {
        let message = format!("{version:?} is neither V1 nor V2");
        report.error(format!("{field}.proxyProtocol.version"), message);
    }
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        match &port.port {
            Some(port) => report.port(format!("{field}.port.number"), port.number.into()),
            None => report.error(format!("{field}.port"), "must be there"),
        }
        balancer(&field, port.load_balancer.as_ref(), report);
        pool(&field, port.connection_pool.as_ref(), report);
        outliers(&field, port.outlier_detection.as_ref(), report);
        tls(&field, port.tls.as_ref(), report);
    }
}

fn tls(field: &str, tls: Option<&TlsSettings>, report: &mut Report) {
    let Some(tls) = tls else { return };
    let field = format!("{field}.tls");
    if tls.mode == Some(TlsMode::Disable) {
        let message = "pods of the mesh are still called with its own mutual TLS";
        report.warning(format!("{field}.mode"), message);
    }
    let files = [&tls.client_certificate, &tls.private_key];
    if tls.mode == Some(TlsMode::Mutual) && tls.credential_name.is_empty() {
        for (name, file) in ["clientCertificate", "privateKey"].iter().zip(files) {
            if file.is_empty() {
                report.error(format!("{field}.{name}"), "mode MUTUAL needs it");
            }
        }
    }
    if !tls.sni.is_empty() && !names::is_hostname(&tls.sni) {
        let message = format!("{:?} is not a host name", tls.sni);
        report.error(format!("{field}.sni"), message);
    }
    for (index, name) in tls.subject_alt_names.iter().enumerate() {
        let is_ip = name.parse::<std::net::IpAddr>().is_ok();
        if !name.contains("://") && !is_ip && !names::is_hostname(name) {
            let message = format!("{name:?} is no host name, address or URI");
            report.error(format!("{field}.subjectAltNames[{index}]"), message);
        }
    }
}

fn balancer(field: &str, balancer: Option<&LoadBalancer>, report: &mut Report) {
    let Some(balancer) = balancer else { return };
    let field = format!("{field}.loadBalancer");
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        report.error(
            format!("{field}.consistentHash"),
            "cannot be used with simple",
        );
    }
    if let Some(hash) = &balancer.consistent_hash {
        let sources = [
            hash.http_header_name.is_some(),
            hash.http_cookie.is_some(),
            hash.use_source_ip.is_some(),
            hash.http_query_parameter_name.is_some(),
        ];
        if sources.iter().filter(|one| **one).count() != 1 {
            report.error(
                format!("{field}.consistentHash"),
                "needs one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
            );
        }
        if let Some(name) = &hash.http_header_name {
            hashed(
                &format!("{field}.consistentHash.httpHeaderName"),
                name,
                report,
            );
        }
        if let Some(cookie) = &hash.http_cookie {
            sticky(
                &format!("{field}.consistentHash.httpCookie"),
                cookie,
                report,
            );
        }
    }
    if let Some(warmup) = &balancer.warmup {
        let field = format!("{field}.warmup");
        let least = warmup.minimum_percent;
        if least.is_some_and(|least| !(0.0..=100.0).contains(&least)) {
            report.error(format!("{field}.minimumPercent"), "must be 0 to 100");
        }
        // Istio's range; the largest number is where the curve is a step in all but name.
        if warmup.aggression.is_some_and(|a| !(1.0..=1e6).contains(&a)) {
            report.error(format!("{field}.aggression"), "must be 1 to 1000000");
        }
    }
    let locality = balancer.locality_lb_setting.iter();
    for (index, spread) in locality.flat_map(|setting| setting.distribute.iter().enumerate()) {
        let sum: u64 = spread.to.values().map(|share| u64::from(*share)).sum();
        if sum != 100 {
            let field = format!("{field}.localityLbSetting.distribute[{index}].to");
            report.error(field, format!("the shares add up to {sum}, not to 100"));
        }
    }
}

/// The header of a hash. Istio takes pseudo-headers too: the rule counts, without that hash.
fn hashed(field: &str, name: &str, report: &mut Report) {
    if matches!(name, ":authority" | ":path" | ":method" | ":scheme") {
        let message =
            format!("{name} cannot be hashed here: endpoints are chosen as without consistentHash");
        report.warning(field, message);
    } else if !names::is_header(name) {
        report.error(field, format!("{name:?} is not a header name"));
    }
}

/// The cookie of a hash, which the proxy writes where the caller has none.
fn sticky(field: &str, cookie: &HttpCookie, report: &mut Report) {
    if !names::is_header(&cookie.name) {
        let message = format!("{:?} is not the name of a cookie", cookie.name);
        report.error(format!("{field}.name"), message);
    }
    let attributes = cookie.attributes.iter().enumerate();
    let attributes = attributes.flat_map(|(index, one)| {
        let field = format!("{field}.attributes[{index}]");
        [
            (format!("{field}.name"), &one.name),
            (format!("{field}.value"), &one.value),
        ]
    });
    for (field, text) in attributes.chain([(format!("{field}.path"), &cookie.path)]) {
        report.header_value(field.clone(), text);
        if text.contains(';') {
            report.error(
                field,
                format!("{text:?} has a semicolon, which ends it in a cookie"),
            );
        }
    }
}

fn pool(field: &str, pool: Option<&ConnectionPool>, report: &mut Report) {
    let Some(pool) = pool else { return };
    let field = format!("{field}.connectionPool");
    if let Some(TcpPool {
        max_connections,
        connect_timeout,
        ..
    }) = &pool.tcp
    {
        not_negative(
            format!("{field}.tcp.maxConnections"),
            *max_connections,
            report,
        );
        if connect_timeout.is_some_and(|limit| limit < Duration::from_millis(1)) {
            report.error(
                format!("{field}.tcp.connectTimeout"),
                "must be at least 1ms",
            );
        }
    }
    if let Some(http) = &pool.http {
        for (name, value) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ] {
            not_negative(format!("{field}.http.{name}"), value, report);
        }
    }
}

fn outliers(field: &str, outliers: Option<&OutlierDetection>, report: &mut Report) {
    let Some(outliers) = outliers else { return };
    for (name, value) in [
        ("maxEjectionPercent", outliers.max_ejection_percent),
        ("minHealthPercent", outliers.min_health_percent),
    ] {
        if value.is_some_and(|share| !(0..=100).contains(&share)) {
            report.error(
                format!("{field}.outlierDetection.{name}"),
                "must be 0 to 100",
            );
        }
    }
    for (name, value) in [
        ("interval", outliers.interval),
        ("baseEjectionTime", outliers.base_ejection_time),
    ] {
        if value.is_some_and(|time| time < Duration::from_millis(1)) {
            let field = format!("{field}.outlierDetection.{name}");
            report.error(field, "must be at least 1ms");
        }
    }
}

fn not_negative(field: String, value: Option<i32>, report: &mut Report) {
    if let Some(value) = value.filter(|value| *value < 0) {
        report.error(field, format!("{value} is negative"));
    }
}
