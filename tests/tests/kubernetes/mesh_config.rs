//! What is set for a whole mesh: by Istio's MeshConfig, and by the names that Gateways ask for.

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{ApiServer, eventually};
use serde_json::{Value, json};

use crate::definitions::define;
use crate::isobard::Isobard;
use crate::run;

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [old.example/ns/shop/sa/a]}}]}]
";

const SETTINGS: &str = "\
trustDomainAliases: [old.example]
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
accessLogFile: /var/log/lines
trustDomain: new.example";

async fn prepared(server: &ApiServer) -> Result<()> {
    server.namespace("istio-system").await?;
    server.namespace("shop").await?;
    server.namespace("elsewhere").await?;
    define(server).await
}

fn mesh(name: &str, text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\n\
         data:\n  mesh: |\n{}\n",
        lines.join("\n")
    )
}

/// Names and versions of what is served under `what`.
async fn served(isobard: &Isobard, what: &str) -> Result<serde_json::Map<String, Value>> {
    let page = isobard.json("/debug/config").await?;
    page[what].as_object().context("a map").cloned()
}

/// What is said about the settings, as one text.
async fn said(isobard: &Isobard) -> Result<String> {
    let page = isobard.json("/debug/findings").await?;
    let all = ["findings", "conditions"].map(|key| page[key].as_array().cloned());
    let all = all.into_iter().flatten().flatten();
    let about = all.filter(|one| one["object"]["kind"] == "ConfigMap");
    Ok(about.map(|one| one.to_string()).collect())
}

