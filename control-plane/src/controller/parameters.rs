//! What a ConfigMap may say about a waypoint's objects, and how it is laid over them.
//!
//! Only what is about running the pods is taken: where, how many, with how much. Who may write a
//! ConfigMap must not be able to run a program of their own by it.

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{Deployment, Service, ServiceAccount, merge_patch};
use isobar_types::NamespacedName;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Keys of a ConfigMap, which are Istio's, and what may stand in each.
const ALLOWED: [(&str, &[&str]); 5] = [
    (
        "deployment",
        &[
            "metadata.labels",
            "metadata.annotations",
            "spec.replicas",
            "spec.strategy",
            "spec.minReadySeconds",
            "spec.progressDeadlineSeconds",
            "spec.revisionHistoryLimit",
            "spec.template.metadata.labels",
            "spec.template.metadata.annotations",
            "spec.template.spec.affinity",
            "spec.template.spec.nodeSelector",
            "spec.template.spec.tolerations",
            "spec.template.spec.topologySpreadConstraints",
            "spec.template.spec.priorityClassName",
            "spec.template.spec.runtimeClassName",
            "spec.template.spec.schedulerName",
            "spec.template.spec.imagePullSecrets",
            "spec.template.spec.terminationGracePeriodSeconds",
            "spec.template.spec.containers.name",
            "spec.template.spec.containers.resources",
        ],
    ),
    (
        "service",
        &[
            "metadata.labels",
            "metadata.annotations",
            "spec.type",
            "spec.ipFamilyPolicy",
            "spec.ipFamilies",
            "spec.trafficDistribution",
            "spec.internalTrafficPolicy",
        ],
    ),
    (
        "serviceAccount",
        &["metadata.labels", "metadata.annotations"],
    ),
    (
        "horizontalPodAutoscaler",
        &[
            "metadata.labels",
            "metadata.annotations",
            "spec.minReplicas",
            "spec.maxReplicas",
            "spec.metrics",
            "spec.behavior",
        ],
    ),
    (
        "podDisruptionBudget",
        &[
            "metadata.labels",
            "metadata.annotations",
            "spec.minAvailable",
            "spec.maxUnavailable",
            "spec.unhealthyPodEvictionPolicy",
        ],
    ),
];
/// Head of every object, as people write it; it says nothing here.
const HEAD: [&str; 2] = ["apiVersion", "kind"];
/// Names of the one container: ours, and that of Istio's waypoints.
const CONTAINERS: [&str; 2] = ["waypoint", "istio-proxy"];

/// What is laid over the objects of one waypoint, by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Overlay(BTreeMap<&'static str, Value>);

/// What is known about the parameters of all waypoints.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Parameters {
    /// By `namespace/name` of the Gateway.
    pub(crate) overlays: BTreeMap<NamespacedName, Overlay>,
    /// What is wrong with them; the overlay before stays.
    pub(crate) mistakes: BTreeMap<NamespacedName, String>,
    /// What the API server says about scalers and budgets that it does not take.
    pub(crate) refused: BTreeMap<NamespacedName, String>,
    /// Gateways about which nothing good was read yet: what is there for them is not touched.
    pub(crate) unknown: BTreeSet<NamespacedName>,
}

impl Overlay {
    /// Reads the data of a ConfigMap.
    ///
    /// # Errors
    /// A sentence about what may not be there.
    pub(crate) fn read(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for (key, text) in data {
            let Some((key, allowed)) = ALLOWED.iter().find(|(known, _)| known == key) else {
                let known: Vec<&str> = ALLOWED.iter().map(|(known, _)| *known).collect();
                return Err(format!(
                    "{key}: no such key; there are {}",
                    known.join(", ")
                ));
            };
            let value: Value =
                serde_saphyr::from_str(text).map_err(|error| format!("{key}: {error}"))?;
            if value.is_null() {
                continue;
            }
            if !value.is_object() {
                return Err(format!("{key}: not a map"));
            }
            check(key, allowed, &value, "")?;
            all.insert(*key, value);
        }
        let all = Self(all);
        for key in all.0.keys() {
            all.fits(key).map_err(|error| format!("{key}: {error}"))?;
        }
        Ok(all)
    }

