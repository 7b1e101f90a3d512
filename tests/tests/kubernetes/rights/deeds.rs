//! Deeds that need more than a few lines.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use isobar_kubernetes::{
    Applying, EventWriter, Extra, ExtraRef, Known, KubernetesSource, KubernetesWriter, LastValid,
    Note, Pace, Presence, SourceOptions, Versions, Webhook, WebhookAddress, WebhookOptions,
};
use isobar_objects::{
    Kind, MeshConfig, NamedSecret, ObjectRef, ObjectSource as _, ObjectWriter as _, Stranger,
    mesh_config_of, read_value,
};
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_types::labels;
use serde_json::json;
use tokio::sync::watch;

use super::objects::{named, object, reference};
use super::{HOME, PATIENCE, Stage};

impl Stage {
    pub(super) async fn note(&self) -> Result<()> {
        let pace = Pace {
            again: Duration::ZERO,
            ..Pace::default()
        };
        let (_events, mut writer) = EventWriter::new(self.account.clone(), "test", "x", pace);
        let note = Note {
            about: reference(Kind::Pod),
            uid: "1".to_owned(),
            reason: "Test",
            message: "m".to_owned(),
        };
        writer.write(&note).await?;
        Ok(writer.write(&note).await?)
    }

    pub(super) async fn keep_versions(&self, scope: &Scope) -> Result<()> {
        let name = "isobar-last-valid";
        self.remove(&named("v1", "ConfigMap", HOME, name)).await?;
        let kept = LastValid::named(self.account.clone(), HOME, name, "isobar");
        let options = SourceOptions {
            kinds: Vec::new(),
            ..SourceOptions::default()
        };
        let source =
            KubernetesSource::new(self.account.clone(), options).with_last_valid(kept.clone());
        let mut known = kept.known();
        scope.spawn("source", Box::new(source).run(scope.lifetime()));
        // Made, and then changed.
        let mut versions = Versions::new();
        for uid in ["", "one", "two"] {
            if !uid.is_empty() {
                let before = known.borrow().clone();
                let Known::Record(before) = &*before else {
                    bail!("{before:?}");
                };
                versions.insert(uid.to_owned(), "a version".to_owned());
                kept.keep(before, &versions).await?;
            }
            let seen = known.wait_for(|now| match &**now {
                Known::Record(record) => record.versions == versions,
                Known::Nothing | Known::Unreadable(_) => false,
            });
            tokio::time::timeout(PATIENCE, seen).await??;
        }
        Ok(())
    }

    pub(super) async fn read_parameters(&self) -> Result<()> {
        self.account.config_maps(HOME, "a=b").await?;
        Ok(self.account.config_map("shop", "x").await.map(drop)?)
    }

    pub(super) async fn see_daemon_set(&self) -> Result<()> {
        let seen = self.account.daemon_set(HOME, "isobar-cni").await;
        ensure!(seen == Presence::Gone, "{seen:?}");
        Ok(())
    }

    pub(super) async fn follow_settings(&self, scope: &Scope) -> Result<()> {
        let settings = |aliases: &str| {
            let mut map = named("v1", "ConfigMap", HOME, "istio");
            map["data"] = json!({ "mesh": format!("trustDomainAliases: [{aliases}]") });
            map
        };
        self.remove(&settings("")).await?;
        self.admin
            .apply(&settings("one"), Applying::default())
            .await?;
        let options = SourceOptions {
            kinds: Vec::new(),
            ..SourceOptions::default()
        };
        let source = KubernetesSource::new(self.account.clone(), options)
            .with_object(mesh_config_of(HOME, None));
        let mut objects = source.subscribe();
        scope.spawn("source", Box::new(source).run(scope.lifetime()));
        for alias in ["one", "two"] {
            if alias == "two" {
                let how = Applying {
                    force: true,
                    ..Applying::default()
                };
                self.admin.apply(&settings(alias), how).await?;
            }
            let seen = objects.wait_for(|objects| {
                let found = objects.objects.config_maps.get(HOME, "istio");
                let read = found.and_then(|map| MeshConfig::read(map).ok()?);
                read.is_some_and(|read| read.config.trust_domain_aliases == [alias])
            });
            tokio::time::timeout(PATIENCE, seen).await??;
        }
        Ok(())
    }

