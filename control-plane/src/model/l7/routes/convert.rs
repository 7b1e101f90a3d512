//! Rules of HTTPRoute and GRPCRoute as waypoints get them.

use std::collections::BTreeMap;

use isobar_objects::gateway_api::{
    BackendRef, ExtensionRef, GrpcMethodMatch, GrpcRoute, GrpcRouteMatch, HttpRoute,
    HttpRouteMatch, HttpRouteRule, MatchKind, NamedMatch, ParentReference, PathMatch,
    PathMatchKind, RouteRetry, RouteTimeouts, SessionLifetime, SessionPersistence, SessionType,
    TcpRoute, TcpRouteRule, TlsRoute,
};
use isobar_objects::{Kind, ObjectHead};
use isobar_proto::isobar::v1 as wire;
use prost::Message as _;
use wire::http_route::Action;
use wire::string_match::MatchType;

use super::super::string_match::duration;
use super::attach::ParentKind;
use super::filters::{Filtered, filtered};
use super::references::{Problem, References, Referrer, key_of};

/// Status of replies in place of rules that cannot be honoured (Gateway API: a filter is never
/// skipped).
const NOT_HONOURED: u32 = 500;
/// Tries after the first where a `retry` does not say.
const ATTEMPTS: i32 = 2;
/// What a `retry` means besides its codes: every failure without an answer.
const RETRY_ON: &str = "reset,connect-failure,refused-stream";
/// What shows a session where nothing is said.
const SESSION_COOKIE: &str = "isobar-session";
const SESSION_HEADER: &str = "x-isobar-session";
/// Any one gRPC service or method.
const ANY_NAME: &str = "[^/]+";

/// How exact a match is; the greater comes first. gRPC comes before HTTP; then the kind of match on
/// the path, its length, the method, the numbers of headers and query parameters.
pub(super) type Rank = (bool, u8, usize, usize, usize, usize);

/// One match of one rule.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) rank: Rank,
    /// With one match.
    pub(super) rule: wire::HttpRoute,
}

/// What takes every opaque connection, or every one that asks for some server names.
#[derive(Debug)]
pub(super) struct OpaqueRule {
    /// `None`: not only TLS.
    pub(super) server_names: Option<Vec<String>>,
    pub(super) destinations: Vec<wire::WeightedDestination>,
}

/// A route in parts, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Converted {
    pub(super) entries: Vec<Entry>,
    /// Of routes that are not about requests, in their order.
    pub(super) opaque: Vec<OpaqueRule>,
    pub(super) accepted: Option<Problem>,
    pub(super) resolved: Option<Problem>,
}

impl Converted {
    /// Of all rules, in bytes as they are sent.
    pub(super) fn size(&self) -> usize {
        /// What a rule takes besides.
        const EACH: usize = 64;
        let entries = self.entries.iter().map(|one| one.rule.encoded_len() + EACH);
        let opaque = self.opaque.iter().map(|rule| {
            let destinations = rule.destinations.iter().map(|one| one.encoded_len());
            let of_one = destinations.sum::<usize>() + EACH;
            let names = rule.server_names.as_deref().unwrap_or_default();
            let text: usize = names.iter().map(String::len).sum();
            of_one
                .saturating_mul(names.len().max(1))
                .saturating_add(text)
        });
        entries.chain(opaque).fold(0, usize::saturating_add)
    }
}

/// Why a filter that is an object of its own is not had.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unnamed {
    /// It is of a kind that is no filter here.
    Unknown,
    /// There is none of that name.
    Missing,
}

/// Reads one route after the other.
pub(super) struct Reader<'a> {
    pub(super) references: &'a References<'a>,
    pub(super) by: Referrer<'a>,
    pub(super) accepted: Option<Problem>,
    pub(super) resolved: Option<Problem>,
}

