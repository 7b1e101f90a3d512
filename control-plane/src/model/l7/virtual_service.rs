use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use isobar_objects::istio as from;
use isobar_objects::istio::VirtualService;
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use wire::http_route::Action;

use super::delegate::{self, Room};
use super::hosts::Hosts;
use super::string_match::{duration, string_match};
use super::visibility::is_exported;

/// Why a rule does not hand over.
const TOO_MANY: &str = "has too many rules for those that hand over to it: together they come to more \
                        than is kept for the VirtualServices of one namespace";

/// Status of a reply that stands for a rule that cannot be followed.
const BROKEN: u32 = 500;

/// One object as a waypoint gets it, without its parents, and what is not honoured in it.
#[derive(Debug)]
pub(super) struct Converted {
    /// The message; `parents` is filled in per waypoint.
    pub(super) wire: wire::VirtualService,
    /// Fields that are not honoured.
    pub(super) unsupported: Vec<String>,
    /// Rules that cannot be followed, and why.
    pub(super) problems: Vec<String>,
}

/// For whom rules are converted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope<'a> {
    /// Waypoints.
    Mesh,
    /// The pods of Istio's Gateway of this namespace and name, to which the object is bound.
    Gateway(&'a str, &'a str),
}

impl Scope<'_> {
    /// Whom it is, in a word.
    fn name(self) -> String {
        match self {
            Self::Mesh => String::new(),
            Self::Gateway(namespace, name) => format!("{namespace}/{name}"),
        }
    }

    /// True for what names this scope, or inherits it.
    fn takes(self, gateways: &[String], place: &str) -> bool {
        let named = |word: &String| match self {
            Self::Mesh => word == "mesh",
            Self::Gateway(namespace, name) => match word.split_once('/') {
                Some((".", own)) => place == namespace && own == name,
                Some((other, own)) => other == namespace && own == name,
                None => place == namespace && word == name,
            },
        };
        gateways.is_empty() || gateways.iter().any(named)
    }
}

/// Converts one object. A rule or match that cannot be expressed refuses or never matches, and so does one
/// that hands over to more rules than there is `room` for.
pub(super) fn convert(
    object: &VirtualService,
    set: &ObjectSet,
    hosts: &Hosts,
    (scope, room): (Scope<'_>, &mut Room),
) -> Converted {
    let mut reader = Reader::new(hosts, object.namespace(), scope);
    let spec = &object.spec;
    let mut wire = wire::VirtualService {
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        hosts: spec
            .hosts
            .iter()
            .map(|host| hosts.resolve(host, object.namespace()))
            .collect(),
        created: object.created(),
        ..wire::VirtualService::default()
    };
    for (index, route) in spec.http.iter().enumerate() {
        reader.at = format!("http[{index}]");
        match &route.delegate {
            Some(to) => wire.http.extend(reader.delegated((route, to), set, room)),
            None => wire.http.extend(reader.http(route)),
        }
    }
    for (index, route) in spec.tls.iter().enumerate() {
        reader.at = format!("tls[{index}]");
        wire.tls.extend(reader.tls(route));
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        reader.at = format!("tcp[{index}]");
        wire.tcp.extend(reader.tcp(route));
    }
    let mut unsupported = reader.unsupported;
    unsupported.extend(isobar_route::unsupported(&wire));
    Converted {
        wire,
        unsupported,
        problems: reader.problems,
    }
}

struct Reader<'a> {
    hosts: &'a Hosts,
    namespace: &'a str,
    scope: Scope<'a>,
    unsupported: Vec<String>,
    problems: Vec<String>,
    at: String,
}

impl<'a> Reader<'a> {
    const fn new(hosts: &'a Hosts, namespace: &'a str, scope: Scope<'a>) -> Self {
        Self {
            scope,
            hosts,
            namespace,
            unsupported: Vec::new(),
            problems: Vec::new(),
            at: String::new(),
        }
    }

    fn note(&mut self, field: &str) {
        self.unsupported.push(format!("{}.{field}", self.at));
    }

