//! Connections that callers keep. What one was opened for may leave this waypoint while nothing is asked
//! on it: then it ends by itself, so that the caller's next request opens another one, which finds the
//! way that holds now, and is not answered that nobody serves it here.
//!
//! A request that comes before is served as long as the waypoint may, and its answer ends the connection.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::session::{Session, until};
use crate::world::{View, World};

/// Between two looks. What is found leaving at two of them is told, so that callers' node proxies know
/// the new way by then; a change of bindings leaves both ways open for longer than that.
const LOOK: Duration = Duration::from_secs(1);
/// So many are looked at before others get their turn.
const AT_ONCE: usize = 256;

/// The HTTP connections of callers on one worker.
#[derive(Default)]
pub(crate) struct Kept {
    all: RefCell<BTreeMap<u64, One>>,
    next: Cell<u64>,
}

struct One {
    session: Weak<Session>,
    /// At the last look what it was opened for was on its way out.
    was_leaving: bool,
}

/// A place among them, until it is dropped.
pub(crate) struct Place<'a> {
    kept: &'a Kept,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.kept.all.borrow_mut().remove(&self.number);
    }
}

impl Kept {
    pub(crate) fn add(&self, session: &Rc<Session>) -> Place<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        let one = One {
            session: Rc::downgrade(session),
            was_leaving: false,
        };
        self.all.borrow_mut().insert(number, one);
        Place { kept: self, number }
    }

    /// Looks at them when the mesh changes, until the world is gone.
    pub(crate) fn watch(self: Rc<Self>, world: World) -> impl Future<Output = ()> {
        let mut snapshots = world.store.versions();
        async move {
            let mut look_at = None;
            loop {
                tokio::select! {
                    changed = snapshots.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        look_at = look_at.or_else(|| Some(Instant::now() + LOOK));
                    }
                    () = until(look_at) => {
                        let leaving = self.look(&world.view()).await;
                        look_at = leaving.then(|| Instant::now() + LOOK);
                    }
                }
            }
        }
    }

    /// Tells those that leave; true if there are some.
    async fn look(&self, view: &View) -> bool {
        let (mut found, mut next) = (false, Some(0));
        while let Some(from) = next {
            let leaving;
            (leaving, next) = self.look_at_some(view, from);
            found |= leaving;
            tokio::task::yield_now().await;
        }
        found
    }

    /// The same of some, and where the others begin.
    fn look_at_some(&self, view: &View, from: u64) -> (bool, Option<u64>) {
        let (mut found, mut next) = (false, None);
        let mut all = self.all.borrow_mut();
        for (seen, (number, one)) in all.range_mut(from..).enumerate() {
            if seen == AT_ONCE {
                next = Some(*number);
                break;
            }
            let Some(session) = one.session.upgrade() else {
                continue;
            };
            let leaves = session.leaves(view);
            // A head that is on its way would be lost: it is served, and ends the connection.
            if leaves && one.was_leaving && !session.heads.is_arriving() {
                session.leave.notify_one();
            }
            one.was_leaving = leaves;
            found |= leaves;
        }
        (found, next)
    }
}
