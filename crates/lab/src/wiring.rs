//! Texts for `ip -batch`, and kernel settings: how nodes and pods are connected.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::plan::{DNS_ADDRESS, NETWORK_ADDRESS, NETWORK_PREFIX, NodePlan, POD_GATEWAY, six};

/// Device of a node or pod inside its namespace.
pub(crate) const DEVICE: &str = "eth0";

/// Bits of an address that IPv6 puts before those of the IPv4 address, and twice as many for each of
/// that one.
const SIX_BEFORE: u8 = 64;
/// The next hop of every pod, on its own link.
const POD_GATEWAY_6: &str = "fe80::1";

/// Settings of every namespace of a lab: forward, accept traffic from wherever it comes. Without
/// `dual_stack` no IPv6 but on the loopback device, which existed before these settings; with it
/// addresses are used as soon as they are there.
pub(crate) fn sysctls(dual_stack: bool) -> Vec<(String, String)> {
    let mut values = vec![
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        ("net/ipv4/ping_group_range", "0 0"),
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/tcp_migrate_req", "1"),
    ];
    values.extend_from_slice(match dual_stack {
        true => &[
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ],
        false => &[("net/ipv6/conf/default/disable_ipv6", "1")],
    });
    let owned = values.into_iter();
    owned.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Length of the IPv6 prefix that goes with one of IPv4, in whole bytes.
const fn six_prefix(four: u8) -> u8 {
    SIX_BEFORE + 2 * four
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
    if nodes.iter().any(|(node, _)| node.dual_stack) {
        push(&mut text, &on_network(NETWORK_ADDRESS, "br0"));
    }
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
        if node.dual_stack {
            let via = six(node.address());
            push(&mut text, &format!("route add {} via {via}", pods_6(node)));
        }
    }
    text
}

/// Gives a device the IPv6 address that goes with `ip` on the network between nodes.
fn on_network(ip: Ipv4Addr, device: &str) -> String {
    let prefix = six_prefix(NETWORK_PREFIX);
    format!("addr add {}/{prefix} dev {device} nodad", six(ip))
}

/// The IPv6 addresses of a node's pods.
fn pods_6(node: &NodePlan) -> String {
    let first = six(Ipv4Addr::new(10, 244, node.number, 0));
    format!("{first}/{}", six_prefix(24))
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
    if node.dual_stack {
        push(&mut text, &on_network(node.address(), DEVICE));
        let next = six(NETWORK_ADDRESS);
        push(&mut text, &format!("route add default via {next}"));
        for other in others.iter().filter(|other| *other != node) {
            let via = six(other.address());
            push(&mut text, &format!("route add {} via {via}", pods_6(other)));
        }
    }
    text
}

/// The node's side of a pod's link.
pub(crate) fn pod_on_node(node: &NodePlan, device: &str, ip: Ipv4Addr, holder: u32) -> String {
    let mut text = format!(
        "link add {device} type veth peer name {DEVICE} netns {holder}\n\
         link set {device} up\n\
         route add {ip}/32 dev {device} src {}\n",
        node.address()
    );
    if node.dual_stack {
        let (pod, own) = (six(ip), six(node.address()));
        push(
            &mut text,
            &format!(
                "addr add {POD_GATEWAY_6}/64 dev {device} nodad\n\
                 route add {pod}/128 dev {device} src {own}"
            ),
        );
    }
    text
}

/// The pod's side of its link.
pub(crate) fn pod(node: &NodePlan, ip: Ipv4Addr) -> String {
    let mut text = format!(
        "link set lo up\n\
         addr add {ip}/32 dev {DEVICE}\n\
         link set {DEVICE} up\n\
         route add {POD_GATEWAY} dev {DEVICE} scope link\n\
         route add default via {POD_GATEWAY} dev {DEVICE}\n"
    );
    if node.dual_stack {
        push(
            &mut text,
            &format!(
                "addr add {}/128 dev {DEVICE} nodad\n\
                 route add default via {POD_GATEWAY_6} dev {DEVICE}",
                six(ip)
            ),
        );
    }
    text
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
        assert!(!text.contains("fd00:"));
    }

    #[test]
    fn both_families_have_the_same_network() {
        let nodes = [1, 2].map(|number| NodePlan::new(number).dual_stack(true));
        let text = node(&nodes[0], &nodes);
        assert!(
            text.contains("addr add fd00::ac:1e:0:b/96 dev eth0"),
            "{text}"
        );
        assert!(
            text.contains("route add fd00::a:f4:2:0/112 via fd00::ac:1e:0:c"),
            "{text}"
        );
        let text = pod(&nodes[0], Ipv4Addr::new(10, 244, 1, 2));
        assert!(
            text.contains("addr add fd00::a:f4:1:2/128 dev eth0"),
            "{text}"
        );
    }
}
