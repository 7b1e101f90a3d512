//! Callers over HTTP/2 that do what no library does: frames by hand.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use isobar_route::Keepalive;
use isobar_runtime::LocalScope;
use isobar_waypoint::endpoint::Endpoint;
use isobar_waypoint::listener;
use isobar_waypoint::run::worker;
use isobar_waypoint::stream::AnyStream;
use isobar_waypoint::upstream::{Dial, DialFailure};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;

use crate::bed::*;
use crate::edge::{listener_of, open, rules};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const WINDOW_UPDATE: u8 = 8;
const END_STREAM_AND_HEADERS: u8 = 5;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MOST: u32 = (1 << 31) - 1;

/// What a connection begins with: windows that never fill.
pub(crate) fn greeting() -> Vec<u8> {
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    setting.extend_from_slice(&MOST.to_be_bytes());
    said.extend(frame(SETTINGS, 0, 0, &setting));
    let more = (MOST - 65_535).to_be_bytes();
    said.extend(frame(WINDOW_UPDATE, 0, 0, &more));
    said
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut whole = length[1..].to_vec();
    whole.extend([kind, flags]);
    whole.extend(stream.to_be_bytes());
    whole.extend_from_slice(payload);
    whole
}

/// `GET http://svc/` (RFC 7541 appendix A has the numbers).
fn get(stream: u32) -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x84, 0x01, 3];
    head.extend_from_slice(b"svc");
    frame(HEADERS, END_STREAM_AND_HEADERS, stream, &head)
}

/// Endpoints in memory whose answers do not end, and how much of them was taken.
#[derive(Default)]
struct Endless(Rc<Cell<usize>>);

impl Dial for Endless {
    fn dial<'a>(
        &'a self,
        _: &'a Endpoint,
        _: Option<Keepalive>,
    ) -> LocalBoxFuture<'a, Result<AnyStream, DialFailure>> {
        let (near, far) = tokio::io::duplex(16 * 1024);
        drop(tokio::task::spawn_local(answer(far, self.0.clone())));
        Box::pin(async move { Ok(Box::new(near) as AnyStream) })
    }
}

async fn answer(mut stream: DuplexStream, taken: Rc<Cell<usize>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
    if stream.write_all(head).await.is_err() {
        return;
    }
    let piece = vec![b'x'; 8 * 1024];
    while let Ok(bytes) = stream.write(&piece).await {
        taken.set(taken.get() + bytes);
    }
}

#[test]
fn answers_that_nobody_reads_are_not_taken_from_endpoints() {
    run_within(Duration::from_secs(600), |bed| async move {
        bed.known_backend("a", "v1", SocketAddr::from(([127, 0, 1, 1], 8080)));
        bed.publish_mesh(AppProtocol::Http11);
        let endless = Endless::default();
        let taken = endless.0.clone();
        let scope = Rc::new(LocalScope::new("endless"));
        let worker = worker(
            bed.worker.world.clone(),
            bed.worker.metrics.clone(),
            bed.worker.access_log.clone(),
            Rc::new(endless),
            scope.clone(),
        );
        let accepting = listener::listen(SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
        let at = accepting.local_addr().unwrap();
        let accept = listener::accept(worker, accepting, bed.certificates.clone());
        scope.spawn("accept", accept);

        let mut tunnel = bed.tunnel_at(at, "client", VIP).await.unwrap();
        tunnel.write_all(&greeting()).await.unwrap();
        for stream in 0..200 {
            tunnel.write_all(&get(2 * stream + 1)).await.unwrap();
        }
        while taken.get() < 10 << 20 {
            tokio::task::yield_now().await;
        }
        // Time passes whenever nobody has anything to do.
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Of these, 4 MiB are in the caller's own tunnel.
        assert!(taken.get() < 28 << 20, "{}", taken.get());
    });
}

/// The next frame: kind and payload.
async fn next(tcp: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    tcp.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    tcp.read_exact(&mut payload).await.ok()?;
    Some((head[3], payload))
}

#[test]
fn a_caller_from_outside_has_a_hundred_streams_and_has_to_answer() {
    run_within(Duration::from_secs(3600), |bed| async move {
        bed.backend("a", "v1").await;
        let (at, _open) = open(&bed, |port| {
            listener_of(proto::listener::Protocol::Http, port, "svc")
        });
        rules(&bed);
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.write_all(&greeting()).await.unwrap();
        tcp.write_all(&get(1)).await.unwrap();
        let (kind, settings) = next(&mut tcp).await.unwrap();
        assert_eq!(kind, SETTINGS);
        let streams = settings
            .chunks_exact(6)
            .find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes())
            .map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()));
        assert_eq!(streams, Some(100));
        while next(&mut tcp).await.unwrap().0 != DATA {}
        // It was answered, and says nothing any more, not even that it is there.
        tokio::time::pause();
        let since = tokio::time::Instant::now();
        while next(&mut tcp).await.is_some() {}
        let took = since.elapsed();
        assert!(took >= Duration::from_secs(30), "{took:?}");
        assert!(took < Duration::from_secs(180), "{took:?}");
    });
}
