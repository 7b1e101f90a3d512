//! What idle tunnels cost, on either side.

use std::net::SocketAddr;

use isobar_hbone::{Connect, ServerOptions, serve};
use isobar_runtime::{LifetimeOwner, LocalScope};
use isobar_tls::{ServerTls, server_config};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::bed::{Bed, Mode};
use super::wire::*;

const STREAM_MAX: usize = 5 * 1024;
const CONNECTION_MAX: usize = 40 * 1024;

#[tokio::test]
async fn r_10_idle_streams_and_connections_of_a_server_are_cheap() {
    let mut bed = Bed::new(Mode::Usual).await;
    let empty = bed.memory();
    let certificate = bed.certificate("front");
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut raw = bed.tls_as(&certificate).await.unwrap();
        assert!(
            raw.send(&[PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat())
                .await
        );
        raw.serves(1).await;
        held.push(raw);
    }
    let connection = bed.memory().saturating_sub(empty) / 200;
    let before = bed.memory();
    let full = form([20, 102]);
    for raw in held.iter_mut().take(full) {
        for n in 1..100 {
            raw.serves(1 + 2 * n).await;
        }
    }
    let stream = bed.memory().saturating_sub(before) / (full * 99);
    println!(
        "R-10: server: {connection} bytes a connection with one stream, {stream} a stream of {}",
        full * 99
    );
    assert!(connection <= CONNECTION_MAX + STREAM_MAX, "{connection}");
    assert!(stream <= STREAM_MAX, "{stream}");
    assert_eq!(bed.open().await, (200, 200 + full * 99));
    drop(held);
    bed.all_back().await;
}

/// A server that accepts everything, on a thread of its own.
fn serve_all(tls: ServerTls) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, accept_all(listener, tls));
    });
    address
}

async fn accept_all(listener: std::net::TcpListener, tls: ServerTls) {
    let listener = TcpListener::from_std(listener).unwrap();
    let life = LifetimeOwner::new();
    let connections = LocalScope::new("connections");
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (tls, life) = (tls.clone(), life.lifetime());
        connections.spawn("connection", async move {
            let handle = |connect: Connect| async move {
                if let Ok(mut stream) = connect.accept(None) {
                    // Ends with the client.
                    let _ = stream.read(&mut [0; 1]).await;
                }
            };
            let options = ServerOptions::default();
            // How it ends is not asked here.
            let _ = Box::pin(serve(tcp, &tls, &options, &life, handle)).await;
        });
    }
}

#[tokio::test]
async fn r_10_idle_streams_and_connections_of_a_client_are_cheap() {
    let mut bed = Bed::client();
    let server = serve_all(server_config(&bed.certificate("cart")));
    // The first tunnel fills the process' own caches.
    bed.hold(server, 1, 1).await;
    let empty = bed.memory();
    bed.hold(server, 200, 1).await;
    let connection = (bed.memory() - empty) / 199;
    let before = bed.memory();
    let full = form([20, 103]);
    bed.hold(server, full, 98).await;
    let stream = (bed.memory() - before) / (full * 98);
    println!(
        "R-10: client: {connection} bytes a connection with one stream, {stream} a stream of {}",
        full * 98
    );
    assert!(connection <= CONNECTION_MAX + STREAM_MAX, "{connection}");
    assert!(stream <= STREAM_MAX, "{stream}");
}
