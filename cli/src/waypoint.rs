use std::sync::Arc;
use std::time::Duration;

use anstream::println;
use anyhow::{Context, Result, bail, ensure};
use isobar_lab::Lab;
use isobar_objects::{
    DirectoryOptions, DirectorySource, Kind, ObjectRef, ObjectSet, ObjectSource, OverlayWriter,
    Published,
};
use isobar_types::labels;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::args::{Apply, Output, WaypointCommand};
use crate::page;
use crate::render::{self, items};

/// Longest wait for a waypoint to serve, or for proxies to follow.
const LIMIT: Duration = Duration::from_secs(30);
/// How often the control plane is asked meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// The objects of a lab, and where this command writes its own.
struct Objects {
    // Following ends when the source is dropped.
    _source: DirectorySource,
    published: watch::Receiver<Arc<Published>>,
    writer: OverlayWriter,
}

impl Objects {
    async fn open(lab: &Lab) -> Result<Self> {
        let status = lab.status().await?;
        let overlay = lab.paths().dir().join("objects");
        let source =
            DirectorySource::open(DirectoryOptions::new(status.objects, Some(overlay.clone())))?;
        let published = source.subscribe();
        let writer = OverlayWriter::new(overlay.join("cli"))?;
        Ok(Self {
            _source: source,
            published,
            writer,
        })
    }

    fn now(&self) -> Arc<ObjectSet> {
        Arc::clone(&self.published.borrow().objects)
    }
}

/// Carries out a command about waypoints.
pub(crate) async fn run(lab: &Lab, command: WaypointCommand, output: Output) -> Result<()> {
    let mut objects = Objects::open(lab).await?;
    match command {
        WaypointCommand::Apply(apply) => self::apply(&mut objects, apply).await,
        WaypointCommand::List { namespace } => list(&objects.now(), namespace.as_deref(), output),
        WaypointCommand::Delete { namespace, name } => {
            delete(lab, &mut objects, &namespace, &name).await
        }
    }
}

async fn apply(objects: &mut Objects, apply: Apply) -> Result<()> {
    let Apply {
        namespace,
        name,
        service_account,
        traffic,
        enroll_namespace,
        wait,
    } = apply;
    let name = name
        .or_else(|| service_account.clone())
        .unwrap_or_else(|| "waypoint".to_owned());
    let now = objects.now();
    ensure!(
        now.namespaces.get("", &namespace).is_some(),
        "there is no namespace {namespace}; create it first"
    );
    if let Some(account) = &service_account {
        ensure!(
            now.service_accounts.get(&namespace, account).is_some(),
            "there is no ServiceAccount {namespace}/{account}; create it first"
        );
    }
    let traffic = traffic.map_or_else(
        || {
            if service_account.is_some() {
                "all"
            } else {
                "service"
            }
        },
        |t| t.as_str(),
    );
    let reference = ObjectRef::new(Kind::Gateway, &namespace, &name);
    objects.writer.put_value(
        &reference,
        &gateway(&namespace, &name, traffic, service_account.as_deref()),
    )?;
    println!("waypoint {namespace}/{name} applied");
    let bind = |kind, object: &str| {
        let object = ObjectRef::new(kind, &namespace, object);
        let patch = json!({ "metadata": { "labels": { labels::USE_WAYPOINT: name } } });
        objects.writer.merge(&object, &patch)?;
        println!("{object} labelled {}={name}", labels::USE_WAYPOINT);
        anyhow::Ok(())
    };
    match service_account.as_deref() {
        Some(account) => bind(Kind::ServiceAccount, account)?,
        None if enroll_namespace => bind(Kind::Namespace, &namespace)?,
        None => {}
    }
    if wait {
        programmed(objects, &namespace, &name).await?;
        println!("waypoint {namespace}/{name} serves");
    }
    Ok(())
}

fn gateway(namespace: &str, name: &str, traffic: &str, account: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": { labels::WAYPOINT_FOR: traffic },
        },
        "spec": {
            "gatewayClassName": labels::WAYPOINT_CLASS,
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    if let Some(account) = account {
        object["metadata"]["annotations"] = json!({ labels::FOR_SERVICE_ACCOUNT: account });
    }
    object
}

/// Waits until the control plane says that a waypoint serves.
async fn programmed(objects: &mut Objects, namespace: &str, name: &str) -> Result<()> {
    let serving = objects.published.wait_for(|published| {
        let gateway = published.objects.gateways.get(namespace, name);
        gateway.is_some_and(|g| g.object.is_programmed())
    });
    match tokio::time::timeout(LIMIT, serving).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => bail!("the objects can no longer be read"),
        Err(_) => bail!(
            "waypoint {namespace}/{name} did not serve within {LIMIT:?}; \
             `isobar lab status` and `isobar status -v` tell more"
        ),
    }
}

