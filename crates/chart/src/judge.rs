//! What values a chart takes: those of its `values.yaml`, of the same types. A map that is empty there
//! takes any keys, and so does one whose keys are Kubernetes' own.

use serde_json::{Map, Value, json};

/// Texts of which only some count, by the path of the value.
const CHOICES: &[(&str, &[&str])] = &[
    ("portRules", &["off", "audit", "enforce"]),
    ("outboundTrafficPolicy", &["ALLOW_ANY", "REGISTRY_ONLY", ""]),
    ("webhook.failurePolicy", &["Fail", "Ignore"]),
    ("agent.cniConfMode", &["chained", "owned"]),
    ("agent.backend", &["auto", "nft", "iptables"]),
    (
        "global.imagePullPolicy",
        &["Always", "IfNotPresent", "Never"],
    ),
];

/// Maps whose keys are Kubernetes' own, though some are set in `values.yaml`.
const OPEN: &[&str] = &["resources", "nodeSelector"];

/// Lists of names of trust domains, as the control plane takes them.
const DOMAINS: &[&str] = &["trustDomainAliases"];

/// Everything that is wrong with `given`, each with the path of the value.
pub(crate) fn mistakes(defaults: &Value, given: &Value, path: &str) -> Vec<String> {
    if given.is_null() {
        return Vec::new();
    }
    let wanted = kind(defaults);
    if !fits(defaults, given) {
        return vec![format!("{path} must be {wanted}, not {}", kind(given))];
    }
    if let Some(choices) = choices(path)
        && !choices.iter().any(|choice| given.as_str() == Some(choice))
    {
        return vec![format!(
            "{path} must be one of {}, not {given}",
            choices.join(", ")
        )];
    }
    if let Some(wrong) = not_a_domain(path, given) {
        return vec![format!(
            "{path}: {wrong} is no trust domain: lower-case letters, digits, \".\", \"-\", \"_\""
        )];
    }
    let (Some(known), Some(given)) = (defaults.as_object(), given.as_object()) else {
        return Vec::new();
    };
    if known.is_empty() || is_open(path) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (key, value) in given {
        let path = below(path, key);
        match known.get(key) {
            Some(default) => found.extend(mistakes(default, value, &path)),
            None => {
                let mut keys: Vec<&str> = known.keys().map(String::as_str).collect();
                keys.sort_unstable();
                found.push(format!("there is no {path}; here are {}", keys.join(", ")));
            }
        }
    }
    found
}

/// The same rules as JSON Schema.
pub(crate) fn schema(defaults: &Value, path: &str) -> Value {
    match defaults {
        Value::Object(known) if !known.is_empty() && !is_open(path) => {
            let mut keys: Vec<_> = known.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            let properties: Map<String, Value> = keys
                .into_iter()
                .map(|(key, value)| (key.clone(), schema(value, &below(path, key))))
                .collect();
            json!({ "type": "object", "properties": properties, "additionalProperties": false })
        }
        Value::Object(_) => json!({ "type": "object" }),
        Value::Array(_) if DOMAINS.contains(&path) => {
            let domain = json!({ "type": "string", "pattern": "^[a-z0-9._-]+$", "maxLength": 255 });
            json!({ "type": "array", "items": domain })
        }
        Value::Array(_) => json!({ "type": "array" }),
        Value::Bool(_) => json!({ "type": "boolean" }),
        Value::Number(_) => json!({ "type": "integer" }),
        Value::Null | Value::String(_) => match choices(path) {
            Some(choices) => json!({ "type": "string", "enum": choices }),
            None => json!({ "type": "string" }),
        },
    }
}

/// The first of a list of trust domains that is none.
fn not_a_domain<'a>(path: &str, given: &'a Value) -> Option<&'a Value> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let is_one = |text: &str| (1..=255).contains(&text.len()) && text.bytes().all(fits);
    let given = given.as_array().filter(|_| DOMAINS.contains(&path))?;
    given.iter().find(|one| !one.as_str().is_some_and(is_one))
}

fn is_open(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or_default();
    OPEN.contains(&last)
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() {
        return key.to_owned();
    }
    format!("{path}.{key}")
}

fn choices(path: &str) -> Option<&'static [&'static str]> {
    let found = CHOICES.iter().find(|(of, _)| *of == path);
    found.map(|(_, choices)| *choices)
}

fn fits(default: &Value, given: &Value) -> bool {
    match default {
        Value::Object(_) => given.is_object(),
        Value::Array(_) => given.is_array(),
        Value::Bool(_) => given.is_boolean(),
        Value::Number(_) => given.is_i64() || given.is_u64(),
        Value::Null | Value::String(_) => given.is_string(),
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_named_with_its_path() {
        let defaults = json!({
            "global": { "tag": "", "logAsJson": false },
            "replicaCount": 1, "resources": { "requests": {} }, "tolerations": [],
            "trustDomainAliases": [], "portRules": "enforce",
        });
        let found = |given| mistakes(&defaults, &given, "");
        let good = json!({
            "global": { "tag": "1.2" }, "replicaCount": 3, "resources": { "limits": { "cpu": 1 } },
            "tolerations": [{ "operator": "Exists" }], "portRules": "off",
        });
        assert_eq!(found(good), Vec::<String>::new());
        for (given, word) in [
            (
                json!({ "replicas": 2 }),
                "no replicas; here are global, portRules, replicaCount",
            ),
            (
                json!({ "trustDomainAliases": ["a.example", "A/b"] }),
                "trustDomainAliases: \"A/b\" is no trust domain",
            ),
            (json!({ "trustDomainAliases": [1] }), "is no trust domain"),
            (
                json!({ "global": { "tga": "a" } }),
                "no global.tga; here are logAsJson, tag",
            ),
            (
                json!({ "global": { "tag": 1 } }),
                "global.tag must be a text, not a number",
            ),
            (json!({ "global": "a" }), "global must be a map"),
            (
                json!({ "replicaCount": "2" }),
                "replicaCount must be a number, not a text",
            ),
            (
                json!({ "replicaCount": 1.5 }),
                "replicaCount must be a number",
            ),
            (json!({ "tolerations": {} }), "tolerations must be a list"),
            (
                json!({ "portRules": "of" }),
                "portRules must be one of off, audit, enforce",
            ),
        ] {
            let found = found(given);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(word), "{found:?}");
        }
        let two = found(json!({ "a": 1, "b": 2 }));
        assert_eq!(two.len(), 2);
    }
}
