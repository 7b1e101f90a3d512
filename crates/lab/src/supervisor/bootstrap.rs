//! A lab whose objects are in a real API server: starts it and puts into it what a cluster has before
//! anybody uses it; and on each node, what the API server asks when somebody wants into a pod.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_chart::{Chart, Manifest, Release, Values};
use isobar_kubernetes::Cluster;
use isobar_runtime::Scope;
use isobar_types::DEFAULT_ROOT_NAMESPACE;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::components::PROXY_ACCOUNT;
use super::step;
use crate::api_server::ApiServerPlan;
use crate::component::{Component, ComponentPlan, ReadySign};
use crate::config::LabConfig;
use crate::error::LabError;
use crate::kubelet::{COMPONENT, PORT};
use crate::paths::LabPaths;
use crate::place::Place;
use crate::plan::NETWORK_ADDRESS;
use crate::pod::NodeHandle;
use crate::stage::with_causes;

/// Charts that the mesh's parts have their accounts and rights from.
const CHARTS: [&str; 2] = ["control-plane", "node"];
/// Parts that speak to the API server; accounts of that name.
const PARTS: [&str; 2] = [CONTROL_PLANE, "isobar-cni"];
/// The control plane's pod and account.
const CONTROL_PLANE: &str = "isobard";
/// Ports of the API server and its store.
const PORTS: (u16, u16, u16) = (6443, 2379, 2380);
/// Life of the parts' tokens, in seconds; a lab that is up for longer needs to be started again.
const LIFE: i64 = 30 * 24 * 3600;
/// Time the API server may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at it.
const LOOK: Duration = Duration::from_millis(100);

/// The plan of the lab's API server.
pub(super) fn plan(tools: &Path, paths: &LabPaths) -> ApiServerPlan {
    ApiServerPlan {
        tools: tools.to_owned(),
        folder: paths.kubernetes(),
        ip: NETWORK_ADDRESS.into(),
        port: PORTS.0,
        store: PORTS.1,
        peers: PORTS.2,
    }
}

/// Starts the API server, if the lab is to have one, and waits until it takes objects.
pub(super) async fn api_server(
    config: &LabConfig,
    paths: &LabPaths,
    outer: &Place,
    nodes: &[Arc<NodeHandle>],
    scope: &Scope,
) -> Result<(Option<Cluster>, Vec<Component>), LabError> {
    let Some(tools) = &config.api_server else {
        return Ok((None, Vec::new()));
    };
    step("starting the API server");
    let plan = plan(tools, paths);
    let addresses: Vec<IpAddr> = nodes.iter().map(|n| n.plan.address().into()).collect();
    plan.write_keys(&addresses)?;
    let component = |name: &str, argv: Vec<String>, at: SocketAddr| ComponentPlan {
        name: name.to_owned(),
        place: outer.clone(),
        argv,
        env: Vec::new(),
        log: paths.component_log(name),
        ready: ReadySign::FileAndPort {
            file: plan.folder.join("ca.crt"),
            at,
        },
    };
    let store = (Ipv4Addr::LOCALHOST, plan.store).into();
    let server = (NETWORK_ADDRESS, plan.port).into();
    let plans = [
        component("etcd", plan.store_argv(), store),
        component("kube-apiserver", plan.server_argv(), server),
    ];
    let kubelets = nodes.iter().map(|node| kubelet(&plan, paths, node));
    let started = plans.into_iter().chain(kubelets);
    let started = started.map(|one| Component::start(one, scope)).collect();
    let refused = |message: String| LabError::Refused { message };
    let connected = Cluster::from_kubeconfig(&plan.admin()?).await;
    let cluster = connected.map_err(|error| refused(error.to_string()))?;
    let begun = Instant::now();
    while let Err(error) = furnish(&cluster, &plan, outer, nodes).await {
        if begun.elapsed() > PATIENCE {
            return Err(refused(format!("the API server: {error}")));
        }
        sleep(LOOK).await;
    }
    Ok((Some(cluster), started))
}

/// What the API server asks on a node for ports, commands and logs of its pods. It asks the lab.
fn kubelet(plan: &ApiServerPlan, paths: &LabPaths, node: &NodeHandle) -> ComponentPlan {
    let at = SocketAddr::from((node.plan.address(), PORT));
    let own = &node.plan.name;
    let places = [
        (CONTROL_PLANE.to_owned(), "outer".to_owned()),
        (proxy_pod(own), format!("node:{own}")),
    ];
    let places = places.map(|(pod, place)| (format!("{DEFAULT_ROOT_NAMESPACE}/{pod}"), place));
    let name = format!("kubelet-{own}");
    ComponentPlan {
        place: node.place.clone(),
        argv: plan.kubelet_argv(at, Some(&paths.socket()), &places),
        env: Vec::new(),
        log: paths.component_log(&name),
        ready: ReadySign::FileAndPort {
            file: plan.folder.join("kubelet.crt"),
            at,
        },
        name,
    }
}

