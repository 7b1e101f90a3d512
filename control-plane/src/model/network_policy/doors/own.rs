//! Pods that the mesh itself runs: waypoints, control planes, node proxies. What opens doors for them
//! must not open them for others that the same policies select, so they get policies of their own.

use std::collections::BTreeSet;

use isobar_objects::{NetworkPolicy, ObjectHead as _, ObjectSet};
use isobar_types::{NamespacedName, labels, ports};
use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::rule::{Rule, rules};
use super::{
    DNS, Inspection, Missing, Remedy, ShutDoor, entry, is_about_egress, is_open, labelled,
};
use crate::model::network_policy::is_about_ingress;
use crate::model::network_policy::sources::Sources;
use crate::model::pods::PodFacts;

/// Label by which the mesh's own pods are known.
pub(in crate::model::network_policy) const PART: &str = "app.kubernetes.io/name";
/// Where an API server has objects checked.
const WEBHOOK: u16 = 15017;
/// Where API servers listen, by their Service and by themselves, if nobody tells.
const API_SERVER: [u16; 2] = [443, 6443];

/// What pods of the mesh's own are.
struct Own {
    /// For people.
    what: String,
    /// Name of a policy for them, if it is free.
    policy: String,
    selector: LabelSelector,
    inbound: Vec<Need>,
    outbound: Vec<Need>,
}

/// A connection that they need.
struct Need {
    ports: Vec<NetworkPolicyPort>,
    /// Who comes, or what is reached.
    what: &'static str,
    /// From or to everybody; otherwise it is enough that a rule names the port.
    everybody: bool,
}

/// True for a control plane's or node proxy's pod.
pub(in crate::model::network_policy) fn is_part(pod: &PodFacts<'_>) -> bool {
    part(pod).is_some()
}

fn part<'a>(pod: &PodFacts<'a>) -> Option<&'a str> {
    let name = pod.labels.get(PART).map(String::as_str);
    name.filter(|name| ["isobard", "ztunnel"].contains(name) && !pod.host_network())
}

fn tcp(number: u16, what: &'static str) -> Need {
    Need {
        ports: vec![entry(number, "TCP")],
        what,
        everybody: false,
    }
}

fn names() -> Need {
    Need {
        ports: vec![entry(DNS, "UDP"), entry(DNS, "TCP")],
        what: "names",
        everybody: false,
    }
}

/// The API server's ports: network plugins see the one of its Service, or the one behind it.
fn api_server(set: &ObjectSet) -> Need {
    let service = set.services.get("default", "kubernetes");
    let spec = service.and_then(|held| held.object.spec.as_ref());
    let told = spec.iter().flat_map(|spec| &spec.ports).flatten();
    let told = told.flat_map(|port| {
        let behind = match &port.target_port {
            Some(IntOrString::Int(number)) => Some(*number),
            _ => None,
        };
        [Some(port.port), behind].into_iter().flatten()
    });
    let told = told.filter_map(|number| u16::try_from(number).ok());
    let mut numbers: BTreeSet<u16> = told.collect();
    if numbers.is_empty() {
        numbers.extend(API_SERVER);
    }
    Need {
        ports: numbers.iter().map(|number| entry(*number, "TCP")).collect(),
        what: "the API server",
        everybody: false,
    }
}

impl Own {
    fn waypoint(gateway: &NamespacedName) -> Self {
        let everybody = |what| Need {
            everybody: true,
            ..tcp(ports::HBONE, what)
        };
        Self {
            what: format!("the waypoint {gateway}"),
            policy: format!("{}-mesh", gateway.name),
            selector: labelled(labels::GATEWAY_NAME, &gateway.name),
            inbound: vec![everybody("its callers")],
            outbound: vec![
                tcp(ports::XDS, "the control plane"),
                everybody("the pods of the mesh that it serves"),
                names(),
            ],
        }
    }

    fn part(name: &str, set: &ObjectSet) -> Self {
        let (what, inbound, outbound) = match name {
            "isobard" => (
                "the control plane",
                vec![
                    tcp(ports::XDS, "proxies"),
                    tcp(WEBHOOK, "the API server, which has objects checked,"),
                ],
                vec![api_server(set), names()],
            ),
            _ => (
                "node proxies",
                Vec::new(),
                vec![tcp(ports::XDS, "the control plane"), names()],
            ),
        };
        Self {
            what: what.to_owned(),
            policy: format!("{name}-mesh"),
            selector: labelled(PART, name),
            inbound,
            outbound,
        }
    }
}

impl Need {
    fn numbers(&self) -> String {
        let numbers = self.ports.iter().map(number);
        let distinct: BTreeSet<u16> = numbers.collect();
        let distinct: Vec<String> = distinct.iter().map(u16::to_string).collect();
        distinct.join(", ")
    }
}

fn number(port: &NetworkPolicyPort) -> u16 {
    match &port.port {
        Some(IntOrString::Int(number)) => u16::try_from(*number).unwrap_or_default(),
        _ => 0,
    }
}

