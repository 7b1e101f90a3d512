use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use isobar_proto::isobar::v1 as proto;
use isobar_types::{NamespacedHostname, NamespacedName, is_framing};

use crate::action::{
    AbortWith, Action, Cors, DirectResponse, Fault, HeaderEdits, Mirror, Redirect, Rewrite, Target,
    Weighted,
};
use crate::call::Labels;
use crate::external_auth::ExternalAuth;
use crate::finder::Finder;
use crate::header_text::HeaderText;
use crate::own_filters::OwnFilters;
use crate::pattern::Pattern;
use crate::rate_limit::RateLimits;
use crate::retry::Retries;
use crate::session::SessionRules;
use crate::table::ResourceError;
use crate::tcp::{TcpRoute, compile_tcp, compile_tls};
use crate::text::TextMatch;

/// A compiled `VirtualService`.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualService {
    /// The object.
    pub name: NamespacedName,
    /// Hosts as the user wrote them.
    pub hosts: Vec<String>,
    /// Services of this waypoint it applies to.
    pub parents: Vec<NamespacedHostname>,
    /// Seconds since the epoch; the oldest object's rules come first.
    pub created: i64,
    /// HTTP rules, in order.
    pub http: Vec<HttpRoute>,
    /// TLS rules, then TCP rules, in order.
    pub tcp: Vec<TcpRoute>,
    /// Over `http`.
    pub(crate) finder: Finder,
}

/// A compiled HTTP rule.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    /// Name in logs; may be empty.
    pub name: String,
    /// One must match; empty matches everything.
    pub matches: Vec<HttpMatch>,
    /// What to do.
    pub action: Action,
    /// Changes before forwarding.
    pub rewrite: Rewrite,
    /// Header edits on the request.
    pub request: HeaderEdits,
    /// Header edits on the reply.
    pub response: HeaderEdits,
    /// Deadline of the whole exchange.
    pub timeout: Option<Duration>,
    /// Retry rules, where the user gave some.
    pub retries: Option<Retries>,
    /// Faults to inject.
    pub fault: Fault,
    /// Cross-origin rules.
    pub cors: Option<Cors>,
    /// Where copies go.
    pub mirrors: Vec<Mirror>,
    /// Keeps callers with their endpoints.
    pub session: Option<SessionRules>,
    /// Authorisers, each of whom has to let requests on.
    pub external_auth: Vec<ExternalAuth>,
    /// Limits that requests count in besides those of their target.
    pub limits: Vec<Arc<RateLimits>>,
}

/// A compiled match block; all parts must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// Name in logs; may be empty.
    pub name: String,
    /// On the normalised path.
    pub uri: Option<TextMatch>,
    /// ASCII case of the path does not count.
    pub ignore_uri_case: bool,
    /// On the scheme.
    pub scheme: Option<TextMatch>,
    /// On the method.
    pub method: Option<TextMatch>,
    /// On the normalised authority.
    pub authority: Option<TextMatch>,
    /// Header name (or pseudo-header) and match.
    pub headers: Vec<(HeaderKey, TextMatch)>,
    /// Must not hold.
    pub without_headers: Vec<(HeaderKey, TextMatch)>,
    /// On query parameters, as written in the query.
    pub query: Vec<(String, TextMatch)>,
    /// Service port; 0 matches every port.
    pub port: u16,
    /// Labels of the caller.
    pub source_labels: Labels,
    /// Namespace of the caller's certificate; empty matches all.
    pub source_namespace: String,
    /// Under which requests are counted; may be empty.
    pub stat_prefix: String,
}

/// A header of a match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// An ordinary header.
    Name(HeaderName),
    /// `:method`.
    Method,
    /// `:path`, without the query.
    Path,
    /// `:authority` or `host`.
    Authority,
    /// `:scheme`.
    Scheme,
}

