use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isobar_objects::{Kind, STRANGERS};
use isobar_runtime::Lifetime;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::rounds::Rounds;

/// How often it is looked at while all is well.
const AGAIN: Duration = Duration::from_secs(30);
/// Tries to be asked, and the pause between two: the server takes a new configuration up in a moment.
const TRIES: u32 = 6;
const MOMENT: Duration = Duration::from_millis(300);
/// What the API server waits for an answer, in seconds.
const PATIENCE: u32 = 10;
/// The same where the answer is only a warning.
const PATIENCE_OF_WARNINGS: u32 = 2;
/// The object that is refused, so that we know that we are asked.
const PROBE: &str = "isobar-webhook-probe";

/// Where the API server finds the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookAddress {
    /// Port 443 of a Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An `https:` address.
    Url(String),
}

/// What is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookOptions {
    /// Name of the configuration, which has to be there: it is the installation's to make and remove.
    pub configuration: String,
    /// Who we are to the API server's record of who wrote which field.
    pub manager: String,
    /// Where it is.
    pub address: WebhookAddress,
    /// Kinds that are asked about.
    pub kinds: Vec<Kind>,
    /// True if it refuses what is wrong, by which it is seen to be asked. Otherwise it only warns: nothing
    /// is tried, and nobody misses it.
    pub refuses: bool,
    /// True if it is asked about kinds that have no effect, too: to warn, and never needed.
    pub warns: bool,
    /// Objects whose label names this control plane are asked about.
    pub revision: String,
    /// True if it is asked about objects that name nobody, too.
    pub is_default: bool,
    /// Once the server can ask: true if it refuses what it cannot ask about.
    pub is_needed: bool,
    /// Namespace in which it is tried, without making anything.
    pub namespace: String,
}

/// Registers an admission webhook and keeps it registered.
///
/// Until the server has been seen to ask, and again when it cannot any more, an object that it cannot
/// ask about is let in.
#[derive(Debug)]
pub struct Webhook {
    cluster: Cluster,
    options: WebhookOptions,
    roots: watch::Receiver<Arc<str>>,
    is_asked: bool,
    told: Option<bool>,
    /// The configuration is not there, which was told.
    is_missed: bool,
}

impl Webhook {
    /// The server verifies the webhook by `roots` (PEM).
    #[must_use]
    pub const fn new(
        cluster: Cluster,
        options: WebhookOptions,
        roots: watch::Receiver<Arc<str>>,
    ) -> Self {
        Self {
            cluster,
            options,
            roots,
            is_asked: false,
            told: None,
            is_missed: false,
        }
    }

