//! A peer that is gone without a word: its packets are dropped, no FIN or RST comes.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;

use crate::process::Node;
use crate::rig::{Place, VIP};
use crate::stage::{echoes, greeted, until};

/// What a firewall does that forgets the connection.
const DEAD: &str = "table ip dead { chain input { type filter hook input priority -300; \
                    ip saddr 10.0.0.2 drop; }; }";

/// Two processes, one for each pod; the server's pod stops hearing the client's.
pub(crate) async fn dead_peer() {
    let node = Node::new().await;
    let near = node.start(Place::new("zt1", "10.0.0.11"), &[]);
    let agent = node.agent.accept().await;
    agent.add("u-client", &node.client).await.unwrap();
    agent.snapshot().await;
    near.becomes_ready().await;
    let far = node.start(Place::new("zt2", "10.0.0.12"), &[]);
    let other = node.agent.accept().await;
    other.add("u-server", &node.server).await.unwrap();
    other.snapshot().await;
    far.becomes_ready().await;

    let mut open = greeted(&node.client, "10.0.0.2:").await;
    echoes(&mut open).await;
    node.server.inside("nft", &[DEAD]);
    let since = Instant::now();
    // Nothing is sent: only the proxy's own questions can tell.
    let ended = tokio::time::timeout(Duration::from_secs(60), open.read_u8()).await;
    let took = since.elapsed();
    assert!(ended.expect("an end").is_err());
    println!("R-14: a silent peer is noticed after {took:.1?}");
    until("the reason is told", || {
        let lines = near.lines_with("10.0.0.3:8080");
        lines
            .iter()
            .any(|l| l.contains("reason=\"upstream_reset\""))
    })
    .await;
    node.server.inside("nft", &["delete table ip dead"]);
    let answer = node.client.ask(&format!("{VIP}:80"), "back").await;
    assert_eq!(answer, "10.0.0.2:back");
}
