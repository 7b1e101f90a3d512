//! The order in which one request is dealt with.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use ::http::header::{CONTENT_TYPE, HeaderValue};
use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use isobar_route::{
    AbortWith, Action, HttpDecision, Preflight, Redirect, RedirectFrom, Taken, match_http,
    observe_http,
};
use isobar_types::Reason;

use super::authoriser;
use super::body::ReplyBody;
use super::exchange::{Exchange, RequestFacts, RouteName};
use super::forward::forward;
use super::rate;
use super::received::Received;
use super::reply::{self, Local};
use super::sanitise;
use super::serve1::Upgrade;
use super::standing::{Asked, Standing};
use super::trace;
use crate::attribution::Attributed;
use crate::edge::{self, Instead};
use crate::observation;
use crate::session::Session;
use crate::target::Target;
use crate::world::View;

/// A request on its way through.
pub(super) struct Flow {
    pub(super) session: Rc<Session>,
    pub(super) view: View,
    pub(super) caller: Arc<Attributed>,
    pub(super) asked: Rc<Asked>,
    /// Taken once something of it is read.
    pub(super) body: Option<Received>,
    pub(super) upgrade: Option<Upgrade>,
    /// Boxed: it goes with the response, which is moved several times.
    pub(super) exchange: Box<Exchange>,
}

/// Answers one request. Whatever happens there is an answer, and one record of it.
pub(super) async fn handle(
    session: Rc<Session>,
    request: Request<Received>,
) -> Result<Response<ReplyBody>, Infallible> {
    // Not in one with what follows: what is matched on takes room for as long as that is awaited.
    let flow = match begin(session, request).await {
        Ok(flow) => flow,
        Err(response) => return Ok(response),
    };
    Ok(decide(flow).await)
}

/// What is to be known of a request before anything decides on it, or the answer that ends it here.
async fn begin(
    session: Rc<Session>,
    request: Request<Received>,
) -> Result<Box<Flow>, Response<ReplyBody>> {
    session.heads.arrived();
    let mut exchange = Box::new(Exchange::new(session.clone(), facts(&request)));
    let (mut parts, mut body) = request.into_parts();
    let upgrade = body.upgrade();
    if let Target::Listener(listener) = &session.addressed.target {
        edge::disclaim(&mut parts, listener, &session.peer);
    }
    let mut view = session.worker.world.view();
    let own = view.tables.waypoint();
    let normal = own.map(|own| own.paths).unwrap_or_default();
    let clean = match sanitise::clean(&mut parts, normal) {
        Ok(clean) => clean,
        Err(local) => return Err(local.respond(exchange)),
    };
    if let Some(with) = own.and_then(|own| own.tracing.as_ref()) {
        exchange.trace = Some(trace::begin(with, &mut parts.headers));
    }
    exchange.request.authority.clone_from(&clean.authority);
    let asked = Rc::new(Asked {
        clean,
        method: parts.method,
        version: parts.version,
        uri: parts.uri,
        headers: parts.headers,
    });
    exchange.asked = Some(asked.clone());
    let caller = match session.known_caller(&view) {
        Some(caller) => caller,
        None => {
            let caller = Box::pin(session.caller(&view)).await;
            // That may have waited: what is decided below sees the newest state.
            view = session.worker.world.view();
            caller
        }
    };
    exchange.caller = Some(caller.clone());
    exchange.service = session.addressed.service().cloned();
    if let Err(refusal) = session.still_served(&view) {
        // The next connection finds the way that holds now.
        session.leave.notify_one();
        return Err(Local::not_served(refusal.reason, refusal.detail).respond(exchange));
    }
    // Handed on from step to step: each would have room for a whole one of its own otherwise.
    Ok(Box::new(Flow {
        session,
        view,
        caller,
        asked,
        body: Some(body),
        upgrade,
        exchange,
    }))
}

fn facts(request: &Request<Received>) -> RequestFacts {
    let headers = request.headers();
    let target = request.uri();
    let path = target.path_and_query().map_or("/", |p| p.as_str());
    let [mut host, mut forwarded_for, mut user_agent, mut kind] = [None; 4];
    let mut head = path.len();
    // In one pass: each look by name would cost as much.
    for (name, value) in headers {
        head += reply::field_size(name, value);
        let place = match name.as_str() {
            "host" => &mut host,
            "x-forwarded-for" => &mut forwarded_for,
            "user-agent" => &mut user_agent,
            "content-type" => &mut kind,
            _ => continue,
        };
        // The first of several.
        place.get_or_insert(value);
    }
    let authority = target
        .authority()
        .map(|a| a.as_str())
        .or_else(|| host.and_then(|h| h.to_str().ok()));
    RequestFacts {
        method: request.method().clone(),
        path: path.to_owned(),
        version: request.version(),
        authority: authority.unwrap_or("").to_owned(),
        forwarded_for: forwarded_for.cloned(),
        user_agent: user_agent.cloned(),
        grpc: is_grpc(kind),
        head,
    }
}

fn is_grpc(kind: Option<&HeaderValue>) -> bool {
    let kind = kind.map(HeaderValue::as_bytes);
    let rest = kind.and_then(|k| k.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'+' | b';'))
}

