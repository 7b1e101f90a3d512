use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::Stream;
use isobar_proto::envoy::config::core::v3::Node;
use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use isobar_runtime::Lifetime;
use tokio::sync::watch;
use tonic::{Code, Status, Streaming};

use super::allowance::Allowance;
use super::catalog::{Catalog, Scope};
use super::clients::{KindState, Registration};
use super::kind::Kind;
use super::session::{Response, Session};
use super::subscription::beginning;
use crate::auth::Caller;
use crate::metrics::Metrics;

/// Life of a stream before it is closed politely, so that clients spread over servers.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// How much of a client's text is shown, in bytes: of its version, and of why it refuses something.
const VERSION: usize = 64;
const REFUSAL: usize = 1024;

/// Drives one [`Session`] over one gRPC stream. It only advances when the client's flow control has
/// room, so a slow client costs one response per kind and nothing else.
pub(crate) struct Driver {
    pub(crate) caller: Caller,
    pub(crate) session: Session,
    pub(crate) scope: Scope,
    pub(crate) catalogs: watch::Receiver<Arc<Catalog>>,
    pub(crate) requests: Streaming<DeltaDiscoveryRequest>,
    pub(crate) registration: Registration,
    pub(crate) allowance: Allowance,
    pub(crate) life: Lifetime,
    pub(crate) end: Instant,
    pub(crate) metrics: Metrics,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.metrics.clients(-1);
    }
}

/// When a stream opened now ends: 30 minutes, less up to a tenth.
pub(crate) fn end_of_stream(now: Instant) -> Instant {
    let jitter = MAX_AGE.mul_f64(0.1 * rand::random::<f64>());
    now + MAX_AGE - jitter
}

/// The responses of `driver`, and at the end why it is one.
pub(crate) fn responses(driver: Driver) -> impl Stream<Item = Result<Response, Status>> + Send {
    futures_util::stream::unfold(Some(driver), |driver| async move {
        let mut driver = driver?;
        match driver.next().await {
            Ok(Some(response)) => Some((Ok(response), Some(driver))),
            Ok(None) => {
                tracing::info!(identity = %driver.caller.identity, "discovery stream closed");
                Some((Err(Status::new(Code::Ok, "")), None))
            }
            Err(status) => {
                tracing::warn!(
                    identity = %driver.caller.identity, error = beginning(status.message(), REFUSAL),
                    "discovery stream ended",
                );
                Some((Err(status), None))
            }
        }
    })
}

