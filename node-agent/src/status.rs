//! The agent's own pages.

use std::sync::Arc;

use isobar_telemetry::{Ready, Registry, Reply, Routes, standard};
use serde_json::json;

use crate::board::Board;
use crate::zds::Zds;

/// `/healthz/ready`, `/metrics`, and `/pods`: what is observed of every pod, and the tool that
/// rules are written with.
#[must_use]
pub fn routes(
    ready: Ready,
    registry: &Registry,
    board: Arc<Board>,
    zds: Zds,
    tool: String,
) -> Routes {
    let pods = Routes::new().get("/pods", move |_| {
        let reply = Reply::json(&json!({
            "pods": board.all(),
            "nodeProxies": zds.proxies(),
            "rulesWrittenWith": tool,
        }));
        async move { reply }
    });
    standard::readiness(ready)
        .merge(standard::metrics(registry))
        .merge(pods)
}
