//! The pods this process serves: started and ended as the node agent says.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use isobar_net::{NetNs, NetNsId, set_tcp_migrate_req};
use isobar_runtime::{Scope, Worker};
use isobar_types::Reason;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::proxy::{Connections, Pod, PodEjections, PodListeners, Stage, Views, World, serve_pod};
use crate::zds::{PodHost, PodInfo};

/// Key of the pod of this process itself; no pod has such a uid.
const OWN: &str = "(this process)";
/// How long the end of a removed pod may take before the node agent is answered regardless.
const END: Duration = Duration::from_secs(2);

/// The served pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Arc<World>,
    workers: Vec<Worker>,
    control: Scope,
    // Held to look up, add or remove an entry.
    running: Mutex<BTreeMap<String, Running>>,
}

/// Holds nothing that keeps the pod's life open: the end of that is how its end is known.
#[derive(Debug, Clone)]
struct Running {
    info: PodInfo,
    connections: Arc<Connections>,
    ejections: Arc<PodEjections>,
    netns: Option<NetNsId>,
    own: bool,
    stage: Arc<watch::Sender<Stage>>,
}

/// Pods announced that could not be started yet; for dumps. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PendingPods {
    // Held to replace or copy the list.
    pods: Arc<Mutex<Vec<(String, PodInfo)>>>,
    count: Gauge,
}

impl PendingPods {
    /// No pod; `count` tells how many there are.
    #[must_use]
    pub fn new(count: Gauge) -> Self {
        Self {
            pods: Arc::default(),
            count,
        }
    }

    /// Replaces the list.
    pub fn set<'a>(&self, pods: impl Iterator<Item = (&'a str, &'a PodInfo)>) {
        let mut list = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        list.clear();
        list.extend(pods.map(|(uid, info)| (uid.to_owned(), info.clone())));
        self.count
            .set(i64::try_from(list.len()).unwrap_or(i64::MAX));
    }

    /// A copy of the list.
    #[must_use]
    pub fn list(&self) -> Vec<(String, PodInfo)> {
        let list = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        list.clone()
    }
}

/// One pod, as Istio's dump shows it.
#[derive(Debug, Serialize)]
pub struct PodView {
    /// `Up` or `Pending`.
    pub state: &'static str,
    /// Open connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Views>,
    /// Who it is.
    pub info: InfoView,
}

/// Who a pod is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InfoView {
    /// Pod name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

impl From<&PodInfo> for InfoView {
    fn from(info: &PodInfo) -> Self {
        Self {
            name: info.name.clone(),
            namespace: info.namespace.clone(),
            service_account: info.service_account.clone(),
        }
    }
}

impl Pods {
    /// Serves nothing yet.
    #[must_use]
    pub fn new(world: Arc<World>, workers: Vec<Worker>) -> Self {
        Self {
            shared: Arc::new(Shared {
                world,
                workers,
                control: Scope::new("pods"),
                running: Mutex::default(),
            }),
        }
    }

    /// Serves a pod in `netns`, or in our own namespace.
    ///
    /// # Errors
    /// When a listener cannot be made; nothing of the pod is then left.
    pub async fn serve(
        &self,
        uid: &str,
        info: &PodInfo,
        netns: Option<NetNs>,
    ) -> Result<(), String> {
        let id = netns.as_ref().map(NetNs::id);
        if let Some(running) = self.with(|running| running.get(uid).cloned()) {
            if running.netns == id {
                return Ok(());
            }
            tracing::info!(uid, "the pod's sandbox was made anew");
            self.end(uid, Reason::WorkloadRemoved).await;
        }
        if let Some(netns) = &netns
            && let Err(error) = set_tcp_migrate_req(netns)
        {
            tracing::debug!(uid, %error, "waiting connections will not move when a listener closes");
        }
        self.start_pod(uid, Pod::new(info.clone(), netns)).await
    }

