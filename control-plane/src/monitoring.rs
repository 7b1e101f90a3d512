//! Health, metrics and what the control plane knows, over plain HTTP on 15014.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use isobar_objects::{Finding, ObjectRef, Published};
use isobar_telemetry::logging::LogControl;
use isobar_telemetry::{Call, Ready, Registry, Reply, Routes, standard};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::controller::Rejected;
use crate::engine::Planned;
use crate::xds::catalog::{Catalog, version_text};
use crate::xds::clients::{ClientState, Clients, KindState};
use crate::xds::kind::Kind;
use crate::xds::resources::Resources;
use crate::xds::session::Progress;
use crate::{profiling, rivals};

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) clients: Clients,
    pub(crate) catalogs: watch::Receiver<Arc<Catalog>>,
    pub(crate) plans: watch::Receiver<Option<Planned>>,
    /// What there is to say before there is a plan.
    pub(crate) objects: watch::Receiver<Arc<Published>>,
    /// Objects of which the API server does not take what is to be written.
    pub(crate) rejected: watch::Receiver<Rejected>,
    /// Deployments of other control planes that have what is this one's.
    pub(crate) rivals: watch::Receiver<Arc<Vec<ObjectRef>>>,
}

/// All pages.
pub(crate) fn routes(pages: Pages, ready: Ready, registry: &Registry, log: LogControl) -> Routes {
    let (sync, findings, labels, config) = (pages.clone(), pages.clone(), pages.clone(), pages);
    let routes = Routes::new()
        .merge(health(ready))
        .merge(standard::metrics(registry))
        .get("/debug/syncz", move |_| {
            let page = sync.syncz();
            async move { Reply::json(&page) }
        })
        .get("/debug/findings", move |_| {
            let page = findings.findings();
            async move { Reply::json(&page) }
        })
        .get("/debug/labels", move |call| {
            let page = labels.labels(&call);
            async move { Reply::json(&page) }
        })
        .get("/debug/config", move |call| {
            let page = config.config(&call);
            async move { Reply::json(&page) }
        });
    let routes = profiling::routes(standard::local_logging(routes, log));
    standard::index(routes, "isobard")
}