    /// Whether an object of the kind can be read once this is laid over it.
    fn fits(&self, key: &str) -> Result<(), serde_json::Error> {
        let mut object = sample(key);
        self.apply(key, &mut object);
        match key {
            "deployment" => reads::<Deployment>(object),
            "service" => reads::<Service>(object),
            "serviceAccount" => reads::<ServiceAccount>(object),
            "horizontalPodAutoscaler" => reads::<HorizontalPodAutoscaler>(object),
            _ => reads::<PodDisruptionBudget>(object),
        }
    }

    /// This one over `below`.
    pub(crate) fn over(mut self, below: &Self) -> Self {
        for (key, under) in &below.0 {
            match self.0.get_mut(key) {
                Some(above) => {
                    let mut both = under.clone();
                    lay(&mut both, above);
                    *above = both;
                }
                None => drop(self.0.insert(key, under.clone())),
            }
        }
        self
    }

    /// Lays what is said about `key` over an object.
    pub(super) fn apply(&self, key: &str, object: &mut Value) {
        let mut above = self.0.get(key).cloned().unwrap_or_else(|| json!({}));
        if let Some(map) = above.as_object_mut() {
            HEAD.iter().for_each(|key| drop(map.remove(*key)));
        }
        // Labels that the mesh goes by are not to be changed.
        let own = |object: &Value, at: &str| object.pointer(at).cloned();
        let places = ["/metadata/labels", "/spec/template/metadata/labels"];
        let kept: Vec<_> = places.iter().map(|at| own(object, at)).collect();
        lay(object, &above);
        for (at, kept) in places.iter().zip(kept) {
            if let Some(kept) = kept {
                merge_patch(made(object, at), &kept);
            }
        }
        if key == "deployment" && self.has("horizontalPodAutoscaler") {
            // Two that write one number would never agree.
            if let Some(spec) = object["spec"].as_object_mut() {
                spec.remove("replicas");
            }
        }
    }

    /// True if something is said about `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Something that only exists if it is asked for: a scaler or a budget.
    pub(super) fn extra(&self, key: &str, mut object: Value) -> Option<Value> {
        self.has(key).then(|| {
            self.apply(key, &mut object);
            object
        })
    }
}

/// A merge, in which containers are found by their name.
fn lay(object: &mut Value, above: &Value) {
    let mut above = above.clone();
    let given = above
        .pointer_mut("/spec/template/spec")
        .and_then(|spec| spec.as_object_mut()?.remove("containers"));
    merge_patch(object, &above);
    let Some(Value::Array(given)) = given else {
        return;
    };
    match &mut made(object, "/spec/template/spec")["containers"] {
        Value::Array(own) => {
            for one in given {
                let mut one = one;
                if let Some(map) = one.as_object_mut() {
                    map.remove("name");
                }
                own.iter_mut().for_each(|own| merge_patch(own, &one));
            }
        }
        none => *none = Value::Array(given),
    }
}

/// The map at a path; it is made where there is none.
fn made<'a>(object: &'a mut Value, path: &str) -> &'a mut Value {
    let mut place = object;
    for key in path.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[key];
    }
    if !place.is_object() {
        *place = json!({});
    }
    place
}

/// An object as the controller renders it, of the same shape.
fn sample(key: &str) -> Value {
    let labels = json!({ "labels": { "a": "b" } });
    let (version, kind) = match key {
        "deployment" => ("apps/v1", "Deployment"),
        "service" => ("v1", "Service"),
        "serviceAccount" => ("v1", "ServiceAccount"),
        "horizontalPodAutoscaler" => ("autoscaling/v2", "HorizontalPodAutoscaler"),
        _ => ("policy/v1", "PodDisruptionBudget"),
    };
    let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": labels });
    if key == "deployment" {
        object["spec"] = json!({
            "selector": { "matchLabels": { "a": "b" } },
            "template": {
                "metadata": labels,
                "spec": { "containers": [{ "name": "waypoint" }] },
            },
        });
    }
    object
}

fn reads<T: DeserializeOwned>(object: Value) -> Result<(), serde_json::Error> {
    serde_json::from_value::<T>(object).map(drop)
}

