//! What a mesh's users are taught first, one test a lesson. A test's name starts with the number the
//! lesson has in the table of `docs/lessons.md`.

mod destinations;
mod discovery;
mod failures;
pub(crate) mod gateways;
mod grpc;
mod outside;
mod steering;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use isobar_tests::yaml::{documents, service_account};
use isobar_tests::{Answer, App, Arrived, Caller, Mesh, Reply, eventually};

use crate::fixture::{HTTPBIN, ambient, client};

/// Where the applications of the tests listen inside their pods.
const PORT: u16 = 7000;

/// The waypoint of namespace shop.
const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// A DestinationRule about Service `app` with subsets v1 to v3; `policy` is its trafficPolicy.
fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: app, namespace: shop}}\nspec:\n  host: app\n  trafficPolicy: {policy}\n  subsets:\n  \
         - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, labels: {{version: v2}}}}\n  \
         - {{name: v3, labels: {{version: v3}}}}\n"
    )
}

/// A VirtualService about Service `app`; `rules` are its sections, each line indented by two.
fn routes(rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: app, namespace: shop}}\nspec:\n  hosts: [app]\n{rules}"
    )
}

/// Pod `version` of Service `app` on a node: nothing but a place for an application of the test.
fn pod(version: &str, node: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {version}, namespace: shop, labels: {{app: app, version: {version}}}}}\nspec:\n  \
         nodeName: node-{node}\n  serviceAccountName: app\n  containers:\n  - name: main\n    image: {HTTPBIN}\n    \
         ports: [{{containerPort: 80}}]\n    readinessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1}}\n"
    )
}

/// Service `app` on [`PORT`] (HTTP), 9000 (opaque) and 9443 (TLS).
const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: app, namespace: shop}
spec:
  selector: {app: app}
  ports:
  - {name: http, port: 7000, targetPort: 7000}
  - {name: tcp, port: 9000, targetPort: 9000}
  - {name: tls, port: 9443, targetPort: 9443}
  - {name: grpc, port: 9090, targetPort: 9090}
";

/// A caller, Service `app` over pods on alternating nodes, and a waypoint for it.
struct Scene {
    mesh: Mesh,
    caller: Caller,
    ip: std::net::IpAddr,
}

impl Scene {
    /// Starts with one pod for each of `versions` and further files.
    async fn start(versions: &[&str], more: &[(&str, &str)]) -> Result<Self> {
        let namespace = ambient("shop") + "    istio.io/use-waypoint: waypoint\n";
        let pods = (1..).zip(versions).map(|(n, v)| pod(v, n % 2 + 1));
        let app = documents(
            [service_account("shop", "app", &[]), SERVICE.to_owned()]
                .into_iter()
                .chain(pods),
        );
        let client = client("shop");
        let files = [
            ("ns.yaml", &*namespace),
            ("client.yaml", &client),
            ("app.yaml", &app),
            ("waypoint.yaml", WAYPOINT),
        ];
        let mesh = Mesh::start(&[&files[..], more].concat()).await?;
        mesh.settled("shop/client", "enrolled").await?;
        for version in versions {
            mesh.settled(&format!("shop/{version}"), "enrolled").await?;
        }
        let caller = mesh.caller("shop/client").await?;
        let ip = mesh.service_ip("shop/app").await?;
        Ok(Self { mesh, caller, ip })
    }

    fn to(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }

    /// The test's own application in a pod.
    async fn app<F>(&self, version: &str, answer: F) -> Result<App>
    where
        F: Fn(&Arrived) -> Answer + Send + Sync + 'static,
    {
        let pod = self.mesh.caller(&format!("shop/{version}")).await?;
        Ok(App::serve(version, pod.listen(PORT)?, answer))
    }

    /// Applications that answer 200 with their version.
    async fn apps(&self, versions: &[&str]) -> Result<Vec<App>> {
        let mut apps = Vec::new();
        for version in versions {
            apps.push(self.app(version, |_| Answer::Status(200)).await?);
        }
        Ok(apps)
    }

    async fn get(&self, path: &str) -> Result<Reply> {
        self.caller
            .request(self.to(PORT), "GET", "app", path, &[])
            .await
    }

    /// Waits until the waypoint answers `path` with `status`, twenty times in a row: the rules of the
    /// test and all pods are known to it then.
    async fn ready(&self, path: &str, status: u16) -> Result<()> {
        eventually(&format!("{path} is answered with {status}"), async || {
            for _ in 0..20 {
                let reply = self.get(path).await?;
                ensure!(reply.status == status, "{reply:?}");
            }
            Ok(())
        })
        .await
    }

    /// Sends `requests` over `connections` kept open; the answers, by status and body.
    async fn tally(
        &self,
        path: &str,
        requests: usize,
        connections: usize,
    ) -> Result<BTreeMap<(u16, String), usize>> {
        let path: Arc<str> = Arc::from(path);
        let each = requests / connections;
        let one = |path: Arc<str>| async move {
            let mut connection = self.caller.http(self.to(PORT)).await?;
            let mut found = Vec::with_capacity(each);
            for _ in 0..each {
                let reply = connection.get("app", &path).await?;
                found.push((reply.status, reply.body));
            }
            anyhow::Ok(found)
        };
        let all = join_all((0..connections).map(|_| one(Arc::clone(&path)))).await;
        let mut counts = BTreeMap::new();
        for found in all {
            for answer in found? {
                *counts.entry(answer).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Waits until the waypoint's log has at least `count` lines about `path` that hold `needle`.
    async fn logged(&self, path: &str, needle: &str, count: usize) -> Result<()> {
        let path = format!(" {path} ");
        eventually(
            &format!("{count} lines about{path}with {needle}"),
            async || {
                let log = self.mesh.log("shop/waypoint").await?;
                let found = log
                    .lines()
                    .filter(|l| l.contains(&path) && l.contains(needle))
                    .count();
                ensure!(found >= count, "{found} lines");
                Ok(())
            },
        )
        .await
    }
}

/// Answers with a status, whatever the body.
fn with_status(counts: &BTreeMap<(u16, String), usize>, status: u16) -> usize {
    let of = counts.iter().filter(|((s, _), _)| *s == status);
    of.map(|(_, count)| count).sum()
}

/// Answers of 200 from an application.
fn from(counts: &BTreeMap<(u16, String), usize>, version: &str) -> usize {
    counts.get(&(200, version.to_owned())).copied().unwrap_or(0)
}
