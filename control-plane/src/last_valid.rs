//! Keeps the last valid versions of objects that are not valid now in the cluster, and says of each
//! whether it is kept: what is not counts in this process only.
//!
//! Every replica has them from its source ([`LastValid`]); the one that leads writes them. What it does
//! not know itself, as it has seen no valid version and cannot read the one that is kept, it leaves
//! there as long as the object is not valid.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use isobar_kubernetes::{Known, LastValid, Versions, read_version};
use isobar_objects::{Instead, Invalid, Invalids, Kept, Kind, ObjectRef, ObjectSet, Published};
use isobar_runtime::{Backoff, Lifetime};
use tokio::sync::watch;
use tokio::time::Instant;

/// Name of the ConfigMap in the control plane's namespace; beside others with the revision after it.
pub(crate) const NAME: &str = "isobar-last-valid";
/// Bytes of keys and texts that are kept at most. A ConfigMap may have 1 MiB.
const ROOM: usize = 900 << 10;
/// First and longest pause after a failed write.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// Longest time for a write: what it became of is heard of all the same.
const LIMIT: Duration = Duration::from_secs(5);

/// A write that is under way.
type Writing = Pin<Box<dyn Future<Output = Result<(), Unkept>> + Send>>;
/// Begins to write these versions in place of what is known.
type Keep = Box<dyn Fn(Arc<Known>, Versions) -> Writing + Send>;

/// Why a write did nothing.
#[derive(Debug)]
enum Unkept {
    /// Another has written: what is there now is heard of soon.
    Outdated(String),
    /// The server refuses, or does not answer.
    Refused(String),
}

/// Writes what is to be kept, and marks what is.
pub(crate) struct Keeper {
    keep: Keep,
    known: watch::Receiver<Arc<Known>>,
    root_namespace: String,
    leads: watch::Receiver<bool>,
    texts: Texts,
    /// What the server said last, if it did not take something.
    failure: Option<String>,
    /// How many there was no room for when that was last said.
    left_out: usize,
}

impl Keeper {
    /// Writes to `store` while `leads` is true. Policies of the root namespace come first when there is
    /// no room for all.
    pub(crate) fn new(
        store: LastValid,
        root_namespace: &str,
        leads: watch::Receiver<bool>,
    ) -> Self {
        Self {
            known: store.known(),
            keep: Box::new(move |known, versions| Box::pin(keep(store.clone(), known, versions))),
            root_namespace: root_namespace.to_owned(),
            leads,
            texts: Texts::default(),
            failure: None,
            left_out: 0,
        }
    }

    /// Follows `source` until `life` ends, and publishes to `sender` the same with what is kept.
    pub(crate) async fn run(
        mut self,
        mut source: watch::Receiver<Arc<Published>>,
        sender: watch::Sender<Arc<Published>>,
        life: Lifetime,
    ) {
        let mut known = self.known.clone();
        let mut leads = self.leads.clone();
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        // The record that was replaced: until another is heard of there is nothing to compare with.
        let mut replaced: Option<Arc<Known>> = None;
        let mut told: Option<Told> = None;
        // A server that refuses is not asked anew for every publication, and none waits for a write.
        let mut not_before: Option<Instant> = None;
        let mut writing: Option<(Arc<Known>, Writing)> = None;
        loop {
            let published = source.borrow_and_update().clone();
            let now = known.borrow_and_update().clone();
            let leading = *leads.borrow_and_update();
            let wanted = self.wanted(&published, &now);
            let invalid = marked(&published, &now, &wanted, self.failure.as_deref());
            Told::tell(&mut told, published.clone(), invalid, &sender);
            if leading
                && published.synced
                && writing.is_none()
                && not_before.is_none_or(|at| at <= Instant::now())
                && let Known::Record(before) = &*now
                && before.versions != wanted.versions
                && replaced.as_ref().is_none_or(|one| !Arc::ptr_eq(one, &now))
            {
                not_before = None;
                let begun = (self.keep)(Arc::clone(&now), wanted.versions);
                writing = Some((now, begun));
            }
            tokio::select! {
                () = life.stopped() => return,
                changed = source.changed() => if changed.is_err() { return },
                Ok(()) = known.changed() => {}
                Ok(()) = leads.changed() => {}
                (before, done) = written(&mut writing) => {
                    writing = None;
                    if self.took(done) {
                        backoff.reset();
                        replaced = Some(before);
                    } else {
                        not_before = Some(Instant::now() + backoff.step(rand::random()));
                    }
                }
                () = until(not_before), if writing.is_none() => not_before = None,
            }
        }
    }

