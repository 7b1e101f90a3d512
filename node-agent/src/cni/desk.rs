//! The agent's side of the plugin's questions.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_net::NetNs;
use isobar_objects::Published;
use isobar_runtime::{Lifetime, Scope};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::question::{Answer, LINE_MAX, Matter, Outcome, Question, VERSION};
use crate::desire::{NodeDefaults, desire};
use crate::faults::crash_point;
use crate::pod::machine::{Goal, Rules};
use crate::pod::{Services, look_afresh};
use crate::probes::blocking;
use crate::sandbox;

/// Questions that may be open at a time; a node rarely has more pods.
const OPEN_MAX: usize = 512;
/// Longest time for a question to come, and for an answer to go.
const PROMPTLY: Duration = Duration::from_secs(5);
/// Longest that a question may stay open.
const LIMIT_MAX: Duration = Duration::from_secs(120);

/// Answers questions about pods from what is wished and what is so.
#[derive(Debug)]
pub struct Desk {
    services: Arc<Services>,
    node: NodeDefaults,
    objects: watch::Receiver<Arc<Published>>,
}

/// How a pod is, and why, in words.
enum State {
    /// There is no record of this container.
    Unrecorded(String),
    /// Nobody can say whether it belongs to the mesh.
    Undecided(String),
    /// It does not belong to the mesh.
    Plain(String),
    /// It belongs to the mesh and is not whole in it.
    Missing(String),
    /// It belongs to the mesh and was seen to be in it.
    Enrolled(String),
}

/// Listens at `path`, for the own user only.
///
/// # Errors
/// When the path cannot be bound.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Desk {
    /// Answers about the pods that `services` are for.
    #[must_use]
    pub const fn new(
        services: Arc<Services>,
        node: NodeDefaults,
        objects: watch::Receiver<Arc<Published>>,
    ) -> Self {
        Self {
            services,
            node,
            objects,
        }
    }

    /// Serves until `life` ends. Who is asking then hears nothing, which is no permission.
    pub async fn serve(self, listener: UnixListener, life: Lifetime) {
        let (desk, scope) = (Arc::new(self), Scope::new("cni"));
        let room = Arc::new(Semaphore::new(OPEN_MAX));
        loop {
            let accepted = tokio::select! {
                () = life.draining() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the CNI plugin could not be heard");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Over the limit the plugin hears nothing and comes again.
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                tracing::warn!(OPEN_MAX, "too many questions of the CNI plugin are open");
                continue;
            };
            let desk = Arc::clone(&desk);
            scope.spawn("question", async move {
                if let Err(error) = desk.hear(stream).await {
                    tracing::debug!(%error, "a question of the CNI plugin");
                }
                drop(permit);
            });
        }
        scope.shutdown(Duration::ZERO).await;
    }

    async fn hear(&self, mut stream: UnixStream) -> io::Result<()> {
        let line = timeout(PROMPTLY, line(&mut stream)).await??;
        let question: Question = serde_json::from_slice(&line)?;
        let (mut reading, mut writing) = stream.split();
        let mut more = [0];
        let answer = tokio::select! {
            answer = self.answer(&question) => answer,
            // It went away, or broke the rules: nobody waits for an answer.
            _ = reading.read(&mut more) => return Ok(()),
        };
        tracing::info!(uid = question.uid, matter = ?question.matter, outcome = ?answer.outcome,
            why = answer.why, "the CNI plugin asked");
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        crash_point("before", "answer");
        timeout(PROMPTLY, writing.write_all(&text)).await??;
        crash_point("after", "answer");
        Ok(())
    }

    /// The answer; for [`Matter::Start`] it may take as long as the question allows.
    pub async fn answer(&self, question: &Question) -> Answer {
        if question.version != VERSION {
            let why = format!("the agent speaks version {VERSION} of the plugin's questions");
            return told(Outcome::NotYet, why);
        }
        match question.matter {
            Matter::Status => told(Outcome::Available, String::new()),
            Matter::Start => self.start(question).await,
            Matter::Check => match self.look(question).await {
                State::Unrecorded(why) => told(Outcome::Unknown, why),
                State::Undecided(why) => told(Outcome::NotYet, why),
                State::Plain(why) => told(Outcome::Plain, why),
                State::Missing(why) => told(Outcome::NotRedirected, why),
                State::Enrolled(why) => told(Outcome::Enrolled, why),
            },
        }
    }

    async fn start(&self, question: &Question) -> Answer {
        let end = Instant::now() + Duration::from_millis(question.limit).min(LIMIT_MAX);
        let (mut objects, mut board) = (self.objects.clone(), self.services.board.changes());
        loop {
            objects.mark_unchanged();
            board.mark_unchanged();
            let why = match self.look(question).await {
                State::Unrecorded(why) => return told(Outcome::Unknown, why),
                State::Plain(why) => return told(Outcome::Plain, why),
                State::Enrolled(why) => return told(Outcome::Enrolled, why),
                State::Undecided(why) | State::Missing(why) => why,
            };
            tokio::select! {
                changed = objects.changed() => if changed.is_err() {
                    return told(Outcome::NotYet, why);
                },
                _ = board.changed() => {}
                () = sleep_until(end) => return told(Outcome::NotYet, why),
            }
        }
    }

    /// What is wished of the pod, and whether that is so in its namespace at this moment.
    async fn look(&self, question: &Question) -> State {
        let services = &self.services;
        let record = match sandbox::find(&services.pods_dir, &question.uid) {
            Ok(Some(record)) if record.container_id == question.container_id => record,
            Ok(_) => return State::Unrecorded("it is not written down".to_owned()),
            Err(error) => return State::Undecided(error),
        };
        let published = Arc::clone(&self.objects.borrow());
        let wish = match desire(&published, &record, &self.node) {
            Ok(wish) if wish.goal == Goal::Plain => return State::Plain(wish.why),
            Ok(wish) => wish,
            Err(unknown) => return State::Undecided(unknown.to_string()),
        };
        let netns = match NetNs::open(&record.netns_under(&services.proc)) {
            Ok(netns) => netns,
            Err(error) => return State::Missing(format!("its network namespace: {error}")),
        };
        let view = services.board.find(&question.uid);
        let Some(view) = view.filter(|view| view.netns == netns.inode()) else {
            return State::Missing("its enrolment has not begun".to_owned());
        };
        if !services.zds.is_served(&question.uid, &netns) || view.rules != "on" {
            let waiting = format!("it is being enrolled ({})", view.standing.as_str());
            let problem = Some(view.problem).filter(|problem| !problem.is_empty());
            return State::Missing(problem.unwrap_or(waiting));
        }
        // What was seen a moment ago is not enough to let a pod start.
        let canon = Arc::clone(&services.canon);
        match blocking(move || look_afresh(&netns, &canon, &wish.wishes)).await {
            Ok(Rules::On) => State::Enrolled(wish.why),
            Ok(found) => State::Missing(format!("its rules are {found:?}")),
            Err(error) => State::Missing(error.to_string()),
        }
    }
}

const fn told(outcome: Outcome, why: String) -> Answer {
    Answer { outcome, why }
}

async fn line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let (mut line, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&buffer[..length]);
        if let Some(at) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(at);
            return Ok(line);
        }
        if line.len() > LINE_MAX {
            return Err(io::Error::other("the question is too long"));
        }
    }
}
