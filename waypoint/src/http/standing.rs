//! What was permitted goes on only as long as the policies permit it, its target stays here, and this
//! waypoint serves.
//!
//! A request is decided once, at its head; its body, its response or the connection it was upgraded to
//! may flow for hours after that. Each worker keeps a list of what it is serving, and one task judges
//! the list again when policies change. A request pays for that with a place in the list; bodies look
//! at a flag.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::http::{HeaderMap, Method, Uri, Version};
use isobar_route::{Denied, HttpCall, Permit, Tables, authorize_http};
use isobar_types::Reason;
use tokio::time::Instant;

use super::reply;
use super::sanitise::Clean;
use crate::attribution::Attributed;
use crate::endpoint::Endpoint;
use crate::session::{Session, until};
use crate::target::TargetRefusal;
use crate::world::{View, World};

/// A withdrawn stream may end itself within that; then its connection is closed. Streams whose
/// caller does not read are not asked for more by HTTP, so they cannot end themselves.
const GRACE: Duration = Duration::from_millis(500);
/// So many are judged before others get their turn.
const AT_ONCE: usize = 256;

/// A request's head as policies and routes see it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) clean: Clean,
    pub(super) method: Method,
    pub(super) version: Version,
    /// As it was written.
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

/// A request that was permitted, for as long as anything of it is on its way.
pub(crate) struct Standing {
    session: Rc<Session>,
    caller: Arc<Attributed>,
    asked: Rc<Asked>,
    /// Where it was sent, once it is known.
    endpoint: RefCell<Option<Endpoint>>,
    ending: OnceCell<Ending>,
    wakers: [Cell<Option<Waker>>; 2],
    place: Cell<usize>,
}

/// Why something that was permitted may not go on.
#[derive(Debug)]
pub(crate) enum Ending {
    /// A policy forbids it, in Envoy's words.
    Policy(String),
    /// Its target is not this waypoint's any more, nor are the policies for it.
    Moved(TargetRefusal),
    /// The waypoint ends.
    Drained,
}

impl Ending {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Policy(_) => Reason::PolicyWithdrawn,
            Self::Moved(gone) => gone.reason,
            Self::Drained => Reason::Drained,
        }
    }

    /// In Envoy's words, where it has some.
    pub(crate) fn detail(&self) -> &str {
        match self {
            Self::Policy(why) => why,
            Self::Moved(_) => reply::NOT_SERVED,
            Self::Drained => "waypoint_drained",
        }
    }

    /// What the log line says went wrong.
    pub(crate) fn failure(&self) -> &str {
        match self {
            Self::Policy(_) => reply::POLICY_WITHDRAWN,
            Self::Moved(gone) => &gone.detail,
            Self::Drained => "waypoint drained",
        }
    }
}

/// Who is to be woken: the two directions are polled by different tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Request,
    Reply,
}

impl Standing {
    /// Asks the policies; what they permit is watched until it is dropped.
    ///
    /// # Errors
    /// [`Denied`], by the policies in `tables`.
    pub(super) fn begin(
        session: &Rc<Session>,
        tables: &Tables,
        caller: &Arc<Attributed>,
        asked: &Rc<Asked>,
    ) -> Result<Rc<Self>, Denied> {
        authorize(session, tables, caller, asked)?;
        let standing = Rc::new(Self {
            session: session.clone(),
            caller: caller.clone(),
            asked: asked.clone(),
            endpoint: RefCell::default(),
            ending: OnceCell::new(),
            wakers: Default::default(),
            place: Cell::new(0),
        });
        session.worker.live.add(&standing);
        Ok(standing)
    }

