use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::istio::{security, workload};
use isobar_proto::type_url::{ADDRESS, AUTHORIZATION};
use isobar_runtime::Scope;
use serde_json::json;
use tempfile::TempDir;

use tonic::Status;

use super::*;
use crate::handler::Rejected;
use crate::saved::SavedMesh;
use crate::testing::{AdsStream, ControlPlane, patiently, resource};

mod on_demand;
mod reconnect;

const EXTRA: &str = "type.googleapis.com/test.Extra";

struct Setup {
    dir: TempDir,
    config: AdsConfig,
    /// Streams kept open.
    streams: Vec<AdsStream>,
    server: ControlPlane,
    store: Store,
    status: SyncStatus,
    /// Owns the client's task.
    _scope: Scope,
}

/// Takes every resource name of its type.
struct Names(Arc<Mutex<Vec<String>>>);

impl ResourceHandler for Names {
    fn type_url(&self) -> &'static str {
        EXTRA
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        let mut names = self.0.lock().unwrap();
        names.extend(updates.iter().map(|r| r.name.clone()));
        names.retain(|name| !removed.contains(name));
        Vec::new()
    }
}

fn roots_file(dir: &TempDir) -> PathBuf {
    dir.path().join("root-cert.pem")
}

fn token_file(dir: &TempDir) -> PathBuf {
    dir.path().join("token")
}

async fn setup(handlers: Vec<Box<dyn ResourceHandler>>) -> Setup {
    setup_with(handlers, |client| client).await
}

async fn setup_with(
    handlers: Vec<Box<dyn ResourceHandler>>,
    change: impl FnOnce(AdsClient) -> AdsClient,
) -> Setup {
    let server = ControlPlane::start().await;
    let dir = TempDir::new().unwrap();
    server.write_roots(&roots_file(&dir));
    std::fs::write(token_file(&dir), "first\n").unwrap();
    let config = AdsConfig {
        address: format!("https://{}", server.address),
        roots: roots_file(&dir).into(),
        alt_hostname: None,
        token: Some(token_file(&dir).into()),
        cluster_id: "east".to_owned(),
        headers: vec![("X-Extra".to_owned(), "yes".to_owned())],
        node_id: "ztunnel~10.0.0.1~z.ns~ns.svc.cluster.local".to_owned(),
        metadata: json!({"NODE_NAME": "node-1", "LABELS": {"a": ["b", 1]}})
            .as_object()
            .unwrap()
            .clone(),
    };
    let store = Store::default();
    let client = change(AdsClient::new(config.clone(), store.clone(), handlers));
    let status = client.status();
    let scope = Scope::new("client");
    let life = scope.lifetime();
    scope.spawn("ads", client.run(life));
    Setup {
        dir,
        config,
        streams: Vec::new(),
        server,
        store,
        status,
        _scope: scope,
    }
}

fn pod(name: &str) -> Resource {
    let uid = format!("Kubernetes//Pod/default/{name}");
    let w = workload::Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: "default".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    };
    address_resource(&uid, workload::address::Type::Workload(w))
}

fn address_resource(name: &str, kind: workload::address::Type) -> Resource {
    let message = workload::Address { r#type: Some(kind) };
    resource(name, &format!("v-{name}"), &message)
}

fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/default/{name}")
}

fn policy(name: &str, action: i32) -> Resource {
    let message = security::Authorization {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        action,
        ..Default::default()
    };
    resource(&format!("default/{name}"), "", &message)
}

async fn first_requests(
    stream: &mut AdsStream,
    count: usize,
) -> BTreeMap<String, DeltaDiscoveryRequest> {
    let mut requests = BTreeMap::new();
    for _ in 0..count {
        let request = stream.request().await;
        requests.insert(request.type_url.clone(), request);
    }
    requests
}

