//! When a waypoint can take traffic, and when a change of labels is in force at every proxy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use isobar_objects::{ObjectRef, ObjectSet};
use isobar_types::labels;
use serde_json::Value;

use super::tables::unready;
use super::{POLL, Place};

/// Who waits that long wants to know what for.
const QUIET: Duration = Duration::from_secs(2);
/// The same again, so that nobody thinks it hangs.
const AGAIN: Duration = Duration::from_secs(10);

/// A label that an object has to have, or must not have any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) object: ObjectRef,
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) there: bool,
}

impl Label {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        (labels.get(self.key) == Some(&self.value)) == self.there
    }
}

/// Why it is not so yet.
pub(super) type Reason = String;

impl Place {
    /// Waits until the waypoint can take traffic: it is Programmed, a pod of it is ready, and that
    /// holds all the control plane has for it.
    pub(super) async fn usable(&self, namespace: &str, name: &str, limit: Duration) -> Waited {
        let what = format!("waypoint {namespace}/{name}");
        self.wait_for(&what, limit, async || {
            if let Some(why) = not_ready(&self.objects.now(), namespace, name) {
                return Some(why);
            }
            match self.sync().await {
                Ok(pages) => unfed_by_all(&pages, &format!("{namespace}/{name}")),
                Err(error) => Some(format!("the control plane does not answer: {error:#}")),
            }
        })
        .await
    }

    /// Waits until the control plane has read the labels and every proxy has confirmed what follows
    /// from them. The waypoint `but`, which goes, need not.
    pub(super) async fn in_force(&self, all: &[Label], but: &str, limit: Duration) -> Waited {
        // The first revision of each replica in which the labels count.
        let mut goals = Vec::new();
        let goals = &mut goals;
        self.wait_for("the proxies", limit, async || {
            match self.behind(all, but, goals).await {
                Ok(names) if names.is_empty() => None,
                Ok(names) => Some(format!("not confirmed by {}", names.join(", "))),
                Err(error) => Some(format!("the control plane does not answer: {error:#}")),
            }
        })
        .await
    }

    async fn behind(
        &self,
        all: &[Label],
        but: &str,
        goals: &mut Vec<u64>,
    ) -> anyhow::Result<Vec<String>> {
        let control_plane = || Ok(vec!["the control plane".to_owned()]);
        if goals.is_empty() {
            for label in all {
                let read = self.read_labels(&label.object).await?;
                if !read.iter().all(|labels| label.holds(labels)) {
                    return control_plane();
                }
            }
        }
        let pages = self.sync().await?;
        if goals.is_empty() {
            let revisions = pages.iter().map(|page| page["revision"].as_u64());
            goals.extend(revisions.map(Option::unwrap_or_default));
        }
        if goals.len() != pages.len() {
            // Another replica came or one went: from the start.
            goals.clear();
            return control_plane();
        }
        if pages.iter().any(is_changing) {
            return Ok(vec!["proxies that still go the old way".to_owned()]);
        }
        let late = pages.iter().zip(goals.iter());
        Ok(late
            .flat_map(|(page, goal)| behind(page, *goal, but))
            .collect())
    }

    /// Labels of an object as each replica of the control plane knows it.
    async fn read_labels(
        &self,
        object: &ObjectRef,
    ) -> anyhow::Result<Vec<BTreeMap<String, String>>> {
        let ObjectRef {
            group,
            kind,
            namespace,
            name,
        } = object;
        let path =
            format!("/debug/labels?group={group}&kind={kind}&namespace={namespace}&name={name}");
        let pages = self.mesh.control_plane(&path).await?;
        let labels = |page: Value| serde_json::from_value(page["labels"].clone());
        Ok(pages
            .into_iter()
            .map(|page| labels(page).unwrap_or_default())
            .collect())
    }

