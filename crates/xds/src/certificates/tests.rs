use std::time::Duration;

use futures_util::FutureExt;
use isobar_proto::istio::workload as wire;
use isobar_runtime::{LifetimeOwner, Scope};
use isobar_state::Snapshot;
use isobar_tls::ca::Authority;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;

use super::*;
use crate::config::CaConfig;
use crate::store::Store;
use crate::testing::ControlPlane;

const LIFE: Duration = Duration::from_secs(3600);

type Answer = Result<WorkloadCertificate, CertError>;
type Call = (Identity, oneshot::Sender<Answer>);

/// An authority that answers when the test does.
struct Scripted(mpsc::Sender<Call>);

impl Requester for Scripted {
    fn request<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let (answer, wait) = oneshot::channel();
            self.0.send((identity.clone(), answer)).await.unwrap();
            wait.await.unwrap_or_else(|_| Err(CertError::Stopped))
        })
    }
}

struct Setup {
    manager: CertManager,
    calls: mpsc::Receiver<Call>,
    authority: Authority,
    scope: Scope,
}

fn setup() -> Setup {
    let (sender, calls) = mpsc::channel(100);
    let scope = Scope::new("test");
    let (wall, start) = (SystemTime::now(), Instant::now());
    let clock: Clock = Arc::new(move || wall + start.elapsed());
    let requester = Arc::new(Scripted(sender));
    let (manager, work) = CertManager::with_clock(requester, scope.lifetime(), clock);
    scope.spawn("certificates", work);
    Setup {
        manager,
        calls,
        authority: Authority::generate("test").unwrap(),
        scope,
    }
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}

fn refusal(name: &str) -> CertError {
    CertError::Refused {
        identity: id(name),
        detail: "no".to_owned(),
    }
}

impl Setup {
    async fn call(&mut self) -> Call {
        self.calls.recv().await.unwrap()
    }

