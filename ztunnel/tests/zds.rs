//! The ZDS client against a scripted node agent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isobar_net::{SeqPacket, SeqPacketListener};
use isobar_runtime::{LifetimeOwner, Scope};
use isobar_telemetry::Ready;
use tokio::sync::watch;
use ztunnel::pods::PendingPods;
use ztunnel::zds::{Client, Fatality, PodHost, PodInfo};

const LIMIT: Duration = Duration::from_secs(20);
const OK: &[u8] = &[0x0a, 0x00];

/// Remembers what it was told; can be told to fail.
#[derive(Clone, Default)]
struct Host {
    events: Arc<Mutex<Vec<String>>>,
    running: Arc<Mutex<Vec<String>>>,
    broken: Arc<Mutex<bool>>,
    /// How long the end of a pod takes.
    slow: Arc<Mutex<Duration>>,
    starts: Arc<watch::Sender<usize>>,
}

impl PodHost for Host {
    async fn start(&self, uid: &str, info: &PodInfo, _netns: Arc<OwnedFd>) -> Result<(), String> {
        self.starts.send_modify(|n| *n += 1);
        if *self.broken.lock().unwrap() {
            return Err("port is taken".into());
        }
        self.events
            .lock()
            .unwrap()
            .push(format!("start {uid} {}", info.name));
        self.running.lock().unwrap().push(uid.to_owned());
        Ok(())
    }

    async fn stop(&self, uid: &str) {
        self.events.lock().unwrap().push(format!("stop {uid}"));
        let slow = *self.slow.lock().unwrap();
        tokio::time::sleep(slow).await;
        self.running.lock().unwrap().retain(|u| u != uid);
    }

    fn running(&self) -> Vec<String> {
        self.running.lock().unwrap().clone()
    }
}

