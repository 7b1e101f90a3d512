//! Texts for `nft -f`: service addresses and NetworkPolicy, one script a node, applied as one
//! transaction.

use std::fmt::Write;

use crate::cluster::{Cluster, Forward};
use crate::plan::SERVICE_CIDR;

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
