//! What the lab's kubelet says about pods, and where: into a folder of overlays, or to a real API
//! server, where it also stands in for the controllers that make pods and accounts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use isobar_kubernetes::Cluster;
use isobar_objects::{
    Held, Kind, ObjectHead, ObjectRef, ObjectSet, ObjectWriter, OverlayWriter, Pod,
};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::plan::NodePlan;

/// Who we are to the API server's record of who wrote which field.
const MANAGER: &str = "isobar-lab";
/// Where a node's kubelet listens for the API server.
pub(crate) const PORT: u16 = 10250;
/// Marks pods that stand for processes of the lab, which it runs by itself.
pub(crate) const COMPONENT: &str = "isobar.dev/lab-component";

/// Where the lab's kubelet writes.
#[derive(Debug)]
pub(crate) enum Kubelet {
    /// Overlays onto files.
    Folder(OverlayWriter),
    /// A real API server.
    Server(Box<ServerKubelet>),
}

/// Writes to a real API server.
#[derive(Debug)]
pub(crate) struct ServerKubelet {
    cluster: Cluster,
    /// What was said last of each pod, not to say it again.
    said: Mutex<BTreeMap<ObjectRef, Value>>,
}

impl Kubelet {
    /// Writes to a real API server.
    pub(crate) fn server(cluster: Cluster) -> Self {
        Self::Server(Box::new(ServerKubelet {
            cluster,
            said: Mutex::default(),
        }))
    }

    /// True for a pod that we made from a Deployment, seen again with what others added to it.
    pub(crate) fn made(&self, pod: &Held<Pod>) -> bool {
        match self {
            Self::Folder(writer) => pod.origin.file.starts_with(writer.dir()),
            Self::Server(_) => pod.owner(),
        }
    }

    /// True for a pod that is none of the lab's business, or is to be ended.
    pub(crate) fn leaves_out(&self, pod: &Pod) -> bool {
        let is_server = matches!(self, Self::Server(_));
        is_server && (pod.annotation(COMPONENT).is_some() || is_ending(pod))
    }

    /// Places a pod on a node before it starts; returns its uid where others give it.
    pub(crate) async fn admit(
        &self,
        pod: &Pod,
        node: &NodePlan,
        is_made: bool,
    ) -> Result<Option<String>, String> {
        match self {
            Self::Folder(_) => Ok(None),
            Self::Server(server) => server.admit(pod, node, is_made).await.map(Some),
        }
    }

    /// Says what became of a pod: the whole pod if we made it, else only what is added.
    pub(crate) async fn say(
        &self,
        object: &ObjectRef,
        value: &Value,
        is_made: bool,
    ) -> Result<(), String> {
        match self {
            Self::Folder(writer) if is_made => {
                let put = writer.put_value(object, value);
                put.map_err(|error| error.to_string())
            }
            Self::Folder(writer) => {
                let patched = writer.patch(object, value).await;
                patched.map_err(|error| error.to_string())
            }
            Self::Server(server) => server.say(object, value).await,
        }
    }

    /// Where the API server finds the kubelets of nodes; none where there is no API server.
    pub(crate) fn port(&self) -> Option<u16> {
        matches!(self, Self::Server(_)).then_some(PORT)
    }

    /// Puts an object that is just there: a node, a namespace.
    pub(crate) async fn put(&self, object: &ObjectRef, value: &Value) -> Result<(), String> {
        match self {
            Self::Folder(writer) => writer
                .put_value(object, value)
                .map_err(|error| error.to_string()),
            Self::Server(server) => server.put(object, value).await,
        }
    }

    /// Adds to a service or namespace. An API server adds these things by itself.
    pub(crate) async fn patch(&self, object: &ObjectRef, patch: &Value) -> Result<(), String> {
        match self {
            Self::Folder(writer) => {
                let patched = writer.patch(object, patch).await;
                patched.map_err(|error| error.to_string())
            }
            Self::Server(_) => Ok(()),
        }
    }

    /// Takes back what was said; a pod is gone then.
    pub(crate) async fn forget(&self, object: &ObjectRef) -> Result<(), String> {
        match self {
            Self::Folder(writer) => {
                let deleted = writer.delete(object).await;
                deleted.map_err(|error| error.to_string())
            }
            Self::Server(server) => server.forget(object).await,
        }
    }

    /// Every namespace has a default account, without which it takes no pods.
    pub(crate) async fn give_accounts(&self, objects: &ObjectSet) -> Vec<String> {
        let Self::Server(server) = self else {
            return Vec::new();
        };
        let mut failed = Vec::new();
        for namespace in objects.namespaces.iter() {
            let name = namespace.name();
            let gone = namespace.metadata.deletion_timestamp.is_some();
            if !gone && objects.service_accounts.get(name, "default").is_none() {
                let made = server.account(name, "default").await;
                failed.extend(made.err());
            }
        }
        failed
    }
}

