//! A policy that is written while a waypoint carries traffic.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use isobar_runtime::Scope;
use isobar_tests::yaml::service;
use isobar_tests::{Caller, Mesh, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{ambient, client, other, run, server};

const DENY_AT_WAYPOINT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-client
  namespace: shop
spec:
  targetRefs:
  - group: gateway.networking.k8s.io
    kind: Gateway
    name: server-waypoint
  action: DENY
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/shop/sa/client
";

const DENY_AT_POD: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-client-at-pod
  namespace: shop
spec:
  selector:
    matchLabels:
      app: server
  action: DENY
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/shop/sa/client
";

const PORT: u16 = 9000;

async fn start() -> Result<Mesh> {
    let mesh = Mesh::start(&[
        ("ns.yaml", &ambient("shop")),
        ("client.yaml", &client("shop")),
        ("other.yaml", &other("shop")),
        ("server.yaml", &server("shop", &[])),
        ("live.yaml", &service("shop", "live", "server", PORT, false)),
    ])
    .await?;
    for pod in ["shop/client", "shop/other", "shop/server"] {
        mesh.settled(pod, "enrolled").await?;
    }
    let args = [
        "waypoint",
        "apply",
        "-n",
        "shop",
        "--service-account",
        "server",
    ];
    mesh.isobar(&[&args[..], &["--for", "all", "--wait"]].concat())
        .await?;
    Ok(mesh)
}

/// Changes to a WebSocket that repeats what it hears where it is asked to, and otherwise answers with
/// a response that never ends.
async fn application(listener: TcpListener, scope: &Scope) {
    let life = scope.lifetime();
    loop {
        let accepted = tokio::select! {
            () = life.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else { continue };
        scope.spawn("connection", async move {
            // How it ends is for the caller to see.
            let _ = talk(tcp).await;
        });
    }
}

async fn talk(mut tcp: TcpStream) -> Result<()> {
    let head = head(&mut tcp).await?;
    if head.to_ascii_lowercase().contains("upgrade: websocket") {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                      upgrade: websocket\r\n\r\n";
        tcp.write_all(switch.as_bytes()).await?;
        let (mut from, mut to) = tcp.split();
        tokio::io::copy(&mut from, &mut to).await?;
        return Ok(());
    }
    tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    loop {
        tcp.write_all(b"1\r\n.\r\n").await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn head(stream: &mut TcpStream) -> Result<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(seen)?)
}

/// A WebSocket and a response that flows, of one caller.
struct Flowing {
    socket: TcpStream,
    response: TcpStream,
}

impl Flowing {
    async fn start(caller: &Caller, to: SocketAddr) -> Result<Self> {
        let ask = |extra: &str| format!("GET / HTTP/1.1\r\nhost: live:{PORT}\r\n{extra}\r\n");
        let mut socket = caller.connect(to).await?;
        let upgrade = ask("connection: upgrade\r\nupgrade: websocket\r\n");
        socket.write_all(upgrade.as_bytes()).await?;
        let answer = head(&mut socket).await?;
        ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        let mut response = caller.connect(to).await?;
        response.write_all(ask("").as_bytes()).await?;
        let answer = head(&mut response).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        ensure!(answer.contains("server: isobar"), "no waypoint: {answer}");
        let mut all = Self { socket, response };
        all.goes_on().await?;
        Ok(all)
    }

    async fn goes_on(&mut self) -> Result<()> {
        self.socket.write_all(b"ping").await?;
        let mut back = [0; 4];
        self.socket.read_exact(&mut back).await?;
        ensure!(&back == b"ping", "{back:?}");
        self.response.read_u8().await?;
        Ok(())
    }

    /// Reads until both have ended.
    async fn ended(mut self) {
        let mut rest = Vec::new();
        // An end and a reset are both ends.
        let _ = self.socket.read_to_end(&mut rest).await;
        let _ = self.response.read_to_end(&mut rest).await;
    }
}

/// Writes `policy` while both callers have something open: the client's ends within a second, the
/// other's goes on; once it is deleted, the client may come again.
async fn cuts(mesh: &Mesh, to: SocketAddr, policy: &str) -> Result<()> {
    let client = mesh.caller("shop/client").await?;
    let other = mesh.caller("shop/other").await?;
    let cut = eventually("the waypoint lets the client in", async || {
        Flowing::start(&client, to).await
    })
    .await?;
    let mut spared = Flowing::start(&other, to).await?;
    mesh.apply("deny.yaml", policy)?;
    let written = Instant::now();
    tokio::time::timeout(Duration::from_secs(10), cut.ended())
        .await
        .context("they go on")?;
    let took = written.elapsed();
    println!("ended {took:?} after the policy was written: WebSocket, response");
    ensure!(took <= Duration::from_secs(1), "it took {took:?}");
    spared.goes_on().await?;
    let again = client.get(to, "/").await?;
    ensure!(again.status == 403, "{again:?}");
    mesh.delete("deny.yaml")
}

#[test]
fn a_new_deny_cuts_what_flows_through_a_waypoint() {
    run(async {
        let mesh = start().await?;
        let scope = Scope::new("application");
        let listener = mesh.caller("shop/server").await?.listen(PORT)?;
        let to: SocketAddr = (mesh.service_ip("shop/live").await?, PORT).into();
        let check = async {
            cuts(&mesh, to, DENY_AT_WAYPOINT).await?;
            // The node proxy of the pod sees the waypoint as the caller.
            cuts(&mesh, to, DENY_AT_POD).await?;
            let log = mesh.log("shop/server-waypoint").await?;
            for policy in ["deny-client", "deny-client-at-pod"] {
                let line = format!("policy[{policy}]");
                let told = |l: &str| l.contains("policy withdrawn") && l.contains(&line);
                ensure!(log.lines().any(told), "{policy} is not told:\n{log}");
            }
            anyhow::Ok(())
        };
        let ended = tokio::select! {
            ended = check => ended,
            () = application(listener, &scope) => Ok(()),
        };
        scope.shutdown(Duration::ZERO).await;
        ended?;
        mesh.down()
    });
}

/// The server once more, on a port that is declared opaque.
const OPAQUE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: opaque
  namespace: shop
spec:
  selector:
    app: server
  ports:
  - name: tcp
    port: 9100
    targetPort: 80
    appProtocol: tcp
";

/// A policy on the server: `rule` is YAML in one line.
fn on_server(action: &str, rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: attack, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: server}}}}, action: {action}, rules: [{rule}]}}\n"
    )
}

