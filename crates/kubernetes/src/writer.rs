use async_trait::async_trait;
use isobar_objects::{Kind, Object, ObjectRef, ObjectWriter, WriteError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::GroupVersionKind;
use serde_json::{Map, Value, json};

use crate::beside;
use crate::cluster::Cluster;
use crate::ports;

/// Writes objects to an API server.
///
/// Whole objects and statuses go by server-side apply as one field manager: what another manager
/// wrote beside ours stays, above all other controllers' conditions. Labels and annotations of
/// somebody else's object go by merge patch, which unlike an apply never makes the object; a pod's
/// annotations as part of its status, so that nobody needs the right to change pods for them. The
/// server remembers who wrote what, so that an earlier life's writes can be taken back too. It
/// remembers fields: a whole object of ours has a label at least. What is meant for one life of an
/// object carries its uid, which the server refuses for another one of that name.
#[derive(Debug)]
pub struct KubernetesWriter {
    cluster: Cluster,
    /// Of whole objects.
    manager: String,
    /// Of what is said on objects of others.
    teller: String,
}

/// What this writer has on an object, as the server remembers it.
#[derive(Debug, Default, PartialEq)]
struct Written {
    /// The object is ours.
    is_whole: bool,
    /// A merge patch that removes our labels and annotations.
    undo: Option<Value>,
    has_status: bool,
}

impl KubernetesWriter {
    /// A writer that calls itself `manager`, as no other may.
    #[must_use]
    pub fn new(cluster: Cluster, manager: &str) -> Self {
        Self {
            cluster,
            manager: manager.to_owned(),
            teller: manager.to_owned(),
        }
    }

    /// The same, but patches and statuses go as `teller`. Writers that take whole objects over from each
    /// other have one name for those, and keep apart what they say of others.
    #[must_use]
    pub fn telling_as(mut self, teller: &str) -> Self {
        teller.clone_into(&mut self.teller);
        self
    }

    /// True if this writer wrote the object or a part of it, in this life or an earlier one.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn wrote(&self, object: &ObjectRef) -> Result<bool, WriteError> {
        let (api, _) = self.api(object);
        let now = api.get_opt(&object.name).await.map_err(refused(object))?;
        let managers = now.and_then(|now| now.metadata.managed_fields);
        let written = self.written(&managers.unwrap_or_default());
        Ok(written != Written::default())
    }

    fn api(&self, object: &ObjectRef) -> (Api<DynamicObject>, ApiResource) {
        let client: Client = self.cluster.client();
        let kind = object.known();
        let version = kind.map_or("v1", |kind: Kind| kind.versions()[0]);
        let gvk = GroupVersionKind::gvk(&object.group, version, &object.kind);
        let resource = match kind {
            Some(kind) => ApiResource::from_gvk_with_plural(&gvk, kind.plural()),
            None => ApiResource::from_gvk(&gvk),
        };
        let api = if object.namespace.is_empty() {
            Api::all_with(client, &resource)
        } else {
            Api::namespaced_with(client, &object.namespace, &resource)
        };
        (api, resource)
    }

    fn written(&self, managers: &[ManagedFieldsEntry]) -> Written {
        Written {
            is_whole: Written::find(managers, &self.manager).is_whole,
            ..Written::find(managers, &self.teller)
        }
    }

    /// Applies what this writer has to say on a status; an empty one gives up what it said before.
    async fn apply_status(
        &self,
        object: &ObjectRef,
        uid: Option<&str>,
        status: &Value,
    ) -> Result<(), WriteError> {
        let (api, resource) = self.api(object);
        let mut value = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": &*object.name },
            "status": without_nulls(status),
        });
        if let Some(uid) = uid {
            value["metadata"]["uid"] = json!(uid);
        }
        let is_route = object.known().is_some_and(Kind::is_route);
        if is_route || has_plain_lists(object) {
            let Some(now) = api.get_opt(&object.name).await.map_err(refused(object))? else {
                return Ok(());
            };
            let all = beside::conditions(&now, status);
            // Refused, and tried again, if the object changes before this arrives.
            if is_route || all.is_some() {
                value["metadata"]["resourceVersion"] = json!(now.metadata.resource_version);
            }
            if is_route {
                value["status"]["parents"] = beside::parents(&now.data["status"], status);
            }
            if let Some(all) = all {
                value["status"]["conditions"] = all;
            }
        }
        if value["status"].as_object().is_some_and(Map::is_empty) {
            // Named, it would stay, as a null that schemas refuse.
            remove(&mut value, "status");
        }
        let done = api
            .patch_status(
                &object.name,
                &PatchParams::apply(&self.teller).force(),
                &Patch::Apply(value),
            )
            .await;
        self.settled(object, uid, done.map(drop)).await
    }

    /// Takes away ports of others that keep a Service of ours from being as it should be. False if that
    /// is not why the server refuses it.
    async fn make_room(
        &self,
        api: &Api<DynamicObject>,
        service: &ObjectRef,
        value: &Value,
    ) -> bool {
        if service.known() != Some(Kind::Service) {
            return false;
        }
        let Ok(Some(now)) = api.get_opt(&service.name).await else {
            return false;
        };
        let managers = now.metadata.managed_fields.clone().unwrap_or_default();
        let Ok(now) = serde_json::to_value(&now) else {
            return false;
        };
        if !Written::find(&managers, &self.manager).is_whole {
            return false;
        }
        let Some(patch) = ports::room_for(value, &now, &managers, &self.manager) else {
            return false;
        };
        let params = PatchParams {
            field_manager: Some(self.manager.clone()),
            ..PatchParams::default()
        };
        let done = api
            .patch(&service.name, &params, &Patch::Strategic(&patch))
            .await;
        if let Err(error) = &done {
            tracing::debug!(%service, %error, "ports of others could not be taken away");
        } else {
            tracing::warn!(
                %service, ports = %patch["spec"]["ports"],
                "took away ports that somebody gave the names of ours",
            );
        }
        done.is_ok()
    }

    async fn merge(
        &self,
        object: &ObjectRef,
        uid: Option<&str>,
        patch: &Value,
    ) -> Result<(), WriteError> {
        let params = PatchParams {
            field_manager: Some(self.teller.clone()),
            ..PatchParams::default()
        };
        let (api, _) = self.api(object);
        let with_status = goes_with_status(object, patch);
        let mut patch = patch.clone();
        if let Some(uid) = uid {
            patch["metadata"]["uid"] = json!(uid);
        }
        let change = Patch::Merge(patch);
        let done = if with_status {
            api.patch_status(&object.name, &params, &change).await
        } else {
            api.patch(&object.name, &params, &change).await
        };
        self.settled(object, uid, done.map(drop)).await
    }

    /// How a patch ended: it is no error if its object is gone, or another one has its name.
    async fn settled(
        &self,
        object: &ObjectRef,
        uid: Option<&str>,
        done: Result<(), kube::Error>,
    ) -> Result<(), WriteError> {
        if let (Some(uid), Err(kube::Error::Api(status))) = (uid, &done)
            // Servers differ in what they call a uid that is not the object's.
            && matches!(status.code, 409 | 422)
        {
            let (api, _) = self.api(object);
            let now = api.get_opt(&object.name).await.map_err(refused(object))?;
            if now.is_none_or(|now| now.metadata.uid.as_deref() != Some(uid)) {
                return Ok(());
            }
        }
        found(object, done).map(drop)
    }

    async fn patch_of(
        &self,
        object: &ObjectRef,
        uid: Option<&str>,
        patch: &Value,
    ) -> Result<(), WriteError> {
        let mut rest = patch.clone();
        let status = remove(&mut rest, "status");
        if rest.as_object().is_some_and(|rest| !rest.is_empty()) {
            self.merge(object, uid, &rest).await?;
        }
        if let Some(status) = status {
            self.apply_status(object, uid, &status).await?;
        }
        Ok(())
    }

    async fn delete_of(&self, object: &ObjectRef, uid: Option<&str>) -> Result<(), WriteError> {
        let (api, _) = self.api(object);
        let Some(now) = api.get_opt(&object.name).await.map_err(refused(object))? else {
            return Ok(());
        };
        if uid.is_some() && now.metadata.uid.as_deref() != uid {
            return Ok(());
        }
        let managers = now.metadata.managed_fields.unwrap_or_default();
        let written = self.written(&managers);
        if written.is_whole {
            // This one, not one that somebody made in the meantime.
            let only = DeleteParams::background().preconditions(Preconditions {
                uid: now.metadata.uid,
                resource_version: None,
            });
            let done = api.delete(&object.name, &only).await;
            return found(object, done.map(drop)).map(drop);
        }
        if let Some(undo) = &written.undo {
            self.merge(object, uid, undo).await?;
        }
        if written.has_status {
            self.apply_status(object, uid, &json!({})).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectWriter for KubernetesWriter {
    async fn create(&self, object: &Object) -> Result<(), WriteError> {
        let reference = object.reference();
        let (api, resource) = self.api(&reference);
        let value = whole(object, &resource)?;
        let object: DynamicObject =
            serde_json::from_value(value).map_err(|error| WriteError::Encode {
                object: reference.clone(),
                error,
            })?;
        let params = PostParams {
            field_manager: Some(self.manager.clone()),
            ..PostParams::default()
        };
        let done = api.create(&params, &object).await;
        done.map(drop).map_err(refused(&reference))
    }

    async fn apply(&self, object: &Object) -> Result<(), WriteError> {
        let reference = object.reference();
        let (api, resource) = self.api(&reference);
        let value = whole(object, &resource)?;
        let params = PatchParams::apply(&self.manager).force();
        let value = Patch::Apply(value);
        let mut done = api.patch(&reference.name, &params, &value).await;
        if let (Err(kube::Error::Api(status)), Patch::Apply(wanted)) = (&done, &value)
            && status.code == 422
            && self.make_room(&api, &reference, wanted).await
        {
            done = api.patch(&reference.name, &params, &value).await;
        }
        done.map(drop).map_err(refused(&reference))
    }

    async fn patch(&self, object: &ObjectRef, patch: &Value) -> Result<(), WriteError> {
        self.patch_of(object, None, patch).await
    }

    async fn patch_exactly(
        &self,
        object: &ObjectRef,
        uid: &str,
        patch: &Value,
    ) -> Result<(), WriteError> {
        self.patch_of(object, Some(uid), patch).await
    }

    async fn delete(&self, object: &ObjectRef) -> Result<(), WriteError> {
        self.delete_of(object, None).await
    }

    async fn delete_exactly(&self, object: &ObjectRef, uid: &str) -> Result<(), WriteError> {
        self.delete_of(object, Some(uid)).await
    }
}

impl Written {
    /// Whole objects and statuses are applied, everything else is an update.
    fn find(managers: &[ManagedFieldsEntry], ours: &str) -> Self {
        let mut written = Self::default();
        let mut updated = Vec::new();
        let ours = managers
            .iter()
            .filter(|one| one.manager.as_deref() == Some(ours));
        for entry in ours {
            let is_applied = entry.operation.as_deref() == Some("Apply");
            let is_status = entry.subresource.as_deref() == Some("status");
            match (is_applied, is_status) {
                (true, true) => written.has_status = true,
                (true, false) => written.is_whole = true,
                // Annotations of pods are written through their status.
                (false, _) => updated.extend(entry.fields_v1.as_ref().map(|fields| &fields.0)),
            }
        }
        written.undo = head_undone(&updated);
        written
    }
}

/// An object as a server takes it, without what that decides itself.
fn whole(object: &Object, resource: &ApiResource) -> Result<Value, WriteError> {
    let mut value = object.to_value().map_err(|error| WriteError::Encode {
        object: object.reference(),
        error,
    })?;
    value["apiVersion"] = json!(resource.api_version);
    value["kind"] = json!(resource.kind);
    remove(&mut value, "status");
    for server_owned in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
        remove(&mut value["metadata"], server_owned);
    }
    Ok(value)
}

/// True for annotations of a pod, and nothing else: the status carries them too, and who may write the
/// status of a pod may not change what the pod runs.
fn goes_with_status(object: &ObjectRef, patch: &Value) -> bool {
    let is_only = |value: &Value, key: &str| {
        let fields = value.as_object();
        fields.is_some_and(|fields| fields.keys().eq([key]))
    };
    object.known() == Some(Kind::Pod)
        && is_only(patch, "metadata")
        && is_only(&patch["metadata"], "annotations")
}

/// True for kinds of Istio's: its own definitions of them make a status's conditions one value, ours
/// do not, and either may be in the cluster.
fn has_plain_lists(object: &ObjectRef) -> bool {
    object.group.ends_with(".istio.io")
}

/// The patch that removes the labels and annotations of field sets; those name fields as `f:NAME`.
fn head_undone(sets: &[&Value]) -> Option<Value> {
    let mut head = Map::new();
    for part in ["labels", "annotations"] {
        let written = sets
            .iter()
            .filter_map(|set| set["f:metadata"][format!("f:{part}")].as_object());
        let keys = written.flat_map(Map::keys);
        let nulls: Map<_, _> = keys
            .filter_map(|key| Some((key.strip_prefix("f:")?.to_owned(), Value::Null)))
            .collect();
        if !nulls.is_empty() {
            head.insert(part.to_owned(), nulls.into());
        }
    }
    (!head.is_empty()).then(|| json!({ "metadata": head }))
}

fn refused(object: &ObjectRef) -> impl FnOnce(kube::Error) -> WriteError {
    let object = object.clone();
    move |error| match error {
        kube::Error::Api(status) if is_final(status.code) => WriteError::Rejected {
            object,
            message: status.message.clone(),
        },
        error => WriteError::Refused {
            object,
            error: error.to_string(),
        },
    }
}

/// Codes of answers that stay the same until the object or the server's rules are others: 403 also comes
/// from admission and quotas.
pub(crate) const fn is_final(code: u16) -> bool {
    matches!(code, 400 | 403 | 413 | 415 | 422)
}

/// False if the object is not there, which is no error for a patch.
fn found(object: &ObjectRef, done: Result<(), kube::Error>) -> Result<bool, WriteError> {
    match done {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(refused(object)(error)),
    }
}

fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut()?.shift_remove(key)
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            let kept = kept.map(|(key, value)| (key.clone(), without_nulls(value)));
            Value::Object(kept.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, sub: Option<&str>, fields: &Value) -> Value {
        json!({"manager": manager, "operation": operation, "subresource": sub, "fieldsV1": fields})
    }

    #[test]
    fn what_was_written_is_read_from_the_servers_memory() {
        let mine = json!({"f:metadata": {
            "f:annotations": {".": {}, "f:isobar.dev/x": {}},
            "f:labels": {"f:l": {}},
        }});
        let beside = json!({"f:metadata": {"f:annotations": {"f:isobar.dev/y": {}}}});
        let find = |entries: Value| {
            let entries: Vec<ManagedFieldsEntry> = serde_json::from_value(entries).unwrap();
            Written::find(&entries, "isobar")
        };
        let patched = find(json!([
            entry("isobar", "Update", None, &mine),
            entry("isobar", "Update", Some("status"), &beside),
            entry("isobar", "Apply", Some("status"), &json!({})),
            entry("kubectl", "Apply", None, &json!({})),
        ]));
        let both = json!({"isobar.dev/x": null, "isobar.dev/y": null});
        let undo = json!({"metadata": {"labels": {"l": null}, "annotations": both}});
        assert_eq!(
            patched,
            Written {
                is_whole: false,
                undo: Some(undo),
                has_status: true
            }
        );
        assert!(find(json!([entry("isobar", "Apply", None, &mine)])).is_whole);
        // An object that others wrote is never deleted.
        let others = json!([entry("kubectl", "Apply", None, &mine)]);
        assert_eq!(find(others), Written::default());
    }

    #[test]
    fn only_annotations_of_a_pod_go_with_its_status() {
        let pod = ObjectRef::new(Kind::Pod, "shop", "cart");
        let annotations = json!({"metadata": {"annotations": {"a": "b"}}});
        assert!(goes_with_status(&pod, &annotations));
        let service = ObjectRef::new(Kind::Service, "shop", "cart");
        assert!(!goes_with_status(&service, &annotations));
        for more in [
            json!({"metadata": {"annotations": {}, "labels": {}}}),
            json!({"metadata": {"annotations": {}}, "spec": {}}),
            json!({"metadata": {}}),
            json!(null),
        ] {
            assert!(!goes_with_status(&pod, &more), "{more}");
        }
    }

    #[test]
    fn an_applied_status_has_no_nulls() {
        let status = json!({"addresses": null, "conditions": [{"type": "A", "x": null}]});
        let kept = json!({"conditions": [{"type": "A", "x": null}]});
        assert_eq!(without_nulls(&status), kept);
    }
}
