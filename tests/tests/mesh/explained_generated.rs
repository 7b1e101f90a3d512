//! Rules drawn by chance: what `isobar explain` says of them, about the running mesh and about the
//! files alone, is what happens.

mod destinations;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::yaml::{Pod, documents, service};
use isobar_tests::{Caller, Mesh, eventually, eventually_within};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::fixture::{HTTPBIN, ambient, client, other, outside, run, server};

/// Sets of rules; each is asked about with every call below.
const ROUNDS: u64 = 8;
/// Sets of NetworkPolicies.
const ISOLATED_ROUNDS: u64 = 8;
/// What has not come by then is taken for dropped; answers take a hundredth of it.
const DROPPED: Duration = Duration::from_secs(2);

const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// Method, path, a header.
type Request<'a> = (&'a str, &'a str, Option<(&'a str, &'a str)>);

/// Pods that call; the last is not in the mesh.
const CALLERS: [&str; 4] = [
    "shop/client",
    "shop/other",
    "data/client",
    "outside/outsider",
];
/// Services that are called: one behind the waypoint, one without, and one whose pod takes plain text past
/// its node proxy.
const SERVICES: [&str; 3] = ["server.shop", "server.data", "open.data"];
const REQUESTS: [Request<'static>; 6] = [
    ("GET", "/anything/a", None),
    ("POST", "/anything/a", None),
    ("GET", "/anything/admin/x", Some(("x-user", "anna"))),
    ("DELETE", "/anything/b", Some(("x-user", "jason"))),
    ("GET", "/anything/b?v=2", None),
    ("GET", "/headers", Some(("x-user", "jason"))),
];

struct Dice(StdRng);

impl Dice {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.0).copied().unwrap_or_default()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn source(&mut self) -> String {
        let account = self.one(&["shop/client", "shop/other", "data/client"]);
        let (namespace, name) = account.split_once('/').expect("they are written so");
        match self.one(&["principal", "not", "namespace", "account"]) {
            "principal" => format!("{{principals: [cluster.local/ns/{namespace}/sa/{name}]}}"),
            "not" => format!("{{notPrincipals: [cluster.local/ns/{namespace}/sa/{name}]}}"),
            "account" => format!("{{serviceAccounts: [{namespace}/{name}]}}"),
            _ => format!("{{namespaces: [{namespace}]}}"),
        }
    }

    fn operation(&mut self, http: bool) -> String {
        if !http {
            return self
                .one(&[
                    "{ports: [\"80\"]}",
                    "{notPorts: [\"80\"]}",
                    "{ports: [\"81\"]}",
                ])
                .to_owned();
        }
        self.one(&[
            "{methods: [GET]}",
            "{methods: [POST, DELETE]}",
            "{notMethods: [GET]}",
            "{paths: [/anything/a]}",
            "{paths: [\"/anything/*\"], methods: [GET]}",
            "{notPaths: [\"*/admin/x\"]}",
            "{ports: [\"80\"]}",
        ])
        .to_owned()
    }

    /// A policy: on the waypoint's Service with requests in it, or on pods with connections only.
    fn policy(&mut self, number: usize) -> String {
        let http = self.chance(60);
        let namespace = if http {
            "shop"
        } else {
            self.one(&["shop", "data"])
        };
        let target = match (http, self.chance(50)) {
            (true, _) => "  targetRefs: [{group: \"\", kind: Service, name: server}]\n",
            (false, true) => "  selector: {matchLabels: {app: server}}\n",
            (false, false) => "",
        };
        let action = if self.chance(60) { "ALLOW" } else { "DENY" };
        let mut rules = String::new();
        for _ in 0..=self.0.random_range(0..2) {
            let mut lines = Vec::new();
            if self.chance(70) {
                lines.push(format!("from: [{{source: {}}}]", self.source()));
            }
            if self.chance(60) || lines.is_empty() {
                lines.push(format!("to: [{{operation: {}}}]", self.operation(http)));
            }
            let _ = writeln!(rules, "  - {{{}}}", lines.join(", "));
        }
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p{number}, namespace: {namespace}}}\nspec:\n{target}  action: {action}\n  rules:\n{rules}---\n"
        )
    }

    fn route(&mut self) -> String {
        let condition = self.one(&[
            "{uri: {prefix: /anything/a}}",
            "{uri: {exact: /anything/b}}",
            "{method: {exact: POST}}",
            "{headers: {x-user: {exact: jason}}}",
            "{queryParams: {v: {exact: \"2\"}}}",
            "{sourceNamespace: data}",
            "{withoutHeaders: {x-user: {}}}",
            "{uri: {regex: \"/any.*/x\"}, port: 80}",
        ]);
        let what = self.one(&[
            "route: [{destination: {host: server}}]",
            "route: [{destination: {host: server}}], rewrite: {uri: /anything/else}",
            "route: [{destination: {host: server, subset: none}}]",
            "redirect: {uri: /elsewhere, redirectCode: 307}",
            "directResponse: {status: 418}",
            "fault: {abort: {httpStatus: 555, percentage: {value: 100}}}, route: [{destination: {host: server}}]",
            "route: [{destination: {host: nobody}}]",
        ]);
        format!("  - {{match: [{condition}], {what}}}\n")
    }

    fn rules(&mut self) -> String {
        let mut text = String::new();
        for number in 0..self.0.random_range(1..5) {
            text.push_str(&self.policy(number));
        }
        if self.chance(40) {
            let mode = self.one(&["STRICT", "PERMISSIVE"]);
            let namespace = self.one(&["shop", "data"]);
            let _ = write!(
                text,
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: default, namespace: {namespace}}}\nspec: {{mtls: {{mode: {mode}}}}}\n---\n"
            );
        }
        text.push_str(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {name: server, namespace: shop}\nspec:\n  hosts: [server]\n  http:\n",
        );
        for _ in 0..self.0.random_range(1..4) {
            text.push_str(&self.route());
        }
        if self.chance(70) {
            text.push_str("  - route: [{destination: {host: server}}]\n");
        }
        text
    }
}

