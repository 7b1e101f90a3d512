use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::paths::LabRoot;

/// Time a lab may take to become ready unless told otherwise.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Nodes of a lab unless told otherwise.
const NODES: u8 = 2;
/// Most nodes: the address plan gives each a `/24`.
pub(crate) const MAX_NODES: u8 = 32;

/// What to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabConfig {
    /// Name of the lab: a DNS label of at most 40 characters.
    pub name: String,
    /// Directories (or files) of YAML: the lab's "API"; editing a file there is `kubectl apply`.
    pub objects: Vec<PathBuf>,
    /// Number of nodes, 1 to 32; they are named `node-1`, `node-2` and so on.
    pub nodes: u8,
    /// Folder with `isobard`, `isobar-cni`, `ztunnel`, `waypoint` and `isobar-samples`; by default
    /// the folder of the running program.
    pub binaries: Option<PathBuf>,
    /// Programs from elsewhere, by component (`ztunnel-node-2`) or program name (`ztunnel`); the
    /// component's entry wins.
    #[serde(default)]
    pub programs: BTreeMap<String, PathBuf>,
    /// Program that is etcd and kube-apiserver (`make setup-kube`): the lab's objects are then in a real
    /// API server, which `kubectl` reaches in the lab's outer network, and folders are not read.
    #[serde(default)]
    pub api_server: Option<PathBuf>,
    /// Nodes and pods have IPv6 addresses beside the others. Services have none by themselves, and
    /// NetworkPolicies are kept to for IPv4 only.
    #[serde(default)]
    pub dual_stack: bool,
    /// False: only the Kubernetes parts (pods, services, DNS, NetworkPolicy), no mesh.
    pub mesh: bool,
    /// The program that becomes the supervisor.
    pub launcher: Launcher,
    /// Where labs keep their state; by default [`LabRoot::from_env`].
    pub root: LabRoot,
    /// How long [`crate::up`] waits for everything to be ready.
    pub ready_timeout: Duration,
    /// Further environment of `isobard`, `isobar-cni`, `ztunnel` and waypoints, for example
    /// `RUST_LOG` or `SSLKEYLOGFILE`.
    pub component_env: BTreeMap<String, String>,
    /// Further environment of one program only, by program name (`ztunnel`, `waypoint`, …).
    pub program_env: BTreeMap<String, BTreeMap<String, String>>,
    /// Further arguments by program name.
    pub program_args: BTreeMap<String, Vec<String>>,
}

/// The program a lab is started with: it must call [`crate::supervisor_main`] first thing in `main`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launcher {
    /// Path of the program.
    pub program: PathBuf,
}

impl Launcher {
    /// The running program itself.
    ///
    /// # Errors
    /// When the system does not tell the path of the running program.
    pub fn current() -> Result<Self, LabError> {
        let program = std::env::current_exe().map_err(|source| LabError::Io {
            doing: "finding the path of the running program".to_owned(),
            source,
        })?;
        Ok(Self { program })
    }
}

impl LabConfig {
    /// A lab called `name` over `objects`, two nodes, mesh on, started by the running program.
    ///
    /// # Errors
    /// When the path of the running program is not known.
    pub fn new(name: impl Into<String>, objects: Vec<PathBuf>) -> Result<Self, LabError> {
        Ok(Self {
            name: name.into(),
            objects,
            nodes: NODES,
            binaries: None,
            programs: BTreeMap::new(),
            api_server: None,
            dual_stack: false,
            mesh: true,
            launcher: Launcher::current()?,
            root: LabRoot::from_env(),
            ready_timeout: READY_TIMEOUT,
            component_env: BTreeMap::new(),
            program_env: BTreeMap::new(),
            program_args: BTreeMap::new(),
        })
    }

    /// Checks what can be checked before anything is started, and makes paths absolute.
    pub(crate) fn normalise(mut self) -> Result<Self, LabError> {
        check_name(&self.name)?;
        if self.nodes == 0 || self.nodes > MAX_NODES {
            return Err(LabError::NodeCount {
                asked: self.nodes,
                most: MAX_NODES,
            });
        }
        for path in &mut self.objects {
            *path = absolute(path)?;
        }
        self.launcher.program = absolute(&self.launcher.program)?;
        for program in self.programs.values_mut().chain(&mut self.api_server) {
            *program = absolute(program)?;
        }
        let binaries = match self.binaries.take() {
            Some(folder) => absolute(&folder)?,
            None => self
                .launcher
                .program
                .parent()
                .map(Into::into)
                .unwrap_or_default(),
        };
        self.binaries = Some(binaries);
        Ok(self)
    }
}

/// A lab's name is part of paths and process titles, so only a DNS label will do.
pub(crate) fn check_name(name: &str) -> Result<(), LabError> {
    let fits = !name.is_empty()
        && name.len() <= 40
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        Ok(())
    } else {
        Err(LabError::Name {
            name: name.to_owned(),
        })
    }
}

fn absolute(path: &std::path::Path) -> Result<PathBuf, LabError> {
    std::fs::canonicalize(path).map_err(|source| LabError::Io {
        doing: format!("looking for {}", path.display()),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "demo", "my-lab-2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(41);
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", &long] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
