//! SOCKS5, the mode for one workload, and the process's own pod.

use isobar_proto::istio::workload::address::Type;
use isobar_runtime::Worker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::process::Node;
use crate::rig::{LIMIT, Place, service};
use crate::stage::Stage;

async fn through_socks(place: &Place, request: &[u8]) -> (u8, String) {
    let mut tcp = place.connect("127.0.0.1:15080").await.unwrap();
    let exchange = async {
        tcp.write_all(b"\x05\x01\x00").await.unwrap();
        let mut chosen = [0; 2];
        tcp.read_exact(&mut chosen).await.unwrap();
        assert_eq!(chosen, [5, 0]);
        tcp.write_all(request).await.unwrap();
        let mut reply = [0; 10];
        tcp.read_exact(&mut reply).await.unwrap();
        let mut answer = String::new();
        if reply[1] == 0 {
            tcp.write_all(b"via socks").await.unwrap();
            tcp.shutdown().await.unwrap();
            // A refusal after the reply shows as an empty answer.
            let _ = tcp.read_to_string(&mut answer).await;
        }
        assert_eq!(reply[2..], [0, 1, 0, 0, 0, 0, 0, 0]);
        (reply[1], answer)
    };
    tokio::time::timeout(LIMIT, exchange).await.unwrap()
}

pub(crate) async fn socks5(workers: Vec<Worker>) {
    let stage = Stage::with(workers, &[("UNSTABLE_ENABLE_SOCKS5", "true")]).await;
    let by_address = b"\x05\x01\x00\x01\x0a\x60\x00\x01\x00\x50";
    let answer = through_socks(&stage.client, by_address).await;
    assert_eq!(answer, (0, "10.0.0.2:via socks".into()));
    stage
        .lines
        .wait(&[
            ("direction", "outbound"),
            ("dst.hbone_addr", "10.0.0.3:8080"),
        ])
        .await;
    let name = b"web.ns.svc.cluster.local";
    let mut by_name = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    by_name.extend(name);
    by_name.extend([0, 80]);
    let answer = through_socks(&stage.client, &by_name).await;
    assert_eq!(answer, (0, "10.0.0.2:via socks".into()));
    // A name that has addresses of the other family only is found; there is no way to them here.
    let mut six = service("six", "10.96.0.6", 8080);
    let ip: std::net::Ipv6Addr = "fd00::96".parse().unwrap();
    six.addresses[0].address = ip.octets().to_vec();
    stage.mesh.put([Type::Service(six)]);
    let name = b"six.ns.svc.cluster.local";
    let mut of_six = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    of_six.extend(name);
    of_six.extend([0, 80]);
    let answer = through_socks(&stage.client, &of_six).await;
    assert_eq!(answer, (0, String::new()));
    // No such name, no name server that answers: 4. Another command: 7. Own ports: nothing.
    let unknown = b"\x05\x01\x00\x03\x04\x68\x65\x61\x64\x00\x50";
    assert_eq!(through_socks(&stage.client, unknown).await.0, 4);
    let bind = b"\x05\x02\x00\x01\x0a\x60\x00\x01\x00\x50";
    assert_eq!(through_socks(&stage.client, bind).await.0, 7);
    let own = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x3a\xe8";
    assert_eq!(through_socks(&stage.client, own).await, (0, String::new()));
    // The port is the proxy's own now, for tunnels and for plaintext.
    assert_eq!(stage.knock("other", "10.0.0.3:15080").await, Err(503));
    assert_eq!(stage.outsider.ask("10.0.0.3:15080", "x").await, "");
    let from_outside = stage.outsider.connect("10.0.0.2:15080").await;
    drop(from_outside);
}

/// One workload, in the namespace of the process, redirected by somebody else.
pub(crate) async fn dedicated() {
    let node = Node::new().await;
    let others = node.serving(Place::new("zt", "10.0.0.11"), &[]).await;
    let settings = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "ns/solo/client"),
        ("PACKET_MARK", "1337"),
        (
            "LOCAL_XDS",
            &*crate::process::mesh()
                .replace("\"name\":\"client\"", "\"name\":\"solo\"")
                .replace("10.0.0.2\"", "10.0.0.6\""),
        ),
    ];
    let solo = node.start(Place::new("solo", "10.0.0.6"), &settings);
    solo.becomes_ready().await;
    solo.place.redirect();
    let answer = solo
        .place
        .ask(&format!("{}:80", crate::rig::VIP), "solo")
        .await;
    assert_eq!(answer, "10.0.0.6:solo");
    crate::stage::until("its tunnel is told", || {
        let lines = solo.lines_with("connection complete");
        lines
            .iter()
            .any(|l| l.contains("dst.hbone_addr=10.0.0.3:8080"))
    })
    .await;
    drop(others);
}

/// A scraper in the mesh reaches the metrics of the process through a tunnel.
pub(crate) async fn own_pod() {
    let node = Node::new().await;
    let settings = [
        ("POD_NAME", "ztunnel"),
        ("POD_NAMESPACE", "ns"),
        ("SERVICE_ACCOUNT", "ztunnel"),
    ];
    let process = node.serving(Place::new("zt", "10.0.0.11"), &settings).await;
    let page = crate::http::get(&node.client, "10.0.0.11:15020", "/metrics").await;
    assert!(page.unwrap().body.contains("istio_build"), "no metrics");
    crate::stage::until(
        "it came through a tunnel, from the process's own address",
        || {
            let lines = process.lines_with("connection complete");
            lines.iter().any(|l| {
                l.contains("direction=\"inbound\"")
                    && l.contains("dst.hbone_addr=10.0.0.11:15020")
                    && l.contains("ns/ns/sa/client")
            })
        },
    )
    .await;
}
