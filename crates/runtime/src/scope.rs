use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio_util::task::TaskTracker;

use crate::lifetime::{Lifetime, LifetimeOwner, Phase};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Tasks of this process that have panicked. Each ended alone; more than none is a fault to report.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

thread_local! {
    static POLLS: Cell<u64> = const { Cell::new(0) };
}

/// How often tasks of scopes were polled on this thread: who waits for a quiet moment sees by it
/// whether others have had something to do meanwhile.
#[must_use]
pub fn polls() -> u64 {
    POLLS.get()
}

fn panicked(scope: &'static str, task: &'static str) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    tracing::error!(scope, task, "a task panicked");
}

/// Owns tasks that may move between threads: can stop them and joins them.
#[derive(Debug)]
pub struct Scope {
    name: &'static str,
    owner: LifetimeOwner,
    tasks: TaskTracker,
}

impl Scope {
    /// An empty scope; `name` appears in logs.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            owner: LifetimeOwner::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// A handle on this scope's life.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.owner.lifetime()
    }

    /// Starts `task`; it ends when it returns, or when the scope is stopped. A panic is logged.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where tasks get their owner"
    )]
    pub fn spawn<F>(&self, task: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let owned = Owned::new(self.owner.lifetime(), future, self.name, task);
        drop(tokio::spawn(self.tasks.track_future(owned)));
    }

    /// Asks tasks for a polite end.
    pub fn drain(&self) {
        self.owner.drain();
    }

    /// Number of tasks alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// True when no task is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Drains, waits at most `limit` for tasks to end by themselves, then stops and joins the rest.
    /// Returns true if all ended by themselves.
    pub async fn shutdown(self, limit: Duration) -> bool {
        self.owner.drain();
        self.tasks.close();
        let orderly = tokio::time::timeout(limit, self.tasks.wait()).await.is_ok();
        self.owner.stop();
        self.tasks.wait().await;
        orderly
    }
}

/// Owns `!Send` tasks of one worker thread.
#[derive(Debug)]
pub struct LocalScope {
    name: &'static str,
    owner: LifetimeOwner,
    tasks: TaskTracker,
}

impl LocalScope {
    /// An empty scope; `name` appears in logs.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            owner: LifetimeOwner::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// A handle on this scope's life.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.owner.lifetime()
    }

    /// Starts `task` on this thread; it ends when it returns, or when the scope is stopped.
    ///
    /// # Panics
    /// Outside a worker (a `LocalSet` or local runtime).
    pub fn spawn<F>(&self, task: &'static str, future: F)
    where
        F: Future<Output = ()> + 'static,
    {
        let owned = Owned::new(self.owner.lifetime(), future, self.name, task);
        drop(tokio::task::spawn_local(self.tasks.track_future(owned)));
    }

    /// Starts `task` on this thread, which ends by itself as soon as another task of this scope does: that one
    /// alone is told to stop. For what is brief and many: to be told costs as much as half of a start.
    ///
    /// # Panics
    /// Outside a worker (a `LocalSet` or local runtime).
    pub fn spawn_below<F>(&self, task: &'static str, future: F)
    where
        F: Future<Output = ()> + 'static,
    {
        let counted = Counted {
            future,
            scope: self.name,
            task,
        };
        drop(tokio::task::spawn_local(self.tasks.track_future(counted)));
    }

    /// Asks tasks for a polite end.
    pub fn drain(&self) {
        self.owner.drain();
    }

    /// Ends every task at its next await, but for those of [`Self::spawn_below`].
    pub fn stop(&self) {
        self.owner.stop();
    }

    /// Number of tasks alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// True when no task is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Drains, waits at most `limit` for tasks to end by themselves, then stops and joins the rest.
    /// Returns true if all ended by themselves.
    pub async fn shutdown(&self, limit: Duration) -> bool {
        self.owner.drain();
        self.tasks.close();
        let orderly = tokio::time::timeout(limit, self.tasks.wait()).await.is_ok();
        self.owner.stop();
        self.tasks.wait().await;
        orderly
    }
}

pin_project! {
    /// A task that ends with its scope. Written out, since an async block keeps room for a future it
    /// captured and again for the same future where it awaits it: twice its size for as long as it runs.
    struct Owned<S, F> {
        #[pin]
        stopped: S,
        // The runtime polls a task with one waker all its life: who has asked once is woken, and asks again
        // only when something has changed.
        asked: bool,
        life: Lifetime,
        #[pin]
        counted: Counted<F>,
    }
}

pin_project! {
    /// A task whose polls and panics are told.
    struct Counted<F> {
        #[pin]
        future: F,
        scope: &'static str,
        task: &'static str,
    }
}

impl<F: Future<Output = ()>> Future for Counted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        POLLS.set(POLLS.get().wrapping_add(1));
        let this = self.project();
        // Told here, as the runtime drops what has panicked only once the panic is over.
        let _guard = PanicGuard {
            scope: this.scope,
            task: this.task,
        };
        this.future.poll(cx)
    }
}

