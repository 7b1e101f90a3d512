//! Istio's MeshConfig.

use k8s_openapi::api::core::v1::ConfigMap;

use super::Report;
use crate::mesh_config::{EntryVisibilities, MeshConfig, NOT_HONOURED};
use crate::read::unknown_field;
use crate::strict::UnknownField;

pub(super) fn check(map: &ConfigMap, report: &mut Report) {
    match MeshConfig::read(map) {
        Err(error) => report.error("data.mesh", error),
        Ok(None) => {}
        Ok(Some(read)) => {
            for (index, selector) in read.config.discovery_selectors.iter().enumerate() {
                let field = format!("data.mesh: discoverySelectors[{index}]");
                report.selector(&field, Some(selector));
            }
            if let Some(visibilities) = &read.config.service_entry_visibility {
                visibility(visibilities, report);
            }
            for field in read.unknown {
                let path = format!("data.mesh: {}", field.path);
                report.push(unknown_field(&UnknownField { path, ..field }));
            }
            for (field, why) in read.config.read_lines().1 {
                report.unsupported(format!("data.mesh: {field}"), &why);
            }
            for (field, why) in read.config.read_traces().1 {
                report.unsupported(format!("data.mesh: {field}"), &why);
            }
            for field in &read.ignored {
                report.unsupported(format!("data.mesh: {field}"), NOT_HONOURED);
            }
        }
    }
}

fn visibility(all: &EntryVisibilities, report: &mut Report) {
    for (at, policy) in all.policies.iter().enumerate() {
        for (rule_at, rule) in policy.matching_rules.iter().enumerate() {
            let field = format!(
                "data.mesh: serviceEntryVisibility.policies[{at}].matchingRules[{rule_at}].namespaceSelector"
            );
            report.selector(&field, rule.namespace_selector.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Kind, ServedObject};

    #[test]
    fn a_slip_that_would_show_more_than_was_meant_is_an_error() {
        let errors = |mesh: &str| -> Vec<String> {
            let value = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": "istio", "namespace": "istio-system" },
                "data": { "mesh": mesh },
            });
            let read = ServedObject::read(Kind::ConfigMap, &value);
            let all = read.findings().iter().filter(|one| one.is_error());
            all.map(ToString::to_string).collect()
        };
        let rule = |rule: &str| {
            format!(
                "serviceEntryVisibility: {{policies: [{{visibility: NONE, matchingRules: [{rule}]}}]}}"
            )
        };
        for (mesh, words) in [
            (
                "discoverySelectors: [{matchLabel: {a: b}}]".to_owned(),
                "matchLabels",
            ),
            (
                rule(
                    "{namespaceSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
                ),
                "matchingRules[0].namespaceSelector.matchExpressions[0].operator",
            ),
            (rule("{namespaceSelecter: {}}"), "namespaceSelector"),
            (
                rule("{namespaceSelector: {matchLabels: {a: '?'}}}"),
                "label value",
            ),
        ] {
            let found = errors(&mesh);
            assert!(
                found.len() == 1 && found[0].contains(words),
                "{mesh}: {found:?}"
            );
        }
        assert!(errors(&rule("{namespaceSelector: {matchLabels: {a: b}}}")).is_empty());
    }
}
