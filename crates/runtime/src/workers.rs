use std::future::Future;
use std::pin::Pin;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Jobs that may wait for a worker to take them; a full queue makes the sender wait.
const QUEUE: usize = 1024;

/// Data-path threads: one current-thread runtime each. A connection, its streams, its buffers and
/// its pool live and die on one of them.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    threads: Vec<JoinHandle<()>>,
}

/// A handle on one data-path thread; cheap to clone, usable from any thread.
#[derive(Debug, Clone)]
pub struct Worker {
    index: usize,
    jobs: mpsc::Sender<Job>,
}

impl Workers {
    /// Starts `count` threads named `NAME-0`, `NAME-1` and so on.
    ///
    /// # Errors
    /// When the system refuses a thread or a runtime.
    pub fn start(name: &str, count: usize) -> std::io::Result<Self> {
        let mut workers = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || {
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime, async move {
                        while let Some(job) = queue.recv().await {
                            drop(tokio::task::spawn_local(job()));
                        }
                    });
                })?;
            workers.push(Worker { index, jobs });
            threads.push(thread);
        }
        Ok(Self { workers, threads })
    }

    /// The workers, in order.
    #[must_use]
    pub fn all(&self) -> &[Worker] {
        &self.workers
    }

    /// Ends the threads: what still runs on them is dropped. Blocks until they are gone, so call it
    /// from outside an async context and after every [`Worker`] clone is dropped.
    pub fn join(self) {
        drop(self.workers);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

impl Worker {
    /// Position among the workers, from 0.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Runs the future that `make` builds, on this worker's thread. Returns false if the thread
    /// has ended. The future is the worker's own: spawn long-lived children through a
    /// [`crate::LocalScope`] made inside it.
    pub async fn run<M, F>(&self, make: M) -> bool
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.jobs
            .send(Box::new(move || Box::pin(make())))
            .await
            .is_ok()
    }

    /// Runs `make`'s future on this worker's thread and waits for its result; `None` if the thread
    /// has ended or the future panicked.
    pub async fn call<M, F, T>(&self, make: M) -> Option<T>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (done, result) = tokio::sync::oneshot::channel();
        self.run(move || async move {
            // The caller may have gone away; its result is then of no use to anybody.
            let _ = done.send(make().await);
        })
        .await;
        result.await.ok()
    }
}

/// Number of data-path threads: what is asked for, or the cores this process may use.
#[must_use]
pub fn worker_threads(asked: Option<usize>) -> usize {
    asked
        .filter(|n| *n > 0)
        .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn futures_that_cannot_move_run_on_their_worker() {
        let workers = Workers::start("test", 2).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let worker = workers.all()[1].clone();
        let name = runtime.block_on(worker.call(|| async {
            let local = Rc::new(());
            tokio::task::yield_now().await;
            drop(local);
            std::thread::current().name().map(str::to_owned)
        }));
        assert_eq!(name.flatten().as_deref(), Some("test-1"));
        drop(worker);
        workers.join();
    }
}