/// What a caller gets: by the Service's name, at the pod's address, and on the opaque port, where a
/// connection that is closed counts as `None`.
async fn gets(caller: &Caller, to: [SocketAddr; 3]) -> Result<[Option<u16>; 3]> {
    let [http, pod, opaque] = to;
    let opaque = caller.get(opaque, "/get").await.ok();
    Ok([
        Some(caller.get(http, "/get").await?.status),
        Some(caller.get(pod, "/get").await?.status),
        opaque.map(|reply| reply.status),
    ])
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn every_kind_of_source_holds_through_a_waypoint() {
    const PASSES: [Option<u16>; 3] = [Some(200); 3];
    const DENIED: [Option<u16>; 3] = [Some(403), Some(403), None];
    const NO_WAY: [Option<u16>; 3] = [Some(503), Some(503), None];
    run(async {
        let mesh = start().await?;
        mesh.apply("opaque.yaml", OPAQUE)?;
        eventually("the opaque port has an address", async || {
            mesh.service_ip("shop/opaque").await
        })
        .await?;
        let to: [SocketAddr; 3] = [
            (mesh.service_ip("shop/server").await?, 80).into(),
            (mesh.pod_ip("shop/server").await?, 80).into(),
            (mesh.service_ip("shop/opaque").await?, 9100).into(),
        ];
        let client = mesh.caller("shop/client").await?;
        let other = mesh.caller("shop/other").await?;
        let from = |source: &str| format!("{{from: [{{source: {{{source}}}}}]}}");
        let account = |name: &str| format!("cluster.local/ns/shop/sa/{name}");
        let (me, them, wp) = (
            account("client"),
            account("other"),
            account("server-waypoint"),
        );
        let ports = |port| {
            format!(
                "{{from: [{{source: {{principals: [{me}]}}}}], \
                 to: [{{operation: {{ports: ['{port}']}}}}]}}"
            )
        };
        let block = from(&format!(
            "ipBlocks: [{}]",
            mesh.pod_ip("shop/client").await?
        ));
        for (action, rule, mine, theirs) in [
            ("DENY", ports(80), DENIED, PASSES),
            ("DENY", ports(81), PASSES, PASSES),
            ("DENY", block, DENIED, PASSES),
            ("DENY", from("serviceAccounts: [client]"), DENIED, PASSES),
            ("DENY", from("namespaces: [shop]"), DENIED, DENIED),
            // They hit the waypoint itself, at the pod's node proxy.
            (
                "DENY",
                from(&format!("notPrincipals: ['{them}']")),
                DENIED,
                NO_WAY,
            ),
            (
                "DENY",
                from(&format!("principals: ['{wp}']")),
                NO_WAY,
                NO_WAY,
            ),
            (
                "ALLOW",
                from(&format!("principals: ['{me}']")),
                NO_WAY,
                NO_WAY,
            ),
            // About the way to the workload.
            (
                "DENY",
                from(&format!("notPrincipals: ['{wp}']")),
                PASSES,
                PASSES,
            ),
        ] {
            mesh.apply("attack.yaml", &on_server(action, &rule))?;
            eventually("both get what the policy says", async || {
                let got = (gets(&client, to).await?, gets(&other, to).await?);
                ensure!(got == (mine, theirs), "{action} {rule}: {got:?}");
                Ok(())
            })
            .await?;
        }
        mesh.down()
    });
}
