//! What policies shut, and that the remedies open just that.

use super::*;
use crate::model::Remedy;

/// The only remedy.
fn remedy(plan: &Plan) -> &Remedy {
    match &plan.remedies[..] {
        [one] => one,
        other => panic!("{other:#?}"),
    }
}

fn ports(remedy: &Remedy, ingress: usize) -> Vec<String> {
    let spec = remedy.after.spec.as_ref().unwrap();
    let rule = &spec.ingress.as_ref().unwrap()[ingress];
    let ports = rule.ports.iter().flatten();
    ports
        .map(|port| {
            let number = port.port.as_ref().map(|p| format!("{p:?}"));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            format!("{protocol} {}", number.unwrap_or_default())
        })
        .collect()
}

/// With the remedies in place nothing is left to do.
fn is_cured(yaml: &str) -> bool {
    let mut objects = objects(yaml);
    for remedy in plan(&objects, &settings(), &KeptKeys::default()).remedies {
        let object = isobar_objects::Object::from(remedy.after);
        objects.insert(object, isobar_objects::Origin::nowhere());
    }
    let after = plan(&objects, &settings(), &KeptKeys::default());
    after.remedies.is_empty()
}

#[test]
fn the_tunnel_is_opened_beside_the_applications_port() {
    let yaml = netpol("p", "matchLabels: {app: cart}", "[{ports: [{port: 8080}]}]");
    let plan = with(&yaml);
    let found = remedy(&plan);
    assert_eq!(ports(found, 0), ["TCP Int(8080)", "TCP Int(15008)"]);
    let door = &found.doors[0];
    assert_eq!((&*door.field, door.port), ("spec.ingress[0].ports", 15008));
    assert!(door.pods.contains("shop/cart-1") && door.pods.len() == 1);
    assert!(
        door.to_string()
            .starts_with("spec.ingress[0].ports lacks port 15008: callers")
    );
    assert_eq!(reasons(&plan, MINE), ["DoorShut", "Enforced"]);
    assert!(is_cured(&format!("{}{yaml}", scenery())));
}

#[test]
fn what_is_open_or_meant_to_be_shut_is_left_alone() {
    for fine in [
        "[{ports: [{port: 8080}, {port: 15008}]}]",
        "[{ports: [{port: 8000, endPort: 16000}]}]",
        "[{}]",
        // Nobody is to come in.
        "[]",
        // Names are looked up by UDP, which is never in a tunnel.
        "[{ports: [{port: 53, protocol: UDP}]}]",
        // Another rule opens it for the same callers, or for all.
        "[{from: [{podSelector: {}}], ports: [{port: 8080}]}, {from: [{podSelector: {}}], ports: [{port: 15008}]}]",
        "[{from: [{podSelector: {}}], ports: [{port: 8080}]}, {ports: [{port: 15008}]}]",
    ] {
        let plan = with(&netpol("p", "matchLabels: {app: cart}", fine));
        assert_eq!(plan.remedies, [], "{fine}");
    }
    // No pod of the mesh.
    let plan = with(&netpol(
        "p",
        "matchLabels: {app: nobody}",
        "[{ports: [{port: 8080}]}]",
    ));
    assert_eq!(plan.remedies, []);
}

#[test]
fn each_rule_is_opened_for_its_own_callers() {
    let yaml = netpol(
        "p",
        "matchLabels: {app: cart}",
        "[{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}, {from: [{namespaceSelector: {matchLabels: {tier: front}}}], ports: [{port: 15008}, {port: 80}]}]",
    );
    let plan = with(&yaml);
    let found = remedy(&plan);
    assert_eq!(ports(found, 0), ["TCP Int(8080)", "TCP Int(15008)"]);
    assert_eq!(ports(found, 1), ["TCP Int(15008)", "TCP Int(80)"]);
    assert_eq!(found.doors.len(), 1);
}

#[test]
fn policies_add_up() {
    let one = netpol("p", "matchLabels: {app: cart}", "[{ports: [{port: 8080}]}]");
    let all = netpol("q", "", "[{ports: [{port: 15008}]}]");
    assert_eq!(with(&format!("{one}{all}")).remedies, []);
}

/// A waypoint `wp` of `shop` with a pod, for all services.
fn with_waypoint(policies: &str) -> String {
    let labels = format!("{AMBIENT}, istio.io/use-waypoint: wp");
    let instance = pod(
        "wp-1",
        "wp",
        "gateway.networking.k8s.io/gateway-name: wp, networking.istio.io/tunnel: http, istio.io/dataplane-mode: none",
        false,
    );
    format!(
        "{}{}{}{instance}---\napiVersion: v1\nkind: Service\nmetadata: {{name: cart, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.0.7, selector: {{app: cart}}, ports: [{{port: 80}}]}}\n{policies}",
        namespace(&labels),
        gateway("wp", ""),
        pod("cart-1", "cart", "app: cart", true),
    )
}

#[test]
fn the_waypoint_is_let_in_where_its_callers_are() {
    let front = "[{from: [{namespaceSelector: {matchLabels: {tier: front}}}], ports: [{port: 8080}, {port: 15008}]}]";
    let yaml = with_waypoint(&netpol("p", "matchLabels: {app: cart}", front));
    let plan = planned(&yaml);
    let found = remedy(&plan);
    let rule = &found.after.spec.as_ref().unwrap().ingress.as_ref().unwrap()[1];
    let from = &rule.from.as_ref().unwrap()[0];
    let wanted = from
        .pod_selector
        .as_ref()
        .unwrap()
        .match_labels
        .as_ref()
        .unwrap();
    assert_eq!(wanted["gateway.networking.k8s.io/gateway-name"], "wp");
    assert_eq!(ports(found, 1), ["TCP Int(15008)"]);
    assert!(found.doors[0].consequence.contains("shop/wp"));
    assert!(is_cured(&yaml));
}

#[test]
fn a_waypoint_that_is_shut_gets_a_policy_of_its_own() {
    let yaml = with_waypoint(&netpol("deny-all", "", "[]"));
    let plan = planned(&yaml);
    let found = remedy(&plan);
    assert_eq!(found.before, None);
    assert_eq!(found.after.metadata.name.as_deref(), Some("wp-mesh"));
    let spec = found.after.spec.as_ref().unwrap();
    assert_eq!(
        spec.policy_types.as_deref(),
        Some(&["Ingress".to_owned()][..])
    );
    assert!(is_cured(&yaml));
}

#[test]
fn egress_needs_the_tunnel_names_and_the_way_to_the_waypoint() {
    let yaml = with_waypoint(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 80}]}]}\n",
    ) + &pod("web-1", "web", "app: web", true);
    let plan = planned(&yaml);
    let found = remedy(&plan);
    let doors: Vec<(&str, u16)> = found.doors.iter().map(|d| (&*d.field, d.port)).collect();
    assert_eq!(
        doors,
        [
            ("spec.egress[0].ports", 15008),
            ("spec.egress[1]", 15008),
            ("spec.egress[2]", 53)
        ]
    );
    assert!(is_cured(&yaml));
}
