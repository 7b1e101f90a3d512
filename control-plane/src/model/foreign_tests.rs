use isobar_proto::istio::workload as wire;
use isobar_proto::istio::workload::gateway_address::Destination;

use super::golden_tests::{namespace, planned, pod, reasons};

/// A Gateway of somebody else's class.
fn gateway(annotations: &str, listener: &str, addresses: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: theirs, namespace: shop, annotations: {{{annotations}}}}}
spec:
  gatewayClassName: other
  listeners: [{{name: mesh, {listener}}}]
status: {{addresses: [{addresses}]}}
"
    )
}

const BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
const TUNNELS: &str = "port: 15008, protocol: HBONE";
const BY_NAME: &str =
    "{type: IPAddress, value: 10.96.0.9}, {type: Hostname, value: Theirs.shop.svc.cluster.local}";

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}
";

/// The waypoint of the Service, the tunnel of the waypoint's pod, and what is said of the Service.
fn told(gateway: &str) -> (Option<Destination>, Option<wire::ApplicationTunnel>, String) {
    let label = "gateway.networking.k8s.io/gateway-name: theirs";
    let yaml = [
        namespace("istio.io/use-waypoint: theirs"),
        SERVICE.to_owned(),
        pod("theirs-1", "theirs", label, true),
        gateway.to_owned(),
    ];
    let plan = planned(&yaml.concat());
    assert!(plan.gateways.is_empty(), "somebody else runs it");
    let waypoint = plan.services[0].wire.waypoint.clone();
    let tunnel = plan.workloads[0].wire.application_tunnel;
    let said = reasons(&plan, "Service shop/cart").join(" ");
    (waypoint.and_then(|one| one.destination), tunnel, said)
}

fn tunnel(protocol: wire::application_tunnel::Protocol, port: u32) -> wire::ApplicationTunnel {
    wire::ApplicationTunnel {
        protocol: protocol.into(),
        port,
    }
}

#[test]
fn a_waypoint_of_another_class_takes_traffic_once_it_has_an_address() {
    let host = Destination::Hostname(wire::NamespacedHostname {
        namespace: "shop".to_owned(),
        hostname: "theirs.shop.svc.cluster.local".to_owned(),
    });
    let (to, tunnel, said) = told(&gateway("", TUNNELS, BY_NAME));
    assert_eq!((to, tunnel), (Some(host.clone()), None));
    assert_eq!(said, "WaypointAccepted");
    let (to, ..) = told(&gateway("", TUNNELS, "{value: 10.96.0.9}"));
    let address = Destination::Address(wire::NetworkAddress {
        network: String::new(),
        address: vec![10, 96, 0, 9],
        length: None,
    });
    assert_eq!(to, Some(address));
    // Not ready yet, or no waypoint at all: never passed by.
    for gateway in [
        gateway("", TUNNELS, ""),
        gateway("", "port: 80, protocol: HTTP", BY_NAME),
    ] {
        let (to, _, said) = told(&gateway);
        assert_eq!((to, &*said), (Some(host.clone()), "WaypointIsNotReady"));
    }
}

#[test]
fn node_proxies_hand_over_to_a_waypoint_that_is_bound_to_them() {
    use wire::application_tunnel::Protocol::{None as Plain, Proxy};

    let of = |text: &str, listener: &str| {
        let annotation = format!("{BINDING}: {text}");
        let (_, tunnel, said) = told(&gateway(&annotation, listener, BY_NAME));
        (tunnel, said)
    };
    let proxied = "port: 15088, protocol: istio.io/PROXY";
    let good = "WaypointAccepted".to_owned();
    assert_eq!(of("PROXY", proxied), (Some(tunnel(Proxy, 0)), good.clone()));
    let with_port = of("PROXY/15088", proxied);
    assert_eq!(with_port, (Some(tunnel(Proxy, 15088)), good.clone()));
    assert_eq!(
        of("NONE/80", TUNNELS),
        (Some(tunnel(Plain, 80)), good.clone())
    );
    // As if it were not there.
    assert_eq!(of("proxy", TUNNELS), (None, good));
    assert_eq!(
        of("proxy", proxied),
        (None, "WaypointIsNotReady".to_owned())
    );

    // The class says it for all its Gateways, and each for itself.
    let class = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
         metadata: {{name: other, annotations: {{{BINDING}: PROXY/1}}}}\n\
         spec: {{controllerName: example.com/other}}\n"
    );
    let (_, of_class, _) = told(&(gateway("", TUNNELS, BY_NAME) + &class));
    assert_eq!(of_class, Some(tunnel(Proxy, 1)));
    let own = format!("{BINDING}: PROXY/2");
    let (_, of_both, _) = told(&(gateway(&own, TUNNELS, BY_NAME) + &class));
    assert_eq!(of_both, Some(tunnel(Proxy, 2)));
}

#[test]
fn who_may_use_it_is_said_by_the_listener_of_its_binding() {
    let all = "allowedRoutes: {namespaces: {from: All}}";
    let nobody = "allowedRoutes: {namespaces: {from: None}}";
    let two = |binding: &str, first: &str, second: &str| {
        let annotation = format!("{BINDING}: {binding}");
        let listeners = format!(
            "port: 15008, protocol: HBONE, {first}}}, {{name: in, port: 15088, protocol: istio.io/PROXY, {second}"
        );
        told(&gateway(&annotation, &listeners, BY_NAME)).2
    };
    assert_eq!(two("PROXY", nobody, all), "WaypointAccepted");
    assert_eq!(two("PROXY/15088", nobody, all), "WaypointAccepted");
    assert_eq!(two("PROXY", all, nobody), "AttachmentDenied");
    assert_eq!(two("PROXY/1", all, nobody), "WaypointAccepted");
}
