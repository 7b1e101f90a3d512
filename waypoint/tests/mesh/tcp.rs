use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::bed::*;

async fn greeter(bed: &Bed) {
    let listener = TcpListener::bind("127.0.1.5:0").await.unwrap();
    bed.known_backend("greeter", "v1", listener.local_addr().unwrap());
    bed.scope.spawn("greeter", async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            drop(tokio::task::spawn_local(async move {
                tcp.write_all(b"hello").await.unwrap();
                let mut bytes = Vec::new();
                if tcp.read_to_end(&mut bytes).await.is_ok() {
                    // The other side may have gone.
                    let _ = tcp.write_all(&bytes).await;
                }
            }));
        }
    });
}

#[test]
fn opaque_bytes_pass_both_ways_also_when_the_server_speaks_first() {
    run(|bed| async move {
        greeter(&bed).await;
        for protocol in [AppProtocol::Tcp, AppProtocol::Unknown] {
            bed.publish_mesh(protocol);
            let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
            let mut hello = [0; 5];
            tunnel.read_exact(&mut hello).await.unwrap();
            assert_eq!(&hello, b"hello");
            tunnel.write_all(b"\x00bytes").await.unwrap();
            tunnel.shutdown().await.unwrap();
            let mut rest = Vec::new();
            tunnel.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"\x00bytes");
            let line = bed.line().await;
            assert!(line.contains("\"- - -\" 0 - - - \"-\" 6 11 "), "{line}");
        }
        let metrics = bed.registry.encode();
        assert!(metrics.contains("istio_tcp_connections_opened_total{reporter=\"waypoint\""));
        assert!(metrics.contains("istio_tcp_connections_closed_total"));
    });
}

#[test]
fn policies_hold_for_opaque_connections_and_cut_open_ones() {
    run(|bed| async move {
        greeter(&bed).await;
        bed.publish_mesh(AppProtocol::Tcp);
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let mut hello = [0; 5];
        tunnel.read_exact(&mut hello).await.unwrap();
        bed.tables(|t| t.upsert_policy(&allow_account("other")));
        // The open connection ends.
        let mut rest = Vec::new();
        let _ = tunnel.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        assert!(bed.line().await.contains(" RBAC "));
        // A new one does not start.
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let _ = tunnel.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        assert!(bed.line().await.contains("matched_policy[none]"));
        let mut allowed = bed.tunnel("other", VIP).await.unwrap();
        allowed.read_exact(&mut hello).await.unwrap();
    });
}

/// Says its name to whoever says anything.
async fn namer(bed: &Bed, name: &'static str, version: &'static str, at: &str) {
    let listener = TcpListener::bind(at).await.unwrap();
    bed.known_backend(name, version, listener.local_addr().unwrap());
    bed.scope.spawn("namer", async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            drop(tokio::task::spawn_local(async move {
                if tcp.read_u8().await.is_ok() {
                    let _ = tcp.write_all(name.as_bytes()).await;
                    let _ = tcp.shutdown().await;
                    // Closed with something unread it would be a reset, and the name lost.
                    let _ = tcp.read_to_end(&mut Vec::new()).await;
                }
            }));
        }
    });
}

#[test]
fn a_destination_without_a_port_has_the_services_only_one() {
    run(|bed| async move {
        greeter(&bed).await;
        let listener = TcpListener::bind("127.0.1.6:0").await.unwrap();
        let other = bed.other_service(listener.local_addr().unwrap());
        bed.scope.spawn("other", async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.write_all(b"other").await.unwrap();
            // Until the other side is done.
            let _ = tcp.read_u8().await;
        });
        let mut object = virtual_service(vec![]);
        object.tcp = vec![proto::TcpRoute {
            matches: vec![],
            destinations: vec![proto::WeightedDestination {
                destination: Some(proto::Destination {
                    service: Some(other),
                    ..Default::default()
                }),
                ..Default::default()
            }],
        }];
        bed.tables(|t| t.upsert_virtual_service(&object).unwrap());
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let mut said = [0; 5];
        tunnel.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"other");
    });
}

