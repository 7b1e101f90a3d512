//! Gateways at the edge of the mesh: callers from outside come in by a port of the nodes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::{documents, namespace};
use isobar_tests::{Caller, Mesh, Reply, eventually, samples};
use isobar_tls::ca::Authority;
use isobar_tls::outwards::{self, Within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{ambient, hello, run, server};

/// The sample's pods with the mesh's own program, and ports of every node before them.
pub(crate) fn ingress() -> Result<String> {
    let text = std::fs::read_to_string(samples().join("gateway/ingressgateway.yaml"))?;
    let changes = [
        ("istio-ingressgateway", "ingress"),
        ("namespace: istio-ingress", "namespace: edge"),
        ("type: LoadBalancer", "type: NodePort"),
        ("targetPort: 8080", "targetPort: 8080\n    nodePort: 30000"),
        ("targetPort: 8443", "targetPort: 8443\n    nodePort: 30443"),
    ];
    changes.iter().try_fold(text, |text, (from, to)| {
        ensure!(text.contains(from), "the sample has no {from:?}");
        Ok(text.replace(from, to))
    })
}

const GATEWAY: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: test-gateway, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}
";

const RULES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: page, namespace: shop}
spec:
  hosts: [mydomain.example]
  gateways: [edge/test-gateway]
  http: [{route: [{destination: {host: server, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: elsewhere, namespace: shop}
spec:
  hosts: [other.example]
  gateways: [other-gateway]
  http: [{route: [{destination: {host: server, port: {number: 80}}}]}]
";

/// Pods of namespace shop take nothing that is not of the mesh.
const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// A lab with an application that only the mesh reaches, a gateway, and somebody outside.
struct Edge {
    mesh: Mesh,
    outside: Caller,
}

pub(crate) fn node(n: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(172, 30, 0, 10 + n), port).into()
}

impl Edge {
    /// With pods for Istio's Gateways.
    async fn start(more: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(&ingress()?, more).await
    }

    async fn start_with(pods: &str, more: &[(&str, &str)]) -> Result<Self> {
        let home = [namespace("edge", &[]), pods.to_owned()];
        let home = documents(home.iter().filter(|text| !text.is_empty()));
        let shop = documents([ambient("shop"), server("shop", &[]), STRICT.to_owned()]);
        let files = [("edge.yaml", &*home), ("shop.yaml", &shop)];
        let mesh = Mesh::start(&[&files[..], more].concat()).await?;
        mesh.settled("shop/server", "enrolled").await?;
        let outside = Caller::inside(mesh.lab().netns(Target::Outer).await?)?;
        Ok(Self { mesh, outside })
    }

    async fn get(&self, n: u8, host: &str, path: &str) -> Result<Reply> {
        let spoofed = [
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
        ];
        self.outside
            .request(node(n, 30_000), "GET", host, path, &spoofed)
            .await
    }

    async fn answers(&self, host: &str, path: &str, status: u16) -> Result<()> {
        eventually(
            &format!("{host}{path} is answered with {status}"),
            async || {
                let reply = self.get(1, host, path).await?;
                ensure!(reply.status == status, "{reply:?}");
                Ok(())
            },
        )
        .await
    }
}

#[test]
fn s060_a_gateway_serves_its_hosts_on_port_30000_of_every_node() {
    run(async {
        let edge = Edge::start(&[("gateway.yaml", GATEWAY), ("rules.yaml", RULES)]).await?;
        edge.answers("mydomain.example", "/headers", 200).await?;
        for n in [1, 2] {
            let reply = edge.get(n, "mydomain.example", "/headers").await?;
            ensure!(reply.status == 200, "{reply:?}");
            ensure!(!reply.body.contains("10.0.0.1"), "{}", reply.body);
            let body = reply.body.to_lowercase();
            ensure!(body.contains("x-forwarded-for"), "{body}");
            ensure!(!body.contains("https"), "{body}");
            for unknown in ["unknown.example", "other.example"] {
                let reply = edge.get(n, unknown, "/headers").await?;
                ensure!(reply.status == 404, "{reply:?}");
            }
        }
        // The gateway is a caller with an identity: only it may come in.
        let only = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {name: only-edge, namespace: shop}\nspec:\n  action: ALLOW\n  rules:\n  \
             - from: [{source: {principals: [cluster.local/ns/edge/sa/ingress]}}]\n";
        edge.mesh.apply("only.yaml", only)?;
        edge.answers("mydomain.example", "/ip", 200).await?;
        edge.mesh
            .apply("only.yaml", &only.replace("sa/ingress", "sa/somebody"))?;
        edge.answers("mydomain.example", "/ip", 503).await?;
        edge.mesh.delete("only.yaml")?;
        edge.answers("mydomain.example", "/ip", 200).await?;
        // Callers from outside are nobody: what is for somebody is not for them.
        let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {name: edge, namespace: edge}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  \
             rules: [{from: [{source: {principals: ['*']}}]}]\n";
        edge.mesh.apply("deny.yaml", deny)?;
        edge.answers("mydomain.example", "/ip", 403).await?;
        edge.mesh.delete("deny.yaml")?;
        edge.answers("mydomain.example", "/ip", 200).await?;
        edge.mesh.delete("rules.yaml")?;
        edge.answers("mydomain.example", "/ip", 404).await?;
        edge.mesh.down()
    });
}

/// The page of the fourth seed: a pod that is killed without grace, behind a gateway.
const NGINX: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: kans-nginx, namespace: shop, labels: {app: kans-nginx}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: svc-clusterip, namespace: shop}
spec:
  selector: {app: kans-nginx}
  ports: [{name: svc-webport, port: 80, targetPort: 80}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: nginx-service, namespace: shop}
spec:
  hosts: [mydomain.example]
  gateways: [edge/test-gateway]
  http: [{route: [{destination: {host: svc-clusterip, port: {number: 80}}}]}]
";

#[test]
fn s129_a_page_behind_a_gateway_comes_back_after_its_pod_was_killed() {
    run(async {
        let edge = Edge::start(&[("gateway.yaml", GATEWAY), ("nginx.yaml", NGINX)]).await?;
        edge.mesh.settled("shop/kans-nginx", "enrolled").await?;
        edge.answers("mydomain.example", "/", 200).await?;
        edge.mesh.delete("nginx.yaml")?;
        edge.answers("mydomain.example", "/", 404).await?;
        edge.mesh.apply("nginx.yaml", NGINX)?;
        edge.answers("mydomain.example", "/", 200).await?;
        edge.mesh.down()
    });
}

/// A Secret with a certificate of that name.
fn secret(authority: &Authority, name: &str, host: &str) -> Result<String> {
    let day = Duration::from_secs(86_400);
    let issued = authority.issue_server(&[host.to_owned()], day)?;
    let lines = |text: &str| text.trim_end().replace('\n', "\n    ");
    Ok(format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: edge}}\ntype: kubernetes.io/tls\n\
         stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
        lines(&issued.chain),
        lines(&issued.key.to_pem()?)
    ))
}

