//! The Deployment, Service and ServiceAccount of a waypoint, and its Gateway's status.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_objects::gateway_api::Gateway;
use isobar_objects::{
    Deployment, Kind, Object, ObjectHead, ObjectMap, ObjectRef, ObjectSet, Service, ServiceAccount,
};
use isobar_types::{CLUSTER_DOMAIN, NamespacedName, labels, ports};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::parameters::{Overlay, Parameters};
use super::{Rejected, edge, listeners};
use crate::model::{
    CANONICAL_NAME, GatewayFacts, MANAGED, MANAGER, PodFacts, Verdict, account_of, is_made_for,
    is_managed, name_of, service_of,
};
use crate::revision::{self, Revision};

pub(super) const CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";

/// What one Gateway leads to.
#[derive(Debug)]
pub(super) struct Rendered {
    /// Objects of ours.
    pub(super) objects: Vec<Object>,
    /// Those that stay as they are: what should be in them is not known, or cannot be rendered.
    pub(super) kept: Vec<ObjectRef>,
    /// The Gateway.
    pub(super) gateway: ObjectRef,
    /// Patch with its status, without the conditions.
    pub(super) status: Value,
    /// Its conditions.
    pub(super) verdicts: Vec<Verdict>,
}

/// What the pods of all waypoints have in common.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct WaypointPods {
    /// Their image.
    pub(crate) image: String,
    /// Where the control plane is, unless that is where a waypoint looks by itself.
    pub(crate) control_plane: Option<String>,
    /// Where certificates come from, if another authority than the control plane's has them: the
    /// control plane is verified by roots of its own then.
    pub(crate) authority: Option<String>,
    /// What they are told of the mesh, by the names of their environment.
    pub(crate) names: Vec<(&'static str, String)>,
    /// What is laid over the objects of single waypoints.
    pub(crate) parameters: Arc<Parameters>,
    /// What this control plane is called.
    pub(crate) revision: Revision,
    /// What the API server did not take.
    pub(crate) rejected: Rejected,
}

/// Map with the control plane's own roots, where another authority has the usual one, and where it is
/// mounted.
pub(crate) const OWN_ROOTS: &str = "isobar-ca-root-cert";
const OWN_ROOTS_AT: &str = "/var/run/secrets/isobar";
/// User and group of the pods.
const USER: u32 = 1337;

/// Renders one waypoint.
pub(super) fn render(set: &ObjectSet, facts: &GatewayFacts, pods: &WaypointPods) -> Rendered {
    let (namespace, name) = (&*facts.key.namespace, &*facts.key.name);
    let reference = ObjectRef::new(Kind::Gateway, namespace, name);
    let Some(gateway) = set.gateways.get(namespace, name) else {
        return Rendered {
            objects: Vec::new(),
            kept: Vec::new(),
            gateway: reference,
            status: json!({}),
            verdicts: Vec::new(),
        };
    };
    let (mut conflicts, mut kept) = (Vec::new(), Vec::new());
    let called = name_of(gateway);
    let free = |existing| is_free(existing, name);
    let mut made = Made::of(&pods.parameters, facts);
    let account = account_of(gateway);
    if gateway.annotation(labels::FOR_SERVICE_ACCOUNT) == Some(account) {
        // Its certificate would be that of the workloads it guards.
        conflicts.push(format!("ServiceAccount {namespace}/{account}"));
    } else {
        let there = set.service_accounts.get(namespace, account);
        let there = there.map(|one| one.labels());
        // Several Gateways may run as one account.
        if there.is_none_or(is_managed) {
            let value = service_account(gateway, account, pods);
            made.add::<ServiceAccount>("serviceAccount", there.is_some(), value);
        }
    }
    let there = set.services.get(namespace, called).map(|one| one.labels());
    if free(there) {
        let value = edge::service(service(gateway, pods), facts);
        made.add::<Service>("service", there.is_some(), value);
    } else {
        conflicts.push(format!("Service {namespace}/{called}"));
    }
    let there = set.deployments.get(namespace, called);
    let there = there.map(|one| one.labels());
    if free(there) {
        let value = edge::deployment(deployment(gateway, account, pods), facts);
        made.add::<Deployment>("deployment", there.is_some(), value);
    } else {
        conflicts.push(format!("Deployment {namespace}/{called}"));
    }
    if !conflicts.is_empty() || !runs_as(set, gateway, called) {
        kept.extend(called_before(set, gateway, called));
    }
    if !conflicts.is_empty() {
        // Half a waypoint serves nobody, and must not look as if it did.
        made.objects.clear();
    }
    if facts.listeners.is_none() && !listens(gateway) {
        // Nobody could call it. What there is stays: it may be a mistake of a moment.
        let made = std::mem::take(&mut made.objects).into_iter();
        let there = made.map(|object| object.reference());
        kept.extend(there.filter(|object| set.contains(object)));
    }
    let mistake = pods.parameters.mistakes.get(&facts.key);
    let mistake = mistake.or_else(|| pods.parameters.refused.get(&facts.key));
    let mistake = mistake.or(made.mistake.as_ref());
    kept.append(&mut made.kept);
    let mut verdicts = verdicts(&reference, gateway, facts, &conflicts, mistake);
    refused(&mut verdicts, &reference, &made.objects, &pods.rejected);
    verdicts.extend(listeners::addresses(&reference, gateway));
    verdicts.extend(listeners::binding(&reference, gateway, set));
    Rendered {
        verdicts,
        objects: made.objects,
        kept,
        status: json!({ "status": { "addresses": addresses(set, gateway, facts) } }),
        gateway: reference,
    }
}

