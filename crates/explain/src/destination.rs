//! What is asked for: names become addresses as the cluster's name server would have them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_state::names::{NameRules, find};
use isobar_state::{Service, Workload};
use isobar_types::{CLUSTER_DOMAIN, NetworkAddress};

use crate::caller::{Caller, some_of};
use crate::question::{Question, QuestionError};
use crate::world::World;

/// Where a call goes.
#[derive(Debug)]
pub(crate) struct Destination {
    /// `HOST:PORT` in full.
    pub(crate) name: String,
    /// As the application's connection has it.
    pub(crate) address: SocketAddr,
    /// The authority a client of HTTP would write.
    pub(crate) authority: String,
}

impl Destination {
    pub(crate) fn find(
        world: &World,
        question: &Question,
        caller: &Caller,
    ) -> Result<Self, QuestionError> {
        let asked = &*question.destination;
        if let Ok(address) = asked.parse::<SocketAddr>() {
            return Ok(Self {
                name: asked.to_owned(),
                address,
                authority: asked.to_owned(),
            });
        }
        let (host, port) = match asked.rsplit_once(':') {
            Some((host, port)) => match port.parse::<u16>() {
                Ok(port) if port > 0 => (host, Some(port)),
                _ => return Err(QuestionError::Malformed(port.to_owned(), "port")),
            },
            None => (asked, None),
        };
        if let Some(pod) = host.strip_prefix("pod/") {
            return to_pod(world, question, pod, port);
        }
        to_host(world, caller, host, port)
    }
}

fn to_pod(
    world: &World,
    question: &Question,
    pod: &str,
    port: Option<u16>,
) -> Result<Destination, QuestionError> {
    let (namespace, name) = pod.split_once('/').unwrap_or((&question.namespace, pod));
    let is = |w: &&Arc<Workload>| *w.namespace == *namespace && *w.name == *name;
    let workload = world.snapshot.workloads().find(is);
    let address = workload.and_then(|w| w.addresses.first().copied());
    let Some(ip) = address else {
        let here = world.snapshot.workloads();
        let here = here
            .filter(|w| *w.namespace == *namespace)
            .map(|w| &*w.name);
        let hint = some_of(here);
        return Err(QuestionError::NoDestination(
            question.destination.clone(),
            hint,
        ));
    };
    let port = port.ok_or_else(|| {
        let text = "those its containers listen on".to_owned();
        QuestionError::WhichPort(format!("pod {namespace}/{name}"), text)
    })?;
    let address = SocketAddr::new(ip, port);
    Ok(Destination {
        name: format!("pod {namespace}/{name} port {port}"),
        address,
        authority: address.to_string(),
    })
}

fn to_host(
    world: &World,
    caller: &Caller,
    host: &str,
    port: Option<u16>,
) -> Result<Destination, QuestionError> {
    let Some(service) = service(world, caller, host) else {
        let names = world.snapshot.services();
        let names = names.filter(|s| s.key.namespace == caller.workload.namespace);
        let hint = some_of(names.map(|s| &*s.name));
        return Err(QuestionError::NoDestination(host.to_owned(), hint));
    };
    let port = match port {
        Some(port) => port,
        None => only_port(service)?,
    };
    let is_domain = service.key.hostname.starts_with("*.");
    let full = if is_domain {
        host
    } else {
        &service.key.hostname
    };
    let name = format!("{full}:{port}");
    let ip = address(world, service).ok_or_else(|| {
        let hint = "; it has no address and no ready pod".to_owned();
        QuestionError::NoDestination(name.clone(), hint)
    })?;
    Ok(Destination {
        name,
        address: SocketAddr::new(ip, port),
        authority: if port == 80 {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        },
    })
}

/// As a pod's resolver asks its node proxy: behind each search domain (a name with fewer dots than five is
/// no full one to it), then as it is.
fn service<'a>(world: &'a World, caller: &Caller, host: &str) -> Option<&'a Arc<Service>> {
    let is_full = host.ends_with('.') || host.split('.').count() > 5;
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let rules = NameRules {
        namespace: &caller.workload.namespace,
        network: &caller.workload.network,
        domain: CLUSTER_DOMAIN,
        search: None,
        preferred_namespace: None,
    };
    let searched = rules.search_domains().into_iter().filter(|_| !is_full);
    let asked = searched.map(|domain| format!("{host}.{domain}"));
    asked
        .chain([host.clone()])
        .find_map(|name| find(&world.snapshot, &rules, &name))
        .map(|found| found.service)
}

fn only_port(service: &Service) -> Result<u16, QuestionError> {
    let mut ports = service.ports.iter().map(|(port, _)| port);
    match (ports.next(), ports.next()) {
        (Some(port), None) => Ok(port),
        _ => {
            let all = service.ports.listing();
            Err(QuestionError::WhichPort(service.key.to_string(), all))
        }
    }
}

/// Its own address, or without one that of its first ready pod.
fn address(world: &World, service: &Service) -> Option<IpAddr> {
    let own: Option<&NetworkAddress> = service.vips.first();
    own.map(|vip| vip.ip).or_else(|| {
        let mut ready = world.snapshot.endpoints(&service.key);
        let first = ready.find(|endpoint| endpoint.workload.healthy)?;
        first.workload.addresses.first().copied()
    })
}
