//! What `isobar explain` and `analyze` answer where control planes were started in several ways.

use anyhow::{Result, ensure};
use isobar_tests::ApiServer;

use crate::install::{bad, good};
use crate::run;

/// Callers, and a name outside of the mesh.
const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: client, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, annotations: {ambient.istio.io/redirection: enabled}}
spec: {serviceAccountName: client, nodeName: node-1, containers: [{name: c, image: i}]}
";
const STATUS: &str = "{\"status\": {\"phase\": \"Running\", \"podIP\": \"10.244.1.7\", \
                      \"podIPs\": [{\"ip\": \"10.244.1.7\"}], \
                      \"conditions\": [{\"type\": \"Ready\", \"status\": \"True\"}]}}";
const OUTSIDE: [&str; 3] = ["explain", "shop/client", "http://192.0.2.7:80/"];

fn mesh(name: &str, text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\n\
         data: {{mesh: \"{text}\"}}\n"
    )
}

/// What a command about the cluster prints.
async fn told(server: &ApiServer, args: &[&str]) -> Result<String> {
    let file = server.admin()?;
    let file = file.to_string_lossy();
    good(server, &[args, &["--kubeconfig", &file]].concat()).await
}

/// What the call to the outside comes to.
async fn outside(server: &ApiServer, more: &[&str]) -> Result<String> {
    told(server, &[&OUTSIDE[..], more].concat()).await
}

#[test]
fn the_settings_are_those_of_the_control_plane_that_is_asked_about() {
    run(async |server| {
        good(
            server,
            &["install", "--no-wait", "--set", "crds.gatewayApi=true"],
        )
        .await?;
        server.apply(SHOP).await?;
        let patch = [
            "patch",
            "pod/client",
            "-n",
            "shop",
            "--subresource=status",
            "--type=merge",
            "-p",
            STATUS,
        ];
        server.kubectl(&patch).await?;
        let canary = ["--revision", "canary"];
        let domain = ["--set", "global.trustDomain=corp.example"];
        let second = [&["install", "--no-wait"][..], &canary, &domain].concat();
        good(server, &second).await?;
        server
            .apply(&mesh(
                "istio-canary",
                "outboundTrafficPolicy: {mode: REGISTRY_ONLY}",
            ))
            .await?;

        let said = outside(server, &[]).await?;
        ensure!(said.contains("leaves the mesh"), "{said}");
        let said = outside(server, &canary).await?;
        ensure!(!said.contains("leaves the mesh"), "{said}");
        ensure!(said.contains("spiffe://corp.example/"), "{said}");
        let said = outside(server, &["--revision", "no"]).await;
        let said = said
            .err()
            .map_or_else(String::new, |error| error.to_string());
        ensure!(said.contains("there: canary, default"), "{said}");

        // What one does not honour of its own is told of that one.
        server
            .apply(&mesh("istio", "trustDomain: other.example"))
            .await?;
        let analyze = ["analyze", "--failure-threshold", "error"];
        let first = isobar_says(server, &analyze).await?;
        ensure!(first.contains("other.example is not taken"), "{first}");
        let said = isobar_says(server, &[&analyze[..], &canary].concat()).await?;
        ensure!(!said.contains("other.example"), "{said}");

        // Without the first, the one that is left is meant.
        let first = ["delete", "deployment", "isobard", "-n", "istio-system"];
        server.kubectl(&first).await?;
        let said = outside(server, &[]).await?;
        ensure!(!said.contains("leaves the mesh"), "{said}");
        Ok(())
    });
}

/// A pod that runs at this address and is not redirected, in a namespace of the mesh.
async fn not_redirected(server: &ApiServer, namespace: &str, address: &str) -> Result<()> {
    let pod = SHOP
        .replace(", annotations: {ambient.istio.io/redirection: enabled}", "")
        .replace("namespace: shop", &format!("namespace: {namespace}"))
        .replace("name: shop", &format!("name: {namespace}"));
    server.apply(&pod).await?;
    let status = STATUS.replace("10.244.1.7", address);
    let patch = [
        "patch",
        "pod/client",
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    server.kubectl(&patch).await.map(drop)
}

#[test]
fn what_counts_for_nobody_here_is_told_with_who_else_there_is() {
    let policy = |name: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: istio-system, labels: {{istio.io/rev: {name}}}}}\n\
             spec: {{action: DENY, rules: [{{}}]}}\n"
        )
    };
    run(async |server| {
        let first = [
            "install",
            "--no-wait",
            "--set",
            "crds.gatewayApi=true",
            "--set",
            "node.agent.excludeNamespaces={kube-system,excluded}",
        ];
        good(server, &first).await?;
        good(server, &["install", "--no-wait", "--revision", "canary"]).await?;
        // In a namespace that node agents leave out, and in one that they take.
        not_redirected(server, "excluded", "10.244.1.8").await?;
        not_redirected(server, "shop", "10.244.1.7").await?;
        server
            .apply(&[policy("canary"), policy("gone")].concat())
            .await?;

        let said = isobar_says(server, &["analyze"]).await?;
        let about = |what: &str| {
            let mut lines = said.lines();
            lines.find(|line| line.contains(what)).unwrap_or_default()
        };
        let canary = about("AuthorizationPolicy istio-system/canary");
        ensure!(canary.contains("ISO0409"), "{said}");
        ensure!(
            canary.contains("another control plane is called so"),
            "{said}"
        );
        let gone = about("AuthorizationPolicy istio-system/gone");
        ensure!(gone.contains("no control plane is called so"), "{said}");
        ensure!(about("Pod shop/client").contains("ISO0401"), "{said}");
        ensure!(about("Pod excluded/client").is_empty(), "{said}");

        let said = outside(server, &[]).await?;
        for name in ["canary", "gone"] {
            let note = format!(
                "note: AuthorizationPolicy istio-system/{name} does not count: it belongs to \
                 revision {name}: "
            );
            ensure!(said.contains(&note), "{said}");
        }
        Ok(())
    });
}

/// What a command prints, whatever its exit code says of what it found.
async fn isobar_says(server: &ApiServer, args: &[&str]) -> Result<String> {
    match told(server, args).await {
        Ok(said) => Ok(said),
        Err(error) => Ok(error.to_string()),
    }
}

/// A probed pod, and a policy that opens everything but for whoever probes it.
const PROBED: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}, annotations: {ambient.istio.io/redirection: enabled}}
spec:
  nodeName: node-1
  serviceAccountName: client
  containers: [{name: c, image: i, readinessProbe: {httpGet: {port: 8080, path: /}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 8080}, {port: 15008}]}]
";

#[test]
fn a_policy_that_shuts_out_probes_is_found() {
    run(async |server| {
        let install = ["install", "--no-wait", "--set", "crds.gatewayApi=true"];
        good(server, &install).await?;
        server.apply(SHOP).await?;
        server.apply(PROBED).await?;
        let at = ["patch", "pod/cart", "-n", "shop", "--subresource=status"];
        let status = ["--type=merge", "-p", STATUS];
        server.kubectl(&[&at[..], &status].concat()).await?;
        let file = server.admin()?;
        let file = file.to_string_lossy();
        let said = bad(server, &["netpol", "check", "--kubeconfig", &file]).await?;
        ensure!(said.contains("169.254.7.127"), "{said}");
        Ok(())
    });
}
