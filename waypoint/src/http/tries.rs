//! Sending one request, as often as its route's retry policy asks for.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use ::http::{HeaderValue, Response};
use isobar_route::{Retries, TryFailure};
use isobar_types::{Reason, Str};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::forward::Head;
use super::limit::Limit;
use super::place::Place;
use super::reply::Local;
use super::standing::Standing;
use super::upload::RequestBody;
use crate::attribution::Attributed;
use crate::cluster::{Held, Load, Overflow};
use crate::endpoint::{Endpoint, NoEndpoint, Wanted};
use crate::metrics::Retried;
use crate::outlier::Outcome;
use crate::resolved::is_named_by_caller;
use crate::session::Session;
use crate::upstream::{Answer, How, SendError, Sent, Version};
use crate::world::View;

/// The parts of a flow that tries need.
pub(super) struct Sending<'a> {
    pub(super) flow: &'a mut Exchange,
    pub(super) session: &'a Rc<Session>,
    pub(super) view: &'a View,
    pub(super) caller: &'a Attributed,
    pub(super) standing: &'a Rc<Standing>,
    pub(super) place: &'a Place,
    pub(super) rules: &'a Retries,
    /// For all tries and the waits between them.
    pub(super) limit: Option<&'a mut Limit>,
}

/// Why a try has no response.
enum Failure {
    Send(SendError),
    /// The try's own time is over.
    TryTimeout,
    /// The time of the whole request is over.
    Deadline,
    /// The endpoint's policies do not let the caller in.
    Denied(String),
    /// A limit of the destination is reached.
    Overflow,
}

impl Failure {
    const fn kind(&self) -> Option<TryFailure> {
        match self {
            Self::Send(error) => Some(error.failure),
            Self::TryTimeout => Some(TryFailure::Reset),
            Self::Deadline | Self::Denied(_) | Self::Overflow => None,
        }
    }

    fn answer(self, again: bool) -> Local {
        match self {
            Self::Send(error) => Local::upstream(error.reason, error.detail, again),
            Self::TryTimeout => Local::try_timeout(),
            Self::Deadline => Local::timeout(),
            Self::Denied(why) => Local::denied(why),
            Self::Overflow => Local::overflow(),
        }
    }
}

