//! What the mesh does not run itself, or does not know: waypoints of others, name servers, ways through waypoints.

use super::*;
use crate::model::Remedy;

fn remedy(plan: &Plan) -> &Remedy {
    match &plan.remedies[..] {
        [one] => one,
        other => panic!("{other:#?}"),
    }
}

/// `cart-1` behind a Service whose waypoint somebody else runs.
fn behind_theirs(policies: &str) -> Plan {
    let theirs = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {name: theirs, namespace: shop}\n\
         spec: {gatewayClassName: other, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n\
         status: {addresses: [{type: IPAddress, value: 10.96.0.9}]}\n";
    let service = "---\napiVersion: v1\nkind: Service\n\
         metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: theirs}}\n\
         spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}\n";
    with(&format!("{theirs}{service}{policies}"))
}

#[test]
fn a_waypoint_of_somebody_elses_may_let_in_whom_a_policy_does_not() {
    let cart = "matchLabels: {app: cart}";
    let ports = "ports: [{port: 80}, {port: 15008}]";
    let from = "from: [{podSelector: {matchLabels: {app: web}}}]";
    let plan = behind_theirs(&netpol("p", cart, &format!("[{{{from}, {ports}}}]")));
    let told = reasons(&plan, MINE);
    assert!(told.contains(&"ForeignWaypoint"), "{told:?}");
    let wider = remedy(&plan).doors[0].wider.as_deref().unwrap_or_default();
    assert!(
        wider.starts_with("the waypoint shop/theirs is somebody else's"),
        "{wider}"
    );
    // Nobody is kept out who could come in this way.
    let plan = behind_theirs(&netpol("p", cart, &format!("[{{{ports}}}]")));
    assert_eq!(reasons(&plan, MINE), ["Enforced"]);
    let web = "matchLabels: {app: web}";
    let plan = behind_theirs(&netpol("p", web, &format!("[{{{from}, {ports}}}]")));
    assert_eq!(reasons(&plan, MINE), ["Enforced"], "it serves other pods");
}

/// A policy about what `web` reaches.
fn out(egress: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: p, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: {egress}}}\n"
    )
}

/// A Service for names with one pod, which calls its port `dns`.
fn names(namespace: &str, target: &str, number: u16) -> String {
    let one = pod("dns-1", "dns", "k8s-app: kube-dns", true)
        .replace("namespace: shop", &format!("namespace: {namespace}"))
        .replace(
            "{name: web, containerPort: 9000}",
            &format!("{{name: dns, containerPort: {number}, protocol: UDP}}"),
        );
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: {namespace}}}\n\
         spec: {{clusterIP: 10.96.0.10, selector: {{k8s-app: kube-dns}}, \
         ports: [{{port: 53, targetPort: {target}, protocol: UDP}}]}}\n{one}"
    )
}

#[test]
fn ports_of_name_servers_are_known_by_name_and_number() {
    for (target, number, port, fine) in [
        ("dns", 53, "dns", true),
        ("53", 53, "dns", true),
        ("5353", 5353, "dns", true),
        ("dns", 5353, "5353", true),
        ("53", 53, "other", false),
        ("53", 53, "54", false),
    ] {
        let yaml = names("kube-system", target, number);
        let to =
            "to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]";
        let policy = out(&format!(
            "[{{{to}, ports: [{{port: {port}, protocol: UDP}}]}}]"
        ));
        let plan = with(&format!("{yaml}{policy}"));
        let doors: Vec<_> = plan.remedies.iter().flat_map(|one| &one.doors).collect();
        assert_eq!(
            doors.is_empty(),
            fine,
            "{target} {number} {port}: {doors:?}"
        );
    }
}

#[test]
fn names_are_opened_towards_the_clusters_name_servers_alone() {
    let policy = out("[{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}]");
    for (servers, narrow, ports) in [
        (names("kube-system", "53", 53), true, 2),
        (names("kube-system", "5353", 5353), true, 4),
        // Anybody may have such a Service.
        (names("front", "53", 53), false, 2),
        (String::new(), false, 2),
    ] {
        let plan = with(&format!("{servers}{policy}"));
        let found = remedy(&plan);
        let spec = found.after.spec.as_ref().unwrap();
        let rule = &spec.egress.as_ref().unwrap()[1];
        assert_eq!(rule.ports.as_ref().unwrap().len(), ports, "{servers}");
        assert_eq!(found.doors[0].wider.is_none(), narrow, "{servers}");
        let to = serde_json::to_value(&rule.to).unwrap();
        let peer = serde_json::json!([{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }]);
        let wanted = if narrow {
            peer
        } else {
            serde_json::Value::Null
        };
        assert_eq!(to, wanted, "{servers}");
    }
}

#[test]
fn a_way_to_a_waypoint_is_one_to_all_that_it_serves() {
    let labels = "gateway.networking.k8s.io/gateway-name: wp, networking.istio.io/tunnel: http, \
         istio.io/dataplane-mode: none";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
         spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}\n";
    let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {name: far, namespace: shop}\n\
         spec: {hosts: [far.example.com], ports: [{number: 80, name: http, protocol: HTTP}], \
         resolution: STATIC, endpoints: [{address: 192.0.2.1}]}\n";
    let own =
        "podSelector: {matchExpressions: [{key: networking.istio.io/tunnel, operator: Exists}]}";
    for (peer, more, exceeded) in [
        // The waypoint's pods, by a label that does not say so.
        (own, "", true),
        ("podSelector: {matchLabels: {app: cart}}", "", false),
        // All that it serves is in the namespace that the rule names.
        ("podSelector: {}", "", false),
        ("podSelector: {}", entry, true),
        // The waypoint's address is 10.244.1.75, and that of what it serves 10.244.1.20.
        ("ipBlock: {cidr: 10.244.1.75/32}", "", true),
        ("ipBlock: {cidr: 10.244.1.64/26}", "", true),
        ("ipBlock: {cidr: 10.244.1.0/24}", "", false),
        ("ipBlock: {cidr: 10.244.1.0/24}", entry, true),
        (
            "ipBlock: {cidr: 10.244.1.0/24, except: [10.244.1.20/32]}",
            "",
            true,
        ),
        (
            "ipBlock: {cidr: 10.244.1.0/24, except: [10.244.1.75/32]}",
            "",
            false,
        ),
        ("ipBlock: {cidr: 192.0.2.0/24}", entry, false),
    ] {
        let rule = format!("[{{to: [{{{peer}}}]}}]");
        let yaml = format!(
            "{}{}{}{}{}{service}{more}{}",
            namespace(&format!("{AMBIENT}, istio.io/use-waypoint: wp")),
            gateway("wp", ""),
            pod("wp-1", "wp", labels, true),
            pod("cart-1", "cart", "app: cart", true),
            pod("web-1", "web", "app: web", true),
            out(&rule),
        );
        let told = reasons(&planned(&yaml), MINE).contains(&"EgressOpen");
        assert_eq!(told, exceeded, "{peer} {more}");
    }
}
