//! Two served pods and one outside the mesh, in network namespaces of the test's own, with real
//! redirection, a made-up mesh and a made-up authority.
//!
//! The scenarios run inside `unshare`, so that nothing outside is touched, root or not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;
mod scenarios;

use std::process::Command;

#[test]
fn carries_connections_between_pods() {
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let status = command
        .args(["--net", "--mount"])
        .arg(me)
        .args([
            "--exact",
            "inside",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "started by carries_connections_between_pods in namespaces of its own"]
fn inside() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let workers = isobar_runtime::Workers::start("worker", 2).unwrap();
    let handles = workers.all().to_vec();
    runtime.block_on(scenarios::all(handles));
    workers.join();
}
