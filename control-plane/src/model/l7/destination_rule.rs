use isobar_objects::ObjectHead;
use isobar_objects::istio as from;
use isobar_objects::istio::{DestinationRule, TlsMode};
use isobar_proto::isobar::v1 as wire;

use super::hosts::Hosts;
use super::traffic_policy;

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
            traffic_policy: policy(
                (subset.traffic_policy.as_ref(), object.namespace()),
                &at,
                &mut unsupported,
            ),
        });
    }
    let traffic_policy = policy(
        (spec.traffic_policy.as_ref(), object.namespace()),
        "trafficPolicy",
        &mut unsupported,
    );
    let wire = wire::DestinationRule {
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        subsets,
        traffic_policy,
        created: object.created(),
        host: hosts.resolve(&spec.host, object.namespace()),
        ..wire::DestinationRule::default()
    };
    Converted { wire, unsupported }
}

fn policy(
    (from, namespace): (Option<&from::TrafficPolicy>, &str),
    at: &str,
    unsupported: &mut Vec<String>,
) -> Option<wire::TrafficPolicy> {
    let from = from?;
    let mut note = |field: &str, set: bool| {
        if set {
            unsupported.push(format!("{at}.{field}"));
        }
    };
    note("tunnel", from.tunnel.is_some());
    tls_gaps(from.tls.as_ref(), "", &mut note);
    zone_aware(from.load_balancer.as_ref(), "", &mut note);
    let budget = from.retry_budget.as_ref();
    let interval = budget.is_some_and(|b| b.budget_interval.is_some());
    note("retryBudget.budgetInterval", interval);
    let mut port_level = Vec::new();
    for (index, port) in from.port_level_settings.iter().enumerate() {
        let place = format!("portLevelSettings[{index}].");
        tls_gaps(port.tls.as_ref(), &place, &mut note);
        zone_aware(port.load_balancer.as_ref(), &place, &mut note);
        port_level.push(wire::PortTrafficPolicy {
            port: port.port.as_ref().map_or(0, |port| port.number),
            policy: Some(traffic_policy::blocks(
                port.load_balancer.as_ref(),
                port.connection_pool.as_ref(),
                port.outlier_detection.as_ref(),
                (port.tls.as_ref(), namespace),
            )),
        });
    }
    Some(wire::TrafficPolicy {
        retry_budget: budget.map(|budget| wire::RetryBudget {
            percent: budget.percent.as_ref().map(|percent| percent.value),
            min_concurrency: budget.min_retry_concurrency,
        }),
        port_level,
        proxy_protocol: proxy_protocol(from.proxy_protocol.as_ref()).into(),
        ..traffic_policy::blocks(
            from.load_balancer.as_ref(),
            from.connection_pool.as_ref(),
            from.outlier_detection.as_ref(),
            (from.tls.as_ref(), namespace),
        )
    })
}

/// What of it is not honoured: it has calls refused.
fn tls_gaps(tls: Option<&from::TlsSettings>, place: &str, note: &mut impl FnMut(&str, bool)) {
    let Some(tls) = tls.filter(|tls| {
        let mode = tls.mode;
        matches!(mode, Some(TlsMode::Simple | TlsMode::Mutual))
    }) else {
        return;
    };
    let gap = |field: &str| format!("{place}tls.{field}");
    note(&gap("caCrl"), !tls.ca_crl.is_empty());
}

/// Version 1 where none is written, as in Istio.
fn proxy_protocol(from: Option<&from::ProxyProtocol>) -> wire::traffic_policy::ProxyProtocol {
    use wire::traffic_policy::ProxyProtocol;
    match from.map(|protocol| &*protocol.version) {
        None => ProxyProtocol::None,
        Some("V2") => ProxyProtocol::V2,
        Some(_) => ProxyProtocol::V1,
    }
}

fn zone_aware(
    balancer: Option<&from::LoadBalancer>,
    place: &str,
    note: &mut impl FnMut(&str, bool),
) {
    let set = balancer.is_some_and(|b| b.zone_aware_lb_setting.is_some());
    note(&format!("{place}loadBalancer.zoneAwareLbSetting"), set);
}
