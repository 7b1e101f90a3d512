use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// Longest path of a lab's folder: socket names below it must fit into 108 bytes.
const LONGEST: usize = 70;

/// The folder that holds the state of all labs of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabRoot(PathBuf);

impl LabRoot {
    /// `$ISOBAR_LAB_ROOT`; else `/run/isobar/lab` for root, and for others
    /// `$XDG_RUNTIME_DIR/isobar/lab` or `/tmp/isobar-UID/lab`.
    #[must_use]
    pub fn from_env() -> Self {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        if let Some(root) = set("ISOBAR_LAB_ROOT") {
            return Self(root.into());
        }
        let user = nix::unistd::geteuid();
        if user.is_root() {
            return Self("/run/isobar/lab".into());
        }
        let base = match set("XDG_RUNTIME_DIR") {
            Some(dir) => PathBuf::from(dir).join("isobar"),
            None => PathBuf::from(format!("/tmp/isobar-{user}")),
        };
        Self(base.join("lab"))
    }

    /// A folder of the caller's choice.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the lab called `name` keeps its state.
    #[must_use]
    pub fn lab(&self, name: &str) -> LabPaths {
        LabPaths(self.0.join(name))
    }
}

/// The places inside one lab's state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabPaths(PathBuf);

impl LabPaths {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The folder with the state of all labs.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.0.parent().unwrap_or(&self.0)
    }

    /// The supervisor's control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("lab.sock")
    }

    /// The configuration the lab was started with.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// Who the supervisor is: host process id and start time.
    #[must_use]
    pub fn supervisor(&self) -> PathBuf {
        self.0.join("supervisor.json")
    }

    /// The overlay root; its subfolders each have one writer.
    #[must_use]
    pub fn overlay(&self) -> PathBuf {
        self.0.join("objects")
    }

    /// State of the control plane: its CA and root certificate.
    #[must_use]
    pub fn control_plane(&self) -> PathBuf {
        self.0.join("control-plane")
    }

    /// The mesh's root certificate, written by the control plane.
    #[must_use]
    pub fn root_cert(&self) -> PathBuf {
        self.control_plane().join("root-cert.pem")
    }

    /// Keys, kubeconfigs and store of the lab's API server, where it has one.
    #[must_use]
    pub fn kubernetes(&self) -> PathBuf {
        self.0.join("kubernetes")
    }

    /// Public keys of the lab's service account tokens.
    #[must_use]
    pub fn token_keys(&self) -> PathBuf {
        self.0.join("token-keys.json")
    }

    /// State of one node.
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.0.join("nodes").join(node)
    }

    /// Sandbox records of a node's pods.
    #[must_use]
    pub fn pods(&self, node: &str) -> PathBuf {
        self.node(node).join("pods")
    }

    /// Socket between a node's agent and its proxy.
    #[must_use]
    pub fn zds(&self, node: &str) -> PathBuf {
        self.node(node).join("ztunnel.sock")
    }

    /// State of one waypoint pod.
    #[must_use]
    pub fn waypoint(&self, uid: &str) -> PathBuf {
        self.0.join("waypoints").join(uid)
    }

    /// Files mounted into a pod.
    #[must_use]
    pub fn pod_files(&self, uid: &str) -> PathBuf {
        self.0.join("pods").join(uid)
    }

    /// Programs every pod finds in its `PATH`.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// Logs: `supervisor.log`, one file a component, `pod-NAMESPACE-NAME.log` a pod.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Log of a component or of the supervisor.
    #[must_use]
    pub fn component_log(&self, component: &str) -> PathBuf {
        self.logs().join(format!("{component}.log"))
    }

    /// Log of a pod.
    #[must_use]
    pub fn pod_log(&self, namespace: &str, pod: &str) -> PathBuf {
        self.logs().join(format!("pod-{namespace}-{pod}.log"))
    }

    pub(crate) fn check_length(&self) -> Result<(), LabError> {
        if self.0.as_os_str().len() > LONGEST {
            return Err(LabError::PathTooLong {
                path: self.0.clone(),
            });
        }
        Ok(())
    }
}
