//! Waiting until what was installed runs.

use std::time::{Duration, Instant};

use anyhow::bail;
use isobar_kubernetes::Installer;
use serde_json::Value;

use super::report::{Report, label};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Time a server may take until it serves a kind that was defined.
const DEFINED: Duration = Duration::from_secs(30);

/// Waits until the definitions' kinds are served.
pub(super) async fn established(
    installer: &Installer,
    definitions: &[Value],
) -> anyhow::Result<()> {
    let begun = Instant::now();
    for definition in definitions {
        loop {
            let live = installer.get(definition).await?.unwrap_or_default();
            let conditions = live["status"]["conditions"].as_array();
            let is_served = conditions.into_iter().flatten().any(|condition| {
                condition["type"] == "Established" && condition["status"] == "True"
            });
            if is_served {
                break;
            }
            if begun.elapsed() > DEFINED {
                bail!("{} is not served after {DEFINED:?}", label(definition));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Waits until all pods of the workloads are new and ready; says whom it waits for when that changes.
pub(super) async fn wait(
    installer: &Installer,
    workloads: &[Value],
    limit: Duration,
    report: &mut Report,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let mut waiting = Vec::new();
        for workload in workloads {
            let live = installer.get(workload).await?;
            if let Some(why) = live.as_ref().map_or(Some("is gone".to_owned()), pending) {
                waiting.push(format!("{} {why}", label(workload)));
            }
        }
        if waiting.is_empty() {
            return report.progress("everything is ready");
        }
        let text = waiting.join("; ");
        if begun.elapsed() > limit {
            bail!(
                "not ready after {} s: {text}. `kubectl get pods,events -n {}` tells more; what was \
                 written stays, and running the command again goes on from here",
                limit.as_secs(),
                workloads[0]["metadata"]["namespace"]
                    .as_str()
                    .unwrap_or_default()
            );
        }
        if text != told {
            report.progress(&format!("waiting: {text}"))?;
            told = text;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is missing until all pods of a Deployment or DaemonSet are new and ready.
fn pending(live: &Value) -> Option<String> {
    let status = &live["status"];
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    if number(&status["observedGeneration"]) < number(&live["metadata"]["generation"]) {
        return Some("was not seen by its controller yet".to_owned());
    }
    let (wanted, new, ready) = if live["kind"] == "DaemonSet" {
        (
            number(&status["desiredNumberScheduled"]),
            number(&status["updatedNumberScheduled"]),
            number(&status["numberAvailable"]),
        )
    } else {
        (
            live["spec"]["replicas"].as_i64().unwrap_or(1),
            number(&status["updatedReplicas"]),
            number(&status["availableReplicas"]),
        )
    };
    if new >= wanted && ready >= wanted {
        return None;
    }
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut bad =
        conditions.filter(|one| one["status"] == "False" || one["type"] == "ReplicaFailure");
    let why = bad.find_map(|one| one["message"].as_str());
    let why = why.map_or(String::new(), |why| format!(" ({why})"));
    Some(format!(
        "has {} of {wanted} pods ready{why}",
        ready.min(new)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_is_seen_new_and_available() {
        let deployment = |status: Value| {
            pending(&json!({
                "kind": "Deployment", "metadata": { "generation": 2 }, "spec": { "replicas": 2 },
                "status": status,
            }))
        };
        let unseen = deployment(json!({ "observedGeneration": 1, "availableReplicas": 2 }));
        assert!(unseen.unwrap().contains("not seen"));
        let old = json!({ "observedGeneration": 2, "updatedReplicas": 1, "availableReplicas": 2 });
        assert_eq!(deployment(old).unwrap(), "has 1 of 2 pods ready");
        let failed = deployment(json!({
            "observedGeneration": 2,
            "conditions": [{ "type": "Available", "status": "False", "message": "no quota" }],
        }));
        assert_eq!(failed.unwrap(), "has 0 of 2 pods ready (no quota)");
        let good = json!({ "observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2 });
        assert_eq!(deployment(good), None);
        let nodes = |desired: i64, available: i64| {
            pending(&json!({
                "kind": "DaemonSet", "metadata": { "generation": 1 },
                "status": {
                    "observedGeneration": 1, "desiredNumberScheduled": desired,
                    "updatedNumberScheduled": available, "numberAvailable": available,
                },
            }))
        };
        assert_eq!(nodes(3, 3), None);
        assert_eq!(nodes(0, 0), None);
        assert_eq!(nodes(3, 1).unwrap(), "has 1 of 3 pods ready");
    }
}
