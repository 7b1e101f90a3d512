use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A place in a lab where something can run or be reached from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A pod: its name, the name of its Deployment or its label `app`, or `namespace/` and one of
    /// these.
    Pod(String),
    /// A node's own namespace.
    Node(String),
    /// The network between the nodes, where the control plane and the cluster's DNS run.
    Outer,
}

impl Target {
    /// A pod by its own or its Deployment's name.
    #[must_use]
    pub fn pod(name: impl Into<String>) -> Self {
        Self::Pod(name.into())
    }

    /// A node by its name.
    #[must_use]
    pub fn node(name: impl Into<String>) -> Self {
        Self::Node(name.into())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => f.write_str(name),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Outer => f.write_str("outer"),
        }
    }
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    /// `node:NAME` is a node, `outer` (or `network`) the network, all else a pod.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("node:") {
            Some(node) => Self::node(node),
            None if text == "outer" || text == "network" => Self::Outer,
            None => Self::pod(text),
        })
    }
}

/// What the supervisor reports while it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Progress {
    /// A step has begun.
    Step {
        /// What is being done.
        text: String,
    },
    /// Something a user should know, which does not end the start.
    Warning {
        /// What.
        text: String,
    },
    /// A pod changed.
    Pod {
        /// The pod as it is now.
        pod: PodStatus,
    },
    /// A component changed.
    Component {
        /// The component as it is now.
        component: ComponentStatus,
    },
    /// Everything is ready.
    Ready {
        /// The lab.
        status: LabStatus,
    },
    /// The start failed; the supervisor ends.
    Failed {
        /// Why.
        why: String,
        /// Last lines of the log that tells most.
        tail: Vec<String>,
    },
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum PodPhase {
    /// Namespaces, addresses and enrolment are being prepared, or the pod cannot start.
    Pending,
    /// Its processes run.
    Running,
    /// Its process ended well and is not restarted.
    Succeeded,
    /// Its process failed and is not restarted.
    Failed,
}

impl fmt::Display for PodPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Kubernetes uid.
    pub uid: String,
    /// Node it runs on; empty until it is scheduled.
    pub node: String,
    /// Address; none until it has a sandbox.
    pub ip: Option<IpAddr>,
    /// Phase.
    pub phase: PodPhase,
    /// True when every container passes its readiness probe.
    pub ready: bool,
    /// Restarts of its containers since the pod was made.
    pub restarts: u32,
    /// Images of its containers.
    pub images: Vec<String>,
    /// `enrolled` or `plain`, as the node agent says; empty before, or without a mesh.
    pub mesh: String,
    /// Why it is not ready, if it is not.
    pub message: String,
}

/// State of a mesh component's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentState {
    /// Started, not ready yet.
    Starting,
    /// Ready.
    Ready,
    /// Ended by itself; started again after a wait.
    Crashed,
    /// Stopped on request.
    Stopped,
}

impl fmt::Display for ComponentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
        })
    }
}

/// One process of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// `isobard`, `isobar-cni-NODE` or `ztunnel-NODE`.
    pub name: String,
    /// State.
    pub state: ComponentState,
    /// Process id inside the lab's process namespace.
    pub pid: Option<u32>,
    /// Times it was started again after it had ended by itself.
    pub restarts: u32,
    /// What happened last, in words; empty if nothing did.
    pub note: String,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Address on the network between nodes.
    pub address: IpAddr,
    /// Addresses of its pods.
    pub pod_cidr: String,
}

/// One Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Address; none for a headless Service.
    pub cluster_ip: Option<IpAddr>,
    /// Ports, as `kubectl get service` shows them.
    pub ports: Vec<String>,
    /// Ready pods behind it.
    pub endpoints: Vec<IpAddr>,
}

/// A running lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabStatus {
    /// Name.
    pub name: String,
    /// True when every component and pod is ready.
    pub ready: bool,
    /// True when it runs the mesh, not only the Kubernetes parts.
    pub mesh: bool,
    /// Folders and files that are its "API".
    pub objects: Vec<PathBuf>,
    /// State folder.
    pub state_dir: PathBuf,
    /// Nodes, by name.
    pub nodes: Vec<NodeStatus>,
    /// Processes of the mesh.
    pub components: Vec<ComponentStatus>,
    /// Pods, by namespace and name.
    pub pods: Vec<PodStatus>,
    /// Services, by namespace and name.
    pub services: Vec<ServiceStatus>,
    /// Problems of the lab's own parts with the objects, in words.
    pub findings: Vec<String>,
}

/// One entry of the list of labs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabSummary {
    /// Name.
    pub name: String,
    /// False when only the state of a lab that ended is left; `down` removes it.
    pub running: bool,
    /// Supervisor as the host numbers it, if it runs.
    pub pid: Option<i32>,
    /// State folder.
    pub state_dir: PathBuf,
}

/// What a client asks of the supervisor: one message, descriptors beside it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    Status,
    /// Runs `argv`; descriptors: stdin, stdout, stderr. Answers [`Answer::Exited`]; the command is
    /// killed if the connection closes before.
    Exec {
        target: Target,
        argv: Vec<String>,
        env: Vec<(String, String)>,
    },
    /// Answers [`Answer::Done`] with a connected descriptor.
    Dial {
        target: Target,
        to: SocketAddr,
        timeout_ms: u64,
    },
    /// Answers [`Answer::Done`] with the namespace's descriptor.
    Netns {
        target: Target,
    },
    /// Path of a log inside the state folder.
    LogPath {
        target: String,
    },
    /// SIGKILL (or SIGTERM if `gentle`) and keep it down until started.
    Stop {
        component: String,
        gentle: bool,
    },
    Start {
        component: String,
    },
    /// Ends a pod's processes as a crash would; they are restarted.
    KillPod {
        pod: String,
    },
}

/// The supervisor's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done,
    Status { status: Box<LabStatus> },
    Exited { code: i32 },
    Path { path: PathBuf },
    Refused { message: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_as_they_are_written() {
        for target in [
            Target::pod("shop/cart"),
            Target::node("node-1"),
            Target::Outer,
        ] {
            assert_eq!(target.to_string().parse(), Ok(target));
        }
    }
}
