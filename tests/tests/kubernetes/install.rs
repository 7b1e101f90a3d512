//! `isobar install`, `upgrade` and `uninstall` at a real API server, as a shell sees them.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{ApiServer, binaries, eventually};
use serde_json::json;

use crate::definitions::define;
use crate::run;

/// Everything that an installation could leave.
const LEFT: &str =
    "all,configmap,serviceaccount,role,rolebinding,poddisruptionbudget,networkpolicy,lease";

struct Ended {
    is_good: bool,
    text: String,
}

async fn isobar(server: &ApiServer, args: &[&str]) -> Result<Ended> {
    let output = tokio::process::Command::new(binaries()?.join("isobar"))
        .args(args)
        .env("KUBECONFIG", server.admin()?)
        .stdin(Stdio::null())
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended {
        is_good: output.status.success(),
        text: text(&output.stdout) + &text(&output.stderr),
    })
}

pub(crate) async fn good(server: &ApiServer, args: &[&str]) -> Result<String> {
    let ended = isobar(server, args).await?;
    ensure!(ended.is_good, "isobar {}: {}", args.join(" "), ended.text);
    Ok(ended.text)
}

pub(crate) async fn bad(server: &ApiServer, args: &[&str]) -> Result<String> {
    let ended = isobar(server, args).await?;
    ensure!(!ended.is_good, "isobar {}: {}", args.join(" "), ended.text);
    Ok(ended.text)
}

/// Lines that begin with a word.
pub(crate) fn count(text: &str, word: &str) -> usize {
    text.lines()
        .filter(|line| line.split_whitespace().next() == Some(word))
        .count()
}

