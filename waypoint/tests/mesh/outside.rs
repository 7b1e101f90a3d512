//! What lies outside the cluster, as ServiceEntries tell it: by host names, by addresses that stand for
//! themselves, behind TLS.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload as wire;
use isobar_tls::ca::Authority;
use isobar_tls::control;
use tokio::net::TcpListener;

use crate::bed::*;

pub(crate) const NAME: &str = "out.example";
pub(crate) const AT: &str = "240.240.0.1:80";

pub(crate) fn outside(protocol: wire::AppProtocol, target: u16) -> wire::Service {
    wire::Service {
        name: "out".into(),
        hostname: NAME.into(),
        addresses: vec![network(&[240, 240, 0, 1], None)],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: target.into(),
            app_protocol: protocol.into(),
        }],
        ..Default::default()
    }
}

pub(crate) fn network(address: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: String::new(),
        address: address.to_vec(),
        length,
    }
}

/// An endpoint of it by host name, or by address.
pub(crate) fn endpoint(name: &str, target: u16) -> wire::Workload {
    let ip = name.parse::<IpAddr>().ok();
    let ports = vec![wire::Port {
        service_port: 80,
        target_port: target.into(),
        app_protocol: 0,
    }];
    wire::Workload {
        uid: format!("out/{name}"),
        name: "out".into(),
        namespace: "default".into(),
        addresses: ip
            .map(|ip| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            })
            .into_iter()
            .collect(),
        hostname: if ip.is_none() {
            name.into()
        } else {
            String::new()
        },
        services: BTreeMap::from([(format!("default/{NAME}"), wire::PortList { ports })]),
        ..Default::default()
    }
}

/// Two back ends with the same port.
pub(crate) async fn twins(bed: &Bed) -> u16 {
    for _ in 0..20 {
        let one = TcpListener::bind("127.0.2.1:0").await.unwrap();
        let port = one.local_addr().unwrap().port();
        if let Ok(two) = TcpListener::bind(("127.0.2.2", port)).await {
            bed.scope.spawn("one", serve("one", one, bed.scope.clone()));
            bed.scope.spawn("two", serve("two", two, bed.scope.clone()));
            return port;
        }
    }
    panic!("no port is free twice");
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_address_of_a_host_name_is_an_endpoint() {
    run(|bed| async move {
        let port = twins(&bed).await;
        let none = endpoint("real.example", port);
        bed.know(outside(wire::AppProtocol::Http11, port), vec![none]);
        let mut client = bed.client_to("client", AT).await;
        let answer = client.get("/").await;
        assert_eq!((answer.status, &*answer.body), (503, "no healthy upstream"));
        let line = bed.line().await;
        assert!(line.contains(" 503 UH "), "{line}");

        let both = vec![ip("127.0.2.1"), ip("127.0.2.2")];
        let known = endpoint("other.example", port);
        bed.zone
            .lock()
            .unwrap()
            .insert("other.example".into(), both);
        bed.know(outside(wire::AppProtocol::Http11, port), vec![known]);
        let mut answers = Vec::new();
        for _ in 0..40 {
            answers.push(client.get("/").await);
        }
        let counts = tally(&answers);
        assert_eq!(counts.values().sum::<usize>(), 40, "{counts:?}");
        assert!(counts["one"] > 4 && counts["two"] > 4, "{counts:?}");
    });
}

#[test]
fn addresses_of_host_names_are_left_out_and_tried_again_one_by_one() {
    run(|bed| async move {
        let port = twins(&bed).await;
        // Nobody listens at the third.
        let all = ["127.0.2.1", "127.0.2.2", "127.0.2.3"].map(ip).into();
        bed.zone.lock().unwrap().insert("real.example".into(), all);
        let known = endpoint("real.example", port);
        bed.know(outside(wire::AppProtocol::Http11, port), vec![known]);
        rule(
            &bed,
            proto::TrafficPolicy {
                load_balancer: proto::traffic_policy::LoadBalancer::RoundRobin.into(),
                outlier_detection: Some(proto::OutlierDetection {
                    consecutive_5xx: Some(1),
                    max_ejection_percent: 100,
                    ..Default::default()
                }),
                ..Default::default()
            },
        );
        let mut client = bed.client_to("client", AT).await;
        for _ in 0..12 {
            assert_eq!(client.get("/").await.status, 200);
        }
        let metrics = bed.registry.encode();
        let ejected = "isobar_outlier_ejections_total{service=\"default/out.example\"} 1";
        assert!(metrics.contains(ejected), "{metrics}");
    });
}

#[test]
fn an_address_that_stands_for_itself_is_called_itself() {
    run(|bed| async move {
        let port = twins(&bed).await;
        let mut service = outside(wire::AppProtocol::Http11, 0);
        service.addresses = vec![network(&[127, 0, 2, 0], Some(24))];
        service.ports[0].target_port = port.into();
        service.load_balancing = Some(wire::LoadBalancing {
            mode: wire::load_balancing::Mode::Passthrough.into(),
            ..Default::default()
        });
        bed.know(service, Vec::new());
        for (to, name) in [("127.0.2.1:80", "one"), ("127.0.2.2:80", "two")] {
            let answer = bed.client_to("client", to).await.get("/").await;
            assert!(answer.body.starts_with(name), "{answer:?}");
        }
        // By name there is no address to call.
        let by_name = format!("{NAME}:80");
        let answer = bed.client_to("client", &by_name).await.get("/").await;
        assert_eq!(answer.status, 503);
        assert!(bed.tunnel("client", "127.0.2.1:81").await.is_err());
        assert!(bed.tunnel("client", "127.0.3.1:80").await.is_err());
    });
}

fn out() -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: "default".into(),
        hostname: NAME.into(),
    }
}