/// Every path in `value` has to lead to, or go on from, one that is allowed.
fn check(key: &str, allowed: &[&str], value: &Value, path: &str) -> Result<(), String> {
    if allowed.contains(&path) {
        return strings(key, value, path);
    }
    let leads = |path: &str| {
        let mut all = allowed.iter();
        path.is_empty() || all.any(|one| one.starts_with(&format!("{path}.")))
    };
    if !leads(path) {
        return Err(format!("{key}: {path} may not be set here"));
    }
    let is_list = path.ends_with("containers");
    match value {
        Value::Object(map) if !is_list => each(key, allowed, map, path),
        Value::Array(list) if is_list => list.iter().try_for_each(|one| {
            let name = one["name"].as_str().unwrap_or_default();
            if !CONTAINERS.contains(&name) {
                return Err(format!(
                    "{key}: {path}: the container is called waypoint, not {name:?}"
                ));
            }
            let mut map = one.as_object().into_iter();
            map.try_for_each(|map| each(key, allowed, map, path))
        }),
        Value::Null => Err(format!("{key}: {path} may not be taken away")),
        _ if is_list => Err(format!("{key}: {path} is not a list")),
        _ => Err(format!("{key}: {path} is not a map")),
    }
}

/// Labels and annotations are texts. A merge would take all of them away for a null.
fn strings(key: &str, value: &Value, path: &str) -> Result<(), String> {
    if !path.ends_with("metadata.labels") && !path.ends_with("metadata.annotations") {
        return Ok(());
    }
    let Some(map) = value.as_object() else {
        return Err(format!("{key}: {path} is not a map of texts"));
    };
    match map.iter().find(|(_, value)| !value.is_string()) {
        Some((name, _)) => Err(format!("{key}: {path}: {name} is not a text; quote it")),
        None => Ok(()),
    }
}