/// What there is, but for the server's own leases.
pub(crate) async fn names(server: &ApiServer, what: &str) -> Result<String> {
    let get = ["get", what, "--all-namespaces", "-o", "name", "--show-kind"];
    let all = server.kubectl(&get).await?;
    let lines = all.lines().filter(|line| !line.contains("/apiserver-"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn an_installation_comes_changes_and_goes() {
    run(async |server| {
        let clean = names(server, LEFT).await?;
        comes(server, &clean).await?;
        changes(server).await?;
        keeps_its_nodes(server).await?;
        goes(server, &clean).await
    });
}

async fn comes(server: &ApiServer, clean: &str) -> Result<()> {
    let whole = ["--set", "crds.gatewayApi=true"];
    let preview = good(server, &[&["install", "--dry-run"][..], &whole].concat()).await?;
    ensure!(
        preview.contains("created   Deployment istio-system/isobard"),
        "{preview}"
    );
    ensure!(preview.contains("+ kind: Deployment"), "{preview}");
    let now = names(server, LEFT).await?;
    ensure!(now == clean, "a dry run wrote something: {now}");

    let plain = ["install", "--no-wait"];
    let first = good(server, &[&plain[..], &whole].concat()).await?;
    ensure!(count(&first, "created") > 20, "{first}");
    ensure!(
        first.contains("created   GatewayClass isobar-waypoint"),
        "{first}"
    );
    // Again, with or without what was said before: nothing changes.
    for again in [&[&plain[..], &whole].concat()[..], &plain] {
        let said = good(server, again).await?;
        ensure!(
            count(&said, "created") + count(&said, "changed") == 0,
            "{said}"
        );
        ensure!(
            count(&said, "unchanged") == count(&first, "created"),
            "{said}"
        );
    }
    Ok(())
}

async fn changes(server: &ApiServer) -> Result<()> {
    let bigger = [
        "--set",
        "control-plane.replicaCount=3,control-plane.podDisruptionBudget.enabled=false",
    ];
    let preview = good(server, &[&["upgrade", "--dry-run"][..], &bigger].concat()).await?;
    let is_shown = |sign: char, count: u8| {
        let line = format!("replicas: {count}");
        let mut lines = preview.lines().map(str::trim_start);
        lines.any(|one| one.starts_with(sign) && one.ends_with(&line))
    };
    ensure!(is_shown('-', 1) && is_shown('+', 3), "{preview}");
    ensure!(count(&preview, "removed") == 1, "{preview}");
    let said = good(server, &[&["upgrade", "--no-wait"][..], &bigger].concat()).await?;
    ensure!(
        said.contains("changed   Deployment istio-system/isobard"),
        "{said}"
    );
    ensure!(
        said.contains("removed   PodDisruptionBudget istio-system/isobard"),
        "{said}"
    );
    let path = ["-o", "jsonpath={.spec.replicas}"];
    let get = ["get", "deployment", "isobard", "-n", "istio-system"];
    ensure!(server.kubectl(&[&get[..], &path].concat()).await? == "3");
    Ok(())
}

/// What is carried on the nodes does not end by one value.
async fn keeps_its_nodes(server: &ApiServer) -> Result<()> {
    let only = ["--set", "control-plane.waypointsOnly=true"];
    let before = names(server, LEFT).await?;
    ensure!(count(&before, "daemonset.apps/ztunnel") == 1, "{before}");
    for command in [&["upgrade", "--no-wait"][..], &["install", "--dry-run"]] {
        let said = bad(server, &[command, &only].concat()).await?;
        for words in [
            "DaemonSet istio-system/ztunnel",
            "--force",
            "--mesh-namespace",
        ] {
            ensure!(said.contains(words), "{command:?}: {said}");
        }
    }
    ensure!(names(server, LEFT).await? == before);
    let forced = ["upgrade", "--dry-run", "--force"];
    let said = good(server, &[&forced[..], &only].concat()).await?;
    ensure!(
        said.contains("removed   DaemonSet istio-system/ztunnel"),
        "{said}"
    );
    Ok(())
}

async fn goes(server: &ApiServer, clean: &str) -> Result<()> {
    // What a user made in the same namespace, and what is of a kind that we defined, stays.
    server
        .apply(
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: mine, namespace: istio-system}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService,
 metadata: {name: mine, namespace: istio-system},
 spec: {hosts: [x.example], http: [{route: [{destination: {host: x.example}}]}]}}",
        )
        .await?;
    let preview = good(server, &["uninstall", "--dry-run"]).await?;
    ensure!(count(&preview, "removed") > 10, "{preview}");
    good(server, &["uninstall"]).await?;
    let left = names(server, LEFT).await?;
    let more: Vec<_> = left.lines().filter(|line| !clean.contains(*line)).collect();
    ensure!(more == ["configmap/mine"], "{more:?}");
    let roles = names(server, "clusterrole,clusterrolebinding").await?;
    ensure!(!roles.contains("isobar"), "{roles}");
    ensure!(names(server, "virtualservice").await?.contains("mine"));
    let said = bad(server, &["uninstall"]).await?;
    ensure!(said.contains("nothing is installed"), "{said}");

    let said = good(server, &["uninstall", "--purge"]).await?;
    ensure!(
        said.contains("kept      CustomResourceDefinition virtualservices"),
        "{said}"
    );
    // The API server takes a definition away some time after it was told to.
    eventually("only the definition in use is left", async || {
        let left = names(server, "crd").await?;
        let left: Vec<_> = left.lines().collect();
        ensure!(
            left.len() == 1 && left[0].contains("virtualservices"),
            "{left:?}"
        );
        Ok(())
    })
    .await
}

#[test]
fn what_others_made_is_left_alone() {
    run(async |server| {
        server.namespace("istio-system").await?;
        let istiod =
            "{apiVersion: v1, kind: Service, metadata: {name: istiod, namespace: istio-system},
            spec: {ports: [{port: 15012}], selector: {app: istiod}}}";
        server.apply(istiod).await?;
        let said = bad(server, &["install", "--no-wait"]).await?;
        ensure!(said.contains("Service istio-system/istiod"), "{said}");
        ensure!(
            !names(server, "deployment").await?.contains("isobard"),
            "half an installation"
        );

        // Definitions of others stay as they are; without the Gateway API the class is left out.
        let folder = isobar_tests::samples().join("../charts/crds/files/istio.yaml");
        server
            .kubectl(&["apply", "-f", &folder.to_string_lossy()])
            .await?;
        let beside = [
            "install",
            "--no-wait",
            "--set",
            "control-plane.istiodService=false",
        ];
        let said = good(server, &beside).await?;
        ensure!(
            said.contains("definitions of kinds are in the cluster already"),
            "{said}"
        );
        ensure!(
            said.contains("GatewayClass isobar-waypoint is left out"),
            "{said}"
        );
        let elsewhere = bad(
            server,
            &["install", "--no-wait", "--mesh-namespace", "mesh"],
        )
        .await?;
        ensure!(
            elsewhere.contains("--mesh-namespace istio-system"),
            "{elsewhere}"
        );

        // A field that somebody took is not taken back unasked.
        let path = r#"[{"op":"replace","path":"/spec/replicas","value":7}]"#;
        let patch = [
            "patch",
            "deployment",
            "isobard",
            "-n",
            "istio-system",
            "--type=json",
            "-p",
        ];
        server.kubectl(&[&patch[..], &[path]].concat()).await?;
        let said = bad(server, &beside).await?;
        ensure!(said.contains("--force-conflicts"), "{said}");
        good(server, &[&beside[..], &["--force-conflicts"]].concat()).await?;

        server
            .apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {dataplane-mode: ambient}}}")
            .await?;
        let said = bad(server, &["uninstall"]).await?;
        ensure!(said.contains("namespace shop"), "{said}");
        good(server, &["uninstall", "--force"]).await?;
        ensure!(names(server, "service").await?.contains("istiod"));
        Ok(())
    });
}

/// The map of the roots, as another mesh's control plane makes it.
fn others_roots(namespace: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap,
           metadata: {{name: istio-ca-root-cert, namespace: {namespace}, labels: {{istio.io/config: 'true'}}}},
           data: {{root-cert.pem: theirs}}}}"
    )
}