pub(crate) fn rule(bed: &Bed, policy: proto::TrafficPolicy) {
    let rule = proto::DestinationRule {
        namespace: "default".into(),
        name: "out".into(),
        services: vec![out()],
        traffic_policy: Some(policy),
        ..Default::default()
    };
    bed.tables(|t| t.upsert_destination_rule(&rule).unwrap());
}

pub(crate) fn tls(bed: &Bed, tls: proto::EndpointTls) {
    rule(
        bed,
        proto::TrafficPolicy {
            tls: Some(tls),
            ..Default::default()
        },
    );
}

fn trusting(roots: &Path) -> proto::EndpointTls {
    proto::EndpointTls {
        ca_certificates: roots.to_str().unwrap().into(),
        ..Default::default()
    }
}

/// Speaks HTTP/2 in TLS.
pub(crate) async fn secure(bed: &Bed, authority: &Authority, names: &[&str]) -> SocketAddr {
    let day = Duration::from_secs(86_400);
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = authority.issue_server(&names, day).unwrap();
    let config = control::server_config(&certificate).unwrap();
    let listener = TcpListener::bind("127.0.2.9:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let scope = bed.scope.clone();
    bed.scope.spawn("secure", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let config = config.clone();
            scope.spawn("secure connection", async move {
                let Ok(stream) = config.accept(tcp).await else {
                    return;
                };
                let service = hyper::service::service_fn(|_| async {
                    let body = http_body_util::Full::new(bytes::Bytes::from("secret"));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
                // Ends with its peer.
                let _ = hyper::server::conn::http2::Builder::new(Local)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

#[test]
fn tls_is_begun_and_the_server_verified() {
    run(|bed| async move {
        let authority = Authority::generate("outside").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, authority.roots()).unwrap();
        let address = secure(&bed, &authority, &[NAME, "alias.example"]).await;
        let port = address.port();
        let at = vec![endpoint("127.0.2.9", port)];
        bed.know(outside(wire::AppProtocol::Http2, port), at);
        let mut client = bed.client_to("client", AT).await;
        let trusting = trusting(&roots);
        for (rule, status) in [
            (trusting.clone(), 200),
            // Roots of the system, or none.
            (proto::EndpointTls::default(), 503),
            (
                proto::EndpointTls {
                    sni: "alias.example".into(),
                    ..trusting.clone()
                },
                200,
            ),
            (
                proto::EndpointTls {
                    sni: "else.example".into(),
                    ..trusting.clone()
                },
                503,
            ),
            (
                proto::EndpointTls {
                    sni: "else.example".into(),
                    subject_alt_names: vec!["no.example".into(), "alias.example".into()],
                    ..trusting.clone()
                },
                200,
            ),
            (
                proto::EndpointTls {
                    subject_alt_names: vec!["no.example".into()],
                    ..trusting.clone()
                },
                503,
            ),
            (
                proto::EndpointTls {
                    refuse: "no".into(),
                    ..trusting.clone()
                },
                503,
            ),
            // Plain HTTP/2 to who wants TLS.
            (
                proto::EndpointTls {
                    off: true,
                    ..Default::default()
                },
                503,
            ),
            (trusting.clone(), 200),
        ] {
            tls(&bed, rule.clone());
            let answer = client.get("/").await;
            assert_eq!(answer.status, status, "{rule:?} {answer:?}");
            let line = bed.line().await;
            assert!(status == 200 || line.contains(" 503 U"), "{line}");
        }
        // What cannot be read leaves what was read.
        std::fs::remove_file(roots).unwrap();
        assert_eq!(client.get("/").await.body, "secret");
    });
}

#[test]
fn a_later_try_may_leave_the_locality() {
    run(|bed| async move {
        let port = twins(&bed).await;
        let place = |region: &str| {
            Some(wire::Locality {
                region: region.into(),
                ..Default::default()
            })
        };
        let near = wire::Workload {
            locality: place("near"),
            // Nobody listens there.
            ..endpoint("127.0.2.3", port)
        };
        let far = wire::Workload {
            locality: place("far"),
            ..endpoint("127.0.2.1", port)
        };
        let client = wire::Workload {
            uid: "client".into(),
            name: "client".into(),
            namespace: "default".into(),
            service_account: "client".into(),
            addresses: vec![vec![127, 0, 0, 1]],
            locality: place("near"),
            ..Default::default()
        };
        bed.know(
            outside(wire::AppProtocol::Http11, port),
            vec![near, far, client],
        );
        rule(
            &bed,
            proto::TrafficPolicy {
                locality: Some(proto::LocalityBalancing::default()),
                outlier_detection: Some(proto::OutlierDetection {
                    consecutive_5xx: Some(0),
                    ..Default::default()
                }),
                ..Default::default()
            },
        );
        let mut client = bed.client_to("client", AT).await;
        for (remote, status) in [(false, 503), (true, 200)] {
            let mut route = forward("out", Vec::new());
            route.action = Some(proto::http_route::Action::Forward(proto::HttpForward {
                destinations: vec![proto::WeightedDestination {
                    destination: Some(proto::Destination {
                        service: Some(out()),
                        ..Default::default()
                    }),
                    weight: 1,
                    ..Default::default()
                }],
            }));
            route.retries = Some(proto::Retries {
                attempts: 1,
                remote_localities: remote,
                ..Default::default()
            });
            let object = proto::VirtualService {
                parents: vec![out()],
                ..virtual_service(vec![route])
            };
            bed.tables(|t| t.upsert_virtual_service(&object).unwrap());
            let answer = client.get("/").await;
            assert_eq!(answer.status, status, "{answer:?}");
        }
    });
}

#[test]
fn an_address_of_a_pod_is_reached_as_the_pod() {
    run(|first| async move {
        drop(first);
        let listener = TcpListener::bind("127.0.1.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let bed = Bed::over_hbone(port);
        let application = bed.backend("a", "v1").await;
        // Who is not its node's proxy is nobody to the waypoint.
        node_proxy(&bed, listener, "server", application).await;
        let target = application.port();
        bed.zone
            .lock()
            .unwrap()
            .insert("pod.example".into(), vec![ip("127.0.1.1")]);
        for name in ["127.0.1.1", "pod.example"] {
            let told = endpoint(name, target);
            bed.know(outside(wire::AppProtocol::Http11, target), vec![told]);
            let mut client = bed.client_to("client", AT).await;
            assert_eq!(client.get("/in").await.body, "a /in 0");
            let line = bed.line().await;
            assert!(line.contains("127.0.1.1:"), "{line}");
            let metrics = bed.registry.encode();
            let pod = "destination_principal=\"spiffe://cluster.local/ns/default/sa/server\"";
            assert!(metrics.contains(pod), "{metrics}");
        }
    });
}
