//! Waypoints per service account: each has an identity and configuration of its own, and a missing
//! one refuses.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::{Pod, documents, service, service_account};
use isobar_tests::{Caller, Mesh, Reply, eventually};

use crate::fixture::{HELLO_V1, HELLO_V2, ambient, client, outside, run};

/// An application with an account, a pod and two Services, one of them headless.
fn application(name: &'static str, image: &str) -> String {
    let pod = Pod {
        namespace: "shop",
        name,
        account: name,
        node: "node-2",
        image,
        port: Some(8080),
        labels: &[],
    };
    documents([
        pod.yaml(),
        service("shop", name, name, 8080, false),
        service("shop", &format!("{name}-headless"), name, 8080, true),
    ])
}

fn account(name: &str, labels: &[(&str, &str)]) -> String {
    service_account("shop", name, labels)
}

/// Only GET of /open may pass; the rule is the waypoint's, because it speaks of methods and paths.
fn only_open(name: &str) -> String {
    format!(
        "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: only-open-{name}
  namespace: shop
spec:
  targetRefs:
  - group: gateway.networking.k8s.io
    kind: Gateway
    name: {name}-waypoint
  action: ALLOW
  rules:
  - to:
    - operation:
        methods: [GET]
        paths: [/open]
"
    )
}

fn virtual_service(name: &str) -> String {
    format!(
        "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: route-of-{name}
  namespace: shop
spec:
  hosts: [{name}]
  http:
  - headers:
      response:
        set:
          x-passed: {name}
    route:
    - destination:
        host: {name}
"
    )
}

struct Shop {
    mesh: Mesh,
    inside: Caller,
    outside: Caller,
    by_service: SocketAddr,
    by_pod: SocketAddr,
}

async fn start() -> Result<Shop> {
    let mesh = Mesh::start(&[
        ("ns.yaml", &ambient("shop")),
        ("client.yaml", &client("shop")),
        ("cart.yaml", &application("cart", HELLO_V1)),
        ("cart-account.yaml", &account("cart", &[])),
        ("stock.yaml", &application("stock", HELLO_V2)),
        ("stock-account.yaml", &account("stock", &[])),
        ("cart-policy.yaml", &only_open("cart")),
        ("vs-cart.yaml", &virtual_service("cart")),
        ("vs-stock.yaml", &virtual_service("stock")),
        ("outside.yaml", &outside()),
    ])
    .await?;
    for pod in ["shop/client", "shop/cart", "shop/stock"] {
        mesh.settled(pod, "enrolled").await?;
    }
    for name in ["cart", "stock"] {
        let args = ["waypoint", "apply", "-n", "shop", "--service-account", name];
        mesh.isobar(&[&args[..], &["--for", "all", "--wait"]].concat())
            .await?;
    }
    let by_service = (mesh.service_ip("shop/cart").await?, 8080).into();
    let by_pod = (mesh.pod_ip("shop/cart").await?, 8080).into();
    let inside = mesh.caller("shop/client").await?;
    let outside = mesh.caller("outside/outsider").await?;
    Ok(Shop {
        mesh,
        inside,
        outside,
        by_service,
        by_pod,
    })
}

async fn get(caller: &Caller, to: SocketAddr, path: &str) -> Result<Reply> {
    caller.request(to, "GET", "cart:8080", path, &[]).await
}

