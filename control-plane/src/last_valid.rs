//! Keeps the last valid versions of objects that are not valid now in the cluster, and says of each
//! whether it is kept: what is not counts in this process only.
//!
//! Every replica has them from its source ([`LastValid`]); the one that leads writes them. What it does
//! not know itself, as it has seen no valid version and cannot read the one that is kept, it leaves
//! there as long as the object is not valid.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isobar_kubernetes::{Known, LastValid, Record, Versions, read_version};
use isobar_objects::{Instead, Invalid, Invalids, Kept, Kind, ObjectRef, ObjectSet, Published};
use isobar_runtime::{Backoff, Lifetime};
use tokio::sync::watch;

/// Name of the ConfigMap in the control plane's namespace; beside others with the revision after it.
pub(crate) const NAME: &str = "isobar-last-valid";
/// Bytes of keys and texts that are kept at most. A ConfigMap may have 1 MiB.
const ROOM: usize = 900 << 10;
/// First and longest pause after a failed write.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// Writes what is to be kept, and marks what is.
pub(crate) struct Keeper {
    store: LastValid,
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
            store,
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
        let mut known = self.store.known();
        let mut leads = self.leads.clone();
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        // The record that was replaced: until another is heard of there is nothing to compare with.
        let mut replaced: Option<Arc<Known>> = None;
        let mut told: Option<Told> = None;
        loop {
            let published = source.borrow_and_update().clone();
            let now = known.borrow_and_update().clone();
            let leading = *leads.borrow_and_update();
            let wanted = self.wanted(&published, &now);
            let tell = |failure: Option<&str>, told: &mut Option<Told>| {
                let invalid = marked(&published, &now, &wanted, failure);
                Told::tell(told, published.clone(), invalid, &sender);
            };
            tell(self.failure.as_deref(), &mut told);
            let mut pause = None;
            if leading
                && published.synced
                && let Known::Record(before) = &*now
                && before.versions != wanted.versions
                && replaced.as_ref().is_none_or(|one| !Arc::ptr_eq(one, &now))
            {
                match self.write(before, &wanted).await {
                    Ok(()) => {
                        backoff.reset();
                        replaced = Some(Arc::clone(&now));
                    }
                    Err(error) => {
                        tell(Some(&error), &mut told);
                        self.failure = Some(error);
                        pause = Some(backoff.step(rand::random()));
                    }
                }
            }
            tokio::select! {
                () = life.stopped() => return,
                changed = source.changed() => if changed.is_err() { return },
                Ok(()) = known.changed() => {}
                Ok(()) = leads.changed() => {}
                () = until(pause) => {}
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

    async fn write(&mut self, before: &Record, wanted: &Wanted) -> Result<(), String> {
        match self.store.keep(before, &wanted.versions).await {
            Ok(()) => {
                tracing::debug!(
                    versions = wanted.versions.len(),
                    "last valid versions are kept"
                );
                self.failure = None;
                Ok(())
            }
            // What is there now is heard of soon.
            Err(error) if error.is_outdated() => {
                tracing::debug!(%error, "last valid versions were written by another");
                Ok(())
            }
            Err(error) => {
                let error = error.to_string();
                if self.failure.as_ref() != Some(&error) {
                    tracing::error!(error, "last valid versions cannot be kept");
                }
                Err(error)
            }
        }
    }
}

async fn until(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
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
            Some(Kind::AuthorizationPolicy | Kind::PeerAuthentication) => {
                u8::from(*self.object.namespace != *root_namespace)
            }
            _ => 2,
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