impl Reader<'_> {
    /// Notes what cannot be honoured; the first counts.
    pub(super) fn refuse(&mut self, reason: &'static str, message: String) {
        self.accepted.get_or_insert(Problem { reason, message });
    }

    /// The limits that a filter names, of the route's own namespace.
    pub(super) fn limits(&mut self, from: &ExtensionRef) -> Result<wire::RateLimitPolicy, Unnamed> {
        let ours = Kind::RateLimitPolicy;
        if from.group != ours.group() || from.kind != ours.as_str() {
            let message = format!(
                "{} of group {:?} is no filter; {} of group {} is",
                from.kind,
                from.group,
                ours.as_str(),
                ours.group()
            );
            let reason = "InvalidKind";
            self.resolved.get_or_insert(Problem { reason, message });
            return Err(Unnamed::Unknown);
        }
        let found = self.references.limits(self.by.namespace, &from.name);
        found.ok_or_else(|| {
            let message = format!(
                "there is no RateLimitPolicy {}/{}",
                self.by.namespace, from.name
            );
            let reason = "BackendNotFound";
            self.resolved.get_or_insert(Problem { reason, message });
            Unnamed::Missing
        })
    }

    pub(super) fn destination(&mut self, from: &BackendRef) -> wire::Destination {
        let (destination, problem) = self.references.destination(&self.by, from);
        if let Some(problem) = problem {
            self.resolved.get_or_insert(problem);
        }
        destination
    }
}

pub(super) fn http(route: &HttpRoute, references: &References<'_>) -> Converted {
    let by = referrer(Kind::HttpRoute, route.namespace(), &route.spec.parent_refs);
    let mut reader = reader(by, references);
    let mut entries = Vec::new();
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let made = reader.http_rule(rule, name(route.name(), rule.name.as_deref(), at));
        let everything = [HttpRouteMatch::default()];
        let matches = match &rule.matches[..] {
            [] => &everything[..],
            some => some,
        };
        entries.extend(matches.iter().map(|one| {
            let (rank, block) = http_match(one);
            entry(rank, block, &made)
        }));
    }
    reader.done(entries)
}

pub(super) fn grpc(route: &GrpcRoute, references: &References<'_>) -> Converted {
    let by = referrer(Kind::GrpcRoute, route.namespace(), &route.spec.parent_refs);
    let mut reader = reader(by, references);
    let mut entries = Vec::new();
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let filtered = filtered(&rule.filters, &mut reader);
        let name = name(route.name(), rule.name.as_deref(), at);
        let mut made = reader.rule(name, filtered, &rule.backend_refs);
        made.session = session(rule.session_persistence.as_ref());
        let everything = [GrpcRouteMatch::default()];
        let matches = match &rule.matches[..] {
            [] => &everything[..],
            some => some,
        };
        entries.extend(matches.iter().map(|one| {
            let (rank, block) = grpc_match(one);
            entry(rank, block, &made)
        }));
    }
    reader.done(entries)
}

pub(super) fn tcp(route: &TcpRoute, references: &References<'_>) -> Converted {
    let by = referrer(Kind::TcpRoute, route.namespace(), &route.spec.parent_refs);
    reader(by, references).opaque(None, &route.spec.rules)
}

pub(super) fn tls(route: &TlsRoute, references: &References<'_>) -> Converted {
    let by = referrer(Kind::TlsRoute, route.namespace(), &route.spec.parent_refs);
    let names = route.spec.hostnames.clone();
    reader(by, references).opaque(Some(&names), &route.spec.rules)
}

fn referrer<'a>(kind: Kind, namespace: &'a str, parents: &[ParentReference]) -> Referrer<'a> {
    let mut parents = parents.iter().map(|parent| {
        let place = parent.namespace.as_deref().unwrap_or(namespace);
        Some((ParentKind::of(parent)?, key_of(place, &parent.name)))
    });
    // One parent may be named for several of its ports.
    let first = parents.next().flatten();
    let parent = first.filter(|first| parents.all(|other| other.as_ref() == Some(first)));
    Referrer {
        kind,
        namespace,
        parent,
    }
}

fn reader<'a>(by: Referrer<'a>, references: &'a References<'a>) -> Reader<'a> {
    Reader {
        references,
        by,
        accepted: None,
        resolved: None,
    }
}

fn entry(rank: Rank, block: wire::HttpMatch, rule: &wire::HttpRoute) -> Entry {
    let mut rule = rule.clone();
    rule.matches = vec![block];
    Entry { rank, rule }
}

fn name(route: &str, rule: Option<&str>, at: usize) -> String {
    match rule {
        Some(rule) => format!("{route}/{rule}"),
        None => format!("{route}/rules[{at}]"),
    }
}

