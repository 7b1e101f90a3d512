//! Delta discovery: one stream for all types, one answer for each response.

mod stream;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use isobar_proto::envoy::config::core::v3::Node;
use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isobar_proto::type_url;
use isobar_runtime::{Backoff, Lifetime};
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;

use crate::channel::{ConnectError, chain, connect, headers, read_roots};
use crate::config::{AdsConfig, Server};
use crate::handler::ResourceHandler;
use crate::mesh::{AddressHandler, AuthorizationHandler};
use crate::on_demand::OnDemand;
use crate::saved::{KEPT, Restored, SavedMesh, Saver};
use crate::status::{SyncStatus, Termination};
use crate::store::Store;
pub(crate) use subscription::Subscription;

const FIRST_WAIT: Duration = Duration::from_millis(20);
/// A stream that lasted so long is a success; one that ends sooner is waited after like a failure, so that
/// a server that answers one type and refuses another is not asked fifty times a second.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// For the server to accept the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers that may wait to be sent.
const ANSWERS: usize = 32;
/// A response of more resources is applied on a thread where that may take a while.
const MANY: usize = 256;
/// How often replaced snapshots are looked at.
const REAP: Duration = Duration::from_millis(500);
/// What was saved is used once the control plane has been silent for so long, or has failed once.
const SILENCE: Duration = Duration::from_secs(1);

/// Keeps a [`Store`] (and the state of further handlers) equal to what the control plane says.
pub struct AdsClient {
    server: Server,
    node: Node,
    subscriptions: Vec<Subscription>,
    status: SyncStatus,
    store: Store,
    saver: Option<Saver>,
    on_demand: Option<OnDemand>,
}

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane did not accept the stream within {OPEN_TIMEOUT:?}")]
    Silent,
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the control plane closed the stream")]
    Closed,
}

impl Ending {
    /// Istio's word for it.
    fn kind(&self, answered: bool) -> Termination {
        match self {
            Self::Connect(_) | Self::Silent => Termination::ConnectionError,
            // A server that goes away after it answered is one to come back to.
            Self::Status(status) if answered && status.code() == tonic::Code::Unavailable => {
                Termination::Reconnect
            }
            Self::Status(_) => Termination::Error,
            Self::Closed => Termination::Complete,
        }
    }
}

impl AdsClient {
    /// A client that feeds `store` with addresses and L4 policies, and `handlers` with their types.
    #[must_use]
    pub fn new(config: AdsConfig, store: Store, handlers: Vec<Box<dyn ResourceHandler>>) -> Self {
        let (server, node_id, metadata) = config.split();
        // Policies before the workloads that name them: a workload must not be reachable for the
        // moment in which its policy is still on the way.
        let mesh: [Box<dyn ResourceHandler>; 2] = [
            Box::new(AuthorizationHandler::new(store.clone())),
            Box::new(AddressHandler::new(store.clone())),
        ];
        let subscriptions: Vec<_> = mesh
            .into_iter()
            .chain(handlers)
            .map(Subscription::new)
            .collect();
        Self {
            server,
            node: Node {
                id: node_id,
                cluster: String::new(),
                metadata: Some(subscription::metadata(&metadata)),
            },
            status: SyncStatus::new(
                subscriptions
                    .iter()
                    .map(|one| (one.type_url(), one.is_optional())),
            ),
            subscriptions,
            store,
            saver: None,
            on_demand: None,
        }
    }

    /// Asks for addresses one by one, as `on_demand` says, instead of for all of them.
    #[must_use]
    pub fn on_demand(mut self, on_demand: OnDemand) -> Self {
        let all = self.subscriptions.iter_mut();
        for addresses in all.filter(|s| s.type_url() == type_url::ADDRESS) {
            addresses.ask_by_name(on_demand.clone());
        }
        self.on_demand = Some(on_demand);
        self
    }

    /// Starts with what was saved, and saves from now on. What cannot be used is told and ignored.
    /// Reads and applies the whole file: call it before there is traffic.
    #[must_use]
    pub fn with_saved(mut self, saved: SavedMesh) -> Self {
        match saved.load() {
            Ok(Some(restored)) => self.restore(&restored),
            Ok(None) => tracing::debug!("no saved mesh"),
            Err(error) => tracing::warn!("saved mesh ignored: {error}"),
        }
        let kept = self.subscriptions.iter();
        let kept = kept.filter(|s| KEPT.contains(&s.type_url()));
        self.saver = Some(Saver {
            saved: Arc::new(saved),
            store: self.store.clone(),
            held: kept.map(|s| (s.type_url(), s.held())).collect(),
        });
        self
    }

    fn restore(&mut self, restored: &Restored) {
        let mut count = 0;
        // In the order of the subscriptions: policies first.
        for subscription in &mut self.subscriptions {
            if let Some(resources) = restored.resources.get(subscription.type_url()) {
                count += subscription.restore(resources);
            }
        }
        tracing::info!(
            resources = count,
            age_seconds = restored.age.as_secs(),
            "mesh restored from file"
        );
        self.status.restored(count);
    }

