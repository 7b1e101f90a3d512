//! What `isobar explain` and `analyze` answer where control planes were started in several ways.

use anyhow::{Result, ensure};
use isobar_tests::ApiServer;

use crate::install::good;
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

/// What a command prints, whatever its exit code says of what it found.
async fn isobar_says(server: &ApiServer, args: &[&str]) -> Result<String> {
    match told(server, args).await {
        Ok(said) => Ok(said),
        Err(error) => Ok(error.to_string()),
    }
}
