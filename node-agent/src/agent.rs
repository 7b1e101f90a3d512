//! The whole agent: follows objects and sandboxes and keeps one task per pod.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{ObjectHead, ObjectSet, Published};
use isobar_runtime::{Lifetime, Scope};
use isobar_types::labels;
use tokio::sync::watch;

use crate::desire::{Desire, NodeDefaults, desire};
use crate::pod::{Driver, Order, Services};
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
    scope: Scope,
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
    ) -> Self {
        // An error means that the source is gone, which its own task reports.
        let _ = objects.wait_for(|published| published.synced).await;
        let mut agent = Self {
            services,
            node,
            objects,
            pods: BTreeMap::new(),
            scope: Scope::new("pods"),
            problems: Vec::new(),
        };
        agent.rescan().await;
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
        let objects = Arc::clone(&self.objects.borrow_and_update().objects);
        let found = match sandbox::read_all(&self.services.pods_dir) {
            Ok((found, problems)) => {
                self.tell(problems);
                found
            }
            Err(error) => {
                self.tell(vec![format!("the folder of sandboxes: {error}")]);
                return;
            }
        };
        self.pods.retain(|_, pod| {
            let there = found.contains(&pod.sandbox);
            if !there {
                // Its task may have ended already.
                let _ = pod.orders.send(Order::End);
            }
            there
        });
        for sandbox in found {
            if !self.pods.contains_key(&sandbox.uid) {
                self.adopt(sandbox, &objects).await;
            }
        }
        for pod in self.pods.values() {
            // While the object is away, for example during deletion, the last wish stays.
            if let Some(wish) = desire(&objects, &pod.sandbox, &self.node) {
                pod.orders.send_if_modified(|order| {
                    let next = Order::Be(wish);
                    let changed = !same(order, &next);
                    if changed {
                        *order = next;
                    }
                    changed
                });
            }
        }
    }

    async fn adopt(&mut self, sandbox: Sandbox, objects: &ObjectSet) {
        let wish = desire(objects, &sandbox, &self.node);
        let annotated = wish.as_ref().is_some_and(|wish| wish.annotated);
        let (services, record) = (Arc::clone(&self.services), sandbox.clone());
        let adopted =
            crate::probes::blocking(move || Driver::adopt(services, record, annotated)).await;
        let driver = match adopted {
            Ok(driver) => driver,
            Err(error) => {
                let (namespace, name) = (&sandbox.namespace, &sandbox.name);
                self.tell(vec![format!("pod {namespace}/{name}: {error}")]);
                return;
            }
        };
        let (orders, receiver) = watch::channel(wish.map_or(Order::Wait, Order::Be));
        self.scope.spawn("pod", driver.run(receiver));
        self.pods
            .insert(sandbox.uid.clone(), Pod { sandbox, orders });
    }

    /// Takes back annotations of pods that are gone: a later pod of that name would inherit them.
    async fn forget_strangers(&self) {
        let objects = Arc::clone(&self.objects.borrow().objects);
        for pod in objects.pods.iter() {
            let ours = self.pods.values().any(|known| {
                known.sandbox.name == pod.name() && known.sandbox.namespace == pod.namespace()
            });
            if !ours
                && pod.annotation(labels::REDIRECTION).is_some()
                && let Err(error) = self.services.writer.delete(&pod.reference()).await
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

/// The annotation is ours: that it changed is no new wish.
fn same(a: &Order, b: &Order) -> bool {
    let (Order::Be(a), Order::Be(b)) = (a, b) else {
        return a == b;
    };
    let strip = |wish: &Desire| Desire {
        annotated: false,
        ..wish.clone()
    };
    strip(a) == strip(b)
}

/// Removes what the agent wrote into every pod and into the node: only on request, because open
/// connections of enrolled pods are cut.
///
/// # Errors
/// When the folder of sandboxes cannot be read.
pub async fn clean_up(services: &Services, dir: &Path) -> std::io::Result<()> {
    let (sandboxes, _) = sandbox::read_all(dir)?;
    for record in sandboxes {
        let tool = services.canon.backend();
        let path = record.netns.clone();
        let removed = crate::probes::blocking(move || {
            let netns = isobar_net::NetNs::open(&path).map_err(crate::backend::kernel(
                "opening the pod's network namespace",
            ))?;
            netns
                .enter(|| {
                    tool.remove()?;
                    crate::backend::remove_routes()
                })
                .map_err(crate::backend::kernel("entering the pod's namespace"))?
        })
        .await;
        if let Err(error) = removed {
            tracing::warn!(pod = %record.name, namespace = %record.namespace, %error, "rules stay");
        }
        let pod = isobar_objects::ObjectRef::new(
            isobar_objects::Kind::Pod,
            &record.namespace,
            &record.name,
        );
        if let Err(error) = services.writer.delete(&pod).await {
            tracing::warn!(%pod, %error, "the annotation stays");
        }
    }
    if let Err(error) = services.probes.clear().await {
        tracing::warn!(%error, "the node's rules stay");
    }
    Ok(())
}
