//! What needs network namespaces: each test runs itself again inside user and network namespaces
//! of its own (`unshare`), where it may do everything and disturbs nobody.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is the test's"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use isobar_net::{
    DialOptions, ListenOptions, NetNs, Source, Want, dial, listen, original_dst, peer_addr,
    set_tcp_migrate_req,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const INSIDE: &str = "ISOBAR_TEST_INSIDE";

/// True inside; outside it runs the named test inside and checks that it passes. Machines that
/// allow no user namespaces cannot run these tests, and say so.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let may = Command::new("unshare").args(["-Urn", "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this machine allows no user namespaces");
        return false;
    }
    let output = Command::new("unshare")
        .args(["-Urnm", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&text)
    );
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn nft(rules: &str) {
    let status = Command::new("nft").arg(rules).status().unwrap();
    assert!(status.success(), "nft {rules}");
}

/// A second namespace, held by a process that sleeps; joined to the own one by a veth pair with
/// 10.9.0.1 here and 10.9.0.2 there.
struct Pod {
    child: std::process::Child,
    netns: NetNs,
}

impl Pod {
    fn new() -> Self {
        let own = NetNs::current().unwrap();
        let mut child = Command::new("unshare")
            .args(["-n", "sleep", "60"])
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/ns/net", child.id());
        let netns = loop {
            // unshare has not run yet while the namespace is still ours.
            match NetNs::open(Path::new(&path)) {
                Ok(netns) if netns.id() != own.id() => break netns,
                _ => assert!(child.try_wait().unwrap().is_none(), "unshare failed"),
            }
            std::thread::yield_now();
        };
        ip("link set lo up");
        ip(&format!(
            "link add here type veth peer name there netns {}",
            child.id()
        ));
        ip("addr add 10.9.0.1/24 dev here");
        ip("link set here up");
        netns
            .enter(|| {
                ip("link set lo up");
                ip("addr add 10.9.0.2/24 dev there");
                ip("link set there up");
            })
            .unwrap();
        Self { child, netns }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, last)), port)
}

fn run<F: Future<Output = ()>>(body: F) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(body);
}

#[test]
fn sockets_live_where_they_were_made() {
    if !inside("sockets_live_where_they_were_made") {
        return;
    }
    let pod = Pod::new();
    let home = NetNs::current().unwrap();
    run(async {
        let options = ListenOptions {
            netns: Some(pod.netns.clone()),
            mark: Some(0x539),
            reuse_port: true,
            transparent: Want::Require,
            ..ListenOptions::new(at(2, 15008))
        };
        let listener = listen(&options).unwrap();
        assert_eq!(
            NetNs::current().unwrap().id(),
            home.id(),
            "the thread is back"
        );
        let again = listen(&options).unwrap();
        drop(again);
        let client = dial(&DialOptions::default(), at(2, 15008)).await.unwrap();
        let (server, from) = listener.accept().await.unwrap();
        assert_eq!(from.ip(), at(1, 0).ip());
        drop((client, server));

        let here = listen(&ListenOptions::new(at(1, 8080))).unwrap();
        let options = DialOptions {
            netns: Some(pod.netns.clone()),
            mark: Some(0x539),
            ..DialOptions::default()
        };
        let _client = dial(&options, at(1, 8080)).await.unwrap();
        let (server, _) = here.accept().await.unwrap();
        assert_eq!(peer_addr(&server).unwrap().ip(), at(2, 0).ip());
    });
}

#[test]
fn the_way_back_survives_a_panic_and_refuses_to_nest() {
    if !inside("the_way_back_survives_a_panic_and_refuses_to_nest") {
        return;
    }
    let pod = Pod::new();
    let home = NetNs::current().unwrap().id();
    let inner = pod.netns.enter(|| NetNs::current().unwrap().id()).unwrap();
    assert_eq!(inner, pod.netns.id());
    let netns = pod.netns.clone();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        netns.enter(|| panic!("on purpose")).unwrap();
    }));
    assert!(panicked.is_err());
    assert_eq!(NetNs::current().unwrap().id(), home);
    assert!(pod.netns.enter(|| pod.netns.enter(|| ())).unwrap().is_err());
    assert_eq!(NetNs::current().unwrap().id(), home);
    NetNs::settle().unwrap();
    let inner = pod.netns.enter(|| NetNs::current().unwrap().id()).unwrap();
    assert_eq!(inner, pod.netns.id());
    assert_eq!(NetNs::current().unwrap().id(), home);
}

