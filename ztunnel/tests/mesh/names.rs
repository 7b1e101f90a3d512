//! The DNS proxy on the wire: UDP as redirected, and TCP.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use isobar_net::{UdpOptions, udp};
use isobar_proto::istio::workload as wire;
use isobar_runtime::{Scope, Worker};
use isobar_telemetry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use wire::address::Type;
use ztunnel::config::Dns;
use ztunnel::dns::{self, Upstreams};
use ztunnel::proxy::Pod;
use ztunnel::zds::PodInfo;

use crate::rig::{LIMIT, Mesh, NAMESERVER, Place, VIP, network, service};
use crate::stage::{Stage, until};

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.parse::<Name>().unwrap(), kind));
    message
}

/// What a name server outside the mesh says.
fn upstream(query: &Message, stream: bool) -> Message {
    let mut answer = query.clone().into_response();
    answer.metadata.recursion_available = true;
    let asked = query.queries[0].clone();
    let name = asked.name().to_ascii();
    let zone: Name = "example.".parse().unwrap();
    let address = |last| {
        let data = RData::A(A::new(192, 0, 2, last));
        Record::from_rdata(asked.name().clone(), 7, data)
    };
    match name.as_str() {
        "one.example." => drop(answer.add_answer(address(1))),
        "big.example." if stream => {
            for last in 0..=99 {
                answer.add_answer(address(last));
            }
        }
        "big.example." => answer.metadata.truncation = true,
        "refused.example." => answer.metadata.response_code = ResponseCode::Refused,
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 5);
            answer.add_authority(Record::from_rdata(zone, 5, RData::SOA(soa)));
        }
    }
    answer
}

async fn name_server(scope: &Scope) {
    let socket = UdpSocket::bind(NAMESERVER).await.unwrap();
    let listener = TcpListener::bind(NAMESERVER).await.unwrap();
    scope.spawn("udp", async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let answer = upstream(&query, false).to_vec().unwrap();
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    scope.spawn("tcp", async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let query = read_framed(&mut tcp).await;
            let answer = upstream(&query, true).to_vec().unwrap();
            write_framed(&mut tcp, &answer).await;
        }
    });
}

async fn read_framed(tcp: &mut TcpStream) -> Message {
    let len = tokio::time::timeout(LIMIT, tcp.read_u16()).await.unwrap();
    let mut bytes = vec![0; len.unwrap().into()];
    tcp.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

async fn write_framed(tcp: &mut TcpStream, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).unwrap();
    tcp.write_all(&len.to_be_bytes()).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
}

/// An application's resolver in a pod.
struct Resolver<'a>(&'a Place, UdpSocket);

impl<'a> Resolver<'a> {
    async fn of(place: &'a Place) -> Self {
        let socket = udp(&UdpOptions {
            address: "0.0.0.0:0".parse().unwrap(),
            netns: Some(place.netns.clone()),
            mark: None,
            reuse_port: false,
        })
        .unwrap();
        // Whatever server the pod asks: the question is redirected.
        socket.connect("10.96.0.10:53").await.unwrap();
        Self(place, socket)
    }

    async fn send(&self, query: &Message) -> Message {
        self.1.send(&query.to_vec().unwrap()).await.unwrap();
        let mut buffer = [0; 4096];
        let received = tokio::time::timeout(2 * LIMIT, self.1.recv(&mut buffer)).await;
        let len = received.expect("an answer").unwrap();
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        answer
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.send(&question(name, kind)).await
    }

    async fn over_tcp(&self, queries: &[Message]) -> Vec<Message> {
        let mut tcp = self.0.connect("127.0.0.1:15053").await.unwrap();
        let mut answers = Vec::new();
        for query in queries {
            write_framed(&mut tcp, &query.to_vec().unwrap()).await;
            answers.push(read_framed(&mut tcp).await);
        }
        answers
    }

    /// Answers of the mesh: the addresses, sorted.
    async fn addresses(&self, name: &str, kind: RecordType) -> Vec<String> {
        let answer = self.ask(name, kind).await;
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::NoError,
            "{name}"
        );
        assert!(answer.metadata.authoritative, "{name}");
        assert!(answer.metadata.recursion_available, "{name}");
        assert!(answer.answers.iter().all(|r| r.ttl == 30), "{answer:?}");
        let mut all: Vec<_> = answer.answers.iter().map(|r| r.data.to_string()).collect();
        all.sort();
        all
    }

    async fn is_forwarded(&self, name: &str, kind: RecordType) {
        let answer = self.ask(name, kind).await;
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::NXDomain,
            "{name}"
        );
    }
}

