//! What is told on objects, and what is in force while they are not valid.

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{ApiServer, eventually};
use serde_json::{Value, json};

use crate::definitions::{define, established};
use crate::isobard::Isobard;
use crate::run;

async fn prepared(server: &ApiServer) -> Result<()> {
    server.namespace("istio-system").await?;
    server.namespace("shop").await?;
    define(server).await
}

/// A condition on an object.
async fn condition(server: &ApiServer, object: &str, name: &str) -> Result<Value> {
    let get = ["get", object, "-n", "shop", "-o", "json"];
    let found: Value = serde_json::from_str(&server.kubectl(&get).await?)?;
    let all = found["status"]["conditions"].as_array();
    let mut all = all.into_iter().flatten();
    let one = all.find(|one| one["type"] == name);
    one.cloned()
        .with_context(|| format!("{object}: {}", found["status"]))
}

/// Waits until a condition has this status and reason.
async fn becomes(
    server: &ApiServer,
    (object, name): (&str, &str),
    (status, reason): (&str, &str),
) -> Result<Value> {
    eventually(&format!("{object} {name} is {status}"), async || {
        let found = condition(server, object, name).await?;
        ensure!(
            found["status"] == status && found["reason"] == reason,
            "{found}"
        );
        Ok(found)
    })
    .await
}

/// What is told about an object on the page of findings: severity and message.
async fn findings(isobard: &Isobard, kind: &str, name: &str) -> Result<Vec<Value>> {
    let page = isobard.json("/debug/findings").await?;
    let all = page["findings"].as_array().context("findings")?.iter();
    let about = all.filter(|one| one["object"]["kind"] == kind && one["object"]["name"] == name);
    Ok(about.cloned().collect())
}

fn policy(block: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: wall, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: cart}}}}
  action: DENY
  rules: [{{from: [{{source: {{ipBlocks: [{block}]}}}}]}}]
"
    )
}

#[test]
fn a_policy_that_is_not_valid_says_so_and_refuses_everything_where_no_version_is_known() {
    run(async |server| {
        prepared(server).await?;
        let policy_of = ("authorizationpolicy/wall", "ZtunnelAccepted");
        let validity = ("authorizationpolicy/wall", "Accepted");
        let first = Isobard::start(server, "first", &[]).await?;
        server.apply(&policy("10.0.0.0/8")).await?;
        becomes(server, policy_of, ("True", "Accepted")).await?;

        server.apply(&policy("10.0.0.0/99")).await?;
        let told = becomes(server, validity, ("False", "Invalid")).await?;
        let message = told["message"].as_str().context("a message")?;
        ensure!(message.contains("ipBlocks"), "{message}");
        ensure!(
            message.contains("the last valid version stays"),
            "{message}"
        );
        ensure!(told["observedGeneration"] == 2, "{told}");
        let told = becomes(server, policy_of, ("False", "Invalid")).await?;
        ensure!(told["observedGeneration"] == 2, "{told}");
        first.end().await?;

        // Who never saw the valid version, and finds nothing of it.
        let record = [
            "delete",
            "configmap/isobar-last-valid",
            "-n",
            "istio-system",
        ];
        server.kubectl(&record).await?;
        let second = Isobard::start(server, "second", &[]).await?;
        eventually("it tells what counts now", async || {
            let told = condition(server, "authorizationpolicy/wall", "Accepted").await?;
            let message = told["message"].as_str().unwrap_or_default();
            ensure!(message.contains("everything is refused"), "{told}");
            Ok(())
        })
        .await?;
        let config = second.json("/debug/config").await?;
        ensure!(
            config["authorizations"]["shop/wall"].is_string(),
            "{config}"
        );

        server.apply(&policy("10.0.0.0/9")).await?;
        let told = becomes(server, policy_of, ("True", "Accepted")).await?;
        ensure!(told["observedGeneration"] == 3, "{told}");
        eventually("nothing is wrong any more", async || {
            let left = condition(server, "authorizationpolicy/wall", "Accepted").await;
            ensure!(left.is_err(), "{left:?}");
            Ok(())
        })
        .await
    });
}

