use isobar_proto::istio::workload::gateway_address::Destination;

use super::golden_tests::{gateway, namespace, planned, waypoint_pod};

fn service(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
         spec: {{clusterIP: 10.96.0.7, ports: [{{port: 80}}]}}\n"
    )
}

const MADE: &str = "gateway.istio.io/managed: istio.io-mesh-controller, \
                    gateway.networking.k8s.io/gateway-name: wp";

/// Where calls to `cart` go, and which Services are reached directly.
fn through(services: &[String]) -> (String, Vec<String>) {
    let renamed = ", annotations: {gateway.istio.io/name-override: front}";
    let mut yaml = vec![
        namespace("istio.io/use-waypoint: wp"),
        gateway("wp", renamed),
        waypoint_pod("wp", true),
        service("cart", ""),
    ];
    yaml.extend_from_slice(services);
    let plan = planned(&yaml.concat());
    let waypoint = |service: &super::ServicePlan| {
        let gateway = service.wire.waypoint.as_ref()?;
        match gateway.destination.as_ref()? {
            Destination::Hostname(name) => Some(name.hostname.clone()),
            Destination::Address(_) => None,
        }
    };
    let cart = plan.services.iter().find(|one| &*one.key.name == "cart");
    let direct = plan.services.iter().filter(|one| one.is_waypoint);
    assert_eq!(
        plan.waypoints[0].waypoint.hostname,
        waypoint(cart.unwrap()).unwrap(),
        "the waypoint knows what it is called"
    );
    (
        waypoint(cart.unwrap()).unwrap(),
        direct.map(|one| one.key.name.to_string()).collect(),
    )
}

#[test]
fn a_renamed_waypoint_is_reached_by_its_old_name_until_the_new_service_is_there() {
    let (old, new) = (service("wp", MADE), service("front", MADE));
    let somebodys = service("front", "app: x");
    for (services, host, direct) in [
        (vec![], "front", vec![]),
        (vec![old.clone()], "wp", vec!["wp"]),
        (vec![old.clone(), somebodys], "wp", vec!["wp"]),
        (vec![old, new.clone()], "front", vec!["front", "wp"]),
        (vec![new], "front", vec!["front"]),
    ] {
        let (found, reached) = through(&services);
        assert_eq!(
            found,
            format!("{host}.shop.svc.cluster.local"),
            "{services:?}"
        );
        assert_eq!(reached, direct, "{services:?}");
    }
    // A label alone makes no waypoint of a Service.
    let (_, reached) = through(&[service("other", MADE), service("front", MADE)]);
    assert_eq!(reached, ["front"]);
}
