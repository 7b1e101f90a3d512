//! Towards endpoints: which one a call means, who is said to call, with whose keys, and what is done for
//! one destination alone.

use std::net::SocketAddr;

use http_body_util::Full;
use isobar_hbone::ProxyHeader;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload as wire;
use isobar_tls::ca::Authority;
use proto::traffic_policy::{LoadBalancer, ProxyProtocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::bed::*;
use crate::outside::{AT, NAME, endpoint, ip, network, outside, rule, secure, tls, twins};

async fn ask(client: &mut Client, host: &str) -> Answer {
    let request = http::Request::get("/").header("host", host);
    let request = request.body(Full::default()).unwrap();
    client.send(request).await.unwrap()
}

#[test]
fn a_host_of_a_domain_is_the_one_that_is_asked_for() {
    run(|bed| async move {
        let port = twins(&bed).await;
        let pod = bed.backend("pod", "v1").await;
        for (name, address) in [
            ("a.wild.example", "127.0.2.1".to_owned()),
            ("b.wild.example", "127.0.2.2".to_owned()),
            ("pod.wild.example", pod.ip().to_string()),
            ("node.wild.example", "127.0.2.7".to_owned()),
            ("a.else.example", "127.0.2.1".to_owned()),
        ] {
            let mut zone = bed.zone.lock().unwrap();
            zone.insert(name.into(), vec![ip(&address)]);
        }
        let mut service = outside(wire::AppProtocol::Http11, port);
        service.hostname = "*.wild.example".into();
        let mut all = endpoint("*.wild.example", port);
        let ports = all.services.pop_first().unwrap().1;
        all.services.insert("default/*.wild.example".into(), ports);
        let on_host = wire::Workload {
            uid: "agent".into(),
            name: "agent".into(),
            namespace: "default".into(),
            addresses: vec![vec![127, 0, 2, 7]],
            network_mode: wire::NetworkMode::HostNetwork.into(),
            ..Default::default()
        };
        bed.know(service, vec![all, on_host]);
        let mut client = bed.client_to("client", AT).await;
        for (host, body) in [
            ("a.wild.example", "one / 0"),
            ("B.Wild.example:80", "two / 0"),
            ("a.wild.example", "one / 0"),
        ] {
            let answer = ask(&mut client, host).await;
            assert_eq!((answer.status, &*answer.body), (200, body), "{host}");
            bed.line().await;
        }
        for host in [
            "wild.example",
            "nobody.wild.example",
            "pod.wild.example",
            "node.wild.example",
            "a.else.example",
            "a.wild.example.else",
        ] {
            let answer = ask(&mut client, host).await;
            assert_eq!(answer.status, 503, "{host}");
            let line = bed.line().await;
            assert!(line.contains(" 503 UH "), "{line}");
        }
    });
}

#[test]
fn a_host_that_callers_name_is_never_left_out() {
    run(|bed| async move {
        let port = twins(&bed).await;
        let own = "a.wild.example";
        let at = vec![ip("127.0.2.1"), ip("127.0.2.2")];
        bed.zone.lock().unwrap().insert(own.into(), at);
        let policy = proto::TrafficPolicy {
            outlier_detection: Some(proto::OutlierDetection {
                consecutive_5xx: Some(1),
                max_ejection_percent: 100,
                ..proto::OutlierDetection::default()
            }),
            ..proto::TrafficPolicy::default()
        };
        let ejections = "isobar_outlier_ejections_total{";
        // Of a name in configuration both addresses are; of one that callers think of, none.
        for (host, last, left_out) in [("*.wild.example", 3, false), (own, 4, true)] {
            let mut service = outside(wire::AppProtocol::Http11, port);
            service.hostname = host.into();
            service.addresses = vec![network(&[240, 240, 0, last], None)];
            let mut all = endpoint(host, port);
            let ports = all.services.pop_first().unwrap().1;
            all.services.insert(format!("default/{host}"), ports);
            bed.know(service, vec![all]);
            let rule = proto::DestinationRule {
                namespace: "default".into(),
                name: "out".into(),
                services: vec![proto::ServiceRef {
                    namespace: "default".into(),
                    hostname: host.into(),
                }],
                traffic_policy: Some(policy.clone()),
                ..proto::DestinationRule::default()
            };
            bed.tables(|tables| tables.upsert_destination_rule(&rule).unwrap());
            let to = format!("240.240.0.{last}:80");
            let mut client = bed.client_to("client", &to).await;
            let mut last = 0;
            for _ in 0..4 {
                let request = http::Request::get("/fail").header("host", own);
                let request = request.body(Full::default()).unwrap();
                last = client.send(request).await.unwrap().status;
            }
            assert_eq!(last, if left_out { 503 } else { 500 }, "{host}");
            let metrics = bed.registry.encode();
            assert_eq!(metrics.contains(ejections), left_out, "{host}: {metrics}");
        }
    });
}

#[test]
fn the_address_that_was_dialled_is_called() {
    run(|bed| async move {
        let port = twins(&bed).await;
        let mut service = outside(wire::AppProtocol::Http11, port);
        service.addresses = ["127.0.2.2", "127.0.2.3", "240.240.0.1"]
            .map(|text| network(&text.parse::<std::net::Ipv4Addr>().unwrap().octets(), None))
            .into();
        let known = endpoint("127.0.2.1", port);
        bed.know(service.clone(), vec![known.clone()]);
        rule(
            &bed,
            proto::TrafficPolicy {
                load_balancer: LoadBalancer::Passthrough.into(),
                ..Default::default()
            },
        );
        for (to, status, name) in [
            // An address outside, whatever is known about endpoints.
            ("127.0.2.2:80", 200, "two"),
            ("127.0.2.3:80", 503, ""),
            // Addresses that the mesh gave out are nobody's.
            (AT, 200, "one"),
            ("out.example:80", 200, "one"),
        ] {
            let answer = bed.client_to("client", to).await.get("/").await;
            assert_eq!(answer.status, status, "{to} {answer:?}");
            assert!(answer.body.starts_with(name), "{to} {answer:?}");
        }
        // Without any endpoint nothing says that it is outside.
        let mut draft = bed.worker.world.store.load().draft();
        assert!(draft.remove_address(&known.uid));
        bed.worker.world.store.publish(draft.finish());
        let answer = bed.client_to("client", "127.0.2.2:80").await.get("/").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        // Pods are called as pods: past their node's proxy nobody knew who calls.
        let pod = wire::Workload {
            node: "node-1".into(),
            ..known
        };
        bed.know(service, vec![pod]);
        for to in ["127.0.2.2:80", "127.0.2.3:80", AT] {
            let answer = bed.client_to("client", to).await.get("/").await;
            assert!(answer.body.starts_with("one"), "{to} {answer:?}");
        }
    });
}

/// Answers each request with what was said before it, and counts connections.
async fn told(bed: &Bed) -> SocketAddr {
    let listener = TcpListener::bind("127.0.2.8:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let scope = bed.scope.clone();
    bed.scope.spawn("told", async move {
        let mut count = 0;
        while let Ok((mut tcp, _)) = listener.accept().await {
            count += 1;
            scope.spawn("told connection", async move {
                let mut all = Vec::new();
                // The binary form begins with what ends a request's head.
                while all.len() < 16 || !all.ends_with(b"\r\n\r\n") {
                    all.push(tcp.read_u8().await.unwrap());
                }
                let said = match ProxyHeader::parse(&all) {
                    Ok((header, _)) => header.line(),
                    Err(_) => String::from_utf8(all).unwrap(),
                };
                let body = format!("{count} {}", said.split("\r\n").next().unwrap());
                loop {
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    tcp.write_all(answer.as_bytes()).await.unwrap();
                    let mut next = Vec::new();
                    while !next.ends_with(b"\r\n\r\n") {
                        match tcp.read_u8().await {
                            Ok(byte) => next.push(byte),
                            Err(_) => return,
                        }
                    }
                }
            });
        }
    });
    address
}

#[test]
fn endpoints_are_told_who_called() {
    run(|bed| async move {
        let port = told(&bed).await.port();
        let at = vec![endpoint("127.0.2.8", port)];
        bed.know(outside(wire::AppProtocol::Http11, port), at);
        let with = |version: ProxyProtocol| proto::TrafficPolicy {
            proxy_protocol: version.into(),
            ..Default::default()
        };
        let mut connection = 0;
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            rule(&bed, with(version));
            for _ in 0..2 {
                // What one caller is said to have sent is not sent over another's connection.
                let mut client = bed.client_to("client", AT).await;
                connection += 1;
                for _ in 0..2 {
                    let answer = client.get("/").await.body;
                    let begins = format!("{connection} PROXY TCP4 127.0.0.1 240.240.0.1 ");
                    assert!(answer.starts_with(&begins), "{answer}");
                    assert!(answer.ends_with(" 80"), "{answer}");
                }
            }
        }
        rule(&bed, with(ProxyProtocol::None));
        let answer = bed.client_to("client", AT).await.get("/").await;
        assert_eq!(answer.body, format!("{} GET / HTTP/1.1", connection + 1));
    });
}

#[test]
fn what_a_secret_holds_is_shown_and_trusted_until_it_is_gone() {
    run(|bed| async move {
        let authority = Authority::generate("outside").unwrap();
        let address = secure(&bed, &authority, &[NAME]).await;
        let port = address.port();
        let at = vec![endpoint("127.0.2.9", port)];
        bed.know(outside(wire::AppProtocol::Http2, port), at);
        let mut client = bed.client_to("client", AT).await;
        tls(
            &bed,
            proto::EndpointTls {
                authority: "default/keys-cacert".into(),
                ..Default::default()
            },
        );
        assert_eq!(client.get("/").await.status, 503, "there is no such Secret");
        let credentials = bed.worker.world.credentials.clone();
        let roots = |authority: &Authority| proto::Credential {
            namespace: "default".into(),
            name: "keys-cacert".into(),
            authority: authority.roots().to_owned(),
            ..proto::Credential::default()
        };
        credentials.upsert(&roots(&authority)).unwrap();
        assert_eq!(client.get("/").await.body, "secret");
        let other = Authority::generate("other").unwrap();
        credentials.upsert(&roots(&other)).unwrap();
        assert_eq!(client.get("/").await.status, 503, "it is another's server");
        credentials.upsert(&roots(&authority)).unwrap();
        assert_eq!(client.get("/").await.body, "secret");
        let removed = ["default/keys-cacert".to_owned()];
        credentials.handler().apply(&[], &removed);
        assert_eq!(client.get("/").await.status, 503, "it is gone");
    });
}

#[test]
fn a_server_may_be_anybody_where_the_rule_says_so() {
    run(|bed| async move {
        let authority = Authority::generate("outside").unwrap();
        let port = secure(&bed, &authority, &[NAME]).await.port();
        let at = vec![endpoint("127.0.2.9", port)];
        bed.know(outside(wire::AppProtocol::Http2, port), at);
        let mut client = bed.client_to("client", AT).await;
        for (unverified, status) in [(true, 200), (false, 503)] {
            tls(
                &bed,
                proto::EndpointTls {
                    sni: "else.example".into(),
                    unverified,
                    ..Default::default()
                },
            );
            assert_eq!(client.get("/").await.status, status, "{unverified}");
        }
    });
}

#[test]
fn a_rewrite_leads_nowhere_but_where_the_rule_says() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut rule = forward("public", vec![to("v1", 1)]);
        rule.matches = vec![on_prefix("/pub")];
        rule.rewrite = Some(proto::HttpRewrite {
            uri: "/public/".into(),
            ..Default::default()
        });
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        assert_eq!(
            client.get("/pubx?a=/../b").await.body,
            "a /public/x?a=/../b 0"
        );
        assert_eq!(client.get("/pub./x").await.body, "a /public/x 0");
        assert_eq!(client.get("/pub...").await.body, "a /public/... 0");
        for path in ["/pub../admin", "/pub..", "/pub%2e./admin"] {
            assert_eq!(client.get(path).await.status, 400, "{path}");
        }
    });
}

