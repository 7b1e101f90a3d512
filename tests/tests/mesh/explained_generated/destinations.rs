//! Destinations of every kind, by name and by address, from callers that see them differently: what
//! `isobar explain` says of them, about the running mesh and about its files, is what happens.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::yaml::{Pod, documents, service, service_account};
use isobar_tests::{Mesh, eventually};
use serde_json::Value;

use crate::fixture::{HELLO_V1, HELLO_V2, ambient, outside, run};

/// Calls after which each of two endpoints has been seen, whatever the dice.
const CALLS: usize = 40;
/// For a call that nobody answers, in seconds.
const PATIENCE: &str = "3";

/// In the mesh; in it but for its lookups; outside.
const CALLERS: [&str; 3] = ["shop/client", "shop/nodns", "outside/outsider"];

/// What is called.
const CALLS_TO: [(&str, Option<&str>); 15] = [
    ("server.shop:8080", None),
    ("headless.shop:8080", None),
    ("alias.shop:8080", None),
    ("away.shop:8080", None),
    ("static.example.com:8080", None),
    ("203.0.113.5:8080", None),
    ("dns.example.com:8080", None),
    ("direct.example.com:8080", None),
    ("none.example.com:15014", None),
    ("172.30.0.1:15014", None),
    ("near.shop:8080", None),
    ("kept.shop:8080", Some("x-user: anna")),
    ("kept.shop:8080", Some("x-user: jason")),
    ("kept.shop:8080", None),
    ("split.shop:8080", None),
];

