//! Admin pages in the shape `istioctl ztunnel-config` reads, and the series of the dashboard.

use std::time::Duration;

use serde_json::Value;

use crate::http::{self, call};
use crate::process::{Node, Process};
use crate::rig::{Place, VIP};
use crate::stage::{greeted, until};

const ADMIN: &str = "127.0.0.1:15000";

/// What a value must be; keys with `?` may be absent.
enum Shape {
    Text,
    Number,
    Flag,
    Any,
    Null,
    One(&'static [&'static str]),
    List(Box<Shape>),
    Map(Box<Shape>),
    Object(Vec<(&'static str, Shape)>),
    Either(Box<Shape>, Box<Shape>),
}

use Shape::{Any, Either, Flag, List, Map, Null, Number, Object, One, Text};

fn list(of: Shape) -> Shape {
    List(Box::new(of))
}

fn map(of: Shape) -> Shape {
    Map(Box::new(of))
}

fn fits(value: &Value, shape: &Shape, at: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{at}: {what}, found {value}"));
    match (shape, value) {
        (Any, _)
        | (Text, Value::String(_))
        | (Number, Value::Number(_))
        | (Flag, Value::Bool(_))
        | (Null, Value::Null) => Ok(()),
        (One(words), Value::String(text)) if words.contains(&text.as_str()) => Ok(()),
        (One(words), _) => wrong(&format!("expected one of {words:?}")),
        (List(of), Value::Array(all)) => all
            .iter()
            .enumerate()
            .try_for_each(|(n, v)| fits(v, of, &format!("{at}[{n}]"))),
        (Map(of), Value::Object(all)) => all
            .iter()
            .try_for_each(|(key, v)| fits(v, of, &format!("{at}.{key}"))),
        (Object(keys), Value::Object(all)) => {
            for (key, shape) in keys {
                let name = key.trim_end_matches('?');
                match all.get(name) {
                    Some(v) => fits(v, shape, &format!("{at}.{name}"))?,
                    None if key.ends_with('?') => {}
                    None => return wrong(&format!("{name} is missing")),
                }
            }
            let known = |name: &String| {
                keys.iter()
                    .any(|(key, _)| key.trim_end_matches('?') == name)
            };
            match all.keys().find(|name| !known(name)) {
                Some(name) => wrong(&format!("{name} is unknown")),
                None => Ok(()),
            }
        }
        (Either(a, b), v) => fits(v, a, at).or_else(|_| fits(v, b, at)),
        _ => wrong("another type expected"),
    }
}

fn gateway() -> Shape {
    Object(vec![("destination", Text), ("hboneMtlsPort", Number)])
}

fn workload() -> Shape {
    let locality = Object(vec![("region", Text), ("zone", Text), ("subzone", Text)]);
    let tunnel = Object(vec![("protocol", One(&["NONE", "PROXY"])), ("port", Any)]);
    Object(vec![
        ("workloadIps", list(Text)),
        ("waypoint?", gateway()),
        ("networkGateway?", gateway()),
        ("protocol", One(&["TCP", "HBONE"])),
        ("networkMode", One(&["Standard", "HostNetwork"])),
        ("uid?", Text),
        ("name", Text),
        ("namespace", Text),
        ("trustDomain?", Text),
        ("serviceAccount?", Text),
        ("network?", Text),
        ("workloadName?", Text),
        ("workloadType?", Text),
        ("canonicalName?", Text),
        ("canonicalRevision?", Text),
        ("hostname?", Text),
        ("node?", Text),
        ("nativeTunnel?", Flag),
        ("applicationTunnel?", tunnel),
        ("authorizationPolicies?", list(Text)),
        ("status", One(&["Healthy", "Unhealthy"])),
        ("clusterId", Text),
        ("locality?", locality),
        ("services?", list(Text)),
        ("capacity", Number),
    ])
}

fn service() -> Shape {
    let endpoint = Object(vec![
        ("workloadUid", Text),
        ("port", map(Number)),
        ("status", One(&["Healthy", "Unhealthy"])),
    ]);
    let balancer = Object(vec![
        ("routingPreferences", list(Text)),
        (
            "mode",
            One(&["Standard", "Strict", "Failover", "Passthrough"]),
        ),
        ("healthPolicy", One(&["OnlyHealthy", "AllowAll"])),
    ]);
    let range = Object(vec![("network", Text), ("cidr", Text)]);
    let weighted = Object(vec![("destination", gateway()), ("weight", Number)]);
    Object(vec![
        ("name", Text),
        ("namespace", Text),
        ("hostname", Text),
        ("vips", list(Text)),
        ("cidrVips?", list(range)),
        ("ports", map(Number)),
        ("endpoints", map(endpoint)),
        ("subjectAltNames", list(Text)),
        ("waypoint?", gateway()),
        ("weightedWaypoints?", list(weighted)),
        ("loadBalancer?", balancer),
        ("ipFamilies?", One(&["Dual", "IPv4", "IPv6"])),
        ("canonical", Flag),
        ("visibility", One(&["Public", "Namespace"])),
    ])
}

fn policy() -> Shape {
    let text = || {
        list(Object(vec![
            ("Exact?", Text),
            ("Prefix?", Text),
            ("Suffix?", Text),
            ("Presence?", list(Any)),
        ]))
    };
    let account = || list(Object(vec![("namespace", Text), ("serviceAccount", Text)]));
    let one = Object(vec![
        ("namespaces?", text()),
        ("notNamespaces?", text()),
        ("serviceAccounts?", account()),
        ("notServiceAccounts?", account()),
        ("principals?", text()),
        ("notPrincipals?", text()),
        ("sourceIps?", list(Text)),
        ("notSourceIps?", list(Text)),
        ("destinationIps?", list(Text)),
        ("notDestinationIps?", list(Text)),
        ("destinationPorts?", list(Number)),
        ("notDestinationPorts?", list(Number)),
    ]);
    Object(vec![
        ("name", Text),
        ("namespace", Text),
        ("scope", One(&["Global", "Namespace", "WorkloadSelector"])),
        ("action", One(&["Allow", "Deny"])),
        ("rules", list(list(list(one)))),
        ("dryRun", Flag),
    ])
}

fn dump() -> Shape {
    let certificate = || {
        list(Object(vec![
            ("pem", Text),
            ("serialNumber", Text),
            ("validFrom", Text),
            ("expirationTime", Text),
        ]))
    };
    let certificates = Object(vec![
        ("identity", Text),
        ("state", Text),
        ("certChain", certificate()),
        ("rootCerts", certificate()),
    ]);
    let connection = || {
        list(Object(vec![
            ("src", Text),
            ("originalDst", Either(Box::new(Text), Box::new(Null))),
            ("actualDst", Text),
            ("protocol", One(&["TCP", "HBONE", "DOUBLEHBONE"])),
        ]))
    };
    let connections = Object(vec![("inbound", connection()), ("outbound", connection())]);
    let info = Object(vec![
        ("name", Text),
        ("namespace", Text),
        ("serviceAccount", Text),
    ]);
    let state = Object(vec![
        ("state", One(&["Pending", "Up"])),
        ("connections?", connections),
        ("info", info),
    ]);
    let version = [
        "version",
        "gitRevision",
        "rustVersion",
        "buildProfile",
        "buildStatus",
        "istioVersion",
        "cryptoProvider",
    ];
    Object(vec![
        ("workloads", list(workload())),
        ("services", list(service())),
        ("policies", list(policy())),
        ("stagedServices", map(Any)),
        (
            "staticConfig",
            Object(vec![
                ("workloads", list(Any)),
                ("services", list(Any)),
                ("policies", list(Any)),
            ]),
        ),
        ("version", Object(version.map(|key| (key, Text)).into())),
        ("config", map(Any)),
        ("certificates", list(certificates)),
        ("workloadState", map(state)),
        // Ours.
        ("isobar", map(Any)),
    ])
}

pub(crate) async fn admin() {
    let node = Node::new().await;
    let process = node.serving(Place::new("zt", "10.0.0.11"), &[]).await;
    let open = greeted(&node.client, "10.0.0.2:").await;
    let page = http::get(&process.place, ADMIN, "/config_dump")
        .await
        .unwrap();
    assert_eq!(page.status, 200);
    let value: Value = serde_json::from_str(&page.body).unwrap();
    fits(&value, &dump(), "dump").unwrap();
    assert!(page.body.contains("\n  \""), "pretty printed");
    // The tables of istioctl would have these rows.
    assert_eq!(value["workloads"].as_array().unwrap().len(), 3);
    assert_eq!(value["services"][0]["vips"][0], format!("/{VIP}"));
    assert_eq!(
        value["services"][0]["endpoints"].as_object().unwrap().len(),
        1
    );
    assert_eq!(
        value["policies"][0]["rules"][0][0][0]["destinationPorts"][0],
        9
    );
    assert_eq!(value["staticConfig"]["services"][0]["name"], "web");
    assert_eq!(value["config"]["nodeName"], "node");
    let state = &value["workloadState"];
    assert_eq!(state["u-server"]["info"]["serviceAccount"], "server");
    let outbound = &state["u-client"]["connections"]["outbound"][0];
    assert_eq!(outbound["originalDst"], "10.0.0.3:8080");
    assert_eq!(outbound["protocol"], "HBONE");
    let inbound = &state["u-server"]["connections"]["inbound"][0];
    assert!(inbound["src"].as_str().unwrap().starts_with("10.0.0.2:"));
    assert_eq!(inbound["actualDst"], "10.0.0.3:8080");
    certificates(&value["certificates"]);
    drop(open);
    until("both sides have told the connection", || {
        process.lines_with("connection complete").len() == 2
    })
    .await;
    levels(&process).await;
    pages(&process).await;
    // Nobody else reaches the admin page.
    assert!(node.outsider.connect("10.0.0.11:15000").await.is_err());
}

fn certificates(all: &Value) {
    let server = all
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["identity"] == "spiffe://cluster.local/ns/ns/sa/server")
        .unwrap();
    assert_eq!(server["state"], "Available");
    for one in [&server["certChain"][0], &server["rootCerts"][0]] {
        use base64::Engine as _;
        let pem = one["pem"].as_str().unwrap();
        let pem = base64::engine::general_purpose::STANDARD
            .decode(pem)
            .unwrap();
        assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
        let serial = one["serialNumber"].as_str().unwrap();
        assert!(serial.bytes().all(|b| b.is_ascii_digit()), "{serial}");
        for key in ["validFrom", "expirationTime"] {
            let time = one[key].as_str().unwrap();
            assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
        }
    }
}

