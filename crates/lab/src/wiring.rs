//! Texts for `ip -batch`, and kernel settings: how nodes and pods are connected.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::plan::{DNS_ADDRESS, NETWORK_ADDRESS, NETWORK_PREFIX, NodePlan, POD_GATEWAY};

/// Device of a node or pod inside its namespace.
pub(crate) const DEVICE: &str = "eth0";

/// Settings of every namespace of a lab: forward, accept traffic from wherever it comes, no IPv6
/// but on the loopback device, which existed before these settings.
pub(crate) fn sysctls() -> Vec<(String, String)> {
    let values = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        ("net/ipv4/ping_group_range", "0 0"),
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/tcp_migrate_req", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
    ];
    values.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec()
}

/// The network between the nodes; `holders` are the processes that hold the nodes' namespaces.
pub(crate) fn outer(nodes: &[(NodePlan, u32)]) -> String {
    let mut text = format!(
        "link set lo up\n\
         link add br0 type bridge stp_state 0 forward_delay 0\n\
         addr add {NETWORK_ADDRESS}/{NETWORK_PREFIX} dev br0\n\
         addr add {DNS_ADDRESS}/32 dev br0\n\
         link set br0 up\n"
    );
    for (node, holder) in nodes {
        let device = &node.name;
        push(
            &mut text,
            &format!(
                "link add {device} type veth peer name {DEVICE} netns {holder}\n\
                 link set {device} master br0 up\n\
                 route add {} via {}",
                node.pod_cidr(),
                node.address()
            ),
        );
    }
    text
}

/// A node's own side.
pub(crate) fn node(node: &NodePlan, others: &[NodePlan]) -> String {
    let mut text = format!(
        "link set lo up\n\
         addr add {POD_GATEWAY}/32 dev lo\n\
         addr add {}/{NETWORK_PREFIX} dev {DEVICE}\n\
         link set {DEVICE} up\n\
         route add default via {NETWORK_ADDRESS}\n",
        node.address()
    );
    for other in others.iter().filter(|other| *other != node) {
        push(
            &mut text,
            &format!("route add {} via {}", other.pod_cidr(), other.address()),
        );
    }
    text
}

/// The node's side of a pod's link.
pub(crate) fn pod_on_node(node: &NodePlan, device: &str, ip: Ipv4Addr, holder: u32) -> String {
    format!(
        "link add {device} type veth peer name {DEVICE} netns {holder}\n\
         link set {device} up\n\
         route add {ip}/32 dev {device} src {}\n",
        node.address()
    )
}

/// The pod's side of its link.
pub(crate) fn pod(ip: Ipv4Addr) -> String {
    format!(
        "link set lo up\n\
         addr add {ip}/32 dev {DEVICE}\n\
         link set {DEVICE} up\n\
         route add {POD_GATEWAY} dev {DEVICE} scope link\n\
         route add default via {POD_GATEWAY} dev {DEVICE}\n"
    )
}

/// Takes a pod's link away; both ends go.
pub(crate) fn remove(device: &str) -> String {
    format!("link del {device}\n")
}

fn push(text: &mut String, lines: &str) {
    writeln!(text, "{lines}").expect("strings take all writes");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_know_each_other() {
        let nodes = [NodePlan::new(1), NodePlan::new(2)];
        let text = node(&nodes[0], &nodes);
        assert!(text.contains("addr add 172.30.0.11/16 dev eth0"));
        assert!(text.contains("route add 10.244.2.0/24 via 172.30.0.12"));
        assert!(!text.contains("10.244.1.0"));
    }
}
