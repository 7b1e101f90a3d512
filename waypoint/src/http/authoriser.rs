//! Asking the authorisers of a rule about a request, before it goes anywhere.

mod messages;

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use isobar_route::{AuthProtocol, ExternalAuth, Granted, Ruling, Speak, TryFailure};
use isobar_state::AppProtocol;
use isobar_types::Str;

use super::forward::ended;
use super::pipeline::Flow;
use super::place::{Place, destination, waypoint};
use super::reply::Local;
use super::standing::{Asked, Side, Standing};
use super::upload::{Progress, RequestBody, Unread};
use crate::cluster::{Held, Load};
use crate::endpoint::Endpoint;
use crate::metrics::Authorised;
use crate::session::Session;
use crate::upstream::{Answer, How, SendError, Sent, Version};
use crate::world::View;

/// An authoriser's answer is waited for so long, all tries and the connection included.
const LIMIT: Duration = Duration::from_secs(10);
/// A body that is to be shown arrives as a whole within that.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Most bytes of an answer's body; a longer one is no answer.
const LONGEST: usize = 64 * 1024;
/// Endpoints that are tried where one cannot be reached: a request that arrived is not sent again.
const TRIES: usize = 3;

/// Asks all of them, in order. What they grant is what the request is from then on; what policies
/// judge is still what the caller sent.
///
/// # Errors
/// The answer for the caller, of the first that does not let the request on.
pub(super) async fn ask(flow: &mut Flow, all: &[ExternalAuth]) -> Result<(), Local> {
    for one in all {
        let Some(standing) = flow.exchange.standing.clone() else {
            // Unreachable: only what is permitted comes here.
            return Err(Local::denied("not_decided".to_owned()));
        };
        let ruled = tokio::select! {
            biased;
            () = standing.until_ending(Side::Reply) => None,
            ruling = rule(flow, &standing, one) => Some(ruling),
        };
        let Some(ruling) = ruled else {
            return Err(ended(&mut flow.exchange, &standing));
        };
        let (outcome, told) = match ruling? {
            Ruling::Pass(granted) => {
                grant(flow, &granted);
                flow.exchange.changes.granted.extend(granted.response);
                (Authorised::Allowed, Ok(()))
            }
            Ruling::Refuse(refused) => (Authorised::Refused, Err(Local::refused_outside(*refused))),
            Ruling::Unclear(why) => {
                tracing::debug!(
                    host = &*one.target.host,
                    "an authoriser says nothing: {why}"
                );
                (Authorised::Failed, Err(Local::not_ruled(why)))
            }
        };
        let metrics = &flow.session.worker.metrics;
        metrics.authorised(&one.target, outcome);
        told?;
        // What was decided may have taken its time.
        flow.view = flow.session.worker.world.view();
    }
    Ok(())
}

/// Shows the request to one authoriser.
///
/// # Errors
/// The answer for a request that cannot be shown to it.
async fn rule(
    flow: &mut Flow,
    standing: &Rc<Standing>,
    one: &ExternalAuth,
) -> Result<Ruling, Local> {
    let body = body(flow, one.max_body).await?;
    let question = Question {
        session: &flow.session,
        // The body may have taken its time.
        view: flow.session.worker.world.view(),
        asked: &flow.asked,
        standing,
        rule: one,
        body,
    };
    let asked = tokio::time::timeout(LIMIT, question.ask()).await;
    let answer = asked.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
    Ok(answer.unwrap_or_else(Ruling::Unclear))
}

/// The whole body, if it is to be shown and not too long for that. It is kept for the endpoint.
async fn body(flow: &mut Flow, most: usize) -> Result<Bytes, Local> {
    if most == 0 {
        return Ok(Bytes::new());
    }
    let progress = flow.exchange.progress.clone();
    if let Some(body) = flow.body.take()
        && !body.is_end_stream()
    {
        progress.takes(body, true);
    }
    let whole = in_time(poll_fn(|cx| progress.poll_whole(most, cx))).await;
    whole.map_err(|unread| match unread {
        Unread::TooLong => Local::body_too_long(),
        Unread::NoRoom => Local::no_room(),
        Unread::Broken => Local::caller_gone(),
        Unread::TooSlow => Local::body_too_slow(),
    })
}

/// Whoever sends slowly holds room that others need.
async fn in_time(whole: impl Future<Output = Result<Bytes, Unread>>) -> Result<Bytes, Unread> {
    let whole = tokio::time::timeout(ARRIVAL, whole).await;
    whole.unwrap_or(Err(Unread::TooSlow))
}

/// From here on the request is what the authoriser made of it.
fn grant(flow: &mut Flow, granted: &Granted) {
    if *granted == Granted::default() {
        return;
    }
    let mut asked = (*flow.asked).clone();
    granted.apply(&mut asked.headers);
    asked.clean.query = granted.query(asked.clean.query.take());
    let asked = Rc::new(asked);
    flow.exchange.asked = Some(asked.clone());
    flow.asked = asked;
}

/// One request and who is asked about it.
struct Question<'a> {
    session: &'a Rc<Session>,
    view: View,
    asked: &'a Asked,
    standing: &'a Rc<Standing>,
    rule: &'a ExternalAuth,
    body: Bytes,
}

