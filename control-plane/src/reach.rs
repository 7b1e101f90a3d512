//! Which objects count for this control plane: those of namespaces that its selectors take, and of
//! its revision.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use isobar_kubernetes::Names;
use isobar_objects::{
    Invalid, Invalids, Kind, ObjectHead, ObjectMap, ObjectRef, ObjectSet, Published, named_secrets,
    selectors,
};
use isobar_runtime::Lifetime;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use tokio::sync::watch;

use crate::config::Config;
use crate::model::mesh_config;
use crate::revision::{LABEL, Revision};

/// What counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reach {
    /// Labels of namespaces, one of these; all namespaces if there is none.
    selectors: Vec<LabelSelector>,
    /// What we are called.
    revision: Revision,
    /// ConfigMap that has selectors where the configuration has none.
    mesh_config: Option<ObjectRef>,
    /// Namespace of what counts for the whole mesh; empty where nobody is told that it does not.
    root: String,
}

impl Reach {
    /// As the configuration says.
    ///
    /// # Errors
    /// When the selectors are none.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let selectors = match config.selectors() {
            Some(text) => serde_saphyr::from_str(text)
                .context("--discovery-selectors: not a list of label selectors")?,
            None => Vec::new(),
        };
        Ok(Self {
            selectors,
            revision: Revision::of(config),
            mesh_config: Some(config.mesh_config()),
            root: config.root_namespace.clone(),
        })
    }

    /// All but what a MeshConfig leaves out.
    pub(crate) fn by_mesh_config(object: ObjectRef) -> Self {
        Self {
            mesh_config: Some(object),
            ..Self::default()
        }
    }

    /// Follows `source` and publishes what counts of it, until `life` ends.
    pub(crate) async fn follow(
        self,
        mut source: watch::Receiver<Arc<Published>>,
        sender: watch::Sender<Arc<Published>>,
        life: Lifetime,
    ) {
        let mut told = false;
        loop {
            let published = source.borrow_and_update().clone();
            let set = &published.objects;
            let misses_root =
                published.synced && !self.root.is_empty() && !self.looks_at(set, &self.root);
            if misses_root && !told {
                tracing::warn!(
                    namespace = self.root,
                    "discovery selectors leave out the root namespace: policies for the whole mesh \
                     do not count, and roots in it are not kept up to date; label it as the selectors ask"
                );
            }
            told = misses_root;
            sender.send_replace(self.narrow(&published));
            tokio::select! {
                () = life.stopped() => return,
                changed = source.changed() => if changed.is_err() { return },
            }
        }
    }

    /// What counts of what a source has published.
    pub(crate) fn narrow(&self, published: &Arc<Published>) -> Arc<Published> {
        let objects = &*published.objects;
        let taken = self.namespaces(objects);
        let is_taken = |namespace: &str| taken.as_ref().is_none_or(|all| all.contains(namespace));
        let mut left_out: BTreeSet<ObjectRef> = self.of_others(objects).into_iter().collect();
        if taken.is_some() {
            let all = objects.changes_since(&ObjectSet::default()).into_iter();
            left_out.extend(all.map(|change| change.object).filter(|object| {
                let namespace = match object.known() {
                    Some(Kind::Namespace) => &object.name,
                    _ => &object.namespace,
                };
                let is_settings = self.mesh_config.as_ref() == Some(object);
                !namespace.is_empty() && !is_taken(namespace) && !is_settings
            }));
        }
        let is_others = |object: &ObjectRef, invalid: &Invalid| {
            let label = invalid.labels.get(LABEL).map(String::as_str);
            is_for_one(object) && !self.revision.takes(label)
        };
        let invalid = &published.invalid;
        let others = invalid
            .iter()
            .filter(|(object, one)| is_others(object, one));
        left_out.extend(others.map(|(object, _)| object.clone()));
        if left_out.is_empty() && taken.is_none() {
            return Arc::clone(published);
        }
        let mut set = ObjectSet::clone(objects);
        for object in &left_out {
            set.remove(object);
        }
        let counts = |object: &ObjectRef| {
            !left_out.contains(object)
                && (object.namespace.is_empty()
                    || is_taken(&object.namespace)
                    || self.mesh_config.as_ref() == Some(object))
        };
        let findings = published.findings.iter();
        let findings = findings.filter(|finding| finding.object.as_ref().is_none_or(counts));
        let invalid = Invalids::clone(invalid).into_iter();
        let invalid = invalid.filter(|(object, _)| counts(object));
        Arc::new(Published {
            findings: Arc::new(findings.cloned().collect()),
            objects: Arc::new(set),
            invalid: Arc::new(invalid.collect()),
            ..Published::clone(published)
        })
    }

    /// Secrets that Gateways name which count here; both have to be in reach.
    pub(crate) fn secrets(&self, set: &ObjectSet) -> Names {
        let taken = self.namespaces(set);
        let is_taken = |object: &ObjectRef| {
            let taken = taken.as_ref();
            taken.is_none_or(|all| all.contains(&*object.namespace))
        };
        let named = named_secrets(set).into_iter();
        let named = named.filter(|one| {
            let by = &one.by;
            let is_ours = match by.known() {
                Some(Kind::Gateway) => self.revision.runs(set, &by.namespace, &by.name),
                _ => {
                    let labels = set.labels(by);
                    let label = labels.and_then(|labels| labels.get(LABEL));
                    self.revision.takes(label.map(String::as_str))
                }
            };
            is_taken(by) && is_taken(&one.secret) && is_ours
        });
        named.collect()
    }

    /// The selectors: those of the configuration, or else those of the MeshConfig.
    fn selectors(&self, set: &ObjectSet) -> Cow<'_, [LabelSelector]> {
        if self.selectors.is_empty()
            && let Some(of) = &self.mesh_config
            && let Some(mesh) = mesh_config::found(set, of)
        {
            return Cow::Owned(mesh.discovery_selectors);
        }
        Cow::Borrowed(&self.selectors)
    }

    /// True if objects of a namespace count, as far as selectors say.
    pub(crate) fn looks_at(&self, set: &ObjectSet, namespace: &str) -> bool {
        let taken = self.namespaces(set);
        taken.is_none_or(|all| all.contains(namespace))
    }

    /// Names of the namespaces that count; `None` if all do.
    fn namespaces(&self, set: &ObjectSet) -> Option<BTreeSet<String>> {
        let selectors = self.selectors(set);
        if selectors.is_empty() {
            return None;
        }
        let taken = set.namespaces.iter().filter(|namespace| {
            let mut all = selectors.iter();
            all.any(|selector| selectors::selects(selector, namespace.labels()))
        });
        Some(taken.map(|one| one.name().to_owned()).collect())
    }

    /// Objects of mesh kinds that are for another control plane. Gateways of all count, whoever runs
    /// them: proxies have to find their waypoints.
    fn of_others(&self, set: &ObjectSet) -> Vec<ObjectRef> {
        let mut found = Vec::new();
        self.find(&set.virtual_services, &mut found);
        self.find(&set.destination_rules, &mut found);
        self.find(&set.service_entries, &mut found);
        self.find(&set.workload_entries, &mut found);
        self.find(&set.authorization_policies, &mut found);
        self.find(&set.peer_authentications, &mut found);
        self.find(&set.rate_limit_policies, &mut found);
        self.find(&set.istio_gateways, &mut found);
        found
    }

    fn find<T: ObjectHead>(&self, all: &ObjectMap<T>, found: &mut Vec<ObjectRef>) {
        let others = all
            .iter()
            .filter(|one| !self.revision.takes(one.label(LABEL)));
        found.extend(others.map(|one| one.reference()));
    }
}

