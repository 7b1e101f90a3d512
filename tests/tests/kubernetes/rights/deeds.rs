//! Deeds that need more than a few lines.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_kubernetes::{Applying, Extra, ExtraRef, Webhook, WebhookAddress, WebhookOptions};
use isobar_objects::Kind;
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use serde_json::json;
use tokio::sync::watch;

use super::{HOME, PATIENCE, Stage};

impl Stage {
    pub(super) async fn scale(&self, kind: Extra) -> Result<()> {
        let object = ExtraRef {
            kind,
            namespace: "shop".to_owned(),
            name: "x".to_owned(),
        };
        let spec = match kind {
            Extra::Scaler => json!({ "maxReplicas": 2, "scaleTargetRef": {
                "apiVersion": "apps/v1", "kind": "Deployment", "name": "x",
            } }),
            Extra::Budget => json!({ "maxUnavailable": 1, "selector": {} }),
        };
        let value = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind(),
            "metadata": { "name": "x", "namespace": "shop", "labels": { "a": "b" } },
            "spec": spec,
        });
        self.remove(&value).await?;
        let label = ("a", "b");
        self.account
            .apply_extra(&object, &value, "isobar", label)
            .await?;
        ensure!(self.account.extras(kind, "a=b").await?.len() == 1);
        Ok(self.account.delete_extra(&object).await?)
    }

    pub(super) async fn register(&self, scope: &Scope) -> Result<()> {
        let mut hooks = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": "isobar-validator" },
        });
        self.remove(&hooks).await?;
        self.admin.apply(&hooks, Applying::default()).await?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = WebhookAddress::Url(format!("https://{}/validate", listener.local_addr()?));
        let authority = Authority::generate("test")?;
        let roots = watch::channel(Arc::from(authority.roots())).1;
        let names = vec!["127.0.0.1".to_owned()];
        isobar_control_plane::answer_reviews(scope, listener, names, authority)?;
        let options = WebhookOptions {
            configuration: "isobar-validator".to_owned(),
            manager: "isobar".to_owned(),
            address,
            kinds: vec![Kind::RateLimitPolicy],
            revision: String::new(),
            is_needed: true,
            namespace: HOME.to_owned(),
        };
        let webhook = Webhook::new(self.account.clone(), options, roots);
        let leads = watch::channel(true).1;
        scope.spawn("webhook", webhook.run(leads, scope.lifetime()));
        let end = tokio::time::Instant::now() + PATIENCE * 3;
        while hooks["webhooks"][0]["failurePolicy"] != "Fail" {
            ensure!(tokio::time::Instant::now() < end, "it is not asked");
            tokio::time::sleep(Duration::from_millis(20)).await;
            hooks = self.admin.get(&hooks).await?.context("it is gone")?;
        }
        self.remove(&hooks).await
    }
}
