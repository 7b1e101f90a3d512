//! Every verb, with the agent there and away.

use isobar_runtime::Scope;
use serde_json::json;

use super::Node;
use super::node::uid;
use crate::network::{PEER, Place, bridge};
use crate::scenario::eventually;

const CART: &str = "10.0.0.11";
const OUTSIDER: &str = "10.0.0.12";

pub(crate) async fn all() {
    bridge();
    let (cart, outsider) = (Place::new("cart", CART), Place::new("out", OUTSIDER));
    let peer = Place::new("peer", PEER);
    let applications = Scope::new("applications");
    peer.serve(&applications, 9090);
    let mut node = Node::new();
    let enrolled = Node::attachment("cart", &uid(1), &cart, CART);
    let plain = Node::attachment("outsider", &uid(2), &outsider, OUTSIDER);
    node.pod("cart", &uid(1), &json!({}), None);
    let out = json!({"istio.io/dataplane-mode": "none"});
    node.pod("outsider", &uid(2), &out, None);

    without_an_agent(&node, &enrolled).await;
    malformed(&node, &enrolled).await;

    node.start_alone("").await;
    assert!(node.call("STATUS", &enrolled).await.good);
    // A pod that does not belong to the mesh needs nobody.
    let said = node.call("ADD", &plain).await;
    assert!(said.good, "{said:?}\n{}", node.log());
    assert_eq!(said.value(), plain.previous());
    assert!(node.call("CHECK", &plain).await.good);
    assert!(!node.is_captured(&outsider).await);
    // One that does may not start without a node proxy.
    let impatient = super::Attachment {
        wait: 0.5,
        ..enrolled.clone()
    };
    let said = node.call("ADD", &impatient).await;
    assert_eq!(said.code(), 11);
    assert!(said.text.contains("no node proxy"), "{said:?}");
    assert_eq!(node.call("CHECK", &enrolled).await.code(), 100);

    node.connect().await;
    for _ in 0..2 {
        let said = node.call("ADD", &enrolled).await;
        assert!(said.good, "{said:?}\n{}", node.log());
        assert_eq!(said.value(), enrolled.previous());
        assert!(node.is_captured(&cart).await);
    }
    assert!(node.proxy.notes.contain(&format!("outbound {PEER}:9090")));
    assert!(node.call("CHECK", &enrolled).await.good);

    unknown_pod(&node, &outsider).await;
    checked(&mut node, &enrolled, &cart).await;
    gone(&mut node, &enrolled, &plain).await;
    applications.shutdown(std::time::Duration::ZERO).await;
}

/// Nothing starts that might belong to the mesh, everything else does.
async fn without_an_agent(node: &Node, enrolled: &super::Attachment) {
    let said = node.call("VERSION", enrolled).await;
    assert!(said.good);
    let versions = said.value()["supportedVersions"].clone();
    assert!(versions.as_array().unwrap().contains(&json!("1.1.0")));

    assert_eq!(node.call("STATUS", enrolled).await.code(), 50);
    let impatient = super::Attachment {
        wait: 0.1,
        ..enrolled.clone()
    };
    assert_eq!(node.call("ADD", &impatient).await.code(), 11);
    assert_eq!(node.call("CHECK", &impatient).await.code(), 11);
    assert!(node.call("DEL", &impatient).await.good);
    // It needs no agent, but a list of what is left.
    assert_eq!(node.call("GC", &impatient).await.code(), 7);
    let mut config = impatient.config(&node.run_dir());
    config["cni.dev/valid-attachments"] = json!([]);
    assert!(impatient.call("GC", &config).await.good);
    for arguments in [
        "",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns",
    ] {
        let other = super::Attachment {
            arguments: arguments.to_owned(),
            ..impatient.clone()
        };
        for verb in ["ADD", "CHECK", "DEL"] {
            let said = node.call(verb, &other).await;
            assert!(said.good, "{verb}: {said:?}");
        }
    }
}

