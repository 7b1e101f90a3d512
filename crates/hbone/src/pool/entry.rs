use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::tunnel::Tunnel;
use crate::TunnelError;

/// All tunnels of one key, and the dial that is under way for it.
pub(crate) struct Entry {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    dial: RefCell<Dial>,
    changed: Notify,
}

#[derive(Default)]
struct Dial {
    /// Number of the attempt under way, if any; attempts count from 1.
    running: Option<u64>,
    last: u64,
    /// The last attempt that failed, and how.
    failed: Option<(u64, TunnelError)>,
    /// Attempts in a row that ended in order before the peer had said anything.
    goodbyes: u32,
}

/// So many of these are followed by another attempt: a process that ends may have taken the
/// connection a moment before its successor would have.
const MOST_GOODBYES: u32 = 3;

/// What a caller that wants a slot has to do.
pub(crate) enum Turn {
    /// Go.
    Slot(Slot),
    /// Start this attempt, then wait.
    Dial(u64),
    /// Wait for a change.
    Wait,
    /// The peer takes no streams, and would take none on another tunnel.
    None,
}

impl Entry {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            tunnels: RefCell::default(),
            dial: RefCell::default(),
            changed: Notify::new(),
        })
    }

    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Decides for one caller. `joined` is the attempt it waits for: when that one fails, so does
    /// the caller, whoever started it.
    pub(crate) fn turn(
        self: &Rc<Self>,
        joined: &mut Option<u64>,
        most: usize,
    ) -> Result<Turn, TunnelError> {
        self.tunnels
            .borrow_mut()
            .retain(|tunnel| tunnel.is_usable());
        let tunnels = self.tunnels.borrow();
        // The fullest with room: lesser ones get the chance to become idle and close.
        let best = tunnels
            .iter()
            .filter(|tunnel| tunnel.room(most) > 0)
            .max_by_key(|tunnel| tunnel.active());
        if let Some(tunnel) = best {
            return Ok(Turn::Slot(Slot::take(self, tunnel)));
        }
        let mut dial = self.dial.borrow_mut();
        if let (Some(joined), Some((attempt, error))) = (*joined, &dial.failed)
            && joined <= *attempt
        {
            return Err(error.clone());
        }
        if dial.running.is_some() {
            *joined = dial.running;
            return Ok(Turn::Wait);
        }
        // A tunnel whose limit is not known yet may have room as soon as it is. If it never comes,
        // the attempt that made it has failed after all.
        if tunnels.iter().any(|tunnel| !tunnel.is_settled()) {
            *joined = Some(dial.last);
            return Ok(Turn::Wait);
        }
        if tunnels.iter().any(|tunnel| tunnel.allows_none()) {
            return Ok(Turn::None);
        }
        dial.last += 1;
        dial.running = Some(dial.last);
        *joined = dial.running;
        Ok(Turn::Dial(dial.last))
    }

    fn finished(&self, attempt: u64, result: Result<Rc<Tunnel>, TunnelError>) {
        let mut dial = self.dial.borrow_mut();
        dial.running = None;
        match result {
            Ok(tunnel) => self.tunnels.borrow_mut().push(tunnel),
            Err(error) => dial.failed = Some((attempt, error)),
        }
        drop(dial);
        self.notify();
    }

    /// The peer's SETTINGS have arrived.
    pub(crate) fn settled(&self) {
        self.dial.borrow_mut().goodbyes = 0;
        self.notify();
    }

    /// A tunnel ended in order before its peer had said anything. True if who waits for it may try
    /// again.
    pub(crate) fn said_goodbye(&self) -> bool {
        let mut dial = self.dial.borrow_mut();
        dial.goodbyes += 1;
        dial.goodbyes <= MOST_GOODBYES
    }

    /// A tunnel ended before its peer had said anything: all who wait for it are told why.
    pub(crate) fn never_settled(&self, error: TunnelError) {
        let mut dial = self.dial.borrow_mut();
        // An attempt that runs now is a later one, with callers of its own.
        let attempt = dial.running.map_or(dial.last, |running| running - 1);
        dial.failed = Some((attempt, error));
    }

    /// Adds a tunnel and takes its first slot.
    pub(crate) fn add_first(self: &Rc<Self>, tunnel: &Rc<Tunnel>) -> Slot {
        self.tunnels.borrow_mut().push(Rc::clone(tunnel));
        Slot::take(self, tunnel)
    }

    pub(crate) fn remove(&self, gone: &Rc<Tunnel>) {
        self.tunnels
            .borrow_mut()
            .retain(|tunnel| !Rc::ptr_eq(tunnel, gone));
        self.notify();
    }

    pub(crate) fn len(&self) -> usize {
        self.tunnels.borrow().len()
    }

    pub(crate) fn streams(&self) -> usize {
        self.tunnels
            .borrow()
            .iter()
            .map(|tunnel| tunnel.active())
            .sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tunnels.borrow().is_empty() && self.dial.borrow().running.is_none()
    }
}

