//! The definitions of the mesh's own kinds, as the chart has them.

use std::path::Path;

use anyhow::{Context as _, Result};
use isobar_objects::Kind;
use isobar_tests::ApiServer;

use crate::run;

/// Applies the definitions of the chart.
pub(crate) async fn define(server: &ApiServer) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/charts/crds/files");
    let folder = folder.to_str().context("a path")?.to_owned();
    server.kubectl(&["apply", "-f", &folder]).await?;
    for kind in Kind::ALL.iter().filter(|kind| kind.is_custom()) {
        let name = format!("crd/{}.{}", kind.plural(), kind.group());
        server
            .kubectl(&["wait", "--for=condition=Established", &name])
            .await?;
    }
    Ok(())
}

#[test]
fn every_kind_that_is_read_can_be_defined() {
    run(async |server| define(server).await);
}
