//! Which endpoint a connection or request goes to: Services, matches, weights, subsets.

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{Mesh, MeshOptions, eventually, samples};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PORT, Scene, from, routes, rule, with_status};
use crate::fixture::run;

/// The hello sample as it is shipped, with all of its pods enrolled.
async fn hello() -> Result<Mesh> {
    let options = MeshOptions {
        sample: Some(samples().join("hello")),
        ..MeshOptions::default()
    };
    let mesh = Mesh::start_with(options, &[]).await?;
    for pod in ["httpbin", "hello-server-v1", "hello-server-v2"] {
        mesh.settled(&format!("hello/{pod}"), "enrolled").await?;
    }
    Ok(mesh)
}

/// Answers of v1 and of v2 to `count` requests, on a connection each.
async fn versions(mesh: &Mesh, count: u32) -> Result<(u32, u32)> {
    let caller = mesh.caller("hello/httpbin").await?;
    let to = (mesh.service_ip("hello/svc-hello").await?, 8080).into();
    let (mut v1, mut v2) = (0, 0);
    for _ in 0..count {
        let host = "svc-hello:8080";
        let reply = caller.request(to, "GET", host, "/", &[]).await?;
        v1 += u32::from(reply.body.contains("v1"));
        v2 += u32::from(reply.body.contains("v2"));
    }
    ensure!(v1 + v2 == count, "{v1} + {v2} of {count}");
    Ok((v1, v2))
}

#[test]
fn s053_a_service_gives_both_versions_their_share_with_and_without_the_mesh() {
    run(async {
        let mesh = hello().await?;
        let enrolled = versions(&mesh, 400).await?;
        let plain = "apiVersion: v1\nkind: Namespace\nmetadata: {name: hello}\n";
        mesh.apply("namespace.yaml", plain)?;
        for pod in ["httpbin", "hello-server-v1", "hello-server-v2"] {
            mesh.settled(&format!("hello/{pod}"), "plain").await?;
        }
        let left = versions(&mesh, 400).await?;
        // Between 35 and 65 of a hundred; six standard deviations of a fair coin.
        for (what, (v1, v2)) in [("enrolled", enrolled), ("plain", left)] {
            ensure!(
                (140..=260).contains(&v1) && (140..=260).contains(&v2),
                "{what}: {v1} and {v2}"
            );
        }
        mesh.down()
    });
}

#[test]
fn s054_a_changed_selector_steers_by_hand() {
    run(async {
        let mesh = hello().await?;
        for (file, wanted) in [("selector-v1", "v1"), ("selector-v2", "v2")] {
            let lesson = samples().join(format!("hello/lesson/{file}.yaml"));
            mesh.apply_file(&lesson, "svc-hello.yaml")?;
            let limit = std::time::Duration::from_secs(2);
            let check = async || {
                let (v1, v2) = versions(&mesh, 30).await?;
                let others = if wanted == "v1" { v2 } else { v1 };
                ensure!(others == 0, "{others} of 30 went elsewhere");
                Ok(())
            };
            isobar_tests::eventually_within(&format!("only {wanted}"), limit, check).await?;
        }
        mesh.down()
    });
}

/// What speaks first tells which section of the object its connection met.
async fn greeting(scene: &Scene, port: u16, send: &[u8]) -> Result<String> {
    let mut stream = scene.caller.connect(scene.to(port)).await?;
    stream.write_all(send).await?;
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await?;
    Ok(String::from_utf8_lossy(&greeting).into_owned())
}

/// An application in pod `version` that answers the first bytes of a connection with its version.
async fn greeter(scene: &Scene, version: &str, port: u16) -> Result<isobar_runtime::Scope> {
    let pod = scene.mesh.caller(&format!("shop/{version}")).await?;
    let listener = pod.listen(port)?;
    let name = version.to_owned();
    let scope = isobar_runtime::Scope::new("greeter");
    scope.spawn("accept", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut first = [0; 1];
            // A connection that ends early was only looked at.
            if stream.read_exact(&mut first).await.is_ok() {
                let _ = stream.write_all(name.as_bytes()).await;
                // What is left unread would reset the connection, greeting and all.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
    });
    Ok(scope)
}

