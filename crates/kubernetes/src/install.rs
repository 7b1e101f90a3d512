use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions,
};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::Cluster;

/// Time that a server may take until it is ready for a kind, and pause between two tries.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);

/// Puts whole objects of any kind into a cluster, and finds and removes them again.
///
/// Objects are JSON values as YAML files have them. Kinds are looked up at the server once.
#[derive(Debug)]
pub struct Installer {
    cluster: Cluster,
    manager: String,
    kinds: Mutex<BTreeMap<(String, String), Kind>>,
}

/// How an object is applied.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Applying {
    /// The server only says what it would do.
    pub dry_run: bool,
    /// Takes fields from other managers.
    pub force: bool,
}

/// A kind as the server has it.
#[derive(Debug, Clone)]
struct Kind {
    resource: ApiResource,
    is_namespaced: bool,
}

/// Why an object was not read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The server does not have the kind.
    #[error("{object}: the API server has no kind {kind} in {api_version}")]
    NoKind {
        /// The object.
        object: String,
        /// Its kind.
        kind: String,
        /// Its group and version.
        api_version: String,
    },
    /// The namespace is not there.
    #[error("{object}: there is no namespace {namespace}")]
    NoNamespace {
        /// The object.
        object: String,
        /// The namespace.
        namespace: String,
    },
    /// Another field manager has fields of it.
    #[error("{object}: {message}")]
    Conflict {
        /// The object.
        object: String,
        /// Which fields, and whose.
        message: String,
    },
    /// The server refused, or cannot be reached.
    #[error("{object}: {message}")]
    Refused {
        /// The object.
        object: String,
        /// What the server said.
        message: String,
    },
}

/// `Kind namespace/name`, for people.
fn label(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}").trim_end().to_owned(),
    }
}

/// Does it again for a while where the server says that it is not ready for this kind yet, as it does
/// right after the kind was defined or another one was taken away.
async fn patient<T>(attempt: impl AsyncFn() -> Result<T, kube::Error>) -> Result<T, kube::Error> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Err(kube::Error::Api(status)) if status.code == 429 && Instant::now() < end => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

impl Installer {
    /// Writes as `manager`.
    #[must_use]
    pub fn new(cluster: Cluster, manager: &str) -> Self {
        Self {
            cluster,
            manager: manager.to_owned(),
            kinds: Mutex::default(),
        }
    }

    /// The object as it is in the cluster; `None` if it is not there, or its kind is not.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn get(&self, object: &Value) -> Result<Option<Value>, InstallError> {
        let api = match self.api(object).await {
            Ok(api) => api,
            Err(InstallError::NoKind { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = patient(async || api.get_opt(name(object)).await).await;
        let found = found.map_err(|error| failed(object, error))?;
        found.map(|found| self.value(object, &found)).transpose()
    }

    /// Applies it by server-side apply, with every field checked; returns it as it is then.
    ///
    /// # Errors
    /// When the server refuses it, or another manager has fields of it.
    pub async fn apply(&self, object: &Value, how: Applying) -> Result<Value, InstallError> {
        let api = self.api(object).await?;
        let mut params = PatchParams::apply(&self.manager).validation_strict();
        params.dry_run = how.dry_run;
        params.force = how.force;
        let patch = Patch::Apply(object);
        let done = patient(async || api.patch(name(object), &params, &patch).await).await;
        let done = done.map_err(|error| failed(object, error))?;
        self.value(object, &done)
    }

    /// Removes it, if it still is the one that was found; false if it is not there.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn delete(&self, object: &Value) -> Result<bool, InstallError> {
        let api = self.api(object).await?;
        let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
        let params = DeleteParams::background().preconditions(Preconditions {
            uid,
            resource_version: None,
        });
        match patient(async || api.delete(name(object), &params).await).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(failed(object, error)),
        }
    }

    /// Objects of a kind whose labels match `selector`, in all namespaces; none of a kind that the
    /// server does not have.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn list(
        &self,
        api_version: &str,
        kind: &str,
        selector: &str,
    ) -> Result<Vec<Value>, InstallError> {
        let like = json!({ "apiVersion": api_version, "kind": kind });
        let known = match self.kind(&like).await {
            Ok(known) => known,
            Err(InstallError::NoKind { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let api: Api<DynamicObject> = Api::all_with(self.cluster.client(), &known.resource);
        let params = ListParams::default().labels(selector);
        let found = patient(async || api.list(&params).await).await;
        let found = found.map_err(|error| failed(&like, error))?;
        found
            .items
            .iter()
            .map(|one| self.value(&like, one))
            .collect()
    }

    /// True if the server has the kind.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn has(&self, api_version: &str, kind: &str) -> Result<bool, InstallError> {
        let like = json!({ "apiVersion": api_version, "kind": kind });
        match self.kind(&like).await {
            Ok(_) => Ok(true),
            Err(InstallError::NoKind { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn api(&self, object: &Value) -> Result<Api<DynamicObject>, InstallError> {
        let kind = self.kind(object).await?;
        let client = self.cluster.client();
        Ok(match object["metadata"]["namespace"].as_str() {
            Some(namespace) if kind.is_namespaced => {
                Api::namespaced_with(client, namespace, &kind.resource)
            }
            None if kind.is_namespaced => Api::default_namespaced_with(client, &kind.resource),
            _ => Api::all_with(client, &kind.resource),
        })
    }

    async fn kind(&self, object: &Value) -> Result<Kind, InstallError> {
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let key = (text("apiVersion"), text("kind"));
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let (group, version) = key.0.split_once('/').unwrap_or(("", &key.0));
        let gvk = GroupVersionKind::gvk(group, version, &key.1);
        let no_kind = || InstallError::NoKind {
            object: label(object),
            kind: key.1.clone(),
            api_version: key.0.clone(),
        };
        let found = match discovery::pinned_kind(&self.cluster.client(), &gvk).await {
            Ok((resource, capabilities)) => Kind {
                resource,
                is_namespaced: capabilities.scope == Scope::Namespaced,
            },
            Err(kube::Error::Api(status)) if status.code == 404 => return Err(no_kind()),
            Err(kube::Error::Discovery(_)) => return Err(no_kind()),
            Err(error) => return Err(failed(object, error)),
        };
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.insert(key, found.clone());
        Ok(found)
    }

    fn known(&self, key: &(String, String)) -> Option<Kind> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.get(key).cloned()
    }

    fn value(&self, like: &Value, found: &DynamicObject) -> Result<Value, InstallError> {
        let mut value = serde_json::to_value(found).map_err(|error| InstallError::Refused {
            object: label(like),
            message: error.to_string(),
        })?;
        // Items of a list have no kind of their own.
        for key in ["apiVersion", "kind"] {
            if value[key].is_null() {
                value[key] = like[key].clone();
            }
        }
        Ok(value)
    }
}

fn failed(object: &Value, error: kube::Error) -> InstallError {
    let namespace = object["metadata"]["namespace"].as_str();
    let object = label(object);
    match (error, namespace) {
        (kube::Error::Api(status), Some(namespace))
            if status.code == 404 && status.message.contains("namespaces \"") =>
        {
            let namespace = namespace.to_owned();
            InstallError::NoNamespace { object, namespace }
        }
        (kube::Error::Api(status), _) if status.code == 409 => InstallError::Conflict {
            object,
            message: status.message.clone(),
        },
        (kube::Error::Api(status), _) => InstallError::Refused {
            object,
            message: status.message.clone(),
        },
        (error, _) => InstallError::Refused {
            object,
            message: error.to_string(),
        },
    }
}
