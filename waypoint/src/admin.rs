//! The admin port: what this waypoint knows, and how well it is in step with the control plane.

mod dump;
mod routes;

use std::sync::Arc;

use ::http::StatusCode;
use isobar_runtime::{LifetimeOwner, Scope};
use isobar_telemetry::logging::LogControl;
use isobar_telemetry::{HttpServer, Registry, Reply, Routes, standard};
use isobar_xds::{CertManager, SyncStatus};

use crate::config::Config;
use crate::world::World;

/// What the pages are made from.
#[derive(Clone)]
pub struct Admin {
    /// Settings.
    pub config: Arc<Config>,
    /// State.
    pub world: World,
    /// Discovery.
    pub sync: SyncStatus,
    /// Own certificate.
    pub certificates: CertManager,
}

/// Opens the admin and metrics ports.
///
/// # Errors
/// When a port is taken.
pub fn serve(
    scope: &Scope,
    admin: Admin,
    registry: &Registry,
    logging: LogControl,
    end: Arc<LifetimeOwner>,
) -> std::io::Result<()> {
    let (address, stats) = (admin.config.admin, admin.config.stats);
    let syncs = admin.sync.clone();
    let one_page = Arc::new(tokio::sync::Mutex::new(()));
    let routes = Routes::new()
        .get("/config_dump", move |_| {
            let (admin, one_page) = (admin.clone(), one_page.clone());
            async move {
                // Pages are large in a large mesh: never several at once.
                let _turn = one_page.lock().await;
                // Discovery and readiness have this thread too.
                let page = tokio::task::spawn_blocking(move || Reply::json(&dump::page(&admin)));
                page.await.unwrap_or_else(|error| {
                    Reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
                })
            }
        })
        .get("/syncz", move |_| {
            let report = syncs.report();
            async move { Reply::json(&report) }
        })
        .merge(standard::metrics(registry));
    let routes = standard::logging(routes, logging);
    let routes = standard::quit(routes, move || end.drain());
    let routes = standard::index(routes, "waypoint");
    let server = HttpServer::bind("admin", &[address], routes)?;
    scope.spawn("admin", server.run(scope.lifetime()));
    let server = HttpServer::bind("metrics", &[stats], standard::metrics(registry))?;
    scope.spawn("metrics", server.run(scope.lifetime()));
    Ok(())
}
