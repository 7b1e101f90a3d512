//! What a waypoint decides: policies, then routes, then who gets it.

mod choice;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_route::{
    self as route, AbortWith, Action, AuthProtocol, ExternalAuth, HttpCall, HttpDecision,
    Preflight, RateLimits, RedirectFrom, Tables, Taken, Target, TcpCall, TcpDecision, WaypointInfo,
    Weighted, authorize_http, authorize_tcp, match_http, match_tcp,
};
use isobar_state::inbound::Authority;
use isobar_state::{
    AppProtocol, GatewayDestination, Peer, Service, TunnelProtocol, Workload, authorize_through,
};
use isobar_types::{NetworkAddress, Reason, ports};

use crate::answer::{Outcome, Step, Way};
use crate::caller::Caller;
use crate::destination::Destination;
use crate::node::{arrive, dropped_on_the_way, of};
use crate::question::{Question, QuestionError};
use crate::request::Request;
use crate::world::World;

/// A call at a waypoint.
struct Passage<'a> {
    world: &'a World,
    tables: &'a Tables,
    /// The waypoint's pod.
    instance: &'a Workload,
    info: &'a WaypointInfo,
    caller: &'a Caller,
    who: route::Caller,
    /// Service or pod the call is addressed to.
    service: Option<&'a Arc<Service>>,
    address: SocketAddr,
    /// A request; otherwise bytes that nobody looks into.
    request: Option<Request>,
}

/// A call that `instance` got with this authority.
pub(crate) fn pass(
    world: &World,
    caller: &Caller,
    to: &Destination,
    question: &Question,
    instance: &Arc<Workload>,
    authority: &str,
) -> Result<Vec<Way>, QuestionError> {
    let unready = |detail: String| {
        let place = format!("waypoint pod {}", of(instance));
        let step = Step::new(place, "refused", detail.clone());
        let outcome = Outcome::closed(Reason::WaypointNotReady, detail);
        Ok(vec![Way::new(1.0, vec![step], outcome)])
    };
    if let Some(waypoint) = world.foreign(instance) {
        let place = format!("waypoint {waypoint}");
        let because = "somebody else runs it: what it does is not known here";
        let step = Step::new(place, "takes it over", because);
        let waypoint = waypoint.to_owned();
        return Ok(vec![Way::new(
            1.0,
            vec![step],
            Outcome::Unknown { waypoint },
        )]);
    }
    let Some(tables) = world.tables_of(instance) else {
        return unready("no Gateway of this name is a waypoint".to_owned());
    };
    let Some(info) = tables.waypoint() else {
        return unready("this waypoint has no description".to_owned());
    };
    let service = addressed(world, caller, authority);
    let declared = service.and_then(|service| service.protocol(to.address.port()));
    let opaque = match declared {
        Some(AppProtocol::Tcp | AppProtocol::Tls) => true,
        Some(AppProtocol::Http1 | AppProtocol::Http2 | AppProtocol::Grpc) => false,
        None => question.request.is_none(),
    };
    let request = match opaque {
        true => None,
        false => Some(Request::new(question.request.as_ref(), to, info.paths)?),
    };
    let passage = Passage {
        world,
        tables,
        instance,
        info,
        caller,
        who: route::Caller {
            identity: caller.identity(),
            ip: caller.ip,
            labels: tables.labels(&caller.workload.uid).cloned(),
        },
        service,
        address: to.address,
        request,
    };
    Ok(match &passage.request {
        Some(request) => passage.http(request),
        None => passage.tcp(declared),
    })
}

fn addressed<'a>(world: &'a World, caller: &Caller, authority: &str) -> Option<&'a Arc<Service>> {
    let namespace = Some(&*caller.workload.namespace);
    match Authority::parse(authority).ok()? {
        Authority::Address(to) => {
            let at = NetworkAddress::new("".into(), to.ip());
            world.snapshot.service_by_vip(&at, namespace)
        }
        Authority::Host { host, .. } => world.snapshot.service_by_hostname(&host, namespace),
    }
}