impl Question<'_> {
    /// The answer; without one, why.
    async fn ask(&self) -> Result<Ruling, String> {
        let (session, view) = (self.session, &self.view);
        let from = (&**session, self.asked);
        let to = destination(from, view, None, Some(&self.rule.target));
        let to = to.map_err(|local| local.failure)?;
        // From a gateway callers' requests go through it too.
        let through = waypoint(session, view, &to).map_err(|local| local.failure)?;
        let hostname = to.service.key.hostname.clone();
        let declared = to.service.protocol(to.port);
        let place = Place::Cluster(to);
        let version = self.version(declared, &place);
        let how = match &through {
            Some(_) => How::default(),
            None => place.how(),
        };
        let _held = hold(&place)?;
        let mut tried: Vec<Str> = Vec::new();
        loop {
            let endpoint = match &through {
                Some(endpoint) => endpoint.clone(),
                None => self.endpoint(&place, &tried).await?,
            };
            let uid = endpoint.workload.uid.clone();
            let _busy = session.worker.turns.busy(&uid);
            let request = self.request(&hostname, version)?;
            let sent = session
                .worker
                .pool
                .send(&endpoint, version, Box::new(request), &how);
            match sent.await {
                Ok(sent) => return self.read(sent).await,
                Err(error) => tried.push(self.may_go_on(error, tried.len(), uid)?),
            }
        }
    }

    /// Another endpoint may be tried, if there was none that has seen the question.
    fn may_go_on(&self, error: SendError, before: usize, uid: Str) -> Result<Str, String> {
        let unseen = matches!(
            error.failure,
            TryFailure::BeforeRequest | TryFailure::Refused
        );
        if unseen && before + 1 < TRIES {
            Ok(uid)
        } else {
            Err(error.detail)
        }
    }

    /// gRPC is HTTP/2; otherwise what the port declares.
    fn version(&self, declared: Option<AppProtocol>, place: &Place) -> Version {
        let two = match self.rule.protocol {
            AuthProtocol::Grpc { .. } => true,
            AuthProtocol::Http { .. } => {
                matches!(declared, Some(AppProtocol::Http2 | AppProtocol::Grpc))
                    || place.how().limits.speak == Speak::Http2
            }
        };
        if two { Version::H2 } else { Version::H1 }
    }

    async fn endpoint(&self, place: &Place, tried: &[Str]) -> Result<Endpoint, String> {
        let to = match place {
            Place::Pod(endpoint) => return Ok(endpoint.clone()),
            Place::Cluster(to) => to,
        };
        let worker = &self.session.worker;
        // It is this waypoint that calls.
        let wanted = to.wanted(&worker.own_workload, tried);
        let chosen = worker.turns.choose(&self.view, &wanted).await;
        chosen.map_err(|none| none.detail)
    }

    fn request(&self, hostname: &str, version: Version) -> Result<Request<RequestBody>, String> {
        let made = match &self.rule.protocol {
            AuthProtocol::Grpc { .. } => {
                messages::check(self.session, self.asked, self.rule, &self.body, hostname)
            }
            AuthProtocol::Http { path, .. } => {
                messages::probe((self.asked, self.rule), path, &self.body, version)
            }
        };
        let (head, body) = made.map_err(|error| error.to_string())?.into_parts();
        let body =
            Progress::of(body, !self.body.is_empty()).ok_or("there is no room for the question")?;
        let body = body.next_try(self.standing.clone());
        Ok(Request::from_parts(head, body))
    }

    async fn read(&self, sent: Sent) -> Result<Ruling, String> {
        let Sent { response, stream } = sent;
        let ruling = match self.rule.protocol {
            AuthProtocol::Grpc { .. } => answered(response).await,
            AuthProtocol::Http { .. } => {
                let (head, body) = response.into_parts();
                let body = Limited::new(body, LONGEST).collect().await;
                let body = body.map_err(|error| format!("its answer broke off: {error}"))?;
                let (status, body) = (head.status.as_u16(), body.to_bytes().to_vec());
                Ok(Ruling::of_http(self.rule, status, &head.headers, body))
            }
        };
        drop(stream);
        ruling
    }
}

/// What came back over gRPC: its status stands at the end, or at the head where there is no message.
async fn answered(response: Response<Answer>) -> Result<Ruling, String> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("status {}", head.status));
    }
    let body = Limited::new(body, LONGEST).collect().await;
    let body = body.map_err(|error| format!("its answer broke off: {error}"))?;
    let end = body.trailers().unwrap_or(&head.headers);
    let status = end.get("grpc-status").map(|status| status.as_bytes());
    if status != Some(b"0") {
        let status = status.map(String::from_utf8_lossy);
        return Err(format!("gRPC status {}", status.unwrap_or("none".into())));
    }
    messages::response(&body.to_bytes()).map(Ruling::of_grpc)
}

/// One more request under way to it, if its limits allow that.
fn hold(place: &Place) -> Result<Option<Held>, String> {
    let Some((rules, cluster, _)) = place.limited() else {
        return Ok(None);
    };
    let held = cluster.hold(Load::Request, rules.limits().max_requests);
    let full = "a limit of the DestinationRule for it is reached";
    held.map(Some).map_err(|_| full.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_is_not_waited_for() {
        let late = in_time(std::future::pending()).await.unwrap_err();
        assert_eq!(late, Unread::TooSlow);
        assert_eq!(Local::body_too_slow().status, StatusCode::REQUEST_TIMEOUT);
        let there = in_time(async { Ok(Bytes::from_static(b"x")) }).await;
        assert_eq!(there, Ok(Bytes::from_static(b"x")));
    }
}
