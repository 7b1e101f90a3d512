//! What the runtime writes to the plugin's standard input.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CniError, Code, PODS, RUN_DIR, SOCKET, VERSIONS};

/// Largest configuration that is read, in bytes: a previous result is a few kilobytes.
pub const CONFIG_MAX: u64 = 4 << 20;
/// Key of the containers that are left, for the verb GC.
pub const VALID: &str = "cni.dev/valid-attachments";
/// Longest that a pod may be made to wait.
const WAIT_MAX: f64 = 120.0;

/// Pods that may start while the agent is away: the agent itself, where its pod has a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exempt {
    /// Namespace.
    pub namespace: String,
    /// How the pod's name begins.
    pub name_prefix: String,
}

/// The plugin's own part of a network's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Folder that is shared with the agent, as the host sees it.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
    /// Namespaces whose pods never take part: they start whether the agent is there or not.
    #[serde(default)]
    pub exclude_namespaces: BTreeSet<String>,
    /// Pods that start whether the agent is there or not.
    #[serde(default)]
    pub exempt: Vec<Exempt>,
    /// Seconds that a pod may wait for the agent before the runtime is told to try again.
    #[serde(default = "wait_seconds")]
    pub wait_seconds: f64,
}

fn run_dir() -> PathBuf {
    RUN_DIR.into()
}

const fn wait_seconds() -> f64 {
    20.0
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            run_dir: run_dir(),
            exclude_namespaces: BTreeSet::new(),
            exempt: Vec::new(),
            wait_seconds: wait_seconds(),
        }
    }
}

impl Settings {
    /// Where the agent listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET)
    }

    /// Where pods are written down.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.run_dir.join(PODS)
    }

    /// How long to wait for the agent, two minutes at most.
    #[must_use]
    pub fn wait(&self) -> Duration {
        Duration::try_from_secs_f64(self.wait_seconds.min(WAIT_MAX)).unwrap_or_default()
    }

    /// True if the agent has no say about the pod.
    #[must_use]
    pub fn leaves_alone(&self, namespace: &str, name: &str) -> bool {
        let exempt = |one: &Exempt| {
            one.namespace == namespace
                && !one.name_prefix.is_empty()
                && name.starts_with(&one.name_prefix)
        };
        self.exclude_namespaces.contains(namespace) || self.exempt.iter().any(exempt)
    }
}

/// One network's configuration with what the runtime adds.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// `cniVersion`.
    pub version: String,
    /// Name of the network.
    pub name: String,
    /// Ours.
    pub settings: Settings,
    /// What the plugin before this one answered.
    pub previous: Option<Value>,
    /// Containers that are still attached; none if there is no list of them. For the verb GC.
    pub valid: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(flatten)]
    settings: Settings,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

impl NetworkConfig {
    /// Reads standard input.
    ///
    /// # Errors
    /// When it is no configuration, or one of a version that the plugin does not speak.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let read: Document = serde_json::from_slice(input).map_err(|error| {
            CniError::new(
                Code::Decode,
                "the network configuration cannot be read",
                &error,
            )
        })?;
        if !VERSIONS.contains(&&*read.cni_version) {
            let message = format!("cniVersion {:?} is not supported", read.cni_version);
            let details = format!("supported: {}", VERSIONS.join(", "));
            return Err(CniError::new(Code::Version, message, &details));
        }
        Ok(Self {
            version: read.cni_version,
            name: read.name,
            settings: read.settings,
            previous: read.prev_result.filter(|value| !value.is_null()),
            valid: read
                .valid
                .map(|list| list.into_iter().map(|one| one.container_id).collect()),
        })
    }

    /// The version of whatever was sent, to answer in.
    #[must_use]
    pub fn version_of(input: &[u8]) -> String {
        let read: Value = serde_json::from_slice(input).unwrap_or_default();
        let version = read["cniVersion"].as_str();
        version.unwrap_or(VERSIONS[VERSIONS.len() - 1]).to_owned()
    }
}

/// The container's addresses in a result of any version since 0.3.0.
#[must_use]
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let inside = |ip: &&Value| {
        let interface = ip["interface"]
            .as_u64()
            .and_then(|at| usize::try_from(at).ok());
        interface.is_none_or(|at| {
            let sandbox = result["interfaces"][at]["sandbox"].as_str();
            sandbox.is_some_and(|sandbox| !sandbox.is_empty())
        })
    };
    let listed = result["ips"].as_array().into_iter().flatten();
    listed
        .filter(inside)
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_said_has_a_default() {
        let config =
            NetworkConfig::parse(br#"{"cniVersion": "1.0.0", "name": "n", "type": "isobar-cni"}"#)
                .unwrap();
        assert_eq!(config.settings, Settings::default());
        assert_eq!((config.previous, config.valid), (None, None));
    }

    #[test]
    fn versions_that_are_not_spoken_are_refused() {
        for version in ["", "0.2.0", "2.0.0"] {
            let text = json!({"cniVersion": version, "name": "n"}).to_string();
            let error = NetworkConfig::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, Code::Version);
        }
        assert_eq!(NetworkConfig::parse(b"{").unwrap_err().code, Code::Decode);
    }

    #[test]
    fn addresses_are_those_inside_the_container() {
        let result = json!({
            "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [
                {"address": "10.0.0.2/24", "interface": 1},
                {"address": "fd00::2/64", "interface": 1},
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "nonsense"},
                {"version": "4", "address": "10.0.0.3/32"},
            ],
        });
        let expected: [IpAddr; 3] =
            ["10.0.0.2", "fd00::2", "10.0.0.3"].map(|ip| ip.parse().unwrap());
        assert_eq!(addresses(&result), expected);
        assert!(addresses(&json!({})).is_empty());
    }

    #[test]
    fn waiting_has_an_end_whatever_is_asked() {
        for (asked, seconds) in [(1.5, 1.5), (-1.0, 0.0), (f64::NAN, 120.0), (1e300, 120.0)] {
            let settings = Settings {
                wait_seconds: asked,
                ..Settings::default()
            };
            assert_eq!(settings.wait(), Duration::from_secs_f64(seconds));
        }
    }

    #[test]
    fn only_excluded_namespaces_and_exempt_names_are_left_alone() {
        let settings = Settings {
            exclude_namespaces: BTreeSet::from(["kube-system".to_owned()]),
            exempt: vec![Exempt {
                namespace: "mesh".to_owned(),
                name_prefix: "isobar-cni-".to_owned(),
            }],
            ..Settings::default()
        };
        assert!(settings.leaves_alone("kube-system", "dns"));
        assert!(settings.leaves_alone("mesh", "isobar-cni-x"));
        assert!(!settings.leaves_alone("mesh", "ztunnel-x"));
        assert!(!settings.leaves_alone("shop", "isobar-cni-x"));
    }
}
