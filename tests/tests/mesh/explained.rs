//! What `isobar explain` says is what happens.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{Caller, Mesh, MeshOptions, eventually};
use serde_json::Value;

use crate::fixture::{outside, run};

const HOST: &str = "svc-hello.hello:8080";

const POLICIES: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: reads
  namespace: hello
spec:
  targetRefs:
  - kind: Service
    group: \"\"
    name: svc-hello
  rules:
  - to:
    - operation:
        methods: [GET]
        notPaths: [/private*]
";

const ROUTES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: routed
  namespace: hello
spec:
  hosts: [svc-hello]
  http:
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /}
  - match: [{uri: {prefix: /broken}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
    route: [{destination: {host: svc-hello}}]
  - match: [{headers: {lost: {exact: \"yes\"}}}]
    route: [{destination: {host: svc-hello, subset: none}}]
  - match: [{uri: {exact: /}}, {uri: {prefix: /private}}, {uri: {prefix: /moved}}]
    route: [{destination: {host: svc-hello}}]
";

/// Somebody's own namespace, from which he would answer for all others.
const TAKEOVER: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: evil}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: all, namespace: evil}
spec:
  hosts: [\"*.svc.cluster.local\", svc-hello.hello.hello.svc.cluster.local, \"*.local\", \"*.hello\", svc-hello.hello]
  addresses: [203.0.113.5]
  ports: [{number: 8080, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 203.0.113.5}]
";

/// The status that the explanation foretells; 0 for a connection that is closed.
async fn foretold(mesh: &Mesh, source: &str, to: &str, request: &[&str]) -> Result<(u64, Value)> {
    let mut argv = vec!["explain", source, to];
    argv.extend_from_slice(request);
    argv.extend(["-o", "json"]);
    let answer: Value = serde_json::from_str(&mesh.isobar(&argv).await?)?;
    let outcome = &answer["ways"][0]["outcome"];
    let kind = outcome["kind"].as_str().context("no outcome")?;
    let status = match kind {
        "reaches" => 200,
        _ => outcome["status"].as_u64().unwrap_or(0),
    };
    Ok((status, answer))
}

async fn happens(
    caller: &Caller,
    to: SocketAddr,
    (method, path): (&str, &str),
    header: Option<(&str, &str)>,
) -> u64 {
    let headers: Vec<(&str, &str)> = header.into_iter().collect();
    let reply = caller.request(to, method, HOST, path, &headers).await;
    reply.map_or(0, |reply| u64::from(reply.status))
}

#[test]
fn what_is_explained_is_what_happens() {
    run(async {
        let options = MeshOptions {
            sample: Some(isobar_tests::samples().join("hello")),
            ..MeshOptions::default()
        };
        let mesh = Mesh::start_with(options, &[("outside.yaml", &outside())]).await?;
        let apply = [
            "waypoint",
            "apply",
            "-n",
            "hello",
            "--enroll-namespace",
            "--wait",
        ];
        mesh.isobar(&apply).await?;
        mesh.apply("policies.yaml", POLICIES)?;
        mesh.apply("routes.yaml", ROUTES)?;
        let inside = mesh.caller("hello/httpbin").await?;
        let outside = mesh.caller("outside/outsider").await?;
        let to = SocketAddr::new(mesh.service_ip("hello/svc-hello").await?, 8080);
        eventually("routes and policies are in force", async || {
            let status = happens(&inside, to, ("GET", "/broken"), None).await;
            ensure!(status == 418, "{status}");
            let status = happens(&inside, to, ("POST", "/"), None).await;
            ensure!(status == 403, "{status}");
            Ok(())
        })
        .await?;
        let mut compared = 0;
        for path in [
            "/",
            "/moved/x",
            "/broken",
            "/private/x",
            "/nowhere",
            "/a/../broken",
        ] {
            for method in ["GET", "POST", "HEAD"] {
                for header in [None, Some(("lost", "yes"))] {
                    for (caller, source) in
                        [(&inside, "hello/httpbin"), (&outside, "outside/outsider")]
                    {
                        let mut request = vec![method, path];
                        let line = header.map(|(name, value)| format!("{name}: {value}"));
                        if let Some(line) = &line {
                            request.extend(["-H", line]);
                        }
                        let (expected, answer) = foretold(&mesh, source, HOST, &request).await?;
                        let status = happens(caller, to, (method, path), header).await;
                        ensure!(
                            status == expected,
                            "{source} {request:?}: {status}, but explained as {answer:#}"
                        );
                        compared += 1;
                    }
                }
            }
        }
        println!("{compared} calls end as explained");
        mesh.down()
    });
}

#[test]
fn no_entry_answers_for_services_of_other_namespaces() {
    run(async {
        let options = MeshOptions {
            sample: Some(isobar_tests::samples().join("hello")),
            ..MeshOptions::default()
        };
        let mesh = Mesh::start_with(options, &[]).await?;
        mesh.settled("hello/httpbin", "enrolled").await?;
        mesh.apply("takeover.yaml", TAKEOVER)?;
        let service = mesh.service_ip("hello/svc-hello").await?.to_string();
        let first = async |name: &str| -> Result<String> {
            let output = mesh
                .exec("hello/httpbin", &["getent", "ahostsv4", name])
                .await?;
            let first = output.stdout.split_whitespace().next().unwrap_or_default();
            Ok(first.to_owned())
        };
        eventually("hosts of nobody are the entry's", async || {
            let found = first("printer.local").await?;
            ensure!(found == "203.0.113.5", "{found:?}");
            Ok(())
        })
        .await?;
        for name in [
            "svc-hello",
            "svc-hello.hello",
            "svc-hello.hello.svc",
            "svc-hello.hello.svc.cluster.local",
            "svc-hello.hello.svc.cluster.local.",
        ] {
            let found = first(name).await?;
            ensure!(found == service, "{name}: {found:?}");
        }
        let nothing = first("none.hello.svc.cluster.local").await?;
        ensure!(nothing.is_empty(), "{nothing:?}");
        let said = mesh.isobar(&["analyze", "-n", "evil"]).await?;
        ensure!(said.contains("ISO0238"), "{said}");
        for host in [HOST, "printer.local:8080"] {
            let said = mesh.isobar(&["explain", "hello/httpbin", host]).await?;
            let is_mesh = said.contains("svc-hello.hello.svc.cluster.local:8080");
            ensure!(is_mesh == (host == HOST), "{host}: {said}");
        }
        mesh.down()
    });
}
