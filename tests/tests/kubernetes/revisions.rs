//! Two control planes in one cluster: what each installs, is asked about, runs and writes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{ApiServer, eventually, eventually_within};
use serde_json::Value;

use crate::definitions::define;
use crate::install::{bad, count, good, names};
use crate::isobard::Isobard;
use crate::run;

/// Kinds of the control plane's chart.
const KINDS: &str = "deployment,service,serviceaccount,role,rolebinding,poddisruptionbudget,configmap,\
                     clusterrole,clusterrolebinding,validatingwebhookconfiguration";
/// The server may take a moment to hear of a configuration, and a leader one to look.
const TAKEN_UP: Duration = Duration::from_secs(40);

/// What is of one installation.
async fn parts(server: &ApiServer, selector: &str) -> Result<BTreeSet<String>> {
    let selector = format!("app.kubernetes.io/managed-by=isobar,{selector}");
    let get = [
        "get",
        KINDS,
        "--all-namespaces",
        "-o",
        "name",
        "-l",
        &selector,
    ];
    let all = server.kubectl(&get).await?;
    Ok(all.lines().map(str::to_owned).collect())
}

const FIRST: &str = "!isobar.dev/revision";
const SECOND: &str = "isobar.dev/revision=canary";

#[test]
#[allow(
    clippy::too_many_lines,
    reason = "one story: a second control plane comes and goes"
)]
fn a_second_control_plane_is_installed_beside_the_first_and_goes_without_it() {
    run(async |server| {
        let canary = ["--revision", "canary"];
        let early = [&["install", "--no-wait"][..], &canary].concat();
        let said = bad(server, &early).await?;
        ensure!(said.contains("is not installed"), "{said}");
        let whole = ["install", "--no-wait", "--set", "crds.gatewayApi=true"];
        good(server, &whole).await?;
        let first = parts(server, FIRST).await?;

        let said = good(server, &[&early[..], &["--set", "global.tag=new"]].concat()).await?;
        ensure!(
            said.contains("created   Deployment istio-system/isobard-canary"),
            "{said}"
        );
        let second = parts(server, SECOND).await?;
        ensure!(
            first == parts(server, FIRST).await?,
            "the first has changed"
        );
        ensure!(second.len() > 8 && first.is_disjoint(&second), "{second:?}");
        let every = second.iter().all(|one| one.ends_with("-canary"));
        ensure!(every, "{second:?}");
        // Again, with what was said before, nothing changes; and an upgrade is of the one that is named.
        let again = good(server, &early).await?;
        ensure!(
            count(&again, "created") + count(&again, "changed") == 0,
            "{again}"
        );
        let more = [
            "upgrade",
            "--no-wait",
            "--set",
            "control-plane.replicaCount=2",
        ];
        let said = good(server, &[&more[..], &canary].concat()).await?;
        ensure!(
            said.contains("Deployment istio-system/isobard-canary"),
            "{said}"
        );
        ensure!(!said.contains("istio-system/isobard\n"), "{said}");

        // Two that have what names nobody would write over each other.
        let default = ["--set", "control-plane.revisionTags={default}"];
        for command in ["install", "upgrade"] {
            let said = bad(
                server,
                &[&[command, "--no-wait"][..], &canary, &default].concat(),
            )
            .await?;
            ensure!(said.contains("cannot have the tag default"), "{said}");
        }
        let stable = ["--set", "control-plane.revisionTags={stable}"];
        let tagged = [&["upgrade", "--no-wait"][..], &canary, &stable].concat();
        good(server, &tagged).await?;

        // In use it stays, by its tag too.
        let gateway = "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway,
            metadata: {name: wp, namespace: istio-system, labels: {istio.io/rev: canary}},
            spec: {gatewayClassName: isobar-waypoint,
                   listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}";
        server.apply(gateway).await?;
        let goes = [&["uninstall"][..], &canary].concat();
        let said = bad(server, &goes).await?;
        ensure!(said.contains("Gateway istio-system/wp"), "{said}");
        let by_tag = gateway.replace("istio.io/rev: canary", "istio.io/rev: stable");
        server.apply(&by_tag).await?;
        let said = bad(server, &goes).await?;
        ensure!(said.contains("Gateway istio-system/wp"), "{said}");
        server
            .kubectl(&["delete", "gateway", "wp", "-n", "istio-system"])
            .await?;
        let said = bad(server, &["uninstall"]).await?;
        ensure!(said.contains("revision canary"), "{said}");
        good(server, &goes).await?;
        ensure!(parts(server, SECOND).await?.is_empty());
        ensure!(
            first == parts(server, FIRST).await?,
            "the first has lost something"
        );
        let leases = names(server, "lease").await?;
        ensure!(!leases.contains("canary"), "{leases}");

        good(server, &[&early[..], &["--set", "global.tag=new"]].concat()).await?;
        good(server, &["uninstall", "--force"]).await?;
        ensure!(parts(server, FIRST).await?.is_empty());
        ensure!(
            second == parts(server, SECOND).await?,
            "the second has lost something"
        );
        Ok(())
    });
}

const CONFIGURATIONS: &str = "\
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: isobar-validator}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: isobar-validator-canary}
";
const ARGUMENTS: [&str; 2] = [
    "--webhook={webhook}",
    "--webhook-url=https://{webhook}/validate",
];
const NAMED: [&str; 4] = [
    "--webhook={webhook}",
    "--webhook-url=https://{webhook}/validate",
    "--revision=canary",
    "--webhook-configuration=isobar-validator-canary",
];

