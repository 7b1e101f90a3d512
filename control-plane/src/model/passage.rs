//! What becomes of policies of node proxies where traffic passes a waypoint: the node proxy sees the
//! waypoint as the caller. A DENY is asked by the waypoint too, about its own callers, but for what
//! spares the waypoint by name; an ALLOW is not. Either may refuse the waypoint itself.

use std::collections::{BTreeMap, BTreeSet};

use isobar_proto::istio::security as wire;
use isobar_proto::istio::security::string_match::MatchType;
use isobar_proto::istio::workload::gateway_address::Destination;
use isobar_types::{Identity, NamespacedName};

use super::authorization::CONDITION;
use super::gateways::Gateways;
use super::services::ServicePlan;
use super::verdict::{Severity, Verdict};
use super::workloads::WorkloadPlan;

type Waypoints = BTreeSet<NamespacedName>;

/// Key of a policy.
type Key<'a> = (&'a str, &'a str);

/// Waypoints that traffic under a policy passes; those of them that it refuses, and those that it
/// spares by name.
#[derive(Default)]
struct Passed {
    all: Waypoints,
    refused: Waypoints,
    spared: Waypoints,
}

/// Adds to what is told about `policies` what waypoints make of them.
pub(crate) fn tell(
    policies: &[wire::Authorization],
    (workloads, services): (&[WorkloadPlan], &[ServicePlan]),
    gateways: &Gateways<'_>,
    verdicts: &mut [Verdict],
) {
    if policies.is_empty() || gateways.is_empty() {
        return;
    }
    let index = Index::new(policies);
    let ways = Ways::new(services, gateways);
    let mut passed: BTreeMap<Key<'_>, Passed> = BTreeMap::new();
    for workload in workloads.iter().filter(|w| w.instance_of.is_none()) {
        let waypoints = ways.of(workload);
        if waypoints.is_empty() {
            continue;
        }
        let applicable = index.of(workload);
        for waypoint in &waypoints {
            let Some(gateway) = gateways.get(waypoint) else {
                continue;
            };
            let allows = || {
                applicable
                    .iter()
                    .filter(|p| p.action() == wire::Action::Allow)
            };
            let admitted = allows().any(|policy| admits(policy, &gateway.identity));
            for policy in &applicable {
                let of = passed.entry(key(policy)).or_default();
                of.all.insert(waypoint.clone());
                let refused = match policy.action() {
                    wire::Action::Allow => !admitted,
                    wire::Action::Deny => refuses(policy, &gateway.identity),
                };
                if refused {
                    of.refused.insert(waypoint.clone());
                }
                if spares(policy, &gateway.identity) {
                    of.spared.insert(waypoint.clone());
                }
            }
        }
    }
    let mut told: BTreeMap<String, &mut Verdict> = verdicts
        .iter_mut()
        .filter(|verdict| verdict.holds && verdict.condition == CONDITION)
        .map(|verdict| (verdict.object.to_string(), verdict))
        .collect();
    for policy in policies {
        let object = format!("AuthorizationPolicy {}/{}", policy.namespace, policy.name);
        if let (Some(passed), Some(told)) = (passed.get(&key(policy)), told.get_mut(&object)) {
            amend(policy, passed, gateways, told);
        }
    }
}

fn key(policy: &wire::Authorization) -> Key<'_> {
    (&policy.namespace, &policy.name)
}

fn amend(
    policy: &wire::Authorization,
    passed: &Passed,
    gateways: &Gateways<'_>,
    told: &mut Verdict,
) {
    let list = |names: &Waypoints| {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    let refused = !passed.refused.is_empty();
    let mut more = match policy.action() {
        wire::Action::Deny => {
            let all = list(&passed.all);
            format!("; for traffic that passes a waypoint, by that one on its own callers ({all})")
        }
        wire::Action::Allow if refused => String::new(),
        wire::Action::Allow => format!(
            "; traffic that passes a waypoint is taken as the waypoint's ({}), whose callers only \
             policies with targetRefs tell apart",
            list(&passed.all)
        ),
    };
    if policy.action() == wire::Action::Deny && !passed.spared.is_empty() {
        more.push_str(&format!(
            "; sources that spare the waypoint {} by name are about the way to the workload, and \
             not asked about its callers: for those, use targetRefs",
            list(&passed.spared)
        ));
    }
    if refused {
        told.reason = "WaypointRefused";
        told.severity = told.severity.max(Severity::Warning);
        let principals = passed.refused.iter().filter_map(|name| gateways.get(name));
        let principals: Vec<_> = principals.map(|g| g.identity.principal()).collect();
        let (what, how) = match policy.action() {
            wire::Action::Allow => ("no rule allows", "allow"),
            wire::Action::Deny => ("its rules hit", "spare (notPrincipals)"),
        };
        more.push_str(&format!(
            "; {what} the waypoint {}, so what comes through it is refused: write rules for \
             callers in a policy with targetRefs, and {how} {} here",
            list(&passed.refused),
            principals.join(", ")
        ));
    }
    told.message.push_str(&more);
}

/// Policies by what they apply to.
struct Index<'a> {
    everywhere: Vec<&'a wire::Authorization>,
    namespaces: BTreeMap<&'a str, Vec<&'a wire::Authorization>>,
    selective: BTreeMap<String, &'a wire::Authorization>,
}

