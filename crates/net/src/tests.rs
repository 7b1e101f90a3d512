use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use isobar_types::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    DialError, DialOptions, Keepalive, ListenOptions, NetNs, PacketError, SeqPacket,
    SeqPacketListener, Share, UdpOptions, dial, listen, local_addr, original_dst, peer_addr,
    raise_open_files, reset_on_close, udp,
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[test]
fn the_own_namespace_is_recognised() {
    let own = NetNs::current().unwrap();
    assert_eq!(own.id(), NetNs::current().unwrap().id());
    assert_eq!(own.enter(|| 7).unwrap(), 7, "no system call, no privilege");
    let text = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(text.to_str().unwrap(), format!("{own:?}"));
}

#[test]
fn other_descriptors_are_no_namespaces() {
    let file: OwnedFd = std::fs::File::open("/proc/thread-self/ns/mnt")
        .unwrap()
        .into();
    assert!(NetNs::from_fd(file).is_err());
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    assert!(NetNs::from_fd(file).is_err());
}

#[tokio::test]
async fn tcp_both_families_on_one_wildcard() {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let listener = listen(&ListenOptions::new(any)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let client = dial(&DialOptions::default(), to).await.unwrap();
    assert!(client.nodelay().unwrap());
    let (server, _) = listener.accept().await.unwrap();
    // Nothing redirected it: meant for the local address, and never IPv4-mapped.
    assert_eq!(original_dst(&server).unwrap(), to);
    assert_eq!(local_addr(&server).unwrap(), to);
    assert_eq!(peer_addr(&server).unwrap(), client.local_addr().unwrap());
}

#[tokio::test]
async fn a_refusal_is_told_from_silence() {
    let listener = listen(&ListenOptions::new(LOOPBACK)).unwrap();
    let to = listener.local_addr().unwrap();
    drop(listener);
    let error = dial(&DialOptions::default(), to).await.unwrap_err();
    assert_eq!(error.reason(), Reason::UpstreamRefused);

    // A full backlog answers nobody.
    let options = ListenOptions {
        backlog: 0,
        ..ListenOptions::new(LOOPBACK)
    };
    let listener = listen(&options).unwrap();
    let to = listener.local_addr().unwrap();
    let options = DialOptions {
        timeout: Duration::from_millis(100),
        ..DialOptions::default()
    };
    let mut queued = Vec::new();
    let error = loop {
        match dial(&options, to).await {
            Ok(stream) => queued.push(stream),
            Err(error) => break error,
        }
        assert!(queued.len() < 100);
    };
    assert!(matches!(error, DialError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn accepted_connections_inherit_their_options() {
    let keepalive = Keepalive {
        time: Duration::from_secs(111),
        interval: Duration::from_secs(22),
        retries: 3,
        user_timeout: true,
    };
    let options = ListenOptions {
        nodelay: true,
        keepalive: Some(keepalive),
        ..ListenOptions::new(LOOPBACK)
    };
    let listener = listen(&options).unwrap();
    let to = listener.local_addr().unwrap();
    let _client = dial(&DialOptions::default(), to).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let server = socket2::SockRef::from(&server);
    assert!(server.tcp_nodelay().unwrap() && server.keepalive().unwrap());
    assert_eq!(server.tcp_keepalive_time().unwrap(), keepalive.time);
    assert_eq!(server.tcp_keepalive_interval().unwrap(), keepalive.interval);
    assert_eq!(server.tcp_keepalive_retries().unwrap(), keepalive.retries);
    assert_eq!(
        server.tcp_user_timeout().unwrap(),
        Some(keepalive.time + keepalive.interval * keepalive.retries)
    );
}

#[tokio::test]
async fn one_of_those_that_share_a_port_may_take_all() {
    let mut options = ListenOptions {
        reuse_port: true,
        ..ListenOptions::new(LOOPBACK)
    };
    let first = listen(&options).unwrap();
    let to = first.local_addr().unwrap();
    options.address = to;
    let second = listen(&options).unwrap();
    // All of these by one of two, or none of them, by chance: once in a thousand billion runs.
    const CALLS: usize = 40;
    for (share, by_one) in [(Share::One, true), (Share::Each, false), (Share::One, true)] {
        share.set(&second).unwrap();
        let mut taken = 0;
        for _ in 0..CALLS {
            let _client = dial(&DialOptions::default(), to).await.unwrap();
            tokio::select! {
                accepted = first.accept() => {
                    drop(accepted.unwrap());
                    taken += 1;
                }
                accepted = second.accept() => drop(accepted.unwrap()),
            }
        }
        assert_eq!(taken == CALLS, by_one, "{share:?}: {taken}");
        assert!(taken > 0, "{share:?}");
    }
    // Its place goes over to whoever is left.
    drop(first);
    let _client = dial(&DialOptions::default(), to).await.unwrap();
    second.accept().await.unwrap();
    let alone = listen(&ListenOptions::new(LOOPBACK)).unwrap();
    assert!(Share::One.set(&alone).is_err());
}

#[tokio::test]
async fn a_reset_is_no_end() {
    let listener = listen(&ListenOptions::new(LOOPBACK)).unwrap();
    let to = listener.local_addr().unwrap();
    let client = dial(&DialOptions::default(), to).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    reset_on_close(&client);
    drop(client);
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn udp_binds() {
    let options = UdpOptions {
        address: LOOPBACK,
        netns: None,
        mark: None,
        reuse_port: true,
    };
    let (a, b) = (udp(&options).unwrap(), udp(&options).unwrap());
    a.send_to(b"x", b.local_addr().unwrap()).await.unwrap();
    let mut buffer = [0; 8];
    let (bytes, from) = b.recv_from(&mut buffer).await.unwrap();
    assert_eq!((bytes, from), (1, a.local_addr().unwrap()));
}

#[tokio::test]
async fn packets_keep_their_bounds_and_carry_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zds.sock");
    let listener = SeqPacketListener::bind(&path).unwrap();
    let client = SeqPacket::connect(&path).unwrap();
    let server = listener.accept().await.unwrap();
    assert_eq!(
        server.peer_credentials().unwrap().pid,
        std::process::id().cast_signed()
    );

    let netns = NetNs::current().unwrap();
    client.send(b"one", &[netns.as_fd()]).await.unwrap();
    client.send(b"two", &[]).await.unwrap();
    let mut buffer = [0; 16];
    let mut packet = server.recv(&mut buffer).await.unwrap().unwrap();
    assert_eq!(&buffer[..packet.len], b"one");
    let received = NetNs::from_fd(packet.fds.remove(0)).unwrap();
    assert_eq!(received.id(), netns.id());
    let packet = server.recv(&mut buffer).await.unwrap().unwrap();
    assert_eq!((&buffer[..packet.len], packet.fds.len()), (&b"two"[..], 0));
    drop(client);
    assert!(server.recv(&mut buffer).await.unwrap().is_none());
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn cut_packets_are_told_and_leak_nothing() {
    let (a, b) = SeqPacket::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    a.send(&[7; 32], &[]).await.unwrap();
    let mut buffer = [0; 16];
    assert!(matches!(
        b.recv(&mut buffer).await,
        Err(PacketError::Truncated { room: 16 })
    ));
    let many: Vec<_> = (0..20).map(|_| file.as_fd()).collect();
    // Other tests open and close files at the same time: leaks show as growth that stays.
    let before = open();
    for _ in 0..50 {
        a.send(b"x", &many).await.unwrap();
        assert!(matches!(
            b.recv(&mut buffer).await,
            Err(PacketError::TooManyDescriptors)
        ));
    }
    assert!(open() < before + 200, "{before} {}", open());
    a.send(b"still", &[]).await.unwrap();
    assert_eq!(b.recv(&mut buffer).await.unwrap().unwrap().len, 5);
}

#[test]
fn the_file_limit_goes_to_its_top() {
    let most = raise_open_files().unwrap();
    assert_eq!(raise_open_files().unwrap(), most);
}

#[tokio::test]
async fn a_dialled_stream_carries_bytes() {
    let listener = listen(&ListenOptions::new(LOOPBACK)).unwrap();
    let mut client = dial(&DialOptions::default(), listener.local_addr().unwrap())
        .await
        .unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
}