fn each(key: &str, allowed: &[&str], map: &Map<String, Value>, path: &str) -> Result<(), String> {
    for (name, value) in map {
        if path.is_empty() && HEAD.contains(&&**name) {
            continue;
        }
        let longer = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        check(key, allowed, value, &longer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &str, text: &str) -> Result<Overlay, String> {
        Overlay::read(&BTreeMap::from([(key.to_owned(), text.to_owned())]))
    }

    fn deployment() -> Value {
        json!({
            "metadata": { "name": "wp", "labels": { "own": "1" } },
            "spec": {
                "replicas": 1,
                "template": {
                    "metadata": { "labels": { "own": "1" } },
                    "spec": { "containers": [{
                        "name": "waypoint", "image": "i",
                        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
                    }] },
                },
            },
        })
    }

    #[test]
    fn pods_are_placed_and_sized() {
        let text = "
spec:
  replicas: 2
  template:
    metadata: {labels: {own: '2', more: x}}
    spec:
      tolerations: [{operator: Exists}]
      containers:
      - name: istio-proxy
        resources: {requests: {cpu: 500m}, limits: {memory: 1Gi}}
";
        let overlay = read("deployment", text).unwrap();
        let mut object = deployment();
        overlay.apply("deployment", &mut object);
        let pod = &object["spec"]["template"];
        assert_eq!(object["spec"]["replicas"], 2);
        assert_eq!(
            pod["metadata"]["labels"],
            json!({ "own": "1", "more": "x" })
        );
        assert_eq!(
            pod["spec"]["tolerations"],
            json!([{ "operator": "Exists" }])
        );
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            (&container["name"], &container["image"]),
            (&json!("waypoint"), &json!("i"))
        );
        assert_eq!(
            container["resources"],
            json!({ "requests": { "cpu": "500m", "memory": "128Mi" }, "limits": { "memory": "1Gi" } })
        );
    }

    #[test]
    fn nobody_runs_a_program_of_their_own_by_it() {
        for (key, text, words) in [
            (
                "deployment",
                "{spec: {template: {spec: {hostNetwork: true}}}}",
                "hostNetwork",
            ),
            (
                "deployment",
                "{spec: {template: {spec: {containers: [{name: x}]}}}}",
                "waypoint",
            ),
            (
                "deployment",
                "{spec: {template: {spec: {containers: [{name: waypoint, image: mine}]}}}}",
                "containers.image",
            ),
            (
                "deployment",
                "{spec: {template: {spec: {serviceAccountName: other}}}}",
                "serviceAccountName",
            ),
            ("deployment", "{spec: {selector: {}}}", "spec.selector"),
            ("deployment", "{metadata: {name: other}}", "metadata.name"),
            ("deployment", "{spec: {template: null}}", "taken away"),
            ("service", "{spec: {selector: {a: b}}}", "spec.selector"),
            (
                "horizontalPodAutoscaler",
                "{spec: {scaleTargetRef: {name: x}}}",
                "scaleTargetRef",
            ),
            ("deploymnt", "{}", "there are deployment"),
            ("deployment", "[1]", "not a map"),
            ("deployment", "{", "deployment: "),
        ] {
            let refused = read(key, text).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn what_no_object_could_be_read_from_is_a_mistake() {
        for (key, text, words) in [
            (
                "deployment",
                "spec: {replicas: '3'}",
                "deployment: invalid type",
            ),
            ("deployment", "spec: {replicas: 1.5}", "deployment: "),
            ("deployment", "spec: {strategy: Recreate}", "deployment: "),
            (
                "deployment",
                "spec: {template: {spec: {tolerations: x}}}",
                "deployment: ",
            ),
            (
                "deployment",
                "spec: {template: {spec: {containers: {name: waypoint}}}}",
                "not a list",
            ),
            (
                "deployment",
                "spec: {template: {spec: {containers: [{name: waypoint, resources: x}]}}}",
                "deployment: ",
            ),
            ("service", "spec: {ipFamilies: IPv4}", "service: "),
            (
                "horizontalPodAutoscaler",
                "spec: {maxReplicas: x}",
                "horizontalPodAutoscaler: ",
            ),
            (
                "podDisruptionBudget",
                "spec: {minAvailable: [1]}",
                "podDisruptionBudget: ",
            ),
        ] {
            let refused = read(key, text).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
        }
        for (key, _) in ALLOWED {
            for part in ["labels", "annotations"] {
                for what in ["null", "x", "[a]", "{a: 1}", "{a: true}", "{a: null}"] {
                    let refused = read(key, &format!("metadata: {{{part}: {what}}}")).unwrap_err();
                    assert!(refused.contains("text"), "{key} {part} {what}: {refused}");
                }
            }
            assert!(read(key, "metadata: {labels: {a: '1'}}").is_ok(), "{key}");
        }
        let pods = "spec: {template: {metadata: {labels: null}}}";
        assert!(read("deployment", pods).is_err());
        // A quantity may be a number, as in Kubernetes.
        let cpu = "{requests: {cpu: 1, memory: 1Gi}}";
        let cpu = format!(
            "spec: {{template: {{spec: {{containers: [{{name: waypoint, resources: {cpu}}}]}}}}}}"
        );
        assert!(read("deployment", &cpu).is_ok());
    }

    #[test]
    fn labels_that_the_mesh_goes_by_stay_whatever_is_laid_over_them() {
        for labels in [Value::Null, json!("x"), json!({ "own": "2" })] {
            let over = json!({ "metadata": { "labels": labels } });
            let overlay = Overlay([("deployment", over)].into());
            let mut object = deployment();
            overlay.apply("deployment", &mut object);
            assert_eq!(object["metadata"]["labels"], json!({ "own": "1" }));
        }
    }

    #[test]
    fn what_a_waypoint_says_lies_over_what_its_class_says() {
        let class = read("deployment", "{spec: {replicas: 3, minReadySeconds: 5}}").unwrap();
        let own = read("deployment", "{spec: {replicas: 2}}")
            .unwrap()
            .over(&class);
        let mut object = deployment();
        own.apply("deployment", &mut object);
        assert_eq!(object["spec"]["replicas"], 2);
        assert_eq!(object["spec"]["minReadySeconds"], 5);
    }

    #[test]
    fn a_scaler_alone_counts_replicas() {
        let overlay = read("horizontalPodAutoscaler", "{spec: {maxReplicas: 4}}").unwrap();
        let mut object = deployment();
        overlay.apply("deployment", &mut object);
        assert_eq!(overlay.extra("podDisruptionBudget", json!({})), None);
        // It says nothing about the Deployment, and still takes its replicas away.
        assert!(object["spec"]["replicas"].is_null());
    }
}