trait Owned {
    fn owner(&self) -> bool;
}

impl Owned for Held<Pod> {
    /// Only we make pods of ReplicaSets here.
    fn owner(&self) -> bool {
        let owners = self.metadata.owner_references.iter().flatten();
        owners.into_iter().any(|owner| owner.kind == "ReplicaSet")
    }
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl ServerKubelet {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.cluster.client(), namespace)
    }

    async fn admit(&self, pod: &Pod, node: &NodePlan, is_made: bool) -> Result<String, String> {
        let pods = self.pods(pod.namespace());
        let words = |error: kube::Error| error.to_string();
        if is_made {
            let mut fresh = pod.clone();
            fresh.status = None;
            fresh.metadata.uid = None;
            fresh.metadata.resource_version = None;
            fresh.metadata.creation_timestamp = None;
            if let Some(spec) = &mut fresh.spec {
                spec.node_name = Some(node.name.clone());
            }
            match pods.create(&PostParams::default(), &fresh).await {
                Ok(made) => return Ok(made.uid().to_owned()),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(words(error)),
            }
        }
        let now = pods.get(pod.name()).await.map_err(words)?;
        if is_ending(&now) {
            return Err("the pod before it is still ending".to_owned());
        }
        let placed = now.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if placed.is_none_or(str::is_empty) {
            let binding = Binding {
                metadata: ObjectMeta {
                    name: Some(pod.name().to_owned()),
                    ..ObjectMeta::default()
                },
                target: ObjectReference {
                    kind: Some("Node".to_owned()),
                    name: Some(node.name.clone()),
                    ..ObjectReference::default()
                },
            };
            let params = PostParams::default();
            let bound: Result<Value, _> = pods
                .create_subresource("binding", pod.name(), &params, &binding)
                .await;
            bound.map_err(words)?;
        }
        Ok(now.uid().to_owned())
    }

    async fn say(&self, object: &ObjectRef, value: &Value) -> Result<(), String> {
        let ending = value["metadata"]["deletionTimestamp"].is_string();
        let news = json!({"status": value["status"], "ending": ending});
        let known = self.said().get(object).cloned();
        if known.as_ref() == Some(&news) {
            return Ok(());
        }
        let pods = self.pods(&object.namespace);
        // As a kubelet does: conditions of others stay beside ours.
        let patch = Patch::Strategic(json!({ "status": value["status"] }));
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let done = pods.patch_status(&object.name, &params, &patch).await;
        if !there(done.map(drop))? {
            return Ok(());
        }
        if ending && known.is_none_or(|known| known["ending"] != true) {
            let asked = pods.delete(&object.name, &DeleteParams::default()).await;
            there(asked.map(drop))?;
        }
        self.said().insert(object.clone(), news);
        Ok(())
    }

    async fn forget(&self, object: &ObjectRef) -> Result<(), String> {
        self.said().remove(object);
        if object.known() != Some(Kind::Pod) {
            return Ok(());
        }
        let now = DeleteParams::default().grace_period(0);
        let done = self
            .pods(&object.namespace)
            .delete(&object.name, &now)
            .await;
        there(done.map(drop)).map(drop)
    }

    async fn put(&self, object: &ObjectRef, value: &Value) -> Result<(), String> {
        let kind = object.known().ok_or("an unknown kind")?;
        let gvk = kube::core::GroupVersionKind::gvk(kind.group(), "v1", kind.as_str());
        let resource = kube::api::ApiResource::from_gvk_with_plural(&gvk, kind.plural());
        let client = self.cluster.client();
        let all: Api<kube::api::DynamicObject> = Api::all_with(client, &resource);
        let params = PatchParams::apply(MANAGER).force();
        let mut value = value.clone();
        let status = value.as_object_mut().and_then(|map| map.remove("status"));
        if let Some(head) = value["metadata"].as_object_mut() {
            head.remove("uid");
        }
        let done = all
            .patch(&object.name, &params, &Patch::Apply(&value))
            .await;
        done.map_err(|error| error.to_string())?;
        if let Some(status) = status {
            let patch = Patch::Merge(json!({ "status": status }));
            let done = all
                .patch_status(&object.name, &PatchParams::default(), &patch)
                .await;
            done.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn account(&self, namespace: &str, name: &str) -> Result<(), String> {
        make_account(&self.cluster, namespace, name).await
    }

    fn said(&self) -> std::sync::MutexGuard<'_, BTreeMap<ObjectRef, Value>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes an account unless it is there.
async fn make_account(cluster: &Cluster, namespace: &str, name: &str) -> Result<(), String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), namespace);
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        // Pods get the volumes they ask for and no other.
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    match accounts.create(&PostParams::default(), &account).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(format!("account {namespace}/{name}: {error}")),
    }
}

/// False if the object is not there.
fn there(done: Result<(), kube::Error>) -> Result<bool, String> {
    match done {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}
