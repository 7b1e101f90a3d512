use std::time::{Duration, Instant};

use isobar_net::{UdpOptions, udp};
use isobar_proto::istio::{security, workload as wire};
use isobar_runtime::{Scope, Worker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wire::address::Type;

use crate::rig::{LIMIT, Mesh, NAMESERVER, Place, VIP, deny, network, service};

struct Stage {
    mesh: Mesh,
    client: Place,
    server: Place,
    outsider: Place,
}

/// All scenarios, on one stage: building it is what takes time.
pub(crate) async fn all(workers: Vec<Worker>) {
    network();
    let stage = Stage {
        mesh: Mesh::new(workers),
        client: Place::new("client", "10.0.0.2"),
        server: Place::new("server", "10.0.0.3"),
        outsider: Place::new("outsider", "10.0.0.4"),
    };
    let apps = Scope::new("apps");
    stage.server.echo(&apps, 8080);
    stage.outsider.echo(&apps, 8080);
    let descriptors = open_descriptors();
    stage.populate();
    for place in [&stage.client, &stage.server] {
        place.redirect();
        let netns = Some(place.netns.clone());
        stage
            .mesh
            .pods
            .serve(place.name, &place.info(), netns)
            .await
            .unwrap();
    }
    let following = Scope::new("recheck");
    let follower = stage.mesh.pods.clone();
    following.spawn(
        "recheck",
        follower.recheck(stage.mesh.store.clone(), following.lifetime()),
    );

    reaches_pods_and_services(&stage).await;
    passes_through_what_is_unknown(&stage).await;
    plaintext_until_it_is_refused(&stage).await;
    a_new_denial_cuts_what_is_open(&stage).await;
    a_missing_waypoint_closes_before_any_byte(&stage).await;
    answers_names(&stage).await;
    a_removed_pod_is_gone(&stage, descriptors).await;
    drop(following);
}

impl Stage {
    fn populate(&self) {
        let mut server = self.server.workload();
        let ports = wire::PortList {
            ports: vec![wire::Port {
                service_port: 80,
                target_port: 8080,
                ..wire::Port::default()
            }],
        };
        server
            .services
            .insert("ns/web.ns.svc.cluster.local".into(), ports);
        self.mesh.put([
            Type::Workload(self.client.workload()),
            Type::Workload(server),
            Type::Service(service("web", VIP, 8080)),
        ]);
    }

    fn metrics(&self) -> String {
        self.mesh.registry.encode()
    }
}

async fn reaches_pods_and_services(stage: &Stage) {
    // The server's application sees the client's own address.
    let answer = stage.client.ask("10.0.0.3:8080", "by pod").await;
    assert_eq!(answer, "10.0.0.2:by pod");
    let answer = stage.client.ask(&format!("{VIP}:80"), "by service").await;
    assert_eq!(answer, "10.0.0.2:by service");
    // A megabyte both ways survives half-close.
    let mut tcp = stage.client.connect("10.0.0.3:8080").await.unwrap();
    let sent = vec![b'x'; 1 << 20];
    let (mut read, mut write) = tcp.split();
    let mut got = Vec::new();
    let both = async {
        let write = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(write, read.read_to_end(&mut got));
        read.unwrap();
    };
    tokio::time::timeout(LIMIT, both).await.unwrap();
    assert_eq!(got.len(), sent.len() + "10.0.0.2:".len());

    until("both sides tell mutual TLS and the service", || {
        let text = stage.metrics();
        ["source", "destination"].iter().all(|side| {
            text.lines().any(|line| {
                line.starts_with("istio_tcp_connections_closed_total")
                    && line.contains(&format!("reporter=\"{side}\""))
                    && line.contains("destination_service=\"web.ns.svc.cluster.local\"")
                    && line.contains("source_principal=\"spiffe://cluster.local/ns/ns/sa/client\"")
                    && line.contains("connection_security_policy=\"mutual_tls\"")
                    && line.contains("reason=\"complete\"")
            })
        })
    })
    .await;
}

async fn passes_through_what_is_unknown(stage: &Stage) {
    let answer = stage.client.ask("10.0.0.4:8080", "plain").await;
    assert_eq!(answer, "10.0.0.2:plain");
}

async fn plaintext_until_it_is_refused(stage: &Stage) {
    let answer = stage.outsider.ask("10.0.0.3:8080", "hello").await;
    assert_eq!(answer, "10.0.0.4:hello");
    let mut open = greeted(&stage.outsider, "10.0.0.4:").await;
    let mut inside = greeted(&stage.client, "10.0.0.2:").await;
    let anybody = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Presence(())),
    };
    let strict = deny(
        "strict",
        security::Match {
            not_principals: vec![anybody],
            ..security::Match::default()
        },
    );
    stage.mesh.policy(&strict);
    ends_within_a_second(&mut open).await;
    assert_eq!(stage.outsider.ask("10.0.0.3:8080", "hello").await, "");
    // Who shows a certificate is not concerned.
    echoes(&mut inside).await;
    until("the reason is counted", || {
        stage.metrics().contains("reason=\"plaintext_refused\"")
    })
    .await;
    stage.mesh.remove_policy("ns/strict");
}