/// Waypoints with their state and what is bound to them.
fn list(now: &ObjectSet, namespace: Option<&str>, output: Output) -> Result<()> {
    let gateways: Vec<_> = now
        .gateways
        .iter()
        .map(|held| serde_json::to_value(&held.object))
        .collect::<Result<_, _>>()?;
    let waypoints: Vec<Value> = gateways
        .iter()
        .filter(|g| {
            let class = g["spec"]["gatewayClassName"].as_str();
            [labels::WAYPOINT_CLASS, labels::ISTIO_WAYPOINT_CLASS]
                .map(Some)
                .contains(&class)
        })
        .filter(|g| namespace.is_none_or(|n| g["metadata"]["namespace"] == n))
        .map(|g| describe(now, g))
        .collect();
    let rows = waypoints
        .iter()
        .map(|w| {
            [
                "namespace",
                "name",
                "programmed",
                "for",
                "serviceAccount",
                "boundTo",
            ]
            .map(|key| render::text(w, key))
            .to_vec()
        })
        .collect();
    let header = [
        "NAMESPACE",
        "NAME",
        "PROGRAMMED",
        "FOR",
        "SERVICE ACCOUNT",
        "BOUND",
    ];
    render::rows(output, &header, rows, &json!(waypoints))
}

fn describe(now: &ObjectSet, gateway: &Value) -> Value {
    let metadata = &gateway["metadata"];
    let (namespace, name) = (
        metadata["namespace"].as_str().unwrap_or("default"),
        metadata["name"].as_str().unwrap_or_default(),
    );
    let programmed = items(&gateway["status"]["conditions"])
        .find(|c| c["type"] == "Programmed")
        .map_or("Unknown", |c| c["status"].as_str().unwrap_or("Unknown"));
    let bound: Vec<_> = bound(now, namespace, name)
        .iter()
        .map(ToString::to_string)
        .collect();
    json!({
        "namespace": namespace,
        "name": name,
        "programmed": programmed,
        "for": metadata["labels"][labels::WAYPOINT_FOR].as_str().unwrap_or("service"),
        "serviceAccount": metadata["annotations"][labels::FOR_SERVICE_ACCOUNT],
        "boundTo": bound,
    })
}

/// What names the waypoint in its label: the namespace, accounts, services and pods.
fn bound(now: &ObjectSet, namespace: &str, name: &str) -> Vec<ObjectRef> {
    let mut all = Vec::new();
    macro_rules! look {
        ($map:ident, $kind:ident) => {
            for held in now.$map.iter() {
                let head = &held.object.metadata;
                let label = |key: &str| head.labels.as_ref().and_then(|l| l.get(key));
                let own = match Kind::$kind {
                    Kind::Namespace => head.name.as_deref(),
                    _ => head.namespace.as_deref(),
                };
                let of = label(labels::USE_WAYPOINT_NAMESPACE)
                    .map(String::as_str)
                    .or(own);
                if label(labels::USE_WAYPOINT).is_some_and(|w| w == name) && of == Some(namespace) {
                    let object = head.name.as_deref().unwrap_or_default();
                    all.push(ObjectRef::new(Kind::$kind, own.unwrap_or_default(), object));
                }
            }
        };
    }
    look!(namespaces, Namespace);
    look!(service_accounts, ServiceAccount);
    look!(services, Service);
    look!(pods, Pod);
    all
}

/// Unbinds first, waits until every proxy follows, then deletes: nothing is refused on the way.
async fn delete(lab: &Lab, objects: &mut Objects, namespace: &str, name: &str) -> Result<()> {
    let reference = ObjectRef::new(Kind::Gateway, namespace, name);
    let now = objects.now();
    ensure!(
        now.gateways.get(namespace, name).is_some(),
        "there is no waypoint {namespace}/{name}; `isobar waypoint list` shows them all"
    );
    for object in bound(&now, namespace, name) {
        // Null takes the label away wherever it was written; the latch goes with it.
        let patch = json!({ "metadata": {
            "labels": { labels::USE_WAYPOINT: null },
            "annotations": { labels::WAYPOINT_LATCHED: null },
        } });
        objects.writer.merge(&object, &patch)?;
        println!("{object} unbound");
    }
    objects
        .published
        .wait_for(|published| bound(&published.objects, namespace, name).is_empty())
        .await
        .context("the objects can no longer be read")?;
    in_step(lab).await?;
    let file = objects
        .writer
        .dir()
        .join(format!("gateway.{namespace}.{name}.json"));
    if file.exists() {
        objects.writer.remove(&reference)?;
        println!("waypoint {namespace}/{name} deleted");
    } else {
        let origin = now
            .gateways
            .get(namespace, name)
            .map(|h| format!("{:?}", h.origin));
        bail!(
            "nothing uses {namespace}/{name} any more, but its Gateway is in a file of yours; \
             remove it there: {}",
            origin.unwrap_or_default()
        );
    }
    Ok(())
}

/// Waits until every connected proxy has acknowledged all there is.
async fn in_step(lab: &Lab) -> Result<()> {
    let start = std::time::Instant::now();
    let mut calm = 0;
    while calm < 3 {
        let sync = page::control_plane(lab, "/debug/syncz").await?;
        let behind = items(&sync["clients"]).any(|client| {
            let types = client["types"].as_object().into_iter().flatten();
            types
                .into_iter()
                .any(|(_, t)| t["waitingSeconds"].is_number() || t["status"] == "STALE")
        });
        calm = if behind { 0 } else { calm + 1 };
        ensure!(
            start.elapsed() < LIMIT,
            "some proxy does not follow; see `isobar status`"
        );
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