impl Passage<'_> {
    fn step(&self, decision: impl Into<String>, because: impl Into<String>) -> Step {
        Step::new(format!("waypoint {}", self.info.name), decision, because)
    }

    fn end(&self, steps: Vec<Step>, outcome: Outcome) -> Vec<Way> {
        vec![Way::new(1.0, steps, outcome)]
    }

    fn http(&self, request: &Request) -> Vec<Way> {
        let key = self.service.map(|service| &service.key);
        let call = request.call();
        let mut steps = Vec::new();
        match authorize_http(self.tables, key, &call, &self.who) {
            Ok(permit) => steps.push(self.permitted(permit.allowed_by())),
            Err(denied) => {
                let detail = denied.to_string();
                steps.push(self.step("refused", detail.clone()));
                return self.end(steps, Outcome::status(403, Reason::PolicyDenied, detail));
            }
        }
        let decision = key.map_or(HttpDecision::Default, |key| {
            match_http(self.tables, key, &call, &self.who)
        });
        match decision {
            HttpDecision::Default => {
                steps.push(self.step(
                    "to the service itself",
                    "no VirtualService has rules for it",
                ));
                self.limits(&call, None, &mut steps);
                self.to_addressed(steps)
            }
            HttpDecision::NoRoute => {
                let detail = "no rule of its VirtualServices matches the request";
                steps.push(self.step("refused", detail));
                self.end(steps, Outcome::status(404, Reason::NoRoute, detail))
            }
            HttpDecision::Taken(taken) => self.act(request, &taken, steps),
        }
    }

    fn permitted(&self, by: Option<&route::MatchedRule>) -> Step {
        let because = by.map_or_else(
            || "no ALLOW policy applies here".to_owned(),
            |by| format!("rule {} of AuthorizationPolicy {}", by.rule, by.policy),
        );
        self.step("allowed", because)
    }

    /// Which rate limits the request counts in. Whether one has room is known to the waypoint alone.
    fn limits(&self, call: &HttpCall<'_>, taken: Option<&Taken>, steps: &mut Vec<Step>) {
        let key = self.service.map(|service| &service.key);
        let of_target = || self.tables.rate_limits_of(key);
        let own = taken.map_or(&[][..], |taken| &taken.route().limits);
        let more = own.iter();
        let more = more.filter(|own| of_target().all(|one| one.name != own.name));
        self.counted(of_target().chain(more), (call, taken), steps);
    }

    fn counted<'p>(
        &self,
        policies: impl Iterator<Item = &'p Arc<RateLimits>>,
        (call, taken): (&HttpCall<'_>, Option<&Taken>),
        steps: &mut Vec<Step>,
    ) {
        for policy in policies {
            let counting = policy.limits.iter();
            for limit in counting.filter(|limit| limit.counts(call, &self.who, taken)) {
                let name = format!("counted in limit {} of {}", limit.name, policy.name);
                let how = limit.counted_by(call, &self.who);
                steps.push(self.step(name, format!("{limit}, else 429; by {how}")));
            }
        }
    }

    /// Whether an authoriser lets the request on is known to it alone.
    fn authorisers(&self, all: &[ExternalAuth]) -> Vec<Step> {
        let steps = all.iter().map(|one| {
            let how = match one.protocol {
                AuthProtocol::Grpc { .. } => "gRPC",
                AuthProtocol::Http { .. } => "HTTP",
            };
            let whom = format!("shown to authoriser {} over {how}", one.target.host);
            self.step(
                whom,
                "it lets the request on, or its answer is the caller's",
            )
        });
        steps.collect()
    }

    fn keeps_sessions(&self) -> Step {
        let because = "a caller that shows a session stays with its endpoint";
        self.step("keeps sessions", because)
    }

    /// Faults, then cross-origin rules, then authorisers, then the rule's action.
    fn act(&self, request: &Request, taken: &Taken, mut steps: Vec<Step>) -> Vec<Way> {
        let route = taken.route();
        steps.push(self.step(format!("route {}", taken.name()), why(taken)));
        self.limits(&request.call(), Some(taken), &mut steps);
        let mut ways = Vec::new();
        let mut share = 1.0;
        if let Some((percentage, by)) = route.fault.delay {
            let text = format!("by {by:?}, {percentage} % of requests");
            steps.push(self.step("delayed", text));
        }
        if let Some((percentage, with)) = route.fault.abort {
            let aborted = (percentage / 100.0).clamp(0.0, 1.0);
            let (status, detail) = match with {
                AbortWith::Http(code) => (code, format!("fault: status {code}")),
                AbortWith::Grpc(code) => (200, format!("fault: gRPC status {code}")),
            };
            let mut steps = steps.clone();
            steps.push(self.step("aborted", format!("{percentage} % of requests")));
            ways.push(Way::new(
                aborted,
                steps,
                Outcome::Answered { status, detail },
            ));
            share -= aborted;
        }
        let call = request.call();
        if let Some(cors) = &route.cors
            && let Preflight::Answer(_) = cors.check(call.method, call.headers)
        {
            let detail = "a preflight of an allowed origin".to_owned();
            steps.push(self.step("answered", detail.clone()));
            let outcome = Outcome::Answered {
                status: 200,
                detail,
            };
            ways.push(Way::new(share, steps, outcome));
            return ways;
        }
        steps.extend(self.authorisers(&route.external_auth));
        steps.extend(route.session.iter().map(|_| self.keeps_sessions()));
        let rest = match &route.action {
            Action::Redirect(to) => {
                let place = to.location(&RedirectFrom {
                    scheme: call.scheme,
                    authority: call.authority,
                    path: call.path,
                    query: call.query,
                    port: self.address.port(),
                    matched: taken.block().and_then(|block| block.uri.as_ref()),
                });
                let outcome = Outcome::Answered {
                    status: to.code,
                    detail: format!("redirect to {place}"),
                };
                self.end(steps, outcome)
            }
            Action::Direct(direct) => {
                let outcome = Outcome::Answered {
                    status: direct.status,
                    detail: "a fixed reply".to_owned(),
                };
                self.end(steps, outcome)
            }
            Action::Forward(destinations) => self.spread(destinations, Some(taken), &steps),
        };
        ways.extend(rest.into_iter().map(|way| way.after(share, &[])));
        ways.retain(|way| way.share > 0.0);
        ways
    }

    fn tcp(&self, declared: Option<AppProtocol>) -> Vec<Way> {
        let key = self.service.map(|service| &service.key);
        let call = TcpCall {
            destination: self.address,
            sni: None,
        };
        let mut steps = Vec::new();
        if declared.is_none() {
            let because = "the port declares no protocol, and no request is asked about";
            steps.push(self.step("as opaque bytes", because));
        }
        match authorize_tcp(self.tables, key, &call, &self.who) {
            Ok(permit) => steps.push(self.permitted(permit.allowed_by())),
            Err(denied) => {
                let detail = denied.to_string();
                steps.push(self.step("refused", detail.clone()));
                return self.end(steps, Outcome::closed(Reason::PolicyDenied, detail));
            }
        }
        let decision = key.map_or(TcpDecision::Default, |key| {
            match_tcp(self.tables, key, &call, &self.who)
        });
        match &decision {
            TcpDecision::Default => {
                let because = "no VirtualService has rules for opaque traffic to it";
                steps.push(self.step("to the service itself", because));
                self.to_addressed(steps)
            }
            TcpDecision::NoRoute => {
                let detail = "no rule of its VirtualServices matches the connection";
                steps.push(self.step("refused", detail));
                self.end(steps, Outcome::closed(Reason::NoRoute, detail))
            }
            TcpDecision::Taken(object, at) => {
                steps.push(self.step(format!("route {}, rule {at}", object.name), "it matches"));
                match decision.route() {
                    Some(route) => self.spread(&route.destinations, None, &steps),
                    None => self.to_addressed(steps),
                }
            }
        }
    }

    /// Each destination has its share.
    fn spread(&self, destinations: &[Weighted], taken: Option<&Taken>, steps: &[Step]) -> Vec<Way> {
        let total: u32 = destinations.iter().map(|d| d.weight).sum();
        let mut ways = Vec::new();
        for destination in destinations.iter().filter(|d| d.weight > 0) {
            let share = f64::from(destination.weight) / f64::from(total);
            let mut steps = steps.to_vec();
            if let Some(request) = &self.request {
                let own = destination.limits().iter();
                self.counted(own, (&request.call(), taken), &mut steps);
            }
            steps.extend(self.authorisers(destination.external_auth()));
            let after = self.to_target(&destination.target);
            ways.extend(after.into_iter().map(|way| way.after(share, &steps)));
        }
        ways
    }

    /// A destination that leads nowhere.
    fn no_cluster(&self, status: u16, detail: String) -> Way {
        let steps = vec![self.step("refused", detail.clone())];
        let outcome = match self.request {
            Some(_) => Outcome::status(status, Reason::NoCluster, detail),
            None => Outcome::closed(Reason::NoCluster, detail),
        };
        Way::new(1.0, steps, outcome)
    }

    fn to_target(&self, target: &Target) -> Vec<Way> {
        let no_cluster = |detail: String| vec![self.no_cluster(503, detail)];
        if let (Some(status), Some(_)) = (target.refuse, &self.request) {
            let detail = format!("the destination {} is not for this route", target.host);
            return vec![self.no_cluster(status, detail)];
        }
        let known = target.service.as_ref();
        let Some(service) = known.and_then(|key| self.world.snapshot.service(key)) else {
            return no_cluster(format!("the host {} is no service it knows", target.host));
        };
        let subset = match &target.subset {
            None => None,
            Some(name) => match self.tables.subset(&service.key, name) {
                Some(subset) => Some(subset),
                None => {
                    let text = format!("no DestinationRule of {} has a subset {name}", service.key);
                    return no_cluster(text);
                }
            },
        };
        let ports = service.ports.iter().map(|(port, _)| port);
        let port = target.port_of(ports, self.address.port());
        let step = match subset {
            Some(subset) => self.step(
                format!("to subset {} of {}", subset.name, service.key.hostname),
                format!("DestinationRule {}", subset.rule),
            ),
            None => self.step(
                format!("to {}", service.key.hostname),
                "the rule's destination",
            ),
        };
        self.to_service(service, subset.map(|s| &**s), port, vec![step])
    }

    /// As addressed: the service, or the pod itself.
    fn to_addressed(&self, steps: Vec<Step>) -> Vec<Way> {
        if let Some(service) = self.service {
            return self.to_service(service, None, self.address.port(), steps);
        }
        let at = NetworkAddress::new("".into(), self.address.ip());
        match self.world.snapshot.workload_by_address(&at) {
            Some(workload) => vec![self.at_pod(workload, self.address).after(1.0, &steps)],
            None => {
                let detail = format!("{} is no pod of the mesh", self.address);
                self.end(steps, Outcome::closed(Reason::UnknownDestination, detail))
            }
        }
    }

    /// True if this waypoint is the one the service names.
    fn is_ours(&self, service: &Service) -> bool {
        let weighted = service.weighted_waypoints.iter().map(|w| &w.destination);
        let mut named = service.waypoint.iter().chain(weighted);
        named.any(|gateway| match &gateway.destination {
            GatewayDestination::Hostname(host) => host.hostname == self.info.hostname,
            GatewayDestination::Address(_) => false,
        })
    }

    /// The pod's own policies: about the caller here, about the waypoint at its node.
    fn at_pod(&self, workload: &Arc<Workload>, at: SocketAddr) -> Way {
        let own = self.instance.identity();
        let caller = Peer {
            identity: self.caller.identity(),
            ip: self.caller.ip,
        };
        let workload = self.world.workload(workload);
        let snapshot = &self.world.snapshot;
        if let Err(denied) = authorize_through(snapshot, &own, &caller, workload, at) {
            let steps = vec![self.step("refused", denied.detail.clone())];
            let outcome = match self.request {
                Some(_) => Outcome::status(403, denied.reason, denied.detail),
                None => Outcome::closed(denied.reason, denied.detail),
            };
            return Way::new(1.0, steps, outcome);
        }
        let ip = self.instance.addresses.first().copied();
        let waypoint = Peer {
            identity: Some(own),
            ip: ip.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
        };
        // The plugin sees the tunnel where there is one.
        let seen = match workload.tunnel {
            TunnelProtocol::Hbone => SocketAddr::new(at.ip(), ports::HBONE),
            TunnelProtocol::None => at,
        };
        let from = (self.instance, waypoint.ip);
        let way = dropped_on_the_way(self.world, from, Some(workload), seen)
            .unwrap_or_else(|| arrive(self.world, workload, at, &waypoint));
        self.told(way)
    }
}

/// Which part of a rule matched.
fn why(taken: &Taken) -> String {
    let object = &taken.virtual_service().name;
    match taken.block() {
        None => format!("VirtualService {object}: a rule without conditions"),
        Some(block) => {
            let place = taken
                .route()
                .matches
                .iter()
                .position(|have| std::ptr::eq(have, block));
            let place = place.map_or_else(String::new, |at| format!(", match[{at}]"));
            format!("VirtualService {object}{place}")
        }
    }
}