async fn malformed(node: &Node, enrolled: &super::Attachment) {
    let good = enrolled.config(&node.run_dir());
    let with = |key: &str, value: serde_json::Value| {
        let mut config = good.clone();
        config[key] = value;
        config
    };
    for (config, code) in [
        (with("runDir", json!(7)), 6),
        (with("prevResult", json!(null)), 7),
    ] {
        assert_eq!(enrolled.call("ADD", &config).await.code(), code);
    }
    let said = enrolled
        .call("ADD", &with("cniVersion", json!("0.1.0")))
        .await;
    assert!(!said.good);
    assert_eq!(said.value()["code"], 1);
    let nameless = super::Attachment {
        container: "../c".to_owned(),
        ..enrolled.clone()
    };
    assert_eq!(nameless.call("ADD", &good).await.code(), 4);
    let old = super::Attachment {
        arguments: "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart".to_owned(),
        ..enrolled.clone()
    };
    assert_eq!(old.call("ADD", &good).await.code(), 4);
}

/// A pod whose object has not come yet waits for it; without an object it does not start.
async fn unknown_pod(node: &Node, place: &Place) {
    let late = Node::attachment("late", &uid(3), place, OUTSIDER);
    let impatient = super::Attachment {
        wait: 0.3,
        ..late.clone()
    };
    assert_eq!(node.call("ADD", &impatient).await.code(), 11);
    let (said, ()) = tokio::join!(node.call("ADD", &late), async {
        let recorded = || node.records().contains(&uid(3)).then_some(());
        assert!(eventually(recorded).await.is_some());
        let out = json!({"istio.io/dataplane-mode": "none"});
        node.pod("late", &uid(3), &out, None);
    });
    assert!(said.good, "{said:?}\n{}", node.log());
    assert!(node.call("DEL", &late).await.good);
}

/// What was true once does not satisfy a CHECK.
async fn checked(node: &mut Node, enrolled: &super::Attachment, cart: &Place) {
    let other = super::Attachment {
        container: "another".to_owned(),
        ..enrolled.clone()
    };
    assert_eq!(node.call("CHECK", &other).await.code(), 3);
    node.disconnect().await;
    let lost = eventually(|| node.log().contains("node proxy disconnected").then_some(())).await;
    assert!(lost.is_some(), "{}", node.log());
    assert_eq!(node.call("CHECK", enrolled).await.code(), 100);
    node.connect().await;
    let again = async {
        for _ in 0..100 {
            if node.call("CHECK", enrolled).await.good {
                return true;
            }
        }
        false
    };
    assert!(again.await, "{}", node.log());
    // Rules that somebody removes are seen and written again.
    cart.inside("nft", "flush ruleset");
    let again = async {
        for _ in 0..200 {
            if node.call("CHECK", enrolled).await.good && node.is_captured(cart).await {
                return true;
            }
        }
        false
    };
    assert!(again.await, "{}", node.log());
}

async fn gone(node: &mut Node, enrolled: &super::Attachment, plain: &super::Attachment) {
    // A late word about an earlier container of the pod.
    let earlier = super::Attachment {
        container: "earlier".to_owned(),
        ..enrolled.clone()
    };
    assert!(node.call("DEL", &earlier).await.good);
    assert_eq!(node.records(), [uid(1), uid(2)]);

    let mut config = enrolled.config(&node.run_dir());
    config["cni.dev/valid-attachments"] =
        json!([{"containerID": enrolled.container, "ifname": "eth0"}]);
    let mut other_network = config.clone();
    other_network["name"] = json!("other");
    assert!(enrolled.call("GC", &other_network).await.good);
    assert_eq!(node.records(), [uid(1), uid(2)]);
    assert!(enrolled.call("GC", &config).await.good);
    assert_eq!(node.records(), [uid(1)]);
    // It is gone already.
    assert!(node.call("DEL", plain).await.good);

    for _ in 0..2 {
        assert!(node.call("DEL", enrolled).await.good);
    }
    let told = || {
        node.proxy
            .notes
            .contain(&format!("del {}", uid(1)))
            .then_some(())
    };
    assert!(eventually(told).await.is_some(), "{}", node.log());
    assert!(
        eventually(|| (!node.is_advertised("cart")).then_some(()))
            .await
            .is_some()
    );
    node.stop(true).await;
    assert!(node.call("DEL", enrolled).await.good);
    assert_eq!(node.call("STATUS", enrolled).await.code(), 50);
}