    pub(super) async fn follow_secret(&self, scope: &Scope) -> Result<()> {
        let secret = |value: &str| {
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": { "name": "page", "namespace": "shop" },
                "stringData": { "ca.crt": value },
            })
        };
        self.remove(&secret("")).await?;
        self.admin
            .apply(&secret("one"), Applying::default())
            .await?;
        let options = SourceOptions {
            kinds: Vec::new(),
            ..SourceOptions::default()
        };
        let named = NamedSecret {
            secret: ObjectRef::new(Kind::Secret, "shop", "page"),
            by: ObjectRef::new(Kind::Gateway, "shop", "front"),
        };
        let source = KubernetesSource::new(self.account.clone(), options)
            .with_secrets(move |_| [named.clone()].into());
        let mut objects = source.subscribe();
        scope.spawn("source", Box::new(source).run(scope.lifetime()));
        for value in ["one", "two"] {
            if value == "two" {
                let how = Applying {
                    force: true,
                    ..Applying::default()
                };
                self.admin.apply(&secret(value), how).await?;
            }
            let seen = objects.wait_for(|objects| {
                let found = objects.objects.secrets.get("shop", "page");
                let data = found.and_then(|one| one.data.as_ref()?.get("ca.crt").cloned());
                data.is_some_and(|bytes| bytes.0 == value.as_bytes())
            });
            tokio::time::timeout(PATIENCE, seen).await??;
        }
        Ok(())
    }

    pub(super) async fn follow_stranger(
        &self,
        kinds: &'static [Stranger],
        scope: &Scope,
    ) -> Result<()> {
        let options = SourceOptions {
            kinds: Vec::new(),
            ..SourceOptions::default()
        };
        let source = KubernetesSource::new(self.account.clone(), options).with_strangers(kinds);
        let mut objects = source.subscribe();
        scope.spawn("source", Box::new(source).run(scope.lifetime()));
        let stranger = kinds[0];
        let object = |name: &str| {
            json!({
                "apiVersion": format!("{}/v1", stranger.group), "kind": stranger.kind,
                "metadata": { "name": name, "namespace": "shop" },
            })
        };
        self.remove(&object("later")).await?;
        // One is found by the list, the other by the watch.
        self.admin.apply(&object("x"), Applying::default()).await?;
        tokio::time::timeout(PATIENCE, objects.wait_for(|told| told.synced)).await??;
        for name in ["x", "later"] {
            self.admin.apply(&object(name), Applying::default()).await?;
            let wanted = stranger.object("shop", name);
            let told = objects.wait_for(|told| {
                let mut all = told.findings.iter();
                all.any(|one| one.object.as_ref() == Some(&wanted))
            });
            tokio::time::timeout(PATIENCE, told).await??;
        }
        Ok(())
    }

    pub(super) async fn restore_class(&self, writer: &KubernetesWriter) -> Result<()> {
        let name = labels::WAYPOINT_CLASS;
        let mut class = object(Kind::GatewayClass, name)?;
        class["metadata"]["labels"] = json!({ "a": "b" });
        self.remove(&class).await?;
        let (made, findings) = read_value(&class);
        let made = made.with_context(|| format!("{findings:?}"))?;
        Ok(writer.apply(&made).await?)
    }

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

    pub(super) async fn register(&self, refuses: bool, scope: &Scope) -> Result<()> {
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
            refuses,
            warns: false,
            revision: "default".to_owned(),
            is_default: true,
            is_needed: refuses,
            namespace: HOME.to_owned(),
        };
        let webhook = Webhook::new(self.account.clone(), options, roots);
        let leads = watch::channel(true).1;
        scope.spawn("webhook", webhook.run(leads, scope.lifetime()));
        let end = tokio::time::Instant::now() + PATIENCE * 3;
        let wanted = if refuses { "Fail" } else { "Ignore" };
        while hooks["webhooks"][0]["failurePolicy"] != wanted {
            ensure!(tokio::time::Instant::now() < end, "it is not asked");
            tokio::time::sleep(Duration::from_millis(20)).await;
            hooks = self.admin.get(&hooks).await?.context("it is gone")?;
        }
        self.remove(&hooks).await
    }
}