/// A TLS ClientHello that names a server, and nothing else: enough to choose by.
fn client_hello(name: &str) -> Vec<u8> {
    let mut list = vec![0];
    list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
    list.extend(name.as_bytes());
    let mut extension = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
    extension.extend(list);
    let mut extensions = vec![0, 0];
    extensions.extend(u16::try_from(extension.len()).unwrap().to_be_bytes());
    extensions.extend(extension);
    // What every client says: ECDSA with P-256 (RFC 8446 §4.2.3), TLS 1.3 (§4.2.1).
    extensions.extend([0, 13, 0, 4, 0, 2, 4, 3]);
    extensions.extend([0, 43, 0, 3, 2, 3, 4]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session, one cipher suite, no compression.
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![1, 0];
    handshake.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    handshake.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(handshake.len()).unwrap().to_be_bytes());
    record.extend(handshake);
    record
}

const THREE_SECTIONS: &str = "  http:
  - match: [{port: 7000}]
    route: [{destination: {host: app, subset: v1}}]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: app, subset: v2}}]
  tls:
  - match: [{port: 9443, sniHosts: [one.example]}]
    route: [{destination: {host: app, subset: v1}}]
  - match: [{port: 9443, sniHosts: [two.example]}]
    route: [{destination: {host: app, subset: v2}}]
";

#[test]
fn s055_http_tcp_and_tls_rules_of_one_object_count_on_their_ports() {
    run(async {
        let rule = rule("{}");
        let routes = routes(THREE_SECTIONS);
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2"], &files).await?;
        let _apps = scene.apps(&["v1", "v2"]).await?;
        let mut greeters = Vec::new();
        for version in ["v1", "v2"] {
            for port in [9000, 9443] {
                greeters.push(greeter(&scene, version, port).await?);
            }
        }
        scene.ready("/", 200).await?;
        let counts = scene.tally("/", 20, 1).await?;
        ensure!(from(&counts, "v1") == 20, "{counts:?}");
        for _ in 0..10 {
            for (port, send, wanted) in [
                (9000, b"any".to_vec(), "v2"),
                (9443, client_hello("one.example"), "v1"),
                (9443, client_hello("two.example"), "v2"),
            ] {
                let got = greeting(&scene, port, &send).await;
                let got = got.with_context(|| format!("port {port}, {wanted}"))?;
                ensure!(got == wanted, "port {port}: {got}, wanted {wanted}");
            }
        }
        scene.mesh.down()
    });
}

const FIRST_MATCH: &str = "  http:
  - match: [{headers: {x-user: {exact: jason}}}, {uri: {prefix: /new}}]
    route: [{destination: {host: app, subset: v2}}]
  - match: [{uri: {prefix: /}, method: {exact: GET}}]
    route: [{destination: {host: app, subset: v1}}]
";

#[test]
fn s056_the_first_match_decides_and_nothing_matched_is_not_found() {
    run(async {
        let (rule, routes) = (rule("{}"), routes(FIRST_MATCH));
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2"], &files).await?;
        let _apps = scene.apps(&["v1", "v2"]).await?;
        scene.ready("/new", 200).await?;
        for (method, path, user, status, body) in [
            ("GET", "/", "jason", 200, "v2"),
            ("GET", "/new/x", "anna", 200, "v2"),
            ("GET", "/old", "anna", 200, "v1"),
            ("POST", "/new", "anna", 200, "v2"),
            ("POST", "/lost", "anna", 404, ""),
        ] {
            let sent = [("x-user", user)];
            let reply = scene
                .caller
                .request(scene.to(PORT), method, "app", path, &sent)
                .await?;
            ensure!(
                reply.status == status && reply.body == body,
                "{method} {path} {user}: {reply:?}"
            );
        }
        scene.logged("/lost", " NR ", 1).await?;
        scene.mesh.down()
    });
}

const BY_WEIGHT: &str = "  http:
  - route:
    - {destination: {host: app, subset: v1}, weight: 80}
    - {destination: {host: app, subset: v2}, weight: 20}
    - {destination: {host: app, subset: v3}, weight: 0}
";