/// Says what the API server did not take of a waypoint. One that has run runs on as it was, so that it
/// stays programmed.
fn refused(
    verdicts: &mut Vec<Verdict>,
    gateway: &ObjectRef,
    objects: &[Object],
    rejected: &Rejected,
) {
    let refused = objects.iter().filter_map(|object| {
        let reference = object.reference();
        let message = rejected.get(&reference)?;
        Some(format!("{reference}: {message}"))
    });
    let refused: Vec<String> = refused.collect();
    if refused.is_empty() {
        return;
    }
    let text = format!("the API server refuses {}", refused.join("; "));
    for verdict in verdicts.iter_mut() {
        if verdict.condition == "Programmed" && !verdict.holds {
            *verdict = Verdict::fails(gateway.clone(), "Programmed", "Invalid", text.clone());
        }
    }
    let text = format!("{text}; what was in force before stays");
    verdicts.push(Verdict::fails(gateway.clone(), "Written", "Refused", text));
}

/// What a control plane writes for a Gateway, and the Gateway itself.
pub(super) fn made_for(set: &ObjectSet, key: &NamespacedName) -> Vec<ObjectRef> {
    let (namespace, name) = (&*key.namespace, &*key.name);
    let gateway = set.gateways.get(namespace, name);
    let account = gateway.map_or(name, |gateway| account_of(gateway));
    let called = gateway.map_or(name, |gateway| name_of(gateway));
    let before = gateway.map(|gateway| called_before(set, gateway, called));
    let mut all = vec![
        ObjectRef::new(Kind::Gateway, namespace, name),
        ObjectRef::new(Kind::Deployment, namespace, called),
        ObjectRef::new(Kind::Service, namespace, called),
        ObjectRef::new(Kind::ServiceAccount, namespace, account),
    ];
    all.extend(before.into_iter().flatten());
    all
}

/// An object of that name may be written if there is none, or it is this Gateway's.
fn is_free(existing: Option<&BTreeMap<String, String>>, gateway: &str) -> bool {
    let of = existing.and_then(|labels| labels.get(labels::GATEWAY_NAME));
    existing.is_none_or(is_managed) && of.is_none_or(|of| of == gateway)
}

/// True once a pod of the Deployment of that name is ready.
fn runs_as(set: &ObjectSet, gateway: &Gateway, called: &str) -> bool {
    let pods = set.pods.in_namespace(gateway.namespace());
    let mut own = pods.filter(|pod| {
        pod.label(labels::GATEWAY_NAME) == Some(gateway.name())
            && pod.label(CANONICAL_NAME) == Some(called)
    });
    own.any(|pod| PodFacts::read(pod).is_some_and(|pod| pod.ready))
}

/// Deployments and Services that were made for the Gateway under another name than it has now.
fn called_before(set: &ObjectSet, gateway: &Gateway, called: &str) -> Vec<ObjectRef> {
    fn of<T: ObjectHead>(
        all: &ObjectMap<T>,
        gateway: &Gateway,
        called: &str,
    ) -> impl Iterator<Item = ObjectRef> {
        let own = all
            .in_namespace(gateway.namespace())
            .filter(move |one| one.name() != called && is_made_for(one.labels(), gateway.name()));
        own.map(|one| one.reference())
    }
    let services = of(&set.services, gateway, called);
    services
        .chain(of(&set.deployments, gateway, called))
        .collect()
}

/// The objects of one waypoint while they are made.
struct Made<'a> {
    overlay: Option<&'a Overlay>,
    is_known: bool,
    objects: Vec<Object>,
    kept: Vec<ObjectRef>,
    mistake: Option<String>,
}

