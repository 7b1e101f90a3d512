use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::rig::{Rig, headers, id, key, local};
use crate::{
    Authority, Baggage, BaggageValue, Connect, Endpoint as _, Plain, Progress, RelaySide,
    TunnelError, relay, relay_counted,
};

async fn echo(connect: Connect) {
    let stream = connect.accept(None).unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    // A client that resets ends the copy; nothing else to do.
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

#[tokio::test]
async fn headers_peers_and_bytes_arrive() {
    local(async {
        let rig = Rig::new();
        let address = rig
            .serve(|connect: Connect| async move {
                assert_eq!(connect.peer().identity(), &id("front"));
                assert_eq!(connect.headers().authority.to_string(), "10.0.0.1:80");
                assert_eq!(
                    connect.headers().baggage.as_ref().map(BaggageValue::read),
                    Some(Baggage::parse("service.name=front"))
                );
                let told = BaggageValue::of(&Baggage::parse("service.name=cart"));
                let mut stream = connect.accept(told.as_ref()).unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                stream
                    .write_all(text.to_uppercase().as_bytes())
                    .await
                    .unwrap();
                stream.shutdown().await.unwrap();
            })
            .await;
        let mut headers = headers();
        headers.baggage = BaggageValue::of(&Baggage::parse("service.name=front"));
        let mut stream = rig.pool.open(&key(address), &headers).await.unwrap();
        assert_eq!(stream.peer().identity(), &id("cart"));
        assert_eq!(stream.baggage().unwrap().service.as_deref(), Some("cart"));
        stream.write_all(b"hello").await.unwrap();
        // Half-close: the answer comes after our end.
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "HELLO");
    })
    .await;
}

#[tokio::test]
async fn a_mebibyte_comes_back_as_it_was() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(echo).await;
        let stream = rig.pool.open(&key(address), &headers()).await.unwrap();
        let sent: Vec<u8> = (0..1 << 20)
            .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let (mut read, mut write) = tokio::io::split(stream);
        let mut back = Vec::new();
        let (written, _) = tokio::join!(
            async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            },
            async { read.read_to_end(&mut back).await.unwrap() }
        );
        let () = written;
        assert!(back == sent, "{} bytes came back", back.len());
    })
    .await;
}

#[tokio::test]
async fn a_refusal_carries_its_status() {
    local(async {
        let rig = Rig::new();
        let address = rig
            .serve(|connect: Connect| async move { connect.refuse(StatusCode::UNAUTHORIZED) })
            .await;
        let error = rig.pool.open(&key(address), &headers()).await.unwrap_err();
        assert_eq!(error.status(), Some(401));
        rig.until(|rig| rig.pool.streams() == 0).await;
    })
    .await;
}

/// Two connected TCP sockets.
async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(address), listener.accept());
    (a.unwrap(), b.unwrap().0)
}

/// App, client proxy, tunnel, server proxy, app: all the real parts.
async fn chain(rig: &Rig) -> (TcpStream, TcpStream) {
    let (server_proxy, server_app) = tcp_pair().await;
    let slot = std::rc::Rc::new(std::cell::RefCell::new(Some(server_proxy)));
    let address = rig
        .serve(move |connect: Connect| {
            let tcp = slot.borrow_mut().take();
            async move {
                let (mut tcp, mut stream) = (tcp.unwrap(), connect.accept(None).unwrap());
                relay(&mut stream, &mut tcp).await;
            }
        })
        .await;
    let (client_app, mut client_proxy) = tcp_pair().await;
    let pool = rig.pool.clone();
    rig.scope.spawn("client proxy", async move {
        let mut stream = pool.open(&key(address), &headers()).await.unwrap();
        relay(&mut client_proxy, &mut stream).await;
    });
    (client_app, server_app)
}