#[test]
fn opaque_connections_end_some_time_after_the_service_went_elsewhere() {
    run(|bed| async move {
        greeter(&bed).await;
        bed.publish_mesh(AppProtocol::Tcp);
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let mut hello = [0; 5];
        tunnel.read_exact(&mut hello).await.unwrap();
        let since = std::time::Instant::now();
        bed.unbind();
        let mut rest = Vec::new();
        let _ = tunnel.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        assert!(since.elapsed().as_secs() >= 4, "{:?}", since.elapsed());
        let line = bed.line().await;
        assert!(line.contains(" UH "), "{line}");
    });
}

/// The first message of a TLS client, as small as it may be.
fn client_hello(server_name: &str) -> Vec<u8> {
    fn sized(prefix: &[u8], size: usize, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [prefix, &length[4 - size..], content].concat()
    }
    let name = sized(&[0], 2, server_name.as_bytes());
    let extensions = [
        sized(&[0, 0], 2, &sized(&[], 2, &name)),
        // Groups, signatures, versions.
        sized(&[0, 10], 2, &sized(&[], 2, &[0, 29])),
        sized(&[0, 13], 2, &sized(&[], 2, &[4, 3])),
        sized(&[0, 43], 2, &sized(&[], 1, &[3, 4])),
    ];
    let head = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let hello = sized(&head, 2, &extensions.concat());
    sized(&[22, 3, 1], 2, &sized(&[1], 3, &hello))
}

#[test]
fn tls_goes_where_its_server_name_says() {
    run(|bed| async move {
        namer(&bed, "one", "v1", "127.0.1.5:0").await;
        namer(&bed, "two", "v2", "127.0.1.6:0").await;
        let rule = |host: &str, subset: &str| proto::TlsRoute {
            matches: vec![proto::TlsMatch {
                sni_hosts: vec![host.into()],
                l4: None,
            }],
            destinations: vec![to(subset, 0)],
        };
        let mut object = virtual_service(vec![]);
        object.tls = vec![rule("one.example", "v1"), rule("*.two.example", "v2")];
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            t.upsert_virtual_service(&object).unwrap();
        });
        for protocol in [AppProtocol::Tls, AppProtocol::Unknown] {
            bed.publish_mesh(protocol);
            for (name, expect) in [
                ("one.example", "one"),
                ("A.Two.Example", "two"),
                ("other.example", ""),
            ] {
                let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
                let hello = client_hello(name);
                // In two parts: nobody promises that it comes at once.
                tunnel.write_all(&hello[..20]).await.unwrap();
                tunnel.flush().await.unwrap();
                tokio::task::yield_now().await;
                tunnel.write_all(&hello[20..]).await.unwrap();
                let mut said = Vec::new();
                let _ = tunnel.read_to_end(&mut said).await;
                assert_eq!(String::from_utf8(said).unwrap(), expect, "{name}");
            }
        }
    });
}

#[test]
fn silent_and_old_connections_end() {
    run(|bed| async move {
        greeter(&bed).await;
        bed.publish_mesh(AppProtocol::Tcp);
        let short = prost_types::Duration {
            seconds: 0,
            nanos: 50_000_000,
        };
        for (pool, why) in [
            (
                proto::ConnectionPool {
                    tcp_idle_timeout: Some(short),
                    ..Default::default()
                },
                "idle_timeout",
            ),
            (
                proto::ConnectionPool {
                    max_connection_duration: Some(short),
                    ..Default::default()
                },
                "max_connection_duration",
            ),
        ] {
            let rule = proto::DestinationRule {
                traffic_policy: Some(proto::TrafficPolicy {
                    connection_pool: Some(pool),
                    ..Default::default()
                }),
                ..subsets()
            };
            bed.tables(|t| t.upsert_destination_rule(&rule).unwrap());
            let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
            let mut all = Vec::new();
            // How it ends is in the log.
            let _ = tunnel.read_to_end(&mut all).await;
            assert_eq!(all, b"hello");
            let line = bed.line().await;
            assert!(line.contains(why), "{line}");
        }
    });
}