struct Rig {
    _dir: tempfile::TempDir,
    path: PathBuf,
    agent: SeqPacketListener,
    host: Host,
    ready: Ready,
    scope: Scope,
    life: LifetimeOwner,
    result: Arc<Mutex<Option<Result<(), Fatality>>>>,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zds.sock");
    let agent = SeqPacketListener::bind(&path).unwrap();
    let host = Host::default();
    let ready = Ready::new();
    let gate = ready.gate("workload proxy manager");
    let client = Client::new(path.clone(), host.clone(), gate, PendingPods::default());
    let scope = Scope::new("test");
    let life = LifetimeOwner::new();
    let result = Arc::new(Mutex::new(None));
    let (slot, lifetime) = (result.clone(), life.lifetime());
    scope.spawn("client", async move {
        let ended = client.run(lifetime).await;
        *slot.lock().unwrap() = Some(ended);
    });
    Rig {
        _dir: dir,
        path,
        agent,
        host,
        ready,
        scope,
        life,
        result,
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

async fn connected(agent: &SeqPacketListener) -> SeqPacket {
    let packets = within("connect", agent.accept()).await.unwrap();
    assert_eq!(received(&packets).await.unwrap(), [0x08, 0x01]);
    packets
}

async fn received(packets: &SeqPacket) -> Option<Vec<u8>> {
    let mut buffer = [0; 1024];
    let packet = within("packet", packets.recv(&mut buffer)).await.unwrap()?;
    Some(buffer[..packet.len].to_vec())
}

async fn ask(packets: &SeqPacket, bytes: &[u8], with_fd: bool) -> Vec<u8> {
    let file = std::fs::File::open("/dev/null").unwrap();
    let fds = [file.as_fd()];
    let fds = if with_fd { &fds[..] } else { &[] };
    packets.send(bytes, fds).await.unwrap();
    received(packets).await.expect("an answer")
}

fn add(uid: &str) -> Vec<u8> {
    let info = b"\x12\x09\x0a\x01a\x12\x01b\x1a\x01c";
    let uid_len = u8::try_from(uid.len()).unwrap();
    let mut inner = vec![0x0a, uid_len];
    inner.extend(uid.bytes());
    inner.extend(info);
    let mut message = vec![0x0a, u8::try_from(inner.len()).unwrap()];
    message.extend(inner);
    message
}

#[tokio::test]
async fn check_01_the_hello_is_one_packet() {
    let rig = rig();
    let agent = within("connect", rig.agent.accept()).await.unwrap();
    assert_eq!(received(&agent).await.unwrap(), [0x08, 0x01]);
    // Nothing follows unasked: the next packet is the answer to the next question.
    assert_eq!(ask(&agent, b"\x1a\x00", false).await, OK);
}

#[tokio::test]
async fn check_02_a_deletions_uid_is_field_two() {
    let rig = rig();
    let agent = connected(&rig.agent).await;
    assert_eq!(ask(&agent, &add("u1"), true).await, OK);
    assert_eq!(ask(&agent, b"\x1a\x00", false).await, OK);
    assert_eq!(ask(&agent, b"\x12\x04\x0a\x02u1", false).await, OK);
    assert_eq!(*rig.host.running.lock().unwrap(), ["u1"]);
    assert_eq!(ask(&agent, b"\x12\x04\x12\x02u1", false).await, OK);
    assert!(rig.host.running.lock().unwrap().is_empty());
}

#[tokio::test]
async fn serves_the_snapshot_and_what_changes_later() {
    let rig = rig();
    rig.host
        .running
        .lock()
        .unwrap()
        .extend(["old".to_owned(), "kept".to_owned()]);
    let agent = connected(&rig.agent).await;
    assert_eq!(ask(&agent, &add("u1"), true).await, OK);
    assert_eq!(ask(&agent, b"\x2a\x06\x0a\x04kept", false).await, OK);
    assert!(!rig.ready.is_ready());
    assert_eq!(ask(&agent, b"\x1a\x00", false).await, OK);
    within("ready", rig.ready.wait()).await;
    assert_eq!(*rig.host.events.lock().unwrap(), ["start u1 a", "stop old"]);

    assert_eq!(ask(&agent, b"\x12\x04\x12\x02u1", false).await, OK);
    assert_eq!(rig.host.events.lock().unwrap()[2], "stop u1");

    // The agent restarts: pods stay, readiness goes until its next snapshot is complete.
    drop(agent);
    let agent = connected(&rig.agent).await;
    assert!(!rig.ready.is_ready());
    assert_eq!(ask(&agent, b"\x2a\x06\x0a\x04kept", false).await, OK);
    assert_eq!(ask(&agent, b"\x1a\x00", false).await, OK);
    within("ready", rig.ready.wait()).await;
    assert_eq!(*rig.host.running.lock().unwrap(), ["kept"]);

    rig.life.drain();
    assert!(rig.scope.shutdown(LIMIT).await);
    assert!(rig.result.lock().unwrap().take().unwrap().is_ok());
    assert!(rig.path.exists());
}

#[tokio::test]
async fn check_05_many_missing_pods_end_within_the_agents_patience() {
    let rig = rig();
    *rig.host.slow.lock().unwrap() = Duration::from_secs(1);
    let pods = (0..20).map(|n| format!("u{n}"));
    rig.host.running.lock().unwrap().extend(pods);
    let agent = connected(&rig.agent).await;
    let answer = tokio::time::timeout(Duration::from_secs(5), ask(&agent, b"\x1a\x00", false));
    assert_eq!(answer.await.expect("an answer in time"), OK);
    assert!(rig.host.running.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_that_cannot_start_is_refused_and_tried_again() {
    let rig = rig();
    *rig.host.broken.lock().unwrap() = true;
    let agent = connected(&rig.agent).await;
    let answer = ask(&agent, &add("u1"), true).await;
    assert!(String::from_utf8_lossy(&answer).contains("port is taken"));
    assert_eq!(ask(&agent, b"\x1a\x00", false).await, OK);
    assert!(!rig.ready.is_ready());
    *rig.host.broken.lock().unwrap() = false;
    within("ready", rig.ready.wait()).await;
    assert_eq!(*rig.host.running.lock().unwrap(), ["u1"]);
}

#[tokio::test]
async fn a_broken_packet_ends_the_connection_only() {
    let rig = rig();
    let agent = connected(&rig.agent).await;
    let answer = ask(&agent, &add("u1"), false).await;
    assert!(String::from_utf8_lossy(&answer).contains("descriptors"));
    assert!(received(&agent).await.is_none());
    connected(&rig.agent).await;
}

#[tokio::test]
async fn a_contradiction_is_fatal() {
    let rig = rig();
    let agent = connected(&rig.agent).await;
    assert_eq!(ask(&agent, b"\x1a\x00", false).await, OK);
    agent.send(b"\x1a\x00", &[]).await.unwrap();
    assert!(received(&agent).await.is_none());
    assert!(rig.scope.shutdown(LIMIT).await);
    let ended = rig.result.lock().unwrap().take().unwrap();
    assert!(ended.unwrap_err().to_string().contains("snapshot_sent"));
}