const SECURE: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: test-gateway, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ['*']
    tls: {httpsRedirect: true}
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [mydomain.example]
    tls: {mode: SIMPLE, credentialName: page}
";

/// Status line of one request over TLS, the certificate verified by `authority`.
async fn secure(edge: &Edge, authority: &Authority, host: &str) -> Result<String> {
    let none: [&str; 0] = [];
    let client = outwards::client_config(authority.roots(), &none, None)?;
    let tcp = edge.outside.connect(node(1, 30_443)).await?;
    let opened = client.connect(tcp, host, Within::Http1);
    let mut stream = tokio::time::timeout(Duration::from_secs(5), opened).await??;
    let request = format!("GET /headers HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    // Whoever closes without a last word has still answered.
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut reply)).await?;
    String::from_utf8(reply).context("the reply is no text")
}

#[test]
fn s080_tls_ends_at_a_gateway_and_its_secret_is_replaced_under_load() {
    run(async {
        let old = Authority::generate("old")?;
        let new = Authority::generate("new")?;
        let host = "mydomain.example";
        let first = secret(&old, "page", host)?;
        let files = [
            ("gateway.yaml", SECURE),
            ("rules.yaml", RULES),
            ("secret.yaml", &first),
        ];
        let edge = Edge::start(&files).await?;
        eventually("the page is there over TLS", async || {
            let reply = secure(&edge, &old, host).await?;
            ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
            ensure!(
                reply.to_lowercase().contains("x-forwarded-proto"),
                "{reply}"
            );
            Ok(())
        })
        .await?;
        ensure!(secure(&edge, &old, "unknown.example").await.is_err());
        let reply = edge.get(1, host, "/some?x=1").await?;
        ensure!(reply.status == 301, "{reply:?}");
        let to = reply.headers.get("location").context("a location")?;
        ensure!(to == "https://mydomain.example/some?x=1", "{to:?}");
        edge.mesh
            .apply("secret.yaml", &secret(&new, "page", host)?)?;
        let mut changed = false;
        for _ in 0..400 {
            // One of the two, never a failed handshake.
            let by_new = secure(&edge, &new, host).await;
            changed = by_new.is_ok();
            if changed {
                break;
            }
            let by_old = secure(&edge, &old, host).await;
            if by_old.is_err() {
                secure(&edge, &new, host)
                    .await
                    .context("neither is shown")?;
            }
        }
        ensure!(changed, "the new certificate was never shown");
        edge.mesh.down()
    });
}

