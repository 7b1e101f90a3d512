//! Sending a request on: destination, rewriting, endpoint, tries, response.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, SERVER, SET_COOKIE, TE,
    TRANSFER_ENCODING,
};
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use isobar_route::{
    Action, HashKey, HeaderEdits, HttpRoute, Mirror, Retries, Speak, Subset, Taken,
    Target as RouteTarget, TrafficRules, Weighted, choose,
};
use isobar_state::{AppProtocol, Service, Workload};
use isobar_types::{Reason, Str};

use super::body::ReplyBody;
use super::exchange::Exchange;
use super::facts::OfRequest;
use super::limit::Limit;
use super::mirror;
use super::pipeline::Flow;
use super::reply::{self, Local};
use super::sanitise;
use super::standing::{Asked, Side, Standing};
use super::stay::Stay;
use super::tries::Sending;
use super::upgrade;
use super::upload::RequestBody;
use crate::attribution::Attributed;
use crate::cluster::Cluster;
use crate::edge;
use crate::endpoint::{Endpoint, Wanted};
use crate::metrics::Mirrored;
use crate::session::Session;
use crate::target::Target;
use crate::upstream::{self, How, Tls};
use crate::world::View;

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// Where the tries may go.
pub(super) enum Place {
    Pod(Endpoint),
    Cluster(Destination),
}

/// A service or subset, and what its rules say.
pub(super) struct Destination {
    pub(super) service: Arc<Service>,
    pub(super) port: u16,
    subset: Option<Arc<Subset>>,
    rules: Arc<TrafficRules>,
    cluster: Option<Arc<Cluster>>,
    hash: Option<u64>,
    dialled: Option<IpAddr>,
    session: Option<u64>,
}

impl Destination {
    /// A choice among all its endpoints.
    pub(super) fn wanted<'a>(&'a self, source: &'a Workload, tried: &'a [Str]) -> Wanted<'a> {
        Wanted {
            service: &self.service,
            port: self.port,
            subset: self.subset.as_deref(),
            rules: &self.rules,
            cluster: self.cluster.as_ref(),
            hash: self.hash,
            source,
            tried,
            remote: false,
            dialled: self.dialled,
            session: self.session,
            dice: rand::random(),
        }
    }

    fn how(&self) -> How {
        How {
            limits: self.rules.limits(),
            cluster: self.cluster.clone(),
            tls: self.rules.tls().map(|rules| Tls {
                rules: rules.clone(),
                host: self.service.key.hostname.clone(),
            }),
        }
    }
}

impl Place {
    /// Rules and memory, where there are limits or outliers to look at.
    pub(super) fn limited(&self) -> Option<(&TrafficRules, &Arc<Cluster>, &Service)> {
        let Self::Cluster(to) = self else {
            return None;
        };
        Some((&to.rules, to.cluster.as_ref()?, &to.service))
    }

    pub(super) fn how(&self) -> How {
        match self {
            Self::Pod(_) => How::default(),
            Self::Cluster(to) => to.how(),
        }
    }
}

/// The head that every try sends. What the caller asked stays as it was, for policies to be asked
/// again; each try edits its own copy.
pub(super) struct Head<'a> {
    asked: &'a Asked,
    edits: &'a [&'a HeaderEdits],
    facts: OfRequest<'a>,
    uri: Uri,
    pub(super) speak: upstream::Version,
    /// The path before it was rewritten.
    original: Option<HeaderValue>,
    /// HTTP/2 has it in its target.
    host: Option<HeaderValue>,
}

