//! What peers, applications and operators see of refusals and cuts.

use isobar_net::{ListenOptions, listen};
use isobar_proto::istio::{security, workload as wire};
use isobar_runtime::Worker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ztunnel::zds::PodHost as _;

use crate::rig::{LIMIT, deny};
use crate::stage::{Stage, echoes, ends_soon, greeted, until};

const DENIED: &str = "connection closed due to policy rejection";
const WITHDRAWN: &str = "connection closed due to policy change";

pub(crate) fn no(account: &str) -> security::Authorization {
    let principal = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(format!(
            "cluster.local/ns/ns/sa/{account}"
        ))),
    };
    deny(
        "no-client",
        security::Match {
            principals: vec![principal],
            ..security::Match::default()
        },
    )
}

fn strict() -> security::Authorization {
    let anybody = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Presence(())),
    };
    deny(
        "strict",
        security::Match {
            not_principals: vec![anybody],
            ..security::Match::default()
        },
    )
}

/// Statuses on the wire, flags in the metrics, texts in the log.
pub(crate) async fn denial(workers: Vec<Worker>) {
    let stage = Stage::new(workers).await;
    assert_eq!(
        stage.knock("client", "10.0.0.3:8080").await.unwrap(),
        "10.0.0.4:knock"
    );
    stage.mesh.policy(&no("client"));
    assert_eq!(stage.knock("client", "10.0.0.3:8080").await, Err(401));
    let line = stage
        .lines
        .wait(&[("direction", "inbound"), ("error", DENIED)])
        .await;
    assert_eq!(line["level"], "ERROR");
    assert!(line["error"].contains("no-client"), "{line:?}");
    assert!(line["src.identity"].contains("ns/ns/sa/client"), "{line:?}");
    assert!(line["dst.hbone_addr"].contains("10.0.0.3:8080"), "{line:?}");
    assert!(line["reason"].contains("policy_denied"), "{line:?}");
    flagged(&stage, "DENY").await;
}

/// An application that is not there, and what else a peer can be refused for.
pub(crate) async fn nobody(workers: Vec<Worker>) {
    let stage = Stage::new(workers).await;
    assert_eq!(stage.knock("other", "10.0.0.3:9").await, Err(503));
    stage
        .lines
        .wait(&[("direction", "inbound"), ("reason", "upstream_refused")])
        .await;
    flagged(&stage, "CONNECT").await;

    for (authority, status) in [
        ("10.0.0.2:8080", 400),
        ("127.0.0.1:8080", 400),
        ("10.0.0.3:15001", 503),
        ("10.0.0.3:15006", 503),
        ("10.0.0.3:15008", 503),
        ("web.ns.svc.cluster.local:81", 503),
        ("nothing.example:80", 503),
    ] {
        let refused = stage.knock("other", authority).await;
        assert_eq!(refused, Err(status), "{authority}");
    }
    let early = "isobar_connections_refused_early_total{direction=\"inbound\",reason=";
    for reason in ["unknown_destination", "reserved_port", "no_such_port"] {
        let series = format!("{early}\"{reason}\"}}");
        assert!(stage.metrics().contains(&series), "{series}");
    }
    let named = stage.knock("other", "web.ns.svc.cluster.local:80").await;
    assert_eq!(named.unwrap(), "10.0.0.4:knock");
}

async fn flagged(stage: &Stage, flag: &str) {
    let flag = format!("response_flags=\"{flag}\"");
    until(&format!("{flag} in the metrics"), || {
        stage.metrics().lines().any(|line| {
            line.starts_with("istio_tcp_connections_failed_total")
                && line.contains("reporter=\"destination\"")
                && line.contains(&flag)
        })
    })
    .await;
}

/// A policy that arrives cuts what it forbids, at once, and nothing else.
pub(crate) async fn live_denial(workers: Vec<Worker>, same_node: bool) {
    let stage = Stage::with_tunnels(workers, !same_node).await;
    let mut open = greeted(&stage.client, "10.0.0.2:").await;
    stage.mesh.policy(&no("client"));
    let took = ends_soon(&mut open).await;
    println!("R-18: cut {took:?} after the policy was there");
    let line = stage.lines.wait(&[("error", WITHDRAWN)]).await;
    assert!(line["direction"].contains("inbound"), "{line:?}");
    assert_eq!(line["level"], "ERROR");
    assert_eq!(stage.client.ask("10.0.0.3:8080", "hello").await, "");
    until("the reasons are counted", || {
        let text = stage.metrics();
        text.contains("reason=\"policy_withdrawn\"") && text.contains("reason=\"policy_denied\"")
    })
    .await;
    stage.mesh.remove_policy("ns/no-client");
    let answer = stage.client.ask("10.0.0.3:8080", "again").await;
    assert_eq!(answer, "10.0.0.2:again");

    let mut plain = greeted(&stage.outsider, "10.0.0.4:").await;
    let mut inside = greeted(&stage.client, "10.0.0.2:").await;
    stage.mesh.policy(&strict());
    ends_soon(&mut plain).await;
    assert_eq!(stage.outsider.ask("10.0.0.3:8080", "hello").await, "");
    // Who shows a certificate is not concerned.
    echoes(&mut inside).await;
    until("the reason is counted", || {
        stage.metrics().contains("reason=\"plaintext_refused\"")
    })
    .await;
}

