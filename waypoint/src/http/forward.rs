//! Sending a request on: destination, rewriting, endpoint, tries, response.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{EXPECT, HOST, HeaderName, HeaderValue, SERVER};
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use isobar_route::{
    Action, HeaderEdits, LoadBalancer, Retries, Subset, Taken, Target as RouteTarget, choose,
};
use isobar_state::{AppProtocol, Service};
use isobar_types::{Reason, Str};
use tokio::time::Instant;

use super::body::{ReplyBody, RequestBody};
use super::exchange::Exchange;
use super::pipeline::Flow;
use super::reply::{self, Local};
use super::sanitise;
use super::standing::{Asked, Side, Standing};
use super::upgrade;
use crate::endpoint::{Endpoint, NoEndpoint, Wanted};
use crate::session::Session;
use crate::target::Target;
use crate::upstream::{self, SendError};

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// Tries after the first where the user says nothing (Istio's default), for requests of which
/// nothing has left yet.
const DEFAULT_RETRIES: u32 = 2;
/// First wait between tries where the user says nothing (Envoy's default).
const BACKOFF: Duration = Duration::from_millis(25);

/// What the route adds to a request that is forwarded.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) taken: Option<Taken>,
    /// Cross-origin headers for the response.
    pub(super) decorate: Option<HeaderMap>,
}

/// Where the tries may go.
enum Place {
    Pod(Endpoint),
    Cluster {
        service: Arc<Service>,
        port: u16,
        subset: Option<Subset>,
        balancer: LoadBalancer,
    },
}

/// The head that every try sends. What the caller asked stays as it was, for policies to be asked
/// again; each try edits its own copy.
struct Head<'a> {
    asked: &'a Asked,
    edits: &'a [&'a HeaderEdits],
    uri: Uri,
    speak: upstream::Version,
    /// The path before it was rewritten.
    original: Option<HeaderValue>,
    /// HTTP/2 has it in its target.
    host: Option<HeaderValue>,
}

impl Head<'_> {
    fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut headers = self.asked.headers.clone();
        headers.remove(EXPECT);
        if let Some(original) = &self.original {
            headers.insert(ORIGINAL_PATH, original.clone());
        }
        for edits in self.edits {
            edits.apply(&mut headers);
        }
        match &self.host {
            Some(host) => {
                headers.insert(HOST, host.clone());
                let protocol = self.asked.clean.upgrade.as_ref();
                if let Some(protocol) = protocol.filter(|p| upgrade::is_websocket(p)) {
                    upgrade::ask(&mut headers, protocol);
                }
                sanitise::for_http1(&mut headers);
            }
            None => {
                headers.remove(HOST);
            }
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.asked.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = match self.speak {
            upstream::Version::H1 => Version::HTTP_11,
            upstream::Version::H2 => Version::HTTP_2,
        };
        *request.headers_mut() = headers;
        request
    }
}

/// Sends the request where the plan says and answers with what comes back.
pub(super) async fn forward(mut flow: Flow, plan: Plan) -> Response<ReplyBody> {
    let route = plan.taken.as_ref().map(Taken::route);
    let chosen = match route.map(|r| &r.action) {
        Some(Action::Forward(all)) => match choose(all, rand::random()) {
            Some(weighted) => Some(weighted),
            None => return Local::no_cluster("every weight is 0".into()).respond(flow.exchange),
        },
        _ => None,
    };
    let place = match place(&mut flow, chosen.map(|c| &c.target)) {
        Ok(place) => place,
        Err(local) => return local.respond(flow.exchange),
    };
    let mut edits: Vec<&HeaderEdits> = Vec::new();
    edits.extend(route.map(|r| &r.request));
    edits.extend(chosen.map(|c| &c.request));
    let asked = flow.asked.clone();
    let original = &flow.exchange.request.path;
    let speak = speak(&place, &flow.session, &asked);
    let head = match head(&asked, plan.taken.as_ref(), &edits, original, speak) {
        Ok(head) => head,
        Err(local) => return local.respond(flow.exchange),
    };
    let timeout = route.and_then(|r| r.timeout);
    let deadline = timeout.map(|t| Instant::now() + t);
    let rules = Tries::new(route.and_then(|r| r.retries.as_ref()));
    let upgrade = flow
        .upgrade
        .take()
        .filter(|_| asked.clean.upgrade.is_some());
    let empty = flow.body.is_end_stream();
    let Some(standing) = flow.exchange.standing.clone() else {
        // Unreachable: only what is permitted comes here.
        return Local::denied("not_decided".to_owned()).respond(flow.exchange);
    };
    let sending = Sending {
        flow: &mut flow.exchange,
        session: &flow.session,
        view: &flow.view,
        caller: &flow.caller,
        standing: &standing,
    };
    let sent = tokio::select! {
        biased;
        () = standing.until_withdrawn(Side::Reply) => {
            flow.exchange.standing = None;
            Err(Local::withdrawn(standing.withdrawn().unwrap_or("")))
        }
        sent = tries(sending, place, &head, (flow.body, empty), &rules, deadline) => sent,
    };
    let response = match sent {
        Ok(response) => response,
        Err(local) => return local.respond(flow.exchange),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return upgrade::join(response, upgrade, flow.exchange);
    }
    let of_route = route.map(|r| &r.response).into_iter();
    let edits = of_route.chain(chosen.map(|c| &c.response));
    pass_on(response, edits, plan.decorate, deadline, flow.exchange)
}