/// What is drawn of NetworkPolicies: the ports of rules, and whom they name. A policy for egress never
/// selects a waypoint, which would lose its control plane.
const PORT_LISTS: [&str; 5] = [
    "[{port: 80}]",
    "[{port: 15008}]",
    "[{port: 80}, {port: 15008}]",
    "[{port: 15000, endPort: 15010}]",
    "[]",
];
const PEER_LISTS: [&str; 7] = [
    "[]",
    "[{podSelector: {matchLabels: {app: client}}}]",
    "[{podSelector: {}}]",
    "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: data}}}]",
    "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [server, client]}]}}]",
    "[{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}}, {ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}]",
    "[{ipBlock: {cidr: 0.0.0.0/0}}]",
];

impl Dice {
    fn network_policy(&mut self, number: usize) -> String {
        let namespace = self.one(&["shop", "data"]);
        let inwards = self.chance(70);
        let selector = match inwards {
            true => self.one(&[
                "{}",
                "{matchLabels: {app: server}}",
                "{matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}",
            ]),
            false => self.one(&[
                "{matchLabels: {app: client}}",
                "{matchLabels: {app: other}}",
            ]),
        };
        let (kind, list, peers) = match inwards {
            true => ("Ingress", "ingress", "from"),
            false => ("Egress", "egress", "to"),
        };
        let mut rules = Vec::new();
        for _ in 0..self.0.random_range(0..3) {
            let (who, ports) = (self.one(&PEER_LISTS), self.one(&PORT_LISTS));
            rules.push(format!("{{{peers}: {who}, ports: {ports}}}"));
        }
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: np{number}, namespace: {namespace}}}\n\
             spec: {{podSelector: {selector}, policyTypes: [{kind}], {list}: [{}]}}\n---\n",
            rules.join(", ")
        )
    }

    fn network_policies(&mut self) -> String {
        let count = self.0.random_range(1..4);
        (0..count)
            .map(|number| self.network_policy(number))
            .collect()
    }
}

/// A call, and how it is asked about.
struct Call<'a> {
    source: &'a str,
    host: String,
    method: &'a str,
    path: &'a str,
    header: Option<(&'a str, &'a str)>,
}

