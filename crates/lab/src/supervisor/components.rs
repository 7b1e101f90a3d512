use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use isobar_objects::uid_from;
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_types::{
    DEFAULT_CLUSTER_ID, DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN, labels, ports,
};

use crate::component::{Component, ComponentPlan, ReadySign};
use crate::config::LabConfig;
use crate::error::LabError;
use crate::paths::LabPaths;
use crate::place::Place;
use crate::plan::NETWORK_ADDRESS;
use crate::pod::NodeHandle;
use crate::tokens::{ISSUER, Subject, Tokens};

/// Where a node's agent says that it is ready.
const AGENT_STATUS: u16 = 15030;
/// Service account of the node proxies, which may ask for certificates of their node's pods.
pub(super) const PROXY_ACCOUNT: &str = "ztunnel";

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((NETWORK_ADDRESS, port))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Starts the control plane, and on every node the agent and the proxy.
pub(super) fn start(
    config: &LabConfig,
    paths: &LabPaths,
    outer: &Place,
    nodes: &[Arc<NodeHandle>],
    tokens: &Tokens,
    scope: &Scope,
) -> Result<Vec<Component>, LabError> {
    std::fs::create_dir_all(paths.control_plane())
        .map_err(LabError::io("making the control plane's folder"))?;
    // In place before any proxy starts, as a mounted root is: some proxies look for it only once.
    Authority::load_or_create(&paths.control_plane()).map_err(|error| LabError::Refused {
        message: format!("making the mesh's root certificate: {error}"),
    })?;
    let mut started = vec![Component::start(control_plane(config, paths, outer), scope)];
    for node in nodes {
        let agent = agent(config, paths, node);
        started.push(Component::start(agent, scope));
        let proxy = proxy(config, paths, node, tokens)?;
        started.push(Component::start(proxy, scope));
    }
    Ok(started)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Path of the program `name`, as component `component`.
fn program(config: &LabConfig, component: &str, name: &str) -> String {
    let given = config.programs.get(component);
    if let Some(path) = given.or_else(|| config.programs.get(name)) {
        return text(path);
    }
    let folder = config.binaries.clone().unwrap_or_default();
    text(&folder.join(name))
}

/// The program `name` and its arguments, with those the configuration adds.
fn argv(config: &LabConfig, component: &str, name: &str, args: Vec<String>) -> Vec<String> {
    let extra = config.program_args.get(name).cloned().unwrap_or_default();
    [vec![program(config, component, name)], args, extra].concat()
}

/// Environment of a program, with what the configuration adds.
fn env(config: &LabConfig, name: &str, own: &[(&str, String)]) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = own
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    let more = config.program_env.get(name).into_iter().flatten();
    for (key, value) in config.component_env.iter().chain(more) {
        env.push((key.clone(), value.clone()));
    }
    env
}

fn object_args(config: &LabConfig, paths: &LabPaths) -> Vec<String> {
    if config.api_server.is_some() {
        return vec!["--kubernetes".to_owned()];
    }
    let mut args = Vec::new();
    for folder in &config.objects {
        args.extend(["--objects".to_owned(), text(folder)]);
    }
    args.extend(["--overlay".to_owned(), text(&paths.overlay())]);
    args
}

fn control_plane(config: &LabConfig, paths: &LabPaths, outer: &Place) -> ComponentPlan {
    let mut args = object_args(config, paths);
    let pairs = [
        ("--state-dir", text(&paths.control_plane())),
        ("--listen", address(ports::XDS).to_string()),
        (
            "--monitoring",
            // On the loopback as well, where forwarded ports end.
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, ports::CONTROL_PLANE_MONITORING)).to_string(),
        ),
        ("--tls-san", NETWORK_ADDRESS.to_string()),
        ("--trust-domain", DEFAULT_TRUST_DOMAIN.to_owned()),
        ("--cluster-id", DEFAULT_CLUSTER_ID.to_owned()),
        ("--root-namespace", DEFAULT_ROOT_NAMESPACE.to_owned()),
        ("--waypoint-class", labels::WAYPOINT_CLASS.to_owned()),
        ("--waypoint-class", labels::ISTIO_WAYPOINT_CLASS.to_owned()),
    ];
    let keys = [
        ("--token-keys", text(&paths.token_keys())),
        ("--token-issuer", ISSUER.to_owned()),
    ];
    let keys = keys.into_iter().filter(|_| config.api_server.is_none());
    for (flag, value) in pairs.into_iter().chain(keys) {
        args.extend([flag.to_owned(), value]);
    }
    ComponentPlan {
        name: "isobard".to_owned(),
        place: outer.clone(),
        argv: argv(config, "isobard", "isobard", args),
        env: env(config, "isobard", &cluster_env(config, paths, "isobard")),
        log: paths.component_log("isobard"),
        ready: ReadySign::FileAndPort {
            file: paths.root_cert(),
            at: address(ports::XDS),
        },
    }
}

