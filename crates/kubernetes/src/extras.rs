use std::collections::BTreeMap;

use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::writer::is_final;

/// A kind that stands beside a Deployment and is no object of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extra {
    /// HorizontalPodAutoscaler.
    Scaler,
    /// PodDisruptionBudget.
    Budget,
}

/// One such object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExtraRef {
    /// Its kind.
    pub kind: Extra,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Why one was not read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum ExtraError {
    /// The server refused, or cannot be reached.
    #[error("{}: {error}", kind.kind())]
    Server {
        /// Kind.
        kind: Extra,
        /// What the server said.
        error: Box<kube::Error>,
    },
    /// Somebody else has one of that name.
    #[error("{} {}/{} is somebody else's", object.kind.kind(), object.namespace, object.name)]
    Foreign {
        /// Which.
        object: ExtraRef,
    },
}

impl ExtraError {
    /// What the server said, if its answer is that it does not take the object as it is.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Server { error, .. } => match &**error {
                kube::Error::Api(status) if is_final(status.code) => Some(&status.message),
                _ => None,
            },
            Self::Foreign { .. } => None,
        }
    }
}

impl Extra {
    /// `apiVersion`.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Scaler => "autoscaling/v2",
            Self::Budget => "policy/v1",
        }
    }

    /// `kind`.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Scaler => "HorizontalPodAutoscaler",
            Self::Budget => "PodDisruptionBudget",
        }
    }

    fn resource(self) -> ApiResource {
        let (group, version) = self.api_version().split_once('/').unwrap_or_default();
        let gvk = GroupVersionKind::gvk(group, version, self.kind());
        let plural = match self {
            Self::Scaler => "horizontalpodautoscalers",
            Self::Budget => "poddisruptionbudgets",
        };
        ApiResource::from_gvk_with_plural(&gvk, plural)
    }

    fn failed(self) -> impl FnOnce(kube::Error) -> ExtraError {
        move |error| ExtraError::Server {
            kind: self,
            error: Box::new(error),
        }
    }
}

impl Cluster {
    /// Those of a kind whose labels match, in all namespaces, with their labels.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn extras(
        &self,
        kind: Extra,
        selector: &str,
    ) -> Result<Vec<(ExtraRef, BTreeMap<String, String>)>, ExtraError> {
        let all: Api<DynamicObject> = Api::all_with(self.client(), &kind.resource());
        let selected = ListParams::default().labels(selector);
        let found = all.list(&selected).await.map_err(kind.failed())?;
        let named = found.items.into_iter().map(|one| {
            let object = ExtraRef {
                kind,
                namespace: one.metadata.namespace.unwrap_or_default(),
                name: one.metadata.name.unwrap_or_default(),
            };
            (object, one.metadata.labels.unwrap_or_default())
        });
        Ok(named.collect())
    }

    /// Writes one as `manager`, if there is none or it has `label` of ours.
    ///
    /// # Errors
    /// When it is somebody else's, or the server refuses it.
    pub async fn apply_extra(
        &self,
        object: &ExtraRef,
        value: &Value,
        manager: &str,
        label: (&str, &str),
    ) -> Result<(), ExtraError> {
        let api = self.extra(object);
        let found = api.get_opt(&object.name).await;
        if let Some(found) = found.map_err(object.kind.failed())? {
            let labels = found.metadata.labels.unwrap_or_default();
            if labels.get(label.0).map(String::as_str) != Some(label.1) {
                return Err(ExtraError::Foreign {
                    object: object.clone(),
                });
            }
        }
        let params = PatchParams::apply(manager).force();
        let done = api.patch(&object.name, &params, &Patch::Apply(value)).await;
        done.map(drop).map_err(object.kind.failed())
    }

    /// Removes one, if it is there.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn delete_extra(&self, object: &ExtraRef) -> Result<(), ExtraError> {
        let api = self.extra(object);
        match api.delete(&object.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(object.kind.failed()(error)),
        }
    }

    fn extra(&self, object: &ExtraRef) -> Api<DynamicObject> {
        Api::namespaced_with(self.client(), &object.namespace, &object.kind.resource())
    }
}
