//! A gateway that the mesh's own callers go out through, and server names that lead into the mesh.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::{documents, namespace};
use isobar_tests::{Caller, Reply, eventually};
use isobar_tls::outwards::{self, Within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::egress::given;
use crate::fixture::{Shop, run, shop};
use crate::lessons::gateways::{ingress, node};

/// Callers of a host outside go to the gateway, in the mesh's own TLS, and TLS of the host's begins there: it
/// is the control plane, under another name.
const EGRESS: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [pages.example]
    tls: {mode: ISTIO_MUTUAL}
  - port: {number: 80, name: tls, protocol: TLS}
    hosts: ['shop/*.local']
    tls: {mode: AUTO_PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: pages, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [pages.example]
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 443, name: http2, protocol: HTTP2, targetPort: 15012}
  resolution: STATIC
  endpoints: [{address: 172.30.0.1}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pages, namespace: shop}
spec:
  hosts: [pages.example]
  gateways: [mesh, edge/egress]
  http:
  - match: [{gateways: [mesh], port: 80}]
    headers: {response: {set: {x-first: waypoint}}}
    route: [{destination: {host: ingress.edge.svc.cluster.local, subset: pages, port: {number: 443}}}]
  - match: [{gateways: [edge/egress], port: 443}]
    headers: {response: {set: {x-second: gateway}}}
    route: [{destination: {host: pages.example, port: {number: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: egress, namespace: shop}
spec:
  host: ingress.edge.svc.cluster.local
  subsets:
  - name: pages
    trafficPolicy:
      portLevelSettings: [{port: {number: 443}, tls: {mode: ISTIO_MUTUAL, sni: pages.example}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: pages, namespace: edge}
spec:
  host: pages.example
  trafficPolicy:
    portLevelSettings:
    - port: {number: 443}
      tls: {mode: SIMPLE, sni: istiod.istio-system.svc, credentialName: pages}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {ports: [{name: tls, port: 443, targetPort: 15012}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: elsewhere, namespace: shop, labels: {kubernetes.io/service-name: elsewhere}}
addressType: IPv4
ports: [{name: tls, port: 15012}]
endpoints: [{addresses: [172.30.0.1]}]
";

/// Only that account comes in at the gateway.
fn only(account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: only, namespace: edge}}\nspec:\n  action: ALLOW\n  \
         selector: {{matchLabels: {{istio: ingressgateway}}}}\n  \
         rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]}}]\n"
    )
}

/// As often as it takes.
async fn answered(caller: &Caller, shop: &Shop, what: &str, ok: fn(&Reply) -> bool) -> Result<()> {
    eventually(what, async || {
        let to = given(&shop.mesh, "pages.example").await?;
        let reply = caller.request(to, "GET", "pages.example", "/", &[]).await?;
        ensure!(ok(&reply), "{reply:?}");
        Ok(())
    })
    .await
}

#[test]
fn callers_of_the_mesh_go_out_through_a_gateway_and_tls_begins_there() {
    run(async {
        let edge = documents([namespace("edge", &[]), ingress()?]);
        let files = [("edge.yaml", &*edge), ("egress.yaml", EGRESS)];
        let shop = shop(&files).await?;
        let mesh = &shop.mesh;
        let roots = std::fs::read_to_string(mesh.lab().paths().root_cert())?;
        let lines = roots.trim_end().replace('\n', "\n    ");
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: pages, namespace: edge}}\n\
             stringData:\n  ca.crt: |\n    {lines}\n"
        );
        mesh.apply("secret.yaml", &secret)?;
        mesh.isobar(&["waypoint", "apply", "-n", "shop", "--wait"])
            .await?;
        let by_both = |reply: &Reply| {
            let has = |name| reply.headers.contains_key(name);
            reply.status < 500 && has("x-first") && has("x-second")
        };
        answered(&shop.caller, &shop, "the host is reached by both", by_both).await?;

        // To the gateway the waypoint is the caller, by its certificate of the mesh.
        mesh.apply("only.yaml", &only("client"))?;
        let refused = |reply: &Reply| reply.status == 403;
        answered(&shop.caller, &shop, "the waypoint may not come in", refused).await?;
        mesh.apply("only.yaml", &only("waypoint"))?;
        answered(&shop.caller, &shop, "the waypoint may come in", by_both).await?;
        mesh.delete("only.yaml")?;

        // Whoever shows no certificate of the mesh gets no answer.
        let outside = Caller::inside(mesh.lab().netns(Target::Outer).await?)?;
        let tcp = outside.connect(node(1, 30_443)).await?;
        let stranger = outwards::unverified(None)?;
        if let Ok(mut stream) = stranger.connect(tcp, "pages.example", Within::Http1).await {
            // In TLS 1.3 a client is done before it hears of the refusal.
            let get = b"GET / HTTP/1.1\r\nhost: pages.example\r\n\r\n";
            let _ = stream.write_all(get).await;
            ensure!(stream.read_u8().await.is_err(), "a stranger is answered");
        }

        // A server name says where TLS is passed on to.
        let named = ["istiod.istio-system.svc"];
        let client = outwards::client_config(&roots, &named, None)?;
        let meet = async |name: &str| -> Result<()> {
            let tcp = outside.connect(node(1, 30_000)).await?;
            let opened = client.connect(tcp, name, Within::Http2);
            let opened = tokio::time::timeout(Duration::from_secs(5), opened).await;
            opened.context("no answer")?.context("no TLS")?;
            Ok(())
        };
        eventually("TLS is passed on by what its name says", async || {
            meet("outbound_.443_._.elsewhere.shop.svc.cluster.local").await
        })
        .await?;
        for unknown in [
            "outbound_.444_._.elsewhere.shop.svc.cluster.local",
            "outbound_.443_.v1_.elsewhere.shop.svc.cluster.local",
            "outbound_.443_._.ingress.edge.svc.cluster.local",
            "elsewhere.shop.svc.cluster.local",
        ] {
            ensure!(meet(unknown).await.is_err(), "{unknown}");
        }
        shop.mesh.down()
    });
}
