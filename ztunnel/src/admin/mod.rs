//! The servers of this process: readiness, metrics, and admin on loopback.

mod certificates;
mod mesh;
mod policies;

use std::io;
use std::sync::Arc;

use isobar_runtime::{Lifetime, LifetimeOwner, Scope};
use isobar_telemetry::logging::LogControl;
use isobar_telemetry::{HttpServer, Ready, Registry, Reply, Routes, standard};
use isobar_xds::{CertManager, Store, SyncStatus};
use serde_json::{Value, json};

use crate::config::Config;
use crate::pods::{PendingPods, Pods};

/// What the admin pages show.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Static configuration.
    pub config: Arc<Config>,
    /// The mesh.
    pub store: Store,
    /// How well it is known; none without discovery.
    pub sync: Option<SyncStatus>,
    /// Certificates in hand.
    pub certificates: CertManager,
    /// Served pods.
    pub pods: Pods,
    /// Pods that could not be started yet.
    pub pending: PendingPods,
}

impl Admin {
    /// The whole dump (as Istio's ztunnel does); `isobar` is ours: the snapshot's version and the sync state
    /// of each resource type.
    #[must_use]
    pub fn config_dump(&self) -> Value {
        let snapshot = self.store.load();
        let pods = self.pods.views(&self.pending);
        json!({
            "workloads": mesh::workloads(&snapshot),
            "services": mesh::services(&snapshot),
            "policies": policies::policies(&snapshot),
            "stagedServices": {},
            "staticConfig": self.config.local,
            "version": version(),
            "config": *self.config,
            "certificates": certificates::certificates(&self.certificates),
            "workloadState": pods,
            "isobar": {
                "snapshotVersion": snapshot.version(),
                "policyVersion": snapshot.policy_version(),
                "ejections": self.pods.ejections(),
                "xds": self.sync.as_ref().map(SyncStatus::report),
            },
        })
    }

    /// The admin routes.
    #[must_use]
    pub fn routes(&self, logging: LogControl, quit: Arc<LifetimeOwner>) -> Routes {
        let dump = self.clone();
        let sync = self.clone();
        let routes = Routes::new()
            .any("/config_dump", move |_| {
                let reply = Reply::json(&dump.config_dump());
                async move { reply }
            })
            .get("/debug/syncz", move |_| {
                let report = sync.sync.as_ref().map(SyncStatus::report);
                async move { Reply::json(&report) }
            });
        let routes = standard::logging(routes, logging);
        let routes = standard::quit(routes, move || quit.drain());
        standard::index(routes, "ztunnel")
    }
}

/// Build facts, with Istio's keys.
#[must_use]
pub fn version() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": option_env!("ISOBAR_GIT_REVISION").unwrap_or("unknown"),
        "rustVersion": option_env!("ISOBAR_RUST_VERSION").unwrap_or("unknown"),
        "buildProfile": env!("ISOBAR_BUILD_PROFILE"),
        "buildStatus": "isobar",
        "istioVersion": "unknown",
        "cryptoProvider": isobar_tls::description(),
    })
}

/// Binds readiness (all addresses), before anything else can fail.
///
/// # Errors
/// When the port is taken.
pub fn readiness(config: &Config, ready: Ready) -> io::Result<HttpServer> {
    let address = config.wildcard(config.ports.readiness);
    HttpServer::bind("readiness", &[address], standard::readiness(ready))
}

/// Binds metrics and admin and runs them in `scope` until `life` is stopped.
///
/// # Errors
/// When a port is taken.
pub fn serve(
    scope: &Scope,
    admin: &Admin,
    registry: &Registry,
    logging: LogControl,
    quit: Arc<LifetimeOwner>,
    life: &Lifetime,
) -> io::Result<()> {
    let ports = &admin.config.ports;
    let routes = admin.routes(logging, quit);
    let server = HttpServer::bind("admin", &admin.config.loopback(ports.admin), routes)?;
    scope.spawn("admin", server.run(life.clone()));
    let address = admin.config.wildcard(ports.metrics);
    let server = HttpServer::bind("metrics", &[address], standard::metrics(registry))?;
    scope.spawn("metrics", server.run(life.clone()));
    Ok(())
}
