//! Trust domains that are names of one mesh. A policy that names one of them means all of them, as in
//! Istio's waypoints; here node proxies are told so too.

use std::borrow::Cow;

use isobar_objects::istio::{AuthorizationPolicy, Rule};
use isobar_objects::{Object, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::{DEFAULT_TRUST_DOMAIN, Str};
use wire::outbound_policy::Kind;

use super::settings::Settings;

/// The objects, with every name of the mesh in policies that have one of them.
pub(super) fn spelled_out<'a>(set: &'a ObjectSet, settings: &Settings) -> Cow<'a, ObjectSet> {
    let names = settings.names();
    if names.len() == 1 && &*names[0] == DEFAULT_TRUST_DOMAIN {
        return Cow::Borrowed(set);
    }
    let mut all = Cow::Borrowed(set);
    for policy in set.authorization_policies.iter() {
        let wider = spell_out(&policy.object, &names);
        if wider != policy.object {
            let origin = policy.origin.clone();
            all.to_mut().insert(Object::from(wider), origin);
        }
    }
    all
}

/// What proxies are told of the names; nothing where there is one only.
pub(super) fn told(settings: &Settings) -> Option<wire::OutboundPolicy> {
    let names = settings.names();
    let domains = || names.iter().map(ToString::to_string).collect();
    (names.len() > 1).then(|| wire::OutboundPolicy {
        kind: Some(Kind::Trust(wire::Trust { domains: domains() })),
    })
}

fn spell_out(policy: &AuthorizationPolicy, names: &[Str]) -> AuthorizationPolicy {
    let mut policy = policy.clone();
    for rule in &mut policy.spec.rules {
        widen(rule, names);
    }
    policy
}

fn widen(rule: &mut Rule, names: &[Str]) {
    for source in rule.from.iter_mut().filter_map(|from| from.source.as_mut()) {
        principals(&mut source.principals, names);
        principals(&mut source.not_principals, names);
        domains(&mut source.trust_domains, names);
        domains(&mut source.not_trust_domains, names);
    }
    for condition in &mut rule.when {
        let widen = match &*condition.key {
            "source.principal" => principals,
            "source.trustDomain" => domains,
            _ => continue,
        };
        widen(&mut condition.values, names);
        widen(&mut condition.not_values, names);
    }
}

fn principals(values: &mut Vec<String>, names: &[Str]) {
    each(values, |value| {
        let Some((domain, rest)) = value.split_once('/') else {
            let all = begun(value, names)?;
            return Some(all.map(|name| format!("{name}/*")).collect());
        };
        let all = meant(domain, names)?;
        Some(all.map(|name| format!("{name}/{rest}")).collect())
    });
}

fn domains(values: &mut Vec<String>, names: &[Str]) {
    each(values, |value| {
        Some(meant(value, names)?.map(ToString::to_string).collect())
    });
}

/// All names of the mesh where `domain` is or may be one: `cluster.local` always stands for the mesh, and a
/// star in front or at the end for what else there is. A star alone is every domain as it is.
fn meant<'n>(domain: &str, names: &'n [Str]) -> Option<impl Iterator<Item = &'n Str>> {
    let is_one = |name: &Str| match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
        (Some(""), _) => false,
        (Some(end), _) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => **name == *domain,
    };
    let is_ours = domain == DEFAULT_TRUST_DOMAIN || names.iter().any(is_one);
    is_ours.then(|| names.iter())
}

/// All names of the mesh where a pattern without a `/` takes one of them whole, and so whoever has it.
fn begun<'n>(pattern: &str, names: &'n [Str]) -> Option<impl Iterator<Item = &'n Str>> {
    let start = pattern.strip_suffix('*').filter(|s| !s.is_empty())?;
    let is_ours = start == DEFAULT_TRUST_DOMAIN || names.iter().any(|name| name.starts_with(start));
    is_ours.then(|| names.iter())
}