/// Name of the pod that stands for a node's proxy.
fn proxy_pod(node: &str) -> String {
    format!("ztunnel-{node}")
}

/// The mesh's namespace, its accounts and what they may do, and the node proxies' pods, which their
/// tokens are bound to.
async fn furnish(
    cluster: &Cluster,
    plan: &ApiServerPlan,
    outer: &Place,
    nodes: &[Arc<NodeHandle>],
) -> Result<(), String> {
    let params = PostParams::default();
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    let namespace = json!({"metadata": {"name": DEFAULT_ROOT_NAMESPACE}});
    let namespace = serde_json::from_value(namespace).map_err(|error| error.to_string())?;
    made(namespaces.create(&params, &namespace).await.map(drop))?;
    let tools = plan.tools.to_string_lossy();
    let admin = plan.admin().map_err(|error| error.to_string())?;
    let admin = format!("--kubeconfig={}", admin.display());
    let cache = format!("--cache-dir={}", plan.folder.join("cache").display());
    let apply = [&*tools, "kubectl", &admin, &cache, "apply", "-f", "-"];
    let applied = outer.configure(&apply, &rights()?).await;
    applied.map_err(|error| with_causes(&error))?;
    give_tokens(cluster, plan).await?;
    // It runs beside the nodes; who wants its ports is sent to the first one's kubelet.
    if let Some(first) = nodes.first() {
        let at = (&*first.plan.name, NETWORK_ADDRESS);
        stand_for(cluster, CONTROL_PLANE, CONTROL_PLANE, at).await?;
    }
    for node in nodes {
        let (name, address) = (&*node.plan.name, node.plan.address());
        stand_for(cluster, &proxy_pod(name), PROXY_ACCOUNT, (name, address)).await?;
    }
    Ok(())
}

/// What the charts give the mesh's parts at the API server, which is all that they may do here.
fn rights() -> Result<String, String> {
    let is_about_rights =
        |one: &&Manifest| one.kind() == "ServiceAccount" || one.kind().contains("Role");
    let mut text = String::new();
    for name in CHARTS {
        let release = Release {
            name: name.to_owned(),
            namespace: DEFAULT_ROOT_NAMESPACE.to_owned(),
        };
        let chart = Chart::named(name);
        let rendered = chart.and_then(|chart| chart.render(&release, &Values::default()));
        let rendered = rendered.map_err(|error| error.to_string())?;
        text.extend(
            rendered
                .iter()
                .filter(is_about_rights)
                .map(Manifest::printed),
        );
    }
    Ok(text)
}

/// Being there already is no failure.
fn made(done: Result<(), kube::Error>) -> Result<(), String> {
    match done {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// Kubeconfigs of the mesh's parts.
async fn give_tokens(cluster: &Cluster, plan: &ApiServerPlan) -> Result<(), String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), DEFAULT_ROOT_NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(LIFE),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    for part in PARTS {
        let params = PostParams::default();
        let asked = accounts.create_token_request(part, &params, &request);
        let answer = asked.await.map_err(|error| error.to_string())?;
        let status = answer.status.ok_or("no token in the answer")?;
        let written = plan.kubeconfig(part, &status.token);
        written.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The pod that a process of the lab would be: tokens are bound to it, it is found by its label, and the
/// API server shows its pages through its address and its node's kubelet.
async fn stand_for(
    cluster: &Cluster,
    name: &str,
    part: &str,
    (node, address): (&str, Ipv4Addr),
) -> Result<(), String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), DEFAULT_ROOT_NAMESPACE);
    let pod = json!({
        "metadata": {
            "name": name,
            "annotations": {COMPONENT: part},
            "labels": {"app": part, "app.kubernetes.io/name": part},
        },
        "spec": {
            "nodeName": node,
            "hostNetwork": true,
            "serviceAccountName": part,
            "containers": [{"name": part, "image": format!("isobar/{part}")}],
        },
    });
    let pod = serde_json::from_value(pod).map_err(|error| error.to_string())?;
    made(pods.create(&PostParams::default(), &pod).await.map(drop))?;
    let status = json!({"status": {"phase": "Running", "podIP": address}});
    let (patch, params) = (Patch::Merge(status), PatchParams::default());
    let patched = pods.patch_status(name, &params, &patch).await;
    patched.map(drop).map_err(|error| error.to_string())
}