impl Reader<'_> {
    fn done(self, entries: Vec<Entry>) -> Converted {
        Converted {
            entries,
            opaque: Vec::new(),
            accepted: self.accepted,
            resolved: self.resolved,
        }
    }

    fn opaque(mut self, server_names: Option<&[String]>, rules: &[TcpRouteRule]) -> Converted {
        let mut opaque = Vec::new();
        for rule in rules {
            let to = rule.backend_refs.iter();
            let mut destinations: Vec<_> = to.map(|one| self.weighted(one)).collect();
            // Without a share for anybody, connections are refused.
            if destinations.iter().all(|one| one.weight == 0) {
                destinations = vec![nowhere()];
            }
            opaque.push(OpaqueRule {
                server_names: server_names.map(<[String]>::to_vec),
                destinations,
            });
        }
        Converted {
            opaque,
            ..self.done(Vec::new())
        }
    }

    fn http_rule(&mut self, rule: &HttpRouteRule, name: String) -> wire::HttpRoute {
        let filtered = filtered(&rule.filters, self);
        let mut made = self.rule(name, filtered, &rule.backend_refs);
        let timeouts = rule.timeouts.unwrap_or_default();
        made.timeout = timeouts.request.filter(|t| !t.is_zero()).map(duration);
        made.retries = retries(rule.retry.as_ref(), &timeouts);
        made.session = session(rule.session_persistence.as_ref());
        made
    }

    /// A rule without its matches.
    fn rule(&mut self, name: String, from: Filtered, to: &[BackendRef]) -> wire::HttpRoute {
        let destinations: Vec<_> = to.iter().map(|one| self.weighted(one)).collect();
        let total: u64 = destinations.iter().map(|d| u64::from(d.weight)).sum();
        let action = match from.redirect {
            _ if from.refused => refusal(),
            Some(redirect) => Action::Redirect(redirect),
            None if total == 0 => refusal(),
            None => Action::Forward(wire::HttpForward { destinations }),
        };
        wire::HttpRoute {
            name,
            action: Some(action),
            rewrite: from.rewrite,
            headers: from.headers,
            mirrors: from.mirrors,
            cors: from.cors,
            external_auth: from.external_auth,
            rate_limits: from.rate_limits,
            ..wire::HttpRoute::default()
        }
    }

    fn weighted(&mut self, from: &BackendRef) -> wire::WeightedDestination {
        let mut destination = self.destination(from);
        let own = filtered(&from.filters, self);
        if own.cors.is_some() {
            // A preflight is answered before a destination is chosen.
            let message = format!("filter CORS of destination {:?}", from.name);
            self.refuse("UnsupportedValue", message);
        }
        if own.refused || own.cors.is_some() {
            destination.refuse = NOT_HONOURED;
        }
        wire::WeightedDestination {
            // Where nothing may be sent, nobody is sent either.
            redirect: own.redirect.filter(|_| destination.refuse == 0),
            destination: Some(destination),
            weight: u32::try_from(from.weight.unwrap_or(1)).unwrap_or(0),
            headers: own.headers,
            rewrite: own.rewrite,
            mirrors: own.mirrors,
            external_auth: own.external_auth,
            rate_limits: own.rate_limits,
        }
    }
}

fn session(from: Option<&SessionPersistence>) -> Option<wire::Session> {
    let from = from?;
    let header = from.how == SessionType::Header;
    let name = from.session_name.clone();
    let own = if header {
        SESSION_HEADER
    } else {
        SESSION_COOKIE
    };
    let cookie = from.cookie_config.unwrap_or_default();
    Some(wire::Session {
        name: name.unwrap_or_else(|| own.to_owned()),
        header,
        lifetime: from.absolute_timeout.filter(|t| !t.is_zero()).map(duration),
        idle: from.idle_timeout.filter(|t| !t.is_zero()).map(duration),
        permanent: cookie.lifetime_type == SessionLifetime::Permanent,
    })
}

/// Takes a connection and refuses it.
pub(super) fn nowhere() -> wire::WeightedDestination {
    wire::WeightedDestination {
        destination: Some(wire::Destination {
            refuse: NOT_HONOURED,
            ..wire::Destination::default()
        }),
        weight: 1,
        ..wire::WeightedDestination::default()
    }
}

fn refusal() -> Action {
    Action::DirectResponse(wire::DirectResponse {
        status: NOT_HONOURED,
        body: Vec::new(),
    })
}

