//! What keeps one peer from costing more than its share: a score of misuse per connection and per
//! identity, a look at every frame header before the HTTP/2 library sees it, and caps.

mod admission;
mod heads;
mod meter;
mod opening;
mod pace;
mod score;
mod sources;
mod turns;
mod watch;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::Notify;

pub use admission::{Admission, Limits, Turned};
pub(crate) use admission::{Member, StreamPermit};
pub use heads::{FrameHead, FrameHeads};
pub(crate) use meter::Role;
pub use opening::taken_of_opening;
pub(crate) use pace::paced;
pub(crate) use score::Misuse;
use score::{CONNECTION_LIMIT, Score};
pub(crate) use sources::Visit;
use turns::Turn;
pub(crate) use turns::in_turns;
pub(crate) use watch::Watch;

/// Watches over one connection.
#[derive(Debug)]
pub(crate) struct Guard {
    score: RefCell<Score>,
    tripped: Cell<Option<Misuse>>,
    trip: Notify,
    /// Streams opened on it, by whichever side may.
    opened: Cell<u64>,
    /// Bytes sent on it.
    sent: Cell<u64>,
    turn: Turn,
    /// Whether a stream was accepted on it.
    carried: Cell<bool>,
    /// Who is at the other end, if counted.
    member: Option<Rc<Member>>,
}

impl Guard {
    pub(crate) fn new(member: Option<Rc<Member>>) -> Rc<Self> {
        Rc::new(Self {
            score: RefCell::new(Score::new(Instant::now())),
            tripped: Cell::new(None),
            trip: Notify::new(),
            opened: Cell::new(0),
            sent: Cell::new(0),
            turn: Turn::default(),
            carried: Cell::new(false),
            member,
        })
    }

    /// Notes a misuse; enough of them trip the guard.
    pub(crate) fn misuse(&self, misuse: Misuse) {
        let now = Instant::now();
        if let Some(member) = &self.member {
            member.misuse(misuse, now);
        }
        let mut score = self.score.borrow_mut();
        score.add(misuse, now);
        if self.tripped.get().is_none() && score.total(now) >= CONNECTION_LIMIT {
            self.tripped.set(Some(score.largest()));
            self.trip.notify_one();
        }
    }

    /// Resolves, once, when the guard trips; names what weighed most.
    pub(crate) async fn trips(&self) -> Misuse {
        loop {
            if let Some(misuse) = self.tripped.get() {
                return misuse;
            }
            self.trip.notified().await;
        }
    }

    /// A stream was accepted.
    pub(crate) fn carries(&self) {
        self.carried.set(true);
    }

    /// Whether one ever was.
    pub(crate) const fn has_carried(&self) -> bool {
        self.carried.get()
    }

    pub(crate) const fn is_tripped(&self) -> bool {
        self.tripped.get().is_some()
    }

    /// A stream was opened, which entitles to some frames.
    pub(crate) fn stream_opened(&self) {
        self.opened.set(self.opened.get() + 1);
    }
}