impl VirtualService {
    /// Compiles one resource.
    ///
    /// # Errors
    /// Names the field that cannot be used as written; the object then stays as it was.
    pub fn compile(from: &proto::VirtualService) -> Result<Self, ResourceError> {
        let name = NamespacedName {
            namespace: from.namespace.as_str().into(),
            name: from.name.as_str().into(),
        };
        let wrap = |field: FieldError| field.of("VirtualService", &from.namespace, &from.name);
        let mut http = Vec::with_capacity(from.http.len());
        for (at, route) in from.http.iter().enumerate() {
            http.push(compile_http(route).map_err(|e| wrap(e.under(&format!("http[{at}]"))))?);
        }
        let mut tcp = Vec::with_capacity(from.tls.len() + from.tcp.len());
        for (at, route) in from.tls.iter().enumerate() {
            tcp.push(compile_tls(route).map_err(|e| wrap(e.under(&format!("tls[{at}]"))))?);
        }
        for (at, route) in from.tcp.iter().enumerate() {
            tcp.push(compile_tcp(route).map_err(|e| wrap(e.under(&format!("tcp[{at}]"))))?);
        }
        Ok(Self {
            name,
            hosts: from.hosts.clone(),
            parents: from.parents.iter().map(service_key).collect(),
            created: from.created,
            finder: Finder::new(&http),
            http,
            tcp,
        })
    }
}

/// A problem of one field, before it is known in which object.
#[derive(Debug)]
pub(crate) struct FieldError {
    path: String,
    problem: String,
}

impl FieldError {
    pub(crate) fn new(path: &str, problem: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn under(mut self, parent: &str) -> Self {
        self.path = format!("{parent}.{}", self.path);
        self
    }

    pub(crate) fn of(self, kind: &'static str, namespace: &str, name: &str) -> ResourceError {
        ResourceError {
            kind,
            object: format!("{namespace}/{name}"),
            field: self.path,
            problem: self.problem,
        }
    }
}

pub(crate) fn service_key(from: &proto::ServiceRef) -> NamespacedHostname {
    NamespacedHostname {
        namespace: from.namespace.as_str().into(),
        hostname: from.hostname.to_ascii_lowercase().into(),
    }
}

fn compile_http(from: &proto::HttpRoute) -> Result<HttpRoute, FieldError> {
    let mut matches = Vec::with_capacity(from.matches.len());
    for (at, block) in from.matches.iter().enumerate() {
        matches.push(compile_match(block).map_err(|e| e.under(&format!("match[{at}]")))?);
    }
    let (request, response) = compile_headers(from.headers.as_ref())?;
    Ok(HttpRoute {
        name: from.name.clone(),
        matches,
        action: compile_action(from.action.as_ref())?,
        rewrite: compile_rewrite(from.rewrite.as_ref())?,
        request,
        response,
        timeout: duration(from.timeout.as_ref(), "timeout")?,
        retries: from.retries.as_ref().map(Retries::compile).transpose()?,
        fault: compile_fault(from.fault.as_ref())?,
        cors: compile_cors(from.cors.as_ref())?,
        mirrors: compile_mirrors(&from.mirrors)?,
        session: from
            .session
            .as_ref()
            .map(SessionRules::compile)
            .transpose()?,
        external_auth: ExternalAuth::compile_all(&from.external_auth, "externalAuth")?,
        limits: compile_limits(&from.rate_limits)?,
    })
}

fn compile_action(from: Option<&proto::http_route::Action>) -> Result<Action, FieldError> {
    use proto::http_route::Action as From;
    match from {
        Some(From::Forward(forward)) => {
            compile_destinations(&forward.destinations, "route").map(Action::Forward)
        }
        Some(From::Redirect(to)) => compile_redirect(to).map(Action::Redirect),
        Some(From::DirectResponse(reply)) => Ok(Action::Direct(DirectResponse {
            status: u16::try_from(reply.status)
                .ok()
                .filter(|code| (200..600).contains(code))
                .ok_or_else(|| {
                    FieldError::new(
                        "directResponse.status",
                        format!("{} is not a final HTTP status", reply.status),
                    )
                })?,
            body: reply.body.clone(),
        })),
        None => Err(FieldError::new(
            "route",
            "no route, redirect or directResponse",
        )),
    }
}

pub(crate) fn compile_redirect(to: &proto::HttpRedirect) -> Result<Redirect, FieldError> {
    let code = if to.code == 0 { 301 } else { to.code };
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        return Err(FieldError::new(
            "redirect.redirectCode",
            format!("{code} is not a redirect"),
        ));
    }
    Ok(Redirect {
        uri: given(&to.uri),
        authority: given(&to.authority),
        scheme: given(&to.scheme),
        port: Some(port(to.port, "redirect.port")?).filter(|p| *p != 0),
        code: u16::try_from(code).unwrap_or(301),
        prefix_rewrite: given(&to.prefix_rewrite),
        port_from_request: to.port_from_request,
    })
}

