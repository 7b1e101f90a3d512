//! Last valid versions of objects that are not valid now, kept in a ConfigMap: what a control plane goes
//! by that has never seen a valid version itself.
//!
//! There is an entry for each object. Its key is the object's UID, so that another object of the same
//! name inherits nothing; its text is the version, as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use isobar_objects::{Finding, Kind, Object, Recalled, read_value};
use isobar_runtime::Backoff;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::watch::{Notice, code};

/// Label of such maps, and its value.
const LABEL: (&str, &str) = ("isobar.dev/keeps", "last-valid-versions");
/// For the first answer: after that the rest goes on without.
const PATIENCE: Duration = Duration::from_secs(30);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Texts by UID.
pub type Versions = BTreeMap<String, String>;

/// The ConfigMap of one control plane, or those of all in a namespace. Cheap to clone; clones know the
/// same.
#[derive(Debug, Clone)]
pub struct LastValid {
    cluster: Cluster,
    namespace: String,
    /// All that carry the label if there is none.
    name: Option<String>,
    /// Who writes, in the server's record of who wrote which field.
    manager: Option<String>,
    known: watch::Sender<Arc<Known>>,
}

/// What is known of what is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Known {
    /// Nothing was heard yet.
    #[default]
    Nothing,
    /// The server does not tell, and why.
    Unreadable(String),
    /// This is kept.
    Record(Record),
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The versions.
    pub versions: Versions,
    /// That of the ConfigMap, if there is one.
    resource_version: Option<String>,
}

/// Versions that were not kept.
#[derive(Debug, thiserror::Error)]
#[error("ConfigMap {namespace}/{name}: {error}")]
pub struct KeepError {
    namespace: String,
    name: String,
    error: Box<kube::Error>,
}

impl KeepError {
    /// True if the ConfigMap is another by now: what it is will be heard of.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        matches!(&*self.error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
    }
}

impl LastValid {
    /// Label of such maps, and its value.
    pub const LABEL: (&str, &str) = LABEL;

    /// That of one control plane, which writes as `manager`.
    #[must_use]
    pub fn named(cluster: Cluster, namespace: &str, name: &str, manager: &str) -> Self {
        Self {
            name: Some(name.to_owned()),
            manager: Some(manager.to_owned()),
            ..Self::of_all(cluster, namespace)
        }
    }

    /// Those of every control plane in a namespace, to be read only.
    #[must_use]
    pub fn of_all(cluster: Cluster, namespace: &str) -> Self {
        Self {
            cluster,
            namespace: namespace.to_owned(),
            name: None,
            manager: None,
            known: watch::Sender::default(),
        }
    }

