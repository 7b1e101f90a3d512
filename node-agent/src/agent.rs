//! The whole agent: follows objects and sandboxes and keeps one task per pod.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_net::NetNs;
use isobar_objects::{Kind, ObjectHead, ObjectRef, Published};
use isobar_runtime::{Lifetime, Scope};
use isobar_types::labels;
use tokio::sync::watch;

use crate::backend::{BackendError, kernel, take_over};
use crate::board::{PodView, Standing};
use crate::desire::{NodeDefaults, advertised, desire, probed};
use crate::discovery::{self, Discovery};
use crate::pod::{Driver, Order, Services};
use crate::probes::blocking;
use crate::report::Advertised;
use crate::sandbox::{self, Sandbox};

/// How often the folder of sandboxes is looked at.
const RESCAN: Duration = Duration::from_millis(100);

/// Keeps the pods of a node as their objects wish.
#[derive(Debug)]
pub struct Agent {
    services: Arc<Services>,
    node: NodeDefaults,
    objects: watch::Receiver<Arc<Published>>,
    pods: BTreeMap<String, Pod>,
    /// Tasks that were told to end and may still be cleaning up, by uid.
    ending: BTreeMap<String, watch::Sender<Order>>,
    scope: Scope,
    discovery: Option<Discovery>,
    /// Pods are being taken over from an earlier agent.
    starting: bool,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Pod {
    sandbox: Sandbox,
    orders: watch::Sender<Order>,
}

impl Agent {
    /// Waits for a first complete set of objects and takes over every sandbox that is there, so
    /// that the first node proxy to connect is told of all pods that have rules.
    pub async fn start(
        services: Arc<Services>,
        node: NodeDefaults,
        mut objects: watch::Receiver<Arc<Published>>,
        discovery: Option<Discovery>,
    ) -> Self {
        // An error means that the source is gone, which its own task reports.
        let _ = objects.wait_for(|published| published.synced).await;
        let mut agent = Self {
            services,
            node,
            objects,
            pods: BTreeMap::new(),
            ending: BTreeMap::new(),
            scope: Scope::new("pods"),
            discovery,
            starting: true,
            problems: Vec::new(),
        };
        agent.rescan().await;
        agent.starting = false;
        if let Err(error) = agent.services.probes.restore().await {
            tracing::error!(%error, "the node's rules about probes");
        }
        agent.forget_strangers().await;
        agent
    }

    /// Follows until `life` ends. Rules of pods stay: the data path goes on without an agent.
    pub async fn run(mut self, life: Lifetime) {
        loop {
            tokio::select! {
                () = life.draining() => break,
                changed = self.objects.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RESCAN) => {}
            }
            self.rescan().await;
        }
        self.scope.shutdown(Duration::ZERO).await;
    }

    async fn rescan(&mut self) {
        let published = Arc::clone(&self.objects.borrow_and_update());
        let (mut found, mut problems) = match sandbox::read_all(&self.services.pods_dir) {
            Ok(read) => read,
            Err(error) => return self.tell(vec![format!("the folder of sandboxes: {error}")]),
        };
        if let Some(discovery) = &mut self.discovery {
            discovery.complete(&published, &mut found, &self.node).await;
        }
        self.end_gone(&found);
        self.services
            .board
            .retain(|uid| self.ending.contains_key(uid) || found.iter().any(|one| one.uid == uid));
        for sandbox in found {
            let uid = &sandbox.uid;
            if !self.pods.contains_key(uid)
                && !self.ending.contains_key(uid)
                && let Err(problem) = self.adopt(sandbox, &published).await
            {
                problems.push(problem);
            }
        }
        self.tell(problems);
        for pod in self.pods.values() {
            let next = Order::from(desire(&published, &pod.sandbox, &self.node));
            pod.orders.send_if_modified(|order| {
                // While nothing is known, for example during deletion, the last wish stays.
                let stays = matches!((&*order, &next), (Order::Be(_), Order::Wait(_)));
                let changed = !stays && *order != next;
                if changed {
                    *order = next;
                }
                changed
            });
        }
    }