fn addressed(name: &str, namespace: &str, host: &str, vips: &[&str]) -> wire::Service {
    let bytes = |ip: &&str| match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    wire::Service {
        namespace: namespace.into(),
        hostname: host.into(),
        canonical: false,
        addresses: vips
            .iter()
            .map(|ip| wire::NetworkAddress {
                network: String::new(),
                address: bytes(ip),
                length: None,
            })
            .collect(),
        ..service(name, VIP, 8080)
    }
}

fn populate(stage: &Stage) {
    let mut hidden = addressed(
        "hidden",
        "other",
        "hidden.other.svc.cluster.local",
        &["10.96.1.9"],
    );
    hidden.visibility = wire::service::Visibility::Namespace.into();
    let mut four = addressed(
        "four",
        "ns",
        "four.ns.svc.cluster.local",
        &["10.96.1.4", "fd00::4"],
    );
    four.ip_families = wire::IpFamilies::Ipv4Only.into();
    let mut far = addressed("far", "ns", "far.ns.svc.cluster.local", &["10.96.1.5"]);
    far.addresses[0].network = "elsewhere".into();
    let mut range = addressed("range", "ns", "range.example", &["10.96.2.0"]);
    range.addresses[0].length = Some(24);
    let mut canonical = addressed("both", "b", "both.example", &["10.96.1.7"]);
    canonical.canonical = true;
    let services = [
        addressed(
            "dual",
            "ns",
            "dual.ns.svc.cluster.local",
            &["10.96.1.1", "fd00::1"],
        ),
        addressed(
            "near",
            "other",
            "near.other.svc.cluster.local",
            &["10.96.1.2"],
        ),
        addressed("any", "ns", "*.wild.example", &["10.96.1.3"]),
        addressed("empty", "ns", "empty.example", &[]),
        addressed("head", "ns", "head.ns.svc.cluster.local", &[]),
        addressed("mine", "other", "mine.example", &["10.96.1.10"]),
        addressed("mine", "ns", "mine.example", &["10.96.1.11"]),
        addressed("both", "a", "both.example", &["10.96.1.6"]),
        canonical,
        hidden,
        four,
        far,
        range,
    ];
    stage.mesh.put(services.map(Type::Service));
    let many: Vec<_> = (0..60).map(|n| format!("10.97.0.{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    stage.mesh.put([Type::Service(addressed(
        "many",
        "ns",
        "many.ns.svc.cluster.local",
        &many,
    ))]);
    let crowd: Vec<_> = (0..5_000)
        .map(|n| format!("10.98.{}.{}", n / 256, n % 256))
        .collect();
    let crowd: Vec<_> = crowd.iter().map(String::as_str).collect();
    stage.mesh.put([Type::Service(addressed(
        "crowd",
        "ns",
        "crowd.ns.svc.cluster.local",
        &crowd,
    ))]);
    endpoints(stage);
}

/// Endpoints of the headless service, one of them not ready.
fn endpoints(stage: &Stage) {
    let endpoint = |name: &str, ip: [u8; 4], status: wire::WorkloadStatus| {
        let key = "ns/head.ns.svc.cluster.local".to_owned();
        Type::Workload(wire::Workload {
            uid: format!("c//Pod/ns/{name}"),
            name: name.into(),
            addresses: vec![ip.to_vec()],
            services: [(key, wire::PortList::default())].into(),
            status: status.into(),
            ..stage.server.workload()
        })
    };
    stage.mesh.put([
        endpoint("h1", [10, 1, 0, 1], wire::WorkloadStatus::Healthy),
        endpoint("h2", [10, 1, 0, 2], wire::WorkloadStatus::Healthy),
        endpoint("h3", [10, 1, 0, 3], wire::WorkloadStatus::Unhealthy),
    ]);
}

pub(crate) async fn all(workers: Vec<Worker>) {
    let stage = Stage::new(workers).await;
    name_server(&stage.apps).await;
    populate(&stage);
    let resolver = Resolver::of(&stage.client).await;
    found(&resolver).await;
    searched(&resolver).await;
    empty(&resolver).await;
    forwarded(&resolver).await;
    refused(&resolver).await;
    cut_and_streamed(&resolver).await;
    counted(&stage).await;
    stranger(&stage).await;
}

