use isobar_net::SeqPacket;
use isobar_proto::istio::workload::zds::{
    Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request::Payload,
    workload_response,
};
use prost::Message;

use super::*;

/// A proxy that does what the test says.
struct Script {
    socket: SeqPacket,
}

impl Script {
    async fn connect(zds: &Zds, scope: &Scope) -> Self {
        let (ours, theirs) = SeqPacket::pair().unwrap();
        let zds = zds.clone();
        scope.spawn("session", async move { session::run(zds, theirs).await });
        let script = Self { socket: ours };
        let hello = ZdsHello {
            version: Version::V1.into(),
        };
        script
            .socket
            .send(&hello.encode_to_vec(), &[])
            .await
            .unwrap();
        script
    }

    async fn expect(&self) -> Option<(Payload, usize)> {
        let mut buffer = [0; PACKET_MAX];
        let packet = self.socket.recv(&mut buffer).await.unwrap()?;
        let request = WorkloadRequest::decode(&buffer[..packet.len]).unwrap();
        Some((request.payload.unwrap(), packet.fds.len()))
    }

    async fn answer(&self, error: &str) {
        let response = WorkloadResponse {
            payload: Some(workload_response::Payload::Ack(Ack {
                error: error.to_owned(),
            })),
        };
        self.socket
            .send(&response.encode_to_vec(), &[])
            .await
            .unwrap();
    }

    /// Takes one request, checks its kind and answers it well.
    async fn take(&self, expected: &str) {
        let (payload, fds) = self.expect().await.unwrap();
        assert_eq!(name(&payload), expected);
        assert_eq!(fds, usize::from(expected.starts_with("add")));
        self.answer("").await;
    }
}

fn name(payload: &Payload) -> String {
    match payload {
        Payload::Add(add) => format!("add {}", add.uid),
        Payload::Del(del) => format!("del {}", del.uid),
        Payload::Keep(keep) => format!("keep {}", keep.uid),
        Payload::SnapshotSent(_) => "end".to_owned(),
    }
}

fn pod(uid: &str) -> Announcement {
    Announcement {
        uid: uid.to_owned(),
        name: format!("pod-{uid}"),
        namespace: "shop".to_owned(),
        service_account: "default".to_owned(),
        netns: NetNs::current().unwrap(),
    }
}

async fn connected(zds: &Zds, proxies: usize) {
    let mut changes = zds.changes();
    while zds.proxies().iter().filter(|p| p.synced).count() != proxies {
        changes.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_new_proxy_gets_what_is_known_and_then_what_comes() {
    let (zds, scope) = (Zds::default(), Scope::new("test"));
    assert_eq!(zds.announce(pod("a")).await, Err(AnnounceError::NoProxy));
    assert!(zds.is_announced("a") && !zds.is_accepted("a"));

    let proxy = Script::connect(&zds, &scope).await;
    proxy.take("add a").await;
    proxy.take("end").await;
    connected(&zds, 1).await;
    assert!(zds.is_accepted("a"));

    let (told, ()) = tokio::join!(zds.announce(pod("b")), proxy.take("add b"));
    assert_eq!(told, Ok(()));
    assert!(zds.is_accepted("b"));
    tokio::join!(zds.withdraw("a"), proxy.take("del a"));
    assert!(!zds.is_announced("a") && !zds.is_accepted("a"));
}

#[tokio::test]
async fn the_newest_gets_additions_and_all_get_removals() {
    let (zds, scope) = (Zds::default(), Scope::new("test"));
    let old = Script::connect(&zds, &scope).await;
    old.take("end").await;
    connected(&zds, 1).await;
    let new = Script::connect(&zds, &scope).await;
    new.take("end").await;
    connected(&zds, 2).await;

    let (told, ()) = tokio::join!(zds.announce(pod("a")), new.take("add a"));
    assert_eq!(told, Ok(()));
    tokio::join!(zds.withdraw("a"), old.take("del a"), new.take("del a"));

    let (told, ()) = tokio::join!(zds.announce(pod("b")), new.take("add b"));
    assert_eq!(told, Ok(()));
    drop(new);
    connected(&zds, 1).await;
    assert!(!zds.is_accepted("b"), "the older one was never told");
    let (told, ()) = tokio::join!(zds.announce(pod("b")), old.take("add b"));
    assert_eq!(told, Ok(()));
    assert!(zds.is_accepted("b"));
}

#[tokio::test]
async fn a_refusal_is_told_and_the_session_lives_on() {
    let (zds, scope) = (Zds::default(), Scope::new("test"));
    let proxy = Script::connect(&zds, &scope).await;
    proxy.take("end").await;
    let refuse = async {
        proxy.expect().await.unwrap();
        proxy.answer("no room").await;
    };
    let (told, ()) = tokio::join!(zds.announce(pod("a")), refuse);
    assert_eq!(told, Err(AnnounceError::Refused("no room".to_owned())));
    assert!(!zds.is_accepted("a"));
    let (told, ()) = tokio::join!(zds.announce(pod("a")), proxy.take("add a"));
    assert_eq!(told, Ok(()));
}

#[tokio::test]
async fn a_proxy_that_speaks_unasked_is_dropped() {
    let (zds, scope) = (Zds::default(), Scope::new("test"));
    let proxy = Script::connect(&zds, &scope).await;
    proxy.take("end").await;
    connected(&zds, 1).await;
    proxy.answer("").await;
    assert!(proxy.expect().await.is_none());
    connected(&zds, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_does_not_answer_is_dropped() {
    let (zds, scope) = (Zds::default(), Scope::new("test"));
    let proxy = Script::connect(&zds, &scope).await;
    proxy.take("end").await;
    connected(&zds, 1).await;
    assert_eq!(zds.announce(pod("a")).await, Err(AnnounceError::Gone));
    connected(&zds, 0).await;
    drop(proxy);
}

#[tokio::test]
async fn an_unknown_version_is_refused() {
    let (zds, scope) = (Zds::default(), Scope::new("test"));
    let (ours, theirs) = SeqPacket::pair().unwrap();
    let session = zds.clone();
    scope.spawn(
        "session",
        async move { session::run(session, theirs).await },
    );
    ours.send(&ZdsHello { version: 9 }.encode_to_vec(), &[])
        .await
        .unwrap();
    let mut buffer = [0; PACKET_MAX];
    assert!(ours.recv(&mut buffer).await.unwrap().is_none());
    assert!(zds.proxies().is_empty());
}
