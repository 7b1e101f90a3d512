//! What names come to: to the mesh, and to the cluster's name server, which knows nothing of the mesh.

use std::net::IpAddr;

use isobar_objects::{ObjectHead as _, Service as ClusterService};
use isobar_state::names::{NameRules, addresses, find};
use isobar_state::{HealthPolicy, Service};
use isobar_types::CLUSTER_DOMAIN;

use crate::caller::{Caller, Lookups};
use crate::world::World;

/// Most names that lead to one another; name servers follow about as many.
const MOST_ALIASES: usize = 8;

/// Begins the host of what stands for all of a domain.
pub(crate) const WILDCARD: &str = "*.";

/// What is known of a name.
#[derive(Debug)]
pub(crate) struct Known {
    /// The name in full, as it was found.
    pub(crate) host: String,
    /// The names that it is another one for, in turn, and the object that says so.
    pub(crate) aliases: Vec<(String, String)>,
    /// Where that is.
    pub(crate) place: Place,
}

/// Where a name leads.
#[derive(Debug)]
pub(crate) enum Place {
    /// To these addresses, of a service with these ports. Empty: to none, as no pod of it is ready.
    Here(Vec<IpAddr>, Vec<u16>),
    /// To a host that only a name server outside may know.
    Outside(String),
}

/// Addresses of a Service of Kubernetes.
pub(crate) fn cluster_ips(service: &ClusterService) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.iter();
    let all = spec.flat_map(|spec| spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    all.filter_map(|text| text.parse().ok())
}

/// What a caller's application finds out about a host as it writes it.
///
/// Its resolver asks for the host behind each search domain first (a name with fewer dots than five is no
/// full one to it), then as it is; the first that has an address counts.
pub(crate) fn look_up(world: &World, caller: &Caller, host: &str) -> Option<Known> {
    let is_full = host.ends_with('.') || host.split('.').count() > 5;
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let rules = rules(caller);
    let searched = rules.search_domains().into_iter().filter(|_| !is_full);
    let asked = searched.map(|domain| format!("{host}.{domain}"));
    let mut empty = None;
    for name in asked.chain([host.clone()]) {
        match once(world, caller, &name) {
            Some(Known {
                place: Place::Here(ips, _),
                ..
            }) if ips.is_empty() => empty = empty.or_else(|| once(world, caller, &name)),
            Some(mut known) => {
                if known.host.starts_with(WILDCARD) {
                    known.host = host;
                }
                return Some(known);
            }
            None => {}
        }
    }
    empty.or_else(|| of_mesh_alone(world, caller, &host))
}

/// The answer to one question of the caller's.
fn once(world: &World, caller: &Caller, name: &str) -> Option<Known> {
    match caller.lookups {
        Lookups::Mesh => {
            of_mesh(world, caller, name).or_else(|| of_cluster(world, caller.ip, name))
        }
        Lookups::Cluster(_) => of_cluster(world, caller.ip, name),
        // Services are nothing to it.
        Lookups::Node(_) => None,
    }
}

/// The answer to one question that a node proxy asks in the place of its pod.
pub(crate) fn in_place_of(world: &World, caller: &Caller, name: &str) -> Option<Known> {
    of_mesh(world, caller, name).or_else(|| of_cluster(world, caller.ip, name))
}

/// What there is, while nobody tells the caller: it is left to name servers outside.
fn of_mesh_alone(world: &World, caller: &Caller, host: &str) -> Option<Known> {
    let rules = rules(caller);
    let is_there = match caller.lookups {
        Lookups::Mesh => false,
        // Names of the cluster are its own, and it has said that there are none.
        Lookups::Cluster(_) => {
            !is_of_cluster(host) && find(&world.snapshot, &rules, host).is_some()
        }
        Lookups::Node(_) => {
            let mut names = rules.search_domains().into_iter();
            let of_service =
                names.any(|zone| of_cluster(world, caller.ip, &format!("{host}.{zone}")).is_some());
            of_service || find(&world.snapshot, &rules, host).is_some()
        }
    };
    is_there.then(|| Known {
        host: host.to_owned(),
        aliases: Vec::new(),
        place: Place::Outside(host.to_owned()),
    })
}

fn rules(caller: &Caller) -> NameRules<'_> {
    NameRules {
        namespace: &caller.workload.namespace,
        network: &caller.workload.network,
        domain: CLUSTER_DOMAIN,
        search: None,
        preferred_namespace: None,
    }
}