impl<F: Future<Output = ()>> Owned<(), F> {
    fn new(
        life: Lifetime,
        future: F,
        scope: &'static str,
        task: &'static str,
    ) -> Owned<impl Future<Output = ()> + use<F>, F> {
        Owned {
            stopped: life.clone().until(Phase::Stopped),
            asked: false,
            life,
            counted: Counted {
                future,
                scope,
                task,
            },
        }
    }
}

impl<S: Future<Output = ()>, F: Future<Output = ()>> Future for Owned<S, F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if !*this.asked || this.life.has_moved() {
            *this.asked = true;
            if this.stopped.poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        this.counted.poll(cx)
    }
}

struct PanicGuard {
    scope: &'static str,
    task: &'static str,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            panicked(self.scope, self.task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shutdown_joins_and_tells_who_was_late() {
        let scope = Scope::new("test");
        let life = scope.lifetime();
        scope.spawn("polite", async move { life.draining().await });
        assert!(scope.shutdown(Duration::from_secs(1)).await);

        let scope = Scope::new("test");
        scope.spawn("stubborn", std::future::pending());
        assert!(!scope.shutdown(Duration::from_secs(1)).await);
    }

    #[tokio::test]
    async fn a_panic_stays_inside_its_task() {
        let scope = Scope::new("test");
        scope.spawn("bad", async { panic!("on purpose") });
        scope.spawn("good", async {});
        let before = panics();
        assert!(scope.shutdown(Duration::from_secs(5)).await);
        assert!(panics() > before, "it is counted");
    }

    #[test]
    fn a_task_takes_the_room_of_its_future_once() {
        let room = [0_u8; 4096];
        let future = async move {
            std::future::pending::<()>().await;
            std::hint::black_box(room);
        };
        let alone = size_of_val(&future);
        let life = LifetimeOwner::new().lifetime();
        let owned = size_of_val(&Owned::new(life, future, "test", "large"));
        assert!(owned - alone < 512, "{alone} became {owned}");
    }

    #[tokio::test]
    async fn what_is_below_another_task_is_joined_and_its_panics_are_told() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let scope = LocalScope::new("test");
                let (above, below) = tokio::sync::oneshot::channel::<()>();
                scope.spawn("above", async move {
                    let _above = above;
                    std::future::pending::<()>().await;
                });
                let ended = std::rc::Rc::new(Cell::new(false));
                let end = ended.clone();
                scope.spawn_below("below", async move {
                    let _ = below.await;
                    end.set(true);
                });
                let before = panics();
                scope.spawn_below("bad", async { panic!("on purpose") });
                assert!(!scope.shutdown(Duration::from_millis(1)).await);
                assert!(ended.get() && scope.is_empty());
                assert!(panics() > before);
            })
            .await;
    }

    #[tokio::test]
    async fn local_tasks_are_owned_too() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let scope = LocalScope::new("test");
                let value = std::rc::Rc::new(1);
                scope.spawn("local", async move { drop(value) });
                assert!(scope.shutdown(Duration::from_secs(5)).await);
                assert!(scope.is_empty());
            })
            .await;
    }
}