impl Shop {
    /// The policy is in force: what it refuses is refused with 403, the rest passes.
    async fn guarded(&self) -> Result<()> {
        for to in [self.by_service, self.by_pod] {
            eventually("the policy is in force", async || {
                let reply = get(&self.inside, to, "/open").await?;
                ensure!(reply.status == 200, "{to}: {reply:?}");
                let reply = get(&self.inside, to, "/secret").await?;
                ensure!(reply.status == 403, "{to}: {reply:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Nothing gets to the application: no byte comes back, from anywhere, by any name.
    async fn closed(&self) -> Result<()> {
        let headless = self
            .mesh
            .exec(
                "shop/client",
                &["curl", "-s", "-m", "5", "http://cart-headless:8080/open"],
            )
            .await?;
        ensure!(
            headless.code != 0 && headless.stdout.is_empty(),
            "headless: {headless:?}"
        );
        for (who, caller) in [("inside", &self.inside), ("outside", &self.outside)] {
            for to in [self.by_service, self.by_pod] {
                let reply = get(caller, to, "/open").await;
                ensure!(reply.is_err(), "{who} to {to}: {reply:?}");
            }
        }
        Ok(())
    }
}

#[test]
fn each_account_has_a_waypoint_of_its_own() {
    run(async {
        let shop = start().await?;
        shop.guarded().await?;
        let stock = (shop.mesh.service_ip("shop/stock").await?, 8080).into();
        let reply = shop
            .inside
            .request(stock, "GET", "stock:8080", "/secret", &[])
            .await?;
        ensure!(
            reply.status == 200,
            "the rule of one is applied by the other: {reply:?}"
        );
        ensure!(
            reply.headers.get("x-passed").is_some_and(|v| v == "stock"),
            "{reply:?}"
        );

        // From outside the mesh nothing gets past the waypoint.
        for to in [shop.by_service, shop.by_pod] {
            let reply = get(&shop.outside, to, "/secret").await;
            ensure!(
                reply.is_err(),
                "a plaintext caller passed the waypoint by: {reply:?}"
            );
        }
        for (own, other) in [("cart", "stock"), ("stock", "cart")] {
            let waypoint = waypoint_pod(&shop.mesh, own).await?;
            let dump = shop
                .mesh
                .page(Target::pod(waypoint), 15000, "/config_dump")
                .await?;
            ensure!(
                dump.contains(&format!("route-of-{own}")),
                "{own} lacks its own route:\n{dump}"
            );
            ensure!(
                !dump.contains(&format!("route-of-{other}")),
                "{own} has {other}'s route"
            );
            let policy = dump.contains("only-open-cart");
            ensure!(
                policy == (own == "cart"),
                "{own}: policy of cart present: {policy}"
            );
        }
        shop.mesh.down()
    });
}

/// The pod of an account's waypoint.
async fn waypoint_pod(mesh: &Mesh, account: &str) -> Result<String> {
    let prefix = format!("{account}-waypoint-");
    let pods = mesh.status().await?.pods;
    let pod = pods.iter().find(|p| p.name.starts_with(&prefix));
    let pod = pod.with_context(|| format!("no pod {prefix}*"))?;
    Ok(format!("{}/{}", pod.namespace, pod.name))
}

#[test]
fn a_missing_waypoint_refuses_and_fail_open_passes() {
    run(async {
        let shop = start().await?;
        shop.guarded().await?;

        // Its Gateway is deleted: the binding stays, so everything is refused.
        let gateway = find_gateway(&shop.mesh)?;
        let saved = std::fs::read(&gateway)?;
        std::fs::remove_file(&gateway)?;
        eventually("the missing waypoint refuses", async || shop.closed().await).await?;
        eventually("the refusal has a reason in the log", async || {
            let reply = get(&shop.inside, shop.by_service, "/open").await;
            ensure!(reply.is_err(), "{reply:?}");
            let log = shop.mesh.log("ztunnel-node-1").await?;
            ensure!(
                log.contains("reason=\"waypoint_"),
                "no such reason in the log"
            );
            Ok(())
        })
        .await?;
        let metrics = shop
            .mesh
            .page(Target::node("node-1"), 15020, "/metrics")
            .await?;
        ensure!(metrics.contains("waypoint_missing") || metrics.contains("waypoint_not_ready"));
        let findings = shop
            .mesh
            .page(Target::Outer, 15014, "/debug/findings")
            .await?;
        ensure!(
            findings.contains("waypoint"),
            "no status tells of it: {findings}"
        );

        // With fail-open they pass, guarded by nothing.
        shop.mesh.apply(
            "cart-account.yaml",
            &account("cart", &[("isobar.dev/waypoint-failure", "fail-open")]),
        )?;
        for (caller, to) in [
            (&shop.inside, shop.by_service),
            (&shop.inside, shop.by_pod),
            (&shop.outside, shop.by_service),
            (&shop.outside, shop.by_pod),
        ] {
            eventually("fail-open lets pass", async || {
                let reply = get(caller, to, "/open").await?;
                ensure!(reply.status == 200, "{reply:?}");
                Ok(())
            })
            .await?;
        }

        // Closed again, and the waypoint comes back.
        shop.mesh
            .apply("cart-account.yaml", &account("cart", &[]))?;
        eventually("closed again", async || shop.closed().await).await?;
        std::fs::write(&gateway, saved)?;
        shop.guarded().await?;
        shop.mesh.down()
    });
}

/// The file in which `isobar waypoint apply` keeps the Gateway called cart.
fn find_gateway(mesh: &Mesh) -> Result<std::path::PathBuf> {
    let folder = mesh.lab().paths().dir().join("objects/cli");
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        if text.contains("\"Gateway\"") && text.contains("cart-waypoint") {
            return Ok(path);
        }
    }
    anyhow::bail!("no Gateway in {}", folder.display())
}