fn of_mesh(world: &World, caller: &Caller, name: &str) -> Option<Known> {
    let rules = rules(caller);
    let found = find(&world.snapshot, &rules, name)?;
    let service = found.service;
    let of_family = |v6| addresses(&world.snapshot, &rules, service, v6);
    let mut ips = of_family(caller.ip.is_ipv6());
    if ips.is_empty() {
        ips = of_family(!caller.ip.is_ipv6());
    }
    // Its addresses lead to the same, unless they stand for themselves.
    if !service.is_passthrough() && !service.vips.is_empty() {
        ips.truncate(1);
    }
    let host = service.key.hostname.to_string();
    Some(Known {
        host,
        aliases: Vec::new(),
        place: Place::Here(ips, ports(service)),
    })
}

fn ports(service: &Service) -> Vec<u16> {
    service.ports.iter().map(|(port, _)| port).collect()
}

fn is_of_cluster(name: &str) -> bool {
    let rest = name.strip_suffix(CLUSTER_DOMAIN);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// What the cluster's name server answers about a name in full, in lower case and without a last dot, to
/// somebody who likes addresses of the family of `like`.
pub(crate) fn of_cluster(world: &World, like: IpAddr, name: &str) -> Option<Known> {
    let mut aliases = Vec::new();
    let mut at = name.to_owned();
    for _ in 0..MOST_ALIASES {
        if !is_of_cluster(&at) {
            // Who only asks for something else gets no answer of ours.
            let known = !aliases.is_empty();
            return known.then(|| Known {
                host: name.to_owned(),
                aliases,
                place: Place::Outside(at),
            });
        }
        let (host, object) = service_of(world, &at)?;
        let spec = object.spec.as_ref();
        let external = spec.and_then(|spec| spec.external_name.as_deref());
        let is_alias = spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
        match external {
            Some(to) if is_alias => {
                let to = to.trim_end_matches('.').to_ascii_lowercase();
                aliases.push((to.clone(), object.reference().to_string()));
                at = to;
            }
            _ => {
                let (ips, ports) = records(world, object, host.as_deref(), like)?;
                return Some(Known {
                    host: name.to_owned(),
                    aliases,
                    place: Place::Here(ips, ports),
                });
            }
        }
    }
    None
}

/// The Service that a name of the cluster is about, and the host of it that is named, if one is.
fn service_of<'a>(world: &'a World, name: &str) -> Option<(Option<String>, &'a ClusterService)> {
    let rest = name.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix(".svc.")?;
    let mut labels = rest.rsplit('.');
    let (namespace, service) = (labels.next()?, labels.next()?);
    let host = labels.next().map(str::to_owned);
    let held = world.objects.services.get(namespace, service)?;
    labels.next().is_none().then_some((host, &held.object))
}

/// Addresses and ports that a Service has in the name server.
fn records(
    world: &World,
    object: &ClusterService,
    host: Option<&str>,
    like: IpAddr,
) -> Option<(Vec<IpAddr>, Vec<u16>)> {
    let service = world.cluster_service(object.namespace(), object.name())?;
    let mut own: Vec<IpAddr> = cluster_ips(object).collect();
    let is_headless = own.is_empty();
    if is_headless {
        let unready_too = service
            .load_balancing
            .as_ref()
            .is_some_and(|balancing| balancing.health_policy == HealthPolicy::AllowAll);
        let all = world.snapshot.endpoints(&service.key);
        let told = all.filter(|one| one.workload.healthy || unready_too);
        // Pods: of entries of the mesh it knows nothing.
        let pods = told.filter(|one| !one.workload.node.is_empty());
        let named = pods.filter(|one| {
            host.is_none_or(|host| {
                let pod = (&*one.workload.namespace, &*one.workload.name);
                is_called(world, pod, host, object.name())
            })
        });
        let family = |ips: &[IpAddr]| {
            let same = ips.iter().find(|ip| ip.is_ipv4() == like.is_ipv4());
            same.or(ips.first()).copied()
        };
        own = named
            .filter_map(|one| family(&one.workload.addresses))
            .collect();
    } else if host.is_some() {
        return None;
    }
    let same: Vec<IpAddr> = own
        .iter()
        .filter(|ip| ip.is_ipv4() == like.is_ipv4())
        .copied()
        .collect();
    let mut ips = if same.is_empty() { own } else { same };
    if !is_headless {
        ips.truncate(1);
    }
    (host.is_none() || !ips.is_empty()).then(|| (ips, ports(service)))
}

/// True for a pod that has a name of its own below a headless Service.
fn is_called(world: &World, (namespace, name): (&str, &str), host: &str, service: &str) -> bool {
    let pod = world.objects.pods.get(namespace, name);
    let spec = pod.and_then(|held| held.object.spec.as_ref());
    spec.is_some_and(|spec| {
        spec.subdomain.as_deref() == Some(service) && spec.hostname.as_deref() == Some(host)
    })
}