/// The level is shown, changed and reset while the process runs.
async fn levels(process: &Process) {
    let post = async |path: &str| call(&process.place, ADMIN, "POST", path, "").await.unwrap();
    assert_eq!(post("/logging").await.body, "current log level is info\n");
    let changed = post("/logging?level=access=off,xds:debug").await;
    assert!(changed.body.contains("access=off"), "{changed:?}");
    let written = process.lines_with("connection complete").len();
    let answer = process.place.ask("10.0.0.3:8080", "silent").await;
    assert!(answer.ends_with("silent"), "{answer}");
    let debug = post("/logging?level=debug&reset").await;
    assert_eq!(debug.body, "current log level is debug\n");
    let answer = process.place.ask("10.0.0.3:8080", "told").await;
    assert!(answer.ends_with("told"), "{answer}");
    until("the second connection is told", || {
        process.lines_with("connection opened").len() == 1
            && process.lines_with("connection complete").len() == written + 1
    })
    .await;
    let reset = post("/logging?reset").await;
    assert_eq!(reset.body, "current log level is info\n");
    let bad = post("/logging?level=loud").await;
    assert!(bad.status == 400 && bad.body.contains("usage"), "{bad:?}");
    let wrong = http::get(&process.place, ADMIN, "/logging").await.unwrap();
    assert_eq!(wrong.status, 405);
}

