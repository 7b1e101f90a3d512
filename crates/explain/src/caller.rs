//! Who asks.

use std::net::IpAddr;
use std::sync::Arc;

use isobar_objects::enrolment::decide;
use isobar_objects::{ObjectHead as _, Pod, deployment_of};
use isobar_state::Workload;
use isobar_types::{Identity, NetworkAddress, labels};

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
}

impl Caller {
    pub(crate) fn find(world: &World, question: &Question) -> Result<Self, QuestionError> {
        let pod = find_pod(world, question)?;
        let name = format!("{}/{}", pod.namespace(), pod.name());
        let status = pod.status.as_ref();
        let ip = status.and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let ip: IpAddr = ip.ok_or_else(|| QuestionError::NoAddress(name.clone()))?;
        let here = NetworkAddress::new("".into(), ip);
        let workload = world.snapshot.workload_by_address(&here);
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
            enrolment,
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
