//! The rights of the charts: every one is used, and nothing works that was not granted.
//!
//! For each account the test takes away one right after the other (one verb on one resource) and does
//! with the program's own code what needs it. The deed that fails then is printed beside the right; a
//! right without such a deed fails the test, and so does a deed that fails while nothing is missing.

mod deeds;
mod objects;
mod roles;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use isobar_chart::Values;
use isobar_kubernetes::election::{Candidate, Timing};
use isobar_kubernetes::{
    Applying, Cluster, Extra, Installer, KubernetesSource, KubernetesWriter, RootMaps,
    SourceOptions, TokenReviews, keep_authority, refresh_authority,
};
use isobar_objects::{
    Kind, ObjectRef, ObjectSource as _, ObjectWriter as _, Published, STRANGERS, Stranger,
    read_value,
};
use isobar_runtime::Scope;
use isobar_tests::ApiServer;
use isobar_tls::ca::Authority;
use serde_json::{Value, json};
use tokio::sync::watch;

use self::objects::{MADE, OBJECTS, TOLD, named, object, reference};
use self::roles::{Account, account, all_roles, in_force, rights, without};
use crate::definitions::{define, define_strangers};
use crate::run;

const HOME: &str = "istio-system";
/// What a deed may take before it counts as refused; a tenth of it is usual.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A tenth of the usual.
const FAST: Timing = Timing {
    lease: Duration::from_millis(1500),
    renew: Duration::from_millis(1000),
    retry: Duration::from_millis(200),
};

/// What a program does with an API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// List a kind and follow its changes.
    Follow(Kind),
    /// Write a status and take it back.
    Tell(Kind),
    /// Write an annotation and take it back.
    Annotate(Kind),
    /// Change what an object is to be.
    Change(Kind),
    /// Make an object and remove it.
    Make(Kind),
    /// Ask who a token's bearer is.
    Review,
    /// Put the roots into a namespace, in a map of this name.
    DistributeRoots(&'static str),
    /// Make the authority, keep it, and renew it.
    KeepAuthority,
    /// Become the writer and stay it.
    Lead,
    /// Read what ConfigMaps say about waypoints.
    ReadParameters,
    /// Make a scaler or a budget, change it, find it and remove it.
    Scale(Extra),
    /// Register the webhook, and see that it is asked where it refuses anything.
    Register { refuses: bool },
    /// See whether its own DaemonSet is to stay.
    SeeDaemonSet,
    /// Tell people twice what happened to a pod.
    Note,
    /// Follow a Secret that a Gateway names.
    FollowSecret,
    /// See that there are objects of a kind without effect, and which come.
    FollowStranger(&'static [Stranger]),
    /// Make the class of waypoints again.
    RestoreClass,
    /// Keep last valid versions, and follow what is kept.
    KeepVersions,
    /// Follow the mesh's own settings.
    FollowSettings,
}

impl Deed {
    /// Resources that it is about.
    fn about(self) -> Vec<&'static str> {
        match self {
            Self::Follow(kind) if kind.is_custom() => {
                vec![kind.plural(), "customresourcedefinitions"]
            }
            Self::Follow(kind)
            | Self::Tell(kind)
            | Self::Annotate(kind)
            | Self::Change(kind)
            | Self::Make(kind) => vec![kind.plural()],
            Self::Review => vec!["tokenreviews"],
            Self::DistributeRoots(_) | Self::KeepVersions | Self::FollowSettings => {
                vec!["configmaps"]
            }
            Self::KeepAuthority | Self::FollowSecret => vec!["secrets"],
            Self::Lead => vec!["leases"],
            Self::ReadParameters => vec!["configmaps"],
            Self::Scale(Extra::Scaler) => vec!["horizontalpodautoscalers"],
            Self::Scale(Extra::Budget) => vec!["poddisruptionbudgets"],
            Self::Register { .. } => vec!["validatingwebhookconfigurations", "ratelimitpolicies"],
            Self::SeeDaemonSet => vec!["daemonsets"],
            Self::RestoreClass => vec!["gatewayclasses"],
            Self::FollowStranger(kinds) => {
                let all = kinds.iter().map(|one| one.plural);
                all.chain(["customresourcedefinitions"]).collect()
            }
            Self::Note => vec!["events"],
        }
    }
}

