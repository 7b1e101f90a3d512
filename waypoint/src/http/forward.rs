//! Sending a request on: destination, rewriting, endpoint, tries, response.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use ::http::header::{
    CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, SERVER, SET_COOKIE, TE,
    TRANSFER_ENCODING,
};
use ::http::uri::{Authority, InvalidUri, PathAndQuery, Scheme};
use ::http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use isobar_route::{
    Action, HeaderEdits, HttpRoute, Mirror, Retries, Rewrite, Speak, Taken, Weighted, choose,
};
use isobar_state::AppProtocol;
use isobar_types::Reason;

use super::authoriser;
use super::body::ReplyBody;
use super::exchange::Exchange;
use super::facts::OfRequest;
use super::limit::Limit;
use super::mirror;
use super::pipeline::{self, Flow};
use super::place::{Place, destination, place, sticky, waypoint};
use super::rate;
use super::received::Received;
use super::reply::{self, Local};
use super::sanitise;
use super::standing::{Asked, Side, Standing};
use super::stay::Stay;
use super::tries::Sending;
use super::upgrade;
use super::upload::RequestBody;
use crate::attribution::Attributed;
use crate::metrics::Mirrored;
use crate::session::Session;
use crate::upstream;
use crate::world::View;

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
/// Most answers take so long; their number needs no memory.
const FEW_MILLIS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

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
    host: Option<Host>,
}

/// The host that an endpoint is asked for.
enum Host {
    /// As the caller wrote it.
    Asked,
    Other(HeaderValue),
}

impl Head<'_> {
    fn names(&self, name: &HeaderName) -> bool {
        self.edits.iter().any(|edits| edits.names(name))
    }

    pub(super) fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut headers = self.asked.headers.clone();
        if self.asked.clean.expects {
            headers.remove(EXPECT);
        }
        if let Some(original) = &self.original {
            headers.insert(ORIGINAL_PATH, original.clone());
        }
        HeaderEdits::apply(self.edits, &mut headers, &self.facts);
        match &self.host {
            Some(host) => {
                if let Host::Other(host) = host {
                    headers.insert(HOST, host.clone());
                }
                let protocol = self.asked.clean.upgrade.as_ref();
                if let Some(protocol) = protocol.filter(|p| upgrade::is_websocket(p)) {
                    upgrade::ask(&mut headers, protocol);
                }
                // In HTTP/1.1 it is for one hop. The caller's own was removed, unless it was for this.
                if self.asked.version == Version::HTTP_2 || self.names(&TE) {
                    headers.remove(TE);
                }
                frame(&mut headers, &body);
            }
            None => {
                headers.remove(HOST);
                // Each is another: an index of them would drive out what comes again (RFC 7541 §7.1.3).
                if let Some(id) = headers.get_mut(sanitise::REQUEST_ID) {
                    id.set_sensitive(true);
                }
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

/// A body of unknown length goes in chunks.
fn frame(headers: &mut HeaderMap, body: &RequestBody) {
    let unknown = !body.is_end_stream() && body.size_hint().exact().is_none();
    if unknown && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Sends the request where the rule says, or where it was addressed to, and answers with what comes
/// back.
pub(super) async fn forward(mut flow: Box<Flow>, taken: Option<Taken>) -> Response<ReplyBody> {
    let taken = taken.as_ref();
    let route = taken.map(Taken::route);
    let stay = Stay::of(route, &flow.asked);
    let (chosen, mut place) = match admitted(&mut flow, taken, stay.shown).await {
        Ok(destined) => destined,
        Err(local) => return local.respond(flow.exchange),
    };
    if let (Some(to), Some(taken)) = (chosen.and_then(Weighted::redirect), taken) {
        return pipeline::redirected(to, &flow, taken).respond(flow.exchange);
    }
    let cookie = sticky(&mut place, &flow);
    let edits = edits_of(route, chosen);
    let (asked, session) = (flow.asked.clone(), flow.session.clone());
    let speak = speak(&place, &flow.session, &asked);
    let facts = OfRequest::new(&session, &asked, flow.exchange.started, taken);
    let rewrite = rewrite_of(route, chosen);
    let head = match head(facts, (&edits, rewrite), &flow.exchange.request.path, speak) {
        Ok(head) => head,
        Err(local) => return local.respond(flow.exchange),
    };
    let mut limit = limit_of(route, &flow.exchange);
    let rules = rules_of(route);
    let mirrors = mirrors_of(route, chosen);
    let upgrade = flow.upgrade.take();
    let upgrade = upgrade.filter(|_| asked.clean.upgrade.is_some());
    take_body(flow.body, &flow.exchange, speak, rules, &mirrors);
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
    let sent = {
        let tries = pin!(sending.tries(&head));
        standing.unless_ending(Side::Reply, tries).await
    };
    let sent = sent.unwrap_or_else(|| Err(ended(&mut flow.exchange, &standing)));
    let copies = Copies {
        session: &flow.session,
        view: &flow.view,
        caller: &flow.caller,
        asked: &asked,
        taken,
        edits: &edits,
        rewrite,
        standing: &standing,
    };
    copies.send(&mirrors, &flow.exchange, sent.as_ref().err());
    flow.exchange.progress.settle();
    match sent {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            upgrade::join(response, upgrade, flow.exchange)
        }
        Ok(mut response) => {
            stay.tell(chosen, &flow.exchange, response.headers_mut());
            pass_on(response, cookie, limit, flow.exchange)
        }
        Err(local) => local.respond(flow.exchange),
    }
}

/// As [`destined`], once the limits and authorisers of the destination let the request on.
async fn admitted<'a>(
    flow: &mut Flow,
    taken: Option<&'a Taken>,
    shown: Option<isobar_route::Session>,
) -> Result<(Option<&'a Weighted>, Place), Local> {
    let destined = destined(flow, taken.map(Taken::route), shown)?;
    if let Some(chosen) = destined.0 {
        if let Some(headers) = rate::ask_more(flow, chosen.limits(), taken)? {
            flow.exchange.changes.rates = Some(headers);
        }
        if !chosen.external_auth().is_empty() {
            Box::pin(authoriser::ask(flow, chosen.external_auth())).await?;
        }
    }
    Ok(destined)
}

/// The retries of a rule, or the mesh's where it says nothing.
fn rules_of(route: Option<&HttpRoute>) -> &Retries {
    let rules = route.and_then(|r| r.retries.as_ref());
    rules.unwrap_or_else(|| Retries::of_mesh())
}

/// What becomes of a request that may not go on.
pub(super) fn ended(exchange: &mut Exchange, standing: &Standing) -> Local {
    exchange.standing = None;
    let ending = standing.ending();
    ending.map_or_else(Local::caller_gone, Local::ending)
}

/// Header edits of the rule, then those of the destination that was chosen.
fn edits_of<'a>(
    route: Option<&'a HttpRoute>,
    chosen: Option<&'a Weighted>,
) -> Vec<&'a HeaderEdits> {
    let of_route = route.into_iter().map(|route| &route.request);
    of_route
        .chain(chosen.map(|chosen| &chosen.request))
        .collect()
}

