//! Whether the mesh has heard of everything that is ready: what a pod reports reaches the proxies a
//! moment later, and whoever started the lab calls at once.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use isobar_types::ports;
use serde_json::Value;

use crate::control::Desk;
use crate::plan::NETWORK_ADDRESS;
use crate::probe;
use crate::reconcile::View;

/// Longest time one page may take.
const LIMIT: Duration = Duration::from_secs(2);

/// `Err` says who does not know what yet. A page that is not there or not understood (another
/// proxy) settles nothing and holds up nobody.
pub(super) async fn settled(desk: &Desk, view: &View) -> Result<(), String> {
    for node in &desk.nodes {
        let at = (Ipv4Addr::LOCALHOST, ports::ADMIN);
        let page = probe::page(node.place.netns(), at, "/config_dump", LIMIT).await;
        let name = &node.plan.name;
        if let Some(unknown) = page.ok().and_then(|page| first_unknown(&page, name, view)) {
            return Err(format!("ztunnel-{name} does not know {unknown} yet"));
        }
    }
    let at = (NETWORK_ADDRESS, ports::CONTROL_PLANE_MONITORING);
    let page = probe::page(desk.outer.netns(), at, "/debug/syncz", LIMIT).await;
    match page.ok().and_then(|page| first_behind(&page)) {
        Some(behind) => Err(format!("{behind} is behind")),
        None => Ok(()),
    }
}

/// A ready pod that the dump of `node`'s proxy does not have as healthy. One that asks for others when
/// a connection needs them has to know the pods of its node only.
fn first_unknown(page: &Value, node: &str, view: &View) -> Option<String> {
    let on_demand = page["config"]["onDemand"] == true;
    let healthy: BTreeSet<&str> = page
        .get("workloads")?
        .as_array()?
        .iter()
        .filter(|workload| workload["status"] == "Healthy")
        .flat_map(|workload| workload["workloadIps"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    let ready = view
        .pods
        .iter()
        .map(|pod| &pod.status)
        .filter(|pod| pod.ready && (!on_demand || pod.node == node));
    ready
        .filter_map(|pod| Some((pod, pod.ip?.to_string())))
        .find(|(_, ip)| !healthy.contains(ip.as_str()))
        .map(|(pod, _)| format!("pod {}/{}", pod.namespace, pod.name))
}

/// A client of the control plane that has something sent and not taken.
fn first_behind(page: &Value) -> Option<String> {
    let behind = |client: &&Value| {
        let types = client["types"].as_object();
        types
            .into_iter()
            .flatten()
            .any(|(_, state)| state["status"] != "SYNCED" && state["status"] != "ERROR")
    };
    let client = page.get("clients")?.as_array()?.iter().find(behind)?;
    Some(client["pod"].as_str().unwrap_or("a proxy").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn somebody_behind_is_named_and_errors_are_final() {
        let with = |status: &str| json!({"clients": [{"pod": "p", "types": {"Address": {"status": status}}}]});
        assert_eq!(first_behind(&with("STALE")).as_deref(), Some("p"));
        assert_eq!(first_behind(&with("NOT SENT")).as_deref(), Some("p"));
        assert_eq!(first_behind(&with("SYNCED")), None);
        assert_eq!(first_behind(&with("ERROR")), None);
        assert_eq!(first_behind(&json!({})), None);
    }
}