/// Route, then policy: a caller that may not come in does not learn which routes there are.
async fn decide(mut flow: Box<Flow>) -> Response<ReplyBody> {
    let tables = &flow.view.tables;
    let mut instead = None;
    let decision = match &flow.session.addressed.target {
        Target::Service(service) => {
            let call = flow.asked.call(&flow.session);
            match_http(tables, &service.key, &call, &flow.caller.caller)
        }
        Target::Workload(_) => HttpDecision::Default,
        Target::Listener(listener) => {
            let call = flow.asked.call(&flow.session);
            let decided = edge::decide(&flow.view, listener, &call, &flow.caller.caller);
            instead = decided.instead;
            decided.rules
        }
    };
    observe(&flow);
    let verdict = Standing::begin(&flow.session, tables, &flow.caller, &flow.asked);
    match &decision {
        HttpDecision::Default => flow.exchange.route = RouteName::Default,
        HttpDecision::Taken(taken) => flow.exchange.route = RouteName::Rule(taken.clone()),
        HttpDecision::NoRoute => {}
    }
    match verdict {
        Ok(standing) => flow.exchange.standing = Some(standing),
        Err(denied) => {
            tracing::debug!(%denied, "a request is refused");
            return Local::denied(denied.code_detail()).respond(flow.exchange);
        }
    }
    match instead {
        None => {}
        Some(Instead::Https(place)) => return Local::moved(place).respond(flow.exchange),
        Some(Instead::Misdirected) => return Local::misdirected().respond(flow.exchange),
    }
    let taken = match decision {
        HttpDecision::Default => None,
        HttpDecision::NoRoute => return Local::no_route().respond(flow.exchange),
        HttpDecision::Taken(taken) => Some(taken),
    };
    // Counted once it may come in: nobody uses up the room of others by being refused.
    match rate::ask(&flow, taken.as_ref()) {
        Ok(headers) => flow.exchange.changes.rates = headers,
        Err(local) => return local.respond(flow.exchange),
    }
    match taken {
        None => forward(flow, None).await,
        Some(taken) => act(flow, taken).await,
    }
}

fn observe(flow: &Flow) {
    let (session, tables) = (&flow.session, &flow.view.tables);
    if !tables.observes() {
        return;
    }
    let service = session.addressed.service().map(|s| &s.key);
    let call = flow.asked.call(session);
    let observed = observe_http(tables, service, &call, &flow.caller.caller);
    let (method, path) = (call.method, call.path);
    observation::tell(
        session,
        &flow.caller,
        format_args!("{method} {path}"),
        observed,
    );
}

/// Faults, cross-origin rules, authorisers, then the rule's action: Envoy's filter order. Who asks
/// whether a page may ask shows no credentials yet.
async fn act(mut flow: Box<Flow>, taken: Taken) -> Response<ReplyBody> {
    let route = taken.route();
    flow.exchange.changes.taken = Some(taken.clone());
    if let Some(by) = route.fault.delay(rand::random()) {
        flow.exchange.delayed = true;
        tokio::time::sleep(by).await;
    }
    if let Some(with) = route.fault.abort(rand::random()) {
        return abort(with).respond(flow.exchange);
    }
    if let Some(cors) = &route.cors {
        match cors.check(&flow.asked.method, &flow.asked.headers) {
            Preflight::None => {}
            Preflight::Decorate(headers) => {
                // Other replies than those of endpoints are not for pages to read.
                let forwards = matches!(route.action, Action::Forward(_));
                flow.exchange.changes.cors = forwards.then_some(headers);
            }
            Preflight::Answer(headers) => {
                let mut local = Local::new(StatusCode::OK, Reason::Complete, "cors_preflight", "");
                *local.headers = headers;
                // The rule's edits are for what was asked, not for asking whether one may.
                flow.exchange.changes.taken = None;
                return local.respond(flow.exchange);
            }
        }
    }
    if !route.external_auth.is_empty() {
        let asked = Box::pin(authoriser::ask(&mut flow, &route.external_auth)).await;
        if let Err(local) = asked {
            return local.respond(flow.exchange);
        }
    }
    match &route.action {
        Action::Redirect(to) => redirected(to, &flow, &taken).respond(flow.exchange),
        Action::Direct(direct) => {
            let status = StatusCode::from_u16(direct.status).unwrap_or(StatusCode::OK);
            let mut local = Local::new(status, Reason::Complete, "direct_response", "");
            local.body = Bytes::copy_from_slice(&direct.body);
            local.respond(flow.exchange)
        }
        Action::Forward(_) => forward(flow, Some(taken)).await,
    }
}

/// Tells the caller where to ask instead.
pub(super) fn redirected(to: &Redirect, flow: &Flow, taken: &Taken) -> Local {
    let clean = &flow.asked.clean;
    let place = to.location(&RedirectFrom {
        scheme: clean.scheme,
        authority: &clean.authority,
        path: &clean.path,
        query: clean.query.as_deref(),
        port: flow.session.addressed.destination.port(),
        matched: taken.block().and_then(|block| block.uri.as_ref()),
    });
    let status = StatusCode::from_u16(to.code).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    let mut local = Local::new(status, Reason::Complete, "direct_response", "");
    if let Ok(place) = HeaderValue::from_str(&place) {
        local.headers.insert(::http::header::LOCATION, place);
    }
    local
}

fn abort(with: AbortWith) -> Local {
    match with {
        AbortWith::Http(code) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            let reason = Reason::FaultInjected;
            Local::new(status, reason, "fault_filter_abort", "fault filter abort")
        }
        AbortWith::Grpc(code) => {
            let reason = Reason::FaultInjected;
            let mut local = Local::new(StatusCode::OK, reason, "fault_filter_abort", "");
            let kind = HeaderValue::from_static("application/grpc");
            local.headers.insert(CONTENT_TYPE, kind);
            local.headers.insert("grpc-status", HeaderValue::from(code));
            local
        }
    }
}
