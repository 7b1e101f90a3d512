use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use bytes::Bytes;
use http_body::Frame;
use isobar_route::{Action, Change, HeaderEdits, Subset, Taken};
use isobar_runtime::LocalScope;
use isobar_spans::Context;
use isobar_state::{Service, Workload};
use isobar_types::{Reason, Str};

use super::facts::{OfReply, OfRequest};
use super::reply;
use super::standing::{Asked, Standing};
use super::trace;
use super::upload::Progress;
use crate::access_log::{HttpLine, put_address, put_number};
use crate::attribution::Attributed;
use crate::cluster::Held;
use crate::endpoint::{Busy, Endpoint};
use crate::session::Session;
use crate::upstream::InUse;

/// The statuses there are in gRPC, up to UNAUTHENTICATED.
const GRPC_STATUSES: [&str; 17] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
];
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// One request and its answer, for the log line and the metrics written when it is over. Whatever
/// way it ends, dropping this reports it once.
pub struct Exchange {
    session: Rc<Session>,
    /// When the head had arrived.
    pub started: Instant,
    pub(crate) request: RequestFacts,
    /// The whole head, once it was found to be one.
    pub(super) asked: Option<Rc<Asked>>,
    pub(crate) progress: Rc<Progress>,
    pub(crate) caller: Option<Arc<Attributed>>,
    /// Set once the policies permitted the request.
    pub(crate) standing: Option<Rc<Standing>>,
    pub(crate) route: RouteName,
    /// What the route does to replies, those of this proxy too.
    pub(crate) changes: Changes,
    pub(crate) cluster: ClusterName,
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) busy: Option<Busy>,
    /// What it takes of the destination's limits.
    pub(crate) held: Holding,
    pub(crate) upstream_time: Option<Duration>,
    pub(crate) code: u16,
    pub(crate) grpc_status: Option<&'static str>,
    pub(crate) reason: Reason,
    pub(crate) delayed: bool,
    /// Another try was wanted, and there were none left.
    pub(crate) retries_exhausted: bool,
    pub(crate) detail: Cow<'static, str>,
    pub(crate) failure: String,
    pub(crate) response_head: usize,
    bytes_sent: u64,
    /// Its place in its trace, where the mesh wants spans.
    pub(super) trace: Option<Box<Context>>,
    /// Answered here: the reason is known.
    pub(crate) answered: bool,
    over: bool,
}

/// What a request takes of its destination's limits, until it is over.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    pub(crate) request: Option<Held>,
    pub(crate) connection: Option<Held>,
    pub(crate) retry: Option<Held>,
    pub(crate) stream: Option<InUse>,
}

/// What a route does to the head of a reply.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The rule; set once the caller may know of it.
    pub(crate) taken: Option<Taken>,
    /// Which of its destinations was chosen.
    pub(crate) destination: Option<usize>,
    /// For the page that asked from another origin.
    pub(crate) cors: Option<HeaderMap>,
    /// What rate limits tell the caller.
    pub(crate) rates: Option<HeaderMap>,
    /// What authorisers tell the caller of a request that they let on.
    pub(crate) granted: Vec<Change>,
}

/// The rule that took a request, by a name that is put together only for whoever reads it.
#[derive(Debug, Clone, Default)]
pub(crate) enum RouteName {
    /// None did.
    #[default]
    None,
    /// There are no rules.
    Default,
    Rule(Taken),
}

impl RouteName {
    /// Writes it at the end of `out`.
    pub(crate) fn put(&self, out: &mut String) {
        match self {
            Self::None => {}
            Self::Default => out.push_str("default"),
            Self::Rule(taken) => taken.put_name(out),
        }
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = String::new();
        self.put(&mut name);
        f.write_str(&name)
    }
}

/// Where a request goes, by Istio's name for it; put together only for whoever reads it.
#[derive(Debug, Clone, Default)]
pub(crate) enum ClusterName {
    /// Nowhere.
    #[default]
    None,
    /// To a pod at its own address.
    Pod(SocketAddr),
    /// To a service.
    Service {
        port: u16,
        subset: Option<Arc<Subset>>,
        host: Str,
    },
}

