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
mod plugin;
mod proxy;
mod scenario;
mod untracked;

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
    in_runtime(scenario::all(choice));
}

fn in_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
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
fn a_pod_that_no_node_proxy_serves_says_so() {
    inside("without_a_proxy");
}

#[test]
#[ignore = "started by a_pod_that_no_node_proxy_serves_says_so in namespaces of its own"]
fn without_a_proxy() {
    in_runtime(scenario::unserved());
}

#[test]
fn another_tool_takes_pods_over() {
    inside("from_iptables_to_nft");
    inside("from_nft_to_iptables");
}

#[test]
#[ignore = "started by another_tool_takes_pods_over in namespaces of its own"]
fn from_iptables_to_nft() {
    in_runtime(scenario::another_tool(Choice::Iptables, Choice::Nft));
}

#[test]
#[ignore = "started by another_tool_takes_pods_over in namespaces of its own"]
fn from_nft_to_iptables() {
    in_runtime(scenario::another_tool(Choice::Nft, Choice::Iptables));
}

#[test]
fn the_plugin_does_every_verb() {
    inside("plugin_verbs");
}

#[test]
fn whatever_dies_no_plain_pod_is_believed_enrolled() {
    inside("plugin_crashes");
}

#[test]
fn running_pods_are_found_and_the_plugin_is_installed() {
    inside("plugin_found");
}

#[test]
fn a_pod_that_cannot_be_looked_at_is_advertised_for_a_while() {
    inside("plugin_blind");
}

#[test]
#[ignore = "started by a_pod_that_cannot_be_looked_at_is_advertised_for_a_while in namespaces of its own"]
fn plugin_blind() {
    in_runtime(plugin::blind::all());
}

#[test]
#[ignore = "started by the_plugin_does_every_verb in namespaces of its own"]
fn plugin_verbs() {
    in_runtime(plugin::verbs::all());
}

#[test]
#[ignore = "started by whatever_dies_no_plain_pod_is_believed_enrolled in namespaces of its own"]
fn plugin_crashes() {
    in_runtime(plugin::crashes::all());
}

#[test]
#[ignore = "started by running_pods_are_found_and_the_plugin_is_installed in namespaces of its own"]
fn plugin_found() {
    in_runtime(plugin::found::all());
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
