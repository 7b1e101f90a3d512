//! Where proxies are, in a lab or in a cluster, and what they say.

use anyhow::{Context as _, bail};
use isobar_kubernetes::{Cluster, RunningPod};
use isobar_lab::{Lab, LabStatus, PodStatus, Target};
use isobar_types::labels;
use serde_json::Value;

use crate::arguments::Global;
use crate::lab_access::{ADMIN, chosen_mesh, page, qualified};
use crate::mesh_access::Mesh;
use crate::port_forward::admin_page;

const DUMP: &str = "/config_dump";
/// Label of the node proxies' pods.
const NODE_PROXY: &str = "app=ztunnel";

/// The proxies of a mesh.
pub(super) enum Proxies<'a> {
    Lab {
        lab: Lab,
        status: Box<LabStatus>,
    },
    Cluster {
        cluster: Cluster,
        /// Of the node proxies.
        namespace: String,
        global: &'a Global,
    },
}

impl<'a> Proxies<'a> {
    /// Those of the mesh that the command line means.
    pub(super) async fn of(global: &'a Global) -> anyhow::Result<Self> {
        if !global.means_cluster() {
            let (lab, status) = chosen_mesh(global.lab.as_deref()).await?;
            let status = Box::new(status);
            return Ok(Self::Lab { lab, status });
        }
        match Mesh::chosen(global).await? {
            Mesh::Cluster {
                cluster, namespace, ..
            } => Ok(Self::Cluster {
                cluster,
                namespace,
                global,
            }),
            Mesh::Lab { .. } => bail!("no cluster is meant"),
        }
    }

    /// The dump of a node's proxy: of a node, or of a pod's.
    pub(super) async fn of_node(
        &self,
        name: &str,
        namespace: Option<&str>,
    ) -> anyhow::Result<Value> {
        if let Self::Cluster {
            cluster,
            namespace: mesh,
            ..
        } = self
            && namespace.is_none()
        {
            let bare = name.strip_prefix("node:").unwrap_or(name);
            let all = cluster.find_pods(Some(mesh), NODE_PROXY, "").await?;
            let mut own = all
                .iter()
                .filter(|pod| pod.node == bare || pod.name == bare);
            if let Some(pod) = own.next() {
                return self.dump(pod).await;
            }
        }
        self.of_pod(name, namespace).await
    }

    /// The dump of the proxy of a pod's node. In a lab a node will do as well.
    pub(super) async fn of_pod(
        &self,
        name: &str,
        namespace: Option<&str>,
    ) -> anyhow::Result<Value> {
        let (cluster, mesh) = match self {
            Self::Lab { lab, status } => {
                let node = node_of(status, name, namespace)?;
                return page(lab, Target::node(node), ADMIN, DUMP).await;
            }
            Self::Cluster {
                cluster,
                namespace: mesh,
                ..
            } => (cluster, mesh),
        };
        let full = qualified(namespace, name);
        let (place, bare) = split(&full);
        let pods = cluster
            .find_pods(place, "", &format!("metadata.name={bare}"))
            .await?;
        let node = match &pods[..] {
            [] => bail!("{full} is neither a node with a node proxy nor a pod that runs"),
            [one] => &one.node,
            _ => bail!("several namespaces have a pod {bare}; choose one with -n"),
        };
        let fields = format!("spec.nodeName={node}");
        let own = cluster.find_pods(Some(mesh), NODE_PROXY, &fields).await?;
        let own = own.first().with_context(|| {
            format!("no node proxy runs on {node}, the node of {full}: no pod of namespace {mesh} has label {NODE_PROXY}")
        })?;
        self.dump(own).await
    }

    /// The dumps of all node proxies.
    pub(super) async fn of_every_node(&self) -> anyhow::Result<Vec<Value>> {
        let mut dumps = Vec::new();
        match self {
            Self::Lab { lab, status } => {
                for node in &status.nodes {
                    let node = Target::node(node.name.clone());
                    dumps.push(page(lab, node, ADMIN, DUMP).await?);
                }
            }
            Self::Cluster {
                cluster, namespace, ..
            } => {
                for pod in cluster.find_pods(Some(namespace), NODE_PROXY, "").await? {
                    dumps.push(self.dump(&pod).await?);
                }
                if dumps.is_empty() {
                    bail!(
                        "no node proxy runs in namespace {namespace}: no running pod has label \
                         {NODE_PROXY}"
                    );
                }
            }
        }
        Ok(dumps)
    }

