use isobar_proto::isobar::v1 as proto;
use proto::authorization::Action;
use proto::value_match::MatchType;
use serde_json::{Map, Value, json};

use super::listener::{Caller, Mesh};

const KEY: &str = "oracle.peer_principal";
/// Who opened the connection.
const DIRECT: &str = "direct_remote_ip";
/// Who called by the word of `x-forwarded-for`.
const TOLD: &str = "remote_ip";

/// The filters for the policies of a service: who calls is written down, then DENY, then ALLOW.
pub(super) fn filters(mesh: &Mesh<'_>, caller: &Caller, hostname: &str, port: u16) -> Vec<Value> {
    let mine: Vec<_> = mesh
        .authorizations
        .iter()
        .filter(|policy| {
            let mut services = policy.services.iter();
            policy.whole_waypoint || services.any(|service| service.hostname == hostname)
        })
        .collect();
    if mine.is_empty() {
        return Vec::new();
    }
    // A caller without an account is one from outside the mesh.
    let known = !caller.account.is_empty();
    let mut all: Vec<_> = known.then(|| identity(caller)).into_iter().collect();
    for (action, word) in [(Action::Deny, "DENY"), (Action::Allow, "ALLOW")] {
        let mut policies = Map::new();
        let of_action = mine.iter().filter(|policy| policy.action() == action);
        let mut any = false;
        for policy in of_action {
            any = true;
            assert!(policy.unenforceable.is_empty(), "{}", policy.unenforceable);
            for (index, rule) in policy.rules.iter().enumerate() {
                let name = format!("{}/{}/{index}", policy.namespace, policy.name);
                policies.insert(name, policy_of(rule, port));
            }
        }
        if any {
            all.push(json!({"name": "envoy.filters.http.rbac", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": {"action": word, "policies": policies}}}));
        }
    }
    all
}

fn identity(caller: &Caller) -> Value {
    let principal = format!(
        "spiffe://cluster.local/ns/{}/sa/{}",
        caller.namespace, caller.account
    );
    json!({"name": "envoy.filters.http.set_filter_state", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
        "on_request_headers": [{"object_key": KEY, "factory_key": "envoy.string",
            "format_string": {"text_format_source": {"inline_string": principal}}}]}})
}

fn policy_of(rule: &proto::AuthorizationRule, port: u16) -> Value {
    let mut principals: Vec<Value> = rule.from.iter().map(source).collect();
    let mut permissions: Vec<Value> = rule.to.iter().map(|to| operation(to, port)).collect();
    if principals.is_empty() {
        principals.push(json!({"any": true}));
    }
    if permissions.is_empty() {
        permissions.push(json!({"any": true}));
    }
    let (mut who, mut what) = (vec![any_of("or_ids", principals)], Vec::new());
    what.push(any_of("or_rules", permissions));
    for condition in &rule.when {
        let about_caller = ["source.", "remote.", "request.headers"]
            .iter()
            .any(|begin| condition.key.starts_with(begin));
        let each = |value: &proto::ValueMatch| self::condition(&condition.key, value, port);
        let (list, or, not) = if about_caller {
            (&mut who, "or_ids", "not_id")
        } else {
            (&mut what, "or_rules", "not_rule")
        };
        if !condition.values.is_empty() {
            list.push(any_of(or, condition.values.iter().map(each).collect()));
        }
        if !condition.not_values.is_empty() {
            let never = any_of(or, condition.not_values.iter().map(each).collect());
            list.push(json!({not: never}));
        }
    }
    json!({"principals": [{"and_ids": {"ids": who}}], "permissions": [{"and_rules": {"rules": what}}]})
}

fn any_of(or: &str, entries: Vec<Value>) -> Value {
    let list = if or == "or_ids" { "ids" } else { "rules" };
    json!({or: {list: Value::Array(entries)}})
}

fn source(from: &proto::AuthorizationSource) -> Value {
    let mut all: Vec<Value> = Vec::new();
    let mut put = |wanted: Vec<Value>, unwanted: Vec<Value>| {
        if !wanted.is_empty() {
            all.push(any_of("or_ids", wanted));
        }
        if !unwanted.is_empty() {
            all.push(json!({"not_id": any_of("or_ids", unwanted)}));
        }
    };
    let each =
        |values: &[proto::ValueMatch], key| values.iter().map(|v| condition(key, v, 0)).collect();
    put(
        each(&from.principals, "source.principal"),
        each(&from.not_principals, "source.principal"),
    );
    put(
        each(&from.namespaces, "source.namespace"),
        each(&from.not_namespaces, "source.namespace"),
    );
    put(
        each(&from.service_accounts, "source.serviceAccount"),
        each(&from.not_service_accounts, "source.serviceAccount"),
    );
    let blocks = |texts: &[String], which: &str| -> Vec<Value> {
        let each = texts.iter();
        each.map(|text| block(text, which)).collect()
    };
    put(
        blocks(&from.ip_blocks, DIRECT),
        blocks(&from.not_ip_blocks, DIRECT),
    );
    put(
        blocks(&from.remote_ip_blocks, TOLD),
        blocks(&from.not_remote_ip_blocks, TOLD),
    );
    if all.is_empty() {
        all.push(json!({"any": true}));
    }
    json!({"and_ids": {"ids": all}})
}

fn block(text: &str, which: &str) -> Value {
    let whole = if text.contains(':') { "128" } else { "32" };
    let (address, length) = text.split_once('/').unwrap_or((text, whole));
    let length: u32 = length
        .parse()
        .expect("the control plane tells a length in bits");
    json!({which: {"address_prefix": address, "prefix_len": length}})
}

fn operation(from: &proto::AuthorizationOperation, port: u16) -> Value {
    let mut all: Vec<Value> = Vec::new();
    let mut put = |wanted: Vec<Value>, unwanted: Vec<Value>| {
        if !wanted.is_empty() {
            all.push(any_of("or_rules", wanted));
        }
        if !unwanted.is_empty() {
            all.push(json!({"not_rule": any_of("or_rules", unwanted)}));
        }
    };
    let header = |values: &[proto::ValueMatch], name: &str, fold: bool| -> Vec<Value> {
        values.iter().map(|v| header(name, v, fold)).collect()
    };
    put(
        header(&from.hosts, ":authority", true),
        header(&from.not_hosts, ":authority", true),
    );
    put(
        header(&from.methods, ":method", false),
        header(&from.not_methods, ":method", false),
    );
    let paths = |values: &[proto::ValueMatch]| -> Vec<Value> {
        let each = values.iter();
        each.map(path).collect()
    };
    put(paths(&from.paths), paths(&from.not_paths));
    // The port that is meant is the service's; Envoy listens on another here.
    let is = |ports: &[u32]| -> Vec<Value> {
        let each = ports.iter();
        each.map(|wanted| constant(*wanted == u32::from(port), "not_rule"))
            .collect()
    };
    put(is(&from.ports), is(&from.not_ports));
    if all.is_empty() {
        all.push(json!({"any": true}));
    }
    json!({"and_rules": {"rules": all}})
}

fn path(value: &proto::ValueMatch) -> Value {
    if let Some(MatchType::Exact(text)) = &value.match_type
        && text.contains("{*")
    {
        let template = text.replace(['{', '}'], "");
        return json!({"uri_template": {
            "name": "envoy.path.match.uri_template.uri_template_matcher", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                "path_template": template}}});
    }
    json!({"url_path": {"path": text(value, "", false)}})
}

fn constant(holds: bool, not: &str) -> Value {
    if holds {
        json!({"any": true})
    } else {
        json!({not: {"any": true}})
    }
}

fn header(name: &str, value: &proto::ValueMatch, fold: bool) -> Value {
    match value.match_type {
        Some(MatchType::Present(_)) | None => {
            json!({"header": {"name": name, "present_match": true}})
        }
        _ => json!({"header": {"name": name, "string_match": text(value, "", fold)}}),
    }
}

fn text(value: &proto::ValueMatch, before: &str, fold: bool) -> Value {
    let mut out = match value.match_type.as_ref() {
        Some(MatchType::Exact(text)) => json!({"exact": format!("{before}{text}")}),
        Some(MatchType::Prefix(text)) => json!({"prefix": format!("{before}{text}")}),
        Some(MatchType::Suffix(text)) => json!({"suffix": text}),
        Some(MatchType::Present(_)) | None => json!({"safe_regex": {"regex": ".+"}}),
    };
    if fold && out.get("safe_regex").is_none() {
        out["ignore_case"] = json!(true);
    }
    out
}

fn condition(key: &str, value: &proto::ValueMatch, port: u16) -> Value {
    let principal = |matcher: Value| json!({"filter_state": {"key": KEY, "string_match": matcher}});
    let inside = |before: &str, after: &str| {
        let (text, head, tail) = match value.match_type.as_ref() {
            Some(MatchType::Exact(text)) => (text.as_str(), "", ""),
            Some(MatchType::Prefix(text)) => (text.as_str(), "", "[^/]*"),
            Some(MatchType::Suffix(text)) => (text.as_str(), "[^/]*", ""),
            Some(MatchType::Present(_)) | None => ("", "[^/]+", ""),
        };
        let text = text.replace('.', "\\.").replace('/', "/sa/");
        principal(json!({"safe_regex": {"regex": format!(".*{before}{head}{text}{tail}{after}")}}))
    };
    match key {
        "source.principal" => principal(text(value, "spiffe://", false)),
        "source.namespace" => inside("/ns/", "/.*"),
        "source.serviceAccount" => inside("/ns/", ""),
        "source.ip" | "remote.ip" => match value.match_type.as_ref() {
            Some(MatchType::Exact(text)) if key == "remote.ip" => block(text, TOLD),
            Some(MatchType::Exact(text)) => block(text, DIRECT),
            other => panic!("{key} {other:?}"),
        },
        "destination.port" => match value.match_type.as_ref() {
            Some(MatchType::Exact(text)) => constant(*text == port.to_string(), "not_rule"),
            other => panic!("destination.port {other:?}"),
        },
        other => {
            let name = other
                .strip_prefix("request.headers[")
                .and_then(|n| n.strip_suffix(']'));
            let name = name.unwrap_or_else(|| panic!("the oracle does not know condition {other}"));
            header(name, value, false)
        }
    }
}
