//! The server of these tests itself.

use anyhow::ensure;
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::json;
use std::pin::pin;

use crate::run;

#[test]
fn a_pod_is_made_patched_and_watched() {
    run(async |server| {
        server.namespace("shop").await?;
        server
            .apply(
                "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop},
                  spec: {containers: [{name: c, image: i}]}}",
            )
            .await?;
        let pods: Api<Pod> = Api::namespaced(server.cluster().client(), "shop");
        let listed = pods.list(&kube::api::ListParams::default()).await?;
        ensure!(listed.items.len() == 1);
        let version = listed.metadata.resource_version.unwrap_or_default();
        let status = json!({"status": {"phase": "Running", "podIP": "10.244.1.2"}});
        pods.patch_status("a", &PatchParams::default(), &Patch::Merge(status))
            .await?;
        let mut events = pin!(pods.watch(&WatchParams::default(), &version).await?);
        let event = events.try_next().await?;
        let Some(WatchEvent::Modified(pod)) = event else {
            anyhow::bail!("{event:?}");
        };
        let address = pod.status.and_then(|status| status.pod_ip);
        ensure!(address.as_deref() == Some("10.244.1.2"), "{address:?}");
        Ok(())
    });
}