/// Two clusters that are one: as the user who may do everything, and as the account.
struct Stage {
    folder: std::path::PathBuf,
    admin: Installer,
    account: Cluster,
    /// A token of some pod's account.
    token: String,
    namespaces: watch::Receiver<Arc<Published>>,
}

impl Stage {
    async fn perform(&self, deed: Deed) -> Result<()> {
        let scope = Scope::new("deed");
        let done = tokio::time::timeout(PATIENCE * 4, self.attempt(deed, &scope)).await;
        scope.shutdown(Duration::ZERO).await;
        done.unwrap_or_else(|_| bail!("takes too long"))
    }

    async fn attempt(&self, deed: Deed, scope: &Scope) -> Result<()> {
        let writer = KubernetesWriter::new(self.account.clone(), "isobar");
        match deed {
            Deed::Follow(kind) => self.follow(kind, scope).await,
            Deed::Tell(kind) => {
                let reference = reference(kind);
                let condition = json!({
                    "type": "Test", "status": "True", "reason": "Because", "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                });
                let status = json!({ "conditions": [condition] });
                writer.patch_status(&reference, &status).await?;
                Ok(writer.delete(&reference).await?)
            }
            Deed::Annotate(kind) => {
                let reference = reference(kind);
                let annotation = json!({ "metadata": { "annotations": { "example.org/a": "b" } } });
                writer.patch(&reference, &annotation).await?;
                Ok(writer.delete(&reference).await?)
            }
            Deed::Change(kind) => {
                let change = json!({ "spec": { "activeDeadlineSeconds": 60 } });
                Ok(writer.patch(&reference(kind), &change).await?)
            }
            Deed::Make(kind) => {
                let mut value = object(kind, "made")?;
                value["metadata"]["labels"] = json!({ "a": "b" });
                self.remove(&value).await?;
                let (made, findings) = read_value(&value);
                let made = made.with_context(|| format!("{findings:?}"))?;
                writer.apply(&made).await?;
                Ok(writer.delete(&ObjectRef::new(kind, "shop", "made")).await?)
            }
            Deed::Review => {
                let reviews = TokenReviews::new(self.account.clone(), "istio-ca");
                reviews
                    .review(&self.token)
                    .await
                    .map(drop)
                    .map_err(Into::into)
            }
            Deed::DistributeRoots(name) => self.distribute(name, scope).await,
            Deed::KeepAuthority => {
                let secret = named("v1", "Secret", HOME, "istio-ca-secret");
                self.remove(&secret).await?;
                let folder: &Path = &self.folder;
                let make = || -> Result<()> { Ok(Authority::load_or_create(folder).map(drop)?) };
                keep_authority(&self.account, HOME, folder, make).await?;
                refresh_authority(&self.account, HOME, folder, true, || anyhow::Ok(true)).await
            }
            Deed::Lead => self.lead(scope).await,
            Deed::ReadParameters => self.read_parameters().await,
            Deed::Scale(kind) => self.scale(kind).await,
            Deed::Register { refuses } => self.register(refuses, scope).await,
            Deed::SeeDaemonSet => self.see_daemon_set().await,
            Deed::Note => self.note().await,
            Deed::FollowSecret => self.follow_secret(scope).await,
            Deed::FollowStranger(kinds) => self.follow_stranger(kinds, scope).await,
            Deed::RestoreClass => self.restore_class(&writer).await,
            Deed::KeepVersions => self.keep_versions(scope).await,
            Deed::FollowSettings => self.follow_settings(scope).await,
        }
    }

    async fn follow(&self, kind: Kind, scope: &Scope) -> Result<()> {
        let options = SourceOptions {
            kinds: vec![kind],
            ..SourceOptions::default()
        };
        let source = KubernetesSource::new(self.account.clone(), options);
        let mut objects = source.subscribe();
        scope.spawn("source", Box::new(source).run(scope.lifetime()));
        tokio::time::timeout(PATIENCE, objects.wait_for(|objects| objects.synced)).await??;
        objects.borrow_and_update();
        let mut touched = object(kind, "x")?;
        touched["metadata"]["labels"] = json!({ "touched": format!("a{}", rand::random::<u32>()) });
        let how = Applying {
            force: true,
            ..Applying::default()
        };
        self.admin.apply(&touched, how).await?;
        Ok(tokio::time::timeout(PATIENCE, objects.changed()).await??)
    }

    async fn distribute(&self, name: &'static str, scope: &Scope) -> Result<()> {
        let map = named("v1", "ConfigMap", "shop", name);
        self.remove(&map).await?;
        let roots = watch::channel("roots".into()).1;
        let maps = RootMaps::new(self.account.clone(), "isobar", roots).named(name);
        let leads = watch::channel(true).1;
        scope.spawn(
            "maps",
            maps.run(self.namespaces.clone(), leads, scope.lifetime()),
        );
        eventually_soon(async || Ok(self.admin.get(&map).await?.is_some())).await
    }

    async fn lead(&self, scope: &Scope) -> Result<()> {
        let lease = named(
            "coordination.k8s.io/v1",
            "Lease",
            HOME,
            "isobar-control-plane",
        );
        self.remove(&lease).await?;
        let name = "isobar-control-plane";
        let candidate = Candidate::new(self.account.clone(), HOME, name, "one", FAST);
        let mut leads = candidate.leads();
        scope.spawn("candidate", candidate.run(scope.lifetime()));
        tokio::time::timeout(PATIENCE, leads.wait_for(|leads| *leads)).await??;
        let lost = tokio::time::timeout(FAST.renew * 3 / 2, leads.wait_for(|leads| !*leads));
        ensure!(lost.await.is_err(), "it does not stay the leader");
        Ok(())
    }

    async fn remove(&self, like: &Value) -> Result<()> {
        if let Some(found) = self.admin.get(like).await? {
            self.admin.delete(&found).await?;
        }
        Ok(())
    }

    /// Takes away each right of the account in turn.
    async fn take_away(&self, account: &Account) -> Result<()> {
        self.may_do_all(account).await?;
        let how = Applying {
            force: true,
            ..Applying::default()
        };
        let mut useless = Vec::new();
        for role in &account.roles {
            for (at, right) in rights(&role.value) {
                self.admin
                    .apply(&without(&role.value, at, &right), how)
                    .await?;
                in_force(&self.account, &right, false).await?;
                let mut refused = None;
                let base = right.resource.split('/').next().unwrap_or_default();
                for deed in account
                    .deeds
                    .iter()
                    .filter(|deed| deed.about().contains(&base))
                {
                    if self.perform(*deed).await.is_err() {
                        refused = Some(deed);
                        break;
                    }
                }
                let text = format!("{} {}/{}", right.verb, right.group, right.resource);
                match refused {
                    Some(deed) => eprintln!("{}: without {text}: {deed:?} fails", account.name),
                    None => useless.push(text),
                }
                self.admin.apply(&role.value, how).await?;
                in_force(&self.account, &right, true).await?;
            }
        }
        ensure!(
            useless.is_empty(),
            "{}: rights that nothing needs: {useless:?}",
            account.name
        );
        self.may_do_all(account)
            .await
            .context("after each was given back")
    }

    /// Sees that nothing is refused while no right is missing. What a busy machine did not do in time
    /// is done again: that is no refusal.
    async fn may_do_all(&self, account: &Account) -> Result<()> {
        for deed in &account.deeds {
            let mut done = self.perform(*deed).await;
            for _ in 0..3 {
                if done.is_err() {
                    done = self.perform(*deed).await;
                }
            }
            done.with_context(|| format!("{}: {deed:?} with all rights", account.name))?;
        }
        Ok(())
    }
}

async fn eventually_soon(check: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !check().await? {
        ensure!(tokio::time::Instant::now() < end, "not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The charts' accounts and roles, an object of each kind, and a cluster as seen by one account.
async fn stage(server: &ApiServer, scope: &Scope, name: &str, values: &Values) -> Result<Stage> {
    define(server).await?;
    define_strangers(server).await?;
    server.namespace(HOME).await?;
    server.namespace("shop").await?;
    server.apply(&all_roles(values)?).await?;
    let admin = Installer::new(server.cluster(), "test");
    for (kind, _) in OBJECTS {
        admin
            .apply(&object(*kind, "x")?, Applying::default())
            .await?;
    }
    let token = server
        .kubectl(&["create", "token", name, "-n", HOME])
        .await?;
    let kubeconfig = server.kubeconfig(name, token.trim())?;
    let bearer = [
        "create",
        "token",
        "default",
        "-n",
        "shop",
        "--audience=istio-ca",
    ];
    let options = SourceOptions {
        kinds: vec![Kind::Namespace],
        ..SourceOptions::default()
    };
    let source = KubernetesSource::new(server.cluster(), options);
    let mut namespaces = source.subscribe();
    scope.spawn("namespaces", Box::new(source).run(scope.lifetime()));
    namespaces.wait_for(|objects| objects.synced).await?;
    Ok(Stage {
        folder: server.folder().join("authority"),
        admin,
        account: Cluster::from_kubeconfig(&kubeconfig).await?,
        token: server.kubectl(&bearer).await?.trim().to_owned(),
        namespaces,
    })
}

/// Takes away each right that the control plane has with these values.
async fn each_is_needed(server: &ApiServer, values: &Values, deeds: Vec<Deed>) -> Result<()> {
    let scope = Scope::new("test");
    let stage = stage(server, &scope, "isobard", values).await?;
    let control_plane = account(("control-plane", "isobard"), values, deeds)?;
    let done = stage.take_away(&control_plane).await;
    scope.shutdown(Duration::ZERO).await;
    done
}

/// What a control plane does whatever else it is for.
fn always() -> impl Iterator<Item = Deed> {
    let followed = SourceOptions::default().kinds.into_iter().map(Deed::Follow);
    let made = MADE.iter().map(|kind| Deed::Make(*kind));
    let others = [
        Deed::RestoreClass,
        Deed::Review,
        Deed::KeepAuthority,
        Deed::FollowSecret,
        Deed::Lead,
        Deed::ReadParameters,
        Deed::KeepVersions,
        Deed::FollowSettings,
        Deed::Scale(Extra::Scaler),
        Deed::Scale(Extra::Budget),
    ];
    followed.chain(made).chain(others)
}

#[test]
fn the_control_plane_needs_each_of_its_rights() {
    run(async |server| {
        let told = TOLD.iter().map(|kind| Deed::Tell(*kind));
        let strangers = STRANGERS.chunks(1).map(Deed::FollowStranger);
        let others = [
            Deed::DistributeRoots("istio-ca-root-cert"),
            Deed::Register { refuses: true },
        ];
        let deeds = always().chain(told).chain(others).chain(strangers);
        each_is_needed(server, &Values::default(), deeds.collect()).await
    });
}

#[test]
fn for_waypoints_only_it_needs_each_of_the_fewer_that_it_has() {
    run(async |server| {
        let mut values = Values::default();
        values.set("control-plane.waypointsOnly=true")?;
        let others = [
            Deed::Tell(Kind::Gateway),
            Deed::Tell(Kind::GatewayClass),
            Deed::DistributeRoots("isobar-ca-root-cert"),
            Deed::Register { refuses: false },
        ];
        each_is_needed(server, &values, always().chain(others).collect()).await
    });
}

#[test]
fn the_node_agent_needs_each_of_its_rights() {
    run(async |server| {
        let scope = Scope::new("test");
        let stage = stage(server, &scope, "isobar-cni", &Values::default()).await?;
        let deeds = vec![
            Deed::Follow(Kind::Namespace),
            Deed::Follow(Kind::Pod),
            Deed::Annotate(Kind::Pod),
            Deed::Tell(Kind::Pod),
            Deed::Note,
            Deed::SeeDaemonSet,
        ];
        let agent = account(("node", "isobar-cni"), &Values::default(), deeds)?;
        let done = stage.take_away(&agent).await;
        scope.shutdown(Duration::ZERO).await;
        done
    });
}

#[test]
fn an_account_may_do_nothing_else() {
    run(async |server| {
        let scope = Scope::new("test");
        let stage = stage(server, &scope, "isobar-cni", &Values::default()).await?;
        for deed in [
            Deed::Follow(Kind::Service),
            Deed::Change(Kind::Pod),
            Deed::Make(Kind::ServiceAccount),
            Deed::Tell(Kind::Gateway),
            Deed::Review,
            Deed::DistributeRoots("istio-ca-root-cert"),
            Deed::KeepAuthority,
            Deed::FollowSecret,
            Deed::Lead,
            Deed::Register { refuses: true },
        ] {
            ensure!(
                stage.perform(deed).await.is_err(),
                "the node agent may {deed:?}"
            );
        }
        scope.shutdown(Duration::ZERO).await;
        Ok(())
    });
}
