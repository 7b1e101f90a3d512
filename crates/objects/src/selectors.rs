//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// True if the selector takes these labels: all `matchLabels` and all `matchExpressions` hold. An
/// empty selector takes everything; an operator that does not exist takes nothing.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|rule| {
            let found = labels.get(&rule.key);
            let listed = |value: &String| rule.values.iter().flatten().any(|one| one == value);
            match rule.operator.as_str() {
                "In" => found.is_some_and(listed),
                "NotIn" => !found.is_some_and(listed),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// True if the selector has no condition at all.
#[must_use]
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.iter().flatten().next().is_none()
        && selector.match_expressions.iter().flatten().next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_operator_as_kubernetes_has_it() {
        let labels = BTreeMap::from([
            ("app".to_owned(), "web".to_owned()),
            ("tier".to_owned(), "front".to_owned()),
        ]);
        let takes = |selector: serde_json::Value| {
            selects(&serde_json::from_value(selector).unwrap(), &labels)
        };
        let rule = |key: &str, operator: &str, values: &[&str]| {
            takes(json!({"matchExpressions": [
                {"key": key, "operator": operator, "values": values}]}))
        };
        assert!(takes(json!({})));
        assert!(takes(json!({"matchLabels": {"app": "web"}})));
        assert!(!takes(
            json!({"matchLabels": {"app": "web", "tier": "back"}})
        ));
        assert!(rule("app", "In", &["api", "web"]));
        assert!(!rule("none", "In", &["web"]));
        assert!(rule("app", "NotIn", &["api"]));
        assert!(rule("none", "NotIn", &["api"]));
        assert!(!rule("app", "NotIn", &["web"]));
        assert!(rule("app", "Exists", &[]));
        assert!(rule("none", "DoesNotExist", &[]));
        assert!(!rule("app", "DoesNotExist", &[]));
        assert!(!rule("app", "Sometimes", &[]));
    }
}
