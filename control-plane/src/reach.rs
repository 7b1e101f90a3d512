//! Which objects count for this control plane: those of namespaces that its selectors take, and of
//! its revision.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use isobar_objects::{Kind, ObjectHead as _, ObjectRef, ObjectSet, Published, selectors};
use isobar_runtime::Lifetime;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use tokio::sync::watch;

use crate::config::Config;

/// Label that says which control plane an object is for.
const REVISION: &str = "istio.io/rev";

/// What counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reach {
    /// Labels of namespaces, one of these; all namespaces if there is none.
    selectors: Vec<LabelSelector>,
    /// Our revision; all revisions if it is empty.
    revision: String,
    /// Other names of our revision, for Gateways.
    tags: Vec<String>,
    /// Classes of Gateways that are ours.
    classes: Vec<String>,
}

impl Reach {
    /// As the configuration says.
    ///
    /// # Errors
    /// When the selectors are none.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let text = config.discovery_selectors.as_deref().map(str::trim);
        let selectors = match text.filter(|text| !text.is_empty()) {
            Some(text) => serde_saphyr::from_str(text)
                .context("--discovery-selectors: not a list of label selectors")?,
            None => Vec::new(),
        };
        Ok(Self {
            selectors,
            revision: config.revision.clone(),
            tags: config.revision_tag.clone(),
            classes: config.waypoint_class.clone(),
        })
    }

    /// Follows `source` and publishes what counts of it, until `life` ends.
    pub(crate) async fn follow(
        self,
        mut source: watch::Receiver<Arc<Published>>,
        sender: watch::Sender<Arc<Published>>,
        life: Lifetime,
    ) {
        loop {
            let published = source.borrow_and_update().clone();
            sender.send_replace(Arc::new(self.narrow(&published)));
            tokio::select! {
                () = life.stopped() => return,
                changed = source.changed() => if changed.is_err() { return },
            }
        }
    }

    /// True if nothing is left out.
    pub(crate) fn is_everything(&self) -> bool {
        self.selectors.is_empty() && self.revision.is_empty()
    }

    fn narrow(&self, published: &Published) -> Published {
        let mut set = ObjectSet::clone(&published.objects);
        let taken = self.namespaces(&set);
        let is_taken = |namespace: &str| taken.as_ref().is_none_or(|all| all.contains(namespace));
        let mut left_out = BTreeSet::new();
        for change in published.objects.changes_since(&ObjectSet::default()) {
            let object = change.object;
            let namespace = match object.known() {
                Some(Kind::Namespace) => &object.name,
                _ => &object.namespace,
            };
            let is_here = namespace.is_empty() || is_taken(namespace);
            if !(is_here && self.is_of_revision(&published.objects, &object)) {
                set.remove(&object);
                left_out.insert(object);
            }
        }
        let findings = published.findings.iter().filter(|finding| {
            let object = finding.object.as_ref();
            object.is_none_or(|object| {
                !left_out.contains(object)
                    && (object.namespace.is_empty() || is_taken(&object.namespace))
            })
        });
        Published {
            findings: Arc::new(findings.cloned().collect()),
            objects: Arc::new(set),
            ..published.clone()
        }
    }

    /// Names of the namespaces that count; `None` if all do.
    fn namespaces(&self, set: &ObjectSet) -> Option<BTreeSet<String>> {
        if self.selectors.is_empty() {
            return None;
        }
        let taken = set.namespaces.iter().filter(|namespace| {
            let mut all = self.selectors.iter();
            all.any(|selector| selectors::selects(selector, namespace.labels()))
        });
        Some(taken.map(|one| one.name().to_owned()).collect())
    }

    fn is_of_revision(&self, set: &ObjectSet, object: &ObjectRef) -> bool {
        if self.revision.is_empty() {
            return true;
        }
        let label = |object: &ObjectRef| {
            let labels = set.labels(object)?;
            labels.get(REVISION).cloned()
        };
        match object.known() {
            Some(
                Kind::VirtualService
                | Kind::DestinationRule
                | Kind::ServiceEntry
                | Kind::WorkloadEntry
                | Kind::AuthorizationPolicy
                | Kind::PeerAuthentication
                | Kind::RateLimitPolicy,
            ) => label(object).is_none_or(|revision| revision == self.revision),
            // What is to be run by us: here names of revisions count too, and the namespace's.
            Some(Kind::Gateway) => {
                let gateway = set.gateways.get(&object.namespace, &object.name);
                let is_waypoint =
                    gateway.is_some_and(|one| self.classes.contains(&one.spec.gateway_class_name));
                let namespace = ObjectRef::new(Kind::Namespace, "", &object.namespace);
                let wanted = label(object).or_else(|| label(&namespace));
                !is_waypoint
                    || wanted.is_none_or(|name| name == self.revision || self.tags.contains(&name))
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::objects;
    use isobar_objects::Finding;

    const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: in, labels: {mesh: 'yes'}}
---
apiVersion: v1
kind: Namespace
metadata: {name: new, labels: {team: a, istio.io/rev: stable}}
---
apiVersion: v1
kind: Namespace
metadata: {name: out}
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
";

    fn policy(namespace: &str, name: &str, labels: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{}}\n"
        )
    }

    fn gateway(name: &str, labels: &str) -> String {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: {name}, namespace: new, labels: {{{labels}}}}}\n\
             spec: {{gatewayClassName: isobar-waypoint, listeners: [{{name: m, port: 15008, protocol: HBONE}}]}}\n"
        )
    }

    fn narrowed(reach: &Reach, yaml: &str) -> Published {
        let set = objects(yaml);
        let about = ObjectRef::new(Kind::AuthorizationPolicy, "out", "p");
        let published = Published {
            findings: Arc::new(vec![Finding::warning("", "x").about(&about)]),
            objects: Arc::new(set),
            synced: true,
            ..Published::default()
        };
        reach.narrow(&published)
    }

    fn policies(published: &Published) -> Vec<String> {
        let all = published.objects.authorization_policies.iter();
        all.map(|one| format!("{}/{}", one.namespace(), one.name()))
            .collect()
    }

    #[test]
    fn a_namespace_that_no_selector_takes_is_not_there() {
        let yaml = [
            OBJECTS.to_owned(),
            policy("in", "p", ""),
            policy("new", "p", ""),
            policy("out", "p", ""),
        ];
        let selectors = "[{matchLabels: {mesh: 'yes'}}, {matchLabels: {team: a}}]";
        let reach = Reach {
            selectors: serde_saphyr::from_str(selectors).unwrap(),
            ..Reach::default()
        };
        let left = narrowed(&reach, &yaml.concat());
        assert_eq!(policies(&left), ["in/p", "new/p"]);
        assert_eq!(left.objects.namespaces.len(), 2);
        assert_eq!(left.objects.nodes.len(), 1, "not of a namespace");
        assert!(left.findings.is_empty());
        assert!(left.synced);
    }

    #[test]
    fn a_revision_takes_its_own_objects_and_those_of_nobody() {
        let rev = |name: &str| format!("istio.io/rev: {name}");
        let yaml = [
            OBJECTS.to_owned(),
            policy("in", "a", ""),
            policy("in", "b", &rev("v2")),
            policy("in", "c", &rev("v1")),
            policy("in", "d", &rev("stable")),
            gateway("by-namespace", ""),
            gateway("mine", &rev("v2")),
            gateway("other", &rev("v1")),
        ];
        let mut reach = Reach {
            revision: "v2".to_owned(),
            classes: vec!["isobar-waypoint".to_owned()],
            ..Reach::default()
        };
        let gateways = |reach: &Reach| -> Vec<String> {
            let left = narrowed(reach, &yaml.concat());
            // Names of revisions only count for Gateways.
            assert_eq!(policies(&left), ["in/a", "in/b"]);
            let all = left.objects.gateways.iter();
            all.map(|one| one.name().to_owned()).collect()
        };
        assert_eq!(gateways(&reach), ["mine"]);
        reach.tags = vec!["stable".to_owned()];
        assert_eq!(gateways(&reach), ["by-namespace", "mine"]);
    }
}
