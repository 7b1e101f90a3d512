use isobar_proto::istio::workload as wire;
use isobar_proto::istio::workload::gateway_address::Destination;

use super::golden_tests::{
    gateway as ours, namespace, planned, pod, policy, reasons, waypoint_pod,
};
use super::{Plan, Severity};

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
fn one_that_is_there_and_takes_nothing_yet_is_not_said_to_be_missing() {
    for (gateway, lacks) in [
        (gateway("", TUNNELS, ""), "has no address"),
        (
            gateway("", "port: 80, protocol: HTTP", BY_NAME),
            "has no listener of protocol HBONE",
        ),
        (String::new(), "does not exist"),
    ] {
        let yaml = [
            namespace("istio.io/use-waypoint: theirs"),
            SERVICE.to_owned(),
            gateway,
        ];
        let plan = planned(&yaml.concat());
        let mut verdicts = plan.verdicts.iter();
        let told = verdicts.find(|one| one.reason == "WaypointIsNotReady");
        let told = told.unwrap();
        assert!(told.message.contains(lacks), "{}", told.message);
        let class = told.message.contains("of class other is no waypoint yet");
        assert_eq!(class, lacks != "does not exist", "{}", told.message);
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

const OWN: &str = "istio.io/use-waypoint: theirs";

/// A Service with these labels and annotations, one waypoint of ours and theirs, and these objects.
fn shop(labels: &str, annotations: &str, objects: &str) -> Plan {
    let meta = format!("namespace: shop, labels: {{{labels}}}, annotations: {{{annotations}}}}}");
    let yaml = [
        namespace(""),
        SERVICE.replace("namespace: shop}", &meta),
        ours("wp", ""),
        waypoint_pod("wp", true),
        gateway("", TUNNELS, BY_NAME),
        objects.to_owned(),
    ];
    planned(&yaml.concat())
}

/// Of what is said of an object: condition, whether it holds, reason and gravity.
fn judged<'p>(plan: &'p Plan, object: &str) -> Vec<(&'p str, bool, &'p str, Severity)> {
    let all = plan.verdicts.iter();
    let all = all.filter(|one| one.object.to_string() == object);
    all.map(|one| (one.condition, one.holds, one.reason, one.severity))
        .collect()
}

fn to_service() -> String {
    "targetRefs: [{group: '', kind: Service, name: cart}]".to_owned()
}

fn to_gateway() -> String {
    "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: theirs}]".to_owned()
}

const ACCEPTED: &str = "WaypointAccepted";
const UNKNOWN: (&str, bool, &str, Severity) =
    (ACCEPTED, false, "ForeignWaypoint", Severity::Warning);

#[test]
fn nobody_promises_that_it_keeps_policies() {
    for target in [to_service(), to_gateway()] {
        let deny = policy("shop", &format!("{target}, action: DENY, rules: [{{}}]"));
        let limits = format!(
            "---\napiVersion: isobar.dev/v1\nkind: RateLimitPolicy\n\
             metadata: {{name: lim, namespace: shop}}\n\
             spec: {{{target}, limits: [{{requests: 1, per: 1s}}]}}\n"
        );
        let plan = shop(OWN, "", &(deny + &limits));
        for object in ["AuthorizationPolicy shop/p", "RateLimitPolicy shop/lim"] {
            assert_eq!(judged(&plan, object), [UNKNOWN], "{target} of {object}");
            let mut all = plan.verdicts.iter();
            let said = all.find(|one| one.object.to_string() == object).unwrap();
            let text = &said.message;
            assert!(text.contains("shop/theirs"), "{text}");
            assert!(text.contains("somebody else"), "{text}");
        }
    }
    // What cannot be enforced is refused by waypoints of ours alone.
    let custom = format!(
        "{}, action: CUSTOM, provider: {{name: x}}, rules: [{{}}]",
        to_service()
    );
    let plan = shop(OWN, "", &policy("shop", &custom));
    let mut all = plan.verdicts.iter();
    let said = all.find(|one| one.condition == ACCEPTED).unwrap();
    assert_eq!((said.holds, said.reason), (false, "Invalid"));
    for part in [
        "CUSTOM",
        "ExternalAuth",
        "refuse everything",
        "not known here",
    ] {
        assert!(said.message.contains(part), "{part}: {}", said.message);
    }
}

#[test]
fn a_share_of_the_calls_to_a_policys_target_is_told_when_it_passes_one() {
    let labels = "istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: theirs";
    let deny = format!("{}, action: DENY, rules: [{{}}]", to_service());
    let deny = policy("shop", &deny);
    let of = |share: &str| {
        let weight = format!("istio.io/use-waypoint-canary-weight: '{share}'");
        shop(labels, &weight, &deny)
    };
    let plan = of("30");
    let (_, holds, reason, severity) = UNKNOWN;
    let around = ("isobar.dev/AtCanaries", holds, reason, severity);
    let mut told = judged(&plan, "AuthorizationPolicy shop/p");
    told.sort_unstable();
    assert_eq!(told, [UNKNOWN, around]);
    let plan = of("0");
    let told = judged(&plan, "AuthorizationPolicy shop/p");
    assert_eq!(told, [(ACCEPTED, true, "Accepted", Severity::Info)]);
}

#[test]
fn routes_at_its_gateway_are_for_its_own_controller_to_judge() {
    let route = |name: &str, parent: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: {name}, namespace: shop}}\n\
             spec: {{parentRefs: [{{name: {parent}}}], rules: [{{backendRefs: [{{name: cart, port: 80}}]}}]}}\n"
        )
    };
    let plan = shop(
        "",
        "",
        &(route("to-theirs", "theirs") + &route("to-ours", "wp")),
    );
    let parents = plan.routes.iter().flat_map(|route| {
        let name = route.object.name.as_ref();
        route
            .parents
            .iter()
            .map(move |one| (name, one.conditions[0].reason))
    });
    let parents: Vec<_> = parents.collect();
    assert_eq!(parents, [("to-ours", "NotAllowedByListeners")]);
}