impl Call<'_> {
    /// The status that the explanation foretells; 0 for a connection that is closed.
    async fn foretold(&self, mesh: &Mesh, files: &[&str]) -> Result<u64> {
        let line = self.header.map(|(name, value)| format!("{name}: {value}"));
        let mut argv = vec!["explain", self.source, &self.host, self.method, self.path];
        if let Some(line) = &line {
            argv.extend(["-H", line]);
        }
        argv.extend_from_slice(files);
        argv.extend(["-o", "json"]);
        let answer: Value = serde_json::from_str(&mesh.isobar(&argv).await?)?;
        let ways = answer["ways"].as_array().context("no ways")?;
        ensure!(ways.len() == 1, "one thing happens, not {answer:#}");
        let outcome = &ways[0]["outcome"];
        let kind = outcome["kind"].as_str().context("no outcome")?;
        Ok(match kind {
            "reaches" => 200,
            _ => outcome["status"].as_u64().unwrap_or(0),
        })
    }

    async fn happens(&self, caller: &Caller, to: SocketAddr) -> u64 {
        let headers: Vec<(&str, &str)> = self.header.into_iter().collect();
        let host = self.host.rsplit('/').next().unwrap_or_default();
        let reply = caller.request(to, self.method, host, self.path, &headers);
        reply.await.map_or(0, |reply| u64::from(reply.status))
    }
}

/// Where a Service is, by NAME.NAMESPACE.
async fn address(mesh: &Mesh, service: &str) -> Result<SocketAddr> {
    let (name, namespace) = service.split_once('.').context("NAME.NAMESPACE")?;
    let ip = mesh.service_ip(&format!("{namespace}/{name}")).await?;
    Ok(SocketAddr::new(ip, 80))
}

/// The calls of pods to themselves.
async fn own<'a>(
    mesh: &Mesh,
    callers: &'a [Caller],
) -> Result<Vec<(Call<'a>, &'a Caller, SocketAddr)>> {
    let mut calls = Vec::new();
    for (caller, source) in callers.iter().zip(CALLERS) {
        let call = Call {
            source,
            host: format!("pod/{source}:80"),
            method: "GET",
            path: "/ip",
            header: None,
        };
        calls.push((
            call,
            caller,
            SocketAddr::new(mesh.pod_ip(source).await?, 80),
        ));
    }
    Ok(calls)
}

async fn round(mesh: &Mesh, callers: &[Caller], seed: u64) -> Result<usize> {
    let rules = Dice(StdRng::seed_from_u64(seed)).rules();
    mesh.apply("rules.yaml", &rules)?;
    let folder = mesh.objects().display().to_string();
    let files = ["-f", folder.as_str()];
    let mut calls = Vec::new();
    for service in SERVICES {
        let to = address(mesh, service).await?;
        for (caller, source) in callers.iter().zip(CALLERS) {
            for (method, path, header) in REQUESTS {
                let host = format!("{service}:80");
                let call = Call {
                    source,
                    host,
                    method,
                    path,
                    header,
                };
                let expected = call.foretold(mesh, &[]).await?;
                let offline = call.foretold(mesh, &files).await?;
                let what = format!("{source} {method} {service}{path} {header:?}");
                ensure!(
                    expected == offline,
                    "seed {seed}, {what}: explained as {expected}, from the files as {offline}\n{rules}"
                );
                calls.push((call, caller, to, expected, what));
            }
        }
    }
    for (call, caller, to) in own(mesh, callers).await? {
        let expected = call.foretold(mesh, &[]).await?;
        let offline = call.foretold(mesh, &files).await?;
        ensure!(
            (expected, offline) == (200, 200),
            "{}: {expected}, {offline}",
            call.source
        );
        let what = format!("{} to itself", call.source);
        calls.push((call, caller, to, expected, what));
    }
    // One look in which everything is as foretold: the proxies have heard of the rules then.
    eventually(
        &format!("seed {seed}: calls end as explained"),
        async || {
            for (call, caller, to, expected, what) in &calls {
                let status = call.happens(caller, *to).await;
                ensure!(
                    status == *expected,
                    "{what}: {status}, but explained as {expected}\n{rules}"
                );
            }
            Ok(())
        },
    )
    .await?;
    Ok(calls.len())
}