#[test]
fn s057_weights_share_out_requests_and_nothing_of_none_gets_none() {
    run(async {
        let (rule, routes) = (rule("{}"), routes(BY_WEIGHT));
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2", "v3"], &files).await?;
        let _apps = scene.apps(&["v1", "v2", "v3"]).await?;
        scene.ready("/", 200).await?;
        // Three points are 4.7 standard deviations.
        let counts = scene.tally("/", 4000, 4).await?;
        let (v1, v3) = (from(&counts, "v1"), from(&counts, "v3"));
        ensure!((3080..=3320).contains(&v1) && v3 == 0, "{counts:?}");
        ensure!(with_status(&counts, 200) == 4000, "{counts:?}");
        scene.mesh.down()
    });
}

const SUBSETS: &str = "  http:
  - match: [{uri: {prefix: /one}}]
    route: [{destination: {host: app, subset: v1}}]
  - match: [{uri: {prefix: /unknown}}]
    route: [{destination: {host: app, subset: v9}}]
";

/// What the mesh says of its VirtualServices.
fn told(mesh: &Mesh) -> Result<String> {
    if mesh.has_api_server() {
        return mesh.kubectl(&[
            "get",
            "virtualservices.networking.istio.io",
            "-A",
            "-o",
            "jsonpath={.items[*].status}",
        ]);
    }
    let mut told = String::new();
    for entry in std::fs::read_dir(mesh.lab().paths().overlay().join("control-plane"))? {
        let path = entry?.path();
        if path.to_string_lossy().contains("virtualservice") {
            told.push_str(&std::fs::read_to_string(path)?);
        }
    }
    Ok(told)
}

#[test]
fn s058_a_subset_is_its_pods_and_an_unknown_one_is_told() {
    run(async {
        let (rule, routes) = (rule("{}"), routes(SUBSETS));
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2"], &files).await?;
        let apps = scene.apps(&["v1", "v2"]).await?;
        scene.ready("/one", 200).await?;
        let counts = scene.tally("/one", 200, 2).await?;
        ensure!(from(&counts, "v1") == 200, "{counts:?}");
        let counts = scene.tally("/unknown", 20, 1).await?;
        ensure!(with_status(&counts, 503) == 20, "{counts:?}");
        ensure!(apps[1].count() == 0, "v2 was asked");
        scene.logged("/unknown", " NC ", 20).await?;
        eventually("the object says that the subset is unknown", async || {
            let told = told(&scene.mesh)?;
            ensure!(told.contains("v9"), "{told}");
            Ok(())
        })
        .await?;
        scene.mesh.down()
    });
}

/// Bookinfo with one waypoint for its namespace.
async fn bookinfo(rules: &str) -> Result<Mesh> {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: bookinfo\n  labels:\n    \
                     istio.io/dataplane-mode: ambient\n    istio.io/use-waypoint: waypoint\n";
    let waypoint = super::WAYPOINT.replace("shop", "bookinfo");
    let options = MeshOptions {
        sample: Some(samples().join("bookinfo")),
        ..MeshOptions::default()
    };
    let files = [
        ("namespace.yaml", namespace),
        ("waypoint.yaml", &*waypoint),
        ("reviews-rules.yaml", rules),
    ];
    let mesh = Mesh::start_with(options, &files).await?;
    for name in ["productpage-v1", "details-v1", "ratings-v1"] {
        mesh.settled(&format!("bookinfo/{name}"), "enrolled")
            .await?;
    }
    for version in ["reviews-v1", "reviews-v2", "reviews-v3"] {
        let pod = format!("bookinfo/{version}");
        mesh.settled(&pod, "enrolled").await?;
    }
    Ok(mesh)
}

/// Which version of reviews each of `count` pages shows, by its stars.
async fn stars(mesh: &Mesh, user: &str, count: usize) -> Result<[usize; 3]> {
    let caller = mesh.caller("bookinfo/productpage-v1").await?;
    let to = (mesh.service_ip("bookinfo/reviews").await?, 9080).into();
    let mut connection = caller.http(to).await?;
    let mut found = [0; 3];
    for _ in 0..count {
        let sent = [("end-user", user)];
        let reply = connection
            .request("GET", "reviews:9080", "/reviews/0", &sent)
            .await?;
        ensure!(reply.status == 200, "{reply:?}");
        let version = ["reviews-v1", "reviews-v2", "reviews-v3"]
            .iter()
            .position(|v| reply.body.contains(v));
        match version {
            Some(version) => found[version] += 1,
            None => anyhow::bail!("no version in {reply:?}"),
        }
    }
    Ok(found)
}

