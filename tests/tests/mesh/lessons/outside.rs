//! Calls that leave the mesh or come into it, and an object that means nothing here.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use isobar_lab::Target;
use isobar_tests::yaml::{documents, namespace};
use isobar_tests::{Answer, App, Arrived, Caller, Reply, eventually};

use super::gateways::{ingress, node};
use super::{PORT, Scene, routes};
use crate::fixture::{other, run};

/// Somebody else's interface at the address between the nodes, under a name and an address of the mesh.
const API: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [api.example]
  addresses: [10.100.0.7]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 7000}]
  resolution: STATIC
  endpoints: [{address: 172.30.0.1}]
";
const OUTSIDE: ([u8; 4], u16) = ([172, 30, 0, 1], PORT);
const API_AT: ([u8; 4], u16) = ([10, 100, 0, 7], 80);

/// The mesh of a lesson, with somebody outside who is reached as `api.example`.
struct World {
    scene: Scene,
    api: App,
}

impl World {
    async fn start<F>(more: &[(&str, &str)], answer: F) -> Result<Self>
    where
        F: Fn(&Arrived) -> Answer + Send + Sync + 'static,
    {
        let files = [&[("api.yaml", API)], more].concat();
        let scene = Scene::start(&["v1"], &files).await?;
        let outer = Caller::inside(scene.mesh.lab().netns(Target::Outer).await?)?;
        let api = App::serve("api", outer.listen(PORT)?, answer);
        let world = Self { scene, api };
        eventually("the host outside answers", async || {
            let reply = world.ask(&world.scene.caller, "/").await?;
            ensure!(reply.status == 200 && reply.body == "api", "{reply:?}");
            Ok(())
        })
        .await?;
        Ok(world)
    }

    async fn ask(&self, caller: &Caller, path: &str) -> Result<Reply> {
        let to = SocketAddr::from(API_AT);
        caller.request(to, "GET", "api.example", path, &[]).await
    }

    /// Requests outside for `path`.
    fn arrived(&self, path: &str) -> usize {
        let all = self.api.arrived();
        all.iter().filter(|request| request.path == path).count()
    }
}

/// Values of `labels` in the first line about `needles`, on a proxy's page of metrics.
async fn counted<const N: usize>(
    scene: &Scene,
    pod: &str,
    needles: &[&str],
    labels: [&str; N],
) -> Result<[String; N]> {
    let page = scene.mesh.page(Target::pod(pod), 15020, "/metrics").await?;
    let mut lines = page.lines().filter(|line| {
        line.starts_with("istio_requests_total{") && needles.iter().all(|n| line.contains(n))
    });
    let line = lines
        .next()
        .with_context(|| format!("{needles:?} in {page}"))?;
    let value = |label: &str| {
        let rest = line
            .split_once(&format!("{label}=\""))
            .map(|(_, rest)| rest);
        let value = rest.and_then(|rest| rest.split_once('"'));
        value.map_or("", |(value, _)| value).to_owned()
    };
    Ok(labels.map(value))
}

/// Only one account may call out, and only through the waypoint.
const ONLY_CLIENT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: shop}
spec:
  targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: api}]
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
";

