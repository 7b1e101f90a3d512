//! What is asked for: names become addresses as the caller's resolver would have them.

use std::net::{IpAddr, SocketAddr};

use crate::answer::Step;
use crate::caller::{Caller, Lookups, some_of};
use crate::names::{Known, Place, look_up};
use crate::question::{Question, QuestionError};
use crate::world::World;

/// Where a call may go: the application takes one of the ends.
#[derive(Debug)]
pub(crate) struct Destinations {
    /// `HOST:PORT` in full.
    pub(crate) name: String,
    /// The authority a client of HTTP would write.
    authority: String,
    /// What its resolver was told, where that decides something.
    pub(crate) steps: Vec<Step>,
    /// Never empty.
    pub(crate) ends: Vec<End>,
}

/// One address that a name has.
#[derive(Debug)]
pub(crate) enum End {
    /// As the application's connection has it.
    At(SocketAddr),
    /// What a name server outside says of a host.
    Named { host: String, port: u16 },
}

/// Where one call goes.
#[derive(Debug)]
pub(crate) struct Destination {
    /// As the application's connection has it.
    pub(crate) address: SocketAddr,
    /// The authority a client of HTTP would write.
    pub(crate) authority: String,
}

impl Destinations {
    pub(crate) fn find(
        world: &World,
        question: &Question,
        caller: &Caller,
    ) -> Result<Self, QuestionError> {
        let asked = &*question.destination;
        if let Ok(address) = asked.parse::<SocketAddr>() {
            return Ok(Self::one(asked.to_owned(), address));
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

    fn one(name: String, address: SocketAddr) -> Self {
        Self {
            name,
            authority: address.to_string(),
            steps: Vec::new(),
            ends: vec![End::At(address)],
        }
    }

    /// The addresses that are known.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let known = self.ends.iter().filter_map(|end| match end {
            End::At(address) => Some(*address),
            End::Named { .. } => None,
        });
        known.collect()
    }

    /// The call if the application takes this address.
    pub(crate) fn at(&self, address: SocketAddr) -> Destination {
        Destination {
            address,
            authority: self.authority.clone(),
        }
    }
}

fn to_pod(
    world: &World,
    question: &Question,
    pod: &str,
    port: Option<u16>,
) -> Result<Destinations, QuestionError> {
    let (namespace, name) = pod.split_once('/').unwrap_or((&question.namespace, pod));
    let workload = world.pod(namespace, name);
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
    Ok(Destinations {
        name: format!("pod {namespace}/{name} port {port}"),
        ..Destinations::one(String::new(), address)
    })
}

fn to_host(
    world: &World,
    caller: &Caller,
    host: &str,
    port: Option<u16>,
) -> Result<Destinations, QuestionError> {
    let Some(known) = look_up(world, caller, host) else {
        let names = world.snapshot.services();
        let names = names.filter(|s| s.key.namespace == caller.workload.namespace);
        let hint = some_of(names.map(|s| &*s.name));
        return Err(QuestionError::NoDestination(host.to_owned(), hint));
    };
    let port = match port {
        Some(port) => port,
        None => only_port(&known)?,
    };
    let name = format!("{}:{port}", known.host);
    let steps = steps(caller, &known);
    let ends: Vec<End> = match known.place {
        Place::Here(ips, _) => {
            let at = |ip: IpAddr| End::At(SocketAddr::new(ip, port));
            ips.into_iter().map(at).collect()
        }
        Place::Outside(host) => vec![End::Named { host, port }],
    };
    if ends.is_empty() {
        let hint = "; it has no address and no ready pod".to_owned();
        return Err(QuestionError::NoDestination(name, hint));
    }
    Ok(Destinations {
        name,
        authority: if port == 80 {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        },
        steps,
        ends,
    })
}

/// What the caller is told about a name, where it is not the one address of a service.
fn steps(caller: &Caller, known: &Known) -> Vec<Step> {
    let (place, because) = match &caller.lookups {
        Lookups::Mesh => (format!("names of {}", caller.name()), None),
        Lookups::Cluster(because) => ("the cluster's name server".to_owned(), Some(because)),
        Lookups::Node(because) => ("the node's name server".to_owned(), Some(because)),
    };
    let aliases = known.aliases.iter().map(|(to, object)| {
        let decision = format!("another name of {to}");
        Step::new(&place, decision, format!("{object} is an ExternalName"))
    });
    let mut steps: Vec<Step> = aliases.collect();
    match (&known.place, because) {
        (Place::Here(ips, _), _) if ips.len() > 1 => {
            let all: Vec<String> = ips.iter().map(ToString::to_string).collect();
            steps.push(Step::new(
                &place,
                format!("{} addresses", ips.len()),
                format!("the application takes one of {}", all.join(", ")),
            ));
        }
        (Place::Outside(host), Some(because)) if known.aliases.is_empty() => {
            let because = format!("{because}; what the mesh knows of {host} is not asked");
            steps.push(Step::new(&place, format!("asked for {host}"), because));
        }
        _ => {}
    }
    steps
}

fn only_port(known: &Known) -> Result<u16, QuestionError> {
    let ports = match &known.place {
        Place::Here(_, ports) => &ports[..],
        Place::Outside(_) => &[],
    };
    match ports {
        [port] => Ok(*port),
        all => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            Err(QuestionError::WhichPort(known.host.clone(), all.join(", ")))
        }
    }
}
