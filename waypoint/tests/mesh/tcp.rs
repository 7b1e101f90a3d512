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
