//! Who asks.

use std::net::IpAddr;
use std::sync::Arc;

use isobar_objects::enrolment::decide;
use isobar_objects::{ObjectHead as _, Pod, deployment_of, pods};
use isobar_state::Workload;
use isobar_types::{Identity, labels};

use crate::question::{Question, QuestionError};
use crate::world::World;

/// The calling pod.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) workload: Arc<Workload>,
    pub(crate) ip: IpAddr,
    /// Its connections are redirected into the mesh.
    pub(crate) enrolled: bool,
    pub(crate) enrolment: String,
    /// It uses its node's network, and has its node's address.
    pub(crate) on_host: bool,
    /// A user other than root is named for all of it: what it opens on a node is nobody's probe.
    pub(crate) is_unprivileged: bool,
    pub(crate) lookups: Lookups,
}

/// Who answers when the caller asks for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lookups {
    /// Its node proxy, and the cluster's name server for what that does not know.
    Mesh,
    /// The cluster's name server alone, and why.
    Cluster(String),
    /// What its node asks, and why.
    Node(String),
}

impl Lookups {
    fn of(pod: &Pod, enrolled: bool, enrolment: &str) -> Self {
        let policy = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.dns_policy.as_deref());
        let own = pod.annotation(labels::DNS_CAPTURE);
        let captured = enrolled && own != Some("false");
        match policy {
            _ if captured => Self::Mesh,
            Some(policy @ "Default") => Self::Node(format!("dnsPolicy is {policy}")),
            // What Kubernetes makes of it.
            None | Some("ClusterFirst") if pods::uses_host_network(pod) => {
                Self::Node("hostNetwork without dnsPolicy ClusterFirstWithHostNet".to_owned())
            }
            _ if enrolled => Self::Cluster(format!(
                "its lookups are not captured: annotation {}",
                labels::DNS_CAPTURE
            )),
            _ => Self::Cluster(format!("the caller is outside the mesh: {enrolment}")),
        }
    }
}

impl Caller {
    pub(crate) fn find(world: &World, question: &Question) -> Result<Self, QuestionError> {
        let pod = find_pod(world, question)?;
        let name = format!("{}/{}", pod.namespace(), pod.name());
        let status = pod.status.as_ref();
        let ip = status.and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let ip: IpAddr = ip.ok_or_else(|| QuestionError::NoAddress(name.clone()))?;
        // By its name: several pods have the address of their node.
        let workload = world.pod(pod.namespace(), pod.name());
        let workload = workload.ok_or(QuestionError::NoAddress(name))?.clone();
        let namespace = world.objects.namespaces.get("", pod.namespace());
        let asked = decide(pod, namespace.map(|held| &held.object), &world.enrolment);
        // What is asked for is not what is: an agent may be away, or leave namespaces out.
        let enrolled = pod.annotation(labels::REDIRECTION) == Some("enabled");
        let enrolment = match (asked.is_enrolled(), enrolled) {
            (true, false) => format!("{asked}, but nobody says that its traffic is redirected"),
            (false, true) => format!("its traffic is redirected, although {asked}"),
            _ => asked.to_string(),
        };
        Ok(Self {
            workload,
            ip,
            enrolled,
            lookups: Lookups::of(pod, enrolled, &enrolment),
            enrolment,
            on_host: pods::uses_host_network(pod),
            is_unprivileged: is_unprivileged(pod),
        })
    }

    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.workload.namespace, self.workload.name)
    }

    /// What its calls prove; nothing outside the mesh.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.enrolled.then(|| self.workload.identity())
    }
}

fn is_unprivileged(pod: &Pod) -> bool {
    let context = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    context.is_some_and(|context| context.run_as_user.is_some_and(|user| user != 0))
}

/// A pod by name, or else the first of a Deployment.
fn find_pod<'a>(world: &'a World, question: &Question) -> Result<&'a Pod, QuestionError> {
    let (namespace, name) = question
        .source
        .split_once('/')
        .unwrap_or((&question.namespace, &question.source));
    let pods = &world.objects.pods;
    if let Some(held) = pods.get(namespace, name) {
        return Ok(&held.object);
    }
    let of_deployment = |pod: &Pod| deployment_of(pod).as_deref() == Some(name);
    let mut there = pods.in_namespace(namespace);
    let found = there.find(|held| of_deployment(&held.object));
    found.map(|held| &held.object).ok_or_else(|| {
        let names = pods.in_namespace(namespace).map(|held| held.object.name());
        QuestionError::NoCaller(format!("{namespace}/{name}"), some_of(names))
    })
}

/// `; there are a, b, c`, as a help for whoever mistyped.
pub(crate) fn some_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 8;
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return String::new();
    }
    let more = if names.len() > MOST { ", …" } else { "" };
    names.truncate(MOST);
    format!("; there are {}{more}", names.join(", "))
}
