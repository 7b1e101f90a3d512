//! What policies shut, and that the remedies open just that.

use super::*;
use crate::model::{Missing, Remedy};

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
    assert_eq!(&*door.field, "spec.ingress[0].ports");
    assert_eq!(door.missing, Missing::Port(15008));
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
fn a_name_that_is_taken_is_left_to_whoever_has_it() {
    let mine = netpol("wp-mesh", "matchLabels: {app: cart}", "[{}]");
    let yaml = with_waypoint(&format!("{}{mine}", netpol("deny-all", "", "[]")));
    let plan = planned(&yaml);
    let found = remedy(&plan);
    assert_eq!(found.before, None);
    assert_eq!(found.after.metadata.name.as_deref(), Some("wp-mesh-2"));
    assert!(is_cured(&yaml));
    // One for the same pods takes one rule more, and keeps its own.
    let own = "matchLabels: {gateway.networking.k8s.io/gateway-name: wp}";
    let mine = netpol("wp-mesh", own, "[{ports: [{port: 15021}]}]");
    let yaml = with_waypoint(&format!("{}{mine}", netpol("deny-all", "", "[]")));
    let plan = planned(&yaml);
    let found = remedy(&plan);
    assert!(found.before.is_some());
    assert_eq!(ports(found, 0), ["TCP Int(15021)"]);
    assert_eq!(ports(found, 1), ["TCP Int(15008)"]);
    assert_eq!(&*found.doors[0].field, "spec.ingress[1]");
    assert!(is_cured(&yaml));
}

/// A policy about both ways that lets nothing through.
fn closed(namespace: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: closed, namespace: {namespace}}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}\n"
    )
}

fn opened(found: &Remedy) -> (Vec<String>, Vec<String>) {
    let spec = found.after.spec.as_ref().unwrap();
    let number = |port: &k8s_openapi::api::networking::v1::NetworkPolicyPort| {
        let number = serde_json::to_value(&port.port).unwrap();
        format!("{} {number}", port.protocol.as_deref().unwrap_or("TCP"))
    };
    let ingress = spec.ingress.iter().flatten().flat_map(|rule| &rule.ports);
    let egress = spec.egress.iter().flatten().flat_map(|rule| &rule.ports);
    (
        ingress.flatten().map(number).collect(),
        egress.flatten().map(number).collect(),
    )
}

#[test]
fn a_waypoint_that_is_shut_in_gets_what_it_needs_and_no_more() {
    let yaml = with_waypoint(&closed("shop"));
    let plan = planned(&yaml);
    let found = plan.remedies.iter().find(|one| one.before.is_none());
    let (inbound, outbound) = opened(found.unwrap());
    assert_eq!(inbound, ["TCP 15008"]);
    assert_eq!(outbound, ["TCP 15012", "TCP 15008", "UDP 53", "TCP 53"]);
    assert!(is_cured(&yaml));
}

#[test]
fn the_meshs_own_pods_are_reached_and_reach_what_they_need() {
    let part = |name: &str| {
        let label = format!("app.kubernetes.io/name: {name}, istio.io/dataplane-mode: none");
        pod(&format!("{name}-1"), name, &label, true)
            .replace("namespace: shop", "namespace: istio-system")
    };
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: kubernetes, namespace: default}\n\
         spec: {clusterIP: 10.96.0.1, ports: [{port: 443, targetPort: 6443}]}\n";
    let home = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n";
    let yaml = format!(
        "{home}{service}{}{}{}",
        part("isobard"),
        part("ztunnel"),
        closed("istio-system")
    );
    let plan = planned(&yaml);
    let of = |name: &str| {
        let mut all = plan.remedies.iter();
        opened(
            all.find(|one| one.after.metadata.name.as_deref() == Some(name))
                .unwrap(),
        )
    };
    let (inbound, outbound) = of("isobard-mesh");
    assert_eq!(inbound, ["TCP 15012", "TCP 15017"]);
    assert_eq!(outbound, ["TCP 443", "TCP 6443", "UDP 53", "TCP 53"]);
    let (inbound, outbound) = of("ztunnel-mesh");
    assert!(inbound.is_empty());
    assert_eq!(outbound, ["TCP 15012", "UDP 53", "TCP 53"]);
    assert!(is_cured(&yaml));
}

/// A policy about what `web` reaches.
fn out(name: &str, egress: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: {egress}}}\n"
    )
}

