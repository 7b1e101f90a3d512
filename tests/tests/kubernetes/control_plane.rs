//! The control plane as a program beside an API server, without pods: what it reads and writes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{ApiServer, eventually, eventually_within};
use serde_json::Value;

use crate::definitions::define;
use crate::isobard::{Isobard, plug_in};
use crate::run;

/// ConfigMaps and files are looked at every some seconds.
const LOOKED_AT: Duration = Duration::from_secs(40);

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: size}}
";

async fn prepared(server: &ApiServer) -> Result<()> {
    server.namespace("istio-system").await?;
    server.namespace("shop").await?;
    define(server).await
}

async fn found(server: &ApiServer, kind: &str, name: &str) -> Result<Value> {
    let (namespace, name) = name.split_once('/').context("namespace/name")?;
    let get = ["get", kind, name, "-n", namespace, "-o", "json"];
    Ok(serde_json::from_str(&server.kubectl(&get).await?)?)
}

async fn is_gone(server: &ApiServer, kind: &str, name: &str) -> Result<()> {
    let found = found(server, kind, name).await;
    ensure!(
        found
            .as_ref()
            .is_err_and(|error| error.to_string().contains("NotFound")),
        "{found:?}"
    );
    Ok(())
}

fn size(deployment: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: size, namespace: shop}}
data:
  deployment: |
    {deployment}
{more}"
    )
}

const MORE: &str = "  horizontalPodAutoscaler: |
    spec: {minReplicas: 2, maxReplicas: 5}
  podDisruptionBudget: |
    spec: {minAvailable: 1}
";
const PLACED: &str = "spec: {template: {spec: {tolerations: [{operator: Exists}], containers: [{name: waypoint, resources: {limits: {memory: 1Gi}}}]}}}";

#[test]
fn a_waypoint_is_placed_sized_and_scaled_by_a_config_map() {
    run(async |server| {
        prepared(server).await?;
        server.apply(&size(PLACED, MORE)).await?;
        server.apply(GATEWAY).await?;
        let _isobard = Isobard::start(server, "isobard", &[]).await?;
        eventually_within("the waypoint is as asked for", LOOKED_AT, async || {
            let deployment = found(server, "deployment", "shop/wp").await?;
            let pod = &deployment["spec"]["template"]["spec"];
            ensure!(pod["tolerations"][0]["operator"] == "Exists", "{pod}");
            let container = &pod["containers"][0];
            ensure!(container["resources"]["limits"]["memory"] == "1Gi");
            ensure!(container["resources"]["requests"]["cpu"] == "100m");
            let scaler = found(server, "hpa", "shop/wp").await?;
            ensure!(scaler["spec"]["scaleTargetRef"]["name"] == "wp");
            let budget = found(server, "pdb", "shop/wp").await?;
            ensure!(budget["spec"]["minAvailable"] == 1);
            Ok(())
        })
        .await?;

        // What may not be set leaves what was in force, and is told.
        server
            .apply(&size("spec: {template: {spec: {hostNetwork: true}}}", MORE))
            .await?;
        eventually_within("the mistake is told", LOOKED_AT, async || {
            let gateway = found(server, "gateway", "shop/wp").await?;
            let conditions = gateway["status"]["conditions"].to_string();
            ensure!(conditions.contains("InvalidParameters"), "{conditions}");
            ensure!(
                conditions.contains("hostNetwork may not be set"),
                "{conditions}"
            );
            Ok(())
        })
        .await?;
        let pod = found(server, "deployment", "shop/wp").await?;
        ensure!(pod["spec"]["template"]["spec"]["tolerations"][0]["operator"] == "Exists");

        server.apply(&size(PLACED, "")).await?;
        eventually_within("scaler and budget are gone", LOOKED_AT, async || {
            is_gone(server, "hpa", "shop/wp").await?;
            is_gone(server, "pdb", "shop/wp").await
        })
        .await?;
        server.apply(&size(PLACED, MORE)).await?;
        eventually_within("they are back", LOOKED_AT, async || {
            found(server, "hpa", "shop/wp").await
        })
        .await?;
        server
            .kubectl(&["delete", "gateway", "wp", "-n", "shop"])
            .await?;
        eventually_within("everything of it is gone", LOOKED_AT, async || {
            for kind in ["deployment", "service", "serviceaccount", "hpa", "pdb"] {
                is_gone(server, kind, "shop/wp").await?;
            }
            Ok(())
        })
        .await?;
        Ok(())
    });
}

