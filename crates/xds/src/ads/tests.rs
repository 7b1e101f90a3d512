use std::collections::BTreeMap;
use std::path::PathBuf;
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
use crate::testing::{AdsStream, ControlPlane, patiently, resource};

const EXTRA: &str = "type.googleapis.com/test.Extra";

struct Setup {
    dir: TempDir,
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
    let client = AdsClient::new(config, store.clone(), handlers);
    let status = client.status();
    let scope = Scope::new("client");
    let life = scope.lifetime();
    scope.spawn("ads", client.run(life));
    Setup {
        dir,
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
async fn a_bad_resource_is_named_and_its_siblings_apply() {
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

    stream.fail(Status::unavailable("rotation")).await;
    let mut stream = s.server.stream().await;
    let requests = first_requests(&mut stream, 2).await;
    let held = |url: &str| requests[url].initial_resource_versions.clone();
    let version = BTreeMap::from([(uid("a"), format!("v-{}", uid("a")))]);
    assert_eq!(held(ADDRESS), version, "rejected ones are not held");
    assert_eq!(
        held(AUTHORIZATION),
        BTreeMap::from([("default/p".to_owned(), String::new())])
    );
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
