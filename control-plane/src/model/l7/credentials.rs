//! Secrets that DestinationRules name, for what runs in the rule's own namespace: a waypoint elsewhere
//! that may use the rule is not to get the keys with it.

use std::collections::BTreeMap;

use isobar_objects::{ObjectSet, authority_of_callers, secret_name};
use isobar_proto::isobar::v1 as wire;

use super::ingress::credentials::{is_unread, pair, signer, usable};

/// How a rule of `namespace` names the certificate and key that are shown to servers.
pub(super) fn identity(namespace: &str, written: &str) -> String {
    format!("{namespace}/{}", secret_name(written))
}

/// How it names whoever signs the certificates of servers: the Secret `NAME-cacert`, where there is none
/// `NAME`.
pub(super) fn authority(namespace: &str, written: &str) -> String {
    let [first, _] = authority_of_callers(written);
    format!("{namespace}/{first}")
}

/// What the rules name, as far as it is there, besides what is told already.
pub(super) fn with_rules(
    told: Vec<wire::Credential>,
    rules: &[wire::DestinationRule],
    set: &ObjectSet,
) -> Vec<wire::Credential> {
    let key = |one: &wire::Credential| (one.namespace.clone(), one.name.clone());
    let mut all: BTreeMap<_, _> = told.into_iter().map(|one| (key(&one), one)).collect();
    let mut told = |name: &str, put: &dyn Fn(&mut wire::Credential)| {
        let Some((namespace, name)) = name.split_once('/') else {
            return;
        };
        let place = (namespace.to_owned(), name.to_owned());
        put(all.entry(place).or_insert_with(|| wire::Credential {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..wire::Credential::default()
        }));
    };
    for tls in rules.iter().flat_map(of_rule) {
        let secret = tls.credential.split_once('/');
        let secret = secret.and_then(|(namespace, name)| set.secrets.get(namespace, name));
        if let Some(secret) = secret {
            told(&tls.credential, &|one| (one.chain, one.key) = pair(secret));
        }
        if let Some(authority) = signer(&tls.authority, set) {
            told(&tls.authority, &|one| one.authority.clone_from(&authority));
        }
    }
    all.into_values().collect()
}

/// Takes the names of credentials out of a rule that is told to something in another namespace; calls
/// are refused there.
pub(super) fn keep_home(rule: &mut wire::DestinationRule, place: &str) {
    if rule.namespace == place {
        return;
    }
    let home = rule.namespace.clone();
    let subsets = rule.subsets.iter_mut().map(|s| &mut s.traffic_policy);
    for policy in subsets.chain([&mut rule.traffic_policy]).flatten() {
        let ports = policy.port_level.iter_mut();
        let ports = ports.filter_map(|port| port.policy.as_mut()?.tls.as_mut());
        for tls in ports.chain(policy.tls.as_mut()) {
            if tls.credential.is_empty() && tls.authority.is_empty() {
                continue;
            }
            tls.credential.clear();
            tls.authority.clear();
            tls.refuse =
                format!("tls.credentialName counts for waypoints of namespace {home} only");
        }
    }
}

/// What is wrong with the Secrets that a rule names, as sentences without anything of their content.
pub(super) fn problems(rule: &wire::DestinationRule, set: &ObjectSet) -> Vec<String> {
    let mut all = Vec::new();
    for tls in of_rule(rule) {
        let secret = tls.credential.split_once('/');
        if let Some(problem) = secret.and_then(|(ns, name)| usable(set, ns, name).err()) {
            all.push(problem.text());
        }
        let key = &*tls.authority;
        if !key.is_empty() && signer(key, set).is_none() && !is_unread(key, set) {
            let names = authority_of_callers(key).join(" nor Secret ");
            all.push(format!(
                "neither Secret {names} has an authority of servers (ca.crt): calls are refused"
            ));
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

fn of_rule(rule: &wire::DestinationRule) -> impl Iterator<Item = &wire::EndpointTls> {
    let subsets = rule.subsets.iter().map(|s| s.traffic_policy.as_ref());
    let policies = subsets.chain([rule.traffic_policy.as_ref()]).flatten();
    policies.flat_map(|policy| {
        let ports = policy.port_level.iter().filter_map(|p| p.policy.as_ref());
        ports.chain([policy]).filter_map(|one| one.tls.as_ref())
    })
}