impl Sending<'_> {
    /// Tries endpoints until one gives an answer that the policy is content with.
    pub(super) async fn tries(mut self, head: &Head<'_>) -> Result<Response<Answer>, Local> {
        let progress = self.flow.progress.clone();
        let mut tried: Vec<Str> = Vec::new();
        let mut retry = 0;
        loop {
            let endpoint = self.endpoint(&tried).await?;
            let outcome = self.once(&endpoint, head).await;
            let wanted = match &outcome {
                Ok(response) => {
                    let rules = self.rules;
                    rules.wants_other_than(response.status(), response.headers())
                }
                Err(_) if progress.broken.get() => return Err(Local::caller_gone()),
                Err(failure) => failure.kind().is_some_and(|f| self.rules.wants_after(f)),
            };
            if !wanted || !self.may_retry(retry) {
                let told = outcome.map_err(|failure| failure.answer(retry > 0));
                if retry > 0 && told.is_ok() && !wanted {
                    self.count(Retried::Answered);
                }
                return told;
            }
            if let Err(Failure::Send(error)) = &outcome {
                tracing::debug!(reason = %error.reason, "trying elsewhere: {}", error.detail);
            }
            // The connection of a response that nobody wants must not wait for its body, and what
            // the caller sends from here on is for the next try.
            drop(outcome);
            progress.end_try();
            if self.rules.other_hosts && !tried.contains(&endpoint.workload.uid) {
                tried.push(endpoint.workload.uid.clone());
            }
            self.count(Retried::Again);
            self.wait(retry).await?;
            retry += 1;
        }
    }

    /// True if there is another try, of this request and of the destination.
    fn may_retry(&mut self, retry: u32) -> bool {
        if !self.flow.progress.can_send() {
            self.count(Retried::BodyGone);
            return false;
        }
        if retry >= self.rules.attempts {
            self.flow.retries_exhausted = true;
            self.count(Retried::Exhausted);
            return false;
        }
        let place = self.place;
        let Some((rules, cluster, service)) = place.limited() else {
            return true;
        };
        // The place of the retry before is free again.
        self.flow.held.retry = None;
        match cluster.retry(&rules.limits(), rules.retry_budget.as_ref()) {
            Ok(held) => self.flow.held.retry = Some(held),
            Err(Overflow(limit)) => {
                self.session.worker.metrics.overflowed(service, limit);
                self.count(Retried::Overflow);
                return false;
            }
        }
        true
    }

    fn count(&self, what: Retried) {
        self.session.worker.metrics.retried(what);
    }

    async fn wait(&self, retry: u32) -> Result<(), Local> {
        let wake = Instant::now() + self.rules.wait(retry, rand::random());
        let limit = self.limit.as_ref().and_then(|limit| limit.at());
        match limit.filter(|limit| *limit <= wake) {
            Some(limit) => {
                tokio::time::sleep_until(limit).await;
                Err(Local::timeout())
            }
            None => {
                tokio::time::sleep_until(wake).await;
                Ok(())
            }
        }
    }

    async fn endpoint(&self, tried: &[Str]) -> Result<Endpoint, Local> {
        let cluster = match self.place {
            Place::Pod(endpoint) => return Ok(endpoint.clone()),
            Place::Cluster(cluster) => cluster,
        };
        let wanted = Wanted {
            remote: self.rules.remote_localities,
            ..cluster.wanted(self.session.source(self.caller), tried)
        };
        let turns = &self.session.worker.turns;
        let chosen = turns.choose(self.view, &wanted).await;
        chosen.map_err(|none: NoEndpoint| match none.reason {
            Reason::NoCluster => Local::no_cluster(none.detail),
            _ => Local::no_endpoint(none.detail),
        })
    }

    async fn once(
        &mut self,
        endpoint: &Endpoint,
        head: &Head<'_>,
    ) -> Result<Response<Answer>, Failure> {
        let admitted = self.standing.goes_to(self.view, endpoint);
        admitted.map_err(Failure::Denied)?;
        self.flow.busy = Some(self.session.worker.turns.busy(&endpoint.workload.uid));
        self.flow.endpoint = Some(endpoint.clone());
        self.take_place()?;
        let body = self.flow.progress.next_try(self.standing.clone());
        let how = How {
            alone: self.flow.request.version != ::http::Version::HTTP_2,
            ..self.place.how()
        };
        let mut own = self
            .rules
            .per_try
            .map(|t| Limit::new(&self.flow.progress, t));
        let mut whole = self.limit.take();
        let sent = {
            let mut send = pin!(self.send(endpoint, head, body, &how));
            poll_fn(|cx| {
                if let Poll::Ready(sent) = send.as_mut().poll(cx) {
                    return Poll::Ready(sent);
                }
                // One timer: the later of two limits is not reached before the other.
                let (limit, failure) = match (whole.as_deref_mut(), own.as_mut()) {
                    (None, None) => return Poll::Pending,
                    (Some(whole), None) => (whole, Failure::Deadline),
                    (Some(whole), Some(own)) if !own.is_before(whole) => (whole, Failure::Deadline),
                    (_, Some(own)) => (own, Failure::TryTimeout),
                };
                limit.poll_reached(cx).map(|()| Err(failure))
            })
            .await
        };
        self.limit = whole;
        self.note(endpoint, &sent);
        let (sent, connection) = sent?;
        self.flow.held.connection = connection;
        self.flow.held.stream = sent.stream;
        Ok(sent.response)
    }

    /// One more request under way, if the destination's limit allows it.
    fn take_place(&mut self) -> Result<(), Failure> {
        let held = &mut self.flow.held;
        (held.connection, held.stream) = (None, None);
        let place = self.place;
        let Some((rules, cluster, _)) = place.limited() else {
            return Ok(());
        };
        if self.flow.held.request.is_none() {
            let most = rules.limits().max_requests;
            let request = cluster.hold(Load::Request, most);
            self.flow.held.request = Some(request.map_err(|overflow| self.full(overflow))?);
        }
        Ok(())
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        head: &Head<'_>,
        body: RequestBody,
        how: &How,
    ) -> Result<(Sent, Option<Held>), Failure> {
        // HTTP/2 shares connections; HTTP/1.1 has one for each request.
        let alone = head.speak == Version::H1 && how.limits.max_connections.is_some();
        let connection = match how.cluster.as_ref().filter(|_| alone) {
            Some(cluster) => {
                let held = Box::pin(cluster.connection(&how.limits)).await;
                Some(held.map_err(|overflow| self.full(overflow))?)
            }
            None => None,
        };
        let pool = &self.session.worker.pool;
        let sent = pool
            .send(endpoint, head.speak, Box::new(head.request(body)), how)
            .await;
        Ok((sent.map_err(|error| self.failed(error))?, connection))
    }

    fn failed(&self, error: SendError) -> Failure {
        match error.failure {
            TryFailure::Overflow => self.full(Overflow(Load::Pending)),
            _ => Failure::Send(error),
        }
    }

    fn full(&self, Overflow(limit): Overflow) -> Failure {
        if let Some((_, _, service)) = self.place.limited() {
            self.session.worker.metrics.overflowed(service, limit);
        }
        Failure::Overflow
    }

    /// Notes how the try went, where endpoints that fail are left out.
    fn note<T>(&self, endpoint: &Endpoint, sent: &Result<(Sent, T), Failure>) {
        let Some((rules, cluster, service)) = self.place.limited() else {
            return;
        };
        let Some(outliers) = &rules.outliers else {
            return;
        };
        // Whoever breaks off its own upload says nothing about the endpoint. Of hosts that callers name
        // nothing is counted: there is no end of them, and each would take a place among those out.
        let named = is_named_by_caller(&endpoint.workload);
        if named || self.flow.progress.broken.get() {
            return;
        }
        let outcome = match sent {
            Ok((sent, _)) => Outcome::Answered(meaning(&sent.response)),
            Err(Failure::Send(error)) if error.failure == TryFailure::BeforeRequest => {
                Outcome::Unreachable
            }
            Err(Failure::Send(_)) => Outcome::Broke,
            Err(Failure::TryTimeout | Failure::Deadline) => Outcome::TimedOut,
            Err(Failure::Denied(_) | Failure::Overflow) => return,
        };
        let all = cluster.endpoints.load(Ordering::Relaxed);
        let uid = &endpoint.workload.uid;
        let now = std::time::Instant::now();
        if cluster.outliers.note(uid, outcome, outliers, all, now) {
            tracing::info!(%uid, service = %service.key, ?outcome, "an endpoint is left out");
            self.session.worker.metrics.ejected(service);
        }
    }
}

/// The status, or what a gRPC status in the head means as one.
fn meaning<T>(response: &Response<T>) -> u16 {
    let status = response.headers().get("grpc-status");
    match status.map(HeaderValue::as_bytes) {
        Some(b"2" | b"13" | b"15") => 500,
        Some(b"4") => 504,
        Some(b"12") => 501,
        Some(b"14") => 503,
        _ => response.status().as_u16(),
    }
}

#[cfg(test)]
mod tests;