#[tokio::test]
async fn the_first_requests_ask_for_everything_and_say_who_asks() {
    let mut s = setup(vec![]).await;
    let mut stream = s.server.stream().await;
    let policies = stream.request().await;
    let addresses = stream.request().await;
    assert_eq!(policies.type_url, AUTHORIZATION, "policies come first");
    assert_eq!(addresses.type_url, ADDRESS);
    for request in [policies, addresses] {
        let node = request.node.unwrap();
        assert_eq!(node.id, "ztunnel~10.0.0.1~z.ns~ns.svc.cluster.local");
        let metadata = node.metadata.unwrap();
        assert!(metadata.fields.contains_key("NODE_NAME"));
        assert!(format!("{:?}", metadata.fields["LABELS"]).contains("NumberValue(1.0)"));
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty());
        assert!(request.response_nonce.is_empty());
    }
    assert_eq!(stream.headers.get("authorization").unwrap(), "Bearer first");
    assert_eq!(stream.headers.get("clusterid").unwrap(), "east");
    assert_eq!(stream.headers.get("x-extra").unwrap(), "yes");
}

#[tokio::test]
async fn what_is_answered_is_applied_acknowledged_and_ready() {
    let mut s = setup(vec![]).await;
    let mut stream = s.server.stream().await;
    first_requests(&mut stream, 2).await;
    stream.send(ADDRESS, "n1", vec![pod("a"), pod("b")]).await;
    let ack = stream.request().await;
    assert_eq!((&*ack.type_url, &*ack.response_nonce), (ADDRESS, "n1"));
    assert_eq!(ack.error_detail, None);
    assert_eq!(ack.node, None);
    assert_eq!(s.store.load().sizes(), (2, 0, 0));
    assert!(!s.status.is_synced(), "policies have not been answered");
    stream.send(AUTHORIZATION, "n2", vec![]).await;
    stream.request().await;
    patiently("readiness", s.status.synced()).await;
    stream
        .send_with(ADDRESS, "n3", vec![], &[&uid("a"), "never/there"])
        .await;
    stream.request().await;
    assert_eq!(s.store.load().sizes(), (1, 0, 0));
    assert_eq!(s.store.load().version(), 3, "one response, one version");
    let report = s.status.report();
    assert!(report.connected);
    let addresses = report.types.iter().find(|t| t.type_url == ADDRESS).unwrap();
    assert_eq!((addresses.resources, addresses.messages), (1, 2));
    assert_eq!((&*addresses.nonce, &*addresses.version), ("n3", "at-n3"));
}