    /// Takes HBONE for the pod this process runs in, so that a scraper in the mesh reaches its metrics.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub async fn serve_own(&self, info: PodInfo) -> Result<(), String> {
        self.start_pod(OWN, Pod::of_process(info)).await
    }

    async fn start_pod(
        &self,
        uid: &str,
        (pod, stage): (Pod, watch::Sender<Stage>),
    ) -> Result<(), String> {
        let id = pod.netns.as_ref().map(NetNs::id);
        let (info, own) = (pod.info.clone(), pod.own);
        let pod = Arc::new(pod);
        if !own {
            self.start_dns(&pod)?;
        }
        let starts = self.shared.workers.iter().map(|w| self.start_on(w, &pod));
        if let Some(Err(error)) = join_all(starts).await.into_iter().find(Result::is_err) {
            end_pod(&stage, Reason::Internal).await;
            return Err(error);
        }
        tracing::info!(uid, pod = pod.display_name(), "pod is served");
        self.shared.world.neighbours.add(&pod);
        let entry = Running {
            info,
            connections: pod.connections.clone(),
            ejections: pod.ejections.clone(),
            netns: id,
            own,
            stage: Arc::new(stage),
        };
        self.with(|running| running.insert(uid.to_owned(), entry));
        if !own {
            self.shared.world.metrics.pods_started.inc();
        }
        self.count();
        Ok(())
    }

    /// Brings the gauge of served pods up to date.
    fn count(&self) {
        let count = self.with(|running| running.values().filter(|r| !r.own).count());
        let active = &self.shared.world.metrics.active_pods;
        active.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Takes no new connections anywhere, lets those open run on for at most `limit`, then cuts
    /// them. Returns true if all ended by themselves.
    pub async fn drain(&self, limit: Duration) -> bool {
        let all: Vec<_> = self.with(|running| running.values().cloned().collect());
        for running in &all {
            running.stage.send_replace(Stage::Draining);
        }
        let gone = join_all(all.iter().map(|running| running.stage.closed()));
        let orderly = tokio::time::timeout(limit, gone).await.is_ok();
        let uids: Vec<_> = self.with(|running| running.keys().cloned().collect());
        join_all(uids.iter().map(|uid| self.end(uid, Reason::Drained))).await;
        orderly
    }

    /// Name of our node.
    pub(crate) fn node(&self) -> &str {
        self.shared.world.node()
    }

    /// Network of the node.
    pub(crate) fn network(&self) -> &str {
        &self.shared.world.config.network
    }

    /// The open connections of every served pod, by uid.
    #[must_use]
    pub fn connections(&self) -> Vec<(String, PodInfo, Arc<Connections>)> {
        self.with(|running| {
            let pods = running.iter();
            pods.map(|(uid, r)| (uid.clone(), r.info.clone(), r.connections.clone()))
                .collect()
        })
    }

    /// The endpoints that calls of pods leave out, by uid of the pod; pods that leave out none are not
    /// listed.
    #[must_use]
    pub fn ejections(&self) -> BTreeMap<String, Vec<serde_json::Value>> {
        let all = self.with(|running| {
            let pods = running.iter();
            pods.map(|(uid, r)| (uid.clone(), r.ejections.clone()))
                .collect::<Vec<_>>()
        });
        all.into_iter()
            .map(|(uid, ejections)| (uid, ejections.views()))
            .filter(|(_, views)| !views.is_empty())
            .collect()
    }

    /// What Istio's dump shows of pods, by uid.
    #[must_use]
    pub fn views(&self, pending: &PendingPods) -> BTreeMap<String, PodView> {
        let mut views: BTreeMap<_, _> = pending
            .list()
            .into_iter()
            .map(|(uid, info)| {
                let view = PodView {
                    state: "Pending",
                    connections: None,
                    info: (&info).into(),
                };
                (uid, view)
            })
            .collect();
        for (uid, info, connections) in self.connections() {
            let view = PodView {
                state: "Up",
                connections: Some(connections.views()),
                info: (&info).into(),
            };
            views.insert(uid, view);
        }
        views
    }

    async fn start_on(&self, worker: &Worker, pod: &Arc<Pod>) -> Result<(), String> {
        let (bound, result) = oneshot::channel();
        let world = self.shared.world.clone();
        let pod = pod.clone();
        let alive = worker
            .run(move || async move {
                // Without it each step into a pod's namespace costs a look into /proc.
                let _ = NetNs::settle();
                match PodListeners::bind(&world, &pod) {
                    Ok(listeners) => {
                        // Whoever asked may have given up; the stage then ends this.
                        let _ = bound.send(Ok(()));
                        serve_pod(world, pod, listeners).await;
                    }
                    Err(error) => {
                        let _ = bound.send(Err(error.to_string()));
                    }
                }
            })
            .await;
        if !alive {
            return Err(format!("worker {} has ended", worker.index()));
        }
        result
            .await
            .unwrap_or_else(|_| Err(format!("worker {} failed", worker.index())))
    }

    fn start_dns(&self, pod: &Arc<Pod>) -> Result<(), String> {
        let Some(resolver) = &self.shared.world.dns else {
            return Ok(());
        };
        let server = resolver
            .serve(&self.shared.world, pod)
            .map_err(|error| format!("DNS proxy of {}: {error}", pod.display_name()))?;
        self.shared.control.spawn("dns", server);
        Ok(())
    }

    async fn end(&self, uid: &str, reason: Reason) {
        let Some(entry) = self.with(|running| running.remove(uid)) else {
            return;
        };
        if !entry.own {
            self.shared.world.metrics.pods_stopped.inc();
        }
        self.count();
        let name = format!("{}/{}", entry.info.namespace, entry.info.name);
        if end_pod(&entry.stage, reason).await {
            tracing::info!(uid, pod = name, "pod is not served any more");
        } else {
            tracing::warn!(
                uid,
                pod = name,
                "some of the pod's sockets are still closing"
            );
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<String, Running>) -> T) -> T {
        let running = &self.shared.running;
        act(&mut running.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn end_pod(stage: &watch::Sender<Stage>, reason: Reason) -> bool {
    stage.send_replace(Stage::Cut(reason));
    tokio::time::timeout(END, stage.closed()).await.is_ok()
}

impl PodHost for Pods {
    async fn start(&self, uid: &str, info: &PodInfo, netns: Arc<OwnedFd>) -> Result<(), String> {
        let netns = netns
            .try_clone()
            .and_then(NetNs::from_fd)
            .map_err(|error| format!("network namespace of the pod: {error}"))?;
        self.serve(uid, info, Some(netns)).await
    }

    fn stop(&self, uid: &str) -> impl Future<Output = ()> + Send {
        self.end(uid, Reason::WorkloadRemoved)
    }

    fn running(&self) -> Vec<String> {
        self.with(|running| {
            let announced = running.iter().filter(|(_, r)| !r.own);
            announced.map(|(uid, _)| uid.clone()).collect()
        })
    }
}
