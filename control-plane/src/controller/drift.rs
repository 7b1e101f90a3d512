//! What became of what was written: others may change and remove it.

use std::collections::BTreeMap;

use isobar_objects::{ObjectRef, ObjectSet};
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::Instant;

use super::Wanted;

/// A write is not in what is watched at once, and what is not yet there was not removed.
const SETTLED: Duration = Duration::from_secs(2);
/// How long a write may be missing that was never seen.
const MISSING: Duration = Duration::from_secs(20);

/// What is known about the objects that were written.
#[derive(Debug, Default)]
pub(super) struct Drift(BTreeMap<ObjectRef, Trace>);

#[derive(Debug)]
struct Trace {
    /// When it was written, or written again.
    at: Instant,
    /// The version of it that was looked at last.
    seen: Option<u64>,
}

impl Drift {
    /// It was written just now: until that is in what is watched, a version that differs need not be
    /// somebody else's.
    pub(super) fn wrote(&mut self, object: &ObjectRef, now: Instant) {
        let trace = self.0.entry(object.clone());
        let trace = trace.or_insert(Trace {
            at: now,
            seen: None,
        });
        trace.at = now;
    }

    /// Forgets in `written` what is not as it was written any more, so that it is written again: once for
    /// every change, whatever comes of it. True if something has to be looked at again soon.
    pub(super) fn look(
        &mut self,
        written: &mut BTreeMap<ObjectRef, Wanted>,
        set: &ObjectSet,
        now: Instant,
    ) -> bool {
        self.0.retain(|object, _| written.contains_key(object));
        let mut is_unsettled = false;
        written.retain(|object, want| {
            let trace = self.0.entry(object.clone());
            let trace = trace.or_insert(Trace {
                at: now,
                seen: None,
            });
            let age = now.saturating_duration_since(trace.at);
            let live = set.last_changed(object);
            let is_well = match live {
                // A patch on what is gone has nothing to be on.
                None if want.object.is_none() => true,
                None if trace.seen.is_none() && age < MISSING => {
                    is_unsettled = true;
                    true
                }
                None => false,
                Some(_) if live == trace.seen => true,
                Some(_) if agrees(want, object, set) => {
                    trace.seen = live;
                    true
                }
                Some(_) if age < SETTLED => {
                    is_unsettled = true;
                    true
                }
                Some(_) => false,
            };
            if !is_well {
                tracing::info!(%object, "written again: somebody else changed or removed it");
                *trace = Trace {
                    at: now,
                    seen: live,
                };
            }
            is_well
        });
        is_unsettled
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// True if everything that was written is there; more may be, from others and from the server.
fn agrees(want: &Wanted, object: &ObjectRef, set: &ObjectSet) -> bool {
    let Some(live) = set.object(object).and_then(|live| live.to_value().ok()) else {
        return false;
    };
    let whole = want.object.as_ref().and_then(|whole| whole.to_value().ok());
    let whole = whole.map(|mut whole| {
        if let Some(map) = whole.as_object_mut() {
            map.retain(|key, _| matches!(&**key, "metadata" | "spec"));
        }
        if let Some(Value::Object(head)) = whole.get_mut("metadata") {
            head.retain(|key, _| matches!(&**key, "labels" | "annotations" | "ownerReferences"));
        }
        whole
    });
    let parts = whole.iter().chain(&want.patch);
    parts.into_iter().all(|part| is_in(part, &live))
}

fn is_in(part: &Value, live: &Value) -> bool {
    match (part, live) {
        (Value::Null, live) => live.is_null(),
        (Value::Object(part), Value::Object(live)) => is_map_in(part, live),
        (Value::Array(part), Value::Array(live)) => part
            .iter()
            .all(|one| live.iter().any(|live| is_in(one, live))),
        // What is empty is left out.
        (Value::Object(part), Value::Null) => part.values().all(|one| is_in(one, live)),
        (Value::Array(part), Value::Null) => part.is_empty(),
        (part, live) => part == live,
    }
}

fn is_map_in(part: &Map<String, Value>, live: &Map<String, Value>) -> bool {
    part.iter()
        .all(|(key, part)| is_in(part, live.get(key).unwrap_or(&Value::Null)))
}

#[cfg(test)]
mod tests {
    use isobar_objects::{Kind, Origin, read_value};
    use serde_json::json;

    use super::*;

    fn service(port: u16, more: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "wp", "namespace": "shop", "labels": { "own": "1" }, "annotations": more },
            "spec": { "ports": [{ "port": port, "protocol": "TCP" }] },
        })
    }

    fn put(set: &mut ObjectSet, value: &Value) {
        set.version += 1;
        set.insert(read_value(value).0.unwrap(), Origin::nowhere());
    }

    fn name() -> ObjectRef {
        ObjectRef::new(Kind::Service, "shop", "wp")
    }

    fn written() -> BTreeMap<ObjectRef, Wanted> {
        let object = read_value(&service(15008, &Value::Null)).0;
        let patch = Some(json!({ "status": { "conditions": [] } }));
        BTreeMap::from([(name(), Wanted { object, patch })])
    }

    #[test]
    fn what_others_change_or_remove_is_written_again_once_for_each_change() {
        let (mut drift, mut set, mut now) =
            (Drift::default(), ObjectSet::default(), Instant::now());
        let mut all = written();
        assert!(drift.look(&mut all, &set, now), "not there yet");
        assert_eq!(all.len(), 1);
        put(&mut set, &service(15008, &json!({ "more": "x" })));
        assert!(
            !drift.look(&mut all, &set, now) && all.len() == 1,
            "there, with more"
        );

        now += SETTLED * 2;
        put(&mut set, &service(80, &Value::Null));
        drift.look(&mut all, &set, now);
        assert!(all.is_empty(), "changed");
        // The same again brings nothing about: the server may say what is meant in other words.
        all = written();
        assert!(!drift.look(&mut all, &set, now + SETTLED) && all.len() == 1);

        put(&mut set, &service(15008, &Value::Null));
        assert!(!drift.look(&mut all, &set, now) && all.len() == 1, "mended");
        set.remove(&name());
        drift.look(&mut all, &set, now);
        assert!(all.is_empty(), "removed");
    }

    #[test]
    fn a_later_write_of_our_own_is_nobody_elses_change() {
        let (mut drift, mut set, start) = (Drift::default(), ObjectSet::default(), Instant::now());
        let mut all = written();
        drift.wrote(&name(), start);
        put(&mut set, &service(15008, &Value::Null));
        assert!(!drift.look(&mut all, &set, start) && all.len() == 1);

        // Long after that another port is wanted, and written beside what is there.
        let later = start + MISSING;
        let object = read_value(&service(15009, &Value::Null)).0;
        all.insert(
            name(),
            Wanted {
                object,
                patch: None,
            },
        );
        drift.wrote(&name(), later);
        assert!(!drift.look(&mut all, &set, later) && all.len() == 1);
        // On its way there is a version that is not all of it yet.
        put(&mut set, &service(15008, &json!({ "half": "way" })));
        let soon = later + SETTLED / 2;
        assert!(drift.look(&mut all, &set, soon), "it is looked at again");
        assert_eq!(all.len(), 1, "and nobody is blamed");
        put(&mut set, &service(15009, &Value::Null));
        assert!(!drift.look(&mut all, &set, soon) && all.len() == 1);
        put(&mut set, &service(80, &Value::Null));
        drift.look(&mut all, &set, soon + SETTLED);
        assert!(all.is_empty(), "that was somebody else");
    }

    #[test]
    fn a_write_that_does_not_arrive_is_done_again_after_a_while() {
        let (mut drift, set, now) = (Drift::default(), ObjectSet::default(), Instant::now());
        let mut all = written();
        drift.look(&mut all, &set, now);
        drift.look(&mut all, &set, now + SETTLED);
        assert_eq!(all.len(), 1);
        drift.look(&mut all, &set, now + MISSING);
        assert!(all.is_empty());
    }

    #[test]
    fn less_is_in_more_and_nothing_else() {
        let live =
            json!({ "a": [{ "type": "x", "status": "True" }, { "type": "y" }], "b": { "c": 1 } });
        for part in [
            json!({}),
            json!({ "a": [{ "type": "y" }] }),
            json!({ "b": { "c": 1, "d": null }, "e": {}, "f": [] }),
        ] {
            assert!(is_in(&part, &live), "{part}");
        }
        for part in [
            json!({ "a": [{ "type": "x", "status": "False" }] }),
            json!({ "b": null }),
            json!({ "b": { "c": 2 } }),
            json!({ "g": 1 }),
        ] {
            assert!(!is_in(&part, &live), "{part}");
        }
    }
}