    /// Does so until `life` ends, while `leads` is true.
    pub async fn run(mut self, mut leads: watch::Receiver<bool>, life: Lifetime) {
        let mut rounds = Rounds::new(Duration::from_millis(500), Duration::from_secs(10), AGAIN);
        loop {
            let mut is_well = true;
            if *leads.borrow_and_update() {
                let mut leads = leads.clone();
                let stepped = tokio::select! {
                    stepped = self.step() => stepped,
                    () = life.draining() => return,
                    // Half a step by who leads no more is undone by who leads now.
                    Ok(_) = leads.wait_for(|leads| !leads) => Ok(false),
                };
                is_well = stepped.unwrap_or_else(|error| {
                    tracing::warn!(%error, "the webhook could not be registered");
                    false
                });
            }
            let pause = rounds.pause(is_well);
            tokio::select! {
                () = life.draining() => return,
                changed = leads.changed() => if changed.is_err() { return },
                changed = self.roots.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// True if all is as it should be.
    async fn step(&mut self) -> Result<bool, kube::Error> {
        let all: Api<ValidatingWebhookConfiguration> = Api::all(self.cluster.client());
        let name = &self.options.configuration;
        let Some(found) = all.get_opt(name).await? else {
            self.is_asked = false;
            if !std::mem::replace(&mut self.is_missed, true) {
                tracing::warn!(
                    configuration = name,
                    "there is no webhook configuration: objects are let in unseen; the installation has one \
                     (`isobar upgrade` makes it again)",
                );
            }
            self.told = None;
            return Ok(false);
        };
        self.is_missed = false;
        let roots = self.roots.borrow_and_update().clone();
        // Another leader may have seen it already.
        let mut hooks = found.webhooks.iter().flatten();
        self.is_asked |= hooks.any(|hook| {
            let bundle = hook.client_config.ca_bundle.as_ref();
            hook.failure_policy.as_deref() == Some("Fail")
                && bundle.is_some_and(|bundle| bundle.0 == roots.as_bytes())
        });
        let params = PatchParams::apply(&self.options.manager).force();
        let uid = found.metadata.uid.unwrap_or_default();
        let write = async |is_asked: bool| {
            let wanted = self.options.wanted(&uid, &roots, is_asked);
            all.patch(name, &params, &Patch::Apply(wanted)).await
        };
        write(self.is_asked).await?;
        if !self.options.refuses {
            return Ok(true);
        }
        let is_asked = self.is_asked().await;
        if is_asked != self.is_asked {
            write(is_asked).await?;
        }
        self.is_asked = is_asked;
        self.tell();
        Ok(is_asked)
    }

    fn tell(&mut self) {
        if self.told.replace(self.is_asked) == Some(self.is_asked) {
            return;
        }
        let configuration = &self.options.configuration;
        if self.is_asked {
            tracing::info!(
                configuration,
                "the API server asks before it stores objects"
            );
        } else {
            tracing::warn!(
                configuration,
                "the API server cannot ask before it stores objects: they are let in unseen; its way to \
                 port 15017 of this pod may be shut",
            );
        }
    }

    /// Whether the server asks: it must refuse an object that is wrong, and would make nothing if it did
    /// not.
    async fn is_asked(&self) -> bool {
        let kind = Kind::RateLimitPolicy;
        let gvk = GroupVersionKind::gvk(kind.group(), kind.versions()[0], kind.as_str());
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
        let namespace = &self.options.namespace;
        let objects: Api<DynamicObject> =
            Api::namespaced_with(self.cluster.client(), namespace, &resource);
        let mut probe = DynamicObject::new(PROBE, &resource);
        if !self.options.is_default {
            let revision = (REVISION.to_owned(), self.options.revision.clone());
            probe.metadata.labels = Some([revision].into());
        }
        probe.data = json!({ "spec": {} });
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        for _ in 0..TRIES {
            match objects.create(&params, &probe).await {
                Err(kube::Error::Api(status)) if is_ours(&status.message) => return true,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the webhook's probe"),
            }
            tokio::time::sleep(MOMENT).await;
        }
        false
    }
}

const REVISION: &str = "istio.io/rev";
const NAME: &str = "validation.isobar.dev";
/// The group with objects of many controllers.
const SHARED: &str = "gateway.networking.k8s.io";
/// Nothing is asked about deletions, which have no object.
const STAYS: &str = "object == null || !has(object.metadata.deletionTimestamp)";

fn is_ours(message: &str) -> bool {
    message.contains(NAME) && message.contains("denied the request")
}

impl WebhookOptions {
    fn wanted(&self, uid: &str, roots: &str, is_asked: bool) -> Value {
        let mut hooks = Vec::new();
        let mut add = |name: &str, selector: &Value| {
            hooks.extend(self.hook(name, roots, is_asked, selector, false));
            let shared = format!("gateway-api.{name}");
            hooks.extend(self.hook(&shared, roots, is_asked, selector, true));
            if self.warns {
                hooks.push(self.warning(&format!("no-effect.{name}"), roots, selector));
            }
        };
        // Of several control planes each object has one that is asked: who is gone holds up its own only.
        if self.is_default {
            let nobody =
                json!({ "matchExpressions": [{ "key": REVISION, "operator": "DoesNotExist" }] });
            add(NAME, &nobody);
        }
        let own = json!({ "matchLabels": { REVISION: self.revision } });
        add(&format!("revision.{NAME}"), &own);
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            // With the uid nothing is made where it was removed meanwhile.
            "metadata": { "name": self.configuration, "uid": uid },
            "webhooks": hooks,
        })
    }

    /// About kinds of the Gateway API if `is_shared`: other controllers have such objects too, and
    /// must not be held up while nobody of us can be asked. `None` without any.
    fn hook(
        &self,
        name: &str,
        roots: &str,
        is_asked: bool,
        selector: &Value,
        is_shared: bool,
    ) -> Option<Value> {
        let rules = self.rules(is_shared);
        if rules.is_empty() {
            return None;
        }
        let is_needed = is_asked && self.is_needed && !is_shared;
        Some(json!({
            "name": name,
            "clientConfig": self.client(roots),
            "rules": rules,
            "objectSelector": selector,
            // What is going has to lose its finalizers, whether anybody can be asked or not.
            "matchConditions": [{ "name": "stays", "expression": STAYS }],
            "failurePolicy": if is_needed { "Fail" } else { "Ignore" },
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": PATIENCE,
            "admissionReviewVersions": ["v1"],
        }))
    }

    /// About kinds of which no object has an effect: nothing of them is refused.
    fn warning(&self, name: &str, roots: &str, selector: &Value) -> Value {
        let rules = STRANGERS.iter().map(|kind| {
            json!({
                "operations": ["CREATE", "UPDATE"],
                "apiGroups": [kind.group],
                "apiVersions": ["*"],
                "resources": [kind.plural],
                "scope": "*",
            })
        });
        json!({
            "name": name,
            "clientConfig": self.client(roots),
            "rules": rules.collect::<Vec<_>>(),
            "objectSelector": selector,
            "matchConditions": [{ "name": "stays", "expression": STAYS }],
            "failurePolicy": "Ignore",
            "matchPolicy": "Exact",
            "sideEffects": "None",
            "timeoutSeconds": PATIENCE_OF_WARNINGS,
            "admissionReviewVersions": ["v1"],
        })
    }

    fn client(&self, roots: &str) -> Value {
        let mut client = match &self.address {
            WebhookAddress::Service { namespace, name } => json!({ "service": {
                "namespace": namespace, "name": name, "port": 443, "path": "/validate",
            } }),
            WebhookAddress::Url(url) => json!({ "url": url }),
        };
        client["caBundle"] = STANDARD.encode(roots).into();
        client
    }

    fn rules(&self, is_shared: bool) -> Vec<Value> {
        let kinds = self.kinds.iter();
        let kinds = kinds.filter(|kind| (kind.group() == SHARED) == is_shared);
        let rules = kinds.map(|kind| {
            json!({
                "operations": ["CREATE", "UPDATE"],
                "apiGroups": [kind.group()],
                "apiVersions": kind.versions(),
                "resources": [kind.plural()],
                "scope": "Namespaced",
            })
        });
        rules.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(revision: &str) -> WebhookOptions {
        WebhookOptions {
            configuration: "isobar".to_owned(),
            manager: "isobar".to_owned(),
            address: WebhookAddress::Url("https://127.0.0.1:1/validate".to_owned()),
            kinds: vec![Kind::VirtualService, Kind::RateLimitPolicy],
            refuses: true,
            warns: false,
            revision: revision.to_owned(),
            is_default: revision == "default",
            is_needed: true,
            namespace: "istio-system".to_owned(),
        }
    }

    #[test]
    fn nothing_is_refused_unseen_before_the_server_was_seen_to_ask() {
        let before = options("default").wanted("u", "roots", false);
        assert_eq!(before["webhooks"][0]["failurePolicy"], "Ignore");
        let after = options("default").wanted("u", "roots", true);
        assert_eq!(after["webhooks"][0]["failurePolicy"], "Fail");
        assert_eq!(after["webhooks"][0]["clientConfig"]["caBundle"], "cm9vdHM=");
        let easy = WebhookOptions {
            is_needed: false,
            ..options("default")
        };
        let easy = easy.wanted("u", "roots", true);
        assert_eq!(easy["webhooks"][0]["failurePolicy"], "Ignore");
    }

    #[test]
    fn what_others_own_too_is_never_held_up() {
        for (revision, count) in [("default", 4), ("v2", 2)] {
            let mut options = options(revision);
            options.kinds.extend([Kind::HttpRoute, Kind::Gateway]);
            let wanted = options.wanted("u", "roots", true);
            let hooks = wanted["webhooks"].as_array().unwrap();
            assert_eq!(hooks.len(), count);
            for hook in hooks {
                let shared = hook["name"].as_str().unwrap().starts_with("gateway-api.");
                let policy = if shared { "Ignore" } else { "Fail" };
                assert_eq!(hook["failurePolicy"], policy);
                for rule in hook["rules"].as_array().unwrap() {
                    assert_eq!(rule["apiGroups"][0] == SHARED, shared, "{rule}");
                }
                let condition = hook["matchConditions"][0]["expression"].as_str().unwrap();
                assert!(condition.contains("deletionTimestamp"));
            }
        }
    }

    #[test]
    fn warnings_hold_nobody_up() {
        let options = WebhookOptions {
            warns: true,
            ..options("v2")
        };
        let wanted = options.wanted("u", "roots", true);
        let hook = &wanted["webhooks"][1];
        assert_eq!(hook["failurePolicy"], "Ignore");
        assert_eq!(hook["rules"].as_array().unwrap().len(), STRANGERS.len());
    }

    #[test]
    fn each_object_has_one_control_plane_that_is_asked_about_it() {
        let selectors = |revision: &str| -> Vec<Value> {
            let wanted = options(revision).wanted("u", "roots", true);
            let hooks = wanted["webhooks"].as_array().unwrap().iter();
            hooks.map(|hook| hook["objectSelector"].clone()).collect()
        };
        let named = |name: &str| json!({ "matchLabels": { "istio.io/rev": name } });
        let nobody =
            json!({ "matchExpressions": [{ "key": "istio.io/rev", "operator": "DoesNotExist" }] });
        assert_eq!(selectors("v2"), [named("v2")]);
        assert_eq!(selectors("default"), [nobody, named("default")]);
        assert!(is_ours(
            "admission webhook \"revision.validation.isobar.dev\" denied the request: x"
        ));
        assert!(!is_ours("failed calling webhook \"validation.isobar.dev\""));
    }
}