impl ClusterName {
    /// Writes it at the end of `out`.
    pub(crate) fn put(&self, out: &mut String) {
        match self {
            Self::None => {}
            Self::Pod(address) => {
                out.push_str("encap|");
                put_address(out, *address);
            }
            Self::Service { port, subset, host } => {
                out.push_str("inbound-vip|");
                put_number(out, (*port).into());
                out.push_str("|http");
                if let Some(subset) = subset {
                    out.push('/');
                    out.push_str(&subset.name);
                }
                out.push('|');
                out.push_str(host);
            }
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = String::new();
        self.put(&mut name);
        f.write_str(&name)
    }
}

/// What the log wants of the request's head, before it is changed.
#[derive(Debug, Clone)]
pub(crate) struct RequestFacts {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) version: Version,
    pub(crate) authority: String,
    pub(crate) forwarded_for: Option<HeaderValue>,
    pub(crate) user_agent: Option<HeaderValue>,
    pub(crate) grpc: bool,
    pub(crate) head: usize,
}

impl Exchange {
    pub(crate) fn new(session: Rc<Session>, request: RequestFacts) -> Self {
        Self {
            session,
            started: Instant::now(),
            request,
            asked: None,
            progress: Rc::default(),
            caller: None,
            standing: None,
            route: RouteName::None,
            changes: Changes::default(),
            cluster: ClusterName::None,
            service: None,
            endpoint: None,
            busy: None,
            held: Holding::default(),
            upstream_time: None,
            code: 0,
            grpc_status: None,
            // Until something better is known: whoever drops this went away.
            reason: Reason::DownstreamReset,
            delayed: false,
            retries_exhausted: false,
            detail: Cow::Borrowed(""),
            failure: String::new(),
            response_head: 0,
            bytes_sent: 0,
            trace: None,
            answered: false,
            over: false,
        }
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes_sent += bytes as u64;
    }

