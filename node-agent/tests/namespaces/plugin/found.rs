//! Pods that ran before the plugin was there, and a node's CNI folders.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isobar_runtime::Scope;
use serde_json::{Value, json};

use super::Node;
use super::node::uid;
use crate::network::{PEER, Place, bridge};
use crate::scenario::eventually;

const RUNNING: &str = "10.0.0.21";
const STRANGER: &str = "10.0.0.22";

pub(crate) async fn all() {
    bridge();
    let (pod, stranger) = (Place::new("run", RUNNING), Place::new("str", STRANGER));
    let peer = Place::new("peer", PEER);
    let applications = Scope::new("applications");
    peer.serve(&applications, 9090);
    let mut node = Node::new();
    processes(&node.path("proc"), &pod, &stranger);
    node.extra = vec![
        "--discover".to_owned(),
        "--host-proc".to_owned(),
        node.path("proc").display().to_string(),
    ];
    node.pod("running", &uid(1), &json!({}), Some(RUNNING));
    // Its processes say so, but the address is another's.
    node.pod("stranger", &uid(2), &json!({}), Some("10.0.0.99"));
    node.start("").await;
    let advertised = eventually(|| node.is_advertised("running").then_some(())).await;
    assert!(advertised.is_some(), "{}", node.log());
    assert!(node.is_captured(&pod).await);
    assert!(!node.is_captured(&stranger).await);
    assert!(!node.is_advertised("stranger"));
    assert!(node.records().is_empty(), "the agent wrote a record");
    // The next agent finds it again, rules and all, and its proxy is told first thing.
    node.stop(true).await;
    node.disconnect().await;
    node.start("").await;
    let told = || node.proxy.notes.contain("end of snapshot").then_some(());
    assert!(eventually(told).await.is_some());
    assert_eq!(
        node.proxy.notes.take()[..2],
        [format!("add {}", uid(1)), "end of snapshot".to_owned()]
    );
    assert!(node.is_captured(&pod).await);

    node.stop(true).await;
    node.disconnect().await;
    installed(&mut node).await;
    assert!(!node.is_captured(&pod).await, "cleaned up");
    assert!(!node.is_advertised("running"));
    applications.shutdown(Duration::ZERO).await;
}

/// What `/proc` shows of a node with these pods.
fn processes(proc: &Path, pod: &Place, stranger: &Place) {
    let process = |pid: u32, netns: &Path, group: &str, started: u32| {
        let dir = proc.join(pid.to_string());
        std::fs::create_dir_all(dir.join("ns")).unwrap();
        symlink(netns, dir.join("ns/net")).unwrap();
        std::fs::write(dir.join("cgroup"), format!("0::{group}\n")).unwrap();
        std::fs::write(dir.join("mountinfo"), "").unwrap();
        let stat = format!("{pid} (pause) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {started} 0");
        std::fs::write(dir.join("stat"), stat).unwrap();
    };
    let group = |number| {
        let uid = uid(number).replace('-', "_");
        format!("/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-4f3e.scope")
    };
    // Not `self`: the agent looks too.
    let host = PathBuf::from(format!("/proc/{}/ns/net", std::process::id()));
    process(1, &host, "/init.scope", 1);
    process(40, &host, &group(1), 2);
    process(42, &pod.path, &group(1), 3);
    process(43, &pod.path, &group(1), 4);
    process(44, &stranger.path, &group(2), 5);
}

/// The agent puts the plugin into a copy of the network's configuration, keeps it there, leaves it when
/// it ends, and takes it away when it is asked to.
async fn installed(node: &mut Node) {
    for folder in ["bin", "net.d"] {
        std::fs::create_dir(node.path(folder)).unwrap();
    }
    let file = node.path("net.d/10-net.conflist");
    let network = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]});
    std::fs::write(&file, network.to_string()).unwrap();
    let copy = node.path("net.d/00-isobar-cni.conflist");
    let before = node.extra.clone();
    for (flag, folder) in [("--cni-conf-dir", "net.d"), ("--cni-bin-dir", "bin")] {
        let folder = node.path(folder).display().to_string();
        node.extra.extend([flag.to_owned(), folder]);
    }
    let plugins = || {
        let list: Value = serde_json::from_slice(&std::fs::read(&copy).ok()?).ok()?;
        Some(list["plugins"].as_array()?.len())
    };
    let installed = || (plugins() == Some(2)).then_some(());
    node.start("").await;
    assert!(eventually(installed).await.is_some(), "{}", node.log());
    let program = node.path("bin/isobar-cni");
    let ours = std::fs::read(env!("CARGO_BIN_EXE_isobar-cni-plugin")).unwrap();
    // Who finds it on a node may ask it what it is.
    let mut asked = std::process::Command::new(env!("CARGO_BIN_EXE_isobar-cni-plugin"));
    let said = asked.arg("--version").env_remove("CNI_COMMAND").output();
    let said = said.unwrap();
    assert!(said.status.success(), "{said:?}");
    assert!(said.stdout.starts_with(b"isobar-cni-plugin 0."), "{said:?}");
    assert!(std::fs::read(&program).unwrap() == ours);
    std::fs::remove_file(&copy).unwrap();
    assert!(eventually(installed).await.is_some(), "{}", node.log());
    node.stop(true).await;
    node.disconnect().await;
    assert_eq!(
        plugins(),
        Some(2),
        "the way in was opened while nobody looks"
    );

    node.extra.push("--cleanup".to_owned());
    node.proxy.notes.take();
    node.start("").await;
    // What it has not found yet it cannot clean up.
    let found = || node.proxy.notes.contain("end of snapshot").then_some(());
    assert!(eventually(found).await.is_some(), "{}", node.log());
    node.stop(true).await;
    node.disconnect().await;
    assert!(!copy.exists(), "{}", node.log());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), network.to_string());
    assert!(!program.exists());
    node.extra = before;
}
