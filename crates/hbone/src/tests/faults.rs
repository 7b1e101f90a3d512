use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use isobar_tls::{HandshakeError, client_config};
use isobar_types::{Identity, Reason};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::rig::{Rig, headers, id, key, local, short};
use crate::{Connect, PoolOptions, ServeError, Stage, Timeouts, TunnelError};

async fn refuse(connect: Connect) {
    connect.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn check_30_a_server_that_is_not_expected_is_not_spoken_to() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(refuse).await;
        let mut key = key(address);
        key.expect = vec![id("other")];
        let error = rig.pool.open(&key, &headers()).await.unwrap_err();
        assert!(matches!(&error, TunnelError::Tls { source, .. }
            if matches!(**source, HandshakeError::Peer(_))));
        assert_eq!(error.reason(), Reason::UpstreamTls);
    })
    .await;
}

#[tokio::test]
async fn check_29_a_caller_of_another_trust_domain_is_refused_as_tls() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(refuse).await;
        let mut key = key(address);
        key.source = Identity::new("other.example", "shop", "front");
        let error = rig.pool.open(&key, &headers()).await.unwrap_err();
        assert!(matches!(error, TunnelError::Tls { .. }), "{error}");
        rig.until(|rig| rig.ends.borrow().len() == 1).await;
        let ends = rig.ends.borrow();
        let end = ends[0].as_ref().unwrap_err();
        assert_eq!(end.reason(), Reason::DownstreamTls);
    })
    .await;
}

#[tokio::test]
async fn plaintext_and_missing_certificates_are_refused() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(refuse).await;
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut tcp, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut rest = Vec::new();
        // An alert, then the end; nothing of ours comes back.
        let _ = tcp.read_to_end(&mut rest).await;
        assert!(!rest.windows(3).any(|w| w == b"PRI"));
        rig.until(|rig| rig.ends.borrow().len() == 1).await;
        assert!(matches!(rig.ends.borrow()[0], Err(ServeError::Tls(_))));

        let mut key = key(address);
        key.source = id("nobody");
        let error = rig.pool.open(&key, &headers()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::NoCertificate);
    })
    .await;
}

#[tokio::test]
async fn nobody_there_is_told_as_refused() {
    local(async {
        let rig = Rig::new();
        let (listener, address) = Rig::listener().await;
        drop(listener);
        let error = rig.pool.open(&key(address), &headers()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::UpstreamRefused);
    })
    .await;
}

async fn accept_all(connect: Connect) {
    // Held until the client is gone.
    if let Ok(mut stream) = connect.accept(None) {
        let _ = stream.read(&mut [0; 1]).await;
    }
}

fn stage(error: &TunnelError) -> Option<Stage> {
    match error {
        TunnelError::Timeout { stage, .. } => Some(*stage),
        _ => None,
    }
}