async fn pages(process: &Process) {
    for path in ["/quitquitquit", "/logging?level=off"] {
        let page = "origin: http://elsewhere.example\r\n";
        let refused = call(&process.place, ADMIN, "POST", path, page)
            .await
            .unwrap();
        assert_eq!(refused.status, 403, "{path}");
    }
    let profile = http::get(&process.place, ADMIN, "/debug/pprof/profile").await;
    assert_eq!(profile.unwrap().status, 404);
    let index = http::get(&process.place, ADMIN, "/").await.unwrap();
    assert!(index.head.contains("text/html") && index.body.contains("/config_dump"));
    let metrics = format!("{}:15020", process.place.ip);
    for path in ["/metrics", "/stats/prometheus"] {
        let page = http::get(&process.place, &metrics, path).await.unwrap();
        assert!(
            page.head.contains("text/plain; charset=utf-8"),
            "{}",
            page.head
        );
        assert!(page.body.ends_with("# EOF\n"));
    }
    let accept = "accept-encoding: gzip\r\naccept: application/openmetrics-text; version=1.0.0\r\n";
    let page = call(&process.place, &metrics, "GET", "/metrics", accept)
        .await
        .unwrap();
    assert!(
        page.head
            .contains("application/openmetrics-text;charset=utf-8;version=1.0.0")
    );
    assert!(!page.head.contains("content-encoding"));
    assert_eq!(
        http::get(&process.place, &metrics, "/x")
            .await
            .unwrap()
            .status,
        404
    );
    let ready = format!("{}:15021", process.place.ip);
    let page = http::get(&process.place, &ready, "/healthz/ready")
        .await
        .unwrap();
    assert_eq!(page.body, "ready\n");
    let posted = call(&process.place, &ready, "POST", "/healthz/ready", "").await;
    assert_eq!(posted.unwrap().status, 405);
}

