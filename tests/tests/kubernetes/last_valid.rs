//! Last valid versions of what is not valid any more, over the lives of control planes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_kubernetes::{KubernetesSource, LastValid, SourceOptions};
use isobar_objects::istio::Action;
use isobar_objects::{Kind, ObjectSource as _};
use isobar_runtime::Scope;
use isobar_tests::{ApiServer, eventually};
use serde_json::{Value, json};

use crate::definitions::define;
use crate::isobard::Isobard;
use crate::run;

const RECORD: [&str; 4] = ["configmap", "isobar-last-valid", "-n", "istio-system"];

fn policy(namespace: &str, action: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: wall, namespace: {namespace}}}
spec: {{action: {action}, rules: [{{from: [{{source: {{namespaces: [shop]}}}}]}}]}}
---
"
    )
}

async fn object(server: &ApiServer, args: &[&str]) -> Result<Value> {
    let get = [&["get", "-o", "json"], args].concat();
    Ok(serde_json::from_str(&server.kubectl(&get).await?)?)
}

/// Waits until the policy of a namespace is told to be not valid in these words, and not in those.
async fn told(server: &ApiServer, namespace: &str, words: &str, not: &str) -> Result<()> {
    eventually(&format!("{namespace}: {words}"), async || {
        let policy = object(server, &["authorizationpolicy/wall", "-n", namespace]).await?;
        let all = policy["status"]["conditions"].as_array();
        let mut all = all.into_iter().flatten();
        let told = all.find(|one| one["type"] == "Accepted");
        let told = told.with_context(|| format!("{policy}"))?;
        let message = told["message"].as_str().unwrap_or_default();
        ensure!(told["status"] == "False" && told["reason"] == "Invalid");
        ensure!(message.contains(words), "{message}");
        ensure!(not.is_empty() || !message.contains(not), "{message}");
        Ok(())
    })
    .await
}

/// What is kept, by the UID of its object.
async fn kept(server: &ApiServer) -> Result<Value> {
    Ok(object(server, &RECORD).await?["data"].clone())
}

/// Who wrote it is called as the control plane is, in the server's own record.
async fn written_by_ours(server: &ApiServer) -> Result<()> {
    let get = [&["--show-managed-fields"], &RECORD[..]].concat();
    let map = object(server, &get).await?;
    let all = map["metadata"]["managedFields"].as_array();
    let mut all = all.into_iter().flatten();
    ensure!(all.all(|one| one["manager"] == "isobar"), "{map}");
    Ok(())
}

async fn uid(server: &ApiServer, namespace: &str) -> Result<String> {
    let policy = object(server, &["authorizationpolicy/wall", "-n", namespace]).await?;
    let uid = policy["metadata"]["uid"].as_str();
    Ok(uid.context("a UID")?.to_owned())
}

/// Versions of the policies that node proxies are told.
async fn served(isobard: &Isobard) -> Result<[Value; 2]> {
    let config = isobard.json("/debug/config").await?;
    let of = |name: &str| config["authorizations"][name].clone();
    Ok([of("istio-system/wall"), of("shop/wall")])
}

/// The policy of a namespace, as a user's tools find it.
async fn read(server: &ApiServer, namespace: &str) -> Result<Action> {
    let options = SourceOptions {
        kinds: vec![Kind::AuthorizationPolicy],
        ..SourceOptions::default()
    };
    let kept = LastValid::of_all(server.cluster(), "istio-system");
    let source = KubernetesSource::new(server.cluster(), options).with_last_valid(kept);
    let mut published = source.subscribe();
    let scope = Scope::new("reader");
    scope.spawn("source", Box::new(source).run(scope.lifetime()));
    let found = published.wait_for(|one| one.synced).await?.clone();
    scope.shutdown(Duration::ZERO).await;
    let all = &found.objects.authorization_policies;
    let held = all.get(namespace, "wall").context("no policy")?;
    Ok(held.spec.action)
}

async fn prepared(server: &ApiServer) -> Result<()> {
    server.namespace("istio-system").await?;
    server.namespace("shop").await?;
    define(server).await
}

async fn both(server: &ApiServer, action: &str) -> Result<()> {
    let both = policy("istio-system", action) + &policy("shop", action);
    server.apply(&both).await
}

