//! What node proxies decide: the caller's, and the one at the pod that is reached.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_control_plane::{End, dropped};
use isobar_objects::ObjectHead as _;
use isobar_state::inbound::{Authority, InboundCall, resolve};
use isobar_state::outbound::{NextHop, OutboundCall, route};
use isobar_state::{
    Denied, GatewayDestination, Peer, Refusal, Service, TunnelProtocol, Workload, authorize,
};
use isobar_types::{NetworkAddress, Reason, labels};

use crate::answer::{Outcome, Step, Way};
use crate::caller::Caller;
use crate::destination::Destination;
use crate::names::{Known, Place, in_place_of};
use crate::plain::{self, Sender};
use crate::question::{Question, QuestionError};
use crate::waypoint;
use crate::world::World;

/// Throws of the dice from which shares of node proxies are estimated, to within a percent or two.
/// Services of more endpoints than that are not told in full.
const THROWS: u32 = 2520;
/// Throws that shares of waypoints may ask for. Shares in per cent come out exactly.
const MOST_THROWS: u64 = 50_000;

/// A call that the caller's node proxy takes.
pub(crate) fn through_the_mesh(
    world: &World,
    caller: &Caller,
    to: &Destination,
    question: &Question,
) -> Result<Vec<Way>, QuestionError> {
    if let Some(way) = at_home(caller, to) {
        return Ok(vec![way]);
    }
    let mut ways = Vec::new();
    let throws = throws(world, caller, to);
    for (decided, times) in hops(world, caller, to, throws) {
        let share = f64::from(times) / f64::from(throws);
        let place = node_proxy(&caller.workload);
        let hop = match decided {
            Ok(hop) => hop,
            Err(refusal) => {
                let step = Step::new(place, "refused", refusal.detail.clone());
                ways.push(Way::new(share, vec![step], refusal.into()));
                continue;
            }
        };
        let before = [outbound_step(place, &hop)];
        let after = follow(world, caller, to, &hop, question)?;
        ways.extend(after.into_iter().map(|way| way.after(share, &before)));
    }
    Ok(ways)
}

/// A call of a pod to an address of its own: it does not leave, and nobody captures or drops it.
pub(crate) fn at_home(caller: &Caller, to: &Destination) -> Option<Way> {
    let ip = to.address.ip();
    let own = ip == caller.ip || caller.workload.addresses.contains(&ip) || ip.is_loopback();
    own.then(|| {
        let place = format!("pod {}", caller.name());
        let (stays, what) = match caller.on_host {
            true => ("stays on the node", "node's"),
            false => ("stays in the pod", "pod's"),
        };
        let because = format!("{ip} is the {what} own address: no policy of the mesh is asked");
        let step = Step::new(place, stays, because);
        let outcome = match caller.on_host {
            // Who listens there is not known.
            true => Outcome::Leaves { to: to.address },
            false => reaches(&caller.workload, to.address.port()),
        };
        Way::new(1.0, vec![step], outcome)
    })
}

type Decided = Result<NextHop, Refusal>;

/// How often the dice are thrown: a multiple of what the weights of waypoints add up to, where there are
/// some, as they are chosen by the remainder.
fn throws(world: &World, caller: &Caller, to: &Destination) -> u32 {
    let at = NetworkAddress::new("".into(), to.address.ip());
    let namespace = Some(&*caller.workload.namespace);
    let Some(service) = world.snapshot.service_by_vip(&at, namespace) else {
        return THROWS;
    };
    let weights = service.weighted_waypoints.iter();
    // Without weights it is the usual number, not one.
    let total: u64 = weights.map(|one| u64::from(one.weight)).sum::<u64>().max(1);
    let (mut divisor, mut rest) = (u64::from(THROWS), total);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    let common = u64::from(THROWS) / divisor * total;
    let common = Some(common).filter(|throws| *throws <= MOST_THROWS);
    common
        .and_then(|throws| u32::try_from(throws).ok())
        .unwrap_or(THROWS)
}