    /// The dump of a waypoint: by its Gateway, or by its pod.
    pub(super) async fn of_waypoint(
        &self,
        name: &str,
        namespace: Option<&str>,
    ) -> anyhow::Result<Value> {
        let full = qualified(namespace, name);
        let cluster = match self {
            Self::Lab { lab, status } => {
                let pod = waypoint_pod(status, &full)?;
                return page(lab, Target::pod(pod), ADMIN, DUMP).await;
            }
            Self::Cluster { cluster, .. } => cluster,
        };
        let (place, bare) = split(&full);
        let of_gateway = format!("{}={bare}", labels::GATEWAY_NAME);
        let mut pods = cluster.find_pods(place, &of_gateway, "").await?;
        if pods.is_empty() {
            let by_name = format!("metadata.name={bare}");
            pods = cluster
                .find_pods(place, labels::GATEWAY_NAME, &by_name)
                .await?;
        }
        let Some(pod) = pods.first() else {
            bail!("no pod of waypoint {full} runs; `isobar waypoint list` shows them all");
        };
        if pods.iter().any(|other| other.namespace != pod.namespace) {
            bail!("several namespaces have a waypoint {bare}; choose one with -n");
        }
        self.dump(pod).await
    }

    async fn dump(&self, pod: &RunningPod) -> anyhow::Result<Value> {
        let Self::Cluster { global, .. } = self else {
            bail!("no cluster is meant");
        };
        let text = admin_page(global, &pod.namespace, &pod.name, DUMP).await?;
        Ok(serde_json::from_str(&text)?)
    }
}

fn split(full: &str) -> (Option<&str>, &str) {
    match full.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, full),
    }
}

/// The node that is meant: by its own name, or as that of a pod.
pub(in crate::commands) fn node_of(
    status: &LabStatus,
    name: &str,
    namespace: Option<&str>,
) -> anyhow::Result<String> {
    let bare = name
        .strip_prefix("node:")
        .or_else(|| name.strip_prefix("ztunnel-"))
        .unwrap_or(name);
    if status.nodes.iter().any(|node| node.name == bare) {
        return Ok(bare.to_owned());
    }
    let name = qualified(namespace, name);
    let of_pod =
        |pod: &&PodStatus| pod.name == name || format!("{}/{}", pod.namespace, pod.name) == name;
    let mut pods = status.pods.iter().filter(of_pod);
    match (pods.next(), pods.next()) {
        (Some(pod), None) => return Ok(pod.node.clone()),
        (Some(_), Some(_)) => bail!("several namespaces have a pod {name}; choose one with -n"),
        (None, _) => {}
    }
    let nodes: Vec<_> = status.nodes.iter().map(|node| &*node.name).collect();
    bail!(
        "{name} is neither a node ({}) nor a pod; `isobar lab status --lab {}` lists them",
        nodes.join(", "),
        status.name
    )
}

/// The pod that is meant: by its own name, or a ready one of the Gateway by that name.
pub(in crate::commands) fn waypoint_pod(status: &LabStatus, name: &str) -> anyhow::Result<String> {
    let (namespace, bare) = match name.split_once('/') {
        Some((namespace, bare)) => (Some(namespace), bare),
        None => (None, name),
    };
    let prefix = format!("{bare}-");
    let mut found: Vec<_> = status
        .pods
        .iter()
        .filter(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace))
        .filter(|pod| {
            pod.images
                .iter()
                .any(|image| image.contains("isobar/waypoint"))
        })
        .filter(|pod| pod.name == bare || pod.name.starts_with(&prefix) && pod.ready)
        .collect();
    // A Gateway `a` has pods `a-HASH-ID`; one called `a-b` begins the same way but is longer.
    found.sort_by_key(|pod| (pod.name.len(), pod.name.clone()));
    match found.first() {
        Some(pod) => Ok(format!("{}/{}", pod.namespace, pod.name)),
        None => bail!(
            "no waypoint {name} is ready; `isobar waypoint list --lab {}` shows them all",
            status.name
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_by_its_name_or_by_a_pod() {
        let pod = |namespace: &str, node: &str| {
            json!({"namespace": namespace, "name": "web", "uid": "u", "node": node, "ip": null,
                "phase": "Running", "ready": true, "restarts": 0, "images": [], "mesh": "",
                "message": ""})
        };
        let node = |name: &str| json!({"name": name, "address": "172.30.0.11", "pod_cidr": ""});
        let status: LabStatus = serde_json::from_value(json!({"name": "demo", "ready": true,
            "mesh": true, "objects": [], "state_dir": "/", "components": [], "findings": [],
            "services": [], "nodes": [node("node-1"), node("node-2")],
            "pods": [pod("a", "node-1"), pod("b", "node-2")]}))
        .unwrap();
        let of =
            |name: &str, namespace| node_of(&status, name, namespace).map_err(|e| e.to_string());
        assert_eq!(of("node:node-2", Some("a")).as_deref(), Ok("node-2"));
        assert_eq!(of("web", Some("b")).as_deref(), Ok("node-2"));
        assert_eq!(of("a/web", None).as_deref(), Ok("node-1"));
        assert!(of("web", None).unwrap_err().contains("-n"));
        assert!(
            of("web", Some("c"))
                .unwrap_err()
                .contains("isobar lab status --lab demo")
        );
    }
}
