//! Rules of others that exempt packets from connection tracking.

use std::time::Duration;

use isobar_net::{DialOptions, dial};
use isobar_node_agent::backend::Choice;

use crate::network::{PEER, POD, Place, v6};
use crate::proxy::Proxy;
use crate::scenario::{UNPROBED, to};

/// What somebody exempts from connection tracking cannot be captured: it goes nowhere instead of past
/// the mesh.
pub(crate) async fn untracked(pod: &Place, peer: &Place, proxy: &Proxy, choice: Choice) {
    let arrives = async |from: &Place, to: String| {
        let options = DialOptions {
            netns: Some(from.netns.clone()),
            timeout: Duration::from_millis(500),
            ..DialOptions::default()
        };
        dial(&options, to.parse().unwrap()).await.is_ok()
    };
    pod.inside("nft", "add table inet theirs");
    for (hook, port) in [("output", 9090), ("prerouting", UNPROBED)] {
        let theirs = format!("inet theirs {hook}");
        let kind = format!("{{ type filter hook {hook} priority -299 ; }}");
        pod.inside("nft", &format!("add chain {theirs} {kind}"));
        pod.inside(
            "nft",
            &format!("add rule {theirs} tcp dport {port} notrack"),
        );
    }
    for (own, other) in [
        (POD.to_owned(), PEER.to_owned()),
        (format!("[{}]", v6(POD)), format!("[{}]", v6(PEER))),
    ] {
        assert!(!arrives(pod, format!("{other}:9090")).await, "{other}");
        assert!(!arrives(peer, format!("{own}:{UNPROBED}")).await, "{own}");
    }
    // What is not exempt, and the proxy's own, goes as before.
    pod.call(&to("127.0.0.1", UNPROBED)).await;
    assert_eq!(peer.call(&to(POD, 8080)).await.seen, PEER);
    assert_eq!(proxy.notes.take(), ["inbound 10.0.0.2:8080"]);
    pod.inside("nft", "delete table inet theirs");
    if choice == Choice::Iptables {
        let rule = "OUTPUT -p tcp --dport 9090 -j CT --notrack";
        pod.inside("iptables", &format!("-t raw -A {rule}"));
        assert!(!arrives(pod, to(PEER, 9090)).await);
        pod.inside("iptables", &format!("-t raw -D {rule}"));
    }
    assert_eq!(pod.call(&to(PEER, 9090)).await.seen, POD);
    assert_eq!(proxy.notes.take(), ["outbound 10.0.0.3:9090"]);
}
