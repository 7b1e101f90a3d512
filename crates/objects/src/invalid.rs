//! Objects whose present version is not valid, and what is in force instead.

use std::collections::BTreeMap;

use isobar_types::labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::finding::Finding;
use crate::guarded;
use crate::istio::{Action, AuthorizationPolicy, AuthorizationPolicySpec, Rule};
use crate::kinds::{Kind, ObjectRef};
use crate::mesh_config;
use crate::object::Object;
use crate::targets::{read_targets, text};

/// What is known of a version that is not valid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invalid {
    /// `metadata.uid`; none in files.
    pub uid: Option<String>,
    /// `metadata.generation`; none in files.
    pub generation: Option<i64>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its class, where it is a Gateway.
    pub class: Option<String>,
    /// What is wrong, in one line.
    pub message: String,
    /// What counts meanwhile.
    pub instead: Instead,
    /// Whether that outlives the process, where it is the last valid version.
    pub kept: Kept,
}

/// Whether a last valid version is known to later processes too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kept {
    /// It is.
    #[default]
    Yes,
    /// It is not, and why.
    No(String),
}

/// What counts while an object is not valid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Instead {
    /// The last version that was valid.
    LastGood,
    /// What stands for it where no version is known to be valid: a policy that refuses everything to
    /// whom it is about, a route that answers with 500, or a MeshConfig that lets workloads go to what
    /// the mesh knows only.
    Refusal,
    /// Nothing.
    #[default]
    Nothing,
}

/// All of them.
pub type Invalids = BTreeMap<ObjectRef, Invalid>;

/// Words of findings in a message.
const TOLD: usize = 3;

impl Invalid {
    /// What the head of an object says.
    pub(crate) fn read(value: &Value) -> Self {
        let head = value.get("metadata");
        let labels = head.and_then(|head| head.get("labels"));
        let labels = labels.cloned().map(serde_json::from_value);
        let class = value.get("spec").and_then(|s| s.get("gatewayClassName"));
        let uid = head.and_then(|head| head.get("uid")?.as_str());
        Self {
            uid: uid.map(str::to_owned),
            generation: head.and_then(|head| head.get("generation")?.as_i64()),
            labels: labels.and_then(Result::ok).unwrap_or_default(),
            class: class.and_then(Value::as_str).map(str::to_owned),
            ..Self::default()
        }
    }

    /// The same, with what is wrong.
    pub(crate) fn because<'f>(mut self, findings: impl IntoIterator<Item = &'f Finding>) -> Self {
        let all = findings.into_iter().filter(|finding| finding.is_error());
        let all = all.map(|finding| match finding.field.as_str() {
            "" => finding.message.clone(),
            field => format!("{field}: {}", finding.message),
        });
        self.message = all.take(TOLD).collect::<Vec<_>>().join("; ");
        self
    }

    /// The same, with what counts meanwhile.
    pub(crate) const fn instead(mut self, instead: Instead) -> Self {
        self.instead = instead;
        self
    }
}

/// What is in force for a policy of which no version is known to be valid: who wanted to refuse
/// something shall not find everything allowed. Its target is what can be read of it; where that
/// cannot, it is the whole namespace. A MeshConfig closes the way out; a route that asks somebody first
/// answers with a refusal. Nothing for other kinds, for a policy that would refuse nothing (AUDIT, a dry
/// run), and where every target is one that no policy can have.
pub(crate) fn refusal(kind: Kind, value: &Value) -> Option<Object> {
    match kind {
        Kind::AuthorizationPolicy => {}
        Kind::ConfigMap => return mesh_config::closed(value).map(Into::into),
        Kind::HttpRoute | Kind::GrpcRoute => return guarded::refusing(kind, value),
        _ => return None,
    }
    let spec = value.get("spec").unwrap_or(&Value::Null);
    if spec.get("action").and_then(Value::as_str) == Some("AUDIT") {
        return None;
    }
    let head = value.get("metadata")?;
    let dry_run = head
        .get("annotations")
        .and_then(|all| all.get(labels::DRY_RUN));
    if dry_run.and_then(text).is_some_and(|value| value == "true") {
        return None;
    }
    let metadata = part(value, "metadata").or_else(|| least(head))?;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    // Both together is what is wrong: node proxies leave policies with targets to waypoints.
    let target_refs = match spec.get("selector").filter(|it| !it.is_null()) {
        Some(_) => Vec::new(),
        None => read_targets(spec, namespace)?,
    };
    let policy = AuthorizationPolicy {
        api_version: kind.api_version(),
        kind: kind.as_str().to_owned(),
        metadata,
        spec: AuthorizationPolicySpec {
            selector: part(spec, "selector"),
            target_ref: None,
            target_refs,
            rules: vec![Rule::default()],
            action: Action::Deny,
            provider: None,
        },
        status: value.get("status").cloned(),
    };
    Some(policy.into())
}

/// Who an object is, where something else of its head cannot be read.
fn least(head: &Value) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: Some(text(head.get("name")?)?),
        namespace: head.get("namespace").and_then(text),
        ..ObjectMeta::default()
    })
}

/// A field that can be read, whatever else is in it.
fn part<T: DeserializeOwned>(value: &Value, field: &str) -> Option<T> {
    let value = value.get(field).filter(|value| !value.is_null())?;
    T::deserialize(value).ok()
}