impl Head<'_> {
    pub(super) fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut headers = self.asked.headers.clone();
        headers.remove(EXPECT);
        if let Some(original) = &self.original {
            headers.insert(ORIGINAL_PATH, original.clone());
        }
        HeaderEdits::apply(self.edits, &mut headers, &self.facts);
        match &self.host {
            Some(host) => {
                headers.insert(HOST, host.clone());
                let protocol = self.asked.clean.upgrade.as_ref();
                if let Some(protocol) = protocol.filter(|p| upgrade::is_websocket(p)) {
                    upgrade::ask(&mut headers, protocol);
                }
                // In HTTP/1.1 it is for one hop.
                headers.remove(TE);
                frame(&mut headers, &body);
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

/// A body of unknown length goes in chunks: left alone, hyper takes a GET to have none.
fn frame(headers: &mut HeaderMap, body: &RequestBody) {
    let unknown = !body.is_end_stream() && body.size_hint().exact().is_none();
    if unknown && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Sends the request where the rule says, or where it was addressed to, and answers with what comes
/// back.
pub(super) async fn forward(mut flow: Flow, taken: Option<Taken>) -> Response<ReplyBody> {
    let route = taken.as_ref().map(Taken::route);
    let stay = Stay::of(route, &flow.asked);
    let (chosen, mut place) = match destined(&mut flow, route, stay.shown) {
        Ok(destined) => destined,
        Err(local) => return local.respond(flow.exchange),
    };
    let cookie = sticky(&mut place, &flow);
    let of_route = route.map(|r| &r.request).into_iter();
    let edits: Vec<&HeaderEdits> = of_route.chain(chosen.map(|c| &c.request)).collect();
    let (asked, session) = (flow.asked.clone(), flow.session.clone());
    let taken = taken.as_ref();
    let speak = speak(&place, &flow.session, &asked);
    let facts = OfRequest::new(&session, &asked, flow.exchange.at, taken);
    let head = match head(facts, &edits, &flow.exchange.request.path, speak) {
        Ok(head) => head,
        Err(local) => return local.respond(flow.exchange),
    };
    let mut limit = limit_of(route, &flow.exchange);
    let rules = rules_of(route);
    let mirrors = route.map_or(&[][..], |r| &r.mirrors[..]);
    let changes = asked.clean.upgrade.is_some();
    let upgrade = flow.upgrade.take().filter(|_| changes);
    take_body(flow.body, &flow.exchange, speak, rules, mirrors);
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
        place: &place,
        rules,
        limit: limit.as_mut(),
    };
    let sent = tokio::select! {
        biased;
        () = standing.until_ending(Side::Reply) => {
            flow.exchange.standing = None;
            Err(standing.ending().map_or_else(Local::caller_gone, Local::ending))
        }
        sent = sending.tries(&head) => sent,
    };
    let copies = Copies {
        session: &flow.session,
        view: &flow.view,
        caller: &flow.caller,
        asked: &asked,
        taken,
        edits: &edits,
        standing: &standing,
    };
    copies.send(mirrors, &flow.exchange, sent.as_ref().err());
    flow.exchange.progress.settle();
    let mut response = match sent {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            return upgrade::join(response, upgrade, flow.exchange);
        }
        Ok(response) => response,
        Err(local) => return local.respond(flow.exchange),
    };
    if let Some(cookie) = cookie {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    stay.tell(chosen, &flow.exchange, response.headers_mut());
    pass_on(response, limit, flow.exchange)
}

/// The retries of a rule, or the mesh's where it says nothing.
fn rules_of(route: Option<&HttpRoute>) -> &Retries {
    let rules = route.and_then(|r| r.retries.as_ref());
    rules.unwrap_or_else(|| Retries::of_mesh())
}

/// The time that all tries of a rule have.
fn limit_of(route: Option<&HttpRoute>, exchange: &Exchange) -> Option<Limit> {
    let timeout = route?.timeout?;
    Some(Limit::new(&exchange.progress, timeout))
}

/// Has the exchange send the caller's body, kept where a later try or a copy may need it again.
fn take_body(
    body: Incoming,
    exchange: &Exchange,
    speak: upstream::Version,
    rules: &Retries,
    mirrors: &[Mirror],
) {
    if !body.is_end_stream() {
        let h2 = speak == upstream::Version::H2;
        let keep = rules.may_resend(h2, exchange.request.grpc) || !mirrors.is_empty();
        exchange.progress.takes(body, keep);
    }
}

/// The destination that the rule and its weights choose, and what is there.
fn destined<'a>(
    flow: &mut Flow,
    route: Option<&'a HttpRoute>,
    shown: Option<isobar_route::Session>,
) -> Result<(Option<&'a Weighted>, Place), Local> {
    let before = route.zip(shown).and_then(|(r, shown)| before(r, shown));
    let chosen = match before {
        Some(before) => Some(before),
        None => route.map(weighted).transpose()?.flatten(),
    };
    flow.exchange.changes.destination = chosen.map(|(at, _)| at);
    let chosen = chosen.map(|(_, chosen)| chosen);
    let mut place = place(flow, chosen.map(|c| &c.target))?;
    if let Place::Cluster(to) = &mut place {
        to.session = before.and(shown).map(|shown| shown.endpoint);
    }
    Ok((chosen, place))
}

/// The destination that a session was with, unless it gets nothing any more.
fn before(route: &HttpRoute, shown: isobar_route::Session) -> Option<(usize, &Weighted)> {
    let Action::Forward(all) = &route.action else {
        return None;
    };
    let is = |one: &Weighted| {
        one.weight > 0 && isobar_route::Session::destination(&one.target) == shown.destination
    };
    all.iter().enumerate().find(|(_, one)| is(one))
}

/// One of a rule's destinations with its place, by weight; `None` where the rule does not forward.
fn weighted(route: &HttpRoute) -> Result<Option<(usize, &Weighted)>, Local> {
    let Action::Forward(all) = &route.action else {
        return Ok(None);
    };
    let chosen = choose(all, rand::random());
    let none = || Local::no_cluster("every weight is 0".into());
    chosen.map(Some).ok_or_else(none)
}

/// The endpoint's response as the caller gets it.
fn pass_on(
    mut response: Response<Incoming>,
    limit: Option<Limit>,
    mut exchange: Exchange,
) -> Response<ReplyBody> {
    let took = exchange.started.elapsed();
    exchange.upstream_time = Some(took);
    finish_headers(response.headers_mut(), took);
    exchange.code = response.status().as_u16();
    exchange.edit(response.headers_mut());
    for more in [exchange.changes.cors.take(), exchange.changes.rates.take()] {
        response.headers_mut().extend(more.unwrap_or_default());
    }
    exchange.detail = "via_upstream".to_owned();
    exchange.response_head = reply::head_size(response.headers());
    exchange.note_grpc_status(response.headers());
    response.map(|body| ReplyBody::upstream(body, limit, exchange))
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
        (Target::Service(service), _) => Some(service.clone()),
        (Target::Listener(_), _) => None,
    };
    let to = destination(&flow.session, &flow.view, own.as_deref(), target)?;
    let (port, host) = (to.port, &to.service.key.hostname);
    flow.exchange.cluster = match &to.subset {
        Some(subset) => format!("inbound-vip|{port}|http/{}|{host}", subset.name),
        None => format!("inbound-vip|{port}|http|{host}"),
    };
    flow.exchange.service = Some(to.service.clone());
    let waypoint = waypoint(&flow.session, &flow.view, &to)?;
    Ok(waypoint.map_or(Place::Cluster(to), Place::Pod))
}

