use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use isobar_net::NetNs;
use nix::sched::{CloneFlags, unshare};

use super::{Backend, BackendError, kernel};
use crate::plan::{Capture, Wishes, plan_rules};

/// What plans look like once written: each is tried out in an empty namespace and remembered.
#[derive(Debug)]
pub struct Canon {
    backend: Backend,
    scratch: NetNs,
    known: Mutex<HashMap<(Wishes, Capture), Arc<str>>>,
}

impl Canon {
    /// For a tool, with a namespace from [`Canon::scratch`].
    #[must_use]
    pub fn new(backend: Backend, scratch: NetNs) -> Self {
        Self {
            backend,
            scratch,
            known: Mutex::default(),
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

    /// The listing of a plan. Blocks when it is asked for the first time.
    ///
    /// # Errors
    /// When the plan cannot be written.
    pub fn listing(&self, wishes: &Wishes, capture: Capture) -> Result<Arc<str>, BackendError> {
        let key = (wishes.clone(), capture);
        // Held while trying out: the scratch namespace is for one at a time.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = known.get(&key) {
            return Ok(Arc::clone(text));
        }
        let backend = self.backend;
        let text = self
            .scratch
            .enter(|| {
                backend.write(&plan_rules(wishes, capture))?;
                let text = backend.list()?.unwrap_or_default();
                backend.remove()?;
                Ok::<_, BackendError>(text)
            })
            .map_err(kernel("entering an empty namespace"))??;
        let text: Arc<str> = text.into();
        known.insert(key, Arc::clone(&text));
        Ok(text)
    }
}