/// What probes ask: `/ready`, where Istio has it, `/healthz/ready` and `/version`.
pub(crate) fn health(ready: Ready) -> Routes {
    let state = ready.clone();
    standard::readiness(ready)
        .get("/ready", move |_| {
            let pending = state.pending();
            async move {
                if pending.is_empty() {
                    return Reply::text(StatusCode::OK, "ready\n");
                }
                let text = format!("not ready, pending: {}\n", pending.join(", "));
                Reply::text(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        })
        .get("/version", |_| async {
            Reply::json(&json!({ "version": env!("CARGO_PKG_VERSION") }))
        })
}

impl Pages {
    /// Connected clients and how far each has come.
    fn syncz(&self) -> Value {
        let now = Instant::now();
        let clients: Vec<Value> = self
            .clients
            .all()
            .iter()
            .map(|state| client(state, now))
            .collect();
        let (revision, changing) = {
            let catalog = self.catalogs.borrow();
            (catalog.revision, catalog.changing)
        };
        json!({ "revision": revision, "changing": changing, "clients": clients })
    }

    /// Everything there is to say about objects: what is wrong in the text, and what became of it.
    fn findings(&self) -> Value {
        let Some(planned) = self.plans.borrow().clone() else {
            let early = self.objects.borrow().clone();
            let findings: Vec<Value> = early.findings.iter().map(finding).collect();
            return json!({ "synced": false, "findings": findings, "conditions": [] });
        };
        let rejected = self.rejected.borrow().clone();
        let rejected = rejected.into_iter().map(|(object, message)| {
            let text = format!("the API server refuses what is to be written: {message}");
            finding(&Finding::error("", text).about(&object))
        });
        let findings = planned.published.findings.iter().map(finding);
        let rivals = self.rivals.borrow().clone();
        let rivals = rivals.iter().map(|rival| finding(&rivals::finding(rival)));
        let findings: Vec<Value> = findings.chain(rejected).chain(rivals).collect();
        let conditions: Vec<Value> = planned
            .plan
            .verdicts
            .iter()
            .map(|verdict| {
                json!({
                    "severity": verdict.severity,
                    "object": object(&verdict.object),
                    "type": verdict.condition,
                    "status": if verdict.holds { "True" } else { "False" },
                    "reason": verdict.reason,
                    "message": verdict.message,
                })
            })
            .collect();
        json!({ "synced": true, "findings": findings, "conditions": conditions })
    }

    /// Labels of one object, `?group=G&kind=K&namespace=N&name=N`, as of the plan in force: once they
    /// are seen here, `syncz` is about a catalog in which they count. `null` without the object.
    fn labels(&self, call: &Call) -> Value {
        let text = |key: &str| call.query_value(key).unwrap_or_default();
        let object = ObjectRef {
            group: text("group").into(),
            kind: text("kind").into(),
            namespace: text("namespace").into(),
            name: text("name").into(),
        };
        let planned = self.plans.borrow().clone();
        let labels = planned
            .as_ref()
            .and_then(|planned| planned.published.objects.labels(&object));
        json!({ "labels": labels })
    }

    /// Names and versions of what is served; `?waypoint=NAMESPACE/NAME` for one waypoint's.
    fn config(&self, call: &Call) -> Value {
        let catalog = self.catalogs.borrow().clone();
        let all = |resources: &Resources| -> Value {
            let sorted: BTreeMap<_, _> = resources
                .values()
                .map(|resource| (resource.name.to_string(), resource.version))
                .collect();
            let shown = sorted.into_iter();
            let shown = shown.map(|(name, version)| (name, version_text(version).into()));
            shown.collect::<serde_json::Map<String, Value>>().into()
        };
        let wanted = call.query_value("waypoint");
        let waypoints: serde_json::Map<String, Value> = catalog
            .waypoints
            .iter()
            .filter(|(key, _)| wanted.as_deref().is_none_or(|name| name == &***key))
            .map(|(key, kinds)| {
                let kinds: serde_json::Map<String, Value> = Kind::WAYPOINT
                    .iter()
                    .filter(|kind| !matches!(kind, Kind::Address | Kind::Authorization))
                    .map(|kind| (kind.label().to_owned(), all(&kinds[kind.index()])))
                    .collect();
                (key.to_string(), kinds.into())
            })
            .collect();
        json!({
            "revision": catalog.revision,
            "addresses": all(&catalog.addresses),
            "authorizations": all(&catalog.authorizations),
            "outbound": all(&catalog.outbound),
            "waypoints": waypoints,
        })
    }
}

fn finding(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "file": finding.file.as_ref().map(|file| file.display().to_string()),
        "line": finding.line,
        "object": finding.object.as_ref().map(object),
        "field": finding.field,
        "message": finding.message,
        "hint": finding.hint,
    })
}

fn object(object: &ObjectRef) -> Value {
    json!({
        "group": &*object.group,
        "kind": &*object.kind,
        "namespace": &*object.namespace,
        "name": &*object.name,
    })
}

fn client(state: &ClientState, now: Instant) -> Value {
    let kinds: serde_json::Map<String, Value> = state
        .kinds
        .iter()
        .map(|kind| (kind.kind.label().to_owned(), kind_state(kind, now)))
        .collect();
    json!({
        "identity": state.identity,
        "kind": state.kind,
        "node": state.node,
        "namespace": state.namespace,
        "pod": state.pod,
        "gateway": state.gateway,
        "version": (!state.version.is_empty()).then_some(&state.version),
        "peer": state.peer,
        "connectedSince": state.connected_at,
        // Until it is that of the page, what the types say is yesterday's news.
        "revision": state.revision,
        "connectedSeconds": now.saturating_duration_since(state.connected).as_secs_f64(),
        "types": kinds,
    })
}

fn kind_state(state: &KindState, now: Instant) -> Value {
    let age = |then: Option<Instant>| then.map(|t| now.saturating_duration_since(t).as_secs_f64());
    let word = match state.progress {
        Progress::NotSent => "NOT SENT",
        Progress::Synced => "SYNCED",
        Progress::Stale => "STALE",
        Progress::Error => "ERROR",
    };
    json!({
        "status": word,
        "version": state.revision,
        "ackAgeSeconds": age(state.acked),
        "waitingSeconds": age(state.waiting),
        "resources": state.held,
        "error": state.error,
    })
}
