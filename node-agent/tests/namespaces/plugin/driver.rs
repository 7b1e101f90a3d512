//! Runs the plugin as a container runtime does: its environment, its standard input, its answer.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// One container's attachment to the network.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) container: String,
    pub(crate) netns: PathBuf,
    pub(crate) ip: String,
    /// `CNI_ARGS`.
    pub(crate) arguments: String,
    /// Seconds that the plugin may wait for the agent.
    pub(crate) wait: f64,
    /// Where the plugin shall die.
    pub(crate) crash: String,
}

/// What the plugin said.
#[derive(Debug)]
pub(crate) struct Said {
    /// It exited with 0.
    pub(crate) good: bool,
    /// It did not exit by itself.
    pub(crate) killed: bool,
    pub(crate) text: String,
}

impl Attachment {
    /// The result of the plugin that made the interface.
    pub(crate) fn previous(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": self.netns}],
            "ips": [{"address": format!("{}/24", self.ip), "gateway": "10.0.0.1", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {},
        })
    }

    /// The configuration of the verb's call, with everything a runtime adds.
    pub(crate) fn config(&self, run_dir: &Path) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "isobar-cni",
            "runDir": run_dir,
            "excludeNamespaces": ["kube-system"],
            "waitSeconds": self.wait,
            "prevResult": self.previous(),
        })
    }

    /// Runs the plugin.
    pub(crate) async fn call(&self, verb: &str, config: &Value) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_isobar-cni-plugin"));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", "/opt/cni/bin")
            .env("ISOBAR_CRASH_AT", &self.crash)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if !matches!(verb, "GC" | "STATUS" | "VERSION") {
            command
                .env("CNI_CONTAINERID", &self.container)
                .env("CNI_NETNS", &self.netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_ARGS", &self.arguments);
        }
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // One that ends early does not read to the end.
        let _ = input.write_all(config.to_string().as_bytes()).await;
        drop(input);
        let output = child.wait_with_output().await.unwrap();
        Said {
            good: output.status.success(),
            killed: output.status.code().is_none(),
            text: String::from_utf8(output.stdout).unwrap(),
        }
    }
}

impl Said {
    /// The answer's JSON.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of a well-formed failure.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.good && !self.killed, "{self:?}");
        let value = self.value();
        assert_eq!(value["cniVersion"].as_str(), Some("1.1.0"), "{self:?}");
        assert!(!value["msg"].as_str().unwrap().is_empty());
        value["code"].as_u64().unwrap()
    }
}