#[test]
fn what_the_api_server_refuses_of_a_waypoint_is_told_on_its_gateway() {
    run(async |server| {
        prepared(server).await?;
        server.apply(&size("spec: {replicas: -1}", "")).await?;
        server.apply(GATEWAY).await?;
        let isobard = Isobard::start(server, "isobard", &[]).await?;
        let condition = async |name: &str| -> Result<Value> {
            let gateway = found(server, "gateway", "shop/wp").await?;
            let all = gateway["status"]["conditions"].as_array().cloned();
            let mut all = all.unwrap_or_default().into_iter();
            Ok(all.find(|one| one["type"] == name).unwrap_or_default())
        };
        eventually_within("the refusal is told", LOOKED_AT, async || {
            let programmed = condition("Programmed").await?;
            ensure!(
                programmed["status"] == "False" && programmed["reason"] == "Invalid",
                "{programmed}"
            );
            let message = programmed["message"].to_string();
            ensure!(message.contains("spec.replicas"), "{message}");
            ensure!(condition("Written").await?["status"] == "False");
            Ok(())
        })
        .await?;
        let findings = isobard.page("/debug/findings").await?;
        ensure!(findings.contains("the API server refuses"), "{findings}");
        is_gone(server, "deployment", "shop/wp").await?;
        found(server, "service", "shop/wp").await?;

        // A scaler that cannot be, too.
        let scaler = "  horizontalPodAutoscaler: |\n    spec: {minReplicas: 5, maxReplicas: 2}\n";
        server.apply(&size(PLACED, scaler)).await?;
        eventually_within("that of the scaler is told", LOOKED_AT, async || {
            ensure!(condition("Written").await?.is_null());
            ensure!(condition("Programmed").await?["reason"] == "Pending");
            let accepted = condition("Accepted").await?;
            ensure!(accepted["reason"] == "InvalidParameters", "{accepted}");
            ensure!(
                accepted["message"].to_string().contains("minReplicas"),
                "{accepted}"
            );
            found(server, "deployment", "shop/wp").await.map(drop)
        })
        .await?;
        server.apply(&size(PLACED, MORE)).await?;
        eventually_within("all is well", LOOKED_AT, async || {
            ensure!(condition("Accepted").await?["status"] == "True");
            found(server, "hpa", "shop/wp").await.map(drop)
        })
        .await
        .map(drop)
    });
}

/// What is written is there a moment after somebody changed or removed it.
const MENDED: Duration = Duration::from_secs(10);

/// The waypoint has all that was made for it, as it was made.
async fn is_whole(server: &ApiServer) -> Result<()> {
    for kind in ["service", "serviceaccount"] {
        found(server, kind, "shop/wp").await?;
    }
    let deployment = found(server, "deployment", "shop/wp").await?;
    let pod = &deployment["spec"]["template"]["spec"];
    ensure!(pod["containers"][0]["image"] == "isobar/waypoint", "{pod}");
    let service = found(server, "service", "shop/wp").await?;
    let selector = &service["spec"]["selector"];
    ensure!(
        selector["gateway.networking.k8s.io/gateway-name"] == "wp",
        "{selector}"
    );
    let labels = &service["metadata"]["labels"];
    ensure!(
        labels["gateway.networking.k8s.io/gateway-name"] == "wp",
        "{labels}"
    );
    let gateway = found(server, "gateway", "shop/wp").await?;
    let conditions = gateway["status"]["conditions"].to_string();
    ensure!(conditions.contains("\"Programmed\""), "{conditions}");
    Ok(())
}

