//! What the plugin asks the agent: one JSON line to it, one back, over a Unix socket.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::{Deserialize, Serialize};

/// Longest line either side takes, in bytes.
pub const LINE_MAX: usize = 16 << 10;
/// Version of the questions.
pub const VERSION: u32 = 1;
/// How much longer than the agent the plugin waits: the agent's reason is better than none.
const MARGIN: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matter {
    /// May the pod start? Answered once it may, or when the limit is over.
    Start,
    /// Is the pod as it should be, at this moment?
    Check,
    /// Can questions about pods be answered?
    Status,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub matter: Matter,
    /// Uid of the pod's record.
    #[serde(default)]
    pub uid: String,
    /// Container that the record must be of: an answer about an earlier one would be none.
    #[serde(default)]
    pub container_id: String,
    /// Milliseconds after which the agent shall say that it is not done.
    #[serde(default)]
    pub limit: u64,
}

/// What the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Redirected, served by a node proxy, and seen to be so just now.
    Enrolled,
    /// It does not belong to the mesh.
    Plain,
    /// The agent answers.
    Available,
    /// Not yet, or not known; ask again.
    NotYet,
    /// It should be redirected and is not.
    NotRedirected,
    /// There is no record of this container.
    Unknown,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// In one word.
    pub outcome: Outcome,
    /// Why, in words.
    #[serde(default)]
    pub why: String,
}

/// Asks. Blocks until there is a whole answer, or `end`.
///
/// # Errors
/// When nobody listens, or the answer is not whole, late, or none.
pub fn ask(agent: &Path, question: &Question, end: Instant) -> io::Result<Answer> {
    let end = end + MARGIN;
    let mut stream = reach(agent)?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(left(end)?))?;
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        stream.set_read_timeout(Some(left(end)?))?;
        let length = match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if length == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the agent went away before it answered",
            ));
        }
        answer.extend_from_slice(&buffer[..length]);
        // Only a whole line is an answer: the start of one may read otherwise.
        if let Some(at) = answer.iter().position(|byte| *byte == b'\n') {
            return Ok(serde_json::from_slice(&answer[..at])?);
        }
        if answer.len() > LINE_MAX {
            return Err(io::Error::other("the agent's answer is too long"));
        }
    }
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the agent did not answer in time",
        ));
    }
    Ok(left)
}

/// Connects without waiting: an agent that stands still has a full queue, and no time limit holds
/// for a connect to it.
fn reach(agent: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(agent)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
