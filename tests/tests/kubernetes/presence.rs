//! Whether a DaemonSet is meant to stay, as its pods ask when they end.

use anyhow::ensure;
use isobar_kubernetes::{Cluster, Presence};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::run;

#[test]
fn a_daemon_set_is_there_goes_and_is_gone() {
    run(async |server| {
        server.namespace("mesh").await?;
        let cluster = server.cluster();
        let sets: Api<DaemonSet> = Api::namespaced(cluster.client(), "mesh");
        ensure!(cluster.daemon_set("mesh", "agent").await == Presence::Gone);
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"name": "agent", "namespace": "mesh", "finalizers": ["example.org/wait"]},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {
                    "metadata": {"labels": {"app": "agent"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        }))?;
        sets.create(&PostParams::default(), &set).await?;
        ensure!(cluster.daemon_set("mesh", "agent").await == Presence::Present);
        // Being deleted it is still there, and nothing of it is to stay.
        sets.delete("agent", &DeleteParams::default()).await?;
        ensure!(sets.get_opt("agent").await?.is_some());
        ensure!(cluster.daemon_set("mesh", "agent").await == Presence::Gone);
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        sets.patch("agent", &PatchParams::default(), &free).await?;
        ensure!(cluster.daemon_set("mesh", "agent").await == Presence::Gone);

        // An account that is gone may not ask any more.
        let stranger = server.kubeconfig("stranger", "no-such-token")?;
        let stranger = Cluster::from_kubeconfig(&stranger).await?;
        ensure!(stranger.daemon_set("mesh", "agent").await == Presence::Refused);
        Ok(())
    });
}