const API: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: edge}
spec:
  gatewayClassName: isobar
  listeners:
  - name: http
    port: 80
    protocol: HTTP
    hostname: '*.example'
    allowedRoutes: {namespaces: {from: All}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: page, namespace: shop}
spec:
  parentRefs: [{name: front, namespace: edge}]
  hostnames: [page.example]
  rules:
  - matches: [{path: {value: /}}]
    backendRefs: [{name: server, port: 80}]
";

#[test]
fn s061_the_mesh_runs_the_pods_of_a_gateway_and_tells_how_it_stands() {
    run(async {
        let edge = Edge::start_with("", &[("api.yaml", API)]).await?;
        let front = eventually("the Gateway has a Service", async || {
            edge.mesh.service_ip("edge/front").await
        })
        .await?;
        // The cluster's own addresses are known to the nodes only.
        let inside = Caller::inside(edge.mesh.lab().netns(Target::Node("node-1".into())).await?)?;
        let get = async |host: &str| {
            inside
                .request((front, 80).into(), "GET", host, "/ip", &[])
                .await
        };
        eventually("the page is there", async || {
            let reply = get("page.example").await?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        })
        .await?;
        ensure!(get("other.example").await?.status == 404);
        // Through the waypoint of the Service, where that is asked for: there is none, so it refuses.
        let waypoint = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    \
             istio.io/dataplane-mode: ambient\n    istio.io/use-waypoint: nosuch\n    \
             istio.io/ingress-use-waypoint: \"true\"\n";
        let shop = documents([waypoint.to_owned(), server("shop", &[]), STRICT.to_owned()]);
        edge.mesh.apply("shop.yaml", &shop)?;
        eventually("nothing goes around a waypoint", async || {
            let reply = get("page.example").await?;
            ensure!(reply.status == 503, "{reply:?}");
            Ok(())
        })
        .await?;
        edge.mesh.down()
    });
}

/// A port each for connections, for gRPC, and for TLS that ends elsewhere: at the control plane, which
/// has a certificate of its own.
const OPAQUE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: isobar
  listeners:
  - {name: grpc, port: 80, protocol: HTTP}
  - {name: tcp, port: 9000, protocol: TCP}
  - {name: tls, port: 8443, protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: page, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: tcp}]
  rules: [{backendRefs: [{name: server, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: greeter, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: grpc}]
  rules:
  - matches: [{method: {service: hello.Greeter}}]
    backendRefs: [{name: svc-hello-v2, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: passed, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: tls}]
  hostnames: [istiod.istio-system.svc]
  rules: [{backendRefs: [{name: elsewhere, port: 443}]}]
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

#[test]
fn a_gateway_takes_connections_and_grpc_and_passes_tls_on() {
    run(async {
        let files = [("hello.yaml", &*hello("shop")), ("front.yaml", OPAQUE)];
        let edge = Edge::start_with("", &files).await?;
        let front = eventually("the Gateway has a Service", async || {
            edge.mesh.service_ip("shop/front").await
        })
        .await?;
        let inside = Caller::inside(edge.mesh.lab().netns(Target::Node("node-1".into())).await?)?;
        eventually("a connection is carried", async || {
            let reply = inside.get((front, 9000).into(), "/ip").await?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        })
        .await?;
        let call = async |path: &str| {
            let kind = [("content-type", "application/grpc")];
            let to = (front, 80).into();
            inside
                .request(to, "POST", "greeter.example", path, &kind)
                .await
        };
        eventually("gRPC is answered", async || {
            let reply = call("/hello.Greeter/Hello").await?;
            ensure!(reply.body.contains("v2"), "{reply:?}");
            Ok(())
        })
        .await?;
        let reply = call("/other.Service/X").await?;
        let status = reply.headers.get("grpc-status").context("a status")?;
        ensure!(status == "12", "no rule takes it: {reply:?}");

        let roots = std::fs::read_to_string(edge.mesh.lab().paths().root_cert())?;
        let none: [&str; 0] = [];
        let client = outwards::client_config(&roots, &none, None)?;
        let meet = async |host: &str| -> Result<()> {
            let tcp = inside.connect((front, 8443).into()).await?;
            let opened = client.connect(tcp, host, Within::Http2);
            tokio::time::timeout(Duration::from_secs(5), opened).await??;
            Ok(())
        };
        eventually("TLS is passed on", async || {
            meet("istiod.istio-system.svc").await
        })
        .await?;
        ensure!(
            meet("isobard.istio-system.svc").await.is_err(),
            "another name of the same certificate"
        );
        edge.mesh.down()
    });
}
