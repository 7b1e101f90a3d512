//! Istio's MeshConfig.

use k8s_openapi::api::core::v1::ConfigMap;

use super::Report;
use crate::mesh_config::{MeshConfig, instead};

pub(super) fn check(map: &ConfigMap, report: &mut Report) {
    match MeshConfig::read(map) {
        Err(error) => report.error("data.mesh", error),
        Ok(None) => {}
        Ok(Some(read)) => {
            for (index, selector) in read.config.discovery_selectors.iter().enumerate() {
                let field = format!("data.mesh: discoverySelectors[{index}]");
                report.selector(&field, Some(selector));
            }
            for field in &read.ignored {
                report.unsupported(format!("data.mesh: {field}"), instead(field));
            }
        }
    }
}
