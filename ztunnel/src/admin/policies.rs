//! Policies in the shape of Istio's dump.

use isobar_state::{
    Action, Authorization, Match, PolicyScope, ServiceAccountMatch, Snapshot, TextMatch,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::dump::InTurn;

/// All policies, by key.
pub(super) fn policies(snapshot: &Snapshot) -> impl Serialize {
    let mut all: Vec<_> = snapshot.authorizations().collect();
    all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    InTurn::new(all, |p| policy(p))
}

fn policy(p: &Authorization) -> Value {
    let rules: Vec<Vec<Vec<Value>>> = p
        .rules
        .iter()
        .map(|rule| {
            let clauses = rule.clauses.iter();
            clauses
                .map(|clause| clause.matches.iter().map(one).collect())
                .collect()
        })
        .collect();
    json!({
        "name": &*p.key.name,
        "namespace": &*p.key.namespace,
        "scope": match p.scope {
            PolicyScope::Global => "Global",
            PolicyScope::Namespace => "Namespace",
            PolicyScope::WorkloadSelector => "WorkloadSelector",
        },
        "action": match p.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        },
        "rules": rules,
        "dryRun": p.dry_run,
    })
}

fn one(m: &Match) -> Value {
    let mut map = Map::new();
    list(&mut map, "namespaces", &m.namespaces, text);
    list(&mut map, "notNamespaces", &m.not_namespaces, text);
    list(&mut map, "serviceAccounts", &m.service_accounts, account);
    list(
        &mut map,
        "notServiceAccounts",
        &m.not_service_accounts,
        account,
    );
    list(&mut map, "principals", &m.principals, text);
    list(&mut map, "notPrincipals", &m.not_principals, text);
    list(&mut map, "sourceIps", &m.source_ips, |n| {
        n.to_string().into()
    });
    list(&mut map, "notSourceIps", &m.not_source_ips, |n| {
        n.to_string().into()
    });
    list(&mut map, "destinationIps", &m.destination_ips, |n| {
        n.to_string().into()
    });
    list(&mut map, "notDestinationIps", &m.not_destination_ips, |n| {
        n.to_string().into()
    });
    list(&mut map, "destinationPorts", &m.destination_ports, |p| {
        (*p).into()
    });
    list(
        &mut map,
        "notDestinationPorts",
        &m.not_destination_ports,
        |p| (*p).into(),
    );
    Value::Object(map)
}

fn list<T>(map: &mut Map<String, Value>, key: &str, items: &[T], show: impl Fn(&T) -> Value) {
    if !items.is_empty() {
        map.insert(key.to_owned(), items.iter().map(show).collect());
    }
}

fn text(t: &TextMatch) -> Value {
    match t {
        TextMatch::Exact(x) => json!({ "Exact": &**x }),
        TextMatch::Prefix(x) => json!({ "Prefix": &**x }),
        TextMatch::Suffix(x) => json!({ "Suffix": &**x }),
        TextMatch::Presence => json!({ "Presence": [] }),
    }
}

fn account(a: &ServiceAccountMatch) -> Value {
    json!({ "namespace": &*a.namespace, "serviceAccount": &*a.service_account })
}
