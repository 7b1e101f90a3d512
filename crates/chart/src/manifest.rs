use serde_json::Value;

/// Kinds in the order in which Helm installs them; others come last, by name.
const ORDER: [&str; 19] = [
    "PriorityClass",
    "Namespace",
    "NetworkPolicy",
    "ResourceQuota",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Pod",
    "Deployment",
    "HorizontalPodAutoscaler",
    "ValidatingWebhookConfiguration",
];

/// An object that a chart renders to.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// `CHART/PATH` of the template.
    pub source: String,
    /// YAML as the template has it, with its comments.
    pub text: String,
    /// The same, read.
    pub value: Value,
}

impl Manifest {
    /// `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> &str {
        self.value["apiVersion"].as_str().unwrap_or_default()
    }

    /// `kind`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// `metadata.namespace`; empty for an object of the whole cluster.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.value["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
    }

    /// As a part of a stream of documents, the way `helm template` prints it.
    #[must_use]
    pub fn printed(&self) -> String {
        format!("---\n# Source: {}\n{}\n", self.source, self.text)
    }
}

/// The documents of a rendered template, without those that hold only comments.
pub(crate) fn documents(source: &str, text: &str) -> Result<Vec<Manifest>, String> {
    let mut parts = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    let mut manifests = Vec::new();
    for part in parts {
        let text = part.trim();
        let is_empty = text
            .lines()
            .all(|line| line.is_empty() || line.starts_with('#'));
        if is_empty {
            continue;
        }
        let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let manifest = Manifest {
            source: source.to_owned(),
            text: text.to_owned(),
            value,
        };
        if manifest.kind().is_empty() || manifest.name().is_empty() {
            return Err(format!("a document has no kind or no name:\n{text}"));
        }
        manifests.push(manifest);
    }
    Ok(manifests)
}

/// Sorts by kind; what is of one kind stays in the order of the templates.
pub(crate) fn in_helms_order(manifests: &mut [Manifest]) {
    manifests.sort_by_cached_key(|manifest| {
        let place = ORDER.iter().position(|kind| *kind == manifest.kind());
        let place = place.unwrap_or(ORDER.len());
        let name = if place == ORDER.len() {
            manifest.kind()
        } else {
            ""
        };
        (place, name.to_owned())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_without_an_object_are_left_out() {
        let text = "# only words\n---\nkind: A\nmetadata: {name: a}\n---\n\n---\n# of b\nkind: B\nmetadata: {name: b}\n";
        let found = documents("c/t.yaml", text).unwrap();
        let kinds: Vec<_> = found.iter().map(Manifest::kind).collect();
        assert_eq!(kinds, ["A", "B"]);
        assert_eq!(found[1].text, "# of b\nkind: B\nmetadata: {name: b}");
        assert!(
            documents("c/t.yaml", "a: b\n")
                .unwrap_err()
                .contains("no kind")
        );
    }
}
