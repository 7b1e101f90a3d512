//! What node proxies honour for outgoing calls beyond Istio's resources: where workloads may go, and
//! `connectionPool.tcp` and `outlierDetection` of DestinationRules whose service no waypoint serves.

use std::time::Duration;

use isobar_objects::istio::{DestinationRule, OutlierDetection, TcpPool, TlsMode};
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_proto::istio::workload;
use isobar_types::labels;
use wire::outbound_policy::Kind;

use super::l7::{Hosts, exactness, is_exported};
use super::service_entries::EntryPlan;
use super::services::ServicePlan;
use super::settings::{OutboundTraffic, Settings};
use super::verdict::{Severity, Verdict};

/// Condition type for what node proxies do with it.
const CONDITION: &str = "ZtunnelAccepted";

/// Default of `consecutive5xxErrors` and of `consecutiveLocalOriginFailures`.
const FAILURES: u32 = 5;
/// Default of `maxEjectionPercent`.
const MAX_EJECTED_PERCENT: u32 = 10;

/// Everything that calls may be for: Services, and hosts of ServiceEntries.
pub(crate) struct Reached<'a>(pub(crate) &'a [ServicePlan], pub(crate) &'a [EntryPlan<'a>]);

impl<'a> Reached<'a> {
    /// All whose calls no waypoint takes.
    fn directly(&self) -> impl Iterator<Item = &'a workload::Service> {
        let services = self.0.iter().filter(|service| !service.is_waypoint);
        let entries = self.1.iter().map(|entry| &entry.wire);
        services
            .map(|service| &service.wire)
            .chain(entries)
            .filter(|wire| wire.waypoint.is_none() && wire.weighted_waypoints.is_empty())
    }
}

/// Everything node proxies get, and what to tell.
pub(crate) fn policies(
    set: &ObjectSet,
    settings: &Settings,
    hosts: &Hosts,
    reached: &Reached<'_>,
    verdicts: &mut Vec<Verdict>,
) -> Vec<wire::OutboundPolicy> {
    let mut all = egress(set, settings.outbound, verdicts);
    for service in reached.directly() {
        let Some(rule) = rule_for(set, settings, hosts, service) else {
            continue;
        };
        if begins_tls(rule) {
            let text = format!(
                "no waypoint serves {}: its trafficPolicy.tls is not begun, and calls go on as they are",
                service.hostname
            );
            let object = rule.reference();
            let verdict = Verdict::fails(object, CONDITION, "UnsupportedValue", text);
            verdicts.push(verdict.severity(Severity::Warning));
        }
        let tcp = tcp(rule).cloned().unwrap_or_default();
        let outliers = outliers(rule);
        let limited = tcp.max_connections.is_some() || tcp.connect_timeout.is_some();
        if !limited && outliers.is_none() {
            continue;
        }
        let text = format!(
            "node proxies apply its connectionPool.tcp and outlierDetection to service {}/{}",
            service.namespace, service.name
        );
        // One condition: what does not hold is told first.
        if !begins_tls(rule) {
            verdicts.push(Verdict::holds(
                rule.reference(),
                CONDITION,
                "Accepted",
                text,
            ));
        }
        let limits = wire::ConnectionLimits {
            namespace: service.namespace.clone(),
            hostname: service.hostname.clone(),
            max_connections: tcp
                .max_connections
                .and_then(|most| u32::try_from(most).ok())
                .unwrap_or_default(),
            connect_timeout: tcp
                .connect_timeout
                .and_then(|time| prost_types::Duration::try_from(time).ok()),
            outliers,
        };
        all.push(of(Kind::Limits(limits)));
    }
    all
}

fn of(kind: Kind) -> wire::OutboundPolicy {
    wire::OutboundPolicy { kind: Some(kind) }
}

/// The mesh's default, where it is not "anywhere", and what namespaces say.
fn egress(
    set: &ObjectSet,
    default: OutboundTraffic,
    verdicts: &mut Vec<Verdict>,
) -> Vec<wire::OutboundPolicy> {
    let one = |namespace: &str, mode: OutboundTraffic| {
        of(Kind::Egress(wire::Egress {
            namespace: namespace.to_owned(),
            registry_only: mode == OutboundTraffic::RegistryOnly,
        }))
    };
    let mut all = Vec::new();
    if default != OutboundTraffic::default() {
        all.push(one("", default));
    }
    for namespace in set.namespaces.iter() {
        let Some(word) = namespace.label(labels::OUTBOUND_TRAFFIC_POLICY) else {
            continue;
        };
        if let Some(mode) = OutboundTraffic::parse(word) {
            all.push(one(namespace.name(), mode));
            continue;
        }
        let text = format!(
            "label {}={word:?} is neither ALLOW_ANY nor REGISTRY_ONLY; workloads of the namespace \
             reach the mesh only",
            labels::OUTBOUND_TRAFFIC_POLICY
        );
        let object = namespace.reference();
        let verdict = Verdict::fails(object, CONDITION, "UnsupportedValue", text);
        verdicts.push(verdict.severity(Severity::Warning));
        all.push(one(namespace.name(), OutboundTraffic::RegistryOnly));
    }
    all
}