    fn wanted(&mut self, published: &Published, known: &Known) -> Wanted {
        let nothing = Versions::new();
        let kept = match known {
            Known::Record(record) => &record.versions,
            Known::Nothing | Known::Unreadable(_) => &nothing,
        };
        let wanted = self.texts.wanted(published, kept, &self.root_namespace);
        if wanted.left_out.len() > self.left_out {
            tracing::warn!(
                left_out = wanted.left_out.len(),
                first = wanted.left_out.first().map(tracing::field::display),
                bytes = ROOM,
                "there is no room to keep the last valid versions of all objects that are not valid"
            );
        }
        self.left_out = wanted.left_out.len();
        wanted
    }

    /// Takes in what became of a write. False if it has to be tried again.
    fn took(&mut self, done: Result<(), Unkept>) -> bool {
        match done {
            Ok(()) => {
                tracing::debug!("last valid versions are kept");
                self.failure = None;
                true
            }
            Err(Unkept::Outdated(error)) => {
                tracing::debug!(error, "last valid versions were written by another");
                true
            }
            Err(Unkept::Refused(error)) => {
                if self.failure.as_ref() != Some(&error) {
                    tracing::error!(error, "last valid versions cannot be kept");
                }
                self.failure = Some(error);
                false
            }
        }
    }
}

async fn keep(store: LastValid, known: Arc<Known>, versions: Versions) -> Result<(), Unkept> {
    let Known::Record(before) = &*known else {
        return Err(Unkept::Outdated("what is kept is not known".to_owned()));
    };
    match tokio::time::timeout(LIMIT, store.keep(before, &versions)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.is_outdated() => Err(Unkept::Outdated(error.to_string())),
        Ok(Err(error)) => Err(Unkept::Refused(error.to_string())),
        Err(_) => Err(Unkept::Refused(format!("no answer within {LIMIT:?}"))),
    }
}

/// What became of the write that is under way, and what it replaces; never without one.
async fn written(writing: &mut Option<(Arc<Known>, Writing)>) -> (Arc<Known>, Result<(), Unkept>) {
    match writing {
        Some((before, writing)) => {
            let done = writing.await;
            (Arc::clone(before), done)
        }
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What was published last.
struct Told {
    source: Arc<Published>,
    invalid: Option<Arc<Invalids>>,
}

impl Told {
    /// Publishes unless it was. Without marks the source's own publication goes on.
    fn tell(
        told: &mut Option<Self>,
        source: Arc<Published>,
        invalid: Option<Invalids>,
        sender: &watch::Sender<Arc<Published>>,
    ) {
        let before = told.as_ref();
        let is_same = before.is_some_and(|before| {
            Arc::ptr_eq(&before.source, &source) && before.invalid.as_deref() == invalid.as_ref()
        });
        if is_same {
            return;
        }
        let invalid = invalid.map(Arc::new);
        sender.send_replace(match &invalid {
            None => Arc::clone(&source),
            Some(invalid) => Arc::new(Published {
                invalid: Arc::clone(invalid),
                ..Published::clone(&source)
            }),
        });
        *told = Some(Self { source, invalid });
    }
}

/// What should be kept.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    versions: Versions,
    /// What there is no room for.
    left_out: BTreeSet<ObjectRef>,
}

/// Versions in force, as texts; by the moment they were made of, as most stay as they are.
#[derive(Debug, Default)]
struct Texts(BTreeMap<ObjectRef, (u64, Option<String>)>);

/// One version that should be kept.
struct Entry<'a> {
    object: &'a ObjectRef,
    uid: &'a str,
    text: String,
}

impl Entry<'_> {
    const fn size(&self) -> usize {
        self.uid.len() + self.text.len()
    }

    /// What matters most has the lowest number.
    fn rank(&self, root_namespace: &str) -> u8 {
        match self.object.known() {
            Some(Kind::ConfigMap) => 0,
            Some(Kind::AuthorizationPolicy | Kind::PeerAuthentication) => {
                1 + u8::from(*self.object.namespace != *root_namespace)
            }
            _ => 3,
        }
    }
}