impl Driver {
    async fn next(&mut self) -> Result<Option<Response>, Status> {
        loop {
            let catalog = self.catalogs.borrow_and_update().clone();
            self.follow_scope(&catalog)?;
            let now = Instant::now();
            let response = self.session.next(&catalog, now);
            self.report(&catalog);
            self.registration.confirm(self.session.confirmed());
            if let Some(response) = response {
                self.log_sent(&response);
                return Ok(Some(response));
            }
            let deadline = self.session.deadline(now).unwrap_or(self.end);
            tokio::select! {
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.take(&request)?,
                    Ok(None) => return Ok(None),
                    // Its sender would come again with the same for ever, and nobody would know.
                    Err(error) if error.code() == Code::OutOfRange => return Err(error),
                    // A client that goes away is no error of the stream.
                    Err(_) => return Ok(None),
                },
                changed = self.catalogs.changed() => if changed.is_err() {
                    return Ok(None);
                },
                () = tokio::time::sleep_until(deadline.min(self.end).into()) => {
                    if Instant::now() >= self.end {
                        return Ok(None);
                    }
                }
                () = self.life.draining() => return Ok(None),
            }
        }
    }

    fn take(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), Status> {
        let names = [
            request.initial_resource_versions.len(),
            request.resource_names_subscribe.len(),
            request.resource_names_unsubscribe.len(),
        ];
        let (names, most) = (names.into_iter().sum::<usize>(), self.allowance.names);
        if names > most {
            return Err(Status::out_of_range(format!(
                "{names} names in one request, of which a client of this kind may send {most}"
            )));
        }
        if let Some(node) = &request.node {
            check_node(node, &self.caller)?;
            if let Some(version) = version(node) {
                let version = beginning(&version, VERSION).to_owned();
                self.registration.update(|state| state.version = version);
            }
        }
        if let Some(error) = &request.error_detail {
            let kind = Kind::from_url(&request.type_url).map_or("unknown", Kind::label);
            self.metrics.rejected(kind);
            tracing::warn!(
                identity = %self.caller.identity, kind, error = beginning(&error.message, REFUSAL),
                "a client refused resources",
            );
        }
        let subscribed = self
            .session
            .request(request, Instant::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Some(kind) = subscribed {
            tracing::debug!(identity = %self.caller.identity, kind = kind.label(), "subscribed");
        }
        let (kept, most) = (self.session.kept(), self.allowance.kept);
        if !kept.is_within(most) {
            return Err(Status::out_of_range(format!(
                "{} names of {} bytes on one stream, of which a client of this kind may have {} of {} bytes",
                kept.count, kept.bytes, most.count, most.bytes
            )));
        }
        Ok(())
    }

    /// The scope is decided again with every catalog: a waypoint may connect before its pod has
    /// been read, and its Gateway may go away while it is connected.
    fn follow_scope(&mut self, catalog: &Catalog) -> Result<(), Status> {
        if catalog.revision == 0 {
            return Ok(());
        }
        let scope = catalog.scope_of(&self.caller);
        if scope == self.scope {
            return Ok(());
        }
        if self.scope.waypoint.is_some() {
            return Err(Status::permission_denied(
                "this client is no longer an instance of its Gateway",
            ));
        }
        if scope.waypoint.is_some() {
            self.session.rescope(scope.clone(), Kind::WAYPOINT);
            self.allowance = Allowance::WAYPOINT;
            self.scope = scope;
        }
        Ok(())
    }

    fn report(&self, catalog: &Catalog) {
        let gateway = self.scope.waypoint.clone();
        let kinds = self
            .session
            .expected()
            .iter()
            .map(|kind| self.kind_state(*kind, catalog))
            .collect();
        self.registration.update(|state| {
            state.kinds = kinds;
            state.revision = catalog.revision;
            if let Some(gateway) = gateway {
                state.gateway = gateway.to_string();
                state.kind = "waypoint";
            }
        });
    }

    fn kind_state(&self, kind: Kind, catalog: &Catalog) -> KindState {
        let subscription = self.session.subscription(kind);
        KindState {
            kind,
            progress: self.session.progress(kind, catalog),
            revision: subscription.map_or(0, |s| s.acked_revision),
            acked: subscription.and_then(|s| s.acked),
            waiting: subscription.and_then(super::subscription::Subscription::waiting_since),
            held: subscription.map_or(0, super::subscription::Subscription::held),
            error: subscription.and_then(|s| s.error.clone()),
        }
    }

    fn log_sent(&self, response: &Response) {
        self.metrics.pushed(response.kind.label());
        tracing::debug!(
            identity = %self.caller.identity,
            kind = response.kind.label(),
            resources = response.resources.len(),
            removed = response.removed.len(),
            revision = response.revision,
            "pushed",
        );
    }
}

/// The version a client says it has: ours, or Istio's with that name in front.
fn version(node: &Node) -> Option<String> {
    let istio = || Some(format!("istio {}", field(node, "ISTIO_VERSION")?));
    field(node, "ISOBAR_VERSION")
        .map(str::to_owned)
        .or_else(istio)
}

/// A text among the metadata.
fn field<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// What a client says of itself must agree with its token; nothing is decided by it.
fn check_node(node: &Node, caller: &Caller) -> Result<(), Status> {
    let from_id = node
        .id
        .split('~')
        .nth(2)
        .and_then(|pod| pod.rsplit_once('.').map(|(_, namespace)| namespace));
    for claimed in [from_id, field(node, "NAMESPACE")].into_iter().flatten() {
        if !claimed.is_empty() && claimed != &*caller.identity.namespace {
            return Err(Status::permission_denied(format!(
                "the node claims namespace {claimed:?}, its token is of namespace {:?}",
                caller.identity.namespace
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_say_their_version() {
        let node = |pairs: &[(&str, &str)]| {
            let text = |value: &str| prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
            };
            let fields = pairs.iter().map(|(k, v)| ((*k).to_owned(), text(v)));
            Node {
                metadata: Some(prost_types::Struct {
                    fields: fields.collect(),
                }),
                ..Node::default()
            }
        };
        let ours = node(&[("ISTIO_VERSION", "1.30.0"), ("ISOBAR_VERSION", "0.1.0")]);
        assert_eq!(version(&ours).as_deref(), Some("0.1.0"));
        let theirs = node(&[("ISTIO_VERSION", "1.30.0")]);
        assert_eq!(version(&theirs).as_deref(), Some("istio 1.30.0"));
        assert_eq!(version(&node(&[])), None);
    }
}