    /// Notes what passes of the response body.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "as a body's frame comes; the error is not looked at"
    )]
    pub(crate) fn frame<E>(&mut self, frame: Option<Result<&Frame<Bytes>, E>>) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.sent(data.len());
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.note_grpc_status(trailers);
                }
            }
            Some(Err(_)) => self.failed(Reason::UpstreamReset),
            None => self.complete(),
        }
    }

    /// Applies the rule's edits to a reply, then those of its destination.
    pub(super) fn edit(&self, headers: &mut HeaderMap) {
        let Some(taken) = &self.changes.taken else {
            return;
        };
        let route = taken.route();
        let destinations = match &route.action {
            Action::Forward(all) => &all[..],
            Action::Redirect(_) | Action::Direct(_) => &[],
        };
        // Where only one gets anything there is no choice to wait for.
        let mut used = destinations.iter().filter(|one| one.weight > 0);
        let only = used.next().filter(|_| used.next().is_none());
        let chosen = self.changes.destination.and_then(|at| destinations.get(at));
        let chosen = chosen.or(only);
        let alone = [&route.response];
        let both = chosen.map(|chosen| [&route.response, &chosen.response]);
        let edits: &[&HeaderEdits] = both.as_ref().map_or(&alone[..], |both| &both[..]);
        // Replies are told what the endpoint was told, where they ask for it.
        let mut request = None;
        if let Some(asked) = &self.asked
            && self.endpoint.is_some()
            && edits.iter().any(|edits| edits.is_made())
        {
            let facts = OfRequest::new(&self.session, asked, self.started, Some(taken));
            let sent = request.insert(asked.headers.clone());
            let own = chosen.map(|chosen| &chosen.request);
            let edits: Vec<_> = [Some(&route.request), own].into_iter().flatten().collect();
            HeaderEdits::apply(&edits, sent, &facts);
        }
        let facts = OfReply(self, request.as_ref());
        HeaderEdits::apply(edits, headers, &facts);
    }

    /// Adds what others than the rule tell the caller.
    pub(super) fn tell(&mut self, headers: &mut HeaderMap) {
        for change in self.changes.granted.drain(..) {
            change.apply(headers);
        }
        let more = [self.changes.cors.take(), self.changes.rates.take()];
        for more in more.into_iter().flatten() {
            headers.extend(more);
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn scope(&self) -> Rc<LocalScope> {
        self.session.worker.scope.clone()
    }

    /// Notes how a gRPC call ended.
    pub(crate) fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if !self.request.grpc {
            return;
        }
        if let Some(status) = headers.get(&GRPC_STATUS) {
            self.grpc_status = Some(known_status(status));
        }
    }

    /// The body is through; a reason noted before stays.
    pub(crate) fn complete(&mut self) {
        if self.reason == Reason::DownstreamReset && !self.answered {
            self.reason = Reason::Complete;
        }
    }

    pub(crate) fn failed(&mut self, reason: Reason) {
        self.reason = reason;
    }

    /// True if the rest may not follow; notes why as the end.
    pub(crate) fn is_ending(&mut self) -> bool {
        let Some(ending) = self.standing.as_ref().and_then(|s| s.ending()) else {
            return false;
        };
        self.detail = ending.detail().to_owned().into();
        ending.failure().clone_into(&mut self.failure);
        self.reason = ending.reason();
        true
    }

    /// What ends a response that may not go on: a status for gRPC callers, whose protocol has one at
    /// the end of the stream; nothing for others, who must see the stream break.
    pub(crate) fn last_frame(&mut self) -> Option<Frame<Bytes>> {
        if !self.request.grpc || self.request.version != Version::HTTP_2 {
            return None;
        }
        let (status, message) = match self.reason {
            Reason::PolicyWithdrawn => (StatusCode::FORBIDDEN, "RBAC: access denied"),
            Reason::Drained => (StatusCode::SERVICE_UNAVAILABLE, reply::DRAINED),
            _ => (StatusCode::SERVICE_UNAVAILABLE, reply::NOT_SERVED_BODY),
        };
        let code = reply::grpc_status(status);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(code));
        trailers.insert("grpc-message", HeaderValue::from_static(message));
        self.note_grpc_status(&trailers);
        Some(Frame::trailers(trailers))
    }

    /// Envoy's flags in its order, `-` for none.
    pub(crate) fn flags(&self) -> Cow<'static, str> {
        let flag = self.reason.flag();
        if !self.delayed && !self.retries_exhausted {
            return Cow::Borrowed(flag);
        }
        let after_delay = matches!(flag, "FI" | "UAEX" | "DC" | "RBAC" | "DPE" | "UPE");
        let mut all = Vec::with_capacity(3);
        if flag != "-" && !after_delay {
            all.push(flag);
        }
        if self.delayed {
            all.push(Reason::DelayInjected.flag());
        }
        if flag != "-" && after_delay {
            all.push(flag);
        }
        if self.retries_exhausted {
            all.push("URX");
        }
        Cow::Owned(all.join(","))
    }

    pub(crate) fn destination(&self) -> SocketAddr {
        self.session.addressed.destination
    }

    pub(crate) fn workload(&self) -> Option<&Arc<Workload>> {
        self.endpoint.as_ref().map(|e| &e.workload)
    }

    fn report(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let asked = self.request.head as u64 + self.progress.bytes.get();
        self.session.heads.over(asked, self.progress.pieces.get());
        // Cut from outside, without a last poll.
        if self.reason == Reason::DownstreamReset {
            self.is_ending();
        }
        let worker = &self.session.worker;
        let duration = self.started.elapsed();
        let flags = self.flags();
        let block = self.changes.taken.as_ref().and_then(Taken::block);
        if let Some(prefix) = block.map(|b| &b.stat_prefix).filter(|p| !p.is_empty()) {
            worker.metrics.counted(prefix, self.code);
        }
        let request = crate::metrics::Request {
            caller: self.caller.as_deref(),
            peer: self.session.peer.identity.as_ref(),
            service: self.service.as_ref(),
            workload: self.workload(),
            grpc: self.request.grpc,
            grpc_status: self.grpc_status,
            code: self.code,
            flags: &flags,
            duration,
            request_bytes: asked,
            response_bytes: self.response_head as u64 + self.bytes_sent,
        };
        worker.metrics.request(&request, &worker.recent);
        if let Some(context) = &self.trace {
            trace::record(self, context, &flags, duration);
        }
        if !worker.access_log.is_on() {
            return;
        }
        worker.access_log.http(&HttpLine {
            start: moment(self.started),
            request: &self.request,
            headers: self.asked.as_ref().map(|asked| &asked.headers),
            caller: self.session.peer.identity.as_ref(),
            own: &worker.world.own,
            code: self.code,
            flags: &flags,
            detail: &self.detail,
            failure: &self.failure,
            bytes_received: self.progress.bytes.get(),
            bytes_sent: self.bytes_sent,
            duration,
            upstream_time: self.upstream_time,
            upstream: self.endpoint.as_ref().map(|e| e.address),
            cluster: &self.cluster,
            local: self.destination(),
            remote: self.session.peer.address,
            route: &self.route,
        });
    }
}

/// The time of day at which something was, which most requests never ask for.
pub(super) fn moment(of: Instant) -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    now.checked_sub(of.elapsed()).unwrap_or(now)
}

/// A gRPC status as a label. An endpoint may write anything there; each text would be kept for ever.
fn known_status(value: &HeaderValue) -> &'static str {
    let code = value.to_str().ok().and_then(|text| text.parse().ok());
    let known = code.and_then(|code: usize| GRPC_STATUSES.get(code));
    known.copied().unwrap_or("unknown")
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.report();
    }
}
