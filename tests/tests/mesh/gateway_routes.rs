//! HTTPRoute and GRPCRoute attached to Services: what the Gateway API's conformance suite for meshes
//! looks at, one check for each of its tests.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use isobar_tests::yaml::{documents, service};
use isobar_tests::{Caller, Mesh, Reply, eventually};

use crate::fixture::{ambient, client, hello, run, server};

const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// The server again, at two ports.
const TWO_PORTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 80}, {name: more, port: 8080, targetPort: 80}]
";

/// A route of `kind` with the rules below it.
fn route(kind: &str, head: &str, parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{{head}}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, {parent}}}]\n  rules:\n{rules}"
    )
}

const ECHO_RULES: &str = r#"
  - name: request-headers
    matches: [{path: {value: /anything/request}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-set, value: new}], add: [{name: x-add, value: more}], remove: [x-remove]}
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {value: /anything/response}}]
    filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-frontend, value: "yes"}]}
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {value: /anything/backend}}]
    backendRefs:
    - name: server
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: one}]}}]
  - matches: [{path: {value: /host}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org}}]
  - matches: [{path: {value: /301}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 301}}]
  - matches: [{path: {value: /303}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 303}}]
  - matches: [{path: {value: /307}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 307}}]
  - matches: [{path: {value: /308}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 308}}]
  - matches: [{path: {value: /scheme}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]
  - matches: [{path: {value: /port}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 8083}}]
  - matches: [{path: {value: /original-prefix}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement}}}]
  - matches: [{path: {value: /full}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /full-path}}}]
  - matches: [{path: {value: /prefix/one}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /anything/one}}}]
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {value: /strip}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {value: /whole}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: new.example, path: {type: ReplaceFullPath, replaceFullPath: /anything/whole}}}]
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {value: /slow}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /delay/2}}}]
    timeouts: {request: 200ms}
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {value: /lost}}]
    backendRefs: [{name: nosuch, port: 80}]
"#;

const HELLO_RULES: &str = r#"
  - matches:
    - path: {type: Exact, value: /exact}
    - headers: [{name: version, value: two}]
    - queryParams: [{name: animal, value: whale}]
    backendRefs: [{name: svc-hello-v2, port: 8080}]
  - matches: [{path: {value: /split}}]
    backendRefs: [{name: svc-hello-v1, port: 8080, weight: 70}, {name: svc-hello-v2, port: 8080, weight: 30}]
  - matches: [{path: {value: /}}]
    backendRefs: [{name: svc-hello-v1, port: 8080}]
"#;

const GRPC_RULES: &str = r#"
  - matches: [{method: {service: hello.Greeter, method: Split}}]
    backendRefs: [{name: svc-hello-v1, port: 8080, weight: 30}, {name: svc-hello-v2, port: 8080, weight: 70}]
  - matches: [{method: {service: hello.Greeter}}]
    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-grpc, value: "yes"}]}}]
    backendRefs: [{name: svc-hello-v2, port: 8080}]
"#;

fn marked(name: &str, namespace: &str, parent: &str, to: &str, port: u16) -> String {
    let head = format!("name: {name}, namespace: {namespace}");
    let rules = format!(
        "  - filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-route, value: {name}}}]}}}}]\n    \
         backendRefs: [{{name: {to}, namespace: shop, port: {port}}}]\n"
    );
    route("HTTPRoute", &head, parent, &rules)
}

fn routes() -> String {
    documents([
        route(
            "HTTPRoute",
            "name: echo, namespace: shop",
            "name: server",
            ECHO_RULES,
        ),
        route(
            "HTTPRoute",
            "name: hello, namespace: shop",
            "name: svc-hello",
            HELLO_RULES,
        ),
        route(
            "GRPCRoute",
            "name: greeter, namespace: shop",
            "name: greeter",
            GRPC_RULES,
        ),
        marked("producer", "shop", "name: two, port: 80", "two", 80),
        marked(
            "consumer",
            "guest",
            "name: two, namespace: shop, port: 80",
            "two",
            80,
        ),
    ])
}

struct Scene {
    mesh: Mesh,
    caller: Caller,
    guest: Caller,
}

