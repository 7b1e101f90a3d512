use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams};

use crate::cluster::Cluster;

/// Texts of a ConfigMap, by key.
pub type Texts = BTreeMap<String, String>;

/// A ConfigMap that the server did not tell.
#[derive(Debug, thiserror::Error)]
#[error("ConfigMaps of namespace {namespace}: {error}")]
pub struct ConfigMapError {
    namespace: String,
    error: Box<kube::Error>,
}

impl ConfigMapError {
    /// True if the server has answered: others may be asked for.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(
            *self.error,
            kube::Error::Api(_) | kube::Error::SerdeError(_) | kube::Error::BuildRequest(_)
        )
    }
}

impl Cluster {
    /// The texts of a ConfigMap; `None` if there is none.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Texts>, ConfigMapError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), namespace);
        let found = maps.get_opt(name).await.map_err(failed(namespace))?;
        Ok(found.map(|map| map.data.unwrap_or_default()))
    }

    /// The ConfigMaps of a namespace whose labels match `selector`: labels and texts, by name.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn config_maps(
        &self,
        namespace: &str,
        selector: &str,
    ) -> Result<BTreeMap<String, (Texts, Texts)>, ConfigMapError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), namespace);
        let selected = ListParams::default().labels(selector);
        let found = maps.list(&selected).await.map_err(failed(namespace))?;
        let named = found.items.into_iter().map(|map| {
            let labels = map.metadata.labels.unwrap_or_default();
            let name = map.metadata.name.unwrap_or_default();
            (name, (labels, map.data.unwrap_or_default()))
        });
        Ok(named.collect())
    }
}

fn failed(namespace: &str) -> impl FnOnce(kube::Error) -> ConfigMapError {
    let namespace = namespace.to_owned();
    move |error| ConfigMapError {
        namespace,
        error: Box::new(error),
    }
}