    /// `None` if every match is for gateways only, so that the rule is not for the mesh.
    fn http(&mut self, route: &from::HttpRoute) -> Option<wire::HttpRoute> {
        let matches: Vec<_> = route
            .matches
            .iter()
            .filter(|one| self.scope.takes(&one.gateways, self.namespace))
            .map(http_match)
            .collect();
        if matches.is_empty() && !route.matches.is_empty() {
            return None;
        }
        let action = match &route.delegate {
            // Filled in by the delegate's rules.
            Some(_) => None,
            None => Some(self.action(route)),
        };
        let mut mirrors: Vec<_> = route.mirrors.iter().map(|m| self.mirror(m)).collect();
        if let Some(mirror) = &route.mirror {
            let percent = route.mirror_percentage.as_ref().map(|p| p.value);
            mirrors.push(wire::Mirror {
                destination: Some(self.destination(mirror)),
                percentage: percent
                    .or(route.mirror_percent.map(f64::from))
                    .unwrap_or(100.0),
            });
        }
        Some(wire::HttpRoute {
            name: route.name.clone(),
            matches,
            action,
            rewrite: route.rewrite.as_ref().map(rewrite),
            headers: route.headers.as_ref().map(headers),
            timeout: route.timeout.map(duration),
            retries: route.retries.as_ref().map(retries),
            fault: route.fault.as_ref().map(|fault| self.fault(fault)),
            mirrors,
            cors: route.cors_policy.as_ref().map(|cors| self.cors(cors)),
            session: None,
            external_auth: Vec::new(),
            rate_limits: Vec::new(),
        })
    }

    /// The rules of another object in the place of this one. Where there is no such object, requests
    /// of this rule are refused and not left to later rules.
    fn delegated(
        &mut self,
        (route, to): (&from::HttpRoute, &from::Delegate),
        set: &ObjectSet,
        room: &mut Room,
    ) -> Vec<wire::HttpRoute> {
        let Some(root) = self.http(route) else {
            return Vec::new();
        };
        let namespace = match to.namespace.as_str() {
            "" => self.namespace,
            named => named,
        };
        let found = set.virtual_services.get(namespace, &to.name);
        let problem = match found {
            None => Some("does not exist"),
            Some(found) if !is_exported(&found.spec.export_to, self.namespace, namespace) => {
                Some("is not exported to this namespace")
            }
            Some(found) if !found.spec.hosts.is_empty() => {
                Some("has hosts of its own, so nothing can be handed over to it")
            }
            Some(_) => None,
        };
        if let (Some(found), None) = (found, problem)
            && let Some(rules) = self.fitting(&root, &found.object, room)
        {
            return delegate::merged(&root, rules);
        }
        let problem = problem.unwrap_or(TOO_MANY);
        let text = format!("VirtualService {namespace}/{} {problem}", to.name);
        let action = Some(broken(&text));
        self.problems.push(format!("{}.delegate: {text}", self.at));
        vec![wire::HttpRoute { action, ..root }]
    }

    /// The rules of a delegate, if there is room for all of them.
    fn fitting(
        &mut self,
        root: &wire::HttpRoute,
        found: &VirtualService,
        room: &mut Room,
    ) -> Option<Vec<wire::HttpRoute>> {
        let whom = self.scope.name();
        let all = &found.spec.http;
        // Before anything is converted, which takes time as well.
        let matches = all.iter().map(|rule| rule.matches.len()).sum();
        if !room.take(&whom, self.namespace, delegate::least(all.len(), matches)) {
            return None;
        }
        let rules = self.rules_of(found);
        room.take(&whom, self.namespace, delegate::cost(root, &rules))
            .then_some(rules)
    }

    /// The rules of a delegate; names in it are those of its own namespace. One that hands over in
    /// turn is refused, so that there are no circles.
    fn rules_of(&mut self, found: &VirtualService) -> Vec<wire::HttpRoute> {
        let mut reader = Reader::new(self.hosts, found.namespace(), self.scope);
        let mut rules = Vec::new();
        for (index, route) in found.spec.http.iter().enumerate() {
            let (namespace, name) = (found.namespace(), found.name());
            let place = format!("VirtualService {namespace}/{name} http[{index}]");
            reader.at = format!("{}.delegate: {place}", self.at);
            let nested = route.delegate.as_ref().map(|_| {
                let text = format!("{place} is a delegate's, so it cannot hand over in turn");
                self.problems.push(format!("{}.delegate: {text}", self.at));
                broken(&text)
            });
            rules.extend(reader.http(route).map(|rule| wire::HttpRoute {
                action: rule.action.or(nested),
                ..rule
            }));
        }
        self.unsupported.extend(reader.unsupported);
        rules
    }