/// Limits that stand in a rule; one that is named again counts once.
pub(crate) fn compile_limits(
    from: &[proto::RateLimitPolicy],
) -> Result<Vec<Arc<RateLimits>>, FieldError> {
    let mut all: Vec<Arc<RateLimits>> = Vec::with_capacity(from.len());
    for one in from {
        let made = RateLimits::compile(one);
        let made = made.map_err(|error| FieldError::new("rateLimits", error.to_string()))?;
        if all.iter().all(|other| other.name != made.name) {
            all.push(Arc::new(made));
        }
    }
    Ok(all)
}

/// A single destination without a weight gets everything; of several, weight 0 gets none.
pub(crate) fn compile_destinations(
    from: &[proto::WeightedDestination],
    field: &str,
) -> Result<Vec<Weighted>, FieldError> {
    let single = from.len() == 1;
    let mut out = Vec::with_capacity(from.len());
    for (at, entry) in from.iter().enumerate() {
        let here = format!("{field}[{at}]");
        let (request, response) =
            compile_headers(entry.headers.as_ref()).map_err(|e| e.under(&here))?;
        let to = entry.destination.clone().unwrap_or_default();
        let weight = if single && entry.weight == 0 {
            100
        } else {
            entry.weight
        };
        out.push(Weighted {
            target: compile_target(&to).map_err(|e| e.under(&here))?,
            weight,
            request,
            response,
            own: OwnFilters::compile(entry).map_err(|e| e.under(&here))?,
        });
    }
    if out.is_empty() {
        return Err(FieldError::new(field, "no destination"));
    }
    Ok(out)
}

/// Mirrors of no share are none.
pub(crate) fn compile_mirrors(from: &[proto::Mirror]) -> Result<Vec<Mirror>, FieldError> {
    let mut out = Vec::new();
    for (at, mirror) in from.iter().enumerate() {
        let here = format!("mirrors[{at}]");
        if !(0.0..=100.0).contains(&mirror.percentage) {
            let problem = format!("{} is not between 0 and 100", mirror.percentage);
            return Err(FieldError::new(&format!("{here}.percentage"), problem));
        }
        let to = mirror.destination.clone().unwrap_or_default();
        if mirror.percentage > 0.0 {
            out.push(Mirror {
                target: compile_target(&to).map_err(|e| e.under(&here))?,
                percentage: mirror.percentage,
            });
        }
    }
    Ok(out)
}

pub(crate) fn compile_target(to: &proto::Destination) -> Result<Target, FieldError> {
    Ok(Target {
        service: to
            .service
            .as_ref()
            .map(service_key)
            .filter(|s| !s.hostname.is_empty()),
        subset: given(&to.subset).map(Into::into),
        port: port(to.port, "destination.port")?,
        host: to.host.as_str().into(),
        refuse: u16::try_from(to.refuse)
            .ok()
            .filter(|status| (400..=599).contains(status)),
    })
}