/// Without IPv6 there is no AAAA record of the mesh.
pub(crate) async fn without_ipv6(workers: Vec<Worker>) {
    let stage = Stage::with(workers, &[("IPV6_ENABLED", "false")]).await;
    populate(&stage);
    let resolver = Resolver::of(&stage.client).await;
    let dual = "dual.ns.svc.cluster.local.";
    assert!(resolver.addresses(dual, RecordType::AAAA).await.is_empty());
    assert_eq!(resolver.addresses(dual, RecordType::A).await, ["10.96.1.1"]);
}

async fn found(resolver: &Resolver<'_>) {
    for (name, kind, expected) in [
        ("web.ns.svc.cluster.local.", RecordType::A, &[VIP][..]),
        ("WEB.Ns.svc.cluster.local.", RecordType::A, &[VIP]),
        ("web.", RecordType::A, &[VIP]),
        ("web.ns.", RecordType::A, &[VIP]),
        ("web.ns.svc.", RecordType::A, &[VIP]),
        ("near.other.", RecordType::A, &["10.96.1.2"]),
        ("dual.", RecordType::A, &["10.96.1.1"]),
        ("dual.", RecordType::AAAA, &["fd00::1"]),
        ("x.wild.example.", RecordType::A, &["10.96.1.3"]),
        ("x.y.wild.example.", RecordType::A, &["10.96.1.3"]),
        ("mine.example.", RecordType::A, &["10.96.1.11"]),
        ("both.example.", RecordType::A, &["10.96.1.7"]),
        ("head.", RecordType::A, &["10.1.0.1", "10.1.0.2"]),
    ] {
        assert_eq!(resolver.addresses(name, kind).await, expected, "{name}");
    }
    // The answer carries the name as it was asked.
    let answer = resolver.ask("web.", RecordType::A).await;
    assert_eq!(answer.answers[0].name.to_ascii(), "web.");
}

