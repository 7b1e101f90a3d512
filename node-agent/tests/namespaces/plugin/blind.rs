//! A pod whose rules cannot be looked at: it stays advertised for a while, and not for longer.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Node;
use super::node::uid;
use crate::network::{LIMIT, POD, Place, bridge};
use crate::scenario::eventually;

/// How long the agent of the test trusts what it saw last.
const TRUST: Duration = Duration::from_secs(3);

pub(crate) async fn all() {
    bridge();
    let pod = Place::new("pod", POD);
    let mut node = Node::new();
    let (blind, folder) = (node.path("blind"), node.path("tools"));
    std::fs::create_dir(&folder).unwrap();
    let tool = folder.join("nft");
    let script = format!(
        "#!/bin/sh\n[ -e {} ] && {{ echo busy >&2; exit 1; }}\nPATH={}\nexec nft \"$@\"\n",
        blind.display(),
        std::env::var("PATH").unwrap()
    );
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    node.tools = Some(folder);
    node.extra = ["--backend", "nft", "--blind-limit", "3"]
        .map(str::to_owned)
        .into();
    let attachment = Node::attachment("cart", &uid(1), &pod, POD);
    node.pod("cart", &uid(1), &json!({}), Some(POD));
    node.start("").await;
    let said = node.call("ADD", &attachment).await;
    assert!(said.good, "{said:?}\n{}", node.log());
    let advertised = async |wanted: bool| {
        let found = eventually(|| (node_says(&node) == wanted).then_some(())).await;
        assert!(found.is_some(), "{wanted}: {}", node.log());
    };
    advertised(true).await;

    // One failed look changes nothing; the change of another table is what makes the agent look.
    std::fs::write(&blind, "").unwrap();
    pod.inside("nft", "add table inet other");
    let failing = || (node.log()).contains("a step failed").then_some(());
    eventually(failing).await.expect("it looked in vain");
    let start = Instant::now();
    while start.elapsed() < TRUST / 3 {
        assert!(node_says(&node), "retracted after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::remove_file(&blind).unwrap();
    tokio::time::sleep(TRUST).await;
    assert!(node_says(&node), "it sees again");

    // For longer, the pod is not advertised any more, until it is seen again.
    let start = Instant::now();
    std::fs::write(&blind, "").unwrap();
    pod.inside("nft", "delete table inet other");
    advertised(false).await;
    let took = start.elapsed();
    assert!(
        took >= TRUST / 2 && took < LIMIT,
        "retracted after {took:?}"
    );
    std::fs::remove_file(&blind).unwrap();
    advertised(true).await;

    // What somebody else takes away is written again.
    std::fs::remove_file(node.path("overlay/node-node-1/pod.shop.cart.patch.json")).unwrap();
    assert!(!node_says(&node));
    advertised(true).await;
    node.stop(true).await;
}

fn node_says(node: &Node) -> bool {
    node.is_advertised("cart")
}