#[test]
fn what_others_change_or_remove_of_a_waypoint_comes_back() {
    run(async |server| {
        let server = &*server;
        prepared(server).await?;
        server.apply(&size(PLACED, "")).await?;
        server.apply(GATEWAY).await?;
        let _isobard = Isobard::start(server, "isobard", &[]).await?;
        eventually_within("the waypoint is made", LOOKED_AT, || is_whole(server)).await?;
        let json = |path: &str, value: &str| {
            format!(r#"[{{"op":"replace","path":"{path}","value":{value}}}]"#)
        };
        let image = json("/spec/template/spec/containers/0/image", r#""other""#);
        let selector = json("/spec/selector", r#"{"app":"other"}"#);
        let conditions = json("/status/conditions", "[]");
        for change in [
            &["delete", "service", "wp"][..],
            &["delete", "deployment", "wp"],
            &["delete", "serviceaccount", "wp"],
            &["patch", "deployment", "wp", "--type=json", "-p", &image],
            &["patch", "service", "wp", "--type=json", "-p", &selector],
            &[
                "label",
                "service",
                "wp",
                "gateway.networking.k8s.io/gateway-name-",
            ],
            &[
                "patch",
                "gateway",
                "wp",
                "--subresource=status",
                "--type=json",
                "-p",
                &conditions,
            ],
        ] {
            server.kubectl(&[change, &["-n", "shop"]].concat()).await?;
            let what = format!("it is mended after {change:?}");
            let ((), took) = eventually_within(&what, MENDED, || is_whole(server)).await?;
            println!("{what}: {took:?}");
        }
        // How many there are is whoever scales it to say.
        let scale = ["scale", "deployment", "wp", "-n", "shop", "--replicas=3"];
        server.kubectl(&scale).await?;
        server
            .kubectl(&["label", "deployment", "wp", "-n", "shop", "x=y"])
            .await?;
        server
            .kubectl(&["delete", "service", "wp", "-n", "shop"])
            .await?;
        eventually_within("the Service is back", MENDED, || is_whole(server)).await?;
        let deployment = found(server, "deployment", "shop/wp").await?;
        ensure!(
            deployment["spec"]["replicas"] == 3,
            "{}",
            deployment["spec"]["replicas"]
        );
        Ok(())
    });
}

const SLICED: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.1]}]
ports: [{name: sql, port: 6432}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-2
  namespace: shop
  labels:
    kubernetes.io/service-name: db
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
addressType: IPv4
endpoints: [{addresses: [192.0.2.2]}]
ports: [{name: sql, port: 6432}]
";

/// Names of what is served to everybody.
async fn served(isobard: &Isobard) -> Result<Vec<String>> {
    let page = isobard.json("/debug/config").await?;
    let all = page["addresses"].as_object().context("addresses")?;
    Ok(all.keys().cloned().collect())
}

#[test]
fn slices_of_services_without_a_selector_are_served_and_follow_changes() {
    run(async |server| {
        prepared(server).await?;
        server.apply(SLICED).await?;
        let isobard = Isobard::start(server, "isobard", &[]).await?;
        let name = |address: &str| {
            format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/{address}")
        };
        eventually("the endpoint is served", async || {
            let all = served(&isobard).await?;
            ensure!(all.contains(&name("192.0.2.1")), "{all:?}");
            // What the controller of Kubernetes makes from selectors is not read.
            ensure!(!all.iter().any(|one| one.contains("db-2")), "{all:?}");
            Ok(())
        })
        .await?;
        server
            .apply(&SLICED.replace("192.0.2.1", "192.0.2.9"))
            .await?;
        eventually("the change is served", async || {
            let all = served(&isobard).await?;
            ensure!(all.contains(&name("192.0.2.9")), "{all:?}");
            ensure!(!all.contains(&name("192.0.2.1")), "{all:?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn only_namespaces_that_are_selected_and_objects_of_the_revision_count() {
    run(async |server| {
        prepared(server).await?;
        server.namespace("elsewhere").await?;
        server
            .kubectl(&["label", "namespace", "shop", "mesh=yes"])
            .await?;
        let service = |namespace: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: {namespace}}}\n\
                 spec: {{ports: [{{port: 80}}]}}\n"
            )
        };
        let entry = |name: &str, revision: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {{name: {name}, namespace: shop, labels: {{{revision}}}}}\n\
                 spec: {{hosts: [{name}.example], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS}}\n"
            )
        };
        let yaml = [
            service("shop"),
            service("elsewhere"),
            entry("mine", "istio.io/rev: v2"),
            entry("plain", ""),
            entry("other", "istio.io/rev: v1"),
        ];
        server.apply(&yaml.concat()).await?;
        let arguments = [
            "--discovery-selectors=[{matchLabels: {mesh: 'yes'}}]",
            "--revision=v2",
        ];
        let isobard = Isobard::start(server, "isobard", &arguments).await?;
        let has = async |name: &str| -> Result<bool> {
            Ok(served(&isobard).await?.iter().any(|one| one == name))
        };
        let (near, far) = (
            "shop/a.shop.svc.cluster.local",
            "elsewhere/a.elsewhere.svc.cluster.local",
        );
        ensure!(has(near).await? && !has(far).await?);
        ensure!(has("shop/mine.example").await? && has("shop/plain.example").await?);
        ensure!(!has("shop/other.example").await?);
        found(server, "configmap", "shop/istio-ca-root-cert").await?;
        is_gone(server, "configmap", "elsewhere/istio-ca-root-cert").await?;

        server
            .kubectl(&["label", "namespace", "elsewhere", "mesh=yes"])
            .await?;
        eventually("the namespace has come in", async || {
            ensure!(has(far).await?);
            found(server, "configmap", "elsewhere/istio-ca-root-cert")
                .await
                .map(drop)
        })
        .await?;
        server
            .kubectl(&["label", "namespace", "shop", "mesh-"])
            .await?;
        eventually("the namespace has gone out", async || {
            ensure!(!has(near).await?);
            Ok(())
        })
        .await
    });
}