fn agent(config: &LabConfig, paths: &LabPaths, node: &NodeHandle) -> ComponentPlan {
    let name = &node.plan.name;
    let mut args = object_args(config, paths);
    let pairs = [
        ("--node", name.clone()),
        ("--pods-dir", text(&paths.pods(name))),
        ("--zds-socket", text(&paths.zds(name))),
        ("--state-dir", text(&paths.node(name).join("agent"))),
        ("--status-addr", loopback(AGENT_STATUS).to_string()),
    ];
    for (flag, value) in pairs {
        args.extend([flag.to_owned(), value]);
    }
    let component = format!("isobar-cni-{name}");
    ComponentPlan {
        place: node.place.clone(),
        argv: argv(config, &component, "isobar-cni", args),
        env: env(
            config,
            "isobar-cni",
            &cluster_env(config, paths, "isobar-cni"),
        ),
        log: paths.component_log(&component),
        ready: ReadySign::Http {
            at: loopback(AGENT_STATUS),
            path: "/healthz/ready",
        },
        name: component,
    }
}

fn proxy(
    config: &LabConfig,
    paths: &LabPaths,
    node: &NodeHandle,
    tokens: &Tokens,
) -> Result<ComponentPlan, LabError> {
    let name = &node.plan.name;
    let component = format!("ztunnel-{name}");
    let token = paths.node(name).join("token");
    let subject = Subject {
        namespace: DEFAULT_ROOT_NAMESPACE.to_owned(),
        account: PROXY_ACCOUNT.to_owned(),
        pod: component.clone(),
        pod_uid: uid_from(&["Pod", DEFAULT_ROOT_NAMESPACE, &component]),
        node: name.clone(),
    };
    tokens.write(&token, subject)?;
    let mut own = mesh_env(paths);
    own.extend([
        ("PROXY_MODE", "shared".to_owned()),
        ("NODE_NAME", name.clone()),
        ("AUTH_TOKEN", text(&token)),
        ("POD_NAME", component.clone()),
        ("POD_NAMESPACE", DEFAULT_ROOT_NAMESPACE.to_owned()),
        ("SERVICE_ACCOUNT", PROXY_ACCOUNT.to_owned()),
        ("INSTANCE_IP", node.plan.address().to_string()),
        ("INPOD_UDS", text(&paths.zds(name))),
        ("ISOBAR_STATE_DIR", text(&paths.node(name).join("state"))),
    ]);
    Ok(ComponentPlan {
        place: node.place.clone(),
        argv: argv(
            config,
            &component,
            "ztunnel",
            vec!["proxy".into(), "ztunnel".into()],
        ),
        env: env(config, "ztunnel", &own),
        log: paths.component_log(&component),
        ready: ReadySign::Http {
            at: loopback(ports::READINESS),
            path: "/healthz/ready",
        },
        name: component,
    })
}

/// How a part finds the API server and who it is there, where the lab has one.
fn cluster_env(config: &LabConfig, paths: &LabPaths, part: &str) -> Vec<(&'static str, String)> {
    let file = paths.kubernetes().join(format!("{part}.kubeconfig"));
    let has_one = config.api_server.is_some();
    has_one
        .then(|| ("KUBECONFIG", text(&file)))
        .into_iter()
        .collect()
}

/// How proxies find and trust the control plane.
fn mesh_env(paths: &LabPaths) -> Vec<(&'static str, String)> {
    let control_plane = format!("https://{}", address(ports::XDS));
    let root = text(&paths.root_cert());
    vec![
        ("XDS_ADDRESS", control_plane.clone()),
        ("CA_ADDRESS", control_plane),
        ("XDS_ROOT_CA", root.clone()),
        ("CA_ROOT_CA", root),
        ("CLUSTER_ID", DEFAULT_CLUSTER_ID.to_owned()),
        ("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN.to_owned()),
        ("RUST_LOG", "info".to_owned()),
    ]
}

/// Environment of every waypoint; its identity comes with its pod.
pub(super) fn waypoint_env(config: &LabConfig, paths: &LabPaths) -> Vec<(String, String)> {
    env(config, "waypoint", &mesh_env(paths))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_from_elsewhere() {
        let mut config = LabConfig::new("lab", Vec::new()).unwrap();
        config.binaries = Some("/ours".into());
        let path = |config: &LabConfig| program(config, "ztunnel-node-2", "ztunnel");
        assert_eq!(path(&config), "/ours/ztunnel");
        config.programs.insert("ztunnel".into(), "/peer/z".into());
        assert_eq!(path(&config), "/peer/z");
        let one = ("ztunnel-node-2".into(), "/new/z".into());
        config.programs.extend([one]);
        assert_eq!(path(&config), "/new/z");
        assert_eq!(program(&config, "ztunnel-node-1", "ztunnel"), "/peer/z");
    }
}
