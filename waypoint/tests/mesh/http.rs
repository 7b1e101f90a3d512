use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::*;

#[test]
fn requests_go_round_all_endpoints() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.backend("b", "v1").await;
        bed.backend("c", "v2").await;
        let mut rule = subsets();
        rule.traffic_policy = Some(proto::TrafficPolicy {
            load_balancer: proto::traffic_policy::LoadBalancer::RoundRobin.into(),
            ..Default::default()
        });
        bed.tables(|t| t.upsert_destination_rule(&rule).unwrap());
        let mut client = bed.client("client").await;
        let mut answers = Vec::new();
        for _ in 0..30 {
            answers.push(client.get("/x?y=1").await);
        }
        let counts = tally(&answers);
        assert!(
            counts.values().all(|n| *n == 10) && counts.len() == 3,
            "{counts:?}"
        );
        let answer = &answers[0];
        assert_eq!(answer.status, 200);
        assert!(answer.body.ends_with(" /x?y=1 0"), "{}", answer.body);
        assert_eq!(answer.headers["server"], "isobar");
        assert!(answer.headers.contains_key("x-envoy-upstream-service-time"));
        assert!(answer.headers.contains_key("x-got-x-request-id"));
        assert_eq!(answer.headers["x-got-host"], "svc:8080");
        let line = bed.line().await;
        assert!(
            line.contains("\"GET /x?y=1 HTTP/1.1\" 200 - via_upstream"),
            "{line}"
        );
        assert!(line.contains("inbound-vip|8080|http|svc.default"), "{line}");
        let metrics = bed.registry.encode();
        assert!(
            metrics
                .contains("istio_requests_total{reporter=\"waypoint\",source_workload=\"client\""),
            "{metrics}"
        );
        assert!(
            metrics.contains("source_principal=\"spiffe://cluster.local/ns/default/sa/client\"")
        );
        assert!(metrics.contains("response_code=\"200\""));
        assert!(metrics.contains("connection_security_policy=\"mutual_tls\""));
    });
}

#[test]
fn weights_subsets_and_changes_under_load() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.backend("b", "v2").await;
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let split = vec![to("v1", 80), to("v2", 20)];
            t.upsert_virtual_service(&virtual_service(vec![forward("split", split)]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        let mut answers = Vec::new();
        for _ in 0..2000 {
            answers.push(client.get("/").await);
        }
        assert!(answers.iter().all(|a| a.status == 200));
        let v1 = tally(&answers)["a"];
        assert!((1520..=1680).contains(&v1), "{v1} of 2000");
        bed.tables(|t| {
            let all = vec![to("v1", 0), to("v2", 100)];
            t.upsert_virtual_service(&virtual_service(vec![forward("split", all)]))
                .unwrap();
        });
        let mut after = Vec::new();
        for _ in 0..100 {
            after.push(client.get("/").await);
        }
        assert_eq!(tally(&after)["b"], 100);
    });
}

#[test]
fn what_has_no_way_is_told_apart() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let rule = |prefix: &str, subset: &str| proto::HttpRoute {
                matches: vec![on_prefix(prefix)],
                ..forward(subset, vec![to(subset, 0)])
            };
            let mut lost = rule("/lost", "");
            lost.action = Some(proto::http_route::Action::Forward(proto::HttpForward {
                destinations: vec![proto::WeightedDestination {
                    destination: Some(proto::Destination {
                        host: "nowhere".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }],
            }));
            let rules = vec![
                rule("/one", "v1"),
                rule("/two", "v2"),
                rule("/odd", "v9"),
                lost,
            ];
            t.upsert_virtual_service(&virtual_service(rules)).unwrap();
        });
        let mut client = bed.client("client").await;
        for (path, status, flag, body) in [
            ("/one", 200, " - ", "a /one 0"),
            ("/two", 503, " UH ", "no healthy upstream"),
            ("/odd", 503, " NC ", ""),
            ("/lost", 503, " NC ", ""),
            ("/other", 404, " NR ", ""),
        ] {
            let answer = client.get(path).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (status, body),
                "{path}"
            );
            let line = bed.line().await;
            assert!(line.contains(&format!(" {status}{flag}")), "{line}");
        }
    });
}

