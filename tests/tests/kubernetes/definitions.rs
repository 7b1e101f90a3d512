//! The definitions of the mesh's own kinds, as the chart has them.

use std::path::Path;

use anyhow::{Context as _, Result};
use isobar_objects::{Kind, STRANGERS, Stranger};
use isobar_tests::{ApiServer, eventually};
use serde_json::json;

use crate::run;

/// Applies the definitions of the chart.
pub(crate) async fn define(server: &ApiServer) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/charts/crds/files");
    let folder = folder.to_str().context("a path")?.to_owned();
    server.kubectl(&["apply", "-f", &folder]).await?;
    for kind in Kind::ALL.iter().filter(|kind| kind.is_custom()) {
        let name = format!("crd/{}.{}", kind.plural(), kind.group());
        established(server, &[&name]).await?;
    }
    Ok(())
}

/// Defines the kinds without effect, in the shortest way.
pub(crate) async fn define_strangers(server: &ApiServer) -> Result<()> {
    for one in STRANGERS {
        let Stranger {
            group,
            kind,
            plural,
        } = one;
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
            },
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {
                    "kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                    "singular": kind.to_lowercase(),
                },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": {
                        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    } },
                }],
            },
        });
        server.apply(&definition.to_string()).await?;
    }
    for one in STRANGERS {
        let name = format!("crd/{}.{}", one.plural, one.group);
        established(server, &[&name]).await?;
    }
    Ok(())
}

/// Waits until definitions are served. `kubectl wait` gives up at once on one that has no conditions at
/// all, as it has none in its first moment.
pub(crate) async fn established(server: &ApiServer, which: &[&str]) -> Result<()> {
    let wait = [&["wait", "--for=condition=Established"][..], which].concat();
    eventually("definitions are served", async || {
        server.kubectl(&wait).await.map(drop)
    })
    .await
}

#[test]
fn every_kind_that_is_read_can_be_defined() {
    run(async |server| define(server).await);
}