    /// A handle on readiness and state, usable before and while the client runs.
    #[must_use]
    pub fn status(&self) -> SyncStatus {
        self.status.clone()
    }

    /// Streams until `life` is stopped; reconnects for ever. What was received stays in force.
    pub async fn run(mut self, life: Lifetime) {
        let status = self.status.clone();
        let saver = self.saver.take();
        let saving = async {
            if let Some(saver) = saver {
                saver.run(status.clone()).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = life.stopped() => {}
            () = self.stream_for_ever() => {}
            () = saving => {}
            () = accept_restored(status.clone()) => {}
        }
    }

    async fn stream_for_ever(&mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let mut answered = false;
            let begun = tokio::time::Instant::now();
            let ending = match self.stream(&mut answered).await {
                Ok(()) => Ending::Closed,
                Err(ending) => ending,
            };
            let lasting = answered && begun.elapsed() >= LONGEST_WAIT;
            if lasting {
                backoff.reset();
            }
            let why = chain(&ending);
            let wait = backoff.step(rand::random());
            if lasting {
                // Servers end streams now and then, to spread load: nothing to worry about.
                tracing::debug!("discovery stream ended: {why}");
            } else {
                let address = &self.server.address;
                tracing::warn!(address, ?wait, "no discovery, will try again: {why}");
            }
            self.status.disconnected(why, ending.kind(answered));
            self.status.use_restored();
            self.store.reap();
            tokio::time::sleep(wait).await;
        }
    }

    async fn stream(&mut self, answered: &mut bool) -> Result<(), Ending> {
        let first = self
            .subscriptions
            .iter_mut()
            .map(|s| s.first_request(&self.node));
        let (answers, mut responses) = open(&self.server, first.collect()).await?;
        self.status.connected();
        tracing::info!(address = self.server.address, "discovery stream open");
        let mut retired = true;
        loop {
            let response = tokio::select! {
                response = responses.message() => response?,
                request = next_names(self.on_demand.as_ref()) => {
                    if answers.send(request).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                () = tokio::time::sleep(REAP), if retired => {
                    retired = self.store.reap();
                    continue;
                }
            };
            let Some(response) = response else {
                return Ok(());
            };
            *answered = true;
            retired = true;
            let answer = self.take(response).await;
            if answers.send(answer).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let known = self
            .subscriptions
            .iter()
            .position(|s| s.type_url() == response.type_url);
        let Some(at) = known else {
            tracing::warn!(type_url = response.type_url, "unknown resource type");
            return DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            };
        };
        if response.resources.len() + response.removed_resources.len() <= MANY {
            return self.subscriptions[at].take(&response, &self.status);
        }
        let mut subscription = self.subscriptions.remove(at);
        let status = self.status.clone();
        let applied = tokio::task::spawn_blocking(move || {
            let answer = subscription.take(&response, &status);
            // Freed here too, with all it holds.
            drop(response);
            (subscription, answer)
        });
        match applied.await {
            Ok((subscription, answer)) => {
                self.subscriptions.insert(at, subscription);
                answer
            }
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is stopping, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// The next names to ask for, or not to be told of any more.
async fn next_names(on_demand: Option<&OnDemand>) -> DeltaDiscoveryRequest {
    let Some(on_demand) = on_demand else {
        return std::future::pending().await;
    };
    let wanted = on_demand.wanted().await;
    DeltaDiscoveryRequest {
        type_url: type_url::ADDRESS.to_owned(),
        resource_names_subscribe: wanted.subscribe,
        resource_names_unsubscribe: wanted.unsubscribe,
        ..Default::default()
    }
}

/// Uses what was saved if the control plane stays silent. Never ends.
async fn accept_restored(status: SyncStatus) {
    tokio::time::sleep(SILENCE).await;
    status.use_restored();
    std::future::pending().await
}

/// Opens a stream on which `first` has been asked.
async fn open(
    server: &Server,
    first: Vec<DeltaDiscoveryRequest>,
) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, stream::Responses), Ending> {
    let roots = read_roots(&server.roots).await?;
    let channel = connect(server, &roots).await?;
    let (answers, outgoing) = mpsc::channel(first.len() + ANSWERS);
    for request in first {
        // There is room for all of them and the receiver is still here.
        let _ = answers.send(request).await;
    }
    let mut metadata = MetadataMap::new();
    headers(server, &mut metadata).await?;
    let call = stream::call(channel, metadata, outgoing);
    let responses = tokio::time::timeout(OPEN_TIMEOUT, call)
        .await
        .map_err(|_| Ending::Silent)??;
    Ok((answers, responses))
}

#[cfg(test)]
mod tests;