/// The endpoint's response as the caller gets it.
fn pass_on<'a>(
    mut response: Response<Incoming>,
    edits: impl Iterator<Item = &'a HeaderEdits>,
    decorate: Option<HeaderMap>,
    deadline: Option<Instant>,
    mut exchange: Exchange,
) -> Response<ReplyBody> {
    let took = exchange.started.elapsed();
    exchange.upstream_time = Some(took);
    finish_headers(response.headers_mut(), took);
    for edits in edits {
        edits.apply(response.headers_mut());
    }
    if let Some(cors) = decorate {
        response.headers_mut().extend(cors);
    }
    exchange.code = response.status().as_u16();
    exchange.detail = "via_upstream".to_owned();
    exchange.response_head = reply::head_size(response.headers());
    exchange.note_grpc_status(response.headers());
    let sleep = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
    response.map(|body| ReplyBody::upstream(body, sleep, exchange))
}

fn finish_headers(headers: &mut HeaderMap, took: Duration) {
    sanitise::clean_response(headers);
    headers.insert(SERVER, reply::SERVER_NAME);
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    headers.insert(SERVICE_TIME, HeaderValue::from(millis));
}

/// Finds what a destination names.
fn place(flow: &mut Flow, target: Option<&RouteTarget>) -> Result<Place, Local> {
    let addressed = &flow.session.addressed;
    let own = match (&addressed.target, target) {
        (Target::Workload(workload), _) => {
            let uid = workload.uid.clone();
            flow.exchange.cluster = format!("encap|{}", addressed.destination);
            // The pod as it is now: it may have gone, or left the mesh.
            let now = flow.view.snapshot.workload_by_uid(&uid);
            let workload = now.ok_or_else(|| Local::no_endpoint(format!("pod {uid} is gone")))?;
            return Ok(Place::Pod(Endpoint {
                workload: workload.clone(),
                address: addressed.destination,
            }));
        }
        (Target::Service(service), _) => service,
    };
    let key = match target {
        None => &own.key,
        Some(target) => target.service.as_ref().ok_or_else(|| {
            Local::no_cluster(format!("the destination {:?} is not known", &*target.host))
        })?,
    };
    let service = flow
        .view
        .snapshot
        .service(key)
        .cloned()
        .ok_or_else(|| Local::no_cluster(format!("service {key} is not known")))?;
    let asked = addressed.destination.port();
    let port = match target.map_or(0, |t| t.port) {
        0 => only_port(&service).unwrap_or(asked),
        port => port,
    };
    let name = target.and_then(|t| t.subset.as_deref());
    let host = &key.hostname;
    flow.exchange.cluster = match name {
        Some(subset) => format!("inbound-vip|{port}|http/{subset}|{host}"),
        None => format!("inbound-vip|{port}|http|{host}"),
    };
    flow.exchange.service = Some(service.clone());
    let tables = &flow.view.tables;
    let subset =
        match name {
            None => None,
            Some(name) => Some(tables.subset(key, name).cloned().ok_or_else(|| {
                Local::no_cluster(format!("service {key} has no subset {name:?}"))
            })?),
        };
    let rules = subset
        .as_ref()
        .map_or_else(|| tables.traffic_rules(key), |s| s.rules);
    Ok(Place::Cluster {
        service,
        port,
        subset,
        balancer: rules.balancer.unwrap_or_default(),
    })
}