    /// Why this may not go on; `None` while it may.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Has the task of `cx` polled again once this may not go on.
    pub(crate) fn wake(&self, side: Side, cx: &Context<'_>) {
        let slot = &self.wakers[side as usize];
        let waker = slot.take().filter(|have| have.will_wake(cx.waker()));
        slot.set(Some(waker.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Ends when this may not go on, which most never see.
    pub(super) async fn until_ending(&self, side: Side) {
        poll_fn(|cx| {
            if self.ending.get().is_some() {
                return Poll::Ready(());
            }
            self.wake(side, cx);
            Poll::Pending
        })
        .await;
    }

    /// What `of` comes to; `None` once this may not go on.
    pub(super) async fn unless_ending<F: Future>(
        &self,
        side: Side,
        mut of: Pin<&mut F>,
    ) -> Option<F::Output> {
        poll_fn(|cx| {
            if self.ending.get().is_some() {
                return Poll::Ready(None);
            }
            let done = of.as_mut().poll(cx);
            if done.is_pending() {
                self.wake(side, cx);
            }
            done.map(Some)
        })
        .await
    }

    /// Asks the endpoint's policies about the caller.
    ///
    /// # Errors
    /// The detail for the log.
    pub(super) fn goes_to(&self, view: &View, endpoint: &Endpoint) -> Result<(), String> {
        // The newest: a request may have waited since it was decided on `view`.
        let world = &self.session.worker.world;
        if world.is_newest(view) {
            self.session.admitted(view, endpoint)?;
        } else {
            self.session.admitted(&world.view(), endpoint)?;
        }
        *self.endpoint.borrow_mut() = Some(endpoint.clone());
        Ok(())
    }

    /// Asks the rules of this waypoint again.
    fn permitted(&self, view: &View) -> Result<(), Ending> {
        authorize(&self.session, &view.tables, &self.caller, &self.asked)
            .map(|_| ())
            .map_err(|denied| Ending::Policy(denied.code_detail()))
    }

    /// Asks the endpoint's policies again, if it has been sent anywhere.
    fn admitted(&self, view: &View) -> Result<(), Ending> {
        match &*self.endpoint.borrow() {
            Some(endpoint) => self.session.admitted(view, endpoint),
            None => Ok(()),
        }
        .map_err(Ending::Policy)
    }

    /// Asks whether its target is still this waypoint's; notes when it is to end if it is not.
    fn stays(&self, view: &View, leave_at: &Cell<Option<Instant>>) -> Result<(), Ending> {
        let end = self.session.may_stay(view).map_err(Ending::Moved)?;
        if let Some(end) = end {
            leave_at.set(Some(leave_at.get().map_or(end, |at| at.min(end))));
        }
        Ok(())
    }

    /// True if it may not go on, by this answer or an earlier one.
    fn ends(&self, answer: impl FnOnce(&Self) -> Result<(), Ending>) -> bool {
        if self.ending.get().is_some() {
            return true;
        }
        let Err(ending) = answer(self) else {
            return false;
        };
        self.end(ending);
        true
    }

    /// What came first counts.
    fn end(&self, ending: Ending) {
        let _ = self.ending.set(ending);
        for waker in self.wakers.iter().filter_map(Cell::take) {
            waker.wake();
        }
    }
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standing")
            .field("asked", &self.asked)
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.session.worker.live.remove(self.place.get());
    }
}

impl Asked {
    pub(super) fn call(&self, session: &Session) -> HttpCall<'_> {
        HttpCall {
            method: &self.method,
            path: &self.clean.path,
            query: self.clean.query.as_deref(),
            authority: &self.clean.authority,
            written_authority: self.clean.written(),
            scheme: self.clean.scheme,
            headers: &self.headers,
            destination: session.addressed.destination,
        }
    }
}

fn authorize(
    session: &Session,
    tables: &Tables,
    caller: &Attributed,
    asked: &Asked,
) -> Result<Permit, Denied> {
    let service = session.addressed.service().map(|s| &s.key);
    authorize_http(tables, service, &asked.call(session), &caller.caller)
}

/// Everything permitted that is on its way through one worker.
#[derive(Default)]
pub struct Live {
    places: RefCell<Vec<Weak<Standing>>>,
    free: RefCell<Vec<usize>>,
}

impl Live {
    fn add(&self, standing: &Rc<Standing>) {
        let mut places = self.places.borrow_mut();
        let at = self.free.borrow_mut().pop().unwrap_or_else(|| {
            places.push(Weak::new());
            places.len() - 1
        });
        places[at] = Rc::downgrade(standing);
        standing.place.set(at);
    }

    /// Requests that are being served.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.borrow().len() - self.free.borrow().len()
    }

    /// True when nothing is being served.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn remove(&self, at: usize) {
        self.places.borrow_mut()[at] = Weak::new();
        self.free.borrow_mut().push(at);
    }

    /// Ends everything that is on its way, because the waypoint does: what has no response gets 503,
    /// gRPC a status, other responses break off.
    pub fn end_all(&self) {
        let all = self.places.borrow().clone();
        for standing in all.iter().filter_map(Weak::upgrade) {
            standing.end(Ending::Drained);
        }
    }

    /// Judges anew when policies change, those of endpoints included, until the world is gone. What
    /// it holds now counts as known to whatever is added later.
    pub fn watch(self: Rc<Self>, world: World) -> impl Future<Output = ()> {
        let mut versions = world.feed.versions();
        let mut snapshots = world.store.versions();
        let mut judged_by = world.feed.load();
        async move {
            let mut withdrawn: Vec<Weak<Standing>> = Vec::new();
            let mut insist_at = None;
            // When what has left this waypoint is to end.
            let leave_at = Cell::new(None);
            loop {
                tokio::select! {
                    changed = versions.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let view = world.view();
                        let before = std::mem::replace(&mut judged_by, view.tables.clone());
                        if !view.tables.same_policies(&before)
                            || view.tables.waypoint() != before.waypoint()
                        {
                            leave_at.set(None);
                            self.judge(&mut withdrawn, |s| {
                                s.permitted(&view)?;
                                s.stays(&view, &leave_at)
                            })
                            .await;
                        }
                    }
                    changed = snapshots.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let view = world.view();
                        leave_at.set(None);
                        self.judge(&mut withdrawn, |s| {
                            s.admitted(&view)?;
                            s.stays(&view, &leave_at)
                        })
                        .await;
                    }
                    () = until(leave_at.get()) => {
                        let view = world.view();
                        leave_at.set(None);
                        self.judge(&mut withdrawn, |s| s.stays(&view, &leave_at)).await;
                    }
                    () = until(insist_at) => {
                        for standing in withdrawn.drain(..).filter_map(|s| s.upgrade()) {
                            standing.session.cut.notify_one();
                        }
                    }
                }
                insist_at = match (withdrawn.is_empty(), insist_at) {
                    (true, _) => None,
                    (false, None) => Some(Instant::now() + GRACE),
                    (false, at) => at,
                };
            }
        }
    }

    async fn judge(
        &self,
        withdrawn: &mut Vec<Weak<Standing>>,
        answer: impl Fn(&Standing) -> Result<(), Ending>,
    ) {
        let all = self.places.borrow().clone();
        for some in all.chunks(AT_ONCE) {
            let ended = some
                .iter()
                .filter(|s| s.upgrade().is_some_and(|s| s.ends(&answer)));
            withdrawn.extend(ended.cloned());
            tokio::task::yield_now().await;
        }
    }
}