#[test]
fn a_foreign_source_address_is_shown() {
    if !inside("a_foreign_source_address_is_shown") {
        return;
    }
    let pod = Pod::new();
    // Replies to the foreign address come back into this namespace.
    pod.netns
        .enter(|| ip("route add 10.77.0.0/16 via 10.9.0.1"))
        .unwrap();
    ip("rule add fwmark 0x111 lookup 100");
    ip("route add local 0.0.0.0/0 dev lo table 100");
    nft("add table ip t");
    nft("add chain ip t pre { type filter hook prerouting priority mangle ; }");
    nft("add rule ip t pre ip daddr 10.77.0.0/16 meta mark set 0x111");
    run(async {
        let options = ListenOptions {
            netns: Some(pod.netns.clone()),
            ..ListenOptions::new(at(2, 80))
        };
        let listener = listen(&options).unwrap();
        let foreign = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 2));
        let source = Some(Source {
            ip: foreign,
            required: true,
        });
        let options = DialOptions {
            source,
            ..DialOptions::default()
        };
        let mut client = dial(&options, at(2, 80)).await.unwrap();
        let (mut server, from) = listener.accept().await.unwrap();
        assert_eq!(from.ip(), foreign);
        server.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        // Never a port that the owner of the address may have taken for itself.
        let mut held = vec![(client, server)];
        let mut ports = std::collections::BTreeSet::from([from.port()]);
        for _ in 0..20 {
            let client = dial(&options, at(2, 80)).await.unwrap();
            let (server, from) = listener.accept().await.unwrap();
            ports.insert(from.port());
            held.push((client, server));
        }
        assert_eq!(ports.len(), 21);
        assert!(ports.iter().all(|port| *port >= 61_000), "{ports:?}");
        drop(held);

        let source = Some(Source {
            ip: "fd00::1".parse().unwrap(),
            required: true,
        });
        let options = DialOptions {
            source,
            ..DialOptions::default()
        };
        assert!(dial(&options, at(2, 80)).await.is_err());
        let source = Some(Source {
            ip: "fd00::1".parse().unwrap(),
            required: false,
        });
        let options = DialOptions {
            source,
            ..DialOptions::default()
        };
        let _client = dial(&options, at(2, 80)).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().1.ip(), at(1, 0).ip());
    });
}

#[test]
fn a_redirected_connection_tells_where_it_was_going() {
    if !inside("a_redirected_connection_tells_where_it_was_going") {
        return;
    }
    ip("link set lo up");
    ip("addr add 10.9.0.1/32 dev lo");
    ip("-6 addr add fd00::9/128 dev lo");
    nft("add table inet t");
    nft("add chain inet t out { type nat hook output priority -100 ; }");
    nft("add rule inet t out tcp dport 80 meta mark != 0x539 redirect to :15001");
    run(async {
        let any = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 15001);
        let listener = listen(&ListenOptions::new(any)).unwrap();
        for to in [at(1, 80), "[fd00::9]:80".parse().unwrap()] {
            let _client = dial(&DialOptions::default(), to).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            assert_eq!(original_dst(&server).unwrap(), to);
        }
        let options = DialOptions {
            mark: Some(0x539),
            ..DialOptions::default()
        };
        assert!(
            dial(&options, at(1, 80)).await.is_err(),
            "marked: not redirected"
        );
    });
}

#[test]
fn waiting_handshakes_may_move() {
    if !inside("waiting_handshakes_may_move") {
        return;
    }
    let pod = Pod::new();
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap();
    set_tcp_migrate_req(&pod.netns).unwrap();
    assert_eq!(pod.netns.enter(read).unwrap().trim(), "1");
    assert_eq!(read().trim(), "0", "only there");
}