#[test]
fn s062_calls_leave_the_mesh_through_a_waypoint_or_not_at_all() {
    run(async {
        let other = other("shop");
        let files = [("other.yaml", &*other), ("only.yaml", ONLY_CLIENT)];
        let world = World::start(&files, |_| Answer::Status(200)).await?;
        let mesh = &world.scene.mesh;
        mesh.settled("shop/other", "enrolled").await?;
        let closed = namespace(
            "shop",
            &[
                ("istio.io/dataplane-mode", "ambient"),
                ("istio.io/use-waypoint", "waypoint"),
                ("isobar.dev/outbound-traffic-policy", "REGISTRY_ONLY"),
            ],
        );
        mesh.apply("ns.yaml", &closed)?;
        let direct = SocketAddr::from(OUTSIDE);
        eventually("nobody gets there directly", async || {
            let reply = world.scene.caller.get(direct, "/direct").await;
            ensure!(reply.is_err(), "{reply:?}");
            Ok(())
        })
        .await?;
        let before = world.arrived("/direct");
        for caller in ["shop/client", "shop/other"] {
            let reply = mesh.caller(caller).await?.get(direct, "/direct").await;
            ensure!(reply.is_err(), "{caller}: {reply:?}");
        }
        ensure!(world.arrived("/direct") == before, "something got there");
        let through = world.ask(&world.scene.caller, "/through").await?;
        ensure!(through.status == 200, "{through:?}");
        eventually("the other account is refused at the waypoint", async || {
            let reply = world
                .ask(&mesh.caller("shop/other").await?, "/other")
                .await?;
            ensure!(reply.status == 403, "{reply:?}");
            Ok(())
        })
        .await?;
        ensure!(
            world.arrived("/through") == 1,
            "{}",
            world.arrived("/through")
        );
        world.scene.mesh.down()
    });
}

/// One path is for nobody.
const NO_SECRETS: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec:
  action: DENY
  targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: api}]
  rules: [{to: [{operation: {paths: [/secret]}}]}]
";

#[test]
fn s063_a_host_outside_has_a_name_figures_and_policies_of_its_own() {
    run(async {
        let files = [("policy.yaml", NO_SECRETS)];
        let world = World::start(&files, |_| Answer::Status(200)).await?;
        let mesh = &world.scene.mesh;
        eventually("the name answers", async || {
            let curl = ["curl", "-sS", "http://api.example/named"];
            let output = mesh.exec("shop/client", &curl).await?;
            ensure!(
                output.stdout == "api",
                "{} {}",
                output.stdout,
                output.stderr
            );
            Ok(())
        })
        .await?;
        let needles = [
            "destination_service=\"api.example\"",
            "response_code=\"200\"",
        ];
        let labels = ["destination_service_name", "source_workload"];
        let told = counted(&world.scene, "shop/waypoint", &needles, labels).await?;
        ensure!(told == ["api", "client"], "{told:?}");
        eventually("the policy counts", async || {
            let reply = world.ask(&world.scene.caller, "/secret").await?;
            ensure!(reply.status == 403, "{reply:?}");
            Ok(())
        })
        .await?;
        let before = world.arrived("/secret");
        let refused = world.ask(&world.scene.caller, "/secret").await?;
        ensure!(refused.status == 403, "{refused:?}");
        ensure!(world.arrived("/secret") == before, "it got there");
        world.scene.mesh.down()
    });
}