/// What the panels of Istio's ztunnel dashboard ask for, after a little traffic.
pub(crate) async fn series() {
    let node = Node::new().await;
    // Discovery that is away: its series are there all the same.
    let settings = [("XDS_ADDRESS", ""), ("DNS_CAPTURE", "true")];
    let process = node.serving(Place::new("zt", "10.0.0.11"), &settings).await;
    assert_eq!(
        node.client.ask(&format!("{VIP}:80"), "x").await,
        "10.0.0.2:x"
    );
    let refused = node.client.ask("10.0.0.3:9", "x").await;
    assert_eq!(refused, "");
    query(&node.client).await;
    let address = format!("{}:15020", process.place.ip);
    let wanted = [
        "istio_build{component=\"ztunnel\",tag=\"",
        "istio_tcp_connections_opened_total{reporter=\"source\"",
        "istio_tcp_connections_closed_total{reporter=\"destination\"",
        "istio_tcp_connections_failed_total{reporter=\"destination\"",
        "istio_tcp_sent_bytes_total{",
        "istio_tcp_received_bytes_total{",
        "istio_tcp_sockets_open{reporter=\"",
        "istio_dns_requests_total{",
        "workload_manager_active_proxy_count 2",
        "workload_manager_pending_proxy_count 0",
        "workload_manager_proxies_started_total 2",
        "workload_manager_proxies_stopped_total 0",
        "process_open_fds ",
        "process_max_fds ",
        "tokio_num_workers 2",
        "tokio_num_alive_tasks ",
        "tokio_global_queue_depth ",
        "tokio_worker_total_busy_duration_seconds_total{worker=\"0\"}",
        "tokio_worker_park_count_total{worker=\"1\"}",
        "tokio_worker_park_unpark_count_total{worker=\"1\"}",
    ];
    let mut missing = Vec::new();
    for _ in 0..100 {
        let page = http::get(&process.place, &address, "/metrics")
            .await
            .unwrap();
        missing = wanted
            .into_iter()
            .filter(|s| !page.body.lines().any(|l| l.starts_with(s)))
            .collect();
        if missing.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not there: {missing:?}");
}

async fn query(place: &Place) {
    let mut tcp = place.connect("127.0.0.1:15053").await.unwrap();
    let message = b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x02ns\x03svc\0\0\x01\0\x01";
    let message = &message[..];
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut framed = message.to_vec();
    let len = u16::try_from(message.len() - 2).unwrap().to_be_bytes();
    framed[..2].copy_from_slice(&len);
    tcp.write_all(&framed).await.unwrap();
    let mut answer = [0; 4];
    tcp.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[2..], [0x12, 0x34]);
}

#[test]
fn the_version_names_the_profile_it_was_built_with() {
    // .../PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).and_then(std::path::Path::file_name);
    let version = ztunnel::admin::version();
    assert_eq!(version["buildProfile"].as_str(), folder.unwrap().to_str());
    assert!(version["rustVersion"].as_str().unwrap().starts_with("1."));
}