pub(crate) fn compile_match(from: &proto::HttpMatch) -> Result<HttpMatch, FieldError> {
    let text = |field: &str, m: &Option<proto::StringMatch>| {
        m.as_ref()
            .map(TextMatch::compile)
            .transpose()
            .map_err(|e| FieldError::new(field, e.to_string()))
    };
    let headers = |field: &str, map: &std::collections::BTreeMap<String, proto::StringMatch>| {
        map.iter()
            .map(|(name, m)| {
                let here = format!("{field}.{name}");
                let key = HeaderKey::parse(name).ok_or_else(|| {
                    FieldError::new(&here, "not a header name this proxy can match")
                })?;
                let m = TextMatch::compile(m).map_err(|e| FieldError::new(&here, e.to_string()))?;
                Ok((key, m))
            })
            .collect::<Result<Vec<_>, FieldError>>()
    };
    let mut query = Vec::with_capacity(from.query_params.len());
    for (name, m) in &from.query_params {
        let m = TextMatch::compile(m)
            .map_err(|e| FieldError::new(&format!("queryParams.{name}"), e.to_string()))?;
        query.push((name.clone(), m));
    }
    Ok(HttpMatch {
        name: from.name.clone(),
        uri: text("uri", &from.uri)?,
        ignore_uri_case: from.ignore_uri_case,
        scheme: text("scheme", &from.scheme)?,
        method: text("method", &from.method)?,
        authority: text("authority", &from.authority)?,
        headers: headers("headers", &from.headers)?,
        without_headers: headers("withoutHeaders", &from.without_headers)?,
        query,
        port: port(from.port, "port")?,
        source_labels: from.source_labels.clone(),
        source_namespace: from.source_namespace.clone(),
        stat_prefix: from.stat_prefix.clone(),
    })
}

impl fmt::Display for HeaderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name(name) => name.as_str(),
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Authority => ":authority",
            Self::Scheme => ":scheme",
        })
    }
}

impl HeaderKey {
    fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            ":method" => Some(Self::Method),
            ":path" => Some(Self::Path),
            ":authority" | "host" => Some(Self::Authority),
            ":scheme" => Some(Self::Scheme),
            other => HeaderName::from_bytes(other.as_bytes())
                .ok()
                .map(Self::Name),
        }
    }
}

pub(crate) fn compile_rewrite(from: Option<&proto::HttpRewrite>) -> Result<Rewrite, FieldError> {
    let Some(from) = from else {
        return Ok(Rewrite::default());
    };
    let regex = given(&from.regex)
        .map(|pattern| Pattern::search(&pattern).map(|p| (p, from.regex_rewrite.clone())))
        .transpose()
        .map_err(|e| FieldError::new("rewrite.uriRegexRewrite.match", e.to_string()))?;
    Ok(Rewrite {
        uri: given(&from.uri),
        authority: given(&from.authority),
        regex,
    })
}

fn compile_headers(
    from: Option<&proto::Headers>,
) -> Result<(HeaderEdits, HeaderEdits), FieldError> {
    let Some(from) = from else {
        return Ok(Default::default());
    };
    let request = compile_edits(from.request.as_ref()).map_err(|e| e.under("headers.request"))?;
    let response =
        compile_edits(from.response.as_ref()).map_err(|e| e.under("headers.response"))?;
    Ok((request, response))
}

fn compile_edits(from: Option<&proto::HeaderOperations>) -> Result<HeaderEdits, FieldError> {
    let mut edits = HeaderEdits::default();
    let Some(from) = from else {
        return Ok(edits);
    };
    for (field, map) in [("add", &from.add), ("set", &from.set)] {
        for (name, value) in map {
            let here = format!("{field}.{name}");
            if matches!(name.to_ascii_lowercase().as_str(), "host" | ":authority") {
                edits.authority = Some(value.clone());
                continue;
            }
            let name = HeaderName::from_bytes(name.as_bytes())
                .ok()
                .filter(|name| !is_framing(name.as_str()))
                .ok_or_else(|| FieldError::new(&here, "not a header name that may be written"))?;
            let value = HeaderText::compile(value).map_err(|e| FieldError::new(&here, e))?;
            if field == "add" {
                edits.add.push((name, value));
            } else {
                edits.set.push((name, value));
            }
        }
    }
    for (at, name) in from.remove.iter().enumerate() {
        let here = format!("remove[{at}]");
        edits.remove.push(
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| FieldError::new(&here, format!("{name:?} is not a header name")))?,
        );
    }
    Ok(edits)
}