impl Scene {
    async fn start() -> Result<Self> {
        let mesh = Mesh::start(&[
            (
                "ns.yaml",
                &(ambient("shop") + "    istio.io/use-waypoint: waypoint\n"),
            ),
            ("guest.yaml", &ambient("guest")),
            ("client.yaml", &client("shop")),
            ("caller.yaml", &client("guest")),
            ("server.yaml", &server("shop", &[])),
            ("hello.yaml", &hello("shop")),
            ("two.yaml", TWO_PORTS),
            (
                "greeter.yaml",
                &service("shop", "greeter", "hello", 8080, false),
            ),
            ("waypoint.yaml", WAYPOINT),
            ("routes.yaml", &routes()),
        ])
        .await?;
        for pod in [
            "shop/client",
            "shop/server",
            "shop/hello-v1",
            "shop/hello-v2",
            "guest/client",
        ] {
            mesh.settled(pod, "enrolled").await?;
        }
        let caller = mesh.caller("shop/client").await?;
        let guest = mesh.caller("guest/client").await?;
        let scene = Self {
            mesh,
            caller,
            guest,
        };
        for (caller, service, port, path) in [
            (&scene.caller, "server", 80, "/anything/request"),
            (&scene.caller, "svc-hello", 8080, "/"),
            (&scene.guest, "two", 80, "/get"),
        ] {
            let to = scene.to(service, port).await?;
            scene.mesh.answers(caller, to, service, path).await?;
        }
        Ok(scene)
    }

    async fn to(&self, service: &str, port: u16) -> Result<SocketAddr> {
        let ip = self.mesh.service_ip(&format!("shop/{service}")).await?;
        Ok((ip, port).into())
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        let to = self.to("server", 80).await?;
        self.caller
            .request(to, "GET", "server", path, headers)
            .await
    }
}

fn field<'a>(reply: &'a Reply, name: &str) -> &'a str {
    let value = reply.headers.get(name).and_then(|v| v.to_str().ok());
    value.unwrap_or("")
}

#[test]
fn http_routes_do_what_the_conformance_suite_for_meshes_asks() {
    run(async {
        let scene = Scene::start().await?;
        edits_and_rewrites(&scene).await?;
        redirects(&scene).await?;
        matching_and_weights(&scene).await?;
        frontends_and_ports(&scene).await?;
        grpc(&scene).await?;
        conditions(&scene).await?;
        scene.mesh.down()
    });
}

/// `MeshHTTPRouteRequestHeaderModifier`, `…BackendRequestHeaderModifier`, `…RewritePath`, `…NamedRule`.
async fn edits_and_rewrites(scene: &Scene) -> Result<()> {
    let sent = [("x-set", "old"), ("x-add", "first"), ("x-remove", "gone")];
    let reply = scene.get("/anything/request", &sent).await?;
    for part in ["\"x-set\":\"new\"", "\"x-add\":\"first, more\""] {
        let body = reply.body.replace(": ", ":");
        ensure!(body.contains(part), "{part} in {reply:?}");
    }
    ensure!(!reply.body.contains("x-remove"), "{reply:?}");
    let reply = scene.get("/anything/backend", &[]).await?;
    ensure!(reply.body.contains("x-backend"), "{reply:?}");
    for (asked, path) in [
        ("/prefix/one/two", "/anything/one/two"),
        ("/prefix/one", "/anything/one"),
        ("/strip/anything/x", "/anything/x"),
        ("/whole/of/it", "/anything/whole"),
    ] {
        let reply = scene.get(asked, &[]).await?;
        let wanted = format!("\"{path}\"");
        ensure!(reply.body.contains(&wanted), "{asked}: {reply:?}");
    }
    for (asked, status) in [
        ("/prefix/onetwo", 404),
        ("/nowhere", 404),
        ("/lost", 500),
        ("/slow", 504),
    ] {
        let reply = scene.get(asked, &[]).await?;
        ensure!(reply.status == status, "{asked}: {reply:?}");
    }
    Ok(())
}

/// `MeshHTTPRouteRedirectHostAndStatus`, 303, 307, 308, `…SchemeRedirect`, `…RedirectPort`,
/// `…RedirectPath`.
async fn redirects(scene: &Scene) -> Result<()> {
    for (asked, status, location) in [
        ("/host", 302, "http://example.org/host"),
        ("/301", 301, "http://example.org/301"),
        ("/303", 303, "http://example.org/303"),
        ("/307", 307, "http://example.org/307"),
        ("/308", 308, "http://example.org/308"),
        ("/scheme", 302, "https://server/scheme"),
        ("/port", 302, "http://server:8083/port"),
        (
            "/original-prefix/lemon",
            302,
            "http://server/replacement/lemon",
        ),
        ("/full/path/original", 302, "http://server/full-path"),
    ] {
        let reply = scene.get(asked, &[]).await?;
        let place = field(&reply, "location");
        ensure!(
            reply.status == status && place == location,
            "{asked}: {} {place}, wanted {status} {location}",
            reply.status
        );
    }
    Ok(())
}