#[test]
fn another_plugged_in_authority_is_taken_while_it_runs() {
    run(async |server| {
        prepared(server).await?;
        let folder = server.folder().join("cacerts");
        let first = plug_in(&folder, "")?;
        let argument = format!("--ca-dir={}", folder.display());
        let isobard = Isobard::start(server, "isobard", &[&argument]).await?;
        let roots = async || -> Result<String> {
            let map = found(server, "configmap", "shop/istio-ca-root-cert").await?;
            Ok(map["data"]["root-cert.pem"]
                .as_str()
                .unwrap_or_default()
                .to_owned())
        };
        eventually("the roots are there", async || {
            ensure!(roots().await? == first);
            Ok(())
        })
        .await?;
        is_gone(server, "secret", "istio-system/istio-ca-secret").await?;
        // What cannot be used changes nothing; then another one that trusts the first too.
        std::fs::write(folder.join("ca-cert.pem"), "nonsense")?;
        eventually_within("the mistake is told", LOOKED_AT, async || {
            ensure!(isobard.said().contains("the one before stays"));
            Ok(())
        })
        .await?;
        ensure!(roots().await? == first);
        let second = plug_in(&folder, &first)?;
        eventually_within("the new roots are everywhere", LOOKED_AT, async || {
            ensure!(roots().await? == second);
            Ok(())
        })
        .await?;
        ensure!(
            isobard.said().contains("another authority is in force"),
            "{}",
            isobard.said()
        );
        Ok(())
    });
}

const ROUTE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {selector: {app: cart}, ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec: {hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

#[test]
fn beside_istio_only_waypoints_are_written() {
    run(async |server| {
        prepared(server).await?;
        server.namespace("isobar-system").await?;
        server.apply(ROUTE).await?;
        let only = ["--waypoints-only", "--namespace=isobar-system"];
        let isobard = Isobard::start(server, "isobard", &only).await?;
        eventually("the waypoint is made", async || {
            let deployment = found(server, "deployment", "shop/wp").await?;
            let pod = deployment["spec"]["template"]["spec"].to_string();
            for words in [
                r#"{"name":"CA_ADDRESS","value":"https://istiod.istio-system.svc:15012"}"#,
                r#"{"name":"XDS_ROOT_CA","value":"/var/run/secrets/isobar/root-cert.pem"}"#,
                "https://isobard.isobar-system.svc:",
                r#""name":"isobar-ca-root-cert""#,
                r#""name":"istio-ca-root-cert""#,
            ] {
                ensure!(pod.contains(words), "{words} is not in {pod}");
            }
            let gateway = found(server, "gateway", "shop/wp").await?;
            ensure!(
                gateway["status"]["conditions"][0]["type"].is_string(),
                "{gateway}"
            );
            found(server, "configmap", "shop/isobar-ca-root-cert")
                .await
                .map(drop)
        })
        .await?;
        let findings = isobard.page("/debug/findings").await?;
        ensure!(
            findings.contains("WaypointBound"),
            "it is known, and not written: {findings}"
        );
        for (kind, name) in [("service", "shop/cart"), ("virtualservice", "shop/cart")] {
            let object = found(server, kind, name).await?;
            ensure!(object["status"]["conditions"].is_null(), "{object}");
            let managers = object["metadata"]["managedFields"].to_string();
            ensure!(!managers.contains("\"isobar\""), "{managers}");
        }
        is_gone(server, "configmap", "shop/istio-ca-root-cert").await?;
        is_gone(server, "secret", "istio-system/istio-ca-secret").await?;
        found(server, "secret", "isobar-system/istio-ca-secret").await?;
        let refused = Isobard::start(server, "wrong", &["--waypoints-only"]).await;
        let refused = refused
            .err()
            .map_or_else(String::new, |error| format!("{error:#}"));
        ensure!(
            refused.contains("needs a namespace of its own"),
            "{refused}"
        );
        Ok(())
    });
}
