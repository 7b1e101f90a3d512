//! What becomes of an object that the API server is about to store.

use std::sync::Arc;

use isobar_objects::{Finding, Kind, Object, Published, ServedObject, Stranger, beside};
use isobar_types::CLUSTER_DOMAIN;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::model::refused_hosts;

/// Findings in one answer.
const TOLD: usize = 10;
/// The API server cuts longer warnings off, and forgets them when all together are too long.
const WARNING: usize = 240;

/// Judges objects by the rules that files and watched objects are judged by.
#[derive(Debug, Clone)]
pub(crate) struct Judge {
    /// What the object will be among.
    pub(crate) objects: watch::Receiver<Arc<Published>>,
    /// Classes of Gateways that are ours.
    pub(crate) waypoint_classes: Vec<String>,
    /// False: another control plane judges, and what we think is only told.
    pub(crate) refuses: bool,
}

/// A body that is no question of an API server.
#[derive(Debug, thiserror::Error)]
#[error("not an AdmissionReview of admission.k8s.io/v1: {0}")]
pub(crate) struct NoQuestion(String);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    request: Request,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: GroupKind,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

#[derive(Debug, Deserialize)]
struct GroupKind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// What is said about one object.
#[derive(Debug, Default, PartialEq, Eq)]
struct Judgement {
    /// Why it is refused.
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Judge {
    /// Kinds that are judged: those whose content is the mesh's business and nobody else checks.
    pub(crate) fn kinds() -> impl Iterator<Item = Kind> {
        let all = Kind::ALL.iter().copied();
        all.filter(|kind| kind.is_custom())
            .filter(|kind| !matches!(kind, Kind::GatewayClass | Kind::ReferenceGrant))
            // Istio's Gateways are mostly those of its own ingress.
            .filter(|kind| (kind.group(), kind.as_str()) != ("networking.istio.io", "Gateway"))
    }

    /// Answers an `AdmissionReview`; true beside the answer if the object is let in.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn answer(&self, body: &[u8]) -> Result<(Value, bool), NoQuestion> {
        let review: Review =
            serde_json::from_slice(body).map_err(|error| NoQuestion(error.to_string()))?;
        if review.api_version != "admission.k8s.io/v1" {
            return Err(NoQuestion(format!("apiVersion {:?}", review.api_version)));
        }
        let request = review.request;
        let judgement = self.judge(&request);
        let is_allowed = judgement.errors.is_empty();
        let mut response = json!({ "uid": request.uid, "allowed": is_allowed });
        if !is_allowed {
            response["status"] = json!({
                "code": 422,
                "reason": "Invalid",
                "message": judgement.errors.join("; "),
            });
        }
        if !judgement.warnings.is_empty() {
            response["warnings"] = judgement.warnings.into();
        }
        let answer = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
        });
        Ok((answer, is_allowed))
    }

    fn judge(&self, request: &Request) -> Judgement {
        let object = &request.object;
        let is_written = matches!(&*request.operation, "CREATE" | "UPDATE");
        let stranger = Stranger::find(&request.kind.group, &request.kind.kind);
        if let Some(stranger) = stranger.filter(|_| is_written && request.sub_resource.is_empty()) {
            return no_effect(stranger, object);
        }
        let kind = Kind::find(&request.kind.group, &request.kind.kind);
        let kind = kind.filter(|kind| Self::kinds().any(|judged| judged == *kind));
        let Some(kind) = kind.filter(|_| is_written && request.sub_resource.is_empty()) else {
            return Judgement::default();
        };
        // What is going has to lose its finalizers, whatever it says.
        let is_going = !object["metadata"]["deletionTimestamp"].is_null();
        if is_going || !object.is_object() || !self.is_ours(kind, object) {
            return Judgement::default();
        }
        let read = ServedObject::read(kind, object);
        let found = found(&read);
        let (mut errors, mut others): (Vec<_>, Vec<_>) =
            found.iter().partition(|one| one.is_error());
        let old = (request.old_object.is_object() && !errors.is_empty())
            .then(|| self::found(&ServedObject::read(kind, &request.old_object)));
        if let Some(old) = &old {
            // What was wrong before may be touched: nobody should have to mend it for a label.
            let is_old = |error: &Finding| {
                let mut before = old.iter();
                before.any(|one| one.is_error() && one == error)
            };
            if errors.iter().all(|error| is_old(error)) {
                others.append(&mut errors);
            }
        }
        let published = self.objects.borrow().clone();
        let context = match read.object() {
            Some(object) if published.synced && errors.is_empty() => {
                beside(&published.objects, object)
            }
            _ => Vec::new(),
        };
        others.extend(&context);
        if !self.refuses {
            let errors = std::mem::take(&mut errors);
            others.splice(0..0, errors);
        }
        Judgement {
            errors: errors.into_iter().take(TOLD).map(told).collect(),
            warnings: others
                .into_iter()
                .take(TOLD)
                .map(|finding| cut(told(finding)))
                .collect(),
        }
    }

    /// Kinds of the Gateway API have many controllers: only what is bound to the mesh is judged here.
    fn is_ours(&self, kind: Kind, object: &Value) -> bool {
        if kind == Kind::Gateway {
            let class = object["spec"]["gatewayClassName"].as_str();
            return class.is_some_and(|class| self.waypoint_classes.iter().any(|own| own == class));
        }
        if !kind.is_route() {
            return true;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let own = text(&object["metadata"]["namespace"]).unwrap_or_default();
        let published = self.objects.borrow().clone();
        let mut parents = object["spec"]["parentRefs"]
            .as_array()
            .into_iter()
            .flatten();
        parents.any(|parent| match parent["kind"].as_str() {
            Some("Service" | "ServiceEntry") => true,
            None | Some("Gateway") => {
                let namespace = text(&parent["namespace"]).unwrap_or_else(|| own.clone());
                let name = parent["name"].as_str().unwrap_or_default();
                let gateway = published.objects.gateways.get(&namespace, name);
                gateway.is_some_and(|gateway| {
                    self.waypoint_classes
                        .contains(&gateway.spec.gateway_class_name)
                })
            }
            Some(_) => false,
        })
    }
}

