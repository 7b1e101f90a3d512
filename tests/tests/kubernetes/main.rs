//! What is said to and heard from a real API server. `make test-kube` runs these; `make test` does not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use isobar_tests::{ApiServer, kube_tools};

mod asked;
mod authority;
mod canary;
mod charts;
mod control_plane;
mod definitions;
mod election;
mod enrolment;
mod events;
mod fixture;
mod gateways;
mod install;
mod isobard;
mod last_valid;
mod lessons;
mod mesh_config;
mod moves;
mod network_policy;
mod outage;
mod page;
mod plugin;
mod presence;
mod proxies;
mod revisions;
mod rights;
mod scale;
mod server;
mod settings;
mod shop;
mod source;
/// The lessons of the lab, word for word: only `kubectl apply` and `kubectl delete` change anything.
#[path = "../mesh/lessons/mod.rs"]
mod taught;
mod told;
mod uninstall;
mod waypoints;
mod webhook;
mod writer;

/// One at a time: a server keeps a core busy while it starts.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs an async test with an API server of its own.
fn run<F: AsyncFnOnce(&mut ApiServer) -> Result<()>>(test: F) {
    alone(async {
        let mut server = ApiServer::start().await?;
        let result = test(&mut server).await;
        if result.is_err() {
            eprintln!("the server's log ends with:\n{}", server.log("apiserver"));
        }
        result
    });
}

/// Runs an async test while no other runs.
fn alone(test: impl Future<Output = Result<()>>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = kube_tools() {
        panic!("{error:#}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let Err(error) = runtime.block_on(test) {
        panic!("{error:#}");
    }
}
