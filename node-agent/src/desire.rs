//! From objects to what is wished of one pod: a pure function.

use std::collections::BTreeSet;
use std::fmt;

use isobar_objects::enrolment::{Enrolment, EnrolmentRules, decide};
use isobar_objects::{Kind, ObjectHead, ObjectRef, Pod, Published, pods};
use isobar_types::labels;

use crate::plan::Wishes;
use crate::pod::machine::Goal;
use crate::report::{Advertised, Condition};
use crate::sandbox::Sandbox;

/// Annotation: comma list of interfaces whose arriving TCP counts as outbound.
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
/// Annotation of a mirror pod: the uid by which the kubelet and the runtime know the pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";
/// Annotation that makes a pod's object a mirror of one from the kubelet's own files.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Longest interface name that Linux knows.
const INTERFACE_MAX: usize = 15;
/// Interfaces of one pod that are followed. Each is a rule; tens of thousands of them would keep the
/// tools, and with them every other pod of the node, busy for minutes.
const INTERFACES_MAX: usize = 16;

/// Characters of a wrong name that are shown.
const SHOWN: usize = 32;

/// What is wished of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desire {
    /// In the mesh or not.
    pub goal: Goal,
    /// Why, in words.
    pub why: String,
    /// Its service account.
    pub account: String,
    /// How its rules shall be.
    pub wishes: Wishes,
    /// What in its annotations could not be followed, in words.
    pub problems: Vec<String>,
    /// What its object says now.
    pub advertised: Box<Advertised>,
}

/// Why nothing can be said about a pod now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// There is no object of its name, or it is another pod's.
    Pod,
    /// Its namespace is not known though it may exist. It might be labelled.
    Namespace,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "its object is not known yet",
            Self::Namespace => {
                "its namespace is not known; it may be in a file that is broken or cannot be read"
            }
        })
    }
}

/// What the node's operator chose.
#[derive(Debug, Clone)]
pub struct NodeDefaults {
    /// Who takes part.
    pub enrolment: EnrolmentRules,
    /// DNS capture of pods that do not say.
    pub dns: bool,
    /// A pod's namespace always has an object, as in an API server: until it is known, nobody can
    /// say that it is not labelled.
    pub namespaces_exist: bool,
}

impl Default for NodeDefaults {
    fn default() -> Self {
        Self {
            enrolment: EnrolmentRules::default(),
            dns: true,
            namespaces_exist: false,
        }
    }
}

/// What is wished of the pod in this sandbox.
///
/// # Errors
/// While something that it depends on is not known: what is so then stays.
pub fn desire(
    published: &Published,
    sandbox: &Sandbox,
    node: &NodeDefaults,
) -> Result<Desire, Unknown> {
    let objects = &published.objects;
    let pod = objects.pods.get(&sandbox.namespace, &sandbox.name);
    let pod = pod.filter(|pod| is_of(pod, sandbox)).ok_or(Unknown::Pod)?;
    let namespace = objects.namespaces.get("", &sandbox.namespace);
    let enrolment = decide(pod, namespace.map(|held| &held.object), &node.enrolment);
    let place = || ObjectRef::new(Kind::Namespace, "", &sandbox.namespace);
    let missing = node.namespaces_exist && namespace.is_none();
    if enrolment == Enrolment::NotAsked && (missing || published.may_hide(&place())) {
        return Err(Unknown::Namespace);
    }
    let mut problems = Vec::new();
    let mut switch = |key: &str, default: bool| match pod.annotation(key) {
        Some("true") => true,
        Some("false") => false,
        Some(other) => {
            problems.push(format!(
                "annotation {key}: {other:?} is neither true nor false"
            ));
            default
        }
        None => default,
    };
    let dns = switch(labels::DNS_CAPTURE, node.dns);
    let inbound = !switch(labels::BYPASS_INBOUND, false);
    let reroute = pod
        .annotation(REROUTE)
        .map(|list| interfaces(list, &mut problems))
        .unwrap_or_default();
    Ok(Desire {
        goal: if enrolment.is_enrolled() {
            Goal::Enrolled
        } else {
            Goal::Plain
        },
        why: enrolment.to_string(),
        account: match &*sandbox.service_account {
            "" => pods::service_account(pod).to_owned(),
            told => told.to_owned(),
        },
        wishes: Wishes {
            dns,
            inbound,
            reroute,
            probes: pods::probed_ports(pod),
        },
        problems,
        advertised: Box::new(advertised(published, sandbox)),
    })
}

/// True unless the object belongs to another pod of that name.
fn is_of(pod: &Pod, sandbox: &Sandbox) -> bool {
    pod.uid().is_empty() || pod.uid() == sandbox.uid || runtime_uid(pod) == sandbox.uid
}

