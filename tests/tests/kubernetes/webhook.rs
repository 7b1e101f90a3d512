//! The admission webhook as `kubectl apply` meets it.

use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_tests::{ApiServer, eventually, eventually_within};

use crate::definitions::define;
use crate::isobard::Isobard;
use crate::run;

const CONFIGURATION: &str = "\
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: isobar-validator
";
const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80}]}
";
/// Objects of the Gateway API have an entry of their own, which never refuses.
const POLICY: &str = "jsonpath={.webhooks[?(@.name=='validation.isobar.dev')].failurePolicy}";
/// The server may take a moment to hear of a configuration, and the leader one to look again.
const TAKEN_UP: Duration = Duration::from_secs(20);
/// As [`TAKEN_UP`], after the leader was well for a while.
const NOTICED: Duration = Duration::from_secs(90);

const ARGUMENTS: [&str; 2] = [
    "--webhook={webhook}",
    "--webhook-url=https://{webhook}/validate",
];

fn route(name: &str, subset: &str, weight: i32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [cart]
  http:
  - route:
    - destination: {{host: cart, subset: {subset}}}
      weight: {weight}
    - destination: {{host: cart}}
      weight: {}
",
        100 - weight
    )
}

async fn try_apply(server: &ApiServer, yaml: &str) -> Result<String> {
    let file = server.folder().join("try.yaml");
    std::fs::write(&file, yaml)?;
    let file = file.to_string_lossy();
    // Warnings go to the other stream, which a refusal is told with.
    server
        .kubectl(&["apply", "--warnings-as-errors", "-f", &*file])
        .await
}

async fn policy(server: &ApiServer) -> Result<String> {
    let get = ["get", "validatingwebhookconfiguration", "isobar-validator"];
    let text = server
        .kubectl(&[&get[..], &["-o", POLICY]].concat())
        .await?;
    Ok(text)
}

async fn becomes(server: &ApiServer, wanted: &str, limit: Duration) -> Result<Duration> {
    let what = format!("the failure policy is {wanted}");
    let ((), took) = eventually_within(&what, limit, async || {
        let now = policy(server).await?;
        ensure!(now == wanted, "{now}");
        Ok(())
    })
    .await?;
    Ok(took)
}

#[test]
fn a_bad_route_is_refused_by_kubectl_apply_and_a_doubtful_one_warned_about() {
    run(async |server| {
        server.namespace("istio-system").await?;
        server.namespace("shop").await?;
        define(server).await?;
        server.apply(SERVICE).await?;
        // Before the webhook is registered anything goes in.
        server.apply(&route("old", "v1", -1)).await?;
        server.apply(CONFIGURATION).await?;
        let isobard = Isobard::start(server, "isobard", &ARGUMENTS).await?;
        let took = becomes(server, "Fail", TAKEN_UP).await?;
        println!("the API server asks after {took:?}");

        let refused = try_apply(server, &route("bad", "v1", -1)).await;
        let refused = format!(
            "{:#}",
            refused
                .err()
                .map_or_else(Default::default, |e| e.to_string())
        );
        for word in [
            "admission webhook \"validation.isobar.dev\" denied the request",
            "VirtualService shop/bad",
            "spec.http[0].route[0].weight",
        ] {
            ensure!(refused.contains(word), "{word:?} is not in {refused}");
        }
        let get = ["get", "virtualservice", "bad", "-n", "shop"];
        ensure!(server.kubectl(&get).await.is_err(), "it is there");

        let warned = try_apply(server, &route("good", "v7", 1)).await;
        let warned = warned
            .err()
            .map_or_else(Default::default, |error| error.to_string());
        ensure!(
            warned.contains("Warning: VirtualService shop/good") && warned.contains("v7"),
            "{warned}"
        );
        let get = ["get", "virtualservice", "good", "-n", "shop"];
        server.kubectl(&get).await?;
        let label = ["label", "virtualservice", "old", "-n", "shop", "a=b"];
        server.kubectl(&label).await?;
        let metrics = isobard.page("/metrics").await?;
        ensure!(
            metrics.contains("isobar_validations_total{result=\"refused\"}"),
            "{metrics}"
        );
        Ok(())
    });
}

#[test]
fn who_cannot_be_asked_any_more_holds_nobody_up() {
    run(async |server| {
        server.namespace("istio-system").await?;
        server.namespace("shop").await?;
        define(server).await?;
        server.apply(SERVICE).await?;
        server.apply(CONFIGURATION).await?;
        let first = Isobard::start(server, "isobard", &ARGUMENTS).await?;
        becomes(server, "Fail", TAKEN_UP).await?;
        drop(first);
        let refused = server.apply(&route("unseen", "v1", 1)).await;
        let refused = refused
            .err()
            .map_or_else(Default::default, |error| error.to_string());
        ensure!(refused.contains("failed calling webhook"), "{refused}");
        // The next one cannot be reached where it says.
        let elsewhere = [
            "--webhook={webhook}",
            "--webhook-url=https://127.0.0.1:1/validate",
        ];
        let second = Isobard::start(server, "second", &elsewhere).await?;
        let took = becomes(server, "Ignore", NOTICED).await?;
        println!("let in unseen after {took:?}");
        eventually("the server has heard of it", async || {
            server.apply(&route("unseen", "v1", 1)).await
        })
        .await?;
        ensure!(second.said().contains("cannot ask"), "{}", second.said());
        drop(second);
        // And one that can be asked again: what is wrong is refused again.
        let third = Isobard::start(server, "third", &ARGUMENTS).await?;
        becomes(server, "Fail", NOTICED).await?;
        ensure!(server.apply(&route("bad", "v1", -1)).await.is_err());
        // A configuration that is gone is not made again, and nobody is left to think that it is there.
        let gone = [
            "delete",
            "validatingwebhookconfiguration",
            "isobar-validator",
        ];
        server.kubectl(&gone).await?;
        eventually_within("the log says so", NOTICED, async || {
            let said = third.said();
            ensure!(said.contains("there is no webhook configuration"), "{said}");
            Ok(())
        })
        .await?;
        Ok(())
    });
}