impl<'a> Made<'a> {
    fn of(parameters: &'a Parameters, facts: &GatewayFacts) -> Self {
        Self {
            overlay: parameters.overlays.get(&facts.key),
            is_known: !parameters.unknown.contains(&facts.key),
            objects: Vec::new(),
            kept: Vec::new(),
            mistake: None,
        }
    }

    /// One that is there stays as it is while its parameters are not known: it may have been made with
    /// others than none. One that cannot be rendered is never one that nobody wants.
    fn add<T: DeserializeOwned>(&mut self, key: &str, is_there: bool, mut value: Value)
    where
        Object: From<T>,
    {
        let reference = reference(&value);
        if is_there && !self.is_known {
            self.kept.extend(reference);
            return;
        }
        if let Some(overlay) = self.overlay {
            overlay.apply(key, &mut value);
        }
        match serde_json::from_value::<T>(value) {
            Ok(object) => self.objects.push(object.into()),
            Err(error) => {
                tracing::error!(%error, object = ?reference, "a waypoint object could not be rendered");
                self.mistake = Some(format!("{key}: {error}"));
                self.kept.extend(reference);
            }
        }
    }
}

fn reference(value: &Value) -> Option<ObjectRef> {
    let kind = match value["kind"].as_str()? {
        "Deployment" => Kind::Deployment,
        "Service" => Kind::Service,
        _ => Kind::ServiceAccount,
    };
    let metadata = &value["metadata"];
    let (namespace, name) = (metadata["namespace"].as_str()?, metadata["name"].as_str()?);
    Some(ObjectRef::new(kind, namespace, name))
}

fn verdicts(
    reference: &ObjectRef,
    gateway: &Gateway,
    facts: &GatewayFacts,
    conflicts: &[String],
    mistake: Option<&String>,
) -> Vec<Verdict> {
    let accepted = if !conflicts.is_empty() {
        let text = format!(
            "the waypoint needs objects of its own, but these are somebody else's: {}; give the \
             Gateway another name, or what is made for it by the annotation \
             gateway.istio.io/name-override",
            conflicts.join(", ")
        );
        Verdict::fails(reference.clone(), "Accepted", "Conflict", text)
    } else if let Some(mistake) = mistake {
        let text = format!("{mistake}; what was in force before stays");
        Verdict::fails(reference.clone(), "Accepted", "InvalidParameters", text)
    } else if let Some(listeners) = &facts.listeners {
        edge::accepted(reference, listeners)
    } else if listens(gateway) {
        Verdict::holds(reference.clone(), "Accepted", "Accepted", "a waypoint")
    } else {
        let text = "a waypoint needs a listener with protocol HBONE on port 15008";
        Verdict::fails(reference.clone(), "Accepted", "ListenersNotValid", text)
    };
    let programmed = if facts.programmed {
        let text = if facts.ready {
            "a waypoint pod is ready"
        } else {
            "was ready; no waypoint pod is ready now"
        };
        Verdict::holds(reference.clone(), "Programmed", "Programmed", text)
    } else {
        let text = "no waypoint pod has been ready yet";
        Verdict::fails(reference.clone(), "Programmed", "Pending", text)
    };
    vec![accepted, programmed]
}

/// True if the mesh's own listener is there.
fn listens(gateway: &Gateway) -> bool {
    let mut all = gateway.spec.listeners.iter();
    all.any(|one| one.protocol == "HBONE" && one.port == i32::from(ports::HBONE))
}

/// Set once the waypoint has been ready, and kept.
fn addresses(set: &ObjectSet, gateway: &Gateway, facts: &GatewayFacts) -> Value {
    if !facts.programmed {
        return Value::Null;
    }
    let (namespace, name) = (gateway.namespace(), service_of(gateway, set));
    let mut all = vec![json!({
        "type": "Hostname",
        "value": format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"),
    })];
    let cluster_ip = set
        .services
        .get(namespace, name)
        .and_then(|service| service.spec.as_ref()?.cluster_ip.clone())
        .filter(|ip| ip != "None" && !ip.is_empty());
    all.extend(cluster_ip.map(|ip| json!({ "type": "IPAddress", "value": ip })));
    all.into()
}

pub(super) fn metadata(gateway: &Gateway, name: &str, revision: &Revision) -> Value {
    let infrastructure = gateway.spec.infrastructure.clone().unwrap_or_default();
    let mut all = infrastructure.labels;
    all.extend(own_labels(gateway));
    // By this the control plane that made it finds it again.
    all.remove(revision::LABEL);
    let own = revision.own_name();
    all.extend(own.map(|own| (revision::LABEL.to_owned(), own.to_owned())));
    json!({
        "name": name,
        "namespace": gateway.namespace(),
        "labels": all,
        "annotations": infrastructure.annotations,
        "ownerReferences": [{
            "apiVersion": Kind::Gateway.api_version(),
            "kind": "Gateway",
            "name": gateway.name(),
            "uid": gateway.uid(),
            "controller": true,
        }],
    })
}