const OBJECTS: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: box, namespace: shop}
spec: {address: 10.9.9.9}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: isobar-waypoint, labels: {of: chart}}
spec: {controllerName: isobar.dev/control-plane}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, annotations: {sidecar.istio.io/proxyImage: other}}
spec:
  gatewayClassName: isobar-waypoint
  addresses: [{type: IPAddress, value: 192.0.2.7}]
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE}
  - {name: web, port: 80, protocol: HTTP}
";

#[test]
fn every_kind_that_counts_is_told_what_became_of_it() {
    run(async |server| {
        prepared(server).await?;
        server.apply(OBJECTS).await?;
        let isobard = Isobard::start(server, "isobard", &[]).await?;
        let accepted = ("True", "Accepted");
        let strict = "peerauthentication/strict";
        becomes(server, (strict, "ZtunnelAccepted"), accepted).await?;
        let entry = ("workloadentry/box", "isobar.dev/Accepted");
        let told = becomes(server, entry, accepted).await?;
        ensure!(told["observedGeneration"] == 1, "{told}");
        let class = ("gatewayclass/isobar-waypoint", "Accepted");
        becomes(server, class, accepted).await?;
        let gateway = "gateways.gateway.networking.k8s.io/wp";
        let addresses = ("False", "UnsupportedAddress");
        let told = becomes(server, (gateway, "isobar.dev/AddressesUsed"), addresses).await?;
        ensure!(told["message"].to_string().contains("192.0.2.7"), "{told}");

        let get = ["get", gateway, "-n", "shop", "-o", "json"];
        let found: Value = serde_json::from_str(&server.kubectl(&get).await?)?;
        let listeners = found["status"]["listeners"]
            .as_array()
            .context("listeners")?;
        let told = |at: usize| {
            let one = &listeners[at];
            let all = one["conditions"].as_array().into_iter().flatten();
            let accepted = all.clone().find(|one| one["type"] == "Accepted");
            let accepted = accepted.map(|one| one["reason"].clone());
            (one["name"].clone(), one["attachedRoutes"].clone(), accepted)
        };
        ensure!(
            told(0) == (json!("mesh"), json!(0), Some(json!("Accepted"))),
            "{found}"
        );
        let refused = Some(json!("UnsupportedProtocol"));
        ensure!(told(1) == (json!("web"), json!(0), refused), "{found}");

        let ignored = findings(&isobard, "Gateway", "wp").await?;
        let said = ignored
            .iter()
            .any(|one| one["field"].to_string().contains("proxyImage"));
        ensure!(said, "{ignored:?}");

        server.kubectl(&["delete", class.0]).await?;
        becomes(server, class, accepted).await?;
        let get = ["get", class.0, "-o", "jsonpath={.metadata.labels.of}"];
        ensure!(server.kubectl(&get).await? == "chart", "as it was");
        Ok(())
    });
}

const TELEMETRY: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: telemetries.telemetry.istio.io}
spec:
  group: telemetry.istio.io
  scope: Namespaced
  names: {kind: Telemetry, listKind: TelemetryList, plural: telemetries, singular: telemetry}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

fn telemetry(name: &str) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{tracing: []}}\n"
    )
}

#[test]
fn objects_without_effect_are_told_while_they_are_there() {
    run(async |server| {
        prepared(server).await?;
        server.apply(TELEMETRY).await?;
        established(server, &["crd/telemetries.telemetry.istio.io"]).await?;
        server.apply(&telemetry("before")).await?;
        let isobard = Isobard::start(server, "isobard", &[]).await?;
        let told = findings(&isobard, "Telemetry", "before").await?;
        ensure!(
            told.len() == 1 && told[0]["severity"] == "unsupported",
            "{told:?}"
        );
        let message = told[0]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("no effect"), "{message}");

        server.apply(&telemetry("later")).await?;
        eventually("a new one is told", async || {
            ensure!(findings(&isobard, "Telemetry", "later").await?.len() == 1);
            Ok(())
        })
        .await?;
        let delete = [
            "delete",
            "telemetries.telemetry.istio.io/before",
            "-n",
            "shop",
        ];
        server.kubectl(&delete).await?;
        eventually("what is gone is not told", async || {
            ensure!(findings(&isobard, "Telemetry", "before").await?.is_empty());
            Ok(())
        })
        .await
    });
}