/// `MeshHTTPRouteMatching`, `…QueryParamMatching`, `…Weight`, `MeshTrafficSplit`.
async fn matching_and_weights(scene: &Scene) -> Result<()> {
    let to = scene.to("svc-hello", 8080).await?;
    let mut connection = scene.caller.http(to).await?;
    for (path, version, wanted) in [
        ("/", "one", "v1"),
        ("/", "two", "v2"),
        ("/exact", "one", "v2"),
        ("/exact/not", "one", "v1"),
        ("/?animal=whale", "one", "v2"),
        ("/?animal=dolphin", "one", "v1"),
    ] {
        let sent = [("version", version)];
        let reply = connection.request("GET", "svc-hello", path, &sent).await?;
        ensure!(reply.body.contains(wanted), "{path} {version}: {reply:?}");
    }
    let mut v1 = 0;
    for _ in 0..1000 {
        let reply = connection.get("svc-hello", "/split").await?;
        v1 += u32::from(reply.body.contains("v1"));
    }
    // Five standard deviations.
    ensure!(
        (628..=772).contains(&v1),
        "{v1} of 1000 went to v1, wanted 700"
    );
    Ok(())
}

/// `MeshFrontend`, `MeshFrontendHostname`, `MeshPorts`, `MeshConsumerRoute`.
async fn frontends_and_ports(scene: &Scene) -> Result<()> {
    let service = scene.to("server", 80).await?;
    let pod: SocketAddr = (scene.mesh.pod_ip("shop/server").await?, 80).into();
    let path = "/anything/response";
    for (to, host, wanted) in [
        (service, "server", "yes"),
        (service, "wrong.example", "yes"),
        (pod, "server", ""),
    ] {
        let reply = scene.caller.request(to, "GET", host, path, &[]).await?;
        let found = field(&reply, "x-frontend");
        ensure!(
            reply.status == 200 && found == wanted,
            "{to} {host}: {reply:?}"
        );
    }
    let first = scene.to("two", 80).await?;
    let second = scene.to("two", 8080).await?;
    for (caller, to, wanted) in [
        (&scene.caller, first, "producer"),
        (&scene.caller, second, ""),
        (&scene.guest, first, "consumer"),
        (&scene.guest, second, ""),
    ] {
        let reply = caller.request(to, "GET", "two", "/get", &[]).await?;
        let found = field(&reply, "x-route");
        ensure!(
            reply.status == 200 && found == wanted,
            "{to} {wanted}: {reply:?}"
        );
    }
    Ok(())
}

/// `MeshGRPCRouteWeight`, and edits.
async fn grpc(scene: &Scene) -> Result<()> {
    let to = scene.to("greeter", 8080).await?;
    let mut connection = scene.caller.http(to).await?;
    let kind = [("content-type", "application/grpc")];
    let mut v2 = 0;
    for _ in 0..1000 {
        let path = "/hello.Greeter/Split";
        let reply = connection.request("POST", "greeter", path, &kind).await?;
        v2 += u32::from(reply.body.contains("v2"));
    }
    ensure!(
        (628..=772).contains(&v2),
        "{v2} of 1000 went to v2, wanted 700"
    );
    let path = "/hello.Greeter/Other";
    let reply = connection.request("POST", "greeter", path, &kind).await?;
    ensure!(field(&reply, "x-grpc") == "yes", "{reply:?}");
    let reply = connection
        .request("POST", "greeter", "/other.Service/X", &kind)
        .await?;
    // UNIMPLEMENTED: no rule takes it.
    ensure!(field(&reply, "grpc-status") == "12", "{reply:?}");
    Ok(())
}

/// What the suite waits for before each of its tests.
async fn conditions(scene: &Scene) -> Result<()> {
    let overlay = scene.mesh.lab().paths().overlay();
    eventually("conditions are written", async || {
        let mut texts = String::new();
        for entry in std::fs::read_dir(overlay.join("control-plane"))? {
            let path = entry?.path();
            if path.to_string_lossy().contains("route") {
                texts.push_str(&std::fs::read_to_string(path)?);
            }
        }
        for word in [
            "\"Accepted\"",
            "\"ResolvedRefs\"",
            "\"BackendNotFound\"",
            "\"controllerName\"",
        ] {
            ensure!(texts.contains(word), "no {word} in {texts}");
        }
        Ok(())
    })
    .await
}
