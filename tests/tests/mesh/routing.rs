//! VirtualService and DestinationRule at a waypoint.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isobar_tests::{Caller, Load, LoadKind, Mesh, eventually};

use crate::fixture::{ambient, client, hello, run};

const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: waypoint
  namespace: shop
  labels:
    istio.io/waypoint-for: service
spec:
  gatewayClassName: isobar-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
";

fn weights(v1: u32, v2: u32) -> String {
    format!(
        "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: hello
  namespace: shop
spec:
  hosts:
  - svc-hello
  http:
  - match:
    - uri:
        prefix: /split
    route:
    - destination:
        host: svc-hello-v1
        port:
          number: 8080
      weight: {v1}
    - destination:
        host: svc-hello-v2
        port:
          number: 8080
      weight: {v2}
  - match:
    - uri:
        exact: /subset
    route:
    - destination:
        host: svc-hello
        subset: v2
  - match:
    - uri:
        exact: /missing
    route:
    - destination:
        host: svc-hello
        subset: v9
  - match:
    - uri:
        exact: /method
      method:
        exact: POST
    - uri:
        exact: /header
      headers:
        x-user:
          regex: \"j.*n\"
    - uri:
        exact: /query
      queryParams:
        v:
          exact: \"2\"
    route:
    - destination:
        host: svc-hello-v2
        port:
          number: 8080
"
    )
}

const SUBSETS: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: hello
  namespace: shop
spec:
  host: svc-hello
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
";

async fn start() -> Result<(Mesh, Caller)> {
    let namespace = ambient("shop") + "    istio.io/use-waypoint: waypoint\n";
    let mesh = Mesh::start(&[
        ("ns.yaml", &namespace),
        ("client.yaml", &client("shop")),
        ("hello.yaml", &hello("shop")),
        ("waypoint.yaml", WAYPOINT),
        ("vs.yaml", &weights(80, 20)),
        ("dr.yaml", SUBSETS),
    ])
    .await?;
    mesh.settled("shop/client", "enrolled").await?;
    mesh.settled("shop/hello-v1", "enrolled").await?;
    mesh.settled("shop/hello-v2", "enrolled").await?;
    let caller = mesh.caller("shop/client").await?;
    let to = (mesh.service_ip("shop/svc-hello").await?, 8080).into();
    for path in ["/subset", "/split"] {
        mesh.answers(&caller, to, "svc-hello:8080", path).await?;
    }
    Ok((mesh, caller))
}

#[test]
fn matches_weights_and_subsets_decide() {
    run(async {
        let (mesh, caller) = start().await?;
        let to = (mesh.service_ip("shop/svc-hello").await?, 8080).into();
        let mut connection = caller.http(to).await?;
        let mut v1 = 0;
        for _ in 0..2000 {
            let reply = connection.get("svc-hello:8080", "/split").await?;
            ensure!(reply.status == 200, "{reply:?}");
            v1 += u32::from(reply.body.contains("v1"));
        }
        ensure!(
            (1520..=1680).contains(&v1),
            "{v1} of 2000 went to v1, wanted 1600 ± 80"
        );

        for (method, path, headers, status, body) in [
            ("GET", "/subset", [("x-user", "-")], 200, "v2"),
            ("POST", "/method", [("x-user", "-")], 200, "v2"),
            ("GET", "/method", [("x-user", "-")], 404, ""),
            ("GET", "/header", [("x-user", "johan")], 200, "v2"),
            ("GET", "/header", [("x-user", "johann")], 200, "v2"),
            ("GET", "/header", [("x-user", "xjohan")], 404, ""),
            ("GET", "/query?v=2", [("x-user", "-")], 200, "v2"),
            ("GET", "/query?v=3", [("x-user", "-")], 404, ""),
            ("GET", "/nowhere", [("x-user", "-")], 404, ""),
            ("GET", "/missing", [("x-user", "-")], 503, ""),
        ] {
            let reply = connection
                .request(method, "svc-hello:8080", path, &headers)
                .await?;
            ensure!(
                reply.status == status && reply.body.contains(body),
                "{method} {path} {headers:?}: {reply:?}"
            );
        }
        eventually("the waypoint's log tells why", async || {
            let log = mesh.log("shop/waypoint").await?;
            for (path, status, flag) in [("/nowhere", "404", "NR"), ("/missing", "503", "NC")] {
                ensure!(
                    log.lines()
                        .any(|l| l.contains(&format!("\"GET {path} HTTP/1.1\" {status} {flag}"))),
                    "no line for {path} with {flag} in:\n{log}"
                );
            }
            Ok(())
        })
        .await?;
        mesh.down()
    });
}

#[test]
fn changing_weights_under_load_loses_nothing() {
    run(async {
        let (mesh, caller) = start().await?;
        let to = (mesh.service_ip("shop/svc-hello").await?, 8080).into();
        let host = "svc-hello:8080";
        let kept = Load::start(caller.clone(), to, host, "/split", LoadKind::KeepAlive, 100);
        let fresh = Load::start(
            caller.clone(),
            to,
            host,
            "/split",
            LoadKind::NewConnections,
            50,
        );
        kept.progress(100).await?;
        for (v1, v2, only) in [(0, 100, "v2"), (100, 0, "v1"), (0, 100, "v2")] {
            mesh.apply("vs.yaml", &weights(v1, v2))?;
            let changed = Instant::now();
            let mut in_a_row = 0;
            while in_a_row < 30 {
                let reply = caller.request(to, "GET", host, "/split", &[]).await?;
                in_a_row = if reply.body.contains(only) {
                    in_a_row + 1
                } else {
                    0
                };
                ensure!(
                    in_a_row > 0 || changed.elapsed() < Duration::from_secs(1),
                    "weights {v1}/{v2} not in force after {:?}",
                    changed.elapsed()
                );
            }
        }
        for load in [kept, fresh] {
            let tally = load.stop().await;
            ensure!(tally.bad.is_empty(), "{:?}", tally.bad);
        }
        mesh.down()
    });
}