impl Inspection<'_> {
    /// A waypoint's pod that policies select.
    pub(super) fn waypoint(
        &mut self,
        namespace: &str,
        pod: &PodFacts<'_>,
        gateway: &NamespacedName,
    ) {
        self.own(namespace, pod, &Own::waypoint(gateway));
    }

    /// A control plane's or node proxy's pod, if it is one.
    pub(super) fn part(&mut self, namespace: &str, pod: &PodFacts<'_>) {
        if let Some(name) = part(pod) {
            let own = Own::part(name, self.selection.set);
            self.own(namespace, pod, &own);
        }
    }

    fn own(&mut self, namespace: &str, pod: &PodFacts<'_>, own: &Own) {
        let key = self.place(namespace, own);
        let made = self.remedies.get(&key).map(|remedy| remedy.after.clone());
        let inbound = self.selecting(pod, is_about_ingress);
        let outbound = self.selecting(pod, is_about_egress);
        let entering = self.shut::<NetworkPolicyIngressRule>(&inbound, made.as_ref(), &own.inbound);
        let leaving = self.shut::<NetworkPolicyEgressRule>(&outbound, made.as_ref(), &own.outbound);
        let what = &own.what;
        let pod = pod.key.to_string();
        if !entering.is_empty() {
            let who = listed(&entering);
            let text = format!("policies shut {what}: it is not reached by {who}");
            self.open::<NetworkPolicyIngressRule>(&key, own, &entering, (text, pod.clone()));
        }
        if !leaving.is_empty() {
            let who = listed(&leaving);
            let text = format!("policies shut {what} in: it does not reach {who}");
            self.open::<NetworkPolicyEgressRule>(&key, own, &leaving, (text, pod));
        }
    }

    /// What policies about one direction, of which there are some, do not let through.
    fn shut<'n, R: Rule>(
        &self,
        policies: &[NetworkPolicy],
        made: Option<&NetworkPolicy>,
        needs: &'n [Need],
    ) -> Vec<&'n Need> {
        if policies.is_empty() {
            return Vec::new();
        }
        let open = |need: &&Need| {
            policies.iter().chain(made).any(|policy| {
                rules::<R>(policy).iter().any(|rule| {
                    let everybody = || self.neighbours.admitted(policy.namespace(), rule.peers());
                    has_one(rule.ports(), &need.ports)
                        && (!need.everybody || everybody() == Sources::Everyone)
                })
            })
        };
        needs.iter().filter(|need| !open(need)).collect()
    }

    /// Where a policy for these pods alone is, or may be: what has the name for other pods stays.
    fn place(&self, namespace: &str, own: &Own) -> NamespacedName {
        let key = |name: String| NamespacedName {
            namespace: namespace.into(),
            name: name.into(),
        };
        let policies = &self.selection.set.network_policies;
        let is_for_others = |key: &NamespacedName| {
            let written = policies.get(namespace, &key.name);
            written.is_some_and(|written| {
                let spec = written.object.spec.as_ref();
                spec.and_then(|spec| spec.pod_selector.as_ref()) != Some(&own.selector)
            })
        };
        let mut last = key(own.policy.clone());
        let mut more = 2;
        while is_for_others(&last) {
            last = key(format!("{}-{more}", own.policy));
            more += 1;
        }
        last
    }

    /// One rule more in the policy for these pods alone.
    fn open<R: Rule>(
        &mut self,
        key: &NamespacedName,
        own: &Own,
        needs: &[&Need],
        (consequence, pod): (String, String),
    ) {
        let written = self
            .selection
            .set
            .network_policies
            .get(&key.namespace, &key.name);
        let before = written.map(|held| held.object.clone());
        let remedy = self.remedies.entry(key.clone()).or_insert_with(|| Remedy {
            after: before.clone().unwrap_or_else(|| empty(key, own)),
            before,
            doors: Vec::new(),
        });
        let spec = remedy.after.spec.get_or_insert_default();
        let types = spec.policy_types.get_or_insert_default();
        if types.is_empty() && (spec.ingress.is_some() || spec.egress.is_some()) {
            types.push("Ingress".to_owned());
        }
        let word = match R::FIELD {
            "ingress" => "Ingress",
            _ => "Egress",
        };
        if types.iter().all(|have| have != word) {
            types.push(word.to_owned());
        }
        let ports: Vec<_> = needs.iter().flat_map(|need| need.ports.clone()).collect();
        let field = format!("spec.{}[{}]", R::FIELD, R::of(spec).len());
        let first = ports.first().map(number).unwrap_or_default();
        R::of_mut(spec).push(R::new(None, ports));
        remedy.doors.push(ShutDoor {
            field,
            missing: Missing::Port(first),
            consequence,
            pods: BTreeSet::from([pod]),
            wider: None,
        });
    }
}

/// True if a rule's list has one of these ports.
fn has_one(list: Option<&[NetworkPolicyPort]>, wanted: &[NetworkPolicyPort]) -> bool {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return true;
    };
    let is_there = |port: &NetworkPolicyPort| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        list.iter()
            .any(|have| is_open(have, number(port), protocol))
    };
    wanted.iter().any(is_there)
}

fn listed(needs: &[&Need]) -> String {
    let all: Vec<String> = needs
        .iter()
        .map(|need| format!("{} ({})", need.what, need.numbers()))
        .collect();
    all.join(", ")
}

/// A policy that selects these pods and says nothing yet.
fn empty(key: &NamespacedName, own: &Own) -> NetworkPolicy {
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(own.selector.clone()),
            ..NetworkPolicySpec::default()
        }),
    }
}
