use std::collections::BTreeSet;

use isobar_objects::rate_limit::{CallerPart, RateLimit, RateLimitPolicy};
use isobar_objects::{Kind as ObjectKind, ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedName;
use wire::rate_limit::{Caller, Key, key::Kind};

use super::super::verdict::{Severity, Verdict};
use super::served::Served;
use super::string_match::duration;
use super::target_refs::{Chosen, FOREIGN, Places};
use super::virtual_service::http_match;

/// Condition type for what waypoints do with a policy.
const CONDITION: &str = "WaypointAccepted";

/// Rate limits, and what they are about.
#[derive(Debug)]
pub(super) struct Rates {
    /// The message, without its targets.
    wire: wire::RateLimitPolicy,
    chosen: Chosen,
}

/// All policies, and what to tell about them.
pub(super) fn read(set: &ObjectSet, places: Places<'_>, verdicts: &mut Vec<Verdict>) -> Vec<Rates> {
    let policies = set.rate_limit_policies.iter();
    let named = named_by_routes(set);
    policies
        .map(|policy| {
            let mut chosen = Chosen::default();
            let targets = policy.spec.target_refs.iter();
            let added = targets.map(|target| chosen.add(target, policy.namespace(), places));
            let problems: Vec<_> = added.filter_map(Result::err).collect();
            let key = (policy.namespace(), policy.name());
            verdicts.push(if policy.spec.target_refs.is_empty() {
                untargeted(policy, named.contains(&key))
            } else {
                verdict(policy, &chosen, &problems, places)
            });
            Rates {
                wire: convert(policy),
                chosen,
            }
        })
        .collect()
}

/// Namespace and name of policies that rules or destinations of routes name.
fn named_by_routes(set: &ObjectSet) -> BTreeSet<(&str, &str)> {
    let http = set.http_routes.iter().flat_map(|route| {
        let rules = route.spec.rules.iter();
        let lists = rules.map(|rule| (&rule.filters, &rule.backend_refs));
        lists.map(|lists| (route.namespace(), lists))
    });
    let grpc = set.grpc_routes.iter().flat_map(|route| {
        let rules = route.spec.rules.iter();
        let lists = rules.map(|rule| (&rule.filters, &rule.backend_refs));
        lists.map(|lists| (route.namespace(), lists))
    });
    let filters = http.chain(grpc).flat_map(|(namespace, (own, to))| {
        let all = own.iter().chain(to.iter().flat_map(|to| &to.filters));
        all.map(move |filter| (namespace, filter))
    });
    let named = filters.filter_map(|(namespace, filter)| {
        let named = filter.extension_ref.as_ref()?;
        let ours = named.kind == ObjectKind::RateLimitPolicy.as_str();
        ours.then_some((namespace, named.name.as_str()))
    });
    named.collect()
}

/// One that is about what routes say.
fn untargeted(policy: &RateLimitPolicy, named: bool) -> Verdict {
    if named {
        let text = "counted by each copy of the waypoints of the routes that name it on its own";
        return Verdict::holds(policy.reference(), CONDITION, "Accepted", text);
    }
    let text = "it has no target, and no route names it: it limits nothing";
    let fails = Verdict::fails(
        policy.reference(),
        CONDITION,
        "TargetNotFound",
        text.to_owned(),
    );
    fails.severity(Severity::Warning)
}

fn verdict(
    policy: &RateLimitPolicy,
    chosen: &Chosen,
    problems: &[String],
    places: Places<'_>,
) -> Verdict {
    let fails = |reason, text| Verdict::fails(policy.reference(), CONDITION, reason, text);
    if !problems.is_empty() {
        let reason = if chosen.is_some() {
            "PartiallyInvalid"
        } else {
            "TargetNotFound"
        };
        return fails(reason, problems.join("; "));
    }
    let bare = |one: &Served<'_>| chosen.names(one.owner) && one.waypoints.is_empty();
    if let Some(bare) = places.served().find(bare) {
        let owner = bare.owner;
        let text = format!("{owner} has no waypoint: requests to it are not limited");
        return fails("AncestorNotBound", text).severity(Severity::Warning);
    }
    if let Some(what) = chosen.foreign(places) {
        let text = format!("{what}: whether it counts requests by the policy is not known here");
        return fails(FOREIGN, text).severity(Severity::Warning);
    }
    let text = "counted by each copy of the waypoints of its targets on its own";
    Verdict::holds(policy.reference(), CONDITION, "Accepted", text)
}

impl Rates {
    /// The message for one waypoint, if the policy is about it or a service it serves.
    pub(super) fn for_waypoint(
        &self,
        waypoint: &NamespacedName,
        served: &[Served<'_>],
    ) -> Option<wire::RateLimitPolicy> {
        let (whole_waypoint, services) = self.chosen.at(waypoint, served)?;
        Some(wire::RateLimitPolicy {
            whole_waypoint,
            services,
            ..self.wire.clone()
        })
    }

    /// Label keys that its matches name.
    pub(super) fn label_keys(&self) -> impl Iterator<Item = &String> {
        let matches = self.wire.limits.iter().flat_map(|limit| &limit.matches);
        matches.flat_map(|one| one.source_labels.keys())
    }
}

pub(super) fn convert(policy: &RateLimitPolicy) -> wire::RateLimitPolicy {
    wire::RateLimitPolicy {
        namespace: policy.namespace().to_owned(),
        name: policy.name().to_owned(),
        limits: policy.spec.limits.iter().map(limit).collect(),
        created: policy.created(),
        ..wire::RateLimitPolicy::default()
    }
}

fn limit(from: &RateLimit) -> wire::RateLimit {
    let part = |part: &CallerPart| match part {
        CallerPart::Identity => Caller::Identity,
        CallerPart::Namespace => Caller::Namespace,
        CallerPart::Address => Caller::Address,
    };
    let keys = from.by.iter().map(|key| {
        let caller = key.caller.as_ref().map(|c| Kind::Caller(part(c).into()));
        let header = key.header.clone().map(Kind::Header);
        let query = key.query_param.clone().map(Kind::QueryParam);
        Key {
            kind: caller.or(header).or(query).or(Some(Kind::Path(true))),
        }
    });
    wire::RateLimit {
        name: from.name.clone(),
        matches: from.matches.iter().map(http_match).collect(),
        routes: from.routes.clone(),
        keys: keys.collect(),
        requests: from.requests,
        per: from.per.map(duration),
        burst: from.burst.unwrap_or_default(),
    }
}