/// Puts `more` of each value in its place; a pattern stays beside it, as it may mean others too.
fn each(values: &mut Vec<String>, more: impl Fn(&str) -> Option<Vec<String>>) {
    let mut all: Vec<String> = Vec::with_capacity(values.len());
    for value in values.drain(..) {
        let wider = more(&value);
        let domain = value.split('/').next().unwrap_or_default();
        let stays = wider.is_none() || domain.contains('*');
        let own = stays.then_some(value);
        for one in own.into_iter().chain(wider.into_iter().flatten()) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    *values = all;
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::security::string_match::MatchType;

    use super::super::golden_tests::{gateway, namespace, objects, pod, policy, settings};
    use super::super::{KeptKeys, plan};
    use super::*;

    fn named(domain: &str, aliases: &[&str]) -> Settings {
        Settings {
            trust_domain: domain.into(),
            trust_domain_aliases: aliases.iter().map(|&one| one.into()).collect(),
            ..settings()
        }
    }

    #[test]
    fn values_that_name_the_mesh_name_all_of_its_names() {
        let mesh = named("new.example", &["old.example"]).names();
        for (value, expect) in [
            (
                "new.example/ns/a/sa/b",
                &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"][..],
            ),
            (
                "old.example/ns/a/*",
                &["new.example/ns/a/*", "old.example/ns/a/*"],
            ),
            (
                "cluster.local/ns/a/sa/b",
                &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"],
            ),
            (
                "*.example/ns/a/sa/b",
                &[
                    "*.example/ns/a/sa/b",
                    "new.example/ns/a/sa/b",
                    "old.example/ns/a/sa/b",
                ],
            ),
            ("other/ns/a/sa/b", &["other/ns/a/sa/b"]),
            ("*/ns/a/sa/b", &["*/ns/a/sa/b"]),
            ("*", &["*"]),
            (
                "old.example*",
                &["old.example*", "new.example/*", "old.example/*"],
            ),
            ("ol*", &["ol*", "new.example/*", "old.example/*"]),
            (
                "cluster.local*",
                &["cluster.local*", "new.example/*", "old.example/*"],
            ),
            ("older*", &["older*"]),
            ("*/b", &["*/b"]),
            ("*b", &["*b"]),
        ] {
            let mut values = vec![value.to_owned()];
            principals(&mut values, &mesh);
            assert_eq!(values, expect, "{value}");
        }
        let mut values = vec!["old.example".to_owned(), "*".to_owned(), "x".to_owned()];
        domains(&mut values, &mesh);
        assert_eq!(values, ["new.example", "old.example", "*", "x"]);
        let one = named("new.example", &[]).names();
        let mut values = vec!["cluster.local/ns/a/sa/b".to_owned()];
        principals(&mut values, &one);
        assert_eq!(values, ["new.example/ns/a/sa/b"]);
    }

    #[test]
    fn both_kinds_of_proxies_are_told_of_every_name() {
        let rules = "rules: [{from: [{source: {principals: [old.example/ns/a/sa/b]}}], \
                     when: [{key: source.principal, notValues: [new.example/ns/x/sa/y]}]}]";
        let here = format!("action: DENY, {rules}");
        let there = format!(
            "targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: wp}}], {here}"
        );
        for spec in [&here, &there] {
            let yaml = [
                namespace(""),
                pod("cart-1", "cart", "app: cart", true),
                gateway("wp", ""),
                policy("shop", spec),
            ];
            let mesh = named("new.example", &["old.example"]);
            let plan = plan(&objects(&yaml.concat()), &mesh, &KeptKeys::default());
            let texts = if spec == &here {
                let exact = |one: &isobar_proto::istio::security::StringMatch| match &one.match_type
                {
                    Some(MatchType::Exact(text)) => text.clone(),
                    other => panic!("{other:?}"),
                };
                let clauses = &plan.authorizations[0].rules[0].clauses;
                let yes = clauses[0].matches[0].principals.iter();
                let no = clauses[1].matches[0].not_principals.iter();
                yes.chain(no).map(exact).collect::<Vec<_>>()
            } else {
                let exact = |one: &wire::ValueMatch| match &one.match_type {
                    Some(wire::value_match::MatchType::Exact(text)) => text.clone(),
                    other => panic!("{other:?}"),
                };
                let rule = &plan.waypoints[0].authorizations[0].rules[0];
                let yes = rule.from[0].principals.iter();
                yes.chain(&rule.when[0].not_values).map(exact).collect()
            };
            let expect = [
                "new.example/ns/a/sa/b",
                "old.example/ns/a/sa/b",
                "new.example/ns/x/sa/y",
                "old.example/ns/x/sa/y",
            ];
            assert_eq!(texts, expect);
            assert!(plan.outbound.contains(&told(&mesh).unwrap()));
        }
        assert_eq!(told(&settings()), None);
    }
}
