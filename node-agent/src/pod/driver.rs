mod drift;
mod left;
mod telling;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isobar_net::NetNs;
use isobar_objects::{Kind, ObjectRef, ObjectWriter};
use isobar_runtime::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;

use self::drift::Drift;
use self::left::Left;
use super::events::KernelEvents;
use super::machine::{Facts, Goal, Rules, Step, next};
use super::observe::{Observation, Observer};
use crate::backend::{self, BackendError, Canon};
use crate::board::{Board, Standing};
use crate::desire::{Desire, Unknown};
use crate::faults::crash_point;
use crate::metrics::Metrics;
use crate::plan::{Capture, plan_rules};
use crate::probes::{Probes, blocking};
use crate::report::{Advertised, Condition, Reports};
use crate::sandbox::{self, Answer, Sandbox};
use crate::zds::{AnnounceError, Announcement, Zds};

/// The step of looking, as failures name it.
const LOOK: &str = "look";
/// What fails for less than this is not worth telling: it passes by itself.
const PASSING: Duration = Duration::from_secs(5);
/// How often open connections of a leaving pod are counted.
const DRAIN_LOOK: Duration = Duration::from_millis(250);

/// How patient the agent is.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two looks at a pod that is as wished.
    pub verify: Duration,
    /// Callers get this long to learn that a pod no longer takes HBONE, before it does not.
    pub grace: Duration,
    /// Open connections of a leaving pod get this long to end.
    pub drain: Duration,
    /// A pod whose rules cannot be looked at stays advertised this long after they were last seen
    /// in force.
    pub blind: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            verify: Duration::from_secs(5),
            grace: Duration::from_millis(1500),
            drain: Duration::from_secs(3600),
            blind: Duration::from_secs(10),
        }
    }
}

/// What every pod's task shares.
pub struct Services {
    /// Node proxies.
    pub zds: Zds,
    /// What plans look like once written.
    pub canon: Arc<Canon>,
    /// Where annotations go.
    pub writer: Arc<dyn ObjectWriter>,
    /// What is told besides.
    pub reports: Reports,
    /// The node's rules about probes.
    pub probes: Probes,
    /// What is observed.
    pub board: Arc<Board>,
    /// What is counted.
    pub metrics: Metrics,
    /// How patient to be.
    pub timing: Timing,
    /// Where the container runtime waits for answers.
    pub pods_dir: PathBuf,
    /// The host's `/proc`, where this process sees it.
    pub proc: PathBuf,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

/// What a pod's task is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Nothing can be said about the pod yet: leave everything as it is.
    Wait(Unknown),
    /// This is wished.
    Be(Desire),
    /// The sandbox is gone: clean up and end.
    End,
}

impl From<Result<Desire, Unknown>> for Order {
    fn from(wish: Result<Desire, Unknown>) -> Self {
        wish.map_or_else(Self::Wait, Self::Be)
    }
}

/// The task of one pod.
#[derive(Debug)]
pub struct Driver {
    services: Arc<Services>,
    sandbox: Sandbox,
    netns: NetNs,
    /// Service account; without it no proxy can be told of the pod.
    account: Option<String>,
    reference: ObjectRef,
    /// Uid of its object: one of a pod that comes after it has its name and is none of its business.
    object: String,
    observer: Arc<Mutex<Observer>>,
    annotated: bool,
    /// The condition on its object.
    condition: Option<Condition>,
    /// Whether its object says what was written.
    drift: Drift,
    /// Somebody else wrote the annotation.
    foreign: bool,
    /// Its object may not have been known when `annotated` was set.
    unsure: bool,
    /// When its rules were last seen in force; none once they were seen not to be.
    in_force: Option<Instant>,
    /// Since when it is not as wished because something fails.
    failing: Option<Instant>,
    retracted: Option<Instant>,
    stopped_capturing: Option<Instant>,
    /// How its rules were left at the last look at an enrolled pod.
    left: Left,
    repairs: u64,
    problem: String,
    answered: Option<Answer>,
    seen: Observation,
}

