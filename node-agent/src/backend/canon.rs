use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isobar_net::NetNs;
use nix::sched::{CloneFlags, unshare};

use super::{Backend, BackendError, kernel};
use crate::plan::{Capture, Wishes, plan_rules};

/// Plans that are remembered: more than the pods of a node have, some kilobytes each.
const REMEMBERED: usize = 512;

/// What plans look like once written: each is tried out in an empty namespace and remembered.
#[derive(Debug)]
pub struct Canon {
    backend: Backend,
    scratch: NetNs,
    memory: Memory,
}

impl Canon {
    /// For a tool, with a namespace from [`Canon::scratch`].
    #[must_use]
    pub fn new(backend: Backend, scratch: NetNs) -> Self {
        Self {
            backend,
            scratch,
            memory: Memory::default(),
        }
    }

    /// An empty namespace that nobody uses, to try rules in.
    ///
    /// # Errors
    /// Without the right to make one.
    pub fn scratch() -> std::io::Result<NetNs> {
        // A thread of its own: it never comes back from the new namespace.
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            NetNs::current()
        })
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    }

    /// The tool.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        self.backend
    }

    /// The listing of a plan. Blocks when it is not remembered.
    ///
    /// # Errors
    /// When the plan cannot be written.
    pub fn listing(&self, wishes: &Wishes, capture: Capture) -> Result<Arc<str>, BackendError> {
        self.memory.recall(&(wishes.clone(), capture), || {
            let backend = self.backend;
            self.scratch
                .enter(|| {
                    backend.write(&plan_rules(wishes, capture))?;
                    let text = backend.list()?.unwrap_or_default();
                    backend.remove()?;
                    Ok(text)
                })
                .map_err(kernel("entering an empty namespace"))?
        })
    }
}

type Plan = (Wishes, Capture);

/// Listings of plans; those that were asked for longest ago are forgotten.
#[derive(Debug, Default)]
struct Memory {
    // Held for the map only: whoever asks for what is known never waits for a tool.
    known: Mutex<Known>,
    // Held while trying out: the scratch namespace is for one at a time.
    trying: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    listings: HashMap<Plan, (u64, Arc<str>)>,
    /// Counts questions.
    now: u64,
}

impl Memory {
    /// What is known of `plan`, or else what `try_out` finds.
    fn recall<E>(
        &self,
        plan: &Plan,
        try_out: impl FnOnce() -> Result<String, E>,
    ) -> Result<Arc<str>, E> {
        if let Some(text) = lock(&self.known).find(plan) {
            return Ok(text);
        }
        let _alone = lock(&self.trying);
        // Somebody may have tried it meanwhile.
        if let Some(text) = lock(&self.known).find(plan) {
            return Ok(text);
        }
        let text: Arc<str> = try_out()?.into();
        lock(&self.known).keep(plan.clone(), Arc::clone(&text));
        Ok(text)
    }
}

impl Known {
    fn find(&mut self, plan: &Plan) -> Option<Arc<str>> {
        self.now += 1;
        let (asked, text) = self.listings.get_mut(plan)?;
        *asked = self.now;
        Some(Arc::clone(text))
    }

    fn keep(&mut self, plan: Plan, text: Arc<str>) {
        if self.listings.len() >= REMEMBERED {
            let all = self.listings.iter();
            let oldest = all.min_by_key(|(_, (asked, _))| *asked);
            if let Some(oldest) = oldest.map(|(plan, _)| plan.clone()) {
                self.listings.remove(&oldest);
            }
        }
        self.listings.insert(plan, (self.now, text));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn plan(port: u16) -> Plan {
        let wishes = Wishes {
            probes: [port].into(),
            ..Wishes::default()
        };
        (wishes, Capture::On)
    }

    fn found(text: &str) -> Result<String, ()> {
        Ok(text.to_owned())
    }

    #[test]
    fn what_is_known_waits_for_nobody_who_tries_something_out() {
        let memory = Memory::default();
        memory.recall(&plan(1), || found("known")).unwrap();
        let (begun, has_begun) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let (told, answer) = mpsc::channel();
        std::thread::scope(|scope| {
            let memory = &memory;
            scope.spawn(move || {
                let slow = || {
                    begun.send(()).unwrap();
                    // Ends with the test, also one that fails.
                    let _ = ends.recv();
                    found("new")
                };
                memory.recall(&plan(2), slow).unwrap();
            });
            has_begun.recv().unwrap();
            scope.spawn(move || told.send(memory.recall(&plan(1), || Err(()))).unwrap());
            let known = answer.recv_timeout(Duration::from_secs(10));
            drop(end);
            assert_eq!(known.unwrap().as_deref(), Ok("known"));
        });
        let new = memory.recall(&plan(2), || Err(()));
        assert_eq!(new.as_deref(), Ok("new"));
    }

    #[test]
    fn it_does_not_grow_and_keeps_what_is_asked_for() {
        let memory = Memory::default();
        let last = u16::try_from(2 * REMEMBERED).unwrap();
        for port in 1..=last {
            memory.recall(&plan(0), || found("often")).unwrap();
            memory.recall(&plan(port), || found("once")).unwrap();
        }
        assert_eq!(lock(&memory.known).listings.len(), REMEMBERED);
        for port in [0, last] {
            assert!(memory.recall(&plan(port), || Err(())).is_ok());
        }
        assert!(memory.recall(&plan(1), || Err(())).is_err());
    }
}