/// A pod of the waypoint that callers from outside reach this destination through, where they do.
fn waypoint(session: &Session, view: &View, to: &Destination) -> Result<Option<Endpoint>, Local> {
    let Target::Listener(_) = session.addressed.target else {
        return Ok(None);
    };
    let through = edge::through(&session.worker, view, &to.service, to.port);
    through.map_err(|(reason, why)| Local::no_waypoint(reason, why))
}

/// The service that a target names, or the one that was addressed, with its rules.
fn destination(
    session: &Session,
    view: &View,
    own: Option<&Service>,
    target: Option<&RouteTarget>,
) -> Result<Destination, Local> {
    if let Some(status) = target.and_then(|t| t.refuse) {
        return Err(Local::refused(status, target.map_or("", |t| &*t.host)));
    }
    let key = match target {
        None => own
            .map(|own| &own.key)
            .ok_or_else(|| Local::no_cluster("no destination is named".into()))?,
        Some(target) => target.service.as_ref().ok_or_else(|| {
            Local::no_cluster(format!("the destination {:?} is not known", &*target.host))
        })?,
    };
    let service = view
        .snapshot
        .service(key)
        .cloned()
        .ok_or_else(|| Local::no_cluster(format!("service {key} is not known")))?;
    let asked = session.addressed.destination.port();
    let ports = service.ports.iter().map(|(port, _)| port);
    let port = target.map_or(asked, |target| target.port_of(ports, asked));
    let name = target.and_then(|t| t.subset.as_deref());
    let tables = &view.tables;
    let subset =
        match name {
            None => None,
            Some(name) => Some(tables.subset(key, name).cloned().ok_or_else(|| {
                Local::no_cluster(format!("service {key} has no subset {name:?}"))
            })?),
        };
    let rules = tables.traffic(key, subset.as_deref(), port).clone();
    let turns = &session.worker.turns;
    let cluster = turns.cluster(&rules, &service, subset.as_deref(), port);
    Ok(Destination {
        dialled: session.addressed.dialled(&service),
        service,
        port,
        subset,
        rules,
        cluster,
        hash: None,
        session: None,
    })
}

