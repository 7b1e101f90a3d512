//! Endpoints that take no connection are left out, without a waypoint.

use std::time::Duration;

use isobar_proto::isobar::v1 as isobar;
use isobar_proto::istio::workload as wire;
use isobar_runtime::Worker;
use wire::address::Type;

use crate::conformance::no;
use crate::rig::{Place, VIP};
use crate::stage::{Stage, until};

const WEB: &str = "web.ns.svc.cluster.local";
/// Long enough for some calls, short enough to wait for.
const OUT: Duration = Duration::from_secs(3);

/// The pod of `place` as an endpoint of `web` on `port`.
fn endpoint(place: &Place, port: u32) -> Type {
    let mut workload = place.workload();
    let ports = vec![wire::Port {
        service_port: 80,
        target_port: port,
        ..wire::Port::default()
    }];
    let key = format!("ns/{WEB}");
    workload.services.insert(key, wire::PortList { ports });
    if place.name == "outsider" {
        workload.tunnel_protocol = wire::TunnelProtocol::None.into();
    }
    Type::Workload(workload)
}

fn rule() -> isobar::OutboundPolicy {
    use isobar::outbound_policy::Kind;
    let limits = isobar::ConnectionLimits {
        namespace: "ns".into(),
        hostname: WEB.into(),
        outliers: Some(isobar::connection_limits::Outliers {
            failures: 2,
            interval: None,
            base_ejection: OUT.try_into().ok(),
            max_ejected_percent: 50,
            min_healthy_percent: 0,
        }),
        ..isobar::ConnectionLimits::default()
    };
    isobar::OutboundPolicy {
        kind: Some(Kind::Limits(limits)),
    }
}

/// Answers of `calls` calls to the service; empty ones failed.
async fn answers(stage: &Stage, calls: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..calls {
        all.push(stage.client.ask(&format!("{VIP}:80"), "hello").await);
    }
    all
}

/// Whom to leave out is learnt from connections that fail; who comes back is tried again. A refusal by
/// policy says nothing about the endpoint.
pub(crate) async fn left_out(workers: Vec<Worker>, same_node: bool) {
    let stage = Stage::with_tunnels(workers, !same_node).await;
    let put = |port| {
        stage.mesh.put([
            endpoint(&stage.server, port),
            endpoint(&stage.outsider, 8080),
        ]);
    };
    put(8080);
    let mut draft = stage.mesh.store.load().draft();
    draft.upsert_outbound_policy(&rule()).unwrap();
    stage.mesh.store.publish(draft.finish());

    stage.mesh.policy(&no("client"));
    let all = answers(&stage, 40).await;
    // Nor is anybody else asked: who is refused by one endpoint must not get in by another.
    assert!(all.iter().any(String::is_empty), "{all:?}");
    assert!(all.iter().any(|text| text == "10.0.0.2:hello"), "{all:?}");
    assert!(stage.mesh.pods.ejections().is_empty());
    stage.mesh.remove_policy("ns/no-client");

    let failures = |text: &str| -> u32 {
        let lines = text.lines().filter(|line| {
            line.starts_with("istio_tcp_connections_failed_total")
                && line.contains("reporter=\"source\"")
                && line.contains("response_flags=\"CONNECT\"")
        });
        lines
            .map(|l| l.rsplit(' ').next().unwrap().parse::<u32>().unwrap())
            .sum()
    };
    let before = failures(&stage.metrics());
    // Nobody listens there.
    put(9);
    let out = || !stage.mesh.pods.ejections().is_empty();
    for _ in 0..200 {
        // The other endpoint makes up for it.
        assert_eq!(answers(&stage, 1).await, ["10.0.0.2:hello"]);
        if out() {
            break;
        }
    }
    assert_eq!(failures(&stage.metrics()), before + 2);
    let list = stage.mesh.pods.ejections();
    assert_eq!(list["client"][0]["endpoint"], "Kubernetes//Pod/ns/server");
    assert_eq!(list["client"][0]["service"], format!("ns/{WEB}"));
    let counted = format!(
        "isobar_endpoint_ejections_total{{destination_service=\"{WEB}\",\
         destination_service_namespace=\"ns\",result=\"ejected\"}} 1"
    );
    assert!(stage.metrics().contains(&counted), "{}", stage.metrics());
    let all = answers(&stage, 20).await;
    assert!(all.iter().all(|text| text == "10.0.0.2:hello"), "{all:?}");
    // On a machine that was busy for longer it may be back by now.
    if out() {
        assert_eq!(failures(&stage.metrics()), before + 2, "asked nevertheless");
    }

    put(8080);
    until("it is back", || !out()).await;
    let all = answers(&stage, 20).await;
    assert!(all.iter().all(|text| text == "10.0.0.2:hello"), "{all:?}");
    assert!(!out());
}