#[test]
fn names_are_looked_up_where_name_servers_are() {
    let dns = "---\napiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\n\
         spec: {clusterIP: 10.96.0.10, selector: {k8s-app: kube-dns}, ports: [{port: 53, protocol: UDP}]}\n";
    let udp = "ports: [{port: 53, protocol: UDP}]";
    for (to, known, fine) in [
        ("[{podSelector: {matchLabels: {app: cart}}}]", true, false),
        ("[{podSelector: {matchLabels: {app: cart}}}]", false, false),
        (
            "[{namespaceSelector: {matchLabels: {tier: front}}}]",
            true,
            false,
        ),
        (
            "[{namespaceSelector: {matchLabels: {tier: front}}}]",
            false,
            true,
        ),
        (
            "[{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]",
            true,
            true,
        ),
        (
            "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]",
            true,
            true,
        ),
        ("[{ipBlock: {cidr: 169.254.20.10/32}}]", true, true),
        ("[]", true, true),
    ] {
        let known = if known { dns } else { "" };
        let policy = out("p", &format!("[{{to: {to}, {udp}}}]"));
        let plan = with(&format!("{known}{policy}"));
        let doors: Vec<_> = plan.remedies.iter().flat_map(|one| &one.doors).collect();
        assert_eq!(doors.is_empty(), fine, "{to}: {doors:?}");
    }
}

#[test]
fn egress_rules_that_lead_out_of_the_mesh_get_no_tunnel() {
    let far = pod("db-1", "db", "app: db, istio.io/dataplane-mode: none", true);
    let names = "{ports: [{port: 53, protocol: UDP}]}";
    let to = |app: &str| {
        format!("{{to: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}], ports: [{{port: 80}}]}}")
    };
    let plan = with(&format!(
        "{far}{}",
        out("p", &format!("[{}, {names}]", to("db")))
    ));
    assert_eq!(plan.remedies, []);
    let both = format!("[{}, {}, {names}]", to("db"), to("cart"));
    let plan = with(&format!("{far}{}", out("p", &both)));
    let fields = remedy(&plan).doors.iter().map(|door| &*door.field);
    assert_eq!(fields.collect::<Vec<_>>(), ["spec.egress[1].ports"]);
}

#[test]
fn what_the_tunnel_makes_of_egress_rules_is_told() {
    let cart = "to: [{podSelector: {matchLabels: {app: cart}}}]";
    let wp = "to: [{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: wp}}}]";
    for (rules, exceeded) in [
        (
            format!("[{{{cart}, ports: [{{port: 80}}, {{port: 15008}}]}}]"),
            true,
        ),
        (format!("[{{{wp}}}]"), true),
        ("[{ports: [{port: 15008}]}]".to_owned(), true),
        (format!("[{{{cart}, ports: [{{port: 80}}]}}]"), false),
        (format!("[{{{cart}}}]"), false),
        (
            format!("[{{{cart}, ports: [{{port: 1, endPort: 65535}}]}}]"),
            false,
        ),
        (
            format!("[{{{cart}, ports: [{{port: 15008}}]}}, {{}}]"),
            false,
        ),
    ] {
        let plan = with(&out("p", &rules));
        let told = reasons(&plan, MINE).contains(&"EgressOpen");
        assert_eq!(told, exceeded, "{rules}");
    }
    // Nobody of the mesh is selected.
    let policy = out("p", "[{ports: [{port: 15008}]}]").replace("app: web", "app: nobody");
    assert!(reasons(&with(&policy), MINE).is_empty());
}

#[test]
fn egress_needs_the_tunnel_names_and_the_way_to_the_waypoint() {
    let yaml = with_waypoint(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 80}]}]}\n",
    ) + &pod("web-1", "web", "app: web", true);
    let plan = planned(&yaml);
    let found = remedy(&plan);
    let doors = found.doors.iter().map(|d| (&*d.field, d.missing));
    assert_eq!(
        doors.collect::<Vec<_>>(),
        [
            ("spec.egress[0].ports", Missing::Port(15008)),
            ("spec.egress[1]", Missing::Port(15008)),
            ("spec.egress[2]", Missing::Port(53))
        ]
    );
    assert!(is_cured(&yaml));
}

