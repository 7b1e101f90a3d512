//! Routes that let nobody on unasked, and of which no version is known to be valid: what stands for them.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::names::nearest;
use crate::object::Object;
use crate::read::typed;
use crate::strict::Strict;
use crate::targets::{entries, text};

/// Filters that keep requests away: an authoriser, and limits by their name.
const GUARDS: [&str; 2] = ["ExternalAuth", "ExtensionRef"];
/// Others.
const EDITS: [&str; 6] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "CORS",
];
/// Fields of a route and of what leads to its filters: by the nearest of them one that is misspelt is known.
const SPEC: [&str; 3] = ["parentRefs", "hostnames", "rules"];
const RULE: [&str; 7] = [
    "name",
    "matches",
    "filters",
    "backendRefs",
    "timeouts",
    "retry",
    "sessionPersistence",
];
const DESTINATION: [&str; 7] = [
    "group",
    "kind",
    "name",
    "namespace",
    "port",
    "weight",
    "filters",
];
/// What a route can be attached to.
const PARENTS: [Kind; 3] = [Kind::Service, Kind::ServiceEntry, Kind::Gateway];

/// What is in force for an `HTTPRoute` or `GRPCRoute` with such a filter anywhere in it: a rule without a
/// destination, which is answered with 500, at every parent that can be read. It takes everything, and
/// what rules with such a filter match besides, so that no less exact route takes that. `None` without
/// such a filter or such a parent.
pub(crate) fn refusing(kind: Kind, value: &Value) -> Option<Object> {
    let spec = value.get("spec")?;
    let rules = fields(spec, "rules", &SPEC).into_iter().flat_map(maps);
    let guarded: Vec<_> = rules.filter(|rule| is_guarded(rule)).collect();
    if guarded.is_empty() {
        return None;
    }
    let references = fields(spec, "parentRefs", &SPEC).into_iter();
    let references = references.flat_map(|list| entries(Some(list)));
    let parents: Vec<_> = references.flat_map(parents).collect();
    if parents.is_empty() {
        return None;
    }
    let matches = guarded.into_iter();
    let matches = matches.flat_map(|rule| fields(rule, "matches", &RULE));
    let matches = matches.flat_map(|list| entries(Some(list)));
    let readable = matches.filter(|one| {
        let alone =
            json!({ "metadata": { "name": "r" }, "spec": { "rules": [{ "matches": [one] }] } });
        typed(kind, &alone).0.is_some()
    });
    let everything = Value::Object(Map::new());
    let matches: Vec<_> = readable.cloned().chain([everything]).collect();
    let spec = json!({
        "parentRefs": parents,
        "hostnames": hostnames(spec),
        "rules": [{ "matches": matches }],
    });
    let head = value.get("metadata")?;
    // What is wrong may be in a label.
    let least = json!({ "name": head.get("name"), "namespace": head.get("namespace") });
    [head, &least].into_iter().find_map(|head| {
        let made = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.as_str(),
            "metadata": head,
            "spec": spec,
            "status": value.get("status"),
        });
        Object::deserialize(kind, &made, &Strict::default())
    })
}

/// True if a rule has a guard among its filters, or among those of one of its destinations.
fn is_guarded(rule: &Value) -> bool {
    let has_guard = |of: &Value, known: &[&str]| {
        let mut filters = fields(of, "filters", known).into_iter();
        filters.any(|list| entries(Some(list)).iter().any(is_guard))
    };
    let destinations = fields(rule, "backendRefs", &RULE).into_iter();
    let mut destinations = destinations.flat_map(maps);
    has_guard(rule, &RULE) || destinations.any(|one| has_guard(one, &DESTINATION))
}

/// True if a filter is meant to be a guard, by its type or by its settings, as far as either can be read.
fn is_guard(filter: &Value) -> bool {
    let means_guard = |word: &str| {
        let all = GUARDS.iter().chain(&EDITS).copied();
        nearest(word, all).is_some_and(|meant| GUARDS.contains(&meant))
    };
    match filter {
        Value::String(word) => means_guard(word),
        Value::Array(list) => list.iter().any(is_guard),
        Value::Object(settings) => settings.iter().any(|(name, value)| {
            let names_type = || nearest(name, ["type"]).is_some();
            means_guard(name) || (names_type() && value.as_str().is_some_and(means_guard))
        }),
        _ => false,
    }
}

/// What an object has in that field, and in those that are no fields of it but near to that one.
fn fields<'a>(of: &'a Value, name: &str, known: &[&str]) -> Vec<&'a Value> {
    let means_it = |written: &str| {
        written == name
            || (!known.contains(&written) && nearest(written, known.iter().copied()) == Some(name))
    };
    let all = of.as_object().into_iter().flatten();
    let meant = all.filter(|(written, _)| means_it(written));
    meant.map(|(_, value)| value).collect()
}

/// The objects in a list, whatever lists they are in.
fn maps(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().flat_map(maps).collect(),
        Value::Object(_) => vec![value],
        _ => Vec::new(),
    }
}