/// Ends an attempt however its task ends: waiters are told even if the task is dropped.
pub(crate) struct AttemptGuard {
    entry: Rc<Entry>,
    attempt: u64,
    done: Cell<bool>,
}

impl AttemptGuard {
    pub(crate) fn new(entry: Rc<Entry>, attempt: u64) -> Self {
        Self {
            entry,
            attempt,
            done: Cell::new(false),
        }
    }

    pub(crate) fn finish(&self, result: Result<Rc<Tunnel>, TunnelError>) {
        if !self.done.replace(true) {
            self.entry.finished(self.attempt, result);
        }
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        self.finish(Err(TunnelError::Drained));
    }
}

/// A place for one stream on a tunnel; given back when dropped.
pub(crate) struct Slot {
    entry: Rc<Entry>,
    tunnel: Rc<Tunnel>,
    reused: bool,
}

impl Slot {
    fn take(entry: &Rc<Entry>, tunnel: &Rc<Tunnel>) -> Self {
        let reused = tunnel.take();
        Self {
            entry: Rc::clone(entry),
            tunnel: Rc::clone(tunnel),
            reused,
        }
    }

    pub(crate) fn tunnel(&self) -> &Rc<Tunnel> {
        &self.tunnel
    }

    /// True when the tunnel has carried a stream before.
    pub(crate) const fn is_reused(&self) -> bool {
        self.reused
    }

    /// Nobody else is to use this tunnel.
    pub(crate) fn condemn(&self) {
        self.tunnel.condemn();
        self.entry.remove(&self.tunnel);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.tunnel.give_back();
        self.entry.notify();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(entry: &Rc<Entry>, joined: &mut Option<u64>) -> Turn {
        entry.turn(joined, 100).expect("no attempt of its failed")
    }

    #[test]
    fn one_attempt_runs_for_all_and_fails_for_those_who_wait_for_it() {
        let entry = Entry::new();
        assert!(entry.is_empty());
        let (mut first, mut second) = (None, None);
        assert!(matches!(turn(&entry, &mut first), Turn::Dial(1)));
        assert!(!entry.is_empty(), "an attempt is under way");
        assert!(matches!(turn(&entry, &mut second), Turn::Wait));
        assert_eq!((first, second), (Some(1), Some(1)));
        // A task that is dropped has failed as well.
        drop(AttemptGuard::new(Rc::clone(&entry), 1));
        assert!(entry.is_empty());
        for mut joined in [first, second] {
            let told = entry.turn(&mut joined, 100);
            assert!(matches!(told, Err(TunnelError::Drained)));
        }
        // Who comes later has not waited for it.
        let mut later = None;
        assert!(matches!(turn(&entry, &mut later), Turn::Dial(2)));
    }

    #[test]
    fn what_ended_unsettled_failed_those_before_the_attempt_that_runs() {
        let entry = Entry::new();
        let (mut old, mut new) = (None, None);
        assert!(matches!(turn(&entry, &mut old), Turn::Dial(1)));
        entry.dial.borrow_mut().running = None;
        assert!(matches!(turn(&entry, &mut new), Turn::Dial(2)));
        entry.never_settled(TunnelError::Drained);
        assert!(entry.turn(&mut old, 100).is_err());
        assert!(matches!(turn(&entry, &mut new), Turn::Wait));
        // With none under way it was the last one.
        entry.dial.borrow_mut().running = None;
        entry.never_settled(TunnelError::Drained);
        assert!(entry.turn(&mut new, 100).is_err());
    }

    #[test]
    fn so_many_goodbyes_in_a_row_are_followed_by_another_attempt() {
        let entry = Entry::new();
        let three: Vec<bool> = (0..4).map(|_| entry.said_goodbye()).collect();
        assert_eq!(three, [true, true, true, false]);
        entry.settled();
        assert!(entry.said_goodbye());
    }
}
