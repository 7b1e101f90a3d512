use std::collections::HashMap;
use std::time::Duration;

use isobar_objects::ObjectRef;
use isobar_runtime::Lifetime;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cluster::Cluster;

/// Notes that may wait for the server; what comes on top is lost, as events may be.
const WAITING_MAX: usize = 256;
/// Events that are counted up; beyond it the one that was not heard of for longest is forgotten.
const KNOWN_MAX: usize = 1024;
/// Longest message that a server takes.
const MESSAGE_MAX: usize = 1024;
/// Longest time for one write: others wait behind it.
const LIMIT: Duration = Duration::from_secs(5);

/// Something that happened to an object and that its owner should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The object.
    pub about: ObjectRef,
    /// Its uid: another object of that name has events of its own.
    pub uid: String,
    /// What happened, in one word for programs.
    pub reason: &'static str,
    /// What happened, in words.
    pub message: String,
}

/// Takes notes and never waits. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<mpsc::Sender<Note>>);

impl Events {
    /// Nobody is told.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Tells, unless too much is being told already.
    pub fn tell(&self, note: Note) {
        if let Some(sender) = &self.0
            && let Err(error) = sender.try_send(note)
        {
            tracing::debug!(%error, "an event is lost");
        }
    }
}

/// How much is told.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two writes of the same event: what happens meanwhile is counted.
    pub again: Duration,
    /// What does not happen for so long is a new event when it happens again.
    pub forget: Duration,
    /// New events at once.
    pub burst: u32,
    /// Until one more may be made.
    pub refill: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            again: Duration::from_secs(60),
            forget: Duration::from_secs(600),
            burst: 20,
            refill: Duration::from_secs(2),
        }
    }
}

/// Writes notes as Events of the core API, warnings all of them. The same thing about the same
/// object is one event with a count, and new events are bounded.
#[derive(Debug)]
pub struct EventWriter {
    cluster: Cluster,
    component: String,
    instance: String,
    pace: Pace,
    notes: mpsc::Receiver<Note>,
    known: HashMap<(String, &'static str), Known>,
    allowance: Allowance,
}

/// An event that the server has.
#[derive(Debug)]
struct Known {
    name: String,
    count: i32,
    heard: Instant,
    written: Instant,
}

/// New events that may be made.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn take(&mut self, pace: &Pace, now: Instant) -> bool {
        while self.left < pace.burst && now.duration_since(self.since) >= pace.refill {
            self.left += 1;
            self.since += pace.refill;
        }
        if self.left >= pace.burst {
            self.since = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

impl EventWriter {
    /// What `component` has to say, on the node or pod `instance`.
    #[must_use]
    pub fn new(cluster: Cluster, component: &str, instance: &str, pace: Pace) -> (Events, Self) {
        let (sender, notes) = mpsc::channel(WAITING_MAX);
        let writer = Self {
            cluster,
            component: component.to_owned(),
            instance: instance.to_owned(),
            pace,
            notes,
            known: HashMap::new(),
            allowance: Allowance {
                left: pace.burst,
                since: Instant::now(),
            },
        };
        (Events(Some(sender)), writer)
    }

    /// Writes until `life` ends. What cannot be written is lost.
    pub async fn run(mut self, life: Lifetime) {
        loop {
            let note = tokio::select! {
                () = life.draining() => return,
                note = self.notes.recv() => note,
            };
            let Some(note) = note else { return };
            if let Err(error) = self.write(&note).await {
                tracing::warn!(object = %note.about, reason = note.reason, %error,
                    "an event could not be written");
            }
        }
    }

    /// Writes one note, or counts it.
    ///
    /// # Errors
    /// When the server refuses it or does not answer in time.
    pub async fn write(&mut self, note: &Note) -> Result<(), kube::Error> {
        let now = Instant::now();
        let forget = self.pace.forget;
        self.known
            .retain(|_, known| now.duration_since(known.heard) < forget);
        let key = (note.uid.clone(), note.reason);
        if let Some(known) = self.known.get_mut(&key) {
            known.count = known.count.saturating_add(1);
            known.heard = now;
            if now.duration_since(known.written) < self.pace.again {
                return Ok(());
            }
            known.written = now;
            let (name, count) = (known.name.clone(), known.count);
            return match in_time(self.count_up(note, &name, count)).await {
                // The server forgets events by itself.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.known.remove(&key);
                    Ok(())
                }
                done => done,
            };
        }
        if !self.allowance.take(&self.pace, now) {
            tracing::debug!(object = %note.about, reason = note.reason, "too many events");
            return Ok(());
        }
        let name = in_time(self.make(note)).await?;
        if self.known.len() >= KNOWN_MAX {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.heard);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.known.remove(&key);
            }
        }
        let known = Known {
            name,
            count: 1,
            heard: now,
            written: now,
        };
        self.known.insert(key, known);
        Ok(())
    }

    fn api(&self, note: &Note) -> Api<Event> {
        Api::namespaced(self.cluster.client(), &note.about.namespace)
    }

    async fn make(&self, note: &Note) -> Result<String, kube::Error> {
        let now = jiff::Timestamp::now();
        let name = format!("{}.{:x}", note.about.name, now.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(note.about.namespace.to_string()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: note.about.known().map(|kind| kind.versions()[0].to_owned()),
                kind: Some(note.about.kind.to_string()),
                namespace: Some(note.about.namespace.to_string()),
                name: Some(note.about.name.to_string()),
                uid: Some(note.uid.clone()),
                ..ObjectReference::default()
            },
            type_: Some("Warning".to_owned()),
            reason: Some(note.reason.to_owned()),
            message: Some(shortened(&note.message)),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(self.instance.clone()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        let made = self.api(note).create(&PostParams::default(), &event).await;
        made.map(|_| name)
    }

    async fn count_up(&self, note: &Note, name: &str, count: i32) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({
            "count": count,
            "message": shortened(&note.message),
            "lastTimestamp": Time(jiff::Timestamp::now()),
        }));
        let params = PatchParams::default();
        self.api(note).patch(name, &params, &patch).await.map(drop)
    }
}

/// One write that hangs must not silence all others.
async fn in_time<T>(write: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service("no answer in time".into());
    tokio::time::timeout(LIMIT, write).await.map_err(late)?
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_events_are_bounded_and_allowed_again_with_time() {
        let pace = Pace {
            burst: 2,
            refill: Duration::from_secs(10),
            ..Pace::default()
        };
        let start = Instant::now();
        let mut allowance = Allowance {
            left: pace.burst,
            since: start,
        };
        let mut at = |seconds| allowance.take(&pace, start + Duration::from_secs(seconds));
        // A long silence is worth no more than a burst.
        assert_eq!([at(100), at(100), at(100)], [true, true, false]);
        assert_eq!([at(109), at(110), at(111)], [false, true, false]);
        assert_eq!([at(140), at(140), at(140)], [true, true, false]);
    }

    #[test]
    fn messages_are_cut_between_letters() {
        assert_eq!(shortened("short"), "short");
        let long = "ä".repeat(MESSAGE_MAX);
        assert_eq!(shortened(&long).len(), MESSAGE_MAX);
        assert!(shortened(&format!("x{long}")).len() < MESSAGE_MAX);
    }
}