    /// What is known, while a source follows it.
    #[must_use]
    pub fn known(&self) -> watch::Receiver<Arc<Known>> {
        self.known.subscribe()
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    /// Keeps these versions and no others, if what is kept still is `before`.
    ///
    /// # Errors
    /// When the server refuses, or what is kept is not that any more.
    pub async fn keep(&self, before: &Record, versions: &Versions) -> Result<(), KeepError> {
        let name = self.name.as_deref().unwrap_or_default();
        let done = match &before.resource_version {
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(name.to_owned()),
                        namespace: Some(self.namespace.clone()),
                        labels: Some([LABEL].map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                        ..ObjectMeta::default()
                    },
                    data: Some(versions.clone()),
                    ..ConfigMap::default()
                };
                let params = PostParams {
                    field_manager: self.manager.clone(),
                    ..PostParams::default()
                };
                let made = self.maps().create(&params, &map).await;
                made.map(drop)
            }
            Some(version) => {
                let change = json!({
                    // Refused if it is another one by now.
                    "metadata": { "resourceVersion": version, "labels": { LABEL.0: LABEL.1 } },
                    "data": difference(&before.versions, versions),
                });
                let params = PatchParams {
                    field_manager: self.manager.clone(),
                    ..PatchParams::default()
                };
                let done = self
                    .maps()
                    .patch(name, &params, &Patch::Merge(change))
                    .await;
                done.map(drop)
            }
        };
        done.map_err(|error| KeepError {
            namespace: self.namespace.clone(),
            name: name.to_owned(),
            error: Box::new(error),
        })
    }

    /// Follows what is kept until nobody listens any more.
    pub(crate) async fn run(self, notices: mpsc::Sender<Notice>) {
        let all = watcher::Config::default();
        let config = match &self.name {
            Some(name) => all.fields(&format!("metadata.name={name}")),
            None => all.labels(&format!("{}={}", LABEL.0, LABEL.1)),
        };
        let mut events = pin!(watcher(self.maps(), config));
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let (mut maps, mut listing) = (Maps::new(), Maps::new());
        let mut telling = Telling::new(&self, notices.clone());
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = notices.closed() => return,
                () = telling.patience(), if !telling.is_told => {
                    telling.unreadable(&format!("no answer within {PATIENCE:?}")).await;
                    continue;
                }
            };
            match event {
                None => return,
                Some(Ok(Event::Init)) => {
                    listing.clear();
                    continue;
                }
                Some(Ok(Event::InitApply(map))) => {
                    put(&mut listing, map);
                    continue;
                }
                Some(Ok(Event::InitDone)) => maps = std::mem::take(&mut listing),
                Some(Ok(Event::Apply(map))) => put(&mut maps, map),
                Some(Ok(Event::Delete(map))) => {
                    maps.remove(map.metadata.name.as_deref().unwrap_or_default());
                }
                Some(Err(error)) => {
                    telling.failed(&error).await;
                    tokio::time::sleep(backoff.step(rand::random())).await;
                    continue;
                }
            }
            backoff.reset();
            telling.record(Record::of(&maps)).await;
        }
    }
}

impl fmt::Display for LastValid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("*");
        write!(f, "ConfigMap {}/{name}", self.namespace)
    }
}

/// ConfigMaps by name.
type Maps = BTreeMap<String, ConfigMap>;

fn put(maps: &mut Maps, map: ConfigMap) {
    maps.insert(map.metadata.name.clone().unwrap_or_default(), map);
}

/// A merge patch that makes one map of texts another.
fn difference(before: &Versions, after: &Versions) -> Value {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let gone = gone.map(|key| (key.clone(), Value::Null));
    let new = after
        .iter()
        .filter(|(key, text)| before.get(*key) != Some(text));
    let new = new.map(|(key, text)| (key.clone(), json!(text)));
    Value::Object(gone.chain(new).collect())
}

impl Record {
    /// A record that was never written, of these versions; for tests.
    #[must_use]
    pub const fn of_versions(versions: Versions) -> Self {
        Self {
            versions,
            resource_version: None,
        }
    }

    fn of(maps: &Maps) -> Self {
        let mut record = Self::default();
        for map in maps.values() {
            record
                .resource_version
                .clone_from(&map.metadata.resource_version);
            let versions = map.data.clone().unwrap_or_default();
            record.versions.extend(versions);
        }
        record
    }
}

/// Reads a version back by the rules that objects are judged by.
///
/// # Errors
/// A sentence, if it is not a valid version of the object with this UID.
pub fn read_version(uid: &str, text: &str) -> Result<Object, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    let (object, findings) = read_value(&value);
    let wrong = findings.into_iter().find(Finding::is_error);
    let Some(object) = object else {
        return Err(wrong.map_or_else(|| "no object".to_owned(), |wrong| wrong.to_string()));
    };
    // Of ConfigMaps only a MeshConfig is read as an object at all.
    if !object.kind().is_custom() && object.kind() != Kind::ConfigMap {
        return Err(format!("kind {} is not kept", object.kind()));
    }
    match object.head().uid.as_deref() {
        Some(own) if own == uid => Ok(object),
        _ => Err("it is a version of another object".to_owned()),
    }
}

/// Tells others of what is kept.
struct Telling<'a> {
    store: &'a LastValid,
    notices: mpsc::Sender<Notice>,
    start: Instant,
    /// Others know what is kept, or that they have to go on without.
    is_told: bool,
    /// A failure was told.
    is_failing: bool,
    /// Keys of texts that could not be read when that was last said.
    unread: BTreeSet<String>,
}