fn retries(from: Option<&RouteRetry>, timeouts: &RouteTimeouts) -> Option<wire::Retries> {
    let limit = timeouts.backend_request.filter(|t| !t.is_zero());
    let per_try_timeout = limit.map(duration);
    let Some(from) = from else {
        // The mesh's own conditions stay; only the limit is new.
        return limit.map(|_| wire::Retries {
            attempts: ATTEMPTS,
            per_try_timeout,
            ..wire::Retries::default()
        });
    };
    let mut on = RETRY_ON.to_owned();
    for code in &from.codes {
        on.push_str(&format!(",{code}"));
    }
    Some(wire::Retries {
        attempts: from.attempts.unwrap_or(ATTEMPTS),
        per_try_timeout,
        retry_on: on,
        backoff: from.backoff.map(duration),
        ..wire::Retries::default()
    })
}

fn http_match(from: &HttpRouteMatch) -> (Rank, wire::HttpMatch) {
    let path = from.path.clone().unwrap_or_default();
    let PathMatch { how, value } = path;
    let length = value.len();
    let (kind, uri) = match how {
        PathMatchKind::Exact => (3, MatchType::Exact(value)),
        // What takes every path comes last.
        PathMatchKind::PathPrefix if value == "/" => (0, MatchType::PathPrefix(value)),
        PathMatchKind::PathPrefix => (2, MatchType::PathPrefix(value)),
        PathMatchKind::RegularExpression => (1, MatchType::Regex(value)),
    };
    let block = wire::HttpMatch {
        uri: Some(text(uri)),
        method: from.method.clone().map(|m| text(MatchType::Exact(m))),
        headers: named(&from.headers),
        query_params: named(&from.query_params),
        ..wire::HttpMatch::default()
    };
    let rank = (
        false,
        kind,
        length,
        from.method.iter().len(),
        block.headers.len(),
        block.query_params.len(),
    );
    (rank, block)
}

fn grpc_match(from: &GrpcRouteMatch) -> (Rank, wire::HttpMatch) {
    let wanted = from.method.clone().unwrap_or_default();
    let length = |name: &Option<String>| name.as_ref().map_or(0, String::len);
    let exact = u8::from(wanted.how == MatchKind::Exact);
    let lengths = (length(&wanted.service), length(&wanted.method));
    let block = wire::HttpMatch {
        uri: grpc_path(wanted).map(text),
        headers: named(&from.headers),
        ..wire::HttpMatch::default()
    };
    let rank = (true, exact, lengths.0, lengths.1, block.headers.len(), 0);
    (rank, block)
}

/// gRPC's path is `/SERVICE/METHOD`.
fn grpc_path(from: GrpcMethodMatch) -> Option<MatchType> {
    let any = || ANY_NAME.to_owned();
    Some(match (from.how, from.service, from.method) {
        (_, None, None) => return None,
        (MatchKind::Exact, Some(service), Some(method)) => {
            MatchType::Exact(format!("/{service}/{method}"))
        }
        (MatchKind::Exact, Some(service), None) => MatchType::Prefix(format!("/{service}/")),
        (MatchKind::Exact, None, Some(method)) => {
            MatchType::Regex(format!("/{ANY_NAME}/{}", escaped(&method)))
        }
        (MatchKind::RegularExpression, service, method) => {
            let (service, method) = (service.unwrap_or_else(any), method.unwrap_or_else(any));
            MatchType::Regex(format!("/({service})/({method})"))
        }
    })
}

/// The first entry of a name counts.
fn named(from: &[NamedMatch]) -> BTreeMap<String, wire::StringMatch> {
    let mut all = BTreeMap::new();
    for one in from {
        let kind = match one.how {
            MatchKind::Exact => MatchType::Exact(one.value.clone()),
            MatchKind::RegularExpression => MatchType::Regex(one.value.clone()),
        };
        all.entry(one.name.clone()).or_insert_with(|| text(kind));
    }
    all
}

pub(super) fn text(kind: MatchType) -> wire::StringMatch {
    wire::StringMatch {
        match_type: Some(kind),
    }
}

/// A text as a pattern that matches only itself.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if !character.is_ascii_alphanumeric() && character.is_ascii() {
            out.push('\\');
        }
        out.push(character);
    }
    out
}