#[test]
fn s066_a_user_gets_a_version_of_his_own() {
    run(async {
        let lesson = samples().join("bookinfo/lesson/reviews-v3.yaml");
        let rules = std::fs::read_to_string(lesson)?;
        let mesh = bookinfo(&rules).await?;
        eventually("the rules are in force", async || {
            let (jason, others) = (
                stars(&mesh, "jason", 30).await?,
                stars(&mesh, "anna", 30).await?,
            );
            ensure!(
                jason == [0, 30, 0] && others == [0, 0, 30],
                "{jason:?} {others:?}"
            );
            Ok(())
        })
        .await?;
        mesh.down()
    });
}

/// Shares of reviews v1 and v3 as a VirtualService says them.
fn shares(v1: u8, v3: u8) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: bookinfo}}\n\
         spec:\n  host: reviews\n  subsets:\n  - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v3, labels: {{version: v3}}}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: bookinfo}}\n\
         spec:\n  hosts: [reviews]\n  http:\n  - route:\n    \
         - {{destination: {{host: reviews, subset: v1}}, weight: {v1}}}\n    \
         - {{destination: {{host: reviews, subset: v3}}, weight: {v3}}}\n"
    )
}

/// The same as an HTTPRoute over a Service for each version.
fn route_shares(v1: u8, v3: u8) -> String {
    let service = |version: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: reviews-{version}, namespace: bookinfo}}\nspec:\n  \
             selector: {{app: reviews, version: {version}}}\n  ports: [{{name: http, port: 9080}}]\n---\n"
        )
    };
    let (one, three) = (service("v1"), service("v3"));
    format!(
        "{one}{three}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: reviews, namespace: bookinfo}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: reviews}}]\n  rules:\n  - backendRefs:\n    \
         - {{name: reviews-v1, port: 9080, weight: {v1}}}\n    - {{name: reviews-v3, port: 9080, weight: {v3}}}\n"
    )
}

#[test]
fn s067_traffic_shifts_by_weights_of_both_kinds_of_route() {
    run(async {
        let mesh = bookinfo(&shares(100, 0)).await?;
        for kind in [shares, route_shares] {
            for (v1, v3) in [(100, 0), (50, 50), (0, 100)] {
                mesh.apply("reviews-rules.yaml", &kind(v1, v3))?;
                // Five standard deviations, where there is a choice.
                let (all, off) = if v1 == v3 { (2000, 112) } else { (200, 0) };
                let wanted = all * usize::from(v3) / 100;
                eventually(&format!("{wanted} of {all} from v3"), async || {
                    let found = stars(&mesh, "anna", all).await?;
                    ensure!(
                        found[2].abs_diff(wanted) <= off && found[1] == 0,
                        "{found:?}\n{}",
                        kind(v1, v3)
                    );
                    Ok(())
                })
                .await?;
            }
            // An API server keeps what a file no longer tells of.
            mesh.delete("reviews-rules.yaml")?;
        }
        mesh.down()
    });
}

const TCP_SHARES: &str = "  tcp:
  - match: [{port: 9000}]
    route:
    - {destination: {host: app, subset: v1}, weight: 80}
    - {destination: {host: app, subset: v2}, weight: 20}
";

#[test]
fn s068_connections_are_shared_out_too() {
    run(async {
        let (rule, routes) = (rule("{}"), routes(TCP_SHARES));
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2"], &files).await?;
        let _one = greeter(&scene, "v1", 9000).await?;
        let _two = greeter(&scene, "v2", 9000).await?;
        eventually("connections are answered by either", async || {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..60 {
                seen.insert(greeting(&scene, 9000, b"x").await?);
            }
            ensure!(seen.len() == 2, "{seen:?}");
            Ok(())
        })
        .await?;
        let mut v1 = 0;
        for _ in 0..1500 {
            v1 += u32::from(greeting(&scene, 9000, b"x").await? == "v1");
        }
        // Five points are 4.8 standard deviations.
        ensure!((1125..=1275).contains(&v1), "{v1} of 1500, wanted 1200");
        scene.mesh.down()
    });
}