#[test]
fn the_mesh_config_is_followed() {
    run(async |server| {
        prepared(server).await?;
        server.apply(POLICY).await?;
        // That of another control plane.
        let others = mesh("istio-v2", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
        server.apply(&others).await?;
        let isobard = Isobard::start(server, "isobard", &[]).await?;
        ensure!(served(&isobard, "outbound").await?.is_empty());
        let plain = served(&isobard, "authorizations").await?;

        server.apply(&mesh("istio", SETTINGS)).await?;
        eventually("the settings are served", async || {
            let outbound = served(&isobard, "outbound").await?;
            let names: Vec<&String> = outbound.keys().collect();
            ensure!(names == ["egress/", "trust/"], "{names:?}");
            let now = served(&isobard, "authorizations").await?;
            ensure!(
                now["shop/callers"] != plain["shop/callers"],
                "no other names"
            );
            let said = said(&isobard).await?;
            for words in ["accessLogFile", "new.example is not taken from here"] {
                ensure!(said.contains(words), "{said}");
            }
            Ok(())
        })
        .await?;

        // What cannot be read changes nothing.
        let wrong = "outboundTrafficPolicy: {mode: SOMEWHERE}";
        server.apply(&mesh("istio", wrong)).await?;
        eventually("the mistake is told", async || {
            let said = said(&isobard).await?;
            ensure!(said.contains("SOMEWHERE"), "{said}");
            Ok(())
        })
        .await?;
        ensure!(served(&isobard, "outbound").await?.len() == 2);

        let selectors = "discoverySelectors: [{matchLabels: {kubernetes.io/metadata.name: shop}}]";
        server.apply(&mesh("istio", selectors)).await?;
        let elsewhere = POLICY.replace("namespace: shop", "namespace: elsewhere");
        server.apply(&elsewhere).await?;
        eventually("other settings are served", async || {
            ensure!(served(&isobard, "outbound").await?.is_empty());
            let all = served(&isobard, "authorizations").await?;
            ensure!(all.contains_key("shop/callers"), "{all:?}");
            ensure!(!all.contains_key("elsewhere/callers"), "{all:?}");
            Ok(())
        })
        .await?;
        let gone = ["delete", "configmap", "istio", "-n", "istio-system"];
        server.kubectl(&gone).await?;
        eventually("nothing of it counts", async || {
            let all = served(&isobard, "authorizations").await?;
            ensure!(all.contains_key("elsewhere/callers"), "{all:?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn the_flag_counts_before_the_mesh_config() {
    run(async |server| {
        prepared(server).await?;
        server.apply(&mesh("istio", SETTINGS)).await?;
        let flag = ["--outbound-traffic-policy=ALLOW_ANY"];
        let isobard = Isobard::start(server, "flag", &flag).await?;
        eventually("only the names are taken", async || {
            let outbound = served(&isobard, "outbound").await?;
            ensure!(outbound.keys().eq(["trust/"]), "{outbound:?}");
            let said = said(&isobard).await?;
            ensure!(
                said.contains("outboundTrafficPolicy.mode does not count"),
                "{said}"
            );
            Ok(())
        })
        .await
    });
}

#[test]
fn a_policy_means_every_name_of_the_mesh() {
    run(async |server| {
        prepared(server).await?;
        server.apply(POLICY).await?;
        let version = async |name: &str, more: &[&str]| -> Result<Value> {
            let isobard = Isobard::start(server, name, more).await?;
            let all = served(&isobard, "authorizations").await?;
            isobard.end().await?;
            Ok(all["shop/callers"].clone())
        };
        let alias = version("alias", &["--trust-domain-alias=old.example"]).await?;
        ensure!(version("plain", &[]).await? != alias);
        // Whichever of the names the policy has.
        server
            .apply(&POLICY.replace("old.example", "cluster.local"))
            .await?;
        ensure!(version("other", &["--trust-domain-alias=old.example"]).await? == alias);
        Ok(())
    });
}

fn gateway(name: &str) -> String {
    let annotation = match name {
        "" => String::new(),
        name => format!("gateway.istio.io/name-override: {name}"),
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: wp, namespace: shop, annotations: {{{annotation}}}}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
"
    )
}

/// A pod of the Deployment of that name, ready: there is nobody else to make one.
async fn pod_of(server: &ApiServer, deployment: &str, address: &str) -> Result<()> {
    let name = format!("{deployment}-pod");
    let yaml = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels:
    gateway.networking.k8s.io/gateway-name: wp
    service.istio.io/canonical-name: {deployment}
    networking.istio.io/tunnel: http
spec: {{serviceAccountName: wp, containers: [{{name: c, image: i}}]}}
"
    );
    eventually("the account is there", async || {
        server.apply(&yaml).await.map(drop)
    })
    .await?;
    let status = json!({ "status": {
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    let (pod, status) = (format!("pod/{name}"), status.to_string());
    let patch = [
        "patch",
        &pod,
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    server.kubectl(&patch).await.map(drop)
}

/// Names of the Gateway's Deployments and Services.
async fn made(server: &ApiServer) -> Result<Vec<String>> {
    let get = [
        "get",
        "deployments,services",
        "-n",
        "shop",
        "-l",
        "gateway.networking.k8s.io/gateway-name=wp",
        "-o",
        "name",
    ];
    let text = server.kubectl(&get).await?;
    Ok(text.lines().map(str::to_owned).collect())
}

async fn address(server: &ApiServer) -> Result<String> {
    let path = "jsonpath={.status.addresses[0].value}";
    let get = ["get", "gateway", "wp", "-n", "shop", "-o", path];
    server.kubectl(&get).await
}

#[test]
fn what_is_made_for_a_gateway_takes_the_name_it_asks_for() {
    const OLD: [&str; 2] = ["deployment.apps/wp", "service/wp"];
    const NEW: [&str; 2] = ["deployment.apps/front", "service/front"];
    run(async |server| {
        prepared(server).await?;
        server.apply(&gateway("")).await?;
        let _isobard = Isobard::start(server, "isobard", &[]).await?;
        eventually("it is called as the Gateway is", async || {
            let all = made(server).await?;
            ensure!(all == OLD, "{all:?}");
            Ok(())
        })
        .await?;
        pod_of(server, "wp", "10.244.1.7").await?;
        eventually("it is programmed", async || {
            let address = address(server).await?;
            ensure!(address.starts_with("wp.shop.svc"), "{address}");
            Ok(())
        })
        .await?;

        // A name that somebody else has.
        let taken = "apiVersion: v1\nkind: Service\nmetadata: {name: front, namespace: shop}\n\
                     spec: {ports: [{port: 80}]}\n";
        server.apply(taken).await?;
        server.apply(&gateway("front")).await?;
        eventually("that is told", async || {
            let get = ["get", "gateway", "wp", "-n", "shop", "-o", "json"];
            let text = server.kubectl(&get).await?;
            ensure!(text.contains("Service shop/front"), "{text}");
            Ok(())
        })
        .await?;
        let all = made(server).await?;
        ensure!(all == OLD, "what ran runs on: {all:?}");
        server
            .kubectl(&["delete", "service", "front", "-n", "shop"])
            .await?;

        eventually("both names are there", async || {
            let all = made(server).await?;
            ensure!(
                OLD.iter()
                    .chain(&NEW)
                    .all(|one| all.contains(&(*one).to_owned())),
                "{all:?}"
            );
            let address = address(server).await?;
            ensure!(address.starts_with("front.shop.svc"), "{address}");
            Ok(())
        })
        .await?;
        pod_of(server, "front", "10.244.1.8").await?;
        eventually("the old ones are gone", async || {
            let all = made(server).await?;
            ensure!(all == NEW, "{all:?}");
            Ok(())
        })
        .await
    });
}