    /// Answers the next request with a certificate.
    async fn grant(&mut self) -> Identity {
        let (identity, answer) = self.call().await;
        let cert = self.authority.issue_workload(&identity, LIFE).unwrap();
        answer.send(Ok(cert)).unwrap();
        identity
    }

    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_request() {
    let mut s = setup();
    let (a, one, other) = (id("a"), s.manager.clone(), s.manager.clone());
    let (first, second, granted) = tokio::join!(one.fetch(&a), other.fetch(&a), async {
        let granted = s.grant().await;
        s.settle().await;
        granted
    });
    assert_eq!(granted, a);
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.identity(), &a);
    assert!(s.calls.try_recv().is_err(), "one request only");
    assert!(Arc::ptr_eq(&s.manager.current(&a).unwrap(), &first));
    assert!(s.manager.fetch(&a).now_or_never().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn eight_at_a_time_and_the_waiting_connection_first() {
    let mut s = setup();
    let names: Vec<_> = (0..12).map(|n| format!("warm-{n:02}")).collect();
    for name in &names {
        s.manager.prefetch(&id(name));
    }
    s.settle().await;
    let mut under_way = Vec::new();
    for _ in 0..8 {
        under_way.push(s.call().await);
    }
    s.settle().await;
    assert!(s.calls.try_recv().is_err(), "no ninth request");
    let urgent = id("urgent");
    let manager = s.manager.clone();
    let wait = manager.fetch(&urgent);
    tokio::pin!(wait);
    assert!(wait.as_mut().now_or_never().is_none());
    s.settle().await;
    drop(under_way.pop());
    assert_eq!(s.grant().await, urgent);
    assert!(wait.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_at_once_and_tried_again_later() {
    let mut s = setup();
    let a = id("a");
    let manager = s.manager.clone();
    let (result, ()) = tokio::join!(manager.fetch(&a), async {
        let (_, answer) = s.call().await;
        answer.send(Err(refusal("a"))).unwrap();
    });
    assert_eq!(result.unwrap_err(), refusal("a"));
    let at_once = manager.fetch(&a).now_or_never().unwrap();
    assert_eq!(at_once.unwrap_err(), refusal("a"));
    assert!(matches!(
        &manager.report()[0].state,
        CertState::Unavailable(e) if *e == refusal("a")
    ));
    let before = Instant::now();
    s.grant().await;
    let waited = before.elapsed();
    assert!(
        (Duration::from_millis(400)..=Duration::from_millis(610)).contains(&waited),
        "{waited:?}"
    );
    s.settle().await;
    assert!(manager.fetch(&a).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn check_43_r_05_renewed_at_half_life_and_used_to_the_end() {
    let mut s = setup();
    let a = id("a");
    let manager = s.manager.clone();
    let (first, _) = tokio::join!(manager.fetch(&a), s.grant());
    let first = first.unwrap();
    let start = Instant::now();
    let (_, answer) = s.call().await;
    let at = start.elapsed().as_secs();
    assert!((1600..=1860).contains(&at), "half of an hour, not {at} s");
    answer.send(Err(refusal("a"))).unwrap();
    s.settle().await;
    let held = manager.fetch(&a).await.unwrap();
    assert!(Arc::ptr_eq(&held, &first), "the old one is still good");

    // It stays in use through every failure, and not a moment past its end.
    let refuse_for_ever = async {
        loop {
            let (_, answer) = s.call().await;
            answer.send(Err(refusal("a"))).unwrap();
        }
    };
    let expiry = async {
        tokio::time::sleep_until(start + LIFE - Duration::from_secs(60)).await;
        assert!(manager.current(&a).is_some());
        tokio::time::sleep_until(start + LIFE + Duration::from_secs(60)).await;
        assert!(manager.current(&a).is_none());
        assert_eq!(manager.fetch(&a).await.unwrap_err(), refusal("a"));
        println!(
            "R-05: in use until its end {LIFE:?} after it was made, while the authority refused"
        );
    };
    tokio::select! {
        () = refuse_for_ever => {}
        () = expiry => {}
    }
}

#[tokio::test(start_paused = true)]
async fn check_43_a_renewal_replaces_the_certificate() {
    let mut s = setup();
    let a = id("a");
    let manager = s.manager.clone();
    let (first, _) = tokio::join!(manager.fetch(&a), s.grant());
    let first = first.unwrap();
    s.grant().await;
    s.settle().await;
    let second = manager.current(&a).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_in_force_does_not_replace_what_is() {
    let mut s = setup();
    let a = id("a");
    let manager = s.manager.clone();
    let (first, _) = tokio::join!(manager.fetch(&a), s.grant());
    let first = first.unwrap();
    // Half an hour later: over by our clock, which has gone on while the authority's has not.
    let (_, answer) = s.call().await;
    let over = s.authority.issue_workload(&a, Duration::from_secs(300));
    answer.send(Ok(over.unwrap())).unwrap();
    s.settle().await;
    let held = manager.current(&a).unwrap();
    assert!(Arc::ptr_eq(&held, &first), "the old one is still good");
    s.grant().await;
    s.settle().await;
    assert!(!Arc::ptr_eq(&manager.current(&a).unwrap(), &first));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_behind_is_told_at_once() {
    let mut s = setup();
    let behind = SystemTime::now() - Duration::from_secs(24 * 3600);
    let (sender, calls) = mpsc::channel(100);
    let clock: Clock = Arc::new(move || behind);
    let (manager, work) =
        CertManager::with_clock(Arc::new(Scripted(sender)), s.scope.lifetime(), clock);
    s.scope.spawn("behind", work);
    s.calls = calls;
    let a = id("a");
    let told = async { tokio::join!(manager.fetch(&a), s.grant()).0 };
    let told = tokio::time::timeout(Duration::from_secs(5), told).await;
    let error = told.unwrap().unwrap_err();
    assert!(matches!(error, CertError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("clock"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_not_renewed_and_leaves_nobody_waiting() {
    let mut s = setup();
    let a = id("a");
    let manager = s.manager.clone();
    let (result, ()) = tokio::join!(manager.fetch(&a), async {
        let (_, answer) = s.call().await;
        manager.forget(&a).await;
        drop(answer);
    });
    assert_eq!(result.unwrap_err(), CertError::Forgotten);
    assert!(manager.report().is_empty());
    tokio::time::sleep(LIFE).await;
    assert!(s.calls.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_worker_leaves_nobody_waiting() {
    let mut s = setup();
    let a = id("a");
    let manager = s.manager.clone();
    let (result, ()) = tokio::join!(manager.fetch(&a), async {
        let _unanswered = s.call().await;
        s.scope.shutdown(Duration::ZERO).await;
    });
    assert_eq!(result.unwrap_err(), CertError::Stopped);
    assert_eq!(manager.fetch(&a).await.unwrap_err(), CertError::Stopped);
}

fn pod(name: &str, node: &str, hbone: bool) -> wire::Address {
    wire::Address {
        r#type: Some(wire::address::Type::Workload(wire::Workload {
            uid: name.to_owned(),
            name: name.to_owned(),
            namespace: "default".to_owned(),
            service_account: name.to_owned(),
            node: node.to_owned(),
            tunnel_protocol: i32::from(hbone),
            ..Default::default()
        })),
    }
}

#[tokio::test(start_paused = true)]
async fn a_nodes_workloads_decide_what_is_held() {
    let mut s = setup();
    let store = Store::default();
    let life = LifetimeOwner::new();
    let manager = s.manager.clone();
    let (follower, followed, ends) = (manager.clone(), store.clone(), life.lifetime());
    s.scope.spawn("follow", async move {
        follower
            .follow_node(followed, "node-1".to_owned(), async {}, ends)
            .await;
    });
    let next = |change: &dyn Fn(&mut isobar_state::Draft)| {
        let mut draft = Snapshot::clone(&store.load()).draft();
        change(&mut draft);
        store.publish(draft.finish());
    };
    next(&|draft| {
        for address in [
            pod("here", "node-1", true),
            pod("plain", "node-1", false),
            pod("there", "node-2", true),
        ] {
            draft.upsert_address(&address).unwrap();
        }
    });
    assert_eq!(s.grant().await, id("here"));
    s.settle().await;
    assert!(manager.current(&id("here")).is_some());
    assert_eq!(manager.report().len(), 1);
    next(&|draft| {
        assert!(draft.remove_address("here"));
    });
    s.settle().await;
    assert!(manager.report().is_empty());
}

fn ca_config(server: &ControlPlane, dir: &TempDir, impersonate: bool) -> CaConfig {
    let (roots, token) = (dir.path().join("root.pem"), dir.path().join("token"));
    server.write_roots(&roots);
    std::fs::write(&token, "first").unwrap();
    CaConfig {
        address: server.address.to_string(),
        roots: roots.into(),
        alt_hostname: None,
        token: Some(token.into()),
        cluster_id: "east".to_owned(),
        headers: vec![],
        ttl: Duration::from_secs(86400),
        impersonate,
    }
}

#[tokio::test]
async fn the_client_names_the_identity_and_checks_the_answer() {
    let mut server = ControlPlane::start().await;
    let dir = TempDir::new().unwrap();
    let client = CaClient::new(ca_config(&server, &dir, true));
    let a = id("a");
    let (cert, ()) = tokio::join!(client.request(&a), async {
        let call = server.certificate_call().await;
        assert_eq!(call.headers.get("authorization").unwrap(), "Bearer first");
        assert_eq!(call.headers.get("clusterid").unwrap(), "east");
        assert_eq!(call.request.validity_duration, 86400);
        let metadata = format!("{:?}", call.request.metadata);
        assert!(metadata.contains("ImpersonatedIdentity"), "{metadata}");
        assert!(metadata.contains("spiffe://cluster.local/ns/default/sa/a"));
        call.sign(&server.authority, &a);
    });
    assert_eq!(cert.unwrap().identity(), &a);

    // A certificate for somebody else is of no use.
    let (cert, ()) = tokio::join!(client.request(&a), async {
        let call = server.certificate_call().await;
        call.sign(&server.authority, &id("b"));
    });
    assert!(matches!(cert, Err(CertError::Unusable { .. })), "{cert:?}");

    let (cert, ()) = tokio::join!(client.request(&a), async {
        let call = server.certificate_call().await;
        call.answer
            .send(Err(Status::unauthenticated("not you")))
            .unwrap();
    });
    let error = cert.unwrap_err();
    assert!(matches!(error, CertError::Refused { .. }));
    assert!(error.to_string().contains("not you"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn check_44_the_client_trusts_new_roots_at_the_next_request() {
    let mut server = ControlPlane::start().await;
    let dir = TempDir::new().unwrap();
    let client = CaClient::new(ca_config(&server, &dir, false));
    let a = id("a");
    let (cert, ()) = tokio::join!(client.request(&a), async {
        let call = server.certificate_call().await;
        assert_eq!(call.request.metadata, None);
        call.sign(&server.authority, &a);
    });
    cert.unwrap();
    let address = server.address;
    server.stop().await;

    let mut server = ControlPlane::start_at(address).await;
    let untrusted = client.request(&a).await;
    assert!(
        matches!(untrusted, Err(CertError::Unreachable { .. })),
        "{untrusted:?}"
    );
    server.write_roots(&dir.path().join("root.pem"));
    let (cert, ()) = tokio::join!(client.request(&a), async {
        let call = server.certificate_call().await;
        call.sign(&server.authority, &a);
    });
    cert.unwrap();
    server.stop().await;
}

/// A manager that keeps its certificates in `folder`.
fn keeping(folder: &TempDir, s: &Setup) -> (CertManager, mpsc::Receiver<Call>, Scope) {
    let (sender, calls) = mpsc::channel(100);
    let scope = Scope::new("keeping");
    let saved = SavedCertificates::open(folder.path()).unwrap();
    let (manager, work) = CertManager::with_saved(
        Arc::new(Scripted(sender)),
        scope.lifetime(),
        s.manager.shared.clock.clone(),
        Some(saved),
    );
    scope.spawn("certificates", work);
    (manager, calls, scope)
}

fn files(folder: &TempDir) -> usize {
    std::fs::read_dir(folder.path().join("certificates"))
        .unwrap()
        .count()
}

#[tokio::test(start_paused = true)]
async fn a_restart_while_the_authority_is_away_has_the_certificates_of_its_node() {
    let folder = TempDir::new_in("/dev/shm").unwrap();
    let s = setup();
    let (manager, mut calls, scope) = keeping(&folder, &s);
    for name in ["here", "gone"] {
        let identity = id(name);
        let grant = async {
            let (identity, answer) = calls.recv().await.unwrap();
            let cert = s.authority.issue_workload(&identity, LIFE).unwrap();
            answer.send(Ok(cert)).unwrap();
        };
        let (cert, ()) = tokio::join!(manager.fetch(&identity), grant);
        cert.unwrap();
    }
    assert_eq!(files(&folder), 2);
    scope.shutdown(Duration::ZERO).await;
    assert_eq!(files(&folder), 2, "stopping is not leaving");

    // The next process; the authority is silent.
    let (manager, mut calls, scope) = keeping(&folder, &s);
    let here = manager.fetch(&id("here")).now_or_never().unwrap().unwrap();
    assert_eq!(here.identity(), &id("here"));
    s.settle().await;
    assert!(calls.try_recv().is_err(), "nothing is due yet");

    // Once the mesh is known, what the node does not need any more is dropped, with its file.
    let store = Store::default();
    let (known, wait) = oneshot::channel::<()>();
    let (follower, followed, life) = (manager.clone(), store.clone(), scope.lifetime());
    scope.spawn("follow", async move {
        let known = async {
            let _ = wait.await;
        };
        follower
            .follow_node(followed, "node-1".to_owned(), known, life)
            .await;
    });
    s.settle().await;
    assert_eq!(manager.report().len(), 2, "an unknown mesh drops nothing");
    let mut draft = store.load().draft();
    draft.upsert_address(&pod("here", "node-1", true)).unwrap();
    store.publish(draft.finish());
    known.send(()).unwrap();
    s.settle().await;
    assert_eq!(manager.report().len(), 1);
    assert_eq!(files(&folder), 1);

    // Renewed at half life all the same, and never used past its end.
    let start = Instant::now();
    let (identity, answer) = calls.recv().await.unwrap();
    assert_eq!(identity, id("here"));
    assert!(start.elapsed() < LIFE * 6 / 10);
    let _unanswered = answer;
    tokio::time::sleep(LIFE).await;
    assert!(manager.current(&id("here")).is_none());
    scope.shutdown(Duration::ZERO).await;
    let (manager, _calls, _scope) = keeping(&folder, &s);
    assert!(
        manager.report().is_empty(),
        "an expired one is not restored"
    );
    assert_eq!(files(&folder), 0);
}