/// Every decision the caller's node proxy may make, and how often it makes it.
fn hops(world: &World, caller: &Caller, to: &Destination, throws: u32) -> Vec<(Decided, u32)> {
    let call = OutboundCall {
        source: &caller.workload,
        source_ip: caller.ip,
        destination: to.address,
        network: "",
        crosses_networks: true,
        ejections: None,
    };
    let mut all: Vec<(Decided, u32)> = Vec::new();
    for dice in 0..throws {
        let decided = route(&world.snapshot, &call, u64::from(dice));
        match all.iter_mut().find(|(have, _)| *have == decided) {
            Some((_, times)) => *times += 1,
            None => all.push((decided, 1)),
        }
    }
    all
}

fn outbound_step(place: String, hop: &NextHop) -> Step {
    let bound = |service: &Option<Arc<Service>>, workload: &Arc<Workload>| {
        service.as_ref().map_or_else(
            || format!("the pod {} is asked for by its address", of(workload)),
            |service| format!("service {}", service.key),
        )
    };
    let (decision, because) = match hop {
        NextHop::Passthrough(to) => (
            format!("to {to}, as it is"),
            "the address belongs to nothing in the mesh".to_owned(),
        ),
        NextHop::Direct {
            workload, service, ..
        } => (
            "in plain text".to_owned(),
            format!("{}; it is outside the mesh", bound(service, workload)),
        ),
        NextHop::Resolve {
            hostname,
            workload,
            service,
            ..
        } => (
            format!("to what {hostname} resolves to"),
            bound(service, workload),
        ),
        NextHop::Tunnel {
            workload,
            service,
            via_waypoint: true,
            ..
        } => {
            let what = match service {
                Some(service) => match percentage(service, workload) {
                    Some(share) => format!("{share} % of the calls to service {} go", service.key),
                    None => format!("service {} is bound", service.key),
                },
                None => "the pod is bound".to_owned(),
            };
            (
                "through its waypoint".to_owned(),
                format!("{what} to it; pod {}", of(workload)),
            )
        }
        NextHop::Tunnel {
            workload, service, ..
        } => ("in a tunnel".to_owned(), bound(service, workload)),
        NextHop::DoubleTunnel {
            gateway, service, ..
        } => (
            format!("through the gateway {} of another network", of(gateway)),
            format!("service {}", service.key),
        ),
    };
    Step::new(place, decision, because)
}

/// Percentage of the calls to a service that pass the waypoint which this pod is one of; none where
/// there is only one waypoint.
fn percentage(service: &Service, pod: &Workload) -> Option<u64> {
    let weights = &service.weighted_waypoints;
    let total: u64 = weights.iter().map(|one| u64::from(one.weight)).sum();
    let own = weights
        .iter()
        .find(|one| match &one.destination.destination {
            GatewayDestination::Hostname(host) => pod.services.keys().any(|key| key == host),
            GatewayDestination::Address(address) => pod.addresses.contains(&address.ip),
        })?;
    (u64::from(own.weight) * 100).checked_div(total)
}