/// The uid by which the container runtime knows the pod. One from a file of the kubelet's goes by the
/// hash of that file; its object in the API server, which the kubelet makes in its node's name, has
/// another uid and names the hash. An annotation alone does not lend a pod another one's uid.
#[must_use]
pub(crate) fn runtime_uid(pod: &Pod) -> &str {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let is_mirror = pod.annotation(MIRROR).is_some()
        && owners.any(|owner| owner.kind == "Node" && owner.controller == Some(true));
    let hash = pod.annotation(STATIC_UID).filter(|_| is_mirror);
    hash.unwrap_or_else(|| pod.uid())
}

/// True if the object of the pod in this sandbox says that it is redirected, whatever is wished.
#[must_use]
pub fn is_annotated(published: &Published, sandbox: &Sandbox) -> bool {
    object(published, sandbox).is_some_and(says_enabled)
}

/// What the object of the pod in this sandbox says of its redirection.
#[must_use]
pub fn advertised(published: &Published, sandbox: &Sandbox) -> Advertised {
    let pod = object(published, sandbox);
    Advertised {
        uid: pod.map(|pod| pod.uid().to_owned()).unwrap_or_default(),
        annotated: pod.is_some_and(says_enabled),
        condition: pod.and_then(Condition::on),
    }
}

/// Ports that the kubelet probes the pod in this sandbox at; none if its object is not known.
#[must_use]
pub fn probed(published: &Published, sandbox: &Sandbox) -> BTreeSet<u16> {
    object(published, sandbox)
        .map(pods::probed_ports)
        .unwrap_or_default()
}

fn object<'a>(published: &'a Published, sandbox: &Sandbox) -> Option<&'a Pod> {
    let pods = &published.objects.pods;
    let pod = pods.get(&sandbox.namespace, &sandbox.name)?;
    is_of(pod, sandbox).then_some(&pod.object)
}

fn says_enabled(pod: &Pod) -> bool {
    pod.annotation(labels::REDIRECTION) == Some("enabled")
}