fn own_labels(gateway: &Gateway) -> BTreeMap<String, String> {
    [
        (labels::GATEWAY_NAME, gateway.name()),
        (CLASS_NAME, &gateway.spec.gateway_class_name),
        (MANAGED, MANAGER),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn service_account(gateway: &Gateway, account: &str, pods: &WaypointPods) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(gateway, account, &pods.revision),
    })
}

fn service(gateway: &Gateway, pods: &WaypointPods) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(gateway, name_of(gateway), &pods.revision),
        "spec": {
            "type": "ClusterIP",
            "selector": { labels::GATEWAY_NAME: gateway.name() },
            "ports": [
                { "name": "status-port", "port": ports::READINESS, "protocol": "TCP" },
                {
                    "name": "mesh", "port": ports::HBONE, "protocol": "TCP",
                    "appProtocol": "hbone",
                },
            ],
        },
    })
}

fn deployment(gateway: &Gateway, account: &str, pods: &WaypointPods) -> Value {
    let mut pod_labels = own_labels(gateway);
    for (key, value) in [
        (labels::DATAPLANE_MODE, labels::MODE_NONE),
        (labels::TUNNEL, "http"),
        ("sidecar.istio.io/inject", "false"),
        (CANONICAL_NAME, name_of(gateway)),
        ("service.istio.io/canonical-revision", "latest"),
    ] {
        pod_labels.insert(key.to_owned(), value.to_owned());
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(gateway, name_of(gateway), &pods.revision),
        "spec": {
            // How many there are is for parameters to say, or for whoever scales.
            "selector": { "matchLabels": { labels::GATEWAY_NAME: gateway.name() } },
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": {
                        "prometheus.io/path": "/stats/prometheus",
                        "prometheus.io/port": ports::METRICS.to_string(),
                        "prometheus.io/scrape": "true",
                    },
                },
                "spec": pod(gateway, account, pods),
            },
        },
    })
}

/// The mesh's roots and a token for its authority are mounted where the program looks for them.
fn pod(gateway: &Gateway, account: &str, pods: &WaypointPods) -> Value {
    let mut volumes = json!([
        {
            "name": "token",
            "projected": { "sources": [{ "serviceAccountToken": {
                "path": "istio-token", "audience": "istio-ca", "expirationSeconds": 43200,
            } }] },
        },
        { "name": "roots", "configMap": { "name": "istio-ca-root-cert" } },
    ]);
    let mut mounts = json!([
        { "name": "token", "mountPath": "/var/run/secrets/tokens", "readOnly": true },
        { "name": "roots", "mountPath": "/var/run/secrets/istio", "readOnly": true },
    ]);
    if let (true, Some(volumes), Some(mounts)) = (
        pods.authority.is_some(),
        volumes.as_array_mut(),
        mounts.as_array_mut(),
    ) {
        volumes.push(json!({ "name": "own-roots", "configMap": { "name": OWN_ROOTS } }));
        mounts.push(json!({ "name": "own-roots", "mountPath": OWN_ROOTS_AT, "readOnly": true }));
    }
    json!({
        "serviceAccountName": account,
        // It speaks to the control plane, never to the API server.
        "automountServiceAccountToken": false,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [{
            "name": "waypoint",
            "image": pods.image,
            "ports": [
                { "name": "mesh", "containerPort": ports::HBONE },
                { "name": "metrics", "containerPort": ports::METRICS },
                { "name": "status-port", "containerPort": ports::READINESS },
            ],
            "env": environment(gateway, pods),
            "readinessProbe": {
                "httpGet": { "path": "/healthz/ready", "port": ports::READINESS },
                "periodSeconds": 1,
            },
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    })
}

fn environment(gateway: &Gateway, pods: &WaypointPods) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let server = pods.control_plane.iter();
    let server = server.map(|address| json!({ "name": "XDS_ADDRESS", "value": address }));
    let own = [
        json!({ "name": "GATEWAY_NAME", "value": gateway.name() }),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
    ];
    let authority = pods.authority.iter().flat_map(|address| {
        let roots = format!("{OWN_ROOTS_AT}/root-cert.pem");
        [
            json!({ "name": "CA_ADDRESS", "value": address }),
            json!({ "name": "XDS_ROOT_CA", "value": roots }),
        ]
    });
    let names = pods.names.iter();
    let names = names.map(|(name, value)| json!({ "name": name, "value": value }));
    let all = own.into_iter().chain(names);
    all.chain(server).chain(authority).collect()
}

#[cfg(test)]
mod tests;