#[tokio::test]
async fn check_34_silent_peers_are_given_up_at_every_stage() {
    local(async {
        let options = PoolOptions {
            timeouts: short(),
            ..PoolOptions::default()
        };

        let rig = Rig::with(options.clone());
        let honest = rig.serve(accept_all).await;
        let mute = |tcp: TcpStream| async move {
            let _open = tcp;
            std::future::pending::<()>().await;
        };
        let address = rig.raw(mute).await;
        let (silent, other) = (key(address), key(honest));
        let headers = headers();
        let waits = rig.pool.open(&silent, &headers);
        let mut served = 0;
        let error = tokio::select! {
            error = waits => error.unwrap_err(),
            () = async {
                loop {
                    rig.pool.open(&other, &headers).await.unwrap();
                    served += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            } => unreachable!(),
        };
        assert_eq!(stage(&error), Some(Stage::Tls));
        assert!(served > 1, "others go on meanwhile");

        // The answer to CONNECT may take longer than the settings here.
        let patient = Timeouts {
            connect: Duration::from_secs(5),
            ..short()
        };
        let rig = Rig::with(PoolOptions {
            timeouts: patient,
            ..options.clone()
        });
        let tls = rig.server_tls("cart");
        let after_tls = move |tcp: TcpStream| {
            let tls = tls.clone();
            async move {
                let _open = tls.accept(tcp).await.unwrap();
                std::future::pending::<()>().await;
            }
        };
        let address = rig.raw(after_tls).await;
        let error = rig.pool.open(&key(address), &headers).await.unwrap_err();
        assert_eq!(stage(&error), Some(Stage::Settings), "{error}");

        let rig = Rig::with(options);
        let never = |connect: Connect| async move {
            let _held = connect;
            std::future::pending::<()>().await;
        };
        let address = rig.serve(never).await;
        let error = rig.pool.open(&key(address), &headers).await.unwrap_err();
        assert_eq!(stage(&error), Some(Stage::Connect));
        assert_eq!(
            rig.pool.tunnels(),
            1,
            "one mute request is no reason to drop the tunnel"
        );
    })
    .await;
}

#[tokio::test]
async fn a_client_that_stops_answering_pings_is_cut() {
    local(async {
        let rig = Rig::new();
        let (listener, address) = Rig::listener().await;
        let tls = rig.server_tls("cart");
        let tick = Duration::from_millis(20);
        let timeouts = Timeouts {
            ping_interval: tick,
            ping_timeout: tick,
            ..Timeouts::default()
        };
        let options = crate::ServerOptions {
            timeouts,
            ..crate::ServerOptions::default()
        };
        let life = rig.life.lifetime();
        let client = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let certificate = rig.certificate("front").await;
            let config = client_config(&certificate, &[id("cart")]).unwrap();
            let (io, _) = config.connect(tcp).await.unwrap();
            let (requests, connection) = h2::client::Builder::new()
                .handshake::<_, Bytes>(io)
                .await
                .unwrap();
            // Polled for the preface only, then never again.
            let mut connection = Box::pin(connection);
            let once = std::future::poll_fn(|cx| {
                let _ = connection.as_mut().poll(cx);
                std::task::Poll::Ready(())
            });
            once.await;
            std::future::pending::<()>().await;
            drop((requests, connection));
        };
        let server = async {
            let (tcp, _) = listener.accept().await.unwrap();
            crate::serve(tcp, &tls, &options, &life, refuse).await
        };
        tokio::select! {
            () = client => unreachable!(),
            end = server => assert!(matches!(end, Err(ServeError::Silent { .. })), "{end:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn r_17_17_a_tunnel_outlives_its_certificate_only_so_long() {
    local(async {
        let rig = Rig::new();
        let (listener, address) = Rig::listener().await;
        let tls = rig.server_tls("cart");
        let life = rig.life.lifetime();
        // The certificate has a second left, the tunnel no more than that.
        let certificate = rig.brief("front", Duration::from_secs(1));
        let options = crate::ServerOptions {
            timeouts: Timeouts {
                past_expiry: Duration::ZERO,
                ..Timeouts::default()
            },
            ..crate::ServerOptions::default()
        };
        let client = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let config = client_config(&certificate, &[id("cart")]).unwrap();
            let (io, _) = config.connect(tcp).await.unwrap();
            let (mut requests, connection) = h2::client::handshake(io).await.unwrap();
            let driver = async {
                // Told, not cut.
                connection.await.unwrap();
            };
            let asks = async {
                let request = headers().to_request().unwrap();
                let (response, _send) = requests.send_request(request, false).unwrap();
                assert_eq!(response.await.unwrap().status(), 503);
            };
            tokio::join!(driver, asks);
        };
        let server = async {
            let (tcp, _) = listener.accept().await.unwrap();
            crate::serve(tcp, &tls, &options, &life, refuse).await
        };
        let ((), end) = tokio::join!(client, server);
        let error = end.unwrap_err();
        assert_eq!(error.reason(), Reason::IdentityExpired, "{error}");
    })
    .await;
}

/// A plain HTTP/2 client with a valid certificate.
async fn bare_client(rig: &Rig, address: std::net::SocketAddr) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let certificate = rig.certificate("front").await;
    let config = client_config(&certificate, &[id("cart")]).unwrap();
    let (io, _) = config.connect(tcp).await.unwrap();
    let (requests, connection) = h2::client::Builder::new()
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    rig.scope.spawn("bare client", async move {
        // Ends when the server has had enough.
        let _ = connection.await;
    });
    requests
}

#[tokio::test]
async fn check_28_what_is_no_connect_is_a_bad_request() {
    local(async {
        let rig = Rig::new();
        let address = rig
            .serve(|_: Connect| async { panic!("must not get here") })
            .await;
        let mut requests = bare_client(&rig, address).await;
        for (method, uri) in [
            ("GET", "http://10.0.0.1/"),
            ("POST", "http://10.0.0.1:80/"),
            ("CONNECT", "10.0.0.1"),
            ("CONNECT", "10.0.0.1:0x50"),
        ] {
            let Ok(request) = http::Request::builder().method(method).uri(uri).body(()) else {
                continue;
            };
            std::future::poll_fn(|cx| requests.poll_ready(cx))
                .await
                .unwrap();
            let (response, _) = requests.send_request(request, true).unwrap();
            match response.await {
                Ok(response) => assert_eq!(response.status(), 400, "{method} {uri}"),
                // HTTP/2 itself refuses some of them.
                Err(error) => assert!(error.is_reset(), "{method} {uri} {error}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    local(async {
        let rig = Rig::new();
        let taken = Rc::new(Cell::new(0));
        let count = Rc::clone(&taken);
        let address = rig
            .serve(move |mut connect: Connect| {
                count.set(count.get() + 1);
                async move {
                    connect.gone().await;
                    connect.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
                }
            })
            .await;
        let mut requests = bare_client(&rig, address).await;
        for _ in 0..5000 {
            if std::future::poll_fn(|cx| requests.poll_ready(cx))
                .await
                .is_err()
            {
                break;
            }
            let request = http::Request::builder()
                .method("CONNECT")
                .uri("10.0.0.1:80")
                .body(())
                .unwrap();
            let Ok((response, mut send)) = requests.send_request(request, false) else {
                break;
            };
            send.send_reset(h2::Reason::CANCEL);
            drop(response);
            tokio::task::yield_now().await;
        }
        rig.until(|rig| rig.ends.borrow().len() == 1).await;
        assert!(
            matches!(rig.ends.borrow()[0], Err(ServeError::Abuse(_))),
            "{:?}",
            rig.ends
        );
        // More may have been sent: the last step of the handshake lets others go first.
        assert!(taken.get() < 1000, "{taken:?}");
    })
    .await;
}

#[tokio::test]
async fn check_35_a_tunnel_that_died_while_idle_costs_nothing() {
    local(async {
        let rig = Rig::new();
        let tls = rig.server_tls("cart");
        // Each connection answers one request, then breaks at the second without an answer.
        let address = rig
            .raw(move |tcp| {
                let tls = tls.clone();
                async move {
                    let (io, _) = tls.accept(tcp).await.unwrap();
                    let mut connection = h2::server::handshake(io).await.unwrap();
                    let (_body, mut respond) = connection.accept().await.unwrap().unwrap();
                    let _held = respond
                        .send_response(http::Response::new(()), true)
                        .unwrap();
                    let _second = connection.accept().await;
                }
            })
            .await;
        let (key, headers) = (key(address), headers());
        drop(rig.pool.open(&key, &headers).await.unwrap());
        drop(rig.pool.open(&key, &headers).await.unwrap());
        assert_eq!(*rig.accepted.borrow(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_drained_pool_opens_nothing() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(refuse).await;
        rig.pool.drain();
        let error = rig.pool.open(&key(address), &headers()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Drained);
    })
    .await;
}