/// What would shut every pod of the namespace in, were it more than read.
const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  egress: [{hosts: [istio-system/*]}]
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
";

#[test]
fn s064_a_sidecar_object_changes_nothing_and_is_told() {
    run(async {
        let scene = Scene::start(&["v1"], &[]).await?;
        if scene.mesh.has_api_server() {
            // A server that was never told of the kind stores none.
            return scene.mesh.down();
        }
        let _apps = scene.apps(&["v1"]).await?;
        scene.ready("/", 200).await?;
        scene.mesh.apply("sidecar.yaml", SIDECAR)?;
        eventually("it is told of", async || {
            let said = scene.mesh.isobar(&["analyze", "-n", "shop"]).await?;
            ensure!(said.contains("Sidecar shop/default"), "{said}");
            ensure!(said.contains("ISO0107"), "{said}");
            Ok(())
        })
        .await?;
        for _ in 0..20 {
            let reply = scene.get("/").await?;
            ensure!(reply.status == 200, "{reply:?}");
        }
        scene.mesh.down()
    });
}

/// The lesson's Service for callers from outside.
const INWARDS: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: test-gateway, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: page, namespace: shop}
spec:
  hosts: [mydomain.example]
  gateways: [edge/test-gateway]
  http: [{route: [{destination: {host: app, port: {number: 7000}}}]}]
";

#[test]
fn s065_figures_tell_traffic_in_within_and_out_apart() {
    run(async {
        let edge = documents([namespace("edge", &[]), ingress()?, INWARDS.to_owned()]);
        let world = World::start(&[("edge.yaml", &edge)], |_| Answer::Status(200)).await?;
        let scene = &world.scene;
        let _apps = scene.apps(&["v1"]).await?;
        scene.ready("/", 200).await?;
        let outside = Caller::inside(scene.mesh.lab().netns(Target::Outer).await?)?;
        eventually("the gateway answers", async || {
            let to = node(1, 30_000);
            let reply = outside
                .request(to, "GET", "mydomain.example", "/in", &[])
                .await?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        })
        .await?;
        let app = "destination_service=\"app.shop.svc.cluster.local\"";
        let api = "destination_service=\"api.example\"";
        let labels = [
            "source_workload",
            "destination_workload",
            "connection_security_policy",
        ];
        let good = "response_code=\"200\"";
        for (pod, service, told) in [
            ("edge/ingress", app, ["unknown", "v1", "unknown"]),
            ("shop/waypoint", app, ["client", "v1", "mutual_tls"]),
            ("shop/waypoint", api, ["client", "api", "mutual_tls"]),
        ] {
            let seen = counted(scene, pod, &[service, good], labels).await?;
            ensure!(seen == told, "{pod} {service}: {seen:?}");
        }
        world.scene.mesh.down()
    });
}

const RESILIENT: &str = "  http:
  - match: [{uri: {prefix: /slow}}]
    timeout: 500ms
    route: [{destination: {host: api.example}}]
  - match: [{uri: {prefix: /held}}]
    route: [{destination: {host: api.example}}]
  - retries: {attempts: 3, retryOn: 5xx, perTryTimeout: 5s}
    route: [{destination: {host: api.example}}]
";
const BREAKER: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: shop}
spec:
  host: api.example
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}
";

#[test]
fn s078_somebody_elses_interface_has_limits_retries_and_a_breaker() {
    run(async {
        let rules = routes(RESILIENT)
            .replace("hosts: [app]", "hosts: [api.example]")
            .replace("name: app", "name: api");
        let files = [("rules.yaml", &*rules), ("breaker.yaml", BREAKER)];
        let tries = AtomicUsize::new(0);
        let world = World::start(&files, move |r| match r.path.as_str() {
            "/slow" | "/held" => Answer::Held,
            "/flaky" if tries.fetch_add(1, Ordering::SeqCst) < 2 => Answer::Status(500),
            _ => Answer::Status(200),
        })
        .await?;
        let caller = &world.scene.caller;
        eventually("the rules count", async || {
            let asked = Instant::now();
            let reply = world.ask(caller, "/slow").await?;
            let took = asked.elapsed();
            ensure!(reply.status == 504, "{reply:?}");
            ensure!(took >= Duration::from_millis(495), "after {took:?}");
            Ok(())
        })
        .await?;
        let reply = world.ask(caller, "/flaky").await?;
        ensure!(reply.status == 200, "{reply:?}");
        ensure!(world.arrived("/flaky") == 3, "{}", world.arrived("/flaky"));
        trips(&world).await?;
        world.scene.mesh.down()
    });
}

/// One under way, one waiting, one too many.
async fn trips(world: &World) -> Result<()> {
    let refused = AtomicUsize::new(0);
    let one = || async {
        let reply = world.ask(&world.scene.caller, "/held").await?;
        if reply.status == 503 {
            refused.fetch_add(1, Ordering::SeqCst);
        }
        anyhow::Ok(reply.status)
    };
    let releasing = async {
        eventually("one request is refused", async || {
            ensure!(refused.load(Ordering::SeqCst) == 1, "none yet");
            Ok(())
        })
        .await?;
        world.api.release();
        anyhow::Ok(())
    };
    let (statuses, released) = tokio::join!(join_all([one(), one(), one()]), releasing);
    released?;
    let mut statuses = statuses.into_iter().collect::<Result<Vec<_>>>()?;
    statuses.sort_unstable();
    ensure!(statuses == [200, 200, 503], "{statuses:?}");
    world.scene.logged("/held", " UO ", 1).await
}
