//! A node: the agent's program, objects, a stand-in node proxy, and pods in namespaces.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use isobar_net::SeqPacket;
use isobar_runtime::Scope;
use serde_json::{Value, json};

use super::{Attachment, Said};
use crate::network::{LIMIT, PEER, Place};
use crate::proxy::Proxy;
use crate::scenario::eventually;

pub(crate) struct Node {
    dir: tempfile::TempDir,
    agent: Option<Child>,
    pub(crate) proxy: Proxy,
    sessions: Scope,
    /// What the agent's command line has besides.
    pub(crate) extra: Vec<String>,
    /// Folder whose programs the agent finds first.
    pub(crate) tools: Option<PathBuf>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["objects", "overlay"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let node = Self {
            dir,
            agent: None,
            proxy: Proxy::default(),
            sessions: Scope::new("sessions"),
            extra: Vec::new(),
            tools: None,
        };
        node.object(
            "namespace",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
                "labels": {"istio.io/dataplane-mode": "ambient"}}}),
        );
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    pub(crate) fn object(&self, name: &str, value: &Value) {
        let file = self.path(&format!("objects/{name}.json"));
        let draft = self.path(&format!("objects/.{name}"));
        std::fs::write(&draft, value.to_string()).unwrap();
        std::fs::rename(draft, file).unwrap();
    }

    /// A pod's object.
    pub(crate) fn pod(&self, name: &str, uid: &str, labels: &Value, ip: Option<&str>) {
        let status = ip.map_or(json!({}), |ip| json!({"podIP": ip, "podIPs": [{"ip": ip}]}));
        self.object(
            name,
            &json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "shop", "name": name, "uid": uid, "labels": labels},
                "spec": {"serviceAccountName": "seller", "containers": [{"name": "c", "image": "i"}]},
                "status": status}),
        );
    }

    /// The attachment of a container of this pod.
    pub(crate) fn attachment(name: &str, uid: &str, place: &Place, ip: &str) -> Attachment {
        Attachment {
            container: format!("container-of-{name}"),
            netns: place.path.clone(),
            ip: ip.to_owned(),
            arguments: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID={uid}"
            ),
            wait: 10.0,
            crash: String::new(),
        }
    }

    pub(crate) async fn call(&self, verb: &str, attachment: &Attachment) -> Said {
        let config = attachment.config(&self.run_dir());
        attachment.call(verb, &config).await
    }

    /// Starts the agent; it dies where `crash` says. With it comes a session of the proxy.
    pub(crate) async fn start(&mut self, crash: &str) {
        self.start_alone(crash).await;
        self.connect().await;
    }

    pub(crate) async fn start_alone(&mut self, crash: &str) {
        assert!(self.agent.is_none(), "the agent runs");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))
            .unwrap();
        let usual = std::env::var("PATH").unwrap_or_default();
        let path = match &self.tools {
            Some(first) => format!("{}:{usual}", first.display()),
            None => usual,
        };
        let child = Command::new(env!("CARGO_BIN_EXE_isobar-cni"))
            .env_clear()
            .env("PATH", path)
            .env("ISOBAR_CRASH_AT", crash)
            .args(["--node", "node-1", "--verify-every", "0.5"])
            .arg("--objects")
            .arg(self.path("objects"))
            .arg("--overlay")
            .arg(self.path("overlay"))
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--zds-socket")
            .arg(self.path("z.sock"))
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
        // Readiness is not asked: it has a page for that, and the plugin has its own verb.
        let socket = self.run_dir().join("agent.sock");
        let heard = || std::os::unix::net::UnixStream::connect(&socket).ok();
        assert!(eventually(heard).await.is_some(), "{}", self.log());
    }

    pub(crate) async fn connect(&self) {
        let socket = self.path("z.sock");
        let session = eventually(|| SeqPacket::connect(&socket).ok()).await;
        let session = session.unwrap_or_else(|| panic!("{}", self.log()));
        self.proxy.attach(&self.sessions, session);
    }

    /// Ends the sessions of the proxy; its listeners in pods stay.
    pub(crate) async fn disconnect(&mut self) {
        let sessions = std::mem::replace(&mut self.sessions, Scope::new("sessions"));
        sessions.shutdown(Duration::ZERO).await;
    }

    /// Waits for the agent's end by itself.
    pub(crate) async fn died(&mut self) {
        let mut agent = self.agent.take().expect("an agent runs");
        let end = std::time::Instant::now() + LIMIT;
        while agent.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < end, "alive: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the agent with SIGTERM, or as a crash would.
    pub(crate) async fn stop(&mut self, politely: bool) {
        let agent = self.agent.as_mut().expect("an agent runs");
        if politely {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        } else {
            agent.kill().unwrap();
        }
        self.died().await;
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Uids of the pods that are written down.
    pub(crate) fn records(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.run_dir().join("pods")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut uids: Vec<String> = names
            .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
            .filter(|name| !name.starts_with('.'))
            .collect();
        uids.sort();
        uids
    }

    /// True if callers are told that the pod takes HBONE.
    pub(crate) fn is_advertised(&self, name: &str) -> bool {
        let file = self.path(&format!("overlay/node-node-1/pod.shop.{name}.patch.json"));
        std::fs::read_to_string(file).is_ok_and(|text| text.contains("\"enabled\""))
    }

    /// True if what the pod opens is redirected to the proxy.
    pub(crate) async fn is_captured(&self, place: &Place) -> bool {
        self.proxy.notes.take();
        place.call(&format!("{PEER}:9090")).await;
        self.proxy.notes.contain(&format!("outbound {PEER}:9090"))
    }

    /// A folder for a plugin that has the records and another socket.
    pub(crate) fn aside(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(self.run_dir().join("pods"), folder.join("pods")).unwrap();
        folder
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            // A test that failed leaves it running.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// A uid that no other pod has.
pub(crate) fn uid(number: usize) -> String {
    format!("{number:08x}-2222-3333-4444-555555555555")
}