/// What there is to say about an object on its own, hosts that are left out of what is served included.
fn found(read: &ServedObject) -> Vec<Finding> {
    let mut all = read.findings().to_vec();
    if let Some(Object::ServiceEntry(entry)) = read.object() {
        all.extend(refused_hosts(entry, CLUSTER_DOMAIN));
    }
    all
}

/// Whoever writes what has no effect is told so.
fn no_effect(kind: Stranger, object: &Value) -> Judgement {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    let finding = kind.finding();
    let finding = finding.about(&kind.object(text("namespace"), text("name")));
    Judgement {
        warnings: vec![cut(told(&finding))],
        ..Judgement::default()
    }
}

/// `KIND NS/NAME: FIELD: MESSAGE (HINT)`.
fn told(finding: &Finding) -> String {
    let text = finding.to_string();
    let prefix = format!("{}: ", finding.severity.as_str());
    text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
}

fn cut(text: String) -> String {
    match text.char_indices().nth(WARNING) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::objects;

    fn judge() -> Judge {
        let published = Published {
            objects: Arc::new(objects(
                "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
                 spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}\n",
            )),
            synced: true,
            ..Published::default()
        };
        Judge {
            objects: watch::channel(Arc::new(published)).1,
            waypoint_classes: vec!["isobar-waypoint".to_owned()],
            refuses: true,
        }
    }

    fn review(group: &str, kind: &str, object: &Value, old: &Value) -> Vec<u8> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "operation": if old.is_null() { "CREATE" } else { "UPDATE" },
                "kind": { "group": group, "version": "v1", "kind": kind },
                "object": object, "oldObject": old,
            },
        });
        review.to_string().into_bytes()
    }

    fn ask(judge: &Judge, group: &str, kind: &str, object: &Value, old: &Value) -> Value {
        let (answer, is_allowed) = judge.answer(&review(group, kind, object, old)).unwrap();
        assert_eq!(answer["response"]["uid"], "u-1");
        assert_eq!(answer["response"]["allowed"], is_allowed);
        answer["response"].clone()
    }

    fn route(weights: [i64; 2], labels: &Value) -> Value {
        let to = |weight: i64| json!({ "destination": { "host": "cart" }, "weight": weight });
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": "cart", "namespace": "shop", "labels": labels },
            "spec": { "hosts": ["cart"], "http": [{ "route": weights.map(to) }] },
        })
    }

    const NETWORKING: (&str, &str) = ("networking.istio.io", "VirtualService");

    #[test]
    fn what_is_wrong_is_refused_with_object_and_field() {
        let (group, kind) = NETWORKING;
        let bad = route([-1, 101], &Value::Null);
        let response = ask(&judge(), group, kind, &bad, &Value::Null);
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("VirtualService shop/cart: spec.http[0].route[0].weight: "),
            "{message}"
        );
        let good = route([1, 99], &Value::Null);
        assert_eq!(
            ask(&judge(), group, kind, &good, &Value::Null)["allowed"],
            true
        );
    }

    #[test]
    fn what_was_wrong_before_may_be_labelled_and_removed() {
        let (group, kind) = NETWORKING;
        let old = route([-1, 101], &Value::Null);
        let labelled = route([-1, 101], &json!({ "a": "b" }));
        let response = ask(&judge(), group, kind, &labelled, &old);
        assert_eq!(response["allowed"], true);
        assert!(!response["warnings"].as_array().unwrap().is_empty());
        let worse = route([-2, 102], &Value::Null);
        assert_eq!(
            ask(&judge(), group, kind, &worse, &route([1, 99], &Value::Null))["allowed"],
            false
        );
        let mut going = route([-2, 102], &Value::Null);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let old = route([1, 99], &Value::Null);
        assert_eq!(ask(&judge(), group, kind, &going, &old)["allowed"], true);
    }

    #[test]
    fn hosts_of_other_namespaces_are_refused_in_service_entries() {
        let entry = |hosts: &[&str]| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
                "metadata": { "name": "e", "namespace": "evil" },
                "spec": {
                    "hosts": hosts, "addresses": ["203.0.113.5"], "resolution": "STATIC",
                    "ports": [{ "number": 80, "name": "web" }],
                    "endpoints": [{ "address": "203.0.113.5" }],
                },
            })
        };
        let say = |hosts: &[&str], old: &Value| {
            ask(
                &judge(),
                "networking.istio.io",
                "ServiceEntry",
                &entry(hosts),
                old,
            )
        };
        let refused = say(&["a.example", "*.svc.cluster.local."], &Value::Null);
        assert_eq!(refused["allowed"], false);
        let text = refused["status"]["message"].to_string();
        assert!(
            text.contains("ServiceEntry evil/e: spec.hosts[1]: host *.svc"),
            "{text}"
        );
        let own = say(&["*.com", "cart.evil.svc.cluster.local"], &Value::Null);
        assert_eq!(own["allowed"], true, "{own}");
        // What is there already may be touched.
        let old = entry(&["cart.shop.svc.cluster.local"]);
        let touched = say(&["cart.shop.svc.cluster.local"], &old);
        assert_eq!(touched["allowed"], true);
        let warnings = touched["warnings"].to_string();
        assert!(warnings.contains("a name of namespace shop"), "{warnings}");
    }

    #[test]
    fn what_is_not_honoured_and_what_is_not_there_is_warned_about() {
        let (group, kind) = NETWORKING;
        let mut other = route([1, 99], &Value::Null);
        other["spec"]["http"][0]["route"][0]["destination"]["subset"] = json!("v1");
        let response = ask(&judge(), group, kind, &other, &Value::Null);
        assert_eq!(response["allowed"], true);
        let warnings = response["warnings"].to_string();
        assert!(warnings.contains("v1"), "{warnings}");
    }

    #[test]
    fn objects_of_others_are_left_alone() {
        let group = "gateway.networking.k8s.io";
        let route = |parent: Value| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": { "name": "r", "namespace": "shop" },
                "spec": { "parentRefs": [parent], "newIn2031": true },
            })
        };
        let allowed = |object: &Value| ask(&judge(), group, "HTTPRoute", object, &Value::Null);
        assert_eq!(allowed(&route(json!({ "name": "edge" })))["allowed"], true);
        let service = route(json!({ "group": "", "kind": "Service", "name": "cart", "port": 80 }));
        assert_eq!(allowed(&service)["allowed"], false);
        let gateway = |class: &str| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": { "name": "g", "namespace": "shop" },
                "spec": { "gatewayClassName": class, "listeners": [], "newIn2031": true },
            })
        };
        let allowed = |class| ask(&judge(), group, "Gateway", &gateway(class), &Value::Null);
        assert_eq!(allowed("nginx")["allowed"], true);
        assert_eq!(allowed("isobar-waypoint")["allowed"], false);
    }

    #[test]
    fn beside_another_control_plane_nothing_is_refused() {
        let (group, kind) = NETWORKING;
        let judge = Judge {
            refuses: false,
            ..judge()
        };
        let response = ask(
            &judge,
            group,
            kind,
            &route([-1, 101], &Value::Null),
            &Value::Null,
        );
        assert_eq!(response["allowed"], true);
        assert!(response["warnings"][0].as_str().unwrap().contains("weight"));
    }

    #[test]
    fn what_has_no_effect_is_let_in_with_a_warning() {
        let (group, kind) = ("telemetry.istio.io", "Telemetry");
        let object = json!({
            "apiVersion": "telemetry.istio.io/v1", "kind": kind,
            "metadata": { "name": "t", "namespace": "shop" }, "spec": { "x": 1 },
        });
        let response = ask(&judge(), group, kind, &object, &Value::Null);
        assert_eq!(response["allowed"], true);
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(warning.starts_with("Telemetry shop/t: "), "{warning}");
        assert!(warning.contains("no effect"), "{warning}");
    }

    #[test]
    fn what_is_no_question_is_an_error() {
        for body in [
            "",
            "{}",
            "[1]",
            r#"{"apiVersion":"admission.k8s.io/v1beta1","request":{}}"#,
        ] {
            assert!(judge().answer(body.as_bytes()).is_err(), "{body}");
        }
        let deep = "[".repeat(100_000);
        assert!(judge().answer(deep.as_bytes()).is_err());
        for object in [json!(null), json!(1), json!({}), json!({ "spec": [] })] {
            let (group, kind) = NETWORKING;
            let body = review(group, kind, &object, &Value::Null);
            assert!(judge().answer(&body).is_ok(), "{object}");
        }
    }

    #[test]
    fn long_warnings_are_cut_at_a_letter() {
        let text = cut("é".repeat(1000));
        assert_eq!(text.chars().count(), WARNING + 1);
    }
}