#[test]
fn policies_refuse_before_the_endpoint_hears_of_it() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.tables(|t| {
            t.upsert_policy(&deny_path("/admin"));
            t.upsert_policy(&allow_account("client"));
        });
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/").await.status, 200);
        bed.line().await;
        for path in [
            "/admin",
            "/%61dmin",
            "/x/../admin",
            "/./admin/x",
            "/admin?q",
        ] {
            let answer = client.get(path).await;
            assert_eq!(answer.status, 403, "{path}");
            assert_eq!(answer.body, "RBAC: access denied");
            let line = bed.line().await;
            assert!(
                line.contains(
                    "rbac_access_denied_matched_policy[ns[default]-policy[no-admin]-rule[0]]"
                ),
                "{line}"
            );
        }
        let mut other = bed.client("other").await;
        assert_eq!(other.get("/").await.status, 403);
        assert!(bed.line().await.contains("matched_policy[none]"));
        // A change of policy is in force for the next request of an open connection.
        bed.tables(|t| t.remove_policy("default/only"));
        assert_eq!(other.get("/").await.status, 200);
        let mut bad = deny_path("/never");
        bad.unenforceable = "cannot be done".into();
        bed.tables(|t| t.upsert_policy(&bad));
        assert_eq!(client.get("/").await.status, 403);
    });
}

#[test]
fn only_what_this_waypoint_serves_is_taken() {
    run(|bed| async move {
        let pod = bed.backend("a", "v1").await;
        bed.backend("b", "v1").await;
        for authority in [
            "10.96.0.9:8080",
            "10.96.0.1:9999",
            "elsewhere.example:80",
            "127.0.0.1:80",
        ] {
            assert!(
                bed.tunnel("client", authority).await.is_err(),
                "{authority}"
            );
        }
        let mut by_name = bed.client_to("client", &format!("{HOST}:8080")).await;
        assert_eq!(by_name.get("/").await.status, 200);
        // A pod's own address leads to that pod only.
        let mut by_address = bed.client_to("client", &pod.to_string()).await;
        for _ in 0..4 {
            assert!(by_address.get("/").await.body.starts_with("a "));
        }
        bed.tables(isobar_route::Draft::clear_waypoint);
        assert!(bed.tunnel("client", VIP).await.is_err());
    });
}

#[test]
fn callers_cannot_speak_for_the_mesh() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut client = bed.client("client").await;
        let answer = client
            .with(
                "/",
                &[
                    ("x-forwarded-client-cert", "By=me"),
                    ("x-envoy-original-path", "/admin"),
                    ("x-forwarded-for", "1.2.3.4"),
                    ("connection", "x-gone, keep-alive"),
                    ("x-gone", "1"),
                    ("te", "trailers"),
                    ("x-request-id", "mine"),
                ],
            )
            .await;
        for gone in [
            "x-forwarded-client-cert",
            "x-envoy-original-path",
            "x-gone",
            "te",
            "connection",
        ] {
            assert!(
                !answer.headers.contains_key(format!("x-got-{gone}")),
                "{gone}"
            );
        }
        assert_eq!(answer.headers["x-got-x-forwarded-for"], "1.2.3.4");
        assert_eq!(answer.headers["x-got-x-forwarded-proto"], "http");
        assert_eq!(answer.headers["x-got-x-request-id"], "mine");
    });
}

#[test]
fn ambiguous_requests_are_refused() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        for (head, status) in [
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", "426"),
            (
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
                "400",
            ),
            (
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\nabc",
                "400",
            ),
            ("GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
            ("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ] {
            let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
            tunnel.write_all(head.as_bytes()).await.unwrap();
            let mut answer = vec![0; 12];
            tunnel.read_exact(&mut answer).await.unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.ends_with(status), "{head:?} -> {answer}");
        }
    });
}