/// What leads out of the mesh ends, orderly, once the registry alone may be reached; other calls go on.
pub(crate) async fn closed_later(workers: Vec<Worker>) {
    let stage = Stage::new(workers).await;
    let mut inside = greeted(&stage.client, "10.0.0.2:").await;
    let mut outside = stage.client.connect("10.0.0.4:8080").await.unwrap();
    let mut greeting = [0; 9];
    outside.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"10.0.0.2:");
    stage.mesh.keep_to_registry(false);
    echoes(&mut outside).await;

    stage.mesh.keep_to_registry(true);
    let end = tokio::time::timeout(LIMIT, outside.read(&mut greeting)).await;
    assert_eq!(end.unwrap().unwrap(), 0, "the end of the stream, no reset");
    let line = stage.lines.wait(&[("error", WITHDRAWN)]).await;
    assert!(line["direction"].contains("outbound"), "{line:?}");
    assert!(line["error"].contains("REGISTRY_ONLY"), "{line:?}");
    assert!(line["reason"].contains("policy_withdrawn"), "{line:?}");
    echoes(&mut inside).await;
    assert_eq!(stage.client.ask("10.0.0.4:8080", "hello").await, "");
}

/// Whoever waits for an application that does not answer is cut like those who are served.
pub(crate) async fn denial_while_dialling(workers: Vec<Worker>) {
    const MUTE: &str = "table ip mute { chain input { type filter hook input priority -300; \
                        tcp dport 8080 drop; }; }";
    let stage = Stage::new(workers).await;
    stage.server.inside("nft", &[MUTE]);
    let waiting = || async {
        let tcp = stage.outsider.connect("10.0.0.3:8080").await.unwrap();
        until("the application is dialled", || {
            let pods = stage.mesh.pods.connections();
            let mut open = pods.iter().map(|(_, _, pod)| pod.views().inbound.len());
            open.any(|open| open == 1)
        })
        .await;
        tcp
    };
    let mut plain = waiting().await;
    stage.mesh.policy(&strict());
    ends_soon(&mut plain).await;
    let line = stage.lines.wait(&[("error", WITHDRAWN)]).await;
    assert!(line["src.addr"].contains("10.0.0.4"), "{line:?}");

    stage.mesh.remove_policy("ns/strict");
    let mut plain = waiting().await;
    stage.mesh.pods.stop("server").await;
    ends_soon(&mut plain).await;
    stage.lines.wait(&[("reason", "workload_removed")]).await;
}

/// The application's peer is the client, through a tunnel and captured in plaintext.
pub(crate) async fn addresses(workers: Vec<Worker>) {
    let stage = Stage::new(workers).await;
    let answer = stage.client.ask("10.0.0.3:8080", "tunnel").await;
    assert_eq!(answer, "10.0.0.2:tunnel");
    stage
        .lines
        .wait(&[("direction", "inbound"), ("src.identity", "sa/client")])
        .await;
    let answer = stage.outsider.ask("10.0.0.3:8080", "plain").await;
    assert_eq!(answer, "10.0.0.4:plain");
    stage
        .lines
        .wait(&[("direction", "inbound"), ("src.addr", "10.0.0.4:")])
        .await;
}

/// An application behind a PROXY tunnel is told the peer, its wish and its identity first, over
/// loopback or with the peer's address.
pub(crate) async fn proxied(workers: Vec<Worker>, loopback: bool) {
    let setting = (
        "LOCALHOST_APP_TUNNEL",
        if loopback { "true" } else { "false" },
    );
    let stage = Stage::with(workers, &[setting]).await;
    let mut server = stage.server.workload();
    server.application_tunnel = Some(wire::ApplicationTunnel {
        protocol: wire::application_tunnel::Protocol::Proxy.into(),
        port: 15088,
    });
    stage.mesh.put([wire::address::Type::Workload(server)]);
    let address = if loopback {
        "127.0.0.1:15088"
    } else {
        "10.0.0.3:15088"
    };
    let listener = listen(&ListenOptions {
        netns: Some(stage.server.netns.clone()),
        ..ListenOptions::new(address.parse().unwrap())
    })
    .unwrap();
    let (told, seen) = tokio::sync::oneshot::channel();
    stage.apps.spawn("sandwich", async move {
        let (mut tcp, peer) = listener.accept().await.unwrap();
        let mut head = [0; 16];
        tcp.read_exact(&mut head).await.unwrap();
        let mut rest = vec![0; u16::from_be_bytes([head[14], head[15]]).into()];
        tcp.read_exact(&mut rest).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        tcp.write_all(b"thanks").await.unwrap();
        told.send((peer, head, rest, text)).unwrap();
    });
    // Any address: the application behind validates.
    let answer = stage.knock("caller", "10.96.0.1:80").await;
    assert_eq!(answer.unwrap(), "thanks");
    let (peer, head, rest, text) = seen.await.unwrap();
    let shown = if loopback { "127.0.0.1" } else { "10.0.0.4" };
    assert_eq!(peer.ip().to_string(), shown);
    assert_eq!(head[12..14], [0x21, 0x11]);
    assert_eq!(rest[..8], [10, 0, 0, 4, 10, 96, 0, 1]);
    assert_eq!(rest[10..13], [0, 80, 0xd0]);
    assert_eq!(&rest[15..], b"spiffe://cluster.local/ns/ns/sa/caller");
    assert_eq!(text, "knock");
}
