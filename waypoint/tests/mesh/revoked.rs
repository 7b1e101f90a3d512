//! Callers of a waypoint whose certificates are taken back.

use std::time::Duration;

use isobar_hbone::TunnelStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bed::*;
use crate::edge_mesh::endless;
use crate::edge_trust::Certificates;

/// Begins something that never ends, and reads its begin.
async fn begins(stream: &mut TunnelStream) {
    let request = format!("GET /events HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("hello") {
        let more = stream.read_buf(&mut seen).await.unwrap();
        assert!(more > 0, "{}", String::from_utf8_lossy(&seen));
    }
}

#[test]
fn a_tunnel_ends_once_its_callers_certificate_is_taken_back_and_no_other() {
    run(|mut bed| async move {
        endless(&bed).await;
        let source = Certificates::new();
        bed.certificates = source.clone();
        let (_worker, at) = bed.copy();
        let mut open = bed.tunnel_at(at, "client", VIP).await.unwrap();
        begins(&mut open).await;
        let of_first = source.serials("client");
        let mut other = bed.tunnel_at(at, "client", VIP).await.unwrap();
        begins(&mut other).await;

        source.revoke(&of_first);
        let mut rest = Vec::new();
        let ends = tokio::time::timeout(Duration::from_secs(5), open.read_to_end(&mut rest));
        // Cut or closed: either is an end.
        drop(ends.await.expect("it goes on"));
        let more = tokio::time::timeout(Duration::from_millis(200), other.read_u8());
        assert!(more.await.is_err(), "the account's other tunnel has ended");
    });
}