/// The rule that counts for a service: of its own namespace, else of the root namespace; among
/// these the most exact host, then the oldest. A rule for some callers only (`workloadSelector`,
/// `exportTo`) is not honoured.
fn rule_for<'a>(
    set: &'a ObjectSet,
    settings: &Settings,
    hosts: &Hosts,
    service: &workload::Service,
) -> Option<&'a DestinationRule> {
    let hostname = &service.hostname;
    let places = [&*service.namespace, &*settings.root_namespace];
    places.into_iter().find_map(|namespace| {
        set.destination_rules
            .in_namespace(namespace)
            .filter(|rule| {
                let all = is_exported(&rule.spec.export_to, "*", namespace);
                all && rule.spec.workload_selector.is_none()
            })
            .filter_map(|rule| {
                let host = hosts.resolve(&rule.spec.host, namespace);
                Some((exactness(&host, hostname)?, rule))
            })
            .max_by(|(a, one), (b, other)| {
                let age = |rule: &DestinationRule| (rule.created(), rule.name().to_owned());
                a.cmp(b)
                    .then_with(|| age(&other.object).cmp(&age(&one.object)))
            })
            .map(|(_, rule)| &rule.object)
    })
}

/// True if it asks for TLS of its own, which node proxies do not begin.
fn begins_tls(rule: &DestinationRule) -> bool {
    let policy = rule.spec.traffic_policy.as_ref();
    let ports = policy.into_iter().flat_map(|p| &p.port_level_settings);
    let all = ports
        .map(|port| port.tls.as_ref())
        .chain([policy.and_then(|p| p.tls.as_ref())]);
    let mut modes = all.flatten().filter_map(|tls| tls.mode);
    modes.any(|mode| matches!(mode, TlsMode::Simple | TlsMode::Mutual))
}

fn tcp(rule: &DestinationRule) -> Option<&TcpPool> {
    let policy = rule.spec.traffic_policy.as_ref()?;
    policy.connection_pool.as_ref()?.tcp.as_ref()
}

/// When endpoints are left out, in the words of node proxies. At L4 a connection that cannot be made
/// is the only error there is: it counts as one of local origin where those are split off, and
/// otherwise as a gateway error and as a 5xx, as in Envoy.
fn outliers(rule: &DestinationRule) -> Option<wire::connection_limits::Outliers> {
    let policy = rule.spec.traffic_policy.as_ref()?;
    let asked = policy.outlier_detection.as_ref()?;
    let time = |time: Option<Duration>| time.and_then(|t| prost_types::Duration::try_from(t).ok());
    let percent = |value: Option<i32>, default: u32| {
        let value = value.map(|value| u32::try_from(value).unwrap_or_default());
        value.unwrap_or(default).min(100)
    };
    Some(wire::connection_limits::Outliers {
        failures: failures(asked)?,
        interval: time(asked.interval),
        base_ejection: time(asked.base_ejection_time),
        max_ejected_percent: percent(asked.max_ejection_percent, MAX_EJECTED_PERCENT),
        min_healthy_percent: percent(asked.min_health_percent, 0),
    })
}

/// Failed connections in a row that take an endpoint out; `None`: they never do. 0 switches one kind
/// of counting off.
fn failures(asked: &OutlierDetection) -> Option<u32> {
    let kinds = if asked.split_external_local_origin_errors == Some(true) {
        [
            Some(asked.consecutive_local_origin_failures.unwrap_or(FAILURES)),
            None,
        ]
    } else {
        let old = asked.consecutive_errors.and_then(|n| u32::try_from(n).ok());
        let errors = asked.consecutive_5xx_errors.or(old).unwrap_or(FAILURES);
        [Some(errors), asked.consecutive_gateway_errors]
    };
    kinds.into_iter().flatten().filter(|n| *n > 0).min()
}