/// The rewrite of the destination that was chosen, else that of the rule.
fn rewrite_of<'a>(
    route: Option<&'a HttpRoute>,
    chosen: Option<&'a Weighted>,
) -> Option<&'a Rewrite> {
    let own = chosen.and_then(Weighted::rewrite);
    own.or(route.map(|route| &route.rewrite))
}

/// Where copies go: those of the rule, and those of the destination that was chosen.
fn mirrors_of<'a>(route: Option<&'a HttpRoute>, chosen: Option<&'a Weighted>) -> Vec<&'a Mirror> {
    let of_route = route.into_iter().flat_map(|route| &route.mirrors);
    of_route
        .chain(chosen.into_iter().flat_map(Weighted::mirrors))
        .collect()
}

/// The time that all tries of a rule have.
fn limit_of(route: Option<&HttpRoute>, exchange: &Exchange) -> Option<Limit> {
    let timeout = route?.timeout?;
    Some(Limit::new(&exchange.progress, timeout))
}

/// Has the exchange send the caller's body, kept where a later try or a copy may need it again.
fn take_body(
    body: Option<Received>,
    exchange: &Exchange,
    speak: upstream::Version,
    rules: &Retries,
    mirrors: &[&Mirror],
) {
    // One that authorisers saw is kept already.
    if let Some(body) = body
        && !body.is_end_stream()
    {
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
    mut response: Response<upstream::Answer>,
    cookie: Option<HeaderValue>,
    limit: Option<Limit>,
    mut exchange: Box<Exchange>,
) -> Response<ReplyBody> {
    if let Some(cookie) = cookie {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    let took = exchange.started.elapsed();
    exchange.upstream_time = Some(took);
    finish_headers(response.headers_mut(), took);
    exchange.code = response.status().as_u16();
    exchange.edit(response.headers_mut());
    exchange.tell(response.headers_mut());
    exchange.detail = "via_upstream".into();
    exchange.response_head = reply::head_size(response.headers());
    exchange.note_grpc_status(response.headers());
    response.map(|body| ReplyBody::upstream(body, limit, exchange))
}

fn finish_headers(headers: &mut HeaderMap, took: Duration) {
    sanitise::clean_response(headers);
    headers.insert(SERVER, reply::SERVER_NAME);
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let usual = usize::try_from(millis)
        .ok()
        .and_then(|at| FEW_MILLIS.get(at));
    let value = usual.map_or_else(
        || HeaderValue::from(millis),
        |text| HeaderValue::from_static(text),
    );
    headers.insert(SERVICE_TIME, value);
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
    rewrite: Option<&'a Rewrite>,
    standing: &'a Rc<Standing>,
}

impl Copies<'_> {
    /// Sends those that dice choose, unless the request may not be where it was going either.
    fn send(&self, mirrors: &[&Mirror], exchange: &Exchange, failed: Option<&Local>) {
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
        let from = (&**session, self.asked);
        let to = destination(from, self.view, own, Some(&mirror.target)).ok()?;
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
        let facts = OfRequest::new(session, self.asked, exchange.started, self.taken);
        let edits = (self.edits, self.rewrite);
        let head = head(facts, edits, &exchange.request.path, speak).ok()?;
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

/// `path` with the query that was asked for. Most are as the caller wrote them, and not made again; an
/// empty path before a query (`http://host?a`) is: it reads as `/`, and is written as nothing.
fn full_path(asked: &Asked, path: &str) -> Result<PathAndQuery, InvalidUri> {
    let query = asked.clean.query.as_deref();
    let written = asked.uri.path_and_query();
    let same =
        |w: &&PathAndQuery| w.as_str().starts_with('/') && w.path() == path && w.query() == query;
    if let Some(written) = written.filter(same) {
        return Ok(written.clone());
    }
    PathAndQuery::try_from(match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    })
}

/// Path, authority and headers as the endpoint gets them.
fn head<'a>(
    facts: OfRequest<'a>,
    (edits, rewrite): (&'a [&'a HeaderEdits], Option<&Rewrite>),
    original: &str,
    speak: upstream::Version,
) -> Result<Head<'a>, Local> {
    let (asked, taken) = (facts.asked, facts.taken);
    let matched = taken.and_then(|t| t.block()).and_then(|b| b.uri.as_ref());
    let rewritten = match rewrite {
        Some(rewrite) => rewrite.path(&asked.clean.path, matched, asked.clean.normal),
        None => Ok(None),
    };
    let rewritten = rewritten.map_err(|_| Local::bad_request("invalid_rewrite"))?;
    let original = rewritten
        .as_ref()
        .and_then(|_| HeaderValue::from_str(original).ok());
    let authority = rewrite
        .and_then(|r| r.authority.as_ref())
        .or_else(|| edits.iter().find_map(|e| e.authority.as_ref()))
        .unwrap_or(&asked.clean.authority);
    let path = rewritten.as_deref().unwrap_or(&asked.clean.path);
    let wrong = |_| Local::bad_request("invalid_rewrite");
    let path = full_path(asked, path).map_err(wrong)?;
    let (uri, host) = if speak == upstream::Version::H2 {
        let written = asked.uri.authority().filter(|a| a.as_str() == authority);
        let authority = match written {
            Some(written) => written.clone(),
            None => Authority::try_from(authority.as_str()).map_err(wrong)?,
        };
        let mut parts = ::http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority);
        parts.path_and_query = Some(path);
        let uri = Uri::from_parts(parts);
        let uri = uri.map_err(|_| Local::bad_request("invalid_rewrite"))?;
        (uri, None)
    } else {
        let asked = asked.headers.get(HOST);
        let same = asked.is_some_and(|host| host.as_bytes() == authority.as_bytes());
        let host = if same && !edits.iter().any(|edits| edits.names(&HOST)) {
            Host::Asked
        } else {
            let host = HeaderValue::from_str(authority);
            Host::Other(host.map_err(|_| Local::bad_request("invalid_rewrite"))?)
        };
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
