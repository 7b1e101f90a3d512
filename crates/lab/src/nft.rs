//! Texts for `nft -f`: service addresses and NetworkPolicy, one script a node, applied as one
//! transaction.

use std::fmt::Write;

use crate::cluster::{Cluster, Forward};
use crate::plan::SERVICE_CIDR;

/// Mark of connections that came by a node's own port.
const BY_NODE_PORT: u32 = 0x4e50;

/// The service rules of a node: a new connection to a service address goes to one of the ready
/// endpoints by chance; without one it is refused. Table and hooks stay where they are and only
/// rules are replaced, so that translated connections go on.
pub(crate) fn services(cluster: &Cluster, node: &str) -> String {
    let mut text = String::from(
        "add table ip lab_services\n\
         add chain ip lab_services prerouting { type nat hook prerouting priority dstnat; }\n\
         add chain ip lab_services output { type nat hook output priority -100; }\n\
         add chain ip lab_services postrouting { type nat hook postrouting priority srcnat; }\n\
         add chain ip lab_services forward { type filter hook forward priority filter; }\n\
         add chain ip lab_services local { type filter hook output priority filter; }\n\
         add chain ip lab_services nodes { type filter hook input priority filter; }\n\
         add chain ip lab_services choose\n\
         add chain ip lab_services refuse\n\
         flush table ip lab_services\n",
    );
    for chain in ["prerouting", "output"] {
        rule(
            &mut text,
            chain,
            &format!("ip daddr {SERVICE_CIDR} jump choose"),
        );
    }
    for chain in ["forward", "local"] {
        rule(
            &mut text,
            chain,
            &format!("ip daddr {SERVICE_CIDR} jump refuse"),
        );
    }
    for forward in cluster.forwards() {
        let (chain, action) = choice(&forward);
        let matched = format!(
            "ip daddr {} {} dport {}",
            forward.ip,
            forward.transport.word(),
            forward.port
        );
        rule(&mut text, chain, &format!("{matched} {action}"));
        if let Some(port) = forward.node_port.filter(|_| !node.is_empty()) {
            let word = forward.transport.word();
            let matched =
                format!("ip daddr != 127.0.0.0/8 fib daddr type local {word} dport {port}");
            let (chains, action) = match chain {
                "choose" => (
                    ["prerouting", "output"],
                    format!("ct mark set {BY_NODE_PORT} {action}"),
                ),
                // What is for the node itself is not forwarded.
                _ => (["nodes", "nodes"], action),
            };
            rule(&mut text, chains[0], &format!("{matched} {action}"));
            if chains[0] != chains[1] {
                rule(&mut text, chains[1], &format!("{matched} {action}"));
            }
        }
    }
    // Answers of pods elsewhere have to come back through this node.
    let here = cluster.pods.iter().filter(|pod| pod.node == node);
    for pod in here {
        let own = format!("ct mark {BY_NODE_PORT} ip daddr {} accept", pod.ip);
        rule(&mut text, "postrouting", &own);
    }
    if !node.is_empty() {
        let elsewhere = format!("ct mark {BY_NODE_PORT} masquerade");
        rule(&mut text, "postrouting", &elsewhere);
    }
    // A pod that reaches itself through a service must see another source than itself.
    for pod in cluster.pods.iter().filter(|pod| pod.node == node) {
        let own = format!("ip saddr {0} ip daddr {0} masquerade", pod.ip);
        rule(&mut text, "postrouting", &own);
    }
    text
}

fn rule(text: &mut String, chain: &str, rule: &str) {
    writeln!(text, "add rule ip lab_services {chain} {rule}").expect("strings take all writes");
}

fn choice(forward: &Forward) -> (&'static str, String) {
    match forward.endpoints.as_slice() {
        [] => ("refuse", "reject with icmp port-unreachable".to_owned()),
        [(ip, port)] => ("choose", format!("dnat to {ip}:{port}")),
        many => {
            let entries: Vec<String> = many
                .iter()
                .enumerate()
                .map(|(index, (ip, port))| format!("{index} : {ip} . {port}"))
                .collect();
            let map = format!(
                "dnat ip to numgen random mod {} map {{ {} }}",
                many.len(),
                entries.join(", ")
            );
            ("choose", map)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{PodView, ServiceView};
    use isobar_objects::{ObjectHead, Pod, Service};
    use serde_json::json;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    fn pod(host: u8, ready: bool) -> PodView {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("p{host}"), "namespace": "a", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": 8080}]}]}}))
        .unwrap();
        PodView {
            namespace: "a".into(),
            labels: pod.labels().clone(),
            ip: Ipv4Addr::new(10, 244, 1, host),
            node: "node-1".into(),
            device: format!("pod{host}"),
            ready,
            pod: Arc::new(pod),
        }
    }

    fn rules(pods: Vec<PodView>) -> String {
        let ports = json!({"selector": {"app": "x"}, "ports": [{"port": 80, "targetPort": "web"}]});
        rules_of(pods, &ports)
    }

    fn rules_of(pods: Vec<PodView>, spec: &serde_json::Value) -> String {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "a"}, "spec": spec}))
        .unwrap();
        let cluster = Cluster {
            pods,
            services: vec![ServiceView {
                namespace: "a".into(),
                name: "s".into(),
                ip: Some(Ipv4Addr::new(10, 96, 1, 1)),
                service: Arc::new(service),
            }],
            ..Cluster::default()
        };
        let text = services(&cluster, "node-1");
        let (_, rules) = text.split_once("flush table ip lab_services\n").unwrap();
        rules.replace("add rule ip lab_services ", "")
    }

    #[test]
    fn endpoints_are_chosen_by_chance() {
        let text = rules(vec![pod(2, true), pod(3, true), pod(4, false)]);
        assert!(text.contains(
            "choose ip daddr 10.96.1.1 tcp dport 80 dnat ip to numgen random mod 2 \
             map { 0 : 10.244.1.2 . 8080, 1 : 10.244.1.3 . 8080 }\n"
        ));
        assert!(text.contains("postrouting ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade\n"));
    }

    #[test]
    fn one_endpoint_needs_no_chance_and_none_is_refused() {
        let one = rules(vec![pod(2, true)]);
        assert!(one.contains("choose ip daddr 10.96.1.1 tcp dport 80 dnat to 10.244.1.2:8080\n"));
        let none = rules(vec![pod(2, false)]);
        assert!(none.contains(
            "refuse ip daddr 10.96.1.1 tcp dport 80 reject with icmp port-unreachable\n"
        ));
    }

    #[test]
    fn a_node_port_leads_to_the_same_endpoints() {
        let text = rules_of(
            vec![pod(2, true)],
            &json!({"type": "NodePort", "selector": {"app": "x"},
                "ports": [{"port": 80, "targetPort": "web", "nodePort": 30000}]}),
        );
        let marked = "ip daddr != 127.0.0.0/8 fib daddr type local tcp dport 30000 ct mark set 20048 dnat to 10.244.1.2:8080";
        assert!(text.contains(&format!("prerouting {marked}\n")), "{text}");
        assert!(text.contains("postrouting ct mark 20048 ip daddr 10.244.1.2 accept\n"));
        assert!(
            text.contains("postrouting ct mark 20048 masquerade\n"),
            "{text}"
        );
    }

    #[test]
    fn tables_stay_where_they_are() {
        let text = services(&Cluster::default(), "node-1");
        assert!(!text.contains("delete"), "{text}");
    }
}