#[test]
fn nothing_follows_a_request_whose_end_is_in_doubt() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let twice = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
            transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /next HTTP/1.1\r\nhost: a\r\n\r\n";
        tunnel.write_all(twice).await.unwrap();
        let mut said = Vec::new();
        // A reset is an end too.
        let _ = tunnel.read_to_end(&mut said).await;
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with("HTTP/1.1 400"), "{said}");
        assert_eq!(said.matches("HTTP/1.1").count(), 1, "{said}");
    });
}

#[test]
fn a_length_beside_chunks_is_not_passed_on() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 30\r\ntransfer-encoding: chunked\r\n\r\n";
        tunnel.write_all(head.as_bytes()).await.unwrap();
        tunnel.write_all(b"2\r\nab\r\n0\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"a / 2") {
            answer.push(tunnel.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(!answer.contains("x-got-content-length"), "{answer}");
        assert!(
            answer.contains("x-got-transfer-encoding: chunked"),
            "{answer}"
        );
    });
}

#[test]
fn an_empty_path_before_a_query_arrives_as_a_slash() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let head = b"GET http://a?x=1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        tunnel.write_all(head).await.unwrap();
        let mut answer = String::new();
        tunnel.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("a /?x=1 0"), "{answer}");
    });
}

/// `/old` becomes `/new` on another host, with header edits both ways.
fn rewriting() -> proto::HttpRoute {
    let mut rewrite = forward("rewrite", vec![to("v1", 0)]);
    rewrite.matches = vec![on_prefix("/old")];
    rewrite.rewrite = Some(proto::HttpRewrite {
        uri: "/new".into(),
        authority: "other".into(),
        ..Default::default()
    });
    rewrite.headers = Some(proto::Headers {
        request: Some(proto::HeaderOperations {
            set: [("x-set".to_owned(), "1".to_owned())].into(),
            remove: vec!["x-drop".into()],
            ..Default::default()
        }),
        response: Some(proto::HeaderOperations {
            add: [("x-added".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        }),
    });
    rewrite
}

#[test]
fn rules_answer_redirect_rewrite_and_time_out() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let silent = tokio::net::TcpListener::bind("127.0.1.9:0").await.unwrap();
        bed.known_backend("silent", "v2", silent.local_addr().unwrap());
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let rewrite = rewriting();
            let redirect = proto::HttpRoute {
                matches: vec![on_prefix("/go")],
                action: Some(proto::http_route::Action::Redirect(proto::HttpRedirect {
                    uri: "/there".into(),
                    code: 302,
                    ..Default::default()
                })),
                ..Default::default()
            };
            let direct = proto::HttpRoute {
                matches: vec![on_prefix("/tea")],
                action: Some(proto::http_route::Action::DirectResponse(
                    proto::DirectResponse {
                        status: 418,
                        body: b"short".to_vec(),
                    },
                )),
                ..Default::default()
            };
            let mut slow = forward("slow", vec![to("v2", 0)]);
            slow.timeout = Some(prost_types::Duration {
                seconds: 0,
                nanos: 50_000_000,
            });
            t.upsert_virtual_service(&virtual_service(vec![rewrite, redirect, direct, slow]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        let answer = client.with("/old/p?q=1", &[("x-drop", "1")]).await;
        assert_eq!(answer.body, "a /new/p?q=1 0");
        assert_eq!(answer.headers["x-got-host"], "other");
        assert_eq!(answer.headers["x-got-x-set"], "1");
        assert_eq!(answer.headers["x-got-x-envoy-original-path"], "/old/p?q=1");
        assert_eq!(answer.headers["x-added"], "2");
        assert!(!answer.headers.contains_key("x-got-x-drop"));
        let answer = client.get("/go?x=1").await;
        assert_eq!(answer.status, 302);
        assert_eq!(answer.headers["location"], "http://svc:8080/there?x=1");
        let answer = client.get("/tea").await;
        assert_eq!((answer.status, answer.body.as_str()), (418, "short"));
        let answer = client.get("/slow").await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (504, "upstream request timeout")
        );
        for _ in 0..3 {
            bed.line().await;
        }
        assert!(bed.line().await.contains(" 504 UT "));
    });
}

