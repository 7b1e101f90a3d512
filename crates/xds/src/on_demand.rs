//! Addresses asked for one by one (Istio's `XDS_ON_DEMAND`), instead of all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use isobar_types::Str;
use tokio::sync::Notify;

/// Names that are kept though nothing is known about them: asked for and not answered, or answered
/// with "there is none". More would let whoever scans addresses fill both ends' memory.
const MOST_EMPTY: usize = 4096;

/// What has been asked for, and the way to ask. Cheap to clone; shared by the stream, which sends and
/// is answered, and all who need addresses.
#[derive(Debug, Clone, Default)]
pub struct OnDemand {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    // Held to look up or change entries.
    asked: Mutex<Asked>,
    /// Something is to be sent.
    wanted: Notify,
    /// Something was answered.
    answered: Notify,
}

#[derive(Debug, Default)]
struct Asked {
    names: HashMap<Str, Name>,
    /// Names that have no resource, by when they were last asked for.
    empty: BTreeMap<u64, Str>,
    /// By resource: the other names that led to it.
    leads: HashMap<Str, BTreeSet<Str>>,
    clock: u64,
    subscribe: BTreeSet<Str>,
    unsubscribe: BTreeSet<Str>,
}

#[derive(Debug, Clone, Copy)]
enum Name {
    /// Not answered; asked for at that count.
    Waiting(u64),
    /// There is none; asked for at that count. The server tells when there is one.
    Absent(u64),
    /// Answered with a resource.
    Present,
}

/// Too many names are asked for that lead to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_EMPTY} names are waiting for an answer from the control plane")]
pub struct TooManyAsked;

/// Changes to send on the stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
}

impl OnDemand {
    /// True if the control plane has answered about `name`, and told all changes since.
    #[must_use]
    pub fn is_answered(&self, name: &str) -> bool {
        self.with(|asked| asked.touch(name))
    }

    /// Asks for `names` and returns once all are answered, with a resource or with "there is none"; by
    /// then what was told is in the store. Waits for ever while there is no control plane: set a time
    /// limit.
    ///
    /// # Errors
    /// When too many names wait already.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the names stay asked for.
    pub async fn ask(&self, names: &[String]) -> Result<(), TooManyAsked> {
        let new = self.with(|asked| {
            let mut new = false;
            for name in names {
                new |= asked.ask(name)?;
            }
            Ok(new)
        })?;
        if new {
            self.shared.wanted.notify_one();
        }
        loop {
            // Registered before looking, so that no answer is missed.
            let mut told = pin!(self.shared.answered.notified());
            told.as_mut().enable();
            let all = self.with(|asked| names.iter().all(|name| asked.is_answered(name)));
            if all {
                return Ok(());
            }
            told.await;
        }
    }

    /// Names to tell a new stream besides those it holds. What was to be sent is among them.
    pub(crate) fn on_new_stream(&self) -> Vec<String> {
        self.with(|asked| {
            asked.subscribe.clear();
            asked.unsubscribe.clear();
            asked.empty.values().map(ToString::to_string).collect()
        })
    }

    /// The next changes to send.
    ///
    /// # Cancel safety
    /// May be dropped and called again: what was not returned is kept.
    pub(crate) async fn wanted(&self) -> Wanted {
        loop {
            let wanted = self.with(Asked::take_wanted);
            if wanted != Wanted::default() {
                return wanted;
            }
            self.shared.wanted.notified().await;
        }
    }

    /// Notes what `response`, which has been applied, answers.
    pub(crate) fn take(&self, response: &DeltaDiscoveryResponse) {
        self.with(|asked| {
            for resource in &response.resources {
                asked.present(&resource.name, &resource.aliases);
            }
            for name in &response.removed_resources {
                asked.removed(name);
            }
        });
        self.shared.answered.notify_waiters();
    }

    fn with<T>(&self, act: impl FnOnce(&mut Asked) -> T) -> T {
        act(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        let asked = &self.shared.asked;
        asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    fn is_answered(&self, name: &str) -> bool {
        matches!(self.names.get(name), Some(Name::Absent(_) | Name::Present))
    }

    /// As [`Self::is_answered`]; what is not there is remembered for longer.
    fn touch(&mut self, name: &str) -> bool {
        if let Some(Name::Absent(at)) = self.names.get(name).copied() {
            let fresh = self.tick();
            if let Some(name) = self.empty.remove(&at) {
                self.names.insert(name.clone(), Name::Absent(fresh));
                self.empty.insert(fresh, name);
            }
        }
        self.is_answered(name)
    }

    /// Returns whether there is something to send.
    fn ask(&mut self, name: &str) -> Result<bool, TooManyAsked> {
        if self.names.contains_key(name) {
            return Ok(false);
        }
        if self.empty.len() >= MOST_EMPTY {
            self.forget_oldest()?;
        }
        let name: Str = name.into();
        let now = self.tick();
        self.names.insert(name.clone(), Name::Waiting(now));
        self.empty.insert(now, name.clone());
        self.unsubscribe.remove(&name);
        self.subscribe.insert(name);
        Ok(true)
    }

    /// Gives up the name without a resource that nobody has asked for the longest.
    fn forget_oldest(&mut self) -> Result<(), TooManyAsked> {
        let oldest = self.empty.iter().find(|(_, name)| {
            let state = self.names.get(name.as_ref());
            matches!(state, Some(Name::Absent(_)))
        });
        let Some((at, name)) = oldest.map(|(at, name)| (*at, name.clone())) else {
            return Err(TooManyAsked);
        };
        self.empty.remove(&at);
        self.names.remove(&name);
        self.subscribe.remove(&name);
        self.unsubscribe.insert(name);
        Ok(())
    }

    fn present(&mut self, name: &str, aliases: &[String]) {
        self.set_present(name);
        for alias in aliases.iter().filter(|alias| *alias != name) {
            self.set_present(alias);
            if self.names.contains_key(alias.as_str()) {
                let leads = self.leads.entry(name.into()).or_default();
                leads.insert(alias.as_str().into());
            }
        }
    }

    /// Only of what was asked for.
    fn set_present(&mut self, name: &str) {
        if let Some(state) = self.names.get_mut(name) {
            if let Name::Waiting(at) | Name::Absent(at) = *state {
                self.empty.remove(&at);
            }
            *state = Name::Present;
        }
    }

    fn removed(&mut self, name: &str) {
        // Another may be at the same address: to be asked for again.
        for alias in self.leads.remove(name).into_iter().flatten() {
            if matches!(self.names.get(&alias), Some(Name::Present)) {
                self.names.remove(&alias);
            }
        }
        let Some(state) = self.names.get(name).copied() else {
            return;
        };
        let at = match state {
            Name::Waiting(at) | Name::Absent(at) => at,
            Name::Present => {
                let now = self.tick();
                self.empty.insert(now, name.into());
                now
            }
        };
        self.names.insert(name.into(), Name::Absent(at));
        if self.empty.len() > MOST_EMPTY {
            // There is one to forget: this one.
            let _ = self.forget_oldest();
        }
    }

    fn take_wanted(&mut self) -> Wanted {
        let texts = |names: &mut BTreeSet<Str>| {
            let names = std::mem::take(names).into_iter();
            names.map(|name| name.to_string()).collect()
        };
        Wanted {
            subscribe: texts(&mut self.subscribe),
            unsubscribe: texts(&mut self.unsubscribe),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests;
