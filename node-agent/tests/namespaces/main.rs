//! The agent against real namespaces: a pod, a peer outside the mesh, the node between them, and a
//! stand-in node proxy that relays what is redirected to it.
//!
//! Everything happens inside `unshare`, so that nothing outside is touched, root or not.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test that cannot go on fails; a scenario is told in one piece"
)]

mod network;
mod proxy;
mod scenario;

use std::process::Command;

use isobar_node_agent::backend::Choice;

/// Runs the ignored test `name` of this binary in namespaces of its own.
fn inside(name: &str) {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let status = command
        .args(["--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .arg("--test-threads=1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn run(choice: Choice) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(scenario::all(choice));
}

#[test]
fn pods_come_and_go_without_a_cut() {
    inside("with_nft");
}

#[test]
fn the_same_with_iptables() {
    inside("with_iptables");
}

#[test]
#[ignore = "started by pods_come_and_go_without_a_cut in namespaces of its own"]
fn with_nft() {
    run(Choice::Nft);
}

#[test]
#[ignore = "started by the_same_with_iptables in namespaces of its own"]
fn with_iptables() {
    run(Choice::Iptables);
}
