use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::ObjectHead as _;
use isobar_objects::Published;
use isobar_runtime::Lifetime;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::rounds::Rounds;

/// Name of the map in each namespace, and the file in it: where pods mount the roots from.
const NAME: &str = "istio-ca-root-cert";
const FILE: &str = "root-cert.pem";
/// Namespaces where nobody mounts anything.
const LEFT_OUT: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
/// How often every map is written again, whoever changed or removed it.
const AGAIN: Duration = Duration::from_secs(60);

/// Puts the mesh's roots into every namespace, where pods mount them from.
#[derive(Debug)]
pub struct RootMaps {
    cluster: Cluster,
    manager: String,
    name: &'static str,
    roots: watch::Receiver<Arc<str>>,
}

impl RootMaps {
    /// Distributes the latest `roots` (PEM), as `manager`.
    #[must_use]
    pub fn new(cluster: Cluster, manager: &str, roots: watch::Receiver<Arc<str>>) -> Self {
        Self {
            cluster,
            manager: manager.to_owned(),
            name: NAME,
            roots,
        }
    }

    /// The same into maps of another name.
    #[must_use]
    pub const fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Follows the namespaces of `objects` until `life` ends; writes only while `leads` is true.
    pub async fn run(
        mut self,
        mut objects: watch::Receiver<Arc<Published>>,
        mut leads: watch::Receiver<bool>,
        life: Lifetime,
    ) {
        let mut written: BTreeSet<String> = BTreeSet::new();
        let mut rounds = Rounds::new(Duration::from_millis(200), Duration::from_secs(2), AGAIN);
        loop {
            let mut is_complete = true;
            if self.roots.has_changed().unwrap_or_default() {
                written.clear();
            }
            let roots = self.roots.borrow_and_update().clone();
            let published = objects.borrow_and_update().clone();
            if *leads.borrow_and_update() && published.synced {
                let namespaces: BTreeSet<String> = published
                    .objects
                    .namespaces
                    .iter()
                    .filter(|one| !LEFT_OUT.contains(&one.name()))
                    .filter(|one| one.metadata.deletion_timestamp.is_none())
                    .map(|one| one.name().to_owned())
                    .collect();
                written.retain(|one| namespaces.contains(one));
                for namespace in namespaces {
                    if written.contains(&namespace) {
                        continue;
                    }
                    match self.write(&namespace, &roots).await {
                        Ok(()) => drop(written.insert(namespace)),
                        Err(error) => {
                            is_complete = false;
                            tracing::warn!(namespace, %error, "the roots could not be written");
                        }
                    }
                }
            }
            let pause = rounds.pause(is_complete);
            tokio::select! {
                () = life.draining() => return,
                changed = objects.changed() => if changed.is_err() { return },
                changed = leads.changed() => if changed.is_err() { return },
                Ok(()) = self.roots.changed() => written.clear(),
                () = tokio::time::sleep(pause) => if is_complete { written.clear() },
            }
        }
    }

    async fn write(&self, namespace: &str, roots: &str) -> Result<(), kube::Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client(), namespace);
        let data = BTreeMap::from([(FILE, roots)]);
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": self.name, "labels": { "istio.io/config": "true" } },
            "data": data,
        });
        let params = PatchParams::apply(&self.manager).force();
        maps.patch(self.name, &params, &Patch::Apply(map)).await?;
        Ok(())
    }
}