impl<'a> Telling<'a> {
    fn new(store: &'a LastValid, notices: mpsc::Sender<Notice>) -> Self {
        Self {
            store,
            notices,
            start: Instant::now(),
            is_told: false,
            is_failing: false,
            unread: BTreeSet::new(),
        }
    }

    fn patience(&self) -> impl Future<Output = ()> + use<> {
        tokio::time::sleep_until(self.start + PATIENCE)
    }

    async fn failed(&mut self, error: &watcher::Error) {
        if code(error) == Some(403) || self.is_told {
            self.unreadable(&error.to_string()).await;
        } else {
            tracing::debug!(what = %self.store, %error, "reading last valid versions failed");
        }
    }

    /// The server does not tell; what was read before stays.
    async fn unreadable(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                what = %self.store, error = why,
                "last valid versions of objects that are not valid now cannot be read; trying again",
            );
        }
        self.store.known.send_if_modified(|known| {
            let is_known = matches!(**known, Known::Record(_));
            if !is_known {
                *known = Arc::new(Known::Unreadable(why.to_owned()));
            }
            !is_known
        });
        if !std::mem::replace(&mut self.is_told, true) {
            self.tell(Recalled::new()).await;
        }
    }

    async fn record(&mut self, record: Record) {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(what = %self.store, "last valid versions can be read again");
        }
        self.is_told = true;
        let recalled = self.read(&record.versions);
        // Who writes knows of it before anything follows from it.
        self.store
            .known
            .send_replace(Arc::new(Known::Record(record)));
        self.tell(recalled).await;
    }

    fn read(&mut self, versions: &Versions) -> Recalled {
        let mut recalled = Recalled::new();
        let mut unread = BTreeSet::new();
        for (uid, text) in versions {
            match read_version(uid, text) {
                Ok(object) => drop(recalled.insert(object.reference(), object)),
                Err(error) => {
                    if !self.unread.contains(uid) {
                        tracing::warn!(
                            what = %self.store, entry = uid, error,
                            "a last valid version cannot be used",
                        );
                    }
                    unread.insert(uid.clone());
                }
            }
        }
        self.unread = unread;
        recalled
    }

    async fn tell(&self, recalled: Recalled) {
        // Who listens no more has gone, and so do we.
        let _gone = self.notices.send(Notice::Recalled(recalled)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(uid: &str, action: &str) -> String {
        let value = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": "shop", "uid": uid },
            "spec": { "action": action, "rules": [{}] },
        });
        value.to_string()
    }

    #[test]
    fn only_a_valid_version_of_the_object_itself_is_read() {
        assert!(read_version("a", &policy("a", "DENY")).is_ok());
        let mesh = |name: &str, mesh: &str| {
            let value = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": name, "namespace": "istio-system", "uid": "a" },
                "data": { "mesh": mesh },
            });
            value.to_string()
        };
        assert!(read_version("a", &mesh("istio", "trustDomainAliases: [a]")).is_ok());
        for (uid, text) in [
            ("a", mesh("istio", "trustDomainAliases: a")),
            ("a", mesh("shop", "trustDomainAliases: [a]")),
            ("b", policy("a", "DENY")),
            ("a", policy("a", "DENNY")),
            ("a", "{".to_owned()),
            ("a", "[]".to_owned()),
            (
                "a",
                json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": { "name": "s", "namespace": "shop", "uid": "a" },
                })
                .to_string(),
            ),
        ] {
            assert!(read_version(uid, &text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_change_names_what_is_new_and_what_is_gone() {
        let of = |all: &[(&str, &str)]| -> Versions {
            let all = all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            all.collect()
        };
        let before = of(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let after = of(&[("a", "1"), ("b", "4"), ("d", "5")]);
        let change = difference(&before, &after);
        assert_eq!(change, json!({ "b": "4", "c": null, "d": "5" }));
        assert_eq!(difference(&before, &before), json!({}));
    }
}