    /// Looks until `missing` names nothing, and says on standard error what a long wait is for.
    async fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut missing: impl AsyncFnMut() -> Option<Reason>,
    ) -> Waited {
        let start = Instant::now();
        let mut said: Option<(Reason, Instant)> = None;
        loop {
            let Some(why) = missing().await else {
                return Waited::Done;
            };
            let waited = start.elapsed();
            if waited >= limit {
                return Waited::Over(why);
            }
            let news = said
                .as_ref()
                .is_none_or(|(before, at)| *before != why || at.elapsed() >= AGAIN);
            if waited >= QUIET && news {
                let seconds = waited.as_secs();
                anstream::eprintln!("waiting for {what} ({seconds} s): {why}");
                said = Some((why, Instant::now()));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Waited {
    /// It is so.
    Done,
    /// The time is over; why it is not so.
    Over(Reason),
}

impl Waited {
    /// # Errors
    /// What `text` makes of the reason, if the time was over.
    pub(super) fn or(self, text: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Over(why) => bail!(text(&why)),
        }
    }
}

/// What the objects say is missing.
fn not_ready(objects: &ObjectSet, namespace: &str, name: &str) -> Option<Reason> {
    let Some(gateway) = objects.gateways.get(namespace, name) else {
        return Some("its Gateway has not been read".to_owned());
    };
    if !gateway.is_programmed() {
        let text = unready(gateway);
        return Some(if text.is_empty() {
            "the control plane has said nothing about its Gateway".to_owned()
        } else {
            text
        });
    }
    let mut pods = objects.pods.in_namespace(namespace);
    let instance = |labels: &BTreeMap<String, String>| {
        labels.get(labels::GATEWAY_NAME).map(String::as_str) == Some(name)
    };
    let ready = pods.any(|pod| {
        let labels = pod.metadata.labels.as_ref();
        labels.is_some_and(instance) && isobar_objects::pods::is_ready(pod)
    });
    (!ready).then(|| "none of its pods is ready".to_owned())
}

/// As [`unfed`]: it is connected to one of the replicas.
fn unfed_by_all(pages: &[Value], gateway: &str) -> Option<Reason> {
    let mut why = None;
    for page in pages {
        why = Some(unfed(page, gateway)?);
    }
    why
}

/// What a waypoint itself lacks, which is called `NAMESPACE/NAME`.
fn unfed(sync: &Value, gateway: &str) -> Option<Reason> {
    let revision = sync["revision"].as_u64();
    let mut own = clients(sync).filter(|client| client["gateway"] == gateway);
    let fed = |client: &Value| client["revision"].as_u64() == revision && all_sent(client);
    let Some(first) = own.next() else {
        return Some("its pod is not connected to the control plane".to_owned());
    };
    let fed = fed(first) || own.any(fed);
    (!fed).then(|| "its pod has not confirmed what the control plane sent it".to_owned())
}

/// True while bindings change over: a later revision finishes that.
fn is_changing(sync: &Value) -> bool {
    sync["changing"].as_u64().is_some_and(|count| count > 0)
}

/// Who has not confirmed what is in force since revision `goal`.
fn behind(sync: &Value, goal: u64, but: &str) -> Vec<String> {
    clients(sync)
        .filter(|client| client["gateway"] != but)
        .filter(|client| client["revision"].as_u64() < Some(goal) || is_stale(client))
        .map(crate::commands::status::name)
        .collect()
}

fn clients(sync: &Value) -> impl Iterator<Item = &Value> {
    sync["clients"].as_array().into_iter().flatten()
}

fn states(client: &Value) -> impl Iterator<Item = &Value> {
    let types = client["types"].as_object().into_iter().flatten();
    types.map(|(_, state)| &state["status"])
}

fn is_stale(client: &Value) -> bool {
    states(client).any(|status| status == "STALE")
}

/// Every type was answered and confirmed, or refused: what it refuses it will not take later.
fn all_sent(client: &Value) -> bool {
    states(client).all(|status| status == "SYNCED" || status == "ERROR")
}

#[cfg(test)]
mod tests {
    use isobar_objects::{Kind, Object, Pod};
    use serde_json::json;

    use super::*;
    use crate::commands::waypoint::apply::gateway;
    use crate::commands::waypoint::apply::tests::apply;

    fn sync(revision: u64, seen: u64, status: &str) -> Value {
        json!({"revision": revision, "clients": [{"pod": "p", "namespace": "n",
            "gateway": "hello/w", "revision": seen, "types": {"Address": {"status": status}}}]})
    }

    #[test]
    fn everybody_confirms_but_the_one_that_goes() {
        assert!(behind(&sync(7, 7, "SYNCED"), 7, "").is_empty());
        assert!(behind(&sync(8, 7, "NOT SENT"), 7, "").is_empty());
        assert_eq!(behind(&sync(7, 7, "STALE"), 7, ""), ["p.n"]);
        assert!(behind(&sync(7, 7, "STALE"), 7, "hello/w").is_empty());
        // Confirmed, but of an older revision.
        assert_eq!(behind(&sync(8, 7, "SYNCED"), 8, ""), ["p.n"]);
    }

    #[test]
    fn a_waypoint_holds_all_there_is_for_it() {
        assert_eq!(unfed(&sync(7, 7, "SYNCED"), "hello/w"), None);
        for (sync, word) in [
            (sync(7, 6, "SYNCED"), "confirmed"),
            (sync(7, 7, "STALE"), "confirmed"),
            (sync(7, 7, "NOT SENT"), "confirmed"),
            (json!({"revision": 7, "clients": []}), "connected"),
        ] {
            let why = unfed(&sync, "hello/w").unwrap();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn a_waypoint_without_a_ready_pod_is_not_ready() {
        let gateway = |status: &str| -> Object {
            let apply = apply("isobar waypoint apply -n hello --name w");
            let mut gateway = gateway(&apply, "w", None);
            gateway.status = Some(
                json!({"conditions": [{"type": "Programmed", "status": status,
                "reason": "r", "message": "so it is", "lastTransitionTime":
                "2026-01-01T00:00:00Z"}]}),
            );
            gateway.into()
        };
        let pod = |ready: &str| -> Object {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "w-1",
                "namespace": "hello", "labels": {labels::GATEWAY_NAME: "w"}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap();
            pod.into()
        };
        let why = |all: Vec<Object>| not_ready(&ObjectSet::of(all), "hello", "w");
        assert_eq!(why(vec![gateway("True"), pod("True")]), None);
        for (all, word) in [
            (vec![], "not been read"),
            (vec![gateway("False"), pod("True")], "so it is"),
            (vec![gateway("True")], "none of its pods"),
            (vec![gateway("True"), pod("False")], "none of its pods"),
        ] {
            let why = why(all).unwrap();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn a_label_is_there_or_away() {
        let label = |there: bool| Label {
            object: ObjectRef::new(Kind::Namespace, "", "hello"),
            key: labels::USE_WAYPOINT,
            value: "w".to_owned(),
            there,
        };
        let named = |name: &str| BTreeMap::from([(labels::USE_WAYPOINT.to_owned(), name.into())]);
        assert!(label(true).holds(&named("w")) && !label(true).holds(&named("v")));
        assert!(label(false).holds(&named("v")) && !label(false).holds(&named("w")));
        assert!(label(false).holds(&BTreeMap::new()));
    }
}