#[test]
fn a_dead_endpoint_is_tried_once_and_left() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let gone = {
            let listener = tokio::net::TcpListener::bind("127.0.1.9:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        bed.known_backend("dead", "v1", gone);
        let mut client = bed.client("client").await;
        for _ in 0..10 {
            assert_eq!(client.get("/").await.status, 200);
        }
        bed.remove_backend("a");
        let answer = client.get("/").await;
        assert_eq!(answer.status, 503);
        assert!(
            answer.body.starts_with("upstream connect error"),
            "{}",
            answer.body
        );
        bed.remove_backend("dead");
        assert_eq!(client.get("/").await.body, "no healthy upstream");
    });
}

#[test]
fn http2_and_grpc_go_as_http2() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.publish_mesh(AppProtocol::Http2);
        let stream = bed.tunnel("client", VIP).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(Local, TokioIo::new(stream))
                .await
                .unwrap();
        bed.scope.spawn("client", async move {
            let _ = connection.await;
        });
        let request = |path: &str, kind: &str| {
            http::Request::post(format!("http://svc:8080{path}"))
                .header("content-type", kind)
                .body(Full::new(Bytes::from_static(b"12345")))
                .unwrap()
        };
        let response = sender
            .send_request(request("/h2", "text/plain"))
            .await
            .unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "a /h2 5");
        assert!(bed.line().await.contains("HTTP/2\" 200"));
        bed.tables(|t| t.upsert_policy(&deny_path("/secret.S")));
        let response = sender
            .send_request(request("/secret.S/M", "application/grpc"))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "7");
        bed.line().await;
        let metrics = bed.registry.encode();
        assert!(metrics.contains("request_protocol=\"grpc\""));
        assert!(metrics.contains("grpc_response_status=\"7\""));
    });
}

#[test]
fn bodies_pass_and_a_drain_lets_requests_finish() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut client = bed.client("client").await;
        let body = Full::new(Bytes::from(vec![7; 3_000_000]));
        let request = http::Request::post("/up")
            .header("host", "svc")
            .body(body)
            .unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.body, "a /up 3000000");
        bed.line().await;
        let release = Release::new(&bed).await;
        let mut slow = bed.client("client").await;
        let pending = async {
            let answer = slow.get("/").await;
            (answer.status, answer.body)
        };
        let drain = async {
            release.arrived().await;
            bed.scope.drain();
            release.answer();
        };
        let ((status, body), ()) = tokio::join!(pending, drain);
        assert_eq!((status, body.as_str()), (200, "late"));
    });
}

/// A back end that answers its one request when it is told to.
struct Release {
    arrived: std::rc::Rc<tokio::sync::Notify>,
    go: std::rc::Rc<tokio::sync::Notify>,
}

impl Release {
    async fn new(bed: &Bed) -> Self {
        bed.remove_backend("a");
        let listener = tokio::net::TcpListener::bind("127.0.1.8:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        bed.known_backend("late", "v1", address);
        let this = Self {
            arrived: std::rc::Rc::default(),
            go: std::rc::Rc::default(),
        };
        let (arrived, go) = (this.arrived.clone(), this.go.clone());
        bed.scope.spawn("late", async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut seen = [0; 4];
            tcp.read_exact(&mut seen).await.unwrap();
            arrived.notify_one();
            go.notified().await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
        this
    }

    async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn answer(&self) {
        self.go.notify_one();
    }
}

#[test]
fn websockets_change_protocol_end_to_end() {
    run(|bed| async move {
        let listener = tokio::net::TcpListener::bind("127.0.1.7:0").await.unwrap();
        bed.known_backend("ws", "v1", listener.local_addr().unwrap());
        bed.scope.spawn("ws", async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tcp.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            assert!(head.contains("upgrade: websocket"), "{head}");
            tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .await
                .unwrap();
            let mut bytes = [0; 4];
            tcp.read_exact(&mut bytes).await.unwrap();
            tcp.write_all(&bytes).await.unwrap();
        });
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        tunnel
            .write_all(b"GET /chat HTTP/1.1\r\nhost: svc\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tunnel.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        tunnel.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        tunnel.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
        drop(tunnel);
        assert!(bed.line().await.contains("\"GET /chat HTTP/1.1\" 101"));
    });
}
