//! Authorisers of routes, asked through the mesh: by a waypoint and by a gateway.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use isobar_tests::yaml::{documents, service};
use isobar_tests::{Answer, App, Caller, Mesh, eventually};

use crate::fixture::{ambient, client, other, run, server};

const PORT: u16 = 9191;

const OBJECTS: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: isobar
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: guarded, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: server}, {name: front}]
  rules:
  - matches: [{path: {value: /anything}}]
    filters:
    - type: ExternalAuth
      externalAuth:
        protocol: HTTP
        backendRef: {name: authoriser, port: 9191}
        http: {path: /check, allowedHeaders: [x-say]}
    backendRefs: [{name: server, port: 80}]
  - backendRefs: [{name: server, port: 80}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-proxies, namespace: shop}
spec:
  selector: {matchLabels: {app: other}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/waypoint, cluster.local/ns/shop/sa/front]}}]
";

async fn says(caller: &Caller, to: SocketAddr, say: &str) -> Result<u16> {
    let headers = [("x-say", say), ("x-hidden", "1")];
    let path = "/anything/x?q=1";
    let reply = caller.request(to, "GET", "server", path, &headers).await?;
    Ok(reply.status)
}

#[test]
fn an_authoriser_decides_about_a_route() {
    run(async {
        let names = ambient("shop") + "    istio.io/use-waypoint: waypoint\n";
        let at = service("shop", "authoriser", "other", PORT, false);
        // Whoever asks it is to be seen: no waypoint stands before it.
        let at = at.replace(
            "  namespace: shop\n",
            "  namespace: shop\n  labels: {istio.io/use-waypoint: none}\n",
        );
        let mesh = Mesh::start(&[
            ("ns.yaml", &names),
            ("client.yaml", &client("shop")),
            ("server.yaml", &server("shop", &[])),
            ("authoriser.yaml", &documents([other("shop"), at])),
            ("objects.yaml", OBJECTS),
        ])
        .await?;
        for pod in ["shop/client", "shop/server", "shop/other"] {
            mesh.settled(pod, "enrolled").await?;
        }
        let caller = mesh.caller("shop/client").await?;
        let inside = mesh.caller("shop/other").await?;
        let authoriser = App::serve("authoriser", inside.listen(PORT)?, |asked| {
            Answer::Status(asked.field("x-say").parse().unwrap_or(403))
        });
        let server = SocketAddr::from((mesh.service_ip("shop/server").await?, 80));
        let front = eventually("the gateway has a Service", async || {
            mesh.service_ip("shop/front").await
        })
        .await?;
        for to in [server, SocketAddr::from((front, 80))] {
            eventually("the authoriser is asked", async || {
                let status = says(&caller, to, "401").await?;
                ensure!(status == 401, "{status}");
                Ok(())
            })
            .await?;
            for (say, wanted) in [("200", 200), ("401", 401), ("302", 302), ("500", 403)] {
                let status = says(&caller, to, say).await?;
                ensure!(status == wanted, "{to} {say}: {status}");
            }
            let last = authoriser.arrived().pop();
            let last = last.ok_or_else(|| anyhow::anyhow!("nobody asked"))?;
            ensure!(last.path == "/check/anything/x?q=1", "{last:?}");
            ensure!(last.field("host") == "server", "{last:?}");
            ensure!(last.field("x-hidden").is_empty(), "{last:?}");
            let before = authoriser.count();
            let free = caller.request(to, "GET", "server", "/ip", &[]).await?;
            ensure!(
                free.status == 200 && authoriser.count() == before,
                "{free:?}"
            );
        }
        // It is asked by the waypoint and the gateway as themselves, and takes nobody else.
        let direct = SocketAddr::from((mesh.service_ip("shop/authoriser").await?, PORT));
        let before = authoriser.count();
        let own = caller.request(direct, "GET", "authoriser", "/", &[]).await;
        ensure!(own.is_err(), "{own:?}");
        ensure!(authoriser.count() == before, "the policy let the client in");

        authoriser.stop().await;
        for to in [server, SocketAddr::from((front, 80))] {
            let status = says(&caller, to, "200").await?;
            ensure!(status == 403, "{to}: {status}");
        }
        mesh.down()
    });
}