impl Texts {
    /// What should be kept of `published`, where `kept` is.
    fn wanted(&mut self, published: &Published, kept: &Versions, root_namespace: &str) -> Wanted {
        let invalid = &*published.invalid;
        self.0.retain(|object, _| invalid.contains_key(object));
        let mut entries = Vec::new();
        for (object, one) in invalid {
            let Some(uid) = uid_of(one) else { continue };
            let text = match one.instead {
                Instead::LastGood => self.text(&published.objects, object, uid),
                Instead::Refusal | Instead::Nothing => kept.get(uid).cloned(),
            };
            entries.extend(text.map(|text| Entry { object, uid, text }));
        }
        share(entries, root_namespace, ROOM)
    }

    fn text(&mut self, set: &ObjectSet, object: &ObjectRef, uid: &str) -> Option<String> {
        let changed = set.last_changed(object)?;
        match self.0.get(object) {
            Some((at, text)) if *at == changed => text.clone(),
            _ => {
                let text = text(set, object, uid);
                self.0.insert(object.clone(), (changed, text.clone()));
                text
            }
        }
    }
}

/// The UID of what an API server has; it is a key, and has to be one.
fn uid_of(invalid: &Invalid) -> Option<&str> {
    let uid = invalid.uid.as_deref()?;
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    ((1..=64).contains(&uid.len()) && uid.bytes().all(is_key)).then_some(uid)
}

/// The version in force; nothing if it would not be read back as what it is.
fn text(set: &ObjectSet, object: &ObjectRef, uid: &str) -> Option<String> {
    let mut value = set.object(object)?.to_value().ok()?;
    let whole = value.as_object_mut()?;
    whole.shift_remove("status");
    let head = whole.get_mut("metadata")?.as_object_mut()?;
    head.shift_remove("resourceVersion");
    let text = value.to_string();
    match read_version(uid, &text) {
        Ok(_) => Some(text),
        Err(error) => {
            tracing::warn!(%object, error, "its last valid version cannot be kept");
            None
        }
    }
}

/// Gives out the room: by what matters, and there to each namespace the same, as whoever breaks much
/// takes nothing away from others.
fn share(mut entries: Vec<Entry<'_>>, root_namespace: &str, room: usize) -> Wanted {
    entries.sort_by_key(|entry| (entry.size(), entry.object));
    let mut used: BTreeMap<(u8, &str), usize> = BTreeMap::new();
    let mut ordered: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let rank = entry.rank(root_namespace);
            let used = used.entry((rank, &*entry.object.namespace)).or_default();
            *used += entry.size();
            ((rank, *used, entry.object), entry)
        })
        .collect();
    ordered.sort_by_key(|(key, _)| *key);
    let mut wanted = Wanted::default();
    let mut left = room;
    for (_, entry) in ordered {
        match left.checked_sub(entry.size()) {
            Some(rest) => {
                left = rest;
                wanted.versions.insert(entry.uid.to_owned(), entry.text);
            }
            None => drop(wanted.left_out.insert(entry.object.clone())),
        }
    }
    wanted
}

/// What is told of objects that are not valid, with whether their last valid versions are kept; `None`
/// where nothing is to be added.
fn marked(
    published: &Published,
    known: &Known,
    wanted: &Wanted,
    failure: Option<&str>,
) -> Option<Invalids> {
    let lives_here = |one: &Invalid| one.instead == Instead::LastGood && one.uid.is_some();
    if !published.invalid.values().any(lives_here) {
        return None;
    }
    let mut all = Invalids::clone(&published.invalid);
    for (object, one) in all.iter_mut().filter(|(_, one)| lives_here(one)) {
        let uid = one.uid.clone().unwrap_or_default();
        let text = wanted.versions.get(&uid);
        let why = match (known, text) {
            (Known::Record(record), Some(_)) if record.versions.get(&uid) == text => continue,
            (_, None) if wanted.left_out.contains(object) => {
                format!("there is no room for more than {} KiB of them", ROOM >> 10)
            }
            (_, None) => "it cannot be written down".to_owned(),
            (Known::Unreadable(error), _) => format!("what is kept cannot be read: {error}"),
            (Known::Nothing, _) => "not yet".to_owned(),
            (Known::Record(_), _) => failure.map_or_else(|| "not yet".to_owned(), str::to_owned),
        };
        one.kept = Kept::No(why);
    }
    Some(all)
}

#[cfg(test)]
mod tests;