impl<'a> Index<'a> {
    fn new(policies: &'a [wire::Authorization]) -> Self {
        let mut index = Self {
            everywhere: Vec::new(),
            namespaces: BTreeMap::new(),
            selective: BTreeMap::new(),
        };
        for policy in policies {
            match policy.scope() {
                wire::Scope::Global => index.everywhere.push(policy),
                wire::Scope::Namespace => {
                    let of = index.namespaces.entry(&policy.namespace);
                    of.or_default().push(policy);
                }
                wire::Scope::WorkloadSelector => {
                    let key = format!("{}/{}", policy.namespace, policy.name);
                    index.selective.insert(key, policy);
                }
            }
        }
        index
    }

    fn of(&self, workload: &WorkloadPlan) -> Vec<&'a wire::Authorization> {
        let wire = &workload.wire;
        let listed = wire.authorization_policies.iter();
        let namespace = self.namespaces.get(&*wire.namespace);
        let wide = self
            .everywhere
            .iter()
            .chain(namespace.into_iter().flatten());
        wide.chain(listed.filter_map(|key| self.selective.get(key)))
            .copied()
            .collect()
    }
}

/// Waypoints on the way to workloads.
struct Ways<'a> {
    by_host: BTreeMap<(&'a str, &'a str), &'a NamespacedName>,
    by_service: BTreeMap<String, &'a [NamespacedName]>,
}

impl<'a> Ways<'a> {
    fn new(services: &'a [ServicePlan], gateways: &'a Gateways<'_>) -> Self {
        let by_host = gateways
            .values()
            .map(|g| ((&*g.key.namespace, &*g.hostname), &g.key));
        let by_service = services.iter().map(|service| {
            let name = format!("{}/{}", service.key.namespace, service.wire.hostname);
            (name, &*service.waypoints)
        });
        Self {
            by_host: by_host.collect(),
            by_service: by_service.collect(),
        }
    }

    fn of(&self, workload: &WorkloadPlan) -> Waypoints {
        let wire = &workload.wire;
        let services = wire.services.keys();
        let mut all: Waypoints = services
            .filter_map(|name| self.by_service.get(name))
            .flat_map(|waypoints| waypoints.iter().cloned())
            .collect();
        let own = wire.waypoint.as_ref().and_then(|w| w.destination.as_ref());
        if let Some(Destination::Hostname(host)) = own
            && let Some(key) = self.by_host.get(&(&*host.namespace, &*host.hostname))
        {
            all.insert((*key).clone());
        }
        all
    }
}

/// True if some rule may hold for a caller with that identity, from some address to some port.
fn admits(policy: &wire::Authorization, identity: &Identity) -> bool {
    policy.rules.iter().any(|rule| {
        rule.clauses.iter().all(|clause| {
            clause.matches.is_empty() || clause.matches.iter().any(|m| may_be(m, identity))
        })
    })
}

/// True if some rule about who calls holds for that identity wherever it calls from.
fn refuses(policy: &wire::Authorization, identity: &Identity) -> bool {
    let certain = |m: &wire::Match| {
        m.source_ips.is_empty() && m.not_source_ips.is_empty() && may_be(m, identity)
    };
    policy.rules.iter().any(|rule| {
        let mut all = rule.clauses.iter().flat_map(|clause| &clause.matches);
        all.any(about_callers)
            && rule
                .clauses
                .iter()
                .all(|clause| clause.matches.is_empty() || clause.matches.iter().any(certain))
    })
}

fn about_callers(m: &wire::Match) -> bool {
    let texts = [
        &m.principals,
        &m.not_principals,
        &m.namespaces,
        &m.not_namespaces,
    ];
    texts.iter().any(|list| !list.is_empty())
        || !m.service_accounts.is_empty()
        || !m.not_service_accounts.is_empty()
}

/// True if some match names that identity among those it does not hit.
fn spares(policy: &wire::Authorization, identity: &Identity) -> bool {
    let principal = identity.principal();
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    clauses.flat_map(|clause| &clause.matches).any(|m| {
        let named = |t: &wire::StringMatch| {
            matches!(&t.match_type, Some(MatchType::Exact(text)) if *text == principal)
        };
        let mut accounts = m.not_service_accounts.iter();
        m.not_principals.iter().any(named) || accounts.any(|a| is_account(a, identity))
    })
}

fn is_account(a: &wire::ServiceAccountMatch, identity: &Identity) -> bool {
    *a.namespace == *identity.namespace && *a.service_account == *identity.service_account
}

fn may_be(m: &wire::Match, identity: &Identity) -> bool {
    let principal = identity.principal();
    let account = |a: &wire::ServiceAccountMatch| is_account(a, identity);
    *m != wire::Match::default()
        && group(&m.principals, &m.not_principals, |t| hits(t, &principal))
        && group(&m.namespaces, &m.not_namespaces, |t| {
            hits(t, &identity.namespace)
        })
        && group(&m.service_accounts, &m.not_service_accounts, account)
}

fn group<T>(yes: &[T], no: &[T], hit: impl Fn(&T) -> bool) -> bool {
    (yes.is_empty() || yes.iter().any(&hit)) && !no.iter().any(&hit)
}

fn hits(wanted: &wire::StringMatch, text: &str) -> bool {
    match &wanted.match_type {
        Some(MatchType::Exact(want)) => text == want,
        Some(MatchType::Prefix(want)) => text.starts_with(want.as_str()),
        Some(MatchType::Suffix(want)) => text.ends_with(want.as_str()),
        Some(MatchType::Presence(())) => !text.is_empty(),
        None => false,
    }
}
