//! What node proxies honour for outgoing calls beyond Istio's resources: where workloads may go, and
//! `connectionPool.tcp` of DestinationRules whose service no waypoint serves.

use isobar_objects::istio::{DestinationRule, TcpPool};
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::labels;
use wire::outbound_policy::Kind;

use super::l7::{Hosts, exactness, is_exported};
use super::services::ServicePlan;
use super::settings::{OutboundTraffic, Settings};
use super::verdict::{Severity, Verdict};

/// Condition type for what node proxies do with it.
const CONDITION: &str = "ZtunnelAccepted";

/// Everything node proxies get, and what to tell.
pub(crate) fn policies(
    set: &ObjectSet,
    settings: &Settings,
    hosts: &Hosts,
    services: &[ServicePlan],
    verdicts: &mut Vec<Verdict>,
) -> Vec<wire::OutboundPolicy> {
    let mut all = egress(set, settings.outbound, verdicts);
    for service in services {
        let served = service.wire.waypoint.is_some() || !service.wire.weighted_waypoints.is_empty();
        if served || service.is_waypoint {
            continue;
        }
        let Some((rule, tcp)) = rule_for(set, settings, hosts, service) else {
            continue;
        };
        let text = format!("node proxies limit connections to service {}", service.key);
        let verdict = Verdict::holds(rule.reference(), CONDITION, "Accepted", text);
        verdicts.push(verdict);
        let limits = wire::ConnectionLimits {
            namespace: service.key.namespace.to_string(),
            hostname: service.wire.hostname.clone(),
            max_connections: tcp
                .max_connections
                .and_then(|most| u32::try_from(most).ok())
                .unwrap_or_default(),
            connect_timeout: tcp
                .connect_timeout
                .and_then(|time| prost_types::Duration::try_from(time).ok()),
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
    service: &ServicePlan,
) -> Option<(&'a DestinationRule, &'a TcpPool)> {
    let hostname = &service.wire.hostname;
    let places = [&*service.key.namespace, &*settings.root_namespace];
    let rule = places.into_iter().find_map(|namespace| {
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
    })?;
    let pool = rule
        .spec
        .traffic_policy
        .as_ref()?
        .connection_pool
        .as_ref()?;
    let tcp = pool.tcp.as_ref()?;
    let limits = tcp.max_connections.is_some() || tcp.connect_timeout.is_some();
    limits.then_some((rule, tcp))
}