/// A Service with an address; the waypoint, hosts of each kind, and rules for balancing.
const RULES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: server.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {type: ExternalName, externalName: nowhere.example.org}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static, namespace: shop}
spec:
  hosts: [static.example.com]
  addresses: [203.0.113.5]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: server}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: [dns.example.com]
  resolution: DNS
  ports: [{number: 8080, name: http, protocol: HTTP}]
  endpoints: [{address: third.outside.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: direct, namespace: shop}
spec:
  hosts: [direct.example.com]
  resolution: DNS
  ports: [{number: 8080, name: http, protocol: HTTP}]
  endpoints: [{address: third.outside.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: none, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: [none.example.com]
  addresses: [172.30.0.1]
  resolution: NONE
  ports: [{number: 15014, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: near, namespace: shop}
spec:
  host: near
  trafficPolicy:
    loadBalancer:
      localityLbSetting: {enabled: true, failoverPriority: [zone]}
    outlierDetection: {consecutive5xxErrors: 5}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: kept, namespace: shop}
spec:
  host: kept
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: split, namespace: shop}
spec:
  hosts: [split]
  http:
  - route:
    - {destination: {host: dns.example.com, port: {number: 8080}}, weight: 50}
    - {destination: {host: server}, weight: 50}
";

/// What may become of a call.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ends {
    /// Pods that answer it.
    pods: BTreeSet<String>,
    /// Statuses of refusals; 0 for a connection that is closed.
    refused: BTreeSet<u64>,
    /// It leaves for an address: who answers there is nobody of these.
    leaves: bool,
    /// It is for a name that the mesh does not answer for, and nobody else in a lab.
    named: bool,
    /// The application takes one of several addresses, as it likes.
    by_application: bool,
}

impl Ends {
    fn read(answer: &Value) -> Result<Self> {
        let mut ends = Self::default();
        let ways = answer["ways"].as_array().context("no ways")?;
        ensure!(!ways.is_empty(), "no way at all: {answer:#}");
        let total: f64 = ways.iter().filter_map(|way| way["share"].as_f64()).sum();
        ensure!(
            (total - 1.0).abs() < 0.01,
            "{total} of the calls: {answer:#}"
        );
        for way in ways {
            let outcome = &way["outcome"];
            let steps = way["steps"].to_string();
            ends.by_application |= steps.contains("the application takes one of");
            match outcome["kind"].as_str().context("no outcome")? {
                "reaches" => {
                    let pods = outcome["pods"].as_array().context("no pods")?;
                    ends.pods
                        .extend(pods.iter().filter_map(Value::as_str).map(str::to_owned));
                }
                "leaves" => ends.leaves = true,
                "named" => ends.named = true,
                "refused" => {
                    ends.refused.insert(outcome["status"].as_u64().unwrap_or(0));
                }
                other => anyhow::bail!("{other}"),
            }
        }
        Ok(ends)
    }

    /// How often to call.
    fn calls(&self) -> usize {
        if self.pods.is_empty() { 1 } else { CALLS }
    }

    /// Holds what was seen against what was foretold.
    fn agree(&self, seen: &Seen) -> Result<()> {
        let strangers: Vec<_> = seen.pods.difference(&self.pods).collect();
        ensure!(strangers.is_empty(), "answered by {strangers:?}");
        let missing: Vec<_> = self.pods.difference(&seen.pods).collect();
        ensure!(
            self.by_application || missing.is_empty(),
            "not answered by {missing:?}"
        );
        for (status, code) in &seen.others {
            let unresolved = self.named && (*code == 6 || *status == 503);
            let fine = unresolved || self.leaves || self.refused.contains(status);
            ensure!(fine, "status {status}, curl ended with {code}");
        }
        Ok(())
    }
}

/// What became of some calls.
#[derive(Debug, Default)]
struct Seen {
    pods: BTreeSet<String>,
    /// Whatever else came: the status, and how curl ended.
    others: BTreeSet<(u64, i32)>,
}

async fn explained(
    mesh: &Mesh,
    (source, to, header): (&str, &str, Option<&str>),
    files: &[&str],
) -> Result<(Ends, Value)> {
    let mut argv = vec!["explain", source, to, "GET", "/"];
    if let Some(line) = header {
        argv.extend(["-H", line]);
    }
    argv.extend_from_slice(files);
    argv.extend(["-o", "json"]);
    let answer: Value = serde_json::from_str(&mesh.isobar(&argv).await?)?;
    Ok((Ends::read(&answer)?, answer))
}

/// Calls, each on a connection of its own.
async fn call(
    mesh: &Mesh,
    (source, to, header): (&str, &str, Option<&str>),
    times: usize,
) -> Result<Seen> {
    let url = format!("http://{to}/");
    let mut argv = vec!["curl", "-s", "-m", PATIENCE, "-H", "Connection: close"];
    if let Some(line) = header {
        argv.extend(["-H", line]);
    }
    argv.extend(["-w", "\\n%{http_code}\\n"]);
    argv.extend(std::iter::repeat_n(url.as_str(), times));
    let output = mesh.exec(source, &argv).await?;
    let mut seen = Seen::default();
    let mut body = String::new();
    for line in output.stdout.lines() {
        let status = line.parse::<u64>().ok().filter(|_| line.len() == 3);
        let Some(status) = status else {
            body.push_str(line);
            continue;
        };
        let pod = match body.trim() {
            "Hello server - v1" => Some("shop/server1"),
            "Hello server - v2" => Some("shop/server2"),
            "Hello server - v3" => Some("outside/third"),
            _ => None,
        };
        if let Some(pod) = pod {
            seen.pods.insert(pod.to_owned());
        } else {
            seen.others.insert((status, output.code));
        }
        body.clear();
    }
    Ok(seen)
}

/// A pod of its own account, which listens at 8080.
fn pod(namespace: &str, name: &str, node: &str, image: &str, labels: &[(&str, &str)]) -> String {
    let pod = Pod {
        namespace,
        name,
        account: name,
        node,
        image,
        port: Some(8080),
        labels,
    };
    documents([service_account(namespace, name, &[]), pod.yaml()])
}

fn server(name: &str, node: &str, image: &str, zone: &str) -> String {
    let text = pod("shop", name, node, image, &[("zone", zone)]);
    text.replacen(&format!("    app: \"{name}\"\n"), "    app: server\n", 1)
}

/// A Service behind the waypoint.
fn bound(name: &str) -> String {
    let labels = "metadata:\n  labels: {istio.io/use-waypoint: wp}\n";
    let text = service("shop", name, "server", 8080, false);
    text.replacen("metadata:\n", labels, 1)
}

async fn scenery() -> Result<Mesh> {
    let quiet = "kind: Pod\nmetadata:\n  annotations: {ambient.istio.io/dns-capture: \"false\"}\n";
    let caller = |name| pod("shop", name, "node-1", HELLO_V1, &[("zone", "a")]);
    let third = HELLO_V1.replace(":v1", ":v3");
    let shop = documents([
        ambient("shop"),
        server("server1", "node-1", HELLO_V1, "a"),
        server("server2", "node-2", HELLO_V2, "b"),
        caller("client"),
        caller("nodns").replacen("kind: Pod\nmetadata:\n", quiet, 1),
        service("shop", "server", "server", 8080, false),
        service("shop", "headless", "server", 8080, true),
        bound("near"),
        bound("kept"),
        bound("split"),
    ]);
    let outside = documents([
        outside(),
        pod("outside", "third", "node-2", &third, &[]),
        service("outside", "third", "third", 8080, false),
    ]);
    let mesh = Mesh::start(&[
        ("shop.yaml", &shop),
        ("outside.yaml", &outside),
        ("rules.yaml", RULES),
    ])
    .await?;
    for pod in ["shop/server1", "shop/server2", "shop/client", "shop/nodns"] {
        mesh.settled(pod, "enrolled").await?;
    }
    for pod in ["outside/outsider", "outside/third"] {
        mesh.settled(pod, "plain").await?;
    }
    Ok(mesh)
}

#[test]
fn destinations_of_every_kind_are_reached_as_explained() {
    run(async {
        let mesh = scenery().await?;
        let folder = mesh.objects().display().to_string();
        let files = ["-f", folder.as_str()];
        let mut compared = 0;
        for source in CALLERS {
            for (to, header) in CALLS_TO {
                let asked = (source, to, header);
                // The proxies, and whoever looks at them, may not have heard of everything yet.
                eventually(&format!("{asked:?} ends as explained"), async || {
                    let (live, answer) = explained(&mesh, asked, &[]).await?;
                    let (offline, of_files) = explained(&mesh, asked, &files).await?;
                    ensure!(live == offline, "{answer:#}\nfrom the files {of_files:#}");
                    let seen = call(&mesh, asked, live.calls()).await?;
                    let agreed = live.agree(&seen);
                    agreed.with_context(|| format!("{seen:?}, explained as {answer:#}"))
                })
                .await?;
                compared += 1;
            }
        }
        println!("{compared} calls to destinations of every kind end as explained");
        mesh.down()
    });
}
