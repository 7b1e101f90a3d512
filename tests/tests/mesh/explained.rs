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