/// `cart-1` and `web-1` of the mesh are probed at their port `web`, 9000; `far-1` is not of the mesh.
fn probed(policies: &str) -> String {
    let probe = "image: i, readinessProbe: {httpGet: {path: /, port: web}}";
    let far = pod(
        "far-1",
        "far",
        "app: far, istio.io/dataplane-mode: none",
        true,
    );
    format!("{}{far}", scenery()).replace("image: i", probe) + policies
}

#[test]
fn probes_of_isolated_pods_are_let_in_where_they_come_from() {
    for (select, shut, pods) in [
        // Nobody is to come in, and the kubelet is nobody.
        ("", "[]", 2),
        ("matchLabels: {app: cart}", "[]", 1),
        ("matchLabels: {app: far}", "[]", 0),
        (
            "",
            "[{from: [{namespaceSelector: {}}], ports: [{port: 9000}, {port: 15008}]}]",
            2,
        ),
        ("", "[{ports: [{port: 80}, {port: 15008}]}]", 2),
        (
            "",
            "[{from: [{ipBlock: {cidr: 169.254.0.0/16, except: [169.254.7.0/24]}}]}]",
            2,
        ),
        ("", "[{from: [{ipBlock: {cidr: 169.254.0.0/16}}]}]", 0),
        (
            "",
            "[{from: [{ipBlock: {cidr: 169.254.7.127/32}}], ports: [{port: web}]}]",
            0,
        ),
        ("", "[{ports: [{port: web}, {port: 15008}]}]", 0),
    ] {
        let yaml = probed(&netpol("p", select, shut));
        let plan = planned(&yaml);
        let doors = plan.remedies.iter().flat_map(|remedy| &remedy.doors);
        let probes: Vec<_> = doors
            .filter(|door| matches!(door.missing, Missing::Source(_)))
            .collect();
        let named: usize = probes.iter().map(|door| door.pods.len()).sum();
        assert_eq!(
            (probes.len(), named),
            (pods.min(1), pods),
            "{select} {shut}"
        );
        assert!(is_cured(&yaml), "{select} {shut}");
    }
}

#[test]
fn the_rule_for_probes_lets_in_nobody_else() {
    let yaml = probed(&netpol("p", "", "[]"));
    let plan = planned(&yaml);
    let found = remedy(&plan);
    let spec = found.after.spec.as_ref().unwrap();
    let rule = &spec.ingress.as_ref().unwrap()[0];
    let block = rule.from.as_ref().unwrap()[0].ip_block.as_ref().unwrap();
    assert_eq!((&*block.cidr, &rule.ports), ("169.254.7.127/32", &None));
    let door = &found.doors[0];
    assert!(
        door.to_string()
            .starts_with("spec.ingress[0] lacks 169.254.7.127/32: the kubelet's probes")
    );
    assert_eq!(reasons(&plan, MINE), ["ProbesShut", "Enforced"]);
    // A waypoint still has no business there, and callers of the mesh are refused as before.
    let cured = with_waypoint(&netpol(
        "p",
        "matchLabels: {app: cart}",
        "[{from: [{ipBlock: {cidr: 169.254.7.127/32}}]}]",
    ));
    let plan = planned(&cured);
    assert_eq!(plan.remedies, []);
    let denied = converted(&plan);
    assert_eq!(denied.len(), 1);
    let clauses = text(&denied[0].rules[0]);
    assert!(clauses.ends_with("& ip!=169.254.7.127/32"), "{clauses}");
}

#[test]
fn what_shuts_more_than_probes_is_told_as_a_shut_door() {
    let from = "[{from: [{podSelector: {}}], ports: [{port: 9000}]}]";
    let yaml = probed(&netpol("p", "matchLabels: {app: cart}", from));
    let plan = planned(&yaml);
    assert_eq!(reasons(&plan, MINE), ["DoorShut", "Enforced"]);
    assert_eq!(remedy(&plan).doors.len(), 2);
    // The policy for all pods is the one for all probes.
    let wide = netpol("z", "", "[]");
    let plan = planned(&format!("{yaml}{wide}"));
    let of = |name: &str| {
        let mut all = plan.remedies.iter();
        let found = all.find(|one| one.after.metadata.name.as_deref() == Some(name));
        let doors = found.map(|one| one.doors.iter().map(|door| door.missing).collect());
        doors.unwrap_or_else(Vec::new)
    };
    assert_eq!(of("p"), [Missing::Port(15008)]);
    assert!(matches!(of("z")[..], [Missing::Source(_)]), "{:?}", of("z"));
}