#[tokio::test]
async fn check_31_half_closes_cross_both_proxies() {
    local(async {
        let rig = Rig::new();
        let (mut client, mut server) = chain(&rig).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        rig.until(|rig| rig.pool.streams() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_reset_crosses_both_proxies_both_ways() {
    local(async {
        for from_client in [true, false] {
            let rig = Rig::new();
            let (mut client, mut server) = chain(&rig).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
            let (mut breaks, mut sees) = if from_client {
                (client, server)
            } else {
                (server, client)
            };
            breaks.reset();
            drop(breaks);
            let error = sees.read_u8().await.unwrap_err();
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "{from_client}"
            );
            rig.until(|rig| rig.pool.streams() == 0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_is_seen_after_the_peer_has_ended_its_direction() {
    local(async {
        let rig = Rig::new();
        let address = rig
            .serve(|connect: Connect| async move {
                let mut stream = connect.accept(None).unwrap();
                stream.shutdown().await.unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                stream.reset();
            })
            .await;
        let mut stream = rig.pool.open(&key(address), &headers()).await.unwrap();
        let (mut proxy, mut app) = tcp_pair().await;
        let relayed = relay(&mut proxy, &mut stream);
        let app = async move {
            assert_eq!(app.read(&mut [0; 8]).await.unwrap(), 0);
            app.write_all(b"x").await.unwrap();
            // Sends nothing more: only the reset can end it.
            app
        };
        let (relayed, _app) = tokio::join!(relayed, app);
        let error = relayed.end.unwrap_err();
        assert_eq!(
            (error.side, relayed.sent, relayed.received),
            (RelaySide::Upstream, 1, 0)
        );
    })
    .await;
}

#[tokio::test]
async fn counts_survive_a_cut() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(echo).await;
        let mut stream = rig.pool.open(&key(address), &headers()).await.unwrap();
        let (mut app, proxy) = duplex(1024);
        let mut proxy = Plain::new(proxy);
        let progress = Progress::default();
        tokio::select! {
            _ = relay_counted(&mut proxy, &mut stream, &progress) => panic!("nothing has ended"),
            () = async {
                app.write_all(b"hello").await.unwrap();
                app.read_exact(&mut [0; 5]).await.unwrap();
            } => {}
        }
        assert_eq!((progress.sent(), progress.received()), (5, 5));
        proxy.reset();
        assert_eq!(app.read(&mut [0; 1]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn check_42_double_hbone_is_one_inner_connection_a_stream() {
    local(async {
        let rig = Rig::new();
        let inner = rig
            .serve(|connect: Connect| async move {
                let headers = connect.headers();
                assert_eq!(headers.forwarded_network.as_deref(), Some("net-east"));
                assert_eq!(headers.authority.to_string(), "cart.shop:80");
                // The caller itself, not the gateway.
                assert_eq!(connect.peer().identity(), &id("front"));
                echo(connect).await;
            })
            .await;
        // The gateway forwards the outer stream's bytes unread.
        let asked = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = std::rc::Rc::clone(&asked);
        let gateway = rig
            .serve(move |connect: Connect| {
                seen.set(seen.get() + 1);
                async move {
                    let headers = connect.headers();
                    assert_eq!(headers.forwarded_network, None);
                    assert_eq!(headers.authority.to_string(), "cart.shop:80");
                    let mut tcp = TcpStream::connect(inner).await.unwrap();
                    let mut stream = connect.accept(None).unwrap();
                    relay(&mut stream, &mut tcp).await;
                }
            })
            .await;
        let mut asks = crate::ConnectHeaders::new(Authority::parse("cart.shop:80").unwrap());
        asks.forwarded_network = Some("net-east".to_owned());
        let (outer, expect) = (key(gateway), [id("cart")]);
        let mut streams = Vec::new();
        for _ in 0..3 {
            let opened = rig.pool.open_through(&outer, &expect, &asks).await;
            streams.push(opened.unwrap());
        }
        for stream in &mut streams {
            stream.write_all(b"deep").await.unwrap();
            let mut back = [0; 4];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"deep");
        }
        assert_eq!(asked.get(), 3, "one CONNECT outside for each inside");
        assert_eq!(rig.pool.tunnels(), 1, "the outer tunnel is pooled");
        assert_eq!(
            *rig.accepted.borrow(),
            1 + 3,
            "and each inner one is its own"
        );
        drop(streams);
        rig.until(|rig| rig.pool.streams() == 0).await;
        rig.until(|rig| rig.ends.borrow().len() == 3).await;

        let error = rig.pool.open_through(&outer, &[], &asks).await.unwrap_err();
        assert!(matches!(error, TunnelError::Tls { .. }));
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_stalls_only_its_own_stream() {
    local(async {
        let rig = Rig::new();
        let address = rig
            .serve(|connect: Connect| async move {
                let stall = connect.headers().authority.port() == 1;
                let stream = connect.accept(None).unwrap();
                if stall {
                    std::future::pending::<()>().await;
                }
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            })
            .await;
        let mut stalled_headers = headers();
        stalled_headers.authority = Authority::parse("10.0.0.1:1").unwrap();
        let mut stalled = rig
            .pool
            .open(&key(address), &stalled_headers)
            .await
            .unwrap();
        let mut alive = rig.pool.open(&key(address), &headers()).await.unwrap();
        assert_eq!(rig.pool.tunnels(), 1);
        let block = Bytes::from(vec![0; 64 * 1024]);
        let mut written = 0;
        let flood = async {
            loop {
                written += stalled.write(&block).await.unwrap();
            }
        };
        tokio::select! {
            () = flood => unreachable!(),
            () = async {
                for _ in 0..200 {
                    alive.write_all(b"ping").await.unwrap();
                    alive.read_exact(&mut [0; 4]).await.unwrap();
                }
            } => {}
        }
        // One stream window and what may wait to be sent, no more.
        assert!(written <= 4 * 1024 * 1024 + 512 * 1024, "{written}");
    })
    .await;
}