/// Interface names become text of a rule set, so nothing else may pass.
fn interfaces(list: &str, problems: &mut Vec<String>) -> Vec<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let (mut names, mut left_out, mut odd) = (Vec::<String>::new(), 0, Vec::new());
    let all = list.split(',').map(str::trim);
    for name in all.filter(|name| !name.is_empty()) {
        let is_name = name.len() <= INTERFACE_MAX && name.chars().all(plain);
        if !is_name {
            odd.push(name);
        } else if names.iter().any(|known| known == name) {
            // Naming it twice means nothing more.
        } else if names.len() < INTERFACES_MAX {
            names.push(name.to_owned());
        } else {
            left_out += 1;
        }
    }
    if let Some(first) = odd.first() {
        let first: String = first.chars().take(SHOWN).collect();
        let more = match odd.len() - 1 {
            0 => String::new(),
            more => format!(", nor are {more} more"),
        };
        problems.push(format!(
            "annotation {REROUTE}: {first:?} is no interface name{more}"
        ));
    }
    if left_out > 0 {
        problems.push(format!(
            "annotation {REROUTE}: {left_out} of its interfaces are left alone: \
             {INTERFACES_MAX} are followed at most, the first ones"
        ));
    }
    names
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use isobar_objects::{
        DirectoryOptions, DirectorySource, Namespace, Object, ObjectSet, ObjectSource as _,
    };
    use serde_json::{Value, json};

    fn sandbox() -> Sandbox {
        Sandbox {
            uid: "u1".to_owned(),
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            service_account: String::new(),
            netns: "/proc/1/ns/net".into(),
            ips: Vec::new(),
            container_id: String::new(),
            network: String::new(),
        }
    }

    fn desired(pod: Value) -> Result<Desire, Unknown> {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop",
            "labels": {"istio.io/dataplane-mode": "ambient"}}}))
        .unwrap();
        let published = Published {
            objects: Arc::new(ObjectSet::of([Object::from(pod), Object::from(namespace)])),
            synced: true,
            ..Published::default()
        };
        desire(&published, &sandbox(), &NodeDefaults::default())
    }

    /// What is wished of a pod with these labels while the file of its namespace holds `text`.
    fn beside(text: &str, labels: &str) -> Result<Goal, Unknown> {
        let dir = tempfile::tempdir().unwrap();
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: cart\n  namespace: shop\n  labels: {labels}\n\
             spec: {{containers: [{{name: c, image: i}}]}}\n"
        );
        std::fs::write(dir.path().join("pod.yaml"), pod).unwrap();
        std::fs::write(dir.path().join("ns.yaml"), text).unwrap();
        let options = DirectoryOptions::new(vec![dir.path().to_owned()], None);
        let source = DirectorySource::open(options).unwrap();
        let published = source.subscribe().borrow().clone();
        desire(&published, &sandbox(), &NodeDefaults::default()).map(|wish| wish.goal)
    }

    fn pod(uid: &str, annotations: &Value) -> Value {
        json!({"metadata": {"name": "cart", "namespace": "shop", "uid": uid,
            "annotations": annotations}})
    }

    #[test]
    fn the_namespace_enrols_and_annotations_shape_the_rules() {
        let found = desired(pod(
            "u1",
            &json!({"ambient.istio.io/dns-capture": "false",
                "ambient.istio.io/bypass-inbound-capture": "true",
                "istio.io/reroute-virtual-interfaces": "vnet0, bad name,x\"y"}),
        ))
        .unwrap();
        assert_eq!(found.goal, Goal::Enrolled);
        assert_eq!(
            found.wishes,
            Wishes {
                dns: false,
                inbound: false,
                reroute: vec!["vnet0".to_owned()],
                probes: BTreeSet::new(),
            }
        );
        assert_eq!(
            found.problems,
            [
                "annotation istio.io/reroute-virtual-interfaces: \"bad name\" is no interface name, \
              nor are 1 more"
            ]
        );
        assert!(!found.advertised.annotated);
    }

    #[test]
    fn interfaces_without_end_do_not_become_rules_without_end() {
        let list = |names: &str| {
            let annotation = json!({"istio.io/reroute-virtual-interfaces": names});
            let found = desired(pod("u1", &annotation)).unwrap();
            (found.wishes.reroute, found.problems.join("\n"))
        };
        let many: Vec<String> = (0..30_000).map(|number| format!("v{number}")).collect();
        let (names, problems) = list(&many.join(","));
        assert_eq!(names, many[..16]);
        assert!(
            problems.contains("29984 of its interfaces are left alone"),
            "{problems}"
        );
        assert_eq!(
            list(&["v0"; 30_000].join(",")),
            (vec!["v0".to_owned()], String::new())
        );
        // What is told of them has an end too.
        let (names, problems) = list(&"much-too-long-for-an-interface,".repeat(5_000));
        assert!(names.is_empty() && problems.len() < 200, "{problems}");
        assert!(list(&"x".repeat(100_000)).1.len() < 200);
    }

    #[test]
    fn a_namesake_is_another_pod() {
        assert_eq!(desired(pod("u2", &json!({}))), Err(Unknown::Pod));
        let other = json!({"metadata": {"name": "other", "namespace": "shop"}});
        assert_eq!(desired(other), Err(Unknown::Pod));
    }

    #[test]
    fn a_pod_of_the_kubelets_own_files_goes_by_their_hash() {
        let hash = json!({"kubernetes.io/config.hash": "u1"});
        let both = json!({"kubernetes.io/config.hash": "u1", "kubernetes.io/config.mirror": "u1"});
        let owned = |annotations: &Value, kind: &str| {
            let mut pod = pod("mirror", annotations);
            pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": kind,
                "name": "node-1", "uid": "n", "controller": true}]);
            pod
        };
        assert!(desired(owned(&both, "Node")).is_ok());
        // Whoever may annotate his own pods does not get another one's uid.
        for borrowed in [
            pod("mirror", &hash),
            pod("mirror", &both),
            owned(&hash, "Node"),
            owned(&both, "ReplicaSet"),
        ] {
            assert_eq!(desired(borrowed), Err(Unknown::Pod));
        }
    }

    #[test]
    fn where_every_namespace_has_an_object_one_that_is_not_known_may_be_labelled() {
        let at = |labels: Value, namespaces_exist| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "cart",
                "namespace": "shop", "uid": "u1", "labels": labels}}))
            .unwrap();
            let published = Published {
                objects: Arc::new(ObjectSet::of([Object::from(pod)])),
                ..Published::default()
            };
            let node = NodeDefaults {
                namespaces_exist,
                ..NodeDefaults::default()
            };
            desire(&published, &sandbox(), &node).map(|wish| wish.goal)
        };
        assert_eq!(at(json!({}), true), Err(Unknown::Namespace));
        assert_eq!(at(json!({}), false), Ok(Goal::Plain));
        let own = json!({"istio.io/dataplane-mode": "none"});
        assert_eq!(at(own, true), Ok(Goal::Plain));
    }

    #[test]
    fn a_namespace_that_cannot_be_read_is_not_one_without_labels() {
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        assert_eq!(beside(namespace, "{}"), Ok(Goal::Plain));
        assert_eq!(beside("# nothing\n", "{}"), Ok(Goal::Plain));
        for broken in [
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, lbels: {a: b}}\n",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop\n",
            "apiVersion: v1\nkind: Namespce\nmetadata: {name: shop}\n",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: sh_op}\n",
        ] {
            assert_eq!(beside(broken, "{}"), Err(Unknown::Namespace), "{broken}");
            // Where the pod itself decides, its namespace does not matter.
            let own = "{istio.io/dataplane-mode: none}";
            assert_eq!(beside(broken, own), Ok(Goal::Plain));
            let own = "{istio.io/dataplane-mode: ambient}";
            assert_eq!(beside(broken, own), Ok(Goal::Enrolled));
        }
        let other = "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, lbels: {a: b}}\n";
        assert_eq!(beside(other, "{}"), Ok(Goal::Plain));
    }

    #[test]
    fn a_value_that_is_none_keeps_the_default_and_is_told() {
        let found = desired(pod("u1", &json!({"ambient.istio.io/dns-capture": "yes"}))).unwrap();
        assert!(found.wishes.dns);
        assert_eq!(found.problems.len(), 1);
    }
}