#[test]
fn a_destination_has_rewrites_redirects_and_copies_of_its_own() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.backend("b", "v2").await;
        let rule = |prefix: &str, own: proto::WeightedDestination| {
            let mut made = forward(prefix, vec![own]);
            made.matches = vec![on_prefix(prefix)];
            made.rewrite = Some(proto::HttpRewrite {
                uri: "/of-rule".into(),
                ..Default::default()
            });
            made
        };
        let rewritten = proto::WeightedDestination {
            rewrite: Some(proto::HttpRewrite {
                uri: "/own".into(),
                ..Default::default()
            }),
            ..to("v1", 1)
        };
        let redirected = proto::WeightedDestination {
            redirect: Some(proto::HttpRedirect {
                uri: "/else".into(),
                code: 302,
                ..Default::default()
            }),
            ..to("v1", 1)
        };
        let copied = proto::WeightedDestination {
            mirrors: vec![proto::Mirror {
                destination: to("v2", 0).destination,
                percentage: 100.0,
            }],
            ..to("v1", 1)
        };
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let rules = vec![
                rule("/rewritten", rewritten),
                rule("/redirected", redirected),
                rule("/copied", copied),
                rule("/plain", to("v1", 1)),
            ];
            t.upsert_virtual_service(&virtual_service(rules)).unwrap();
        });
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/rewritten/x").await.body, "a /own/x 0");
        assert_eq!(client.get("/plain").await.body, "a /of-rule 0");
        let answer = client.get("/redirected").await;
        assert_eq!(answer.status, 302);
        assert_eq!(answer.headers["location"], "http://svc:8080/else");
        let copies = || {
            let sent = "isobar_mirrored_requests_total{outcome=\"sent\"} 1";
            bed.registry.encode().contains(sent)
        };
        assert!(!copies());
        assert_eq!(client.get("/copied").await.body, "a /of-rule 0");
        while !copies() {
            tokio::task::yield_now().await;
        }
    });
}
