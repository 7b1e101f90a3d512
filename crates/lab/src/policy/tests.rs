use super::*;
use serde_json::{Value, json};

fn pod(name: &str, namespace: &str, labels: &Value, host: u8, node: &str) -> PodView {
    let object = json!({
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
    });
    let pod: isobar_objects::Pod = serde_json::from_value(object).unwrap();
    PodView {
        namespace: namespace.to_owned(),
        labels: pod.labels().clone(),
        ip: Ipv4Addr::new(10, 244, 1, host),
        node: node.to_owned(),
        device: format!("pod{host}"),
        ready: true,
        pod: Arc::new(pod),
    }
}

fn cluster() -> Cluster {
    let labels = |name: &str, team: &str| {
        BTreeMap::from([
            ("kubernetes.io/metadata.name".to_owned(), name.to_owned()),
            ("team".to_owned(), team.to_owned()),
        ])
    };
    Cluster {
        pods: vec![
            pod("web", "shop", &json!({"app": "web"}), 2, "node-1"),
            pod("client", "shop", &json!({"app": "client"}), 3, "node-1"),
            pod("guest", "hall", &json!({"app": "client"}), 4, "node-2"),
        ],
        services: Vec::new(),
        namespaces: BTreeMap::from([
            ("shop".to_owned(), labels("shop", "a")),
            ("hall".to_owned(), labels("hall", "b")),
            ("kube-system".to_owned(), labels("kube-system", "k")),
        ]),
    }
}

/// The rules of node-1 for one policy in `shop`, without the table's head.
fn text(spec: &Value) -> (String, Vec<String>) {
    let policy: NetworkPolicy = serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec}),
    )
    .unwrap();
    let (text, findings) = rules(&cluster(), &[Arc::new(policy)], "node-1");
    let (_, body) = text.split_once("reply accept\n").unwrap();
    (body.replace(" ip lab_policy", ""), findings)
}

fn ingress(rules: &Value) -> String {
    let web = json!({"matchLabels": {"app": "web"}});
    text(&json!({"podSelector": web, "ingress": rules})).0
}

const ISOLATED: &str = "add rule in-pod2 drop\nadd rule forward oifname pod2 jump in-pod2\n";

#[test]
fn default_deny_is_a_chain_that_drops() {
    assert_eq!(
        ingress(&json!([])),
        format!("add chain in-pod2\n{ISOLATED}")
    );
}

#[test]
fn peers_and_ports() {
    for (rules, expected) in [
        (json!([{}]), " return"),
        (
            json!([{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]),
            " ip saddr { 10.244.1.3 } return",
        ),
        (
            json!([{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}]),
            " ip saddr { 10.244.1.4 } return",
        ),
        (
            json!([{"from": [{"namespaceSelector": {},
                "podSelector": {"matchLabels": {"app": "client"}}}]}]),
            " ip saddr { 10.244.1.3, 10.244.1.4 } return",
        ),
        (
            json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                "ports": [{"port": 80, "endPort": 90}]}]),
            " ip saddr 10.0.0.0/8 ip saddr != { 10.1.0.0/16 } tcp dport 80-90 return",
        ),
        (
            json!([{"ports": [{"port": "web"}, {"protocol": "UDP", "port": 53}]}]),
            " tcp dport 8080 return\nadd rule in-pod2 udp dport 53 return",
        ),
        (
            json!([{"ports": [{"protocol": "TCP"}]}]),
            " meta l4proto tcp return",
        ),
    ] {
        let expected = format!("add chain in-pod2\nadd rule in-pod2{expected}\n{ISOLATED}");
        assert_eq!(ingress(&rules), expected, "{rules}");
    }
}

#[test]
fn a_peer_that_selects_nobody_allows_nobody() {
    let rules = json!([{"from": [{"podSelector": {"matchLabels": {"app": "none"}}}]}]);
    assert_eq!(ingress(&rules), format!("add chain in-pod2\n{ISOLATED}"));
    // A named port that the pod does not have opens nothing.
    let rules = json!([{"ports": [{"port": "gone"}]}]);
    assert_eq!(ingress(&rules), format!("add chain in-pod2\n{ISOLATED}"));
}

#[test]
fn egress_knows_the_name_server() {
    let (text, _) = text(&json!({
        "podSelector": {"matchLabels": {"app": "client"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"namespaceSelector":
            {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
            "ports": [{"protocol": "UDP", "port": 53}]}],
    }));
    assert_eq!(
        text,
        "add chain out-pod3\nadd rule out-pod3 ip daddr { 10.96.0.10 } udp dport 53 return\n\
         add rule out-pod3 drop\nadd rule forward iifname pod3 jump out-pod3\n"
    );
}

#[test]
fn policies_add_up_and_types_count() {
    // Only egress is isolated; ingress stays open.
    let (only_egress, _) = text(&json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    assert!(!only_egress.contains("oifname"));
    assert_eq!(only_egress.matches("iifname").count(), 2);
    // Egress rules without types isolate both.
    let (both, _) = text(&json!({"podSelector": {}, "egress": [{}]}));
    assert_eq!(both.matches("oifname").count(), 2);
    assert_eq!(both.matches("iifname").count(), 2);
}

#[test]
fn no_rule_for_egress_says_nothing_of_egress() {
    let web = json!({"matchLabels": {"app": "web"}});
    let (with, _) = text(&json!({"podSelector": web, "egress": []}));
    let (without, _) = text(&json!({"podSelector": web}));
    assert_eq!(with, without);
}

#[test]
fn nonsense_is_told() {
    let (text, findings) = text(&json!({"podSelector": {}, "ingress": [
        {"from": [{"ipBlock": {"cidr": "nonsense"}}]},
        {"ports": [{"protocol": "ICMP", "port": 1}]}]}));
    assert!(!text.contains("return"), "{text}");
    assert_eq!(findings.len(), 2, "{findings:?}");
}
