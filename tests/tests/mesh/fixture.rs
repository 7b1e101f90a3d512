//! The scenery most tests play in: a caller on one node, an application on the other.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use isobar_tests::yaml::{Pod, documents, namespace, service, service_account};
use isobar_tests::{Caller, Mesh, Traces};

/// Between two looks at what is left.
const POLL: Duration = Duration::from_millis(20);
/// For what is about to go; far more than it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const HTTPBIN: &str = "docker.io/honester/httpbin:latest";
pub(crate) const HELLO_V1: &str = "docker.io/honester/hello-server:v1";
pub(crate) const HELLO_V2: &str = "docker.io/honester/hello-server:v2";

pub(crate) const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// One test at a time, however many threads the harness uses: a lab keeps two cores busy, and what
/// one test leaves must not be taken for what another is doing.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs an async test on a runtime of its own, and sees that nothing of it is left on the machine.
pub(crate) fn run<F: Future<Output = Result<()>>>(test: F) {
    // A test that failed has had its say.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    };
    // What a runtime opens once for the whole process is open from here on.
    drop(runtime());
    let before = Traces::now().unwrap();
    let own = runtime();
    if let Err(error) = own.block_on(test) {
        panic!("{error:#}");
    }
    drop(own);
    nothing_left(&before);
}

/// Looks for what a test has left; what is about to go gets time for it.
fn nothing_left(before: &Traces) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Traces::now().and_then(|now| now.same_as(before)) {
            Ok(()) => return,
            Err(error) if Instant::now() > deadline => panic!("left behind: {error:#}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Pod `client` (account `client`) on node-1.
pub(crate) fn client(ns: &str) -> String {
    calling(ns, "client")
}

/// Pod `other` (account `other`) on node-1.
pub(crate) fn other(ns: &str) -> String {
    calling(ns, "other")
}

/// A pod on node-1 and the account it runs as, of one name.
fn calling(ns: &str, name: &str) -> String {
    let pod = Pod {
        namespace: ns,
        name,
        account: name,
        node: "node-1",
        image: HTTPBIN,
        port: Some(80),
        labels: &[],
    };
    documents([service_account(ns, name, &[]), pod.yaml()])
}

/// Pod and Service `server` (httpbin on 80, account `server`) on node-2.
pub(crate) fn server(ns: &str, labels: &[(&str, &str)]) -> String {
    let pod = Pod {
        namespace: ns,
        name: "server",
        account: "server",
        node: "node-2",
        image: HTTPBIN,
        port: Some(80),
        labels,
    };
    documents([
        service_account(ns, "server", &[]),
        pod.yaml(),
        service(ns, "server", "server", 80, false),
    ])
}

/// Pods hello-v1 on node-1 and hello-v2 on node-2 behind `svc-hello:8080`, plus a Service each.
pub(crate) fn hello(ns: &str) -> String {
    let pod = |name, image, node, version| {
        Pod {
            namespace: ns,
            name,
            account: name,
            node,
            image,
            port: Some(8080),
            labels: &[("app", "hello"), ("version", version)],
        }
        .yaml()
        .replacen(&format!("    app: \"{name}\"\n"), "", 1)
    };
    let only = |version: &str| {
        service(ns, &format!("svc-hello-{version}"), "hello", 8080, false).replace(
            "    app: hello\n",
            &format!("    app: hello\n    version: {version}\n"),
        )
    };
    documents([
        service_account(ns, "hello-v1", &[]),
        service_account(ns, "hello-v2", &[]),
        pod("hello-v1", HELLO_V1, "node-1", "v1"),
        pod("hello-v2", HELLO_V2, "node-2", "v2"),
        service(ns, "svc-hello", "hello", 8080, false),
        only("v1"),
        only("v2"),
    ])
}

/// A namespace in the mesh, as a file.
pub(crate) fn ambient(ns: &str) -> String {
    namespace(ns, &[AMBIENT])
}

/// A namespace outside the mesh with a pod `outsider` on node-1.
pub(crate) fn outside() -> String {
    let pod = Pod {
        namespace: "outside",
        name: "outsider",
        account: "default",
        node: "node-1",
        image: HTTPBIN,
        port: Some(80),
        labels: &[],
    };
    documents([namespace("outside", &[]), pod.yaml()])
}

/// A mesh with [`client`] and [`server`] in namespace shop, both enrolled, the one answering the other.
pub(crate) struct Shop {
    pub(crate) mesh: Mesh,
    /// Inside the client.
    pub(crate) caller: Caller,
    /// Address of the server's Service.
    pub(crate) to: SocketAddr,
}

/// Starts [`Shop`] with `more` files (name, YAML text).
pub(crate) async fn shop(more: &[(&str, &str)]) -> Result<Shop> {
    let (namespace, client, server) = (ambient("shop"), client("shop"), server("shop", &[]));
    let files = [
        ("ns.yaml", &*namespace),
        ("client.yaml", &client),
        ("server.yaml", &server),
    ];
    let mesh = Mesh::start(&[&files[..], more].concat()).await?;
    for pod in ["shop/client", "shop/server"] {
        mesh.settled(pod, "enrolled").await?;
    }
    let caller = mesh.caller("shop/client").await?;
    let to = (mesh.service_ip("shop/server").await?, 80).into();
    mesh.answers(&caller, to, "server", "/ip").await?;
    Ok(Shop { mesh, caller, to })
}