/// A round with NetworkPolicies alone: a call comes through, or it does not.
async fn isolated_round(mesh: &Mesh, callers: &[Caller], seed: u64) -> Result<(usize, usize)> {
    let rules = Dice(StdRng::seed_from_u64(seed)).network_policies();
    mesh.apply("rules.yaml", &rules)?;
    let folder = mesh.objects().display().to_string();
    let mut calls = Vec::new();
    for service in SERVICES {
        let to = address(mesh, service).await?;
        for (caller, source) in callers.iter().zip(CALLERS) {
            let call = Call {
                source,
                host: format!("{service}:80"),
                method: "GET",
                path: "/ip",
                header: None,
            };
            let expected = call.foretold(mesh, &[]).await? == 200;
            let offline = call.foretold(mesh, &["-f", &folder]).await? == 200;
            let what = format!("seed {seed}, {source} to {service}");
            ensure!(
                expected == offline,
                "{what}: comes through {expected}, from the files {offline}\n{rules}"
            );
            calls.push((call, caller, to, expected, what));
        }
    }
    for (call, caller, to) in own(mesh, callers).await? {
        let expected = call.foretold(mesh, &[]).await? == 200;
        ensure!(
            expected,
            "seed {seed}, {} to itself: dropped\n{rules}",
            call.source
        );
        let what = format!("seed {seed}, {} to itself", call.source);
        calls.push((call, caller, to, expected, what));
    }
    // Connections of tunnels that a plugin cut off come back as slowly as TCP does.
    let what = format!("seed {seed}: calls come through as explained");
    eventually_within(&what, Duration::from_secs(90), async || {
        let looks = calls
            .iter()
            .map(async |(call, caller, to, expected, what)| {
                let happens = tokio::time::timeout(DROPPED, call.happens(caller, *to)).await;
                let came = happens.is_ok_and(|status| status == 200);
                ensure!(
                    came == *expected,
                    "{what}: comes through {came}, explained {expected}\n{rules}"
                );
                Ok(())
            });
        futures_util::future::try_join_all(looks).await.map(drop)
    })
    .await?;
    let through = calls.iter().filter(|(.., expected, _)| *expected).count();
    Ok((through, calls.len() - through))
}

#[test]
fn network_policies_drawn_by_chance_let_through_what_is_explained() {
    run(async {
        let (mesh, callers) = scenery().await?;
        let first = std::env::var("ISOBAR_EXPLAIN_SEED").map_or(1, |text| text.parse().unwrap());
        let (mut through, mut dropped) = (0, 0);
        for seed in first..first + ISOLATED_ROUNDS {
            let (came, not) = isolated_round(&mesh, &callers, seed).await?;
            through += came;
            dropped += not;
        }
        println!("{through} calls come through as explained, {dropped} do not");
        ensure!(through > 10 && dropped > 10, "{through} {dropped}");
        mesh.down()
    });
}

/// Applications with and without a waypoint, and their callers.
async fn scenery() -> Result<(Mesh, Vec<Caller>)> {
    let shop = ambient("shop") + "    istio.io/use-waypoint: waypoint\n";
    let (shops, datas) = (server("shop", &[]), server("data", &[]));
    let annotated =
        "metadata:\n  annotations: {ambient.istio.io/bypass-inbound-capture: \"true\"}\n";
    let open = Pod {
        namespace: "data",
        name: "open",
        account: "server",
        node: "node-2",
        image: HTTPBIN,
        port: Some(80),
        labels: &[],
    };
    let open = documents([
        open.yaml().replacen("metadata:\n", annotated, 1),
        service("data", "open", "open", 80, false),
    ]);
    let mesh = Mesh::start(&[
        ("shop.yaml", &shop),
        ("data.yaml", &ambient("data")),
        ("outside.yaml", &outside()),
        ("shop-client.yaml", &client("shop")),
        ("shop-other.yaml", &other("shop")),
        ("data-client.yaml", &client("data")),
        ("shop-server.yaml", &shops),
        ("data-server.yaml", &datas),
        ("data-open.yaml", &open),
        ("waypoint.yaml", WAYPOINT),
    ])
    .await?;
    let mut callers = Vec::new();
    for pod in CALLERS {
        let wanted = if pod.starts_with("outside") {
            "plain"
        } else {
            "enrolled"
        };
        mesh.settled(pod, wanted).await?;
        callers.push(mesh.caller(pod).await?);
    }
    for service in SERVICES {
        let (name, namespace) = service.split_once('.').context("NAME.NAMESPACE")?;
        mesh.settled(&format!("{namespace}/{name}"), "enrolled")
            .await?;
        let to = address(&mesh, service).await?;
        mesh.answers(&callers[0], to, name, "/ip").await?;
    }
    Ok((mesh, callers))
}

#[test]
fn rules_drawn_by_chance_do_what_is_explained() {
    run(async {
        let (mesh, callers) = scenery().await?;
        let first = std::env::var("ISOBAR_EXPLAIN_SEED").map_or(1, |text| text.parse().unwrap());
        let mut compared = 0;
        for seed in first..first + ROUNDS {
            compared += round(&mesh, &callers, seed).await?;
        }
        println!("{compared} calls end as explained, from the mesh and from its files");
        ensure!(compared >= 300, "{compared} calls");
        mesh.down()
    });
}