    fn action(&mut self, route: &from::HttpRoute) -> Action {
        if let Some(redirect) = &route.redirect {
            return Action::Redirect(http_redirect(redirect));
        }
        if let Some(direct) = &route.direct_response {
            return self.direct(direct);
        }
        Action::Forward(wire::HttpForward {
            destinations: self.weighted(&route.route),
        })
    }

    fn direct(&mut self, direct: &from::DirectResponse) -> Action {
        let body = direct.body.clone().unwrap_or_default();
        let body = match (body.string, body.bytes) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(encoded)) => BASE64.decode(&encoded).unwrap_or_else(|error| {
                let text = format!("directResponse.body.bytes: {error}");
                self.problems.push(format!("{}.{text}", self.at));
                Vec::new()
            }),
            (None, None) => Vec::new(),
        };
        Action::DirectResponse(wire::DirectResponse {
            status: direct.status,
            body,
        })
    }

    fn weighted(&self, routes: &[from::RouteDestination]) -> Vec<wire::WeightedDestination> {
        let alone = routes.len() == 1;
        routes
            .iter()
            .map(|route| {
                let weight = u32::try_from(route.weight).unwrap_or_default();
                wire::WeightedDestination {
                    destination: Some(self.destination(&route.destination)),
                    weight: if alone && weight == 0 { 100 } else { weight },
                    headers: route.headers.as_ref().map(headers),
                    ..wire::WeightedDestination::default()
                }
            })
            .collect()
    }

    fn destination(&self, destination: &from::Destination) -> wire::Destination {
        let hostname = self.hosts.resolve(&destination.host, self.namespace);
        wire::Destination {
            service: Some(self.hosts.reference(&hostname, self.namespace)),
            subset: destination.subset.clone(),
            port: destination.port.as_ref().map_or(0, |port| port.number),
            host: destination.host.clone(),
            refuse: 0,
        }
    }

    fn mirror(&self, mirror: &from::Mirror) -> wire::Mirror {
        wire::Mirror {
            destination: Some(self.destination(&mirror.destination)),
            percentage: mirror.percentage.as_ref().map_or(100.0, |p| p.value),
        }
    }

    fn fault(&mut self, fault: &from::Fault) -> wire::Fault {
        let delay = fault.delay.as_ref().map(|delay| {
            if delay.exponential_delay.is_some() {
                self.note("fault.delay.exponentialDelay");
            }
            let share = delay.percentage.as_ref().map(|p| p.value);
            wire::fault::Delay {
                percentage: share.or(delay.percent.map(f64::from)).unwrap_or_default(),
                fixed: delay.fixed_delay.map(duration),
            }
        });
        let abort = fault.abort.as_ref().map(|abort| {
            if abort.http2_error.is_some() {
                self.note("fault.abort.http2Error");
            }
            let grpc = abort.grpc_status.as_deref().map(grpc_code);
            if grpc == Some(None) {
                self.note("fault.abort.grpcStatus");
            }
            wire::fault::Abort {
                percentage: abort.percentage.as_ref().map_or(100.0, |p| p.value),
                http_status: abort
                    .http_status
                    .and_then(|status| u32::try_from(status).ok())
                    .unwrap_or_default(),
                grpc_status: grpc.flatten().unwrap_or_default(),
            }
        });
        wire::Fault { delay, abort }
    }

    fn cors(&self, cors: &from::Cors) -> wire::Cors {
        let deprecated = cors.allow_origin.iter().map(|origin| wire::StringMatch {
            match_type: Some(wire::string_match::MatchType::Exact(origin.clone())),
        });
        wire::Cors {
            allow_origins: cors
                .allow_origins
                .iter()
                .map(string_match)
                .chain(deprecated)
                .collect(),
            allow_methods: cors.allow_methods.clone(),
            allow_headers: cors.allow_headers.clone(),
            expose_headers: cors.expose_headers.clone(),
            max_age: cors.max_age.map(duration),
            allow_credentials: cors.allow_credentials.unwrap_or_default(),
            answer_unmatched_preflights: cors.unmatched_preflights.as_deref() == Some("IGNORE"),
        }
    }

    fn tls(&mut self, route: &from::TlsRoute) -> Option<wire::TlsRoute> {
        let matches: Vec<_> = route
            .matches
            .iter()
            .filter(|one| self.scope.takes(&one.gateways, self.namespace))
            .map(|one| wire::TlsMatch {
                sni_hosts: one.sni_hosts.clone(),
                l4: Some(wire::L4Match {
                    destination_subnets: one.destination_subnets.clone(),
                    port: one.port.unwrap_or_default(),
                    source_labels: one.source_labels.clone(),
                    source_namespace: one.source_namespace.clone(),
                    ..wire::L4Match::default()
                }),
            })
            .collect();
        if matches.is_empty() && !route.matches.is_empty() {
            return None;
        }
        Some(wire::TlsRoute {
            matches,
            destinations: self.weighted(&route.route),
        })
    }

    fn tcp(&self, route: &from::TcpRoute) -> Option<wire::TcpRoute> {
        let mut matches = Vec::new();
        for one in route
            .matches
            .iter()
            .filter(|one| self.scope.takes(&one.gateways, self.namespace))
        {
            matches.push(wire::L4Match {
                destination_subnets: one.destination_subnets.clone(),
                port: one.port.unwrap_or_default(),
                source_labels: one.source_labels.clone(),
                source_namespace: one.source_namespace.clone(),
                source_subnet: one.source_subnet.clone(),
            });
        }
        if matches.is_empty() && !route.matches.is_empty() {
            return None;
        }
        Some(wire::TcpRoute {
            matches,
            destinations: self.weighted(&route.route),
        })
    }
}