#[tokio::test]
async fn check_08_a_bad_address_leaves_the_good_ones() {
    let mut s = setup(vec![]).await;
    let mut stream = s.server.stream().await;
    first_requests(&mut stream, 2).await;
    stream.send(AUTHORIZATION, "n1", vec![policy("p", 0)]).await;
    assert_eq!(stream.request().await.error_detail, None);
    let mut foreign = pod("b");
    foreign.name = "another".to_owned();
    let mut broken = pod("c");
    broken.resource.as_mut().unwrap().value = vec![0xff];
    let resources = vec![foreign, pod("a"), broken];
    stream.send(ADDRESS, "n2", resources).await;
    let nack = stream.request().await;
    assert_eq!(nack.response_nonce, "n2");
    let status = nack.error_detail.unwrap();
    assert_eq!(status.code, 0);
    let (first, second) = status.message.split_once("; ").unwrap();
    assert_eq!(
        first,
        "another: the resource's content is named \"Kubernetes//Pod/default/b\""
    );
    assert!(second.starts_with(&format!("{}: the resource is malformed", uid("c"))));
    assert_eq!(s.store.load().sizes(), (1, 0, 1));
    patiently("readiness", s.status.synced()).await;

    stream.send(AUTHORIZATION, "n3", vec![policy("p", 9)]).await;
    let nack = stream.request().await.error_detail.unwrap();
    assert_eq!(nack.message, "default/p: action has the unknown value 9");
    assert_eq!(s.store.load().sizes(), (1, 0, 1), "the old policy stays");
    let rejected = |type_url| {
        let report = s.status.report();
        let of_type = report.types.into_iter().find(|t| t.type_url == type_url);
        of_type.unwrap().rejected.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(rejected(AUTHORIZATION), ["default/p"]);
    stream.send(AUTHORIZATION, "n4", vec![policy("p", 1)]).await;
    stream.request().await;
    assert_eq!(rejected(AUTHORIZATION), [""; 0]);
}

#[tokio::test]
async fn check_09_a_reconnect_tells_the_versions_held_and_no_rejected_one() {
    let mut s = setup(vec![]).await;
    let mut stream = s.server.stream().await;
    first_requests(&mut stream, 2).await;
    let mut broken = pod("broken");
    broken.resource.as_mut().unwrap().value = vec![0xff];
    let first = vec![pod("a"), pod("b"), pod("gone"), broken];
    stream.send(ADDRESS, "n1", first).await;
    stream.request().await;
    stream.send(AUTHORIZATION, "n2", vec![policy("p", 1)]).await;
    stream.request().await;
    // A newer version that is rejected leaves the older one in force, and held.
    let newer = |name: &str| Resource {
        version: "newer".to_owned(),
        ..pod(name)
    };
    let mut bad = newer("a");
    bad.resource.as_mut().unwrap().value = vec![0xff];
    let second = vec![bad, newer("b")];
    stream
        .send_with(ADDRESS, "n3", second, &[&uid("gone")])
        .await;
    stream.request().await;
    stream.send(AUTHORIZATION, "n4", vec![policy("q", 9)]).await;
    stream.request().await;

    stream.fail(Status::unavailable("rotation")).await;
    let mut stream = s.server.stream().await;
    let requests = first_requests(&mut stream, 2).await;
    let held = |url: &str| requests[url].initial_resource_versions.clone();
    let versions = BTreeMap::from([
        (uid("a"), format!("v-{}", uid("a"))),
        (uid("b"), "newer".to_owned()),
    ]);
    assert_eq!(held(ADDRESS), versions);
    assert_eq!(
        held(AUTHORIZATION),
        BTreeMap::from([("default/p".to_owned(), String::new())])
    );
    for request in requests.values() {
        assert!(request.node.is_some());
        assert!(request.response_nonce.is_empty());
    }
}

#[tokio::test]
async fn an_outage_leaves_everything_in_force_and_ends_by_itself() {
    let mut s = setup(vec![]).await;
    let mut stream = s.server.stream().await;
    first_requests(&mut stream, 2).await;
    stream.send(ADDRESS, "n1", vec![pod("a"), pod("b")]).await;
    stream.request().await;
    drop(stream);
    let address = s.server.address;
    s.server.stop().await;
    patiently("the outage to be noticed", async {
        while s.status.report().connected {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(s.store.load().sizes(), (2, 0, 0));

    // Another authority and another token: both files are read again.
    let mut server = ControlPlane::start_at(address).await;
    server.write_roots(&roots_file(&s.dir));
    std::fs::write(token_file(&s.dir), "second").unwrap();
    let mut stream = server.stream().await;
    assert_eq!(
        stream.headers.get("authorization").unwrap(),
        "Bearer second"
    );
    let requests = first_requests(&mut stream, 2).await;
    let held: Vec<_> = requests[ADDRESS].initial_resource_versions.keys().collect();
    assert_eq!(held, [&uid("a"), &uid("b")]);
    stream.send_with(ADDRESS, "n1", vec![], &[&uid("b")]).await;
    stream.request().await;
    assert_eq!(s.store.load().sizes(), (1, 0, 0));
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted() {
    let s = setup(vec![]).await;
    let other = isobar_tls::ca::Authority::generate("other").unwrap();
    std::fs::write(roots_file(&s.dir), other.roots()).unwrap();
    // The first connection may have used the old file: cut it.
    let address = s.server.address;
    s.server.stop().await;
    let server = ControlPlane::start_at(address).await;
    patiently("a refusal", async {
        loop {
            let failure = s.status.report().last_failure.unwrap_or_default();
            if failure.contains("certificate") {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!s.status.report().connected);
    server.stop().await;
}

#[tokio::test]
async fn further_types_go_to_their_handlers_and_unknown_ones_are_acknowledged() {
    let names = Arc::new(Mutex::new(Vec::new()));
    let mut s = setup(vec![Box::new(Names(Arc::clone(&names)))]).await;
    let mut stream = s.server.stream().await;
    let requests = first_requests(&mut stream, 3).await;
    assert!(requests.contains_key(EXTRA));
    let extra = |name: &str| resource(name, "1", &workload::Address::default());
    stream.send(EXTRA, "n1", vec![extra("x"), extra("y")]).await;
    assert_eq!(stream.request().await.response_nonce, "n1");
    stream.send_with(EXTRA, "n2", vec![], &["x"]).await;
    stream.request().await;
    assert_eq!(*names.lock().unwrap(), ["y"]);

    stream
        .send("type.googleapis.com/nobody", "n3", vec![])
        .await;
    let ack = stream.request().await;
    assert_eq!(
        (&*ack.type_url, &*ack.response_nonce),
        ("type.googleapis.com/nobody", "n3")
    );
    assert_eq!(ack.error_detail, None);
}

/// A client of the server at `address` that keeps the mesh in `folder`.
fn keeping(config: &AdsConfig, folder: &Path, address: &str) -> (AdsClient, Store) {
    let config = AdsConfig {
        address: format!("https://{address}"),
        ..config.clone()
    };
    let store = Store::default();
    let client = AdsClient::new(config, store.clone(), vec![]);
    let saved = SavedMesh::open(folder, "east").unwrap();
    (client.with_saved(saved), store)
}

async fn saved_with(folder: &Path, names: &[&str]) {
    patiently("the mesh to be saved", async {
        loop {
            let saved = SavedMesh::open(folder, "east").unwrap().load();
            if let Ok(Some(restored)) = saved {
                let addresses = restored.resources[ADDRESS].iter();
                let mut found: Vec<_> = addresses.map(|r| &*r.name).collect();
                found.sort_unstable();
                if found == names {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_restart_while_the_control_plane_is_away_serves_what_was_known() {
    let mut s = setup(vec![]).await;
    let folder = s.dir.path().join("state");
    let address = s.server.address;
    let scope = Scope::new("first");
    let (client, _store) = keeping(&s.config, &folder, &address.to_string());
    scope.spawn("ads", client.run(scope.lifetime()));
    // The setup's own client has a stream too: both get the same.
    for _ in 0..2 {
        let mut stream = s.server.stream().await;
        first_requests(&mut stream, 2).await;
        stream.send(AUTHORIZATION, "n1", vec![policy("p", 1)]).await;
        stream.request().await;
        s.streams.push(stream);
    }
    assert!(!folder.join("mesh").exists(), "half a mesh is not saved");
    for stream in &mut s.streams {
        stream.send(ADDRESS, "n2", vec![pod("a"), pod("b")]).await;
        stream.request().await;
    }
    saved_with(&folder, &[&uid("a"), &uid("b")]).await;
    scope.shutdown(Duration::ZERO).await;
    s.server.stop().await;

    // Nobody is at that address any more.
    let (client, store) = keeping(&s.config, &folder, &address.to_string());
    let status = client.status();
    assert_eq!(
        store.load().sizes(),
        (2, 0, 1),
        "known before anything runs"
    );
    assert!(!status.is_synced(), "the control plane is asked first");
    let scope = Scope::new("second");
    scope.spawn("ads", client.run(scope.lifetime()));
    patiently("the saved mesh to do", status.synced()).await;
    assert_eq!(status.report().restored, Some(3));

    // When it comes back it is told what is held, and only the difference comes.
    let mut server = ControlPlane::start_at(address).await;
    server.write_roots(&roots_file(&s.dir));
    let mut stream = server.stream().await;
    let requests = first_requests(&mut stream, 2).await;
    let held = &requests[ADDRESS].initial_resource_versions;
    let versions: Vec<_> = held.values().cloned().collect();
    assert_eq!(
        versions,
        [format!("v-{}", uid("a")), format!("v-{}", uid("b"))]
    );
    stream.send(AUTHORIZATION, "n1", vec![]).await;
    stream.send_with(ADDRESS, "n1", vec![], &[&uid("b")]).await;
    stream.request().await;
    stream.request().await;
    assert_eq!(store.load().sizes(), (1, 0, 1));
    saved_with(&folder, &[&uid("a")]).await;
    scope.shutdown(Duration::ZERO).await;
    server.stop().await;
}

#[tokio::test]
async fn what_another_mesh_saved_is_not_used() {
    let s = setup(vec![]).await;
    let folder = s.dir.path().join("state");
    let saved = SavedMesh::open(&folder, "west").unwrap();
    let store = Store::default();
    let mut draft = store.load().draft();
    let w = workload::Workload {
        uid: uid("a"),
        ..Default::default()
    };
    let message = workload::Address {
        r#type: Some(workload::address::Type::Workload(w)),
    };
    draft.upsert_address(&message).unwrap();
    saved.save(&draft.finish(), &BTreeMap::new()).unwrap();
    let loaded = saved.load().unwrap().unwrap();
    assert_eq!(loaded.resources[ADDRESS].len(), 1);
    let (client, store) = keeping(&s.config, &folder, "127.0.0.1:1");
    assert_eq!(store.load().sizes(), (0, 0, 0));
    assert_eq!(client.status().report().restored, None);
}

#[tokio::test]
async fn a_refusing_stand_in_ends_with_the_policy_that_it_stands_for() {
    let mut s = setup(vec![]).await;
    let mut stream = s.server.stream().await;
    first_requests(&mut stream, 2).await;
    let unreadable = |name: &str| {
        let rule = security::Rule {
            clauses: vec![security::Clause {
                matches: vec![security::Match {
                    destination_ports: vec![70000],
                    ..Default::default()
                }],
            }],
        };
        let message = security::Authorization {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            rules: vec![rule],
            ..Default::default()
        };
        resource(&format!("default/{name}"), "", &message)
    };
    let names = |s: &Setup| {
        let snapshot = s.store.load();
        let mut all: Vec<_> = snapshot
            .authorizations()
            .map(|p| p.key.to_string())
            .collect();
        all.sort();
        all
    };
    let all = ["x", "y", "z"].map(unreadable).to_vec();
    stream.send(AUTHORIZATION, "n1", all).await;
    let nack = stream.request().await.error_detail.unwrap();
    assert!(
        nack.message.contains("is 70000; a port is at most"),
        "{}",
        nack.message
    );
    assert_eq!(names(&s), ["default/x", "default/y", "default/z"]);
    stream
        .send_with(AUTHORIZATION, "n2", vec![], &["default/x"])
        .await;
    stream.request().await;
    assert_eq!(names(&s), ["default/y", "default/z"]);
    // To a new stream the server does not tell the end of what was never held.
    stream.fail(Status::unavailable("rotation")).await;
    let mut stream = s.server.stream().await;
    let requests = first_requests(&mut stream, 2).await;
    assert!(requests[AUTHORIZATION].initial_resource_versions.is_empty());
    stream
        .send(AUTHORIZATION, "n1", vec![unreadable("z")])
        .await;
    stream.request().await;
    assert_eq!(names(&s), ["default/z"]);
    stream.send(AUTHORIZATION, "n2", vec![policy("z", 1)]).await;
    stream.request().await;
    assert_eq!(names(&s), ["default/z"]);
}