/// Hosts as far as they can be read; none stands for every one.
fn hostnames(spec: &Value) -> Vec<String> {
    let all = fields(spec, "hostnames", &SPEC).into_iter();
    let all = all.flat_map(|list| entries(Some(list)));
    all.filter_map(text).collect()
}

/// What one reference may name; empty if its name cannot be read. A part of the parent that cannot be
/// read is all of it.
fn parents(reference: &Value) -> Vec<Value> {
    let read = |field: &str| {
        let text = reference.get(field).and_then(text);
        text.filter(|text| !text.is_empty())
    };
    let Some(name) = read("name") else {
        return Vec::new();
    };
    let port = read("port").and_then(|port| port.parse::<u16>().ok());
    let possible = PARENTS.iter().filter(|of| may_be(**of, reference));
    let made = possible.map(|of| {
        let mut made = json!({ "group": of.group(), "kind": of.as_str(), "name": name });
        for field in ["namespace", "sectionName"] {
            if let Some(text) = read(field) {
                made[field] = text.into();
            }
        }
        if let Some(port) = port.filter(|port| *port != 0) {
            made["port"] = port.into();
        }
        made
    });
    made.collect()
}

/// Whether a reference is to a `of`. Of Services and ServiceEntries the group is what is forgotten.
fn may_be(of: Kind, reference: &Value) -> bool {
    let field = |name: &str| reference.get(name).filter(|value| !value.is_null());
    let group = field("group");
    let in_group = group
        .and_then(Value::as_str)
        .is_none_or(|group| group == of.group());
    match field("kind").map(Value::as_str) {
        Some(Some(kind)) => kind == of.as_str() && (of != Kind::Gateway || in_group),
        Some(None) => in_group,
        None => in_group && (group.is_some() || of == Kind::Gateway),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway_api::{HttpRouteMatch, HttpRouteSpec};

    const GUARD: &str = "ExternalAuth";

    fn stand_in(kind: Kind, spec: &Value) -> Option<Object> {
        let head = json!({ "name": "r", "namespace": "shop" });
        let value = json!({ "kind": kind.as_str(), "metadata": head, "spec": spec });
        assert!(typed(kind, &value).0.is_none(), "it is valid: {value}");
        crate::invalid::refusal(kind, &value)
    }

    fn http(spec: &Value) -> Option<HttpRouteSpec> {
        match stand_in(Kind::HttpRoute, spec)? {
            Object::HttpRoute(route) => Some(route.spec),
            other => panic!("{other:?}"),
        }
    }

    fn cart() -> Value {
        json!({ "group": "", "kind": "Service", "name": "cart" })
    }

    fn with(filter: &Value) -> Value {
        let to = json!([{ "name": "cart", "port": 80 }]);
        json!({ "parentRefs": [cart()], "rules": [{ "filters": [filter], "backendRefs": to }] })
    }

    #[test]
    fn a_guard_that_is_not_valid_lets_nobody_on() {
        let auth = |field: &str, value: Value| {
            let mut auth = json!({ "protocol": "HTTP", "backendRef": { "name": "a", "port": 1 } });
            auth[field] = value;
            json!({ "type": GUARD, "externalAuth": auth })
        };
        for filter in [
            auth("http", json!({ "path": "check" })),
            auth("http", json!({ "allowedHeaders": ["a b"] })),
            auth("http", json!({ "allowedResponseHeaders": 7 })),
            auth("grpc", json!({})),
            auth("protocol", json!("TCP")),
            auth("backendRef", json!({ "name": "A_" })),
            auth("forwardBoddy", json!({})),
            json!({ "type": GUARD }),
            json!({ "type": "externalauth" }),
            json!({ "type": "ExternAuth", "externalAuth": {} }),
            json!({ "type": "ExtensionRef", "extensionRef": { "nmae": "ten" } }),
        ] {
            let spec = http(&with(&filter)).unwrap_or_else(|| panic!("open: {filter}"));
            assert_eq!(spec.parent_refs[0].name, "cart");
            assert_eq!(spec.rules.len(), 1);
            let rule = &spec.rules[0];
            assert!(rule.backend_refs.is_empty() && rule.filters.is_empty());
            assert_eq!(rule.matches, [HttpRouteMatch::default()], "everything");
        }
        let spec = with(&json!({ "type": GUARD }));
        let labelled = json!({ "metadata": { "name": "r", "labels": 7 }, "spec": spec });
        assert!(crate::invalid::refusal(Kind::HttpRoute, &labelled).is_some());
        let grpc = stand_in(Kind::GrpcRoute, &spec);
        assert!(matches!(grpc, Some(Object::GrpcRoute(_))), "{grpc:?}");
    }

    #[test]
    fn what_is_wrong_elsewhere_does_not_open_it_either() {
        let guard = json!({ "type": GUARD, "externalAuth": {
            "protocol": "GRPC", "backendRef": { "name": "a", "port": 1 } } });
        let mut spec = with(&guard);
        spec["hostnames"] = json!("shop.example");
        spec["rules"][0]["matches"] = json!([
            { "path": { "value": "/admin" } },
            { "path": { "value": "admin" } },
            { "path": { "type": "RegularExpression", "value": "(" } },
        ]);
        let free = json!({ "matches": [{ "path": { "value": "/free" } }] });
        spec["rules"] = json!([spec["rules"][0], free]);
        let found = http(&spec).unwrap();
        assert_eq!(found.hostnames, ["shop.example"]);
        let paths = found.rules[0].matches.iter().map(|one| one.path.clone());
        let paths: Vec<_> = paths.map(|path| path.map(|path| path.value)).collect();
        assert_eq!(paths, [Some("/admin".to_owned()), None]);
    }

    #[test]
    fn routes_without_a_guard_or_a_parent_leave_nothing() {
        let edit = json!({ "type": "URLRewrite", "urlRewrite": { "hostnam": "a" } });
        assert_eq!(http(&with(&edit)), None);
        for odd in [json!(7), json!([{ "nmae": "cart" }]), json!([])] {
            let mut spec = with(&json!({ "type": GUARD }));
            spec["parentRefs"] = odd;
            assert_eq!(http(&spec), None);
        }
        let spec = with(&json!({ "type": GUARD }));
        let value = json!({ "metadata": { "name": "r" }, "spec": spec });
        assert_eq!(crate::invalid::refusal(Kind::TcpRoute, &value), None);
    }

    #[test]
    fn what_is_misspelt_on_the_way_to_a_guard_does_not_hide_it() {
        let guard = json!({ "type": GUARD });
        let parents = json!([cart()]);
        for spec in [
            json!({ "parentRef": parents, "rules": [{ "filters": [guard] }] }),
            json!({ "ParentRefs": parents, "rule": [{ "filters": [guard] }] }),
            json!({ "parentrefs": cart(), "rules": { "filters": guard } }),
            json!({ "parentRefs": parents, "rules": [[{ "filters": [guard] }]] }),
            json!({ "parentRefs": parents, "rules": [{ "filter": [guard] }] }),
            json!({ "parentRefs": parents, "rules": [{ "filters": [{ "tpye": GUARD }] }] }),
            json!({ "parentRefs": parents, "rules": [{ "filters": [{ "type": "ExtenalAuth" }] }] }),
            json!({ "parentRefs": parents, "rules": [{ "filters": [[guard]] }] }),
            json!({ "parentRefs": parents, "rules": [{ "filters": GUARD }] }),
            json!({ "parentRefs": parents, "rules": [{
                "backendRefs": [{ "name": "cart", "port": 80, "filters": [{ "type": GUARD }] }] }] }),
            json!({ "parentRefs": parents, "rules": [{
                "backendRef": { "name": "cart", "port": 80, "filter": [guard] } }] }),
        ] {
            let found = http(&spec).unwrap_or_else(|| panic!("open: {spec}"));
            assert_eq!(found.parent_refs[0].name, "cart");
        }
    }

    #[test]
    fn words_of_guards_elsewhere_are_none() {
        let mut odd = json!({ "type": "Exact", "name": "x", "value": GUARD });
        odd["externalAuth"] = json!({});
        for rule in [
            json!({ "matches": [{ "headers": [odd] }] }),
            json!({ "matches": [{ "type": GUARD }] }),
            json!({ "name": GUARD, "timeouts": 7 }),
            json!({ "filters": [{ "type": "CORS", "cors": { "allowHeaders": [GUARD, 7] } }] }),
            json!({ "filters": [{ "type": "RequestMirror", "requestMirror": { "type": GUARD } }] }),
            json!({ "backendRefs": [{ "name": "a", "port": 1, "kind": GUARD, "wait": 1 }] }),
        ] {
            assert_eq!(
                http(&json!({ "parentRefs": [cart()], "rules": [rule] })),
                None
            );
        }
    }

    #[test]
    fn parents_are_read_one_by_one() {
        let of = |parent: &Value| {
            let mut spec = with(&json!({ "type": GUARD }));
            spec["parentRefs"] = json!([7, parent]);
            let found = http(&spec).map(|spec| spec.parent_refs).unwrap_or_default();
            let named = found.iter().map(|one| {
                let port = one.port.map_or(String::new(), |port| format!(":{port}"));
                format!("{}/{}{port}", one.kind.as_deref().unwrap(), one.name)
            });
            named.collect::<Vec<_>>().join(" ")
        };
        let x = "x";
        assert_eq!(of(&json!({ "name": x })), "Gateway/x");
        assert_eq!(of(&json!({ "name": x, "kind": "Service" })), "Service/x");
        assert_eq!(of(&json!({ "name": x, "group": "" })), "Service/x");
        let all = "Service/x ServiceEntry/x Gateway/x";
        assert_eq!(of(&json!({ "name": x, "kind": 7 })), all);
        assert_eq!(of(&json!({ "name": x, "kind": "Pod" })), "");
        let foreign = json!({ "name": x, "kind": "Gateway", "group": "example.org" });
        assert_eq!(of(&foreign), "");
        let port = |port: Value| of(&json!({ "name": 7, "kind": "Service", "port": port }));
        assert_eq!(port(json!("80")), "Service/7:80");
        assert_eq!(port(json!(70000)), "Service/7", "all of them");
    }
}