    /// Ends the tasks of sandboxes that are gone, or were made anew under the same uid: the new one
    /// is taken over once the old one is cleaned up.
    fn end_gone(&mut self, found: &[Sandbox]) {
        self.ending.retain(|_, orders| !orders.is_closed());
        let gone: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, pod)| !found.contains(&pod.sandbox))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            if let Some(pod) = self.pods.remove(&uid) {
                pod.orders.send_replace(Order::End);
                self.ending.insert(uid, pod.orders);
            }
        }
    }

    async fn adopt(&mut self, sandbox: Sandbox, published: &Published) -> Result<(), String> {
        let wish = desire(published, &sandbox, &self.node);
        let advertised = advertised(published, &sandbox);
        let before = advertised.clone();
        let (services, record) = (Arc::clone(&self.services), sandbox.clone());
        let held = self.discovery.as_ref().and_then(|all| all.held(&sandbox));
        let account = wish.as_ref().ok().map(|wish| wish.account.clone());
        let wishes = wish.as_ref().map(|wish| wish.wishes.clone());
        // A pod that comes later is new, or as this agent left it.
        let takes_over = self.starting.then(|| wishes.unwrap_or_default());
        let adopted = blocking(move || {
            let netns = match held {
                Some(netns) => netns,
                None => NetNs::open(&record.netns_under(&services.proc))
                    .map_err(kernel("opening the pod's network namespace"))?,
            };
            if let Some(wishes) = takes_over {
                let tool = services.canon.backend();
                let taken = netns
                    .enter(|| take_over(tool, &wishes))
                    .map_err(kernel("entering the pod's namespace"))??;
                if taken {
                    tracing::info!(pod = record.name, namespace = record.namespace, %tool,
                        "rules of another tool were replaced");
                }
            }
            Driver::adopt(services, record, netns, account, advertised)
        })
        .await;
        let driver = match adopted {
            Ok(driver) => driver,
            Err(error) => return Err(self.unreachable(&sandbox, &before, &error).await),
        };
        if driver.was_enrolled() {
            let (probes, ports) = (&self.services.probes, probed(published, &sandbox));
            probes.seed(&sandbox.uid, &sandbox.ips, &ports).await;
        }
        let (orders, receiver) = watch::channel(Order::from(wish));
        self.scope.spawn("pod", driver.run(receiver));
        self.pods
            .insert(sandbox.uid.clone(), Pod { sandbox, orders });
        Ok(())
    }

    /// A pod whose namespace cannot be looked into is not in the mesh, whatever its annotation
    /// says: it must not be advertised.
    async fn unreachable(
        &self,
        sandbox: &Sandbox,
        before: &Advertised,
        error: &BackendError,
    ) -> String {
        let pod = ObjectRef::new(Kind::Pod, &sandbox.namespace, &sandbox.name);
        let writer = &self.services.writer;
        if before.annotated
            && let Err(error) = writer.delete_exactly(&pod, &before.uid).await
        {
            tracing::error!(%pod, %error, "the annotation of an unreachable pod stays");
        }
        self.services.board.show(PodView {
            uid: sandbox.uid.clone(),
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            ips: sandbox.ips.clone(),
            netns: 0,
            standing: Standing::Failing,
            why: String::new(),
            rules: "unknown",
            accepted: false,
            published: false,
            connections: 0,
            repairs: 0,
            problem: error.to_string(),
            observed: jiff::Timestamp::now().to_string(),
        });
        format!("{pod}: {error}")
    }

    /// Takes back annotations of pods that are gone: a later pod of that name would inherit them.
    async fn forget_strangers(&self) {
        let objects = Arc::clone(&self.objects.borrow().objects);
        let writer = &self.services.writer;
        for pod in objects.pods.iter() {
            let ours = self.pods.values().any(|known| {
                known.sandbox.name == pod.name() && known.sandbox.namespace == pod.namespace()
            });
            if !ours
                && pod.annotation(labels::REDIRECTION).is_some()
                && let Err(error) = writer.delete_exactly(&pod.reference(), pod.uid()).await
            {
                tracing::warn!(pod = %pod.reference(), %error, "the annotation of a gone pod stays");
            }
        }
    }

    /// Logs problems once, not at every look.
    fn tell(&mut self, problems: Vec<String>) {
        for problem in &problems {
            if !self.problems.contains(problem) {
                tracing::warn!(problem, "sandbox");
            }
        }
        self.problems = problems;
    }
}

/// Removes what the agent wrote into every pod and into the node: only on request, because open
/// connections of enrolled pods are cut.
///
/// # Errors
/// When the folder of sandboxes cannot be read.
pub async fn clean_up(services: &Services, dir: &Path) -> std::io::Result<()> {
    let (sandboxes, _) = sandbox::read_all(dir)?;
    let mut all: Vec<(Sandbox, Option<NetNs>)> =
        sandboxes.into_iter().map(|record| (record, None)).collect();
    let unrecorded = |uid: &str| !all.iter().any(|(record, _)| record.uid == uid);
    let views = services.board.all().into_iter();
    let found = discovery::again(
        views.filter(|view| unrecorded(&view.uid)).collect(),
        &services.proc,
    );
    all.extend(found.into_iter().map(|(pod, netns)| (pod, Some(netns))));
    for (record, held) in all {
        let tool = services.canon.backend();
        let path = record.netns_under(&services.proc);
        let removed = blocking(move || {
            let netns = match held {
                Some(netns) => netns,
                None => {
                    NetNs::open(&path).map_err(kernel("opening the pod's network namespace"))?
                }
            };
            netns
                .enter(|| {
                    tool.remove()?;
                    crate::backend::remove_routes()
                })
                .map_err(kernel("entering the pod's namespace"))?
        })
        .await;
        if let Err(error) = removed {
            tracing::warn!(pod = %record.name, namespace = %record.namespace, %error, "rules stay");
        }
        let pod = ObjectRef::new(Kind::Pod, &record.namespace, &record.name);
        if let Err(error) = services.writer.delete(&pod).await {
            tracing::warn!(%pod, %error, "the annotation stays");
        }
    }
    if let Err(error) = services.probes.clear().await {
        tracing::warn!(%error, "the node's rules stay");
    }
    Ok(())
}