/// `object` with what is said about its present version: that comes with every version.
pub(crate) fn with_status(object: &Object, status: Option<&Value>) -> Option<Object> {
    let mut value = object.to_value().ok()?;
    let whole = value.as_object_mut()?;
    match status {
        Some(status) => whole.insert("status".to_owned(), status.clone()),
        None => whole.shift_remove("status"),
    };
    Object::deserialize(object.kind(), &value, &crate::strict::Strict::default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(spec: &Value) -> Option<AuthorizationPolicySpec> {
        let value = json!({ "metadata": { "name": "p", "namespace": "shop" }, "spec": spec });
        match refusal(Kind::AuthorizationPolicy, &value)? {
            Object::AuthorizationPolicy(policy) => Some(policy.spec),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_policy_is_about_is_read_as_far_as_it_can_be() {
        let cart = json!({ "matchLabels": { "app": "cart" } });
        let spec = refused(&json!({ "selector": cart, "acton": "ALLOW" })).unwrap();
        assert_eq!(spec.selector.unwrap().match_labels["app"], "cart");
        assert_eq!((spec.action, spec.rules.len()), (Action::Deny, 1));

        let service = json!([{ "kind": "Service", "group": "", "name": "cart", "port": 1 }]);
        let spec = refused(&json!({ "targetRefs": service, "rules": 7 })).unwrap();
        assert_eq!(spec.target_refs[0].name, "cart");

        let spec = refused(&json!({ "selector": "cart" })).unwrap();
        assert_eq!(spec.selector, None, "the whole namespace");
        assert_eq!(refused(&json!({ "action": "AUDIT", "rules": 7 })), None);
    }

    #[test]
    fn a_head_that_cannot_be_read_opens_nothing() {
        let kind = Kind::AuthorizationPolicy;
        for (field, odd) in [
            ("labels", json!(7)),
            ("labels", json!({ "app": ["cart"] })),
            ("annotations", json!("none")),
            ("annotations", json!({ "a": 7 })),
            ("creationTimestamp", json!("yesterday")),
            ("ownerReferences", json!({})),
        ] {
            let mut head = json!({ "name": "p", "namespace": "shop" });
            head[field] = odd;
            let value = json!({ "metadata": head, "spec": {} });
            let Some(Object::AuthorizationPolicy(policy)) = refusal(kind, &value) else {
                panic!("it is open: {value}")
            };
            let own = &policy.metadata;
            let named = (own.name.as_deref(), own.namespace.as_deref());
            assert_eq!(named, (Some("p"), Some("shop")));
        }
        let annotations = json!({ labels::DRY_RUN: true });
        let head = json!({ "name": "p", "namespace": "shop", "annotations": annotations });
        let value = json!({ "metadata": head, "spec": {} });
        assert_eq!(refusal(kind, &value), None, "it was to refuse nothing");
    }

    #[test]
    fn a_mesh_config_closes_the_way_out() {
        use crate::mesh_config::{MeshConfig, OutboundMode};
        let of = |name: &str, key: &str| {
            let value = json!({ "metadata": { "name": name }, "data": { key: "trustDomain: [" } });
            refusal(Kind::ConfigMap, &value)
        };
        let Some(Object::ConfigMap(map)) = of("istio-v2", "mesh") else {
            panic!("nothing stands for it")
        };
        let config = MeshConfig::read(&map).unwrap().unwrap().config;
        let mode = config
            .outbound_traffic_policy
            .and_then(|policy| policy.mode);
        assert_eq!(mode, Some(OutboundMode::RegistryOnly));
        assert_eq!(of("shop", "mesh"), None);
        assert_eq!(of("istio", "else"), None);
    }

    #[test]
    fn a_dry_run_refuses_nothing() {
        let policy = |annotation: &str| {
            json!({
                "metadata": {
                    "name": "p", "namespace": "shop",
                    "annotations": { labels::DRY_RUN: annotation },
                },
                "spec": { "rules": 7 },
            })
        };
        let kind = Kind::AuthorizationPolicy;
        assert_eq!(refusal(kind, &policy("true")), None);
        assert!(refusal(kind, &policy("false")).is_some());
    }

    #[test]
    fn a_stand_in_is_about_what_a_policy_can_be_about() {
        let service = json!({ "kind": "Service", "group": "", "name": "cart" });
        let pods = json!({ "kind": "Pod", "group": "", "name": "cart" });
        let foreign = json!({ "kind": "Service", "namespace": "other", "name": "cart" });
        let both =
            json!({ "selector": { "matchLabels": { "app": "cart" } }, "targetRefs": [service] });
        let spec = refused(&both).unwrap();
        assert!(spec.selector.is_some() && spec.targets().next().is_none());

        let spec = refused(&json!({ "targetRefs": [pods, service] })).unwrap();
        let kinds: Vec<_> = spec.targets().map(|target| target.kind.as_str()).collect();
        assert_eq!(kinds, ["Service"]);
        assert_eq!(refused(&json!({ "targetRefs": [pods, foreign] })), None);
        assert_eq!(refused(&json!({ "targetRef": pods })), None);
    }

    #[test]
    fn a_message_has_the_fields() {
        let findings = [
            Finding::warning("spec", "unusual"),
            Finding::error("spec.rules", "no list"),
            Finding::error("", "nothing"),
        ];
        let told = Invalid::read(&json!({ "metadata": { "generation": 4 } })).because(&findings);
        assert_eq!(told.message, "spec.rules: no list; nothing");
        assert_eq!(told.generation, Some(4));
    }
}
