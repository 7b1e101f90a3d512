//! Spans of requests, and the collector that the mesh's settings name.

use std::sync::Arc;

use isobar_route::Tables;
use isobar_runtime::Lifetime;
use isobar_spans::{Collector, Exporter, Resolve};
use tokio::sync::watch;

use crate::names::Names;
use crate::world::{Own, World};

/// Sends spans to where the mesh's settings say, until `life` ends. Before they say so for the first time there is
/// nothing: neither a queue nor a client.
pub async fn follow(world: World, life: Lifetime) {
    let mut versions = world.feed.versions();
    let (tell, told) = watch::channel(None);
    loop {
        versions.borrow_and_update();
        let wanted = collector(&world.feed.load(), &world.own);
        if wanted.is_some() {
            tell.send_replace(wanted);
            break;
        }
        tokio::select! {
            () = life.draining() => return,
            changed = versions.changed() => if changed.is_err() { return },
        }
    }
    let Some(exporter) = Exporter::new(&world.spans, told, resolve(&world.names)) else {
        return;
    };
    let mut exporting = Box::pin(exporter.run());
    loop {
        tokio::select! {
            () = life.draining() => return,
            () = &mut exporting => return,
            changed = versions.changed() => if changed.is_err() { return },
        }
        versions.borrow_and_update();
        let tables = world.feed.load();
        // A waypoint that has lost its description serves nobody, and what it served is still to be sent.
        if tables.waypoint().is_some() {
            let wanted = collector(&tables, &world.own);
            tell.send_if_modified(|known| {
                let changes = *known != wanted;
                *known = wanted;
                changes
            });
        }
    }
}

fn collector(tables: &Tables, own: &Own) -> Option<Collector> {
    let waypoint = tables.waypoint()?;
    let to = waypoint.tracing.as_ref()?;
    let name = &waypoint.name;
    Some(Collector {
        host: to.host.to_string(),
        port: to.port,
        resource: vec![
            ("service.name", format!("{}.{}", name.name, name.namespace)),
            ("service.namespace", name.namespace.to_string()),
            ("service.instance.id", own.pod.to_string()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("k8s.pod.name", own.pod.to_string()),
            ("k8s.namespace.name", own.identity.namespace.to_string()),
            ("k8s.cluster.name", own.cluster_id.to_string()),
        ],
    })
}

/// As endpoints that are told by a host name are found.
fn resolve(names: &Names) -> Resolve {
    let names = names.clone();
    Arc::new(move |host: String| {
        let names = names.clone();
        Box::pin(async move { names.ask(&host).await.to_vec() })
    })
}