#[test]
fn the_roots_of_another_mesh_are_not_replaced() {
    run(async |server| {
        for name in ["istio-system", "shop"] {
            server.namespace(name).await?;
            server.apply(&others_roots(name)).await?;
        }
        let clean = names(server, LEFT).await?;
        let install = ["install", "--no-wait", "--mesh-namespace", "mesh"];
        let said = bad(server, &install).await?;
        ensure!(
            said.contains(
                "ConfigMap istio-system/istio-ca-root-cert has the roots of another mesh"
            ) && said.contains("control-plane.ca.secret"),
            "{said}"
        );
        ensure!(names(server, LEFT).await? == clean, "half an installation");
        let shared = ["--set", "control-plane.ca.secret=cacerts", "--dry-run"];
        good(server, &[&install[..], &shared].concat()).await?;

        // Waypoints alone leave others' roots and nodes as they are.
        let alone = ["--set", "control-plane.waypointsOnly=true"];
        let said = good(server, &[&install[..], &alone].concat()).await?;
        ensure!(said.contains("Deployment mesh/isobard"), "{said}");
        ensure!(!said.contains("DaemonSet"), "{said}");
        good(server, &["uninstall", "--mesh-namespace", "mesh"]).await?;

        // A map in somebody's namespace keeps nobody from installing, and is not deleted with the mesh.
        let gone = [
            "delete",
            "configmap",
            "istio-ca-root-cert",
            "-n",
            "istio-system",
        ];
        server.kubectl(&gone).await?;
        let said = good(server, &install).await?;
        ensure!(
            said.contains("ConfigMap shop/istio-ca-root-cert was not written by this mesh"),
            "{said}"
        );
        good(server, &["uninstall", "--mesh-namespace", "mesh"]).await?;
        let left = names(server, "configmap").await?;
        ensure!(left.contains("configmap/istio-ca-root-cert"), "{left}");
        Ok(())
    });
}

#[test]
fn mistakes_end_before_anything_is_written() {
    run(async |server| {
        let clean = names(server, LEFT).await?;
        for (args, words) in [
            (
                &["install", "--set", "control-plane.replicas=2"][..],
                "there is no replicas",
            ),
            (
                &["install", "--set", "controlplane.replicaCount=2"],
                "there is no chart",
            ),
            (&["install", "--set", "global.hub"], "PATH=VALUE"),
            (&["install", "-f", "/nonexistent.yaml"], "/nonexistent.yaml"),
            (&["install", "--kubeconfig", "/nonexistent"], "/nonexistent"),
            (&["upgrade"], "isobar install"),
            (&["uninstall"], "nothing is installed"),
        ] {
            let said = bad(server, args).await?;
            ensure!(said.contains(words), "{args:?}: {said}");
        }
        ensure!(names(server, LEFT).await? == clean);
        server.pause();
        let said = bad(server, &["install"]).await?;
        ensure!(said.contains("API server https://127.0.0.1"), "{said}");
        Ok(())
    });
}

/// Says that everything runs, as the controllers of a cluster would.
async fn play_controllers(server: &ApiServer) -> Result<()> {
    let node = json!({"status": {"observedGeneration": 9, "desiredNumberScheduled": 1,
        "currentNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 1,
        "updatedNumberScheduled": 1, "numberAvailable": 1}});
    let deployment = json!({"status": {"observedGeneration": 9, "replicas": 1, "updatedReplicas": 1,
        "readyReplicas": 1, "availableReplicas": 1}});
    for (object, status) in [
        ("daemonset/ztunnel", &node),
        ("daemonset/isobar-cni", &node),
        ("deployment/isobard", &deployment),
    ] {
        let patch = [
            "patch",
            object,
            "-n",
            "istio-system",
            "--subresource=status",
        ];
        let text = status.to_string();
        let how = ["--type=merge", "-p", &text];
        server.kubectl(&[&patch[..], &how].concat()).await?;
    }
    Ok(())
}

#[test]
fn it_waits_until_everything_is_ready_and_says_for_what() {
    run(async |server| {
        define(server).await?;
        let said = bad(server, &["install", "--timeout", "2"]).await?;
        ensure!(said.contains("not ready after 2 s"), "{said}");
        ensure!(said.contains("DaemonSet istio-system/ztunnel"), "{said}");
        let command = isobar(server, &["install", "--timeout", "60"]);
        let controllers = eventually("the controllers", async || play_controllers(server).await);
        let (ended, played) = tokio::join!(command, controllers);
        played.context("playing the controllers")?;
        let ended = ended?;
        ensure!(
            ended.is_good && ended.text.contains("everything is ready"),
            "{}",
            ended.text
        );
        let json = good(server, &["install", "--no-wait", "-o", "json"]).await?;
        let value: serde_json::Value = serde_json::from_str(&json)?;
        let changes = value["changes"].as_array().context("changes")?;
        ensure!(
            changes.iter().all(|one| one["change"] == "unchanged"),
            "{json}"
        );
        Ok(())
    });
}