fn compile_fault(from: Option<&proto::Fault>) -> Result<Fault, FieldError> {
    let Some(from) = from else {
        return Ok(Fault::default());
    };
    let share = |value: f64, field: &str| {
        (0.0..=100.0)
            .contains(&value)
            .then_some(value)
            .ok_or_else(|| FieldError::new(field, format!("{value} is not between 0 and 100")))
    };
    let mut fault = Fault::default();
    if let Some(delay) = &from.delay {
        let by = duration(delay.fixed.as_ref(), "fault.delay.fixedDelay")?.unwrap_or_default();
        fault.delay = Some((share(delay.percentage, "fault.delay.percentage")?, by));
    }
    if let Some(abort) = &from.abort {
        let code = |n: u32, range: std::ops::RangeInclusive<u16>, field: &str| {
            u16::try_from(n)
                .ok()
                .filter(|c| range.contains(c))
                .ok_or_else(|| FieldError::new(field, format!("{n} is not a status")))
        };
        let with = if abort.http_status != 0 {
            AbortWith::Http(code(
                abort.http_status,
                200..=599,
                "fault.abort.httpStatus",
            )?)
        } else {
            AbortWith::Grpc(code(abort.grpc_status, 0..=16, "fault.abort.grpcStatus")?)
        };
        fault.abort = Some((share(abort.percentage, "fault.abort.percentage")?, with));
    }
    Ok(fault)
}

fn compile_cors(from: Option<&proto::Cors>) -> Result<Option<Cors>, FieldError> {
    let Some(from) = from else { return Ok(None) };
    let mut origins = Vec::with_capacity(from.allow_origins.len());
    for (at, origin) in from.allow_origins.iter().enumerate() {
        origins.push(TextMatch::compile(origin).map_err(|e| {
            FieldError::new(&format!("corsPolicy.allowOrigins[{at}]"), e.to_string())
        })?);
    }
    let list = |items: &[String], field: &str| {
        if items.is_empty() {
            return Ok(None);
        }
        HeaderValue::from_str(&items.join(","))
            .map(Some)
            .map_err(|_| FieldError::new(field, "not a header value"))
    };
    Ok(Some(Cors {
        origins,
        methods: list(&from.allow_methods, "corsPolicy.allowMethods")?,
        headers: list(&from.allow_headers, "corsPolicy.allowHeaders")?,
        expose: list(&from.expose_headers, "corsPolicy.exposeHeaders")?,
        max_age: duration(from.max_age.as_ref(), "corsPolicy.maxAge")?.map(|d| d.as_secs()),
        credentials: from.allow_credentials,
        answers_unmatched: from.answer_unmatched_preflights,
    }))
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(crate) fn port(number: u32, field: &str) -> Result<u16, FieldError> {
    u16::try_from(number).map_err(|_| FieldError::new(field, format!("{number} is not a port")))
}

pub(crate) fn duration(
    from: Option<&prost_types::Duration>,
    field: &str,
) -> Result<Option<Duration>, FieldError> {
    let Some(from) = from else { return Ok(None) };
    let seconds = u64::try_from(from.seconds);
    let nanos = u32::try_from(from.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => {
            Ok(Some(Duration::new(seconds, nanos)).filter(|d| !d.is_zero()))
        }
        _ => Err(FieldError::new(field, "a negative or malformed duration")),
    }
}

#[cfg(test)]
mod tests;