/// Finds what of the request decides where it goes, if something does. The `set-cookie` of a caller
/// that had no cookie yet.
fn sticky(place: &mut Place, flow: &Flow) -> Option<HeaderValue> {
    let Place::Cluster(to) = place else {
        return None;
    };
    let key = to.rules.balancing.as_ref()?.hash.as_ref()?;
    let asked = &flow.asked;
    let ip = flow.session.peer.address.ip();
    to.hash = key.of(&asked.headers, asked.clean.query.as_deref(), ip);
    let HashKey::Cookie(cookie) = key else {
        return None;
    };
    let given = cookie.give(rand::random()).filter(|_| to.hash.is_none());
    let (hash, header) = given?;
    to.hash = Some(hash);
    Some(header)
}

/// What copies of a request are made from.
struct Copies<'a> {
    session: &'a Rc<Session>,
    view: &'a View,
    caller: &'a Attributed,
    asked: &'a Asked,
    taken: Option<&'a Taken>,
    /// Of the rule and the destination that the request itself goes to.
    edits: &'a [&'a HeaderEdits],
    standing: &'a Rc<Standing>,
}

impl Copies<'_> {
    /// Sends those that dice choose, unless the request may not be where it was going either.
    fn send(&self, mirrors: &[Mirror], exchange: &Exchange, failed: Option<&Local>) {
        let denied = failed.is_some_and(|local| local.reason == Reason::PolicyDenied);
        if denied || self.standing.ending().is_some() {
            return;
        }
        let chosen = mirrors.iter().filter(|m| m.takes(rand::random()));
        for mirror in chosen {
            if self.one(mirror, exchange).is_none() {
                self.session.worker.metrics.mirrored(Mirrored::LeftOut);
            }
        }
    }

    fn one(&self, mirror: &Mirror, exchange: &Exchange) -> Option<()> {
        let session = self.session;
        let own = session.addressed.service();
        let own = own.map(|own| &**own);
        let to = destination(session, self.view, own, Some(&mirror.target)).ok()?;
        // No copy goes around a waypoint that the request itself would go through.
        let (endpoint, place) = match waypoint(session, self.view, &to).ok()? {
            Some(waypoint) => (waypoint.clone(), Place::Pod(waypoint)),
            None => {
                let source = session.source(self.caller);
                let endpoint = mirror::endpoint(session, &to.wanted(source, &[]))?;
                (endpoint, Place::Cluster(to))
            }
        };
        let how = place.how();
        let speak = speak(&place, session, self.asked);
        let facts = OfRequest::new(session, self.asked, exchange.at, self.taken);
        let head = head(facts, self.edits, &exchange.request.path, speak).ok()?;
        let body = exchange.progress.whole()?.next_try(self.standing.clone());
        mirror::send(session, endpoint, speak, head.request(body), how);
        Some(())
    }
}

/// HTTP as the port declares it, whatever the caller speaks; where nothing is declared the endpoint
/// is taken to understand what its caller sent. Changing protocols is for HTTP/1.1 alone.
fn speak(place: &Place, session: &Session, asked: &Asked) -> upstream::Version {
    let declared = match place {
        Place::Pod(_) => session.declared(),
        Place::Cluster(to) => to.service.protocol(to.port),
    };
    let wants = place.how().limits.speak;
    let two = match declared {
        _ if asked.clean.upgrade.is_some() => false,
        _ if wants == Speak::AsCaller => asked.version == Version::HTTP_2,
        Some(AppProtocol::Http1) | None if wants == Speak::Http2 => true,
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => true,
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
    facts: OfRequest<'a>,
    edits: &'a [&'a HeaderEdits],
    original: &str,
    speak: upstream::Version,
) -> Result<Head<'a>, Local> {
    let (asked, taken) = (facts.asked, facts.taken);
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
        facts,
        uri,
        speak,
        original,
        host,
    })
}