async fn a_new_denial_cuts_what_is_open(stage: &Stage) {
    let mut open = greeted(&stage.client, "10.0.0.2:").await;
    let client = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(
            "cluster.local/ns/ns/sa/client".into(),
        )),
    };
    let denial = deny(
        "no-client",
        security::Match {
            principals: vec![client],
            ..security::Match::default()
        },
    );
    stage.mesh.policy(&denial);
    ends_within_a_second(&mut open).await;
    assert_eq!(stage.client.ask("10.0.0.3:8080", "hello").await, "");
    until("the reasons are counted", || {
        let text = stage.metrics();
        text.contains("reason=\"policy_withdrawn\"") && text.contains("reason=\"policy_denied\"")
    })
    .await;
    stage.mesh.remove_policy("ns/no-client");
    let answer = stage.client.ask("10.0.0.3:8080", "again").await;
    assert_eq!(answer, "10.0.0.2:again");
}

async fn a_missing_waypoint_closes_before_any_byte(stage: &Stage) {
    let mut bound = service("bound", "10.96.0.2", 8080);
    bound.waypoint = Some(wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(
            wire::NamespacedHostname {
                namespace: "ns".into(),
                hostname: "waypoint.ns.svc.cluster.local".into(),
            },
        )),
        hbone_mtls_port: 15008,
    });
    stage.mesh.put([Type::Service(bound)]);
    assert_eq!(stage.client.ask("10.96.0.2:80", "hello").await, "");
    until("the reason is counted", || {
        stage.metrics().contains("reason=\"waypoint_missing\"")
    })
    .await;
}

async fn answers_names(stage: &Stage) {
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

    let upstream = tokio::net::UdpSocket::bind(NAMESERVER).await.unwrap();
    let scope = Scope::new("nameserver");
    scope.spawn("nameserver", async move {
        let mut buffer = [0; 512];
        loop {
            let (len, from) = upstream.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let mut answer = query.into_response();
            answer.metadata.response_code = ResponseCode::NXDomain;
            upstream
                .send_to(&answer.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    let socket = udp(&UdpOptions {
        address: "0.0.0.0:0".parse().unwrap(),
        netns: Some(stage.client.netns.clone()),
        mark: None,
        reuse_port: false,
    })
    .unwrap();
    // Whatever server the pod asks: the question is redirected.
    socket.connect("10.96.0.10:53").await.unwrap();
    let ask = async |name: &str, kind| {
        let mut query = Message::query();
        query.add_query(Query::query(name.parse::<Name>().unwrap(), kind));
        socket.send(&query.to_vec().unwrap()).await.unwrap();
        let mut buffer = [0; 512];
        let len = tokio::time::timeout(LIMIT, socket.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        assert_eq!(answer.metadata.id, query.metadata.id);
        answer
    };
    let found = ask("web.ns.svc.cluster.local.", RecordType::A).await;
    assert_eq!(found.answers.len(), 1, "{found:?}");
    assert_eq!(found.answers[0].ttl, 30);
    assert_eq!(found.answers[0].data.to_string(), VIP);
    let no_data = ask("web.ns.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!(no_data.metadata.response_code, ResponseCode::NoError);
    assert!(no_data.answers.is_empty());
    let foreign = ask("example.com.", RecordType::A).await;
    assert_eq!(foreign.metadata.response_code, ResponseCode::NXDomain);
}

async fn a_removed_pod_is_gone(stage: &Stage, descriptors: usize) {
    use ztunnel::zds::PodHost as _;

    let mut open = greeted(&stage.client, "10.0.0.2:").await;
    stage.mesh.pods.stop("server").await;
    ends_within_a_second(&mut open).await;
    assert!(
        stage
            .client
            .connect("10.0.0.3:15008")
            .await
            .is_ok_and(|_| true)
    );
    drop(open);

    // Served anew, then drained: what is open may go on for the time allowed, and is then cut.
    let (server, info) = (&stage.server, stage.server.info());
    let netns = Some(server.netns.clone());
    stage.mesh.pods.serve("server", &info, netns).await.unwrap();
    let mut open = greeted(&stage.client, "10.0.0.2:").await;
    let draining = stage.mesh.pods.clone();
    let drained = Scope::new("drain");
    let (done, result) = tokio::sync::oneshot::channel();
    drained.spawn("drain", async move {
        let orderly = draining.drain(Duration::from_millis(500)).await;
        done.send(orderly).unwrap();
    });
    until("no new connection is taken", || {
        let connect = std::net::TcpStream::connect("10.0.0.3:15008");
        connect.is_err()
    })
    .await;
    echoes(&mut open).await;
    ends_within_a_second(&mut open).await;
    assert!(!result.await.unwrap());
    drop(open);
    until("the reason is counted", || {
        stage.metrics().contains("reason=\"drained\"")
    })
    .await;
    until("every descriptor is closed", || {
        open_descriptors() <= descriptors + 1
    })
    .await;
}

async fn greeted(from: &Place, greeting: &str) -> TcpStream {
    let mut tcp = from.connect("10.0.0.3:8080").await.unwrap();
    let mut got = vec![0; greeting.len()];
    tokio::time::timeout(LIMIT, tcp.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, greeting.as_bytes());
    tcp
}

async fn echoes(tcp: &mut TcpStream) {
    tcp.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    tokio::time::timeout(LIMIT, tcp.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
}

async fn ends_within_a_second(tcp: &mut TcpStream) {
    let started = Instant::now();
    let mut byte = [0];
    let read = tokio::time::timeout(LIMIT, tcp.read(&mut byte))
        .await
        .unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(LIMIT, waited).await.is_ok(),
        "not so: {what}"
    );
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
