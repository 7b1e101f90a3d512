//! The servers of this process: readiness, metrics, and admin on loopback.

mod certificates;
mod dump;
mod mesh;
mod policies;

use std::io;
use std::sync::Arc;

use isobar_runtime::{Lifetime, LifetimeOwner, Scope};
use isobar_telemetry::logging::LogControl;
use isobar_telemetry::{HttpServer, Ready, Registry, Reply, Routes, standard};
use isobar_xds::{CertManager, Store, SyncStatus};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
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
    pub fn config_dump(&self) -> impl Serialize + use<'_> {
        Dump(self)
    }

    /// The admin routes.
    #[must_use]
    pub fn routes(&self, logging: LogControl, quit: Arc<LifetimeOwner>) -> Routes {
        let dump = dump::Writer::new(self.clone());
        let sync = self.clone();
        let routes = Routes::new()
            .any("/config_dump", move |_| dump.clone().reply())
            .get("/debug/syncz", move |_| {
                let report = sync.sync.as_ref().map(SyncStatus::report);
                async move { Reply::json(&report) }
            });
        let routes = standard::logging(routes, logging);
        let routes = standard::quit(routes, move || quit.drain());
        standard::index(routes, "ztunnel")
    }
}

struct Dump<'a>(&'a Admin);

impl Serialize for Dump<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self(admin) = self;
        let snapshot = admin.store.load();
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("workloads", &mesh::workloads(&snapshot))?;
        map.serialize_entry("services", &mesh::services(&snapshot))?;
        map.serialize_entry("policies", &policies::policies(&snapshot))?;
        map.serialize_entry("stagedServices", &json!({}))?;
        map.serialize_entry("staticConfig", &admin.config.local)?;
        map.serialize_entry("version", &version())?;
        map.serialize_entry("config", &*admin.config)?;
        let certificates = certificates::certificates(&admin.certificates);
        map.serialize_entry("certificates", &certificates)?;
        map.serialize_entry("workloadState", &admin.pods.views(&admin.pending))?;
        let ours = json!({
            "snapshotVersion": snapshot.version(),
            "policyVersion": snapshot.policy_version(),
            "ejections": admin.pods.ejections(),
            "xds": admin.sync.as_ref().map(SyncStatus::report),
        });
        map.serialize_entry("isobar", &ours)?;
        map.end()
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