/// What to do before the next look.
enum Pause {
    None,
    For(Duration),
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    #[error("writing the pod's annotation: {0}")]
    Write(#[from] isobar_objects::WriteError),
    #[error("answering the container runtime: {0}")]
    Answer(#[from] std::io::Error),
}

impl Driver {
    /// Takes a pod over as it is found. Rules that are there mean that it was enrolled before this
    /// agent started: it is then among the pods of the first snapshot, and none of its connections
    /// is cut. Call it before node proxies are served. Blocks.
    ///
    /// # Errors
    /// When the namespace cannot be looked into.
    pub fn adopt(
        services: Arc<Services>,
        sandbox: Sandbox,
        netns: NetNs,
        account: Option<String>,
        advertised: Advertised,
    ) -> Result<Self, BackendError> {
        let observer = Observer::new(netns.clone(), Arc::clone(&services.canon));
        let enrolled_before = observer.has_rules()?;
        let object = match advertised.uid.is_empty() {
            true => sandbox.uid.clone(),
            false => advertised.uid,
        };
        let driver = Self {
            reference: ObjectRef::new(Kind::Pod, &sandbox.namespace, &sandbox.name),
            object,
            observer: Arc::new(Mutex::new(observer)),
            netns,
            account,
            annotated: advertised.annotated,
            condition: advertised.condition,
            drift: Drift::default(),
            foreign: false,
            unsure: false,
            in_force: None,
            failing: None,
            retracted: None,
            stopped_capturing: None,
            left: Left::default(),
            repairs: 0,
            problem: String::new(),
            answered: None,
            // What is shown until the first look, which says it exactly.
            seen: Observation {
                rules: match enrolled_before {
                    true => Rules::On,
                    false => Rules::Absent,
                },
                carried: 0,
            },
            services,
            sandbox,
        };
        // On the board from here on: an agent that is ended now has to know whom to clean up.
        driver.show(Standing::Unknown, "not looked at yet");
        if enrolled_before && let Some(announcement) = driver.announcement() {
            driver.services.zds.adopt(announcement);
        }
        Ok(driver)
    }

    /// True if rules were there when the pod was taken over.
    #[must_use]
    pub fn was_enrolled(&self) -> bool {
        self.services.zds.is_announced(&self.sandbox.uid)
    }

    /// Follows orders until the sandbox is gone.
    pub async fn run(mut self, mut orders: watch::Receiver<Order>) {
        let events = KernelEvents::open(&self.netns)
            .inspect_err(|error| tracing::warn!(pod = %self.reference, %error, "no kernel events"))
            .ok();
        let mut proxies = self.services.zds.changes();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            proxies.mark_unchanged();
            let order = orders.borrow_and_update().clone();
            let pause = match order {
                Order::End => return self.end().await,
                Order::Wait(unknown) => {
                    self.unsure = true;
                    self.show(Standing::Unknown, &unknown.to_string());
                    Pause::For(Duration::MAX)
                }
                Order::Be(desire) => {
                    // That of a static pod may be made anew while the pod runs.
                    if !desire.advertised.uid.is_empty() {
                        self.object.clone_from(&desire.advertised.uid);
                    }
                    if std::mem::take(&mut self.unsure) {
                        self.annotated = desire.advertised.annotated;
                    }
                    match self.advance(&desire).await {
                        Ok(pause) => {
                            backoff.reset();
                            pause
                        }
                        Err((step, error)) => {
                            self.failed(&desire, step, &error).await;
                            let pause = backoff.step(u64::from(std::process::id()));
                            Pause::For(pause.min(self.sight_due(step)).min(self.news_due()))
                        }
                    }
                }
            };
            let Pause::For(limit) = pause else { continue };
            let changed = async {
                match &events {
                    Some(events) => events.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return },
                _ = proxies.changed() => {}
                () = changed => {}
                () = tokio::time::sleep(limit) => {}
            }
        }
    }

    /// Looks, decides and takes one step.
    async fn advance(&mut self, desire: &Desire) -> Result<Pause, (&'static str, StepError)> {
        let facts = self
            .look(desire)
            .await
            .map_err(|error| (LOOK, error.into()))?;
        let step = next(desire.goal, &facts);
        if step == Step::Rest {
            let verify = self.services.timing.verify;
            let left = self.drifted(desire);
            let annotated = self.annotated;
            if next(desire.goal, &Facts { annotated, ..facts }) != Step::Rest {
                return Ok(Pause::None);
            }
            self.rest(desire).await.map_err(|error| ("answer", error))?;
            return Ok(Pause::For(left.map_or(verify, |left| left.min(verify))));
        }
        self.show(standing_before(desire.goal, step), &desire.why);
        let name = name_of(step);
        crash_point("before", name);
        let pause = self
            .take(step, desire)
            .await
            .map_err(|error| (name, error))?;
        crash_point("after", name);
        if !matches!(step, Step::AwaitDrained | Step::AwaitPublished) {
            self.services.metrics.step(name);
            tracing::info!(pod = %self.reference, uid = %self.sandbox.uid, step = name, why = %desire.why, "pod");
        }
        Ok(pause)
    }

    async fn look(&mut self, desire: &Desire) -> Result<Facts, BackendError> {
        let (observer, wishes) = (Arc::clone(&self.observer), desire.wishes.clone());
        self.seen = blocking(move || {
            let mut observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
            observer.look(&wishes)
        })
        .await?;
        self.in_force = (self.seen.rules == Rules::On).then(Instant::now);
        if self.seen.rules == Rules::Off {
            self.stopped_capturing.get_or_insert_with(Instant::now);
        } else {
            self.stopped_capturing = None;
        }
        if !self.annotated {
            self.retracted.get_or_insert_with(Instant::now);
        }
        let timing = self.services.timing;
        let over = |since: Option<Instant>, limit| since.is_some_and(|at| at.elapsed() >= limit);
        let uid = &self.sandbox.uid;
        Ok(Facts {
            rules: self.seen.rules,
            announced: self.services.zds.is_announced(uid),
            accepted: self.services.zds.is_accepted(uid),
            annotated: self.annotated,
            published: over(self.retracted, timing.grace),
            drained: self.seen.carried == 0 || over(self.stopped_capturing, timing.drain),
        })
    }

    async fn take(&mut self, step: Step, desire: &Desire) -> Result<Pause, StepError> {
        match step {
            Step::Rest => {}
            Step::CaptureOff => self.write(desire, Capture::Off).await?,
            Step::CaptureOn => self.capture(desire).await?,
            Step::Announce => {
                self.account = Some(desire.account.clone());
                if let Some(announcement) = self.announcement() {
                    self.services.zds.announce(announcement).await?;
                }
            }
            Step::Annotate => self.annotate().await?,
            Step::Retract => self.retract().await?,
            Step::AwaitPublished => {
                let waited = self.retracted.map_or(Duration::ZERO, |at| at.elapsed());
                let left = self.services.timing.grace.saturating_sub(waited);
                // For whatever connects from now on it is plain already.
                self.answer(Answer::Plain)?;
                return Ok(Pause::For(left));
            }
            Step::AwaitDrained => {
                self.answer(Answer::Plain)?;
                return Ok(Pause::For(DRAIN_LOOK));
            }
            Step::Remove => self.remove().await?,
            Step::Withdraw => self.services.zds.withdraw(&self.sandbox.uid).await,
        }
        Ok(Pause::None)
    }

    /// Probes first: one that came between would be captured and perhaps refused.
    async fn capture(&mut self, desire: &Desire) -> Result<(), StepError> {
        let sandbox = &self.sandbox;
        self.services
            .probes
            .insert(&sandbox.uid, &sandbox.ips, &desire.wishes.probes)
            .await?;
        if self.left.is_damaged(&desire.wishes) {
            self.repairs += 1;
            self.services.metrics.repair();
            tracing::warn!(pod = %self.reference, found = ?self.seen.rules,
                "rules of an enrolled pod were not as planned: writing them again");
            let found = self.seen.rules;
            self.tell("RulesRepaired", &format!(
                "the pod's redirection rules were {found:?}, not as written: they are written again"
            ));
        }
        self.write(desire, Capture::On).await
    }

    async fn write(&self, desire: &Desire, capture: Capture) -> Result<(), StepError> {
        let rules = plan_rules(&desire.wishes, capture);
        let tool = self.services.canon.backend();
        self.inside(move || {
            backend::add_routes()?;
            tool.write(&rules)
        })
        .await
    }

    async fn remove(&self) -> Result<(), StepError> {
        let tool = self.services.canon.backend();
        self.inside(move || {
            tool.remove()?;
            backend::remove_routes()
        })
        .await?;
        Ok(self.services.probes.remove(&self.sandbox.uid).await?)
    }

    async fn inside(
        &self,
        work: impl FnOnce() -> Result<(), BackendError> + Send + 'static,
    ) -> Result<(), StepError> {
        let observer = Arc::clone(&self.observer);
        Ok(blocking(move || {
            let observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
            observer.inside(work)?
        })
        .await?)
    }

    /// Everything is as wished.
    async fn rest(&mut self, desire: &Desire) -> Result<(), StepError> {
        let (answer, standing) = match desire.goal {
            Goal::Enrolled => (Answer::Enrolled, Standing::Enrolled),
            Goal::Plain => (Answer::Plain, Standing::Plain),
        };
        match desire.goal {
            Goal::Enrolled => {
                self.left.whole(&desire.wishes);
                self.keep_probes(desire).await;
            }
            Goal::Plain => self.left.forget(),
        }
        self.problem = desire.problems.join("; ");
        // What the page shows is so everywhere.
        self.answer(answer)?;
        self.show(standing, &desire.why);
        self.failing = None;
        self.say_rested(desire).await;
        Ok(())
    }

    /// A pod that was taken over whole never had its probes written. What fails is written later by
    /// whoever verifies the node's rules: the pod itself is whole.
    async fn keep_probes(&self, desire: &Desire) {
        let (uid, ips) = (&self.sandbox.uid, &self.sandbox.ips);
        let probes = &self.services.probes;
        if let Err(error) = probes.keep(uid, ips, &desire.wishes.probes).await {
            tracing::error!(pod = %self.reference, %error, "the node's rules about probes");
        }
    }

    /// How long a failed look may be put off: at the end of that time the pod is not advertised
    /// any more.
    fn sight_due(&self, step: &'static str) -> Duration {
        let limit = self.services.timing.blind;
        match self.in_force {
            Some(at) if self.is_blind(step) => limit.saturating_sub(at.elapsed()),
            _ => Duration::MAX,
        }
    }

    /// How long until a failure that does not pass is told: a try is made then.
    fn news_due(&self) -> Duration {
        let waited = self.failing.map(|since| since.elapsed());
        let left = waited.and_then(|waited| PASSING.checked_sub(waited));
        left.unwrap_or(Duration::MAX)
    }

    fn answer(&mut self, answer: Answer) -> Result<(), StepError> {
        if self.answered != Some(answer) {
            sandbox::answer(&self.services.pods_dir, &self.sandbox.uid, answer)?;
            self.answered = Some(answer);
        }
        Ok(())
    }

    /// The sandbox is gone, and the rules with it.
    async fn end(self) {
        sandbox::forget(&self.services.pods_dir, &self.sandbox.uid);
        if let Err(error) = self.take_back().await {
            tracing::warn!(pod = %self.reference, %error, "the annotation of a gone pod stays");
        }
        self.services.zds.withdraw(&self.sandbox.uid).await;
        if let Err(error) = self.services.probes.remove(&self.sandbox.uid).await {
            tracing::warn!(pod = %self.reference, %error, "the probe rule of a gone pod stays");
        }
        self.services.board.remove(&self.sandbox.uid);
    }

    fn announcement(&self) -> Option<Announcement> {
        Some(Announcement {
            uid: self.sandbox.uid.clone(),
            name: self.sandbox.name.clone(),
            namespace: self.sandbox.namespace.clone(),
            service_account: self.account.clone()?,
            netns: self.netns.clone(),
        })
    }
}

const fn standing_before(goal: Goal, step: Step) -> Standing {
    match (goal, step) {
        (Goal::Enrolled, _) => Standing::Enrolling,
        (Goal::Plain, Step::Retract | Step::CaptureOff) => Standing::Leaving,
        (Goal::Plain, _) => Standing::Draining,
    }
}

const fn name_of(step: Step) -> &'static str {
    match step {
        Step::Rest => "rest",
        Step::CaptureOff => "capture-off",
        Step::CaptureOn => "capture-on",
        Step::Announce => "announce",
        Step::Annotate => "annotate",
        Step::Retract => "retract",
        Step::AwaitPublished => "await-published",
        Step::AwaitDrained => "await-drained",
        Step::Remove => "remove",
        Step::Withdraw => "withdraw",
    }
}