fn follow(
    world: &World,
    caller: &Caller,
    to: &Destination,
    hop: &NextHop,
    question: &Question,
) -> Result<Vec<Way>, QuestionError> {
    let one = |steps, outcome| Ok(vec![Way::new(1.0, steps, outcome)]);
    let (at, callee) = match hop {
        NextHop::Resolve { hostname, port, .. } => {
            return Ok(resolved(world, caller, hop, (hostname, *port)));
        }
        NextHop::Direct { to, workload, .. } => return Ok(directly(world, caller, workload, *to)),
        NextHop::Passthrough(at) | NextHop::DoubleTunnel { to: at, .. } => (*at, None),
        NextHop::Tunnel { to, workload, .. } => (*to, Some(workload)),
    };
    let from = (&*caller.workload, caller.ip);
    if let Some(way) = dropped_on_the_way(world, from, callee, at) {
        return Ok(vec![way]);
    }
    match hop {
        NextHop::Passthrough(address) => one(Vec::new(), Outcome::Leaves { to: *address }),
        // Answered above.
        NextHop::Direct { .. } | NextHop::Resolve { .. } => Ok(Vec::new()),
        NextHop::DoubleTunnel { to, .. } => {
            let step = Step::new(
                "gateway",
                "passes it on",
                "what happens in the other network is not known here",
            );
            one(vec![step], Outcome::Leaves { to: *to })
        }
        NextHop::Tunnel {
            workload,
            authority,
            via_waypoint: true,
            ..
        } => waypoint::pass(world, caller, to, question, workload, authority),
        NextHop::Tunnel {
            to,
            workload,
            authority,
            ..
        } => {
            let peer = Peer {
                identity: caller.identity(),
                ip: caller.ip,
            };
            Ok(vec![take_tunnel(world, workload, *to, authority, &peer)])
        }
    }
}

/// A plain connection of the caller's node proxy: nobody captures it again.
fn directly(world: &World, caller: &Caller, callee: &Arc<Workload>, to: SocketAddr) -> Vec<Way> {
    let is_entry = callee.node.is_empty();
    if is_entry && plain::is_of_cluster(world, to.ip()) {
        let sender = Sender {
            workload: &caller.workload,
            ip: caller.ip,
            place: node_proxy(&caller.workload),
            because: format!("{to} is told as outside the mesh by {}", of(callee)),
            may_probe: false,
        };
        return sender.send(world, to);
    }
    let from = (&*caller.workload, caller.ip);
    let dropped = dropped_on_the_way(world, from, Some(callee), to);
    let way = dropped.unwrap_or_else(|| Way::new(1.0, Vec::new(), reaches(callee, to.port())));
    vec![way]
}

/// A host that the caller's node proxy asks for, as the caller itself would be told.
fn resolved(world: &World, caller: &Caller, hop: &NextHop, (host, port): (&str, u16)) -> Vec<Way> {
    let Some(Known {
        place: Place::Here(ips, _),
        ..
    }) = in_place_of(world, caller, host)
    else {
        return vec![Way::new(1.0, Vec::new(), named(host, port))];
    };
    if ips.is_empty() {
        let detail = format!("{host} has no address");
        let step = Step::new(node_proxy(&caller.workload), "refused", detail.clone());
        let outcome = Outcome::closed(Reason::NoHealthyUpstream, detail);
        return vec![Way::new(1.0, vec![step], outcome)];
    }
    let share = 1.0 / ips.len() as f64;
    let each = ips.iter().flat_map(|ip| {
        let ways = match &hop.resolved(*ip) {
            NextHop::Tunnel {
                to,
                workload,
                authority,
                ..
            } => {
                let peer = Peer {
                    identity: caller.identity(),
                    ip: caller.ip,
                };
                vec![take_tunnel(world, workload, *to, authority, &peer)]
            }
            NextHop::Direct { to, workload, .. } => directly(world, caller, workload, *to),
            _ => vec![Way::new(1.0, Vec::new(), named(host, port))],
        };
        ways.into_iter().map(move |way| way.after(share, &[]))
    });
    each.collect()
}

pub(crate) fn named(host: &str, port: u16) -> Outcome {
    Outcome::Named {
        host: host.to_owned(),
        port,
    }
}

/// What a network plugin drops between two pods, or between one and an address: it sees the tunnel,
/// and asks NetworkPolicies.
pub(crate) fn dropped_on_the_way(
    world: &World,
    (from, ip): (&Workload, IpAddr),
    to: Option<&Arc<Workload>>,
    at: SocketAddr,
) -> Option<Way> {
    let from = End {
        pod: Some((&from.namespace, &from.name)),
        ip,
    };
    let to = End {
        pod: to.map(|to| (&*to.namespace, &*to.name)),
        ip: at.ip(),
    };
    let dropped = dropped(&world.objects, &from, &to, at.port())?;
    let step = Step::new("network plugin", "drops it", dropped.to_string());
    let names: Vec<String> = dropped.policies.iter().map(ToString::to_string).collect();
    let detail = format!(
        "the network plugin drops it on port {}: {}",
        at.port(),
        names.join(", ")
    );
    let outcome = Outcome::closed(Reason::UpstreamConnectTimeout, detail);
    Some(Way::new(1.0, vec![step], outcome))
}