/// What a resolver with search domains and `ndots:5` asks on its way.
async fn searched(resolver: &Resolver<'_>) {
    let long = "near.other.svc.cluster.local.ns.svc.cluster.local.";
    let answer = resolver.ask(long, RecordType::A).await;
    let records: Vec<_> = answer
        .answers
        .iter()
        .map(|r| (r.name.to_ascii(), r.data.to_string()))
        .collect();
    let short = "near.other.svc.cluster.local.";
    assert_eq!(
        records,
        [
            (long.to_owned(), short.to_owned()),
            (short.to_owned(), "10.96.1.2".to_owned())
        ]
    );
    // Found by a wildcard there is no alias.
    let answer = resolver
        .ask("x.wild.example.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(answer.answers.len(), 1, "{answer:?}");
    assert_eq!(answer.answers[0].record_type(), RecordType::A);
    resolver
        .is_forwarded("two.example.ns.svc.cluster.local.", RecordType::A)
        .await;
}

async fn empty(resolver: &Resolver<'_>) {
    for (name, kind) in [
        ("web.ns.svc.cluster.local.", RecordType::AAAA),
        ("four.", RecordType::AAAA),
        ("far.", RecordType::A),
        ("range.example.", RecordType::A),
        ("head.", RecordType::AAAA),
    ] {
        assert!(resolver.addresses(name, kind).await.is_empty(), "{name}");
    }
}

async fn forwarded(resolver: &Resolver<'_>) {
    let one = resolver.ask("one.example.", RecordType::A).await;
    assert_eq!(one.answers[0].data.to_string(), "192.0.2.1");
    assert!(!one.metadata.authoritative);
    let refused = resolver.ask("refused.example.", RecordType::A).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    // Another type, a service without address outside the cluster, one that is not visible, a pod.
    resolver
        .is_forwarded("web.ns.svc.cluster.local.", RecordType::SRV)
        .await;
    resolver.is_forwarded("empty.example.", RecordType::A).await;
    resolver.is_forwarded("hidden.other.", RecordType::A).await;
    resolver
        .is_forwarded("h1.head.ns.svc.cluster.local.", RecordType::A)
        .await;
    // Unlike Istio's: what lets clients remember that a name does not exist comes through.
    let missing = resolver.ask("missing.example.", RecordType::A).await;
    assert_eq!(missing.authorities.len(), 1, "{missing:?}");
}

async fn refused(resolver: &Resolver<'_>) {
    let mut update = question("web.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let answer = resolver.send(&update).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
    let mut two = question("web.", RecordType::A);
    two.add_query(two.queries[0].clone());
    let answer = resolver.send(&two).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

async fn cut_and_streamed(resolver: &Resolver<'_>) {
    let many = question("many.", RecordType::A);
    let cut = resolver.send(&many).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty(), "{cut:?}");
    assert!(cut.edns.is_none());
    let mut wide = many.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(4000);
    wide.set_edns(edns);
    let whole = resolver.send(&wide).await;
    assert_eq!(whole.answers.len(), 60);
    assert_eq!(whole.edns.unwrap().max_payload(), 4000);
    let mut narrow = many.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(100);
    narrow.set_edns(edns);
    let cut = resolver.send(&narrow).await;
    assert!(cut.metadata.truncation);
    assert_eq!(cut.edns.unwrap().max_payload(), 512);
    let big = question("big.example.", RecordType::A);
    assert!(resolver.send(&big).await.metadata.truncation);
    // Several questions on one connection, of the mesh and not.
    let web = question("web.", RecordType::A);
    let answers = resolver.over_tcp(&[many, big, web]).await;
    let counts: Vec<_> = answers.iter().map(|a| a.answers.len()).collect();
    assert_eq!(counts, [60, 100, 1]);
    // More addresses than a message holds.
    let crowd = question("crowd.", RecordType::A);
    let answers = resolver.over_tcp(&[crowd]).await;
    assert_eq!(answers[0].answers.len(), 512);
}

async fn counted(stage: &Stage) {
    until("queries are counted", || {
        let text = stage.metrics();
        [
            "istio_dns_requests_total{request_query_type=\"A\",request_protocol=\"udp\",source_canonical_service=\"client\",source_canonical_revision=\"",
            "istio_dns_requests_total{request_query_type=\"A\",request_protocol=\"tcp\"",
            "istio_dns_upstream_requests_total{request_query_type=\"SRV\"",
            "istio_dns_upstream_request_duration_seconds_bucket{le=\"0.0005\"",
        ]
        .iter()
        .all(|series| text.contains(series))
    })
    .await;
}

/// A pod the control plane never told about.
async fn stranger(stage: &Stage) {
    let pod = Place::new("stranger", "10.0.0.9");
    pod.redirect();
    stage.serve(&pod).await;
    let answer = Resolver::of(&pod).await.ask("web.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

/// Queries of one pod that came first do not make another pod wait for all of them.
pub(crate) async fn fair(workers: Vec<Worker>) {
    network();
    let mesh = Mesh::new(workers, &[]);
    let places = [("one", [10, 0, 0, 2]), ("two", [10, 0, 0, 3])];
    mesh.put(places.map(|(name, ip)| {
        Type::Workload(wire::Workload {
            uid: name.into(),
            name: name.into(),
            namespace: "ns".into(),
            service_account: name.into(),
            addresses: vec![ip.to_vec()],
            node: "node".into(),
            ..wire::Workload::default()
        })
    }));
    mesh.put([Type::Service(service("web", VIP, 8080))]);
    let query = question("web.ns.svc.cluster.local.", RecordType::A);
    let query = query.to_vec().unwrap();
    let order = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(answered(&mesh, &query))
    });
    let place = order.join().unwrap();
    assert!(place < 40, "answered after {place} of the other pod's");
}

/// Asks 200 times as one pod and then once as another; how many of the one's answers come first.
async fn answered(mesh: &Mesh, query: &[u8]) -> usize {
    let servers = ["127.0.0.1:15053", "127.0.0.1:15153"].map(|at| at.parse().unwrap());
    let mut serving = Vec::new();
    let mut stages = Vec::new();
    for (name, listen) in ["one", "two"].into_iter().zip(servers) {
        let config = Dns {
            listen,
            ..mesh.world.config.dns.clone().unwrap()
        };
        let resolver = dns::Resolver::new(config, Upstreams::default(), &Registry::new());
        let info = PodInfo {
            name: name.into(),
            namespace: "ns".into(),
            service_account: name.into(),
        };
        let (pod, stage) = Pod::new(info, None);
        serving.push(resolver.serve(&mesh.world, &Arc::new(pod)).unwrap());
        stages.push(stage);
    }
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..200 {
        client.send_to(query, servers[0]).await.unwrap();
    }
    client.send_to(query, servers[1]).await.unwrap();
    let scope = Scope::new("dns");
    for one in serving {
        scope.spawn("pod", one);
    }
    let mut buffer = [0; 512];
    let mut first = 0;
    loop {
        let received = tokio::time::timeout(LIMIT, client.recv_from(&mut buffer)).await;
        if received.unwrap().unwrap().1 == servers[1] {
            break first;
        }
        first += 1;
    }
}