/// A destination without a port means the service's only one, else the one that was asked for.
fn only_port(service: &Service) -> Option<u16> {
    let mut ports = service.ports.iter();
    match (ports.next(), ports.next()) {
        (Some((port, _)), None) => Some(port),
        _ => None,
    }
}

/// HTTP as the port declares it, whatever the caller speaks; where nothing is declared the endpoint
/// is taken to understand what its caller sent. Changing protocols is for HTTP/1.1 alone.
fn speak(place: &Place, session: &Session, asked: &Asked) -> upstream::Version {
    let declared = match place {
        Place::Pod(_) => session.declared(),
        Place::Cluster { service, port, .. } => service.protocol(*port),
    };
    let two = match declared {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => asked.clean.upgrade.is_none(),
        Some(AppProtocol::Http1 | AppProtocol::Tcp | AppProtocol::Tls) => false,
        None => asked.version == Version::HTTP_2,
    };
    if two {
        upstream::Version::H2
    } else {
        upstream::Version::H1
    }
}

/// Path, authority and headers as the endpoint gets them.
fn head<'a>(
    asked: &'a Asked,
    taken: Option<&Taken>,
    edits: &'a [&'a HeaderEdits],
    original: &str,
    speak: upstream::Version,
) -> Result<Head<'a>, Local> {
    let rewrite = taken.map(|t| &t.route().rewrite);
    let matched = taken.and_then(|t| t.block()).and_then(|b| b.uri.as_ref());
    let rewritten = rewrite.and_then(|r| r.path(&asked.clean.path, matched));
    let original = rewritten
        .as_ref()
        .and_then(|_| HeaderValue::from_str(original).ok());
    let authority = rewrite
        .and_then(|r| r.authority.as_ref())
        .or_else(|| edits.iter().find_map(|e| e.authority.as_ref()))
        .unwrap_or(&asked.clean.authority);
    let path = rewritten.as_deref().unwrap_or(&asked.clean.path);
    let full = match &asked.clean.query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let wrong = |_| Local::bad_request("invalid_rewrite");
    let path = PathAndQuery::try_from(full).map_err(wrong)?;
    let (uri, host) = if speak == upstream::Version::H2 {
        let authority = Authority::try_from(authority.as_str()).map_err(wrong)?;
        let mut parts = ::http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority);
        parts.path_and_query = Some(path);
        let uri = Uri::from_parts(parts);
        let uri = uri.map_err(|_| Local::bad_request("invalid_rewrite"))?;
        (uri, None)
    } else {
        let host =
            HeaderValue::from_str(authority).map_err(|_| Local::bad_request("invalid_rewrite"))?;
        (Uri::from(path), Some(host))
    };
    Ok(Head {
        asked,
        edits,
        uri,
        speak,
        original,
        host,
    })
}

/// How often and when to try again.
struct Tries {
    again: u32,
    per_try: Option<Duration>,
    backoff: Duration,
    conditions: Vec<String>,
}

impl Tries {
    fn new(rules: Option<&Retries>) -> Self {
        let conditions = rules.map_or("", |r| r.on.as_str());
        Self {
            again: rules.map_or(DEFAULT_RETRIES, |r| r.attempts),
            per_try: rules.and_then(|r| r.per_try),
            backoff: rules.and_then(|r| r.backoff).unwrap_or(BACKOFF),
            conditions: conditions
                .split(',')
                .map(|c| c.trim().to_owned())
                .filter(|c| !c.is_empty())
                .collect(),
        }
    }

    fn asks(&self, condition: &str) -> bool {
        self.conditions.iter().any(|c| c == condition)
    }

    fn status(&self, status: StatusCode) -> bool {
        let code = status.as_u16();
        (self.asks("5xx") && status.is_server_error())
            || (self.asks("gateway-error") && matches!(code, 502..=504))
            || (self.asks("retriable-4xx") && code == 409)
            || self.conditions.iter().any(|c| c.parse() == Ok(code))
    }

    fn reset(&self) -> bool {
        self.asks("reset") || self.asks("5xx") || self.asks("gateway-error")
    }

    fn wait(&self, attempt: u32) -> Duration {
        let step = self.backoff.saturating_mul(1 << attempt.min(4));
        step.mul_f64(f64::from(rand::random::<u32>()) / f64::from(u32::MAX))
    }
}