/// A tunnel at the pod it was opened to.
fn take_tunnel(
    world: &World,
    workload: &Arc<Workload>,
    at: SocketAddr,
    authority: &str,
    peer: &Peer,
) -> Way {
    let place = node_proxy(workload);
    let refused = |reason, detail: String| {
        let step = Step::new(&place, "refused", detail.clone());
        Way::new(1.0, vec![step], Outcome::closed(reason, detail))
    };
    let authority = match Authority::parse(authority) {
        Ok(authority) => authority,
        Err(error) => return refused(Reason::BadRequest, error.to_string()),
    };
    let call = InboundCall {
        workload,
        local_ip: at.ip(),
        authority: &authority,
        network: "",
    };
    match resolve(&world.snapshot, &call) {
        Ok(target) => arrive(world, workload, target.to, peer),
        Err(refusal) => refused(refusal.reason, refusal.detail),
    }
}

/// A connection at the pod that is to take it: the node proxy there asks the policies.
pub(crate) fn arrive(world: &World, workload: &Arc<Workload>, at: SocketAddr, peer: &Peer) -> Way {
    let workload = world.workload(workload);
    if workload.tunnel == TunnelProtocol::None || workload.native_tunnel {
        return Way::new(1.0, Vec::new(), reaches(workload, at.port()));
    }
    if peer.identity.is_none() && is_passed_by(world, workload) {
        let because = format!(
            "annotation {}: plain text is not captured",
            labels::BYPASS_INBOUND
        );
        let step = Step::new(format!("node {}", workload.node), "let in", because);
        return Way::new(1.0, vec![step], reaches(workload, at.port()));
    }
    let place = node_proxy(workload);
    match authorize(&world.snapshot, peer, workload, at) {
        Ok(permit) => {
            let because = permit.allowed_by().map_or_else(
                || "no ALLOW policy selects the pod".to_owned(),
                |by| format!("AuthorizationPolicy {by} allows it"),
            );
            let mut steps = vec![Step::new(&place, "let in", because)];
            steps.extend(permit.missing().iter().map(|missing| {
                Step::new(
                    &place,
                    "warning",
                    format!("policy {missing} is not known here"),
                )
            }));
            Way::new(1.0, steps, reaches(workload, at.port()))
        }
        Err(denied) => {
            let step = Step::new(&place, "refused", because(&denied));
            let outcome = Outcome::closed(denied.reason, denied.detail);
            Way::new(1.0, vec![step], outcome)
        }
    }
}

/// True for a pod whose plain callers do not pass its node proxy. Tunnels end there all the same.
fn is_passed_by(world: &World, workload: &Workload) -> bool {
    let pod = world.objects.pods.get(&workload.namespace, &workload.name);
    pod.is_some_and(|pod| pod.annotation(labels::BYPASS_INBOUND) == Some("true"))
}

fn because(denied: &Denied) -> String {
    denied.policy.as_ref().map_or_else(
        || denied.detail.clone(),
        |policy| format!("{} ({policy})", denied.detail),
    )
}

pub(crate) fn reaches(workload: &Workload, port: u16) -> Outcome {
    Outcome::Reaches {
        pods: vec![of(workload)],
        port,
    }
}

pub(crate) fn of(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

pub(crate) fn node_proxy(workload: &Workload) -> String {
    match &*workload.node {
        "" => "ztunnel".to_owned(),
        node => format!("ztunnel {node}"),
    }
}