/// True for kinds of which each object is for one control plane or for all.
fn is_for_one(object: &ObjectRef) -> bool {
    matches!(
        object.known(),
        Some(
            Kind::VirtualService
                | Kind::DestinationRule
                | Kind::ServiceEntry
                | Kind::WorkloadEntry
                | Kind::AuthorizationPolicy
                | Kind::PeerAuthentication
                | Kind::RateLimitPolicy
                | Kind::IstioGateway
        )
    )
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
        Published::clone(&reach.narrow(&Arc::new(published)))
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
    fn selectors_come_from_the_mesh_config_where_the_configuration_has_none() {
        let mesh = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: out}\n\
                    data:\n  mesh: |\n    discoverySelectors: [{matchLabels: {team: a}}]\n";
        let yaml = [
            OBJECTS.to_owned(),
            policy("in", "p", ""),
            policy("new", "p", ""),
            mesh.to_owned(),
        ];
        let mut reach = Reach {
            mesh_config: Some(isobar_objects::mesh_config_of("out", None)),
            ..Reach::default()
        };
        let left = narrowed(&reach, &yaml.concat());
        assert_eq!(policies(&left), ["new/p"]);
        assert_eq!(
            left.objects.config_maps.len(),
            1,
            "it counts wherever it is"
        );
        reach.selectors = serde_saphyr::from_str("[{matchLabels: {mesh: 'yes'}}]").unwrap();
        assert_eq!(policies(&narrowed(&reach, &yaml.concat())), ["in/p"]);
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
        for (reach, wanted) in [
            (
                Revision::new("v2", &["stable".to_owned()]),
                ["in/a", "in/b"],
            ),
            (Revision::new("v1", &[]), ["in/a", "in/c"]),
        ] {
            let reach = Reach {
                revision: reach,
                ..Reach::default()
            };
            let left = narrowed(&reach, &yaml.concat());
            assert_eq!(policies(&left), wanted);
            // Whoever runs a waypoint, proxies have to find it.
            assert_eq!(left.objects.gateways.len(), 3);
        }
        // The one without a name does not have what is for others.
        let left = narrowed(&Reach::default(), &yaml.concat());
        assert_eq!(policies(&left), ["in/a"]);
    }

    #[test]
    fn only_secrets_of_gateways_in_reach_are_asked_for() {
        let front = |namespace: &str, rev: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
                 metadata: {{name: front, namespace: {namespace}, labels: {{{rev}}}}}\n\
                 spec:\n  selector: {{a: b}}\n  servers:\n  \
                 - port: {{number: 443, protocol: HTTPS}}\n    hosts: [a.example]\n    \
                 tls: {{mode: SIMPLE, credentialName: page}}\n"
            )
        };
        let yaml = [
            OBJECTS.to_owned(),
            front("in", "istio.io/rev: v2"),
            front("new", "istio.io/rev: v1"),
            front("out", ""),
        ];
        let set = objects(&yaml.concat());
        let names = |reach: &Reach| -> Vec<String> {
            let all = reach.secrets(&set).into_iter();
            all.map(|one| one.secret.namespace.to_string()).collect()
        };
        let mut reach = Reach::default();
        assert_eq!(names(&reach), ["out"]);
        let selectors = "[{matchLabels: {mesh: 'yes'}}, {matchLabels: {team: a}}]";
        reach.selectors = serde_saphyr::from_str(selectors).unwrap();
        assert!(names(&reach).is_empty());
        reach.revision = Revision::new("v2", &[]);
        assert_eq!(names(&reach), ["in"]);
    }
}