#[test]
fn what_was_valid_last_counts_after_the_control_plane_was_killed() {
    run(async |server| {
        prepared(server).await?;
        let stays = ("the last valid version stays in force", "restarts");
        let refuses = "everything is refused to whom it is about";
        let first = Isobard::start(server, "first", &[]).await?;
        both(server, "ALLOW").await?;
        let valid = eventually("both are served", async || {
            let served = served(&first).await?;
            ensure!(served.iter().all(Value::is_string), "{served:?}");
            Ok(served)
        })
        .await?;
        ensure!(kept(server).await.is_err(), "all is well");

        both(server, "ALOW").await?;
        for namespace in ["istio-system", "shop"] {
            told(server, namespace, stays.0, stays.1).await?;
        }
        let (root, shop) = (
            uid(server, "istio-system").await?,
            uid(server, "shop").await?,
        );
        let data = kept(server).await?;
        let entries = data.as_object().context("entries")?;
        ensure!(entries.len() == 2 && entries.contains_key(&root), "{data}");
        ensure!(data[&shop].to_string().contains("ALLOW"), "{data}");
        written_by_ours(server).await?;
        ensure!(served(&first).await? == valid, "the same as before");
        // Killed, with no time to say anything.
        drop(first);

        let second = Isobard::start(server, "second", &[]).await?;
        ensure!(served(&second).await? == valid, "{:?}", valid);
        ensure!(read(server, "shop").await? == Action::Allow);
        // Another error is told by the one that leads now: it has the words of this life.
        let wrong = policy("shop", "ALLOWED");
        server.apply(&wrong).await?;
        told(server, "shop", "ALLOWED", stays.1).await?;
        told(server, "shop", stays.0, refuses).await?;
        told(server, "istio-system", stays.0, refuses).await?;
        ensure!(served(&second).await? == valid, "still the same");
        written_by_ours(server).await?;

        // Somebody removes the record: it is written again.
        server.kubectl(&[&["delete"], &RECORD[..]].concat()).await?;
        eventually("it is there again", async || {
            ensure!(kept(server).await? == data);
            Ok(())
        })
        .await?;

        // Another object of the name inherits nothing.
        let delete = ["delete", "authorizationpolicy/wall", "-n", "shop"];
        server.kubectl(&delete).await?;
        server.apply(&wrong).await?;
        told(server, "shop", refuses, "").await?;
        let only_root = async || {
            let data = kept(server).await?;
            let entries = data.as_object().context("entries")?;
            ensure!(entries.keys().eq([&root]), "{data}");
            Ok(())
        };
        eventually("what is gone is not kept", only_root).await?;
        ensure!(read(server, "shop").await? == Action::Deny);

        both(server, "ALLOW").await?;
        eventually("nothing is kept of what is valid", async || {
            let data = kept(server).await?;
            ensure!(data.as_object().is_none_or(serde_json::Map::is_empty));
            Ok(())
        })
        .await?;
        second.end().await
    });
}

#[test]
fn a_version_that_cannot_be_read_is_as_good_as_none_and_left_alone() {
    run(async |server| {
        prepared(server).await?;
        server.apply(&policy("shop", "ALLOWED")).await?;
        let shop = uid(server, "shop").await?;
        let newer = json!({ "apiVersion": "security.istio.io/v9", "of": "a newer program" });
        let gone = "another object's".to_owned();
        let record = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": RECORD[1], "namespace": RECORD[3] },
            "data": { &shop: newer.to_string(), "0000": gone },
        });
        server.apply(&record.to_string()).await?;
        let isobard = Isobard::start(server, "isobard", &[]).await?;
        told(server, "shop", "everything is refused", "").await?;
        let expected = json!({ &shop: newer.to_string() });
        eventually("what nobody needs is removed", async || {
            let data = kept(server).await?;
            ensure!(data == expected, "{data}");
            Ok(())
        })
        .await?;
        let log = isobard.said();
        ensure!(log.contains("a last valid version cannot be used"), "{log}");
        // Once somebody mends it, it counts.
        let mended = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "wall", "namespace": "shop", "uid": shop },
            "spec": { "action": "ALLOW", "rules": [{}] },
        });
        let patch = json!({ "data": { &shop: mended.to_string() } }).to_string();
        let how = ["patch", "--type=merge", "-p", &patch];
        server.kubectl(&[&how, &RECORD[..]].concat()).await?;
        told(server, "shop", "the last valid version stays", "restarts").await
    });
}
