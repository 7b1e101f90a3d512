//! The proxy config document: `defaultConfig` of the mesh file, then `PROXY_CONFIG`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::ConfigError;

/// Where the mesh file is looked for, from the working directory.
pub(super) const MESH_FILE: &str = "./etc/istio/config/mesh";

/// The fields that matter here; others are for other proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: Option<String>,
    pub(super) proxy_admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    pub(super) concurrency: Option<u16>,
    pub(super) proxy_metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshFile {
    default_config: ProxyConfig,
}

impl ProxyConfig {
    /// Reads both places; the variable wins field by field, metadata is merged.
    pub(super) fn read(mesh_file: &Path, variable: Option<&str>) -> Result<Self, ConfigError> {
        let base = match std::fs::read_to_string(mesh_file) {
            Ok(text) => {
                let mesh: MeshFile =
                    serde_saphyr::from_str(&text).map_err(|error| ConfigError::File {
                        path: mesh_file.display().to_string(),
                        reason: error.to_string(),
                    })?;
                mesh.default_config
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                return Err(ConfigError::File {
                    path: mesh_file.display().to_string(),
                    reason: error.to_string(),
                });
            }
        };
        let Some(text) = variable else {
            return Ok(base);
        };
        let over: Self = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::value("PROXY_CONFIG", text, error.to_string()))?;
        Ok(base.merged(over))
    }

    fn merged(mut self, over: Self) -> Self {
        self.proxy_metadata.extend(over.proxy_metadata);
        Self {
            discovery_address: over.discovery_address.or(self.discovery_address),
            proxy_admin_port: over.proxy_admin_port.or(self.proxy_admin_port),
            stats_port: over.stats_port.or(self.stats_port),
            concurrency: over.concurrency.or(self.concurrency),
            proxy_metadata: self.proxy_metadata,
        }
    }
}