fn broken(why: &str) -> Action {
    Action::DirectResponse(wire::DirectResponse {
        status: BROKEN,
        body: format!("the route cannot be followed: {why}\n").into_bytes(),
    })
}

pub(super) fn http_match(from: &from::HttpMatch) -> wire::HttpMatch {
    let map = |all: &std::collections::BTreeMap<String, from::StringMatch>| {
        all.iter()
            .map(|(key, value)| (key.clone(), string_match(value)))
            .collect()
    };
    wire::HttpMatch {
        name: from.name.clone(),
        uri: from.uri.as_ref().map(string_match),
        scheme: from.scheme.as_ref().map(string_match),
        method: from.method.as_ref().map(string_match),
        authority: from.authority.as_ref().map(string_match),
        headers: map(&from.headers),
        without_headers: map(&from.without_headers),
        query_params: map(&from.query_params),
        ignore_uri_case: from.ignore_uri_case,
        port: from.port.unwrap_or_default(),
        source_labels: from.source_labels.clone(),
        source_namespace: from.source_namespace.clone(),
        stat_prefix: from.stat_prefix.clone(),
    }
}

fn http_redirect(from: &from::HttpRedirect) -> wire::HttpRedirect {
    wire::HttpRedirect {
        uri: from.uri.clone(),
        authority: from.authority.clone(),
        scheme: from.scheme.clone(),
        port: from.port.unwrap_or_default(),
        code: from.redirect_code.unwrap_or_default(),
        prefix_rewrite: from.prefix_rewrite.clone(),
        port_from_request: from.derive_port.as_deref() == Some("FROM_REQUEST_PORT"),
    }
}

fn retries(from: &from::HttpRetry) -> wire::Retries {
    wire::Retries {
        attempts: from.attempts,
        per_try_timeout: from.per_try_timeout.map(duration),
        retry_on: from.retry_on.clone(),
        backoff: from.backoff.map(duration),
        same_hosts: from.retry_ignore_previous_hosts == Some(false),
        remote_localities: from.retry_remote_localities == Some(true),
    }
}

fn rewrite(from: &from::HttpRewrite) -> wire::HttpRewrite {
    let regex = from.uri_regex_rewrite.clone().unwrap_or_default();
    wire::HttpRewrite {
        uri: from.uri.clone(),
        authority: from.authority.clone(),
        regex: regex.pattern,
        regex_rewrite: regex.rewrite,
    }
}

fn headers(from: &from::Headers) -> wire::Headers {
    let operations = |from: &from::HeaderOperations| wire::HeaderOperations {
        set: from.set.clone(),
        add: from.add.clone(),
        remove: from.remove.clone(),
    };
    wire::Headers {
        request: from.request.as_ref().map(operations),
        response: from.response.as_ref().map(operations),
    }
}

/// Number of a gRPC status given by number or name.
fn grpc_code(text: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let upper = text.to_ascii_uppercase();
    let place = NAMES.iter().position(|name| *name == upper)?;
    u32::try_from(place).ok()
}