/// A route that cannot be, for the control plane of a name.
fn route(name: &str, revision: &str, weight: i32) -> String {
    let labels = match revision {
        "" => String::new(),
        revision => format!(", labels: {{istio.io/rev: {revision}}}"),
    };
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: VirtualService,
           metadata: {{name: {name}, namespace: shop{labels}}},
           spec: {{hosts: [cart], http: [{{route: [{{destination: {{host: cart}}, weight: {weight}}}]}}]}}}}"
    )
}

async fn refusal(server: &ApiServer, yaml: &str) -> String {
    let done = server.apply(yaml).await;
    done.err()
        .map_or_else(String::new, |error| error.to_string())
}

#[test]
fn each_is_asked_about_its_own_objects_and_missed_for_them_only() {
    run(async |server| {
        server.namespace("istio-system").await?;
        server.namespace("shop").await?;
        define(server).await?;
        server.apply(CONFIGURATIONS).await?;
        let first = Isobard::start(server, "first", &ARGUMENTS).await?;
        let second = Isobard::start(server, "second", &NAMED).await?;
        for (revision, asked) in [
            ("", "\"validation.isobar.dev\""),
            ("canary", "\"revision.validation.isobar.dev\""),
        ] {
            eventually_within("it is refused", TAKEN_UP, async || {
                let said = refusal(server, &route("bad", revision, -1)).await;
                ensure!(said.contains(asked) && said.contains("denied"), "{said}");
                Ok(())
            })
            .await?;
        }
        // Whom nobody is asked about goes in.
        server.apply(&route("bad-elsewhere", "other", -1)).await?;

        let isobards = [("canary", "", second), ("", "canary", first)];
        for (gone, left, isobard) in isobards {
            let policy = match gone {
                "" => "isobar-validator",
                _ => "isobar-validator-canary",
            };
            let path = "jsonpath={.webhooks[0].failurePolicy}";
            let get = ["get", "validatingwebhookconfiguration", policy, "-o", path];
            eventually_within("it is needed", TAKEN_UP, async || {
                let now = server.kubectl(&get).await?;
                ensure!(now == "Fail", "{now}");
                Ok(())
            })
            .await?;
            if gone == "canary" {
                server.apply(&route("good", left, 100)).await?;
            }
            drop(isobard);
            let said = refusal(server, &route("unseen", gone, 100)).await;
            ensure!(said.contains("failed calling webhook"), "{gone}: {said}");
            if gone == "canary" {
                let said = refusal(server, &route("bad", left, -1)).await;
                ensure!(said.contains("denied the request"), "{said}");
            }
        }
        Ok(())
    });
}

fn gateway(name: &str, revision: &str) -> String {
    let labels = match revision {
        "" => String::new(),
        revision => format!(", labels: {{istio.io/rev: {revision}}}"),
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: shop{labels}}}\n\
         spec: {{gatewayClassName: isobar-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
    )
}

async fn found(server: &ApiServer, kind: &str, name: &str) -> Result<Value> {
    let get = ["get", kind, name, "-n", "shop", "-o", "json"];
    Ok(serde_json::from_str(&server.kubectl(&get).await?)?)
}

/// The control plane that runs a waypoint, by what its pods are told, and its uid.
async fn run_by(server: &ApiServer, name: &str, wanted: &str) -> Result<String> {
    let deployment = found(server, "deployment", name).await?;
    let label = deployment["metadata"]["labels"]["istio.io/rev"].as_str();
    ensure!(label.unwrap_or_default() == wanted, "{label:?}");
    let pod = deployment["spec"]["template"]["spec"].to_string();
    ensure!(
        pod.contains("https://isobard-canary.istio-system.svc:") == (wanted == "canary"),
        "{pod}"
    );
    let status = found(server, "gateway", name).await?["status"].to_string();
    ensure!(status.contains("Programmed"), "{status}");
    let uid = deployment["metadata"]["uid"].as_str();
    Ok(uid.context("uid")?.to_owned())
}

#[test]
fn each_waypoint_is_run_by_one_and_goes_over_as_it_is() {
    run(async |server| {
        server.namespace("istio-system").await?;
        server.namespace("shop").await?;
        define(server).await?;
        server
            .apply(&format!(
                "{}---\n{}",
                gateway("plain", ""),
                gateway("new", "canary")
            ))
            .await?;
        let _first = Isobard::start(server, "first", &[]).await?;
        let second = Isobard::start(server, "second", &["--revision=canary"]).await?;
        let plain = eventually("the first runs one", async || {
            run_by(server, "plain", "").await
        })
        .await?;
        let new = eventually("the second runs the other", async || {
            run_by(server, "new", "canary").await
        })
        .await?;

        // Each takes over what the other had; nothing is removed on the way.
        for (name, revision) in [("plain", "istio.io/rev=canary"), ("new", "istio.io/rev-")] {
            let label = [
                "label",
                "gateway",
                name,
                "-n",
                "shop",
                "--overwrite",
                revision,
            ];
            server.kubectl(&label).await?;
        }
        for (name, wanted, uid) in [("plain", "canary", &plain), ("new", "", &new)] {
            let now =
                eventually("it goes over", async || run_by(server, name, wanted).await).await?;
            ensure!(now == *uid, "{name} was made anew");
        }
        // A new life of one knows which are its own.
        drop(second);
        let _again = Isobard::start(server, "again", &["--revision=canary"]).await?;
        let label = ["label", "gateway", "plain", "-n", "shop", "note=x"];
        server.kubectl(&label).await?;
        for (name, wanted, uid) in [("plain", "canary", &plain), ("new", "", &new)] {
            ensure!(run_by(server, name, wanted).await? == *uid, "{name}");
        }
        server
            .kubectl(&["delete", "gateway", "plain", "-n", "shop"])
            .await?;
        eventually("its waypoint goes", async || {
            ensure!(found(server, "deployment", "plain").await.is_err());
            Ok(())
        })
        .await?;
        run_by(server, "new", "").await.map(drop)
    });
}