/// The parts of a flow that tries need.
struct Sending<'a> {
    flow: &'a mut Exchange,
    session: &'a Rc<Session>,
    view: &'a crate::world::View,
    caller: &'a crate::attribution::Attributed,
    standing: &'a Rc<Standing>,
}

/// Tries endpoints until one answers. A request of which nothing has left may always be tried
/// elsewhere; one without a body also under the route's conditions.
async fn tries(
    sending: Sending<'_>,
    place: Place,
    head: &Head<'_>,
    (body, empty): (Incoming, bool),
    rules: &Tries,
    deadline: Option<Instant>,
) -> Result<Response<Incoming>, Local> {
    let progress = sending.flow.progress.clone();
    let body_of = |body| RequestBody::new(body, progress.clone(), sending.standing.clone());
    let mut body = Some(body_of((!empty).then_some(body)));
    let mut tried: Vec<Str> = Vec::new();
    let mut attempt = 0;
    loop {
        let endpoint = sending.endpoint(&place, &tried)?;
        let admitted = sending.standing.goes_to(&endpoint);
        admitted.map_err(Local::denied)?;
        tried.push(endpoint.workload.uid.clone());
        sending.flow.busy = Some(sending.session.worker.turns.busy(&endpoint.workload.uid));
        sending.flow.endpoint = Some(endpoint.clone());
        let next = body.take().unwrap_or_else(|| body_of(None));
        let last = attempt >= rules.again;
        let outcome = sending
            .once(
                &endpoint,
                head.request(next),
                head.speak,
                rules.per_try,
                deadline,
            )
            .await;
        match outcome {
            Ok(response) if last || !empty || !rules.status(response.status()) => {
                return Ok(response);
            }
            Ok(_) => {}
            Err(_) if progress.broken.get() => {
                let mut local = Local::bad_request("downstream_remote_disconnect");
                local.reason = Reason::DownstreamReset;
                return Err(local);
            }
            Err(Failure::Deadline) => return Err(Local::timeout()),
            Err(Failure::Send(error)) => {
                let again = error.unsent.is_some() || (empty && rules.reset());
                if last || !again {
                    return Err(Local::upstream(error.reason, error.detail));
                }
                tracing::debug!(reason = %error.reason, "trying elsewhere: {}", error.detail);
                body = error.unsent.map(|request| request.into_body());
            }
        }
        tokio::time::sleep(rules.wait(attempt)).await;
        attempt += 1;
    }
}

enum Failure {
    Send(SendError),
    Deadline,
}

impl Sending<'_> {
    fn endpoint(&self, place: &Place, tried: &[Str]) -> Result<Endpoint, Local> {
        let Place::Cluster {
            service,
            port,
            subset,
            balancer,
        } = place
        else {
            let Place::Pod(endpoint) = place else {
                return Err(Local::no_endpoint("no endpoint".into()));
            };
            return Ok(endpoint.clone());
        };
        let wanted = Wanted {
            service,
            port: *port,
            subset: subset.as_ref(),
            balancer: *balancer,
            source: self.session.source(self.caller),
            tried,
            dice: rand::random(),
        };
        let turns = &self.session.worker.turns;
        turns
            .choose(self.view, &wanted)
            .map_err(|none: NoEndpoint| match none.reason {
                Reason::NoCluster => Local::no_cluster(none.detail),
                _ => Local::no_endpoint(none.detail),
            })
    }

    async fn once(
        &self,
        endpoint: &Endpoint,
        request: Request<RequestBody>,
        version: upstream::Version,
        per_try: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Result<Response<Incoming>, Failure> {
        let pool = &self.session.worker.pool;
        let send = pool.send(endpoint, version, request);
        let own = per_try.map(|t| Instant::now() + t);
        let limit = match (own, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let sent = match limit {
            None => send.await,
            Some(at) => match tokio::time::timeout_at(at, send).await {
                Ok(sent) => sent,
                Err(_) if deadline.is_some_and(|d| d <= at) => return Err(Failure::Deadline),
                Err(_) => Err(SendError {
                    reason: Reason::UpstreamTimeout,
                    detail: "one try took too long".to_owned(),
                    unsent: None,
                }),
            },
        };
        sent.map(|s| s.response).map_err(Failure::Send)
    }
}
