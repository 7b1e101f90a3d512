//! `isobar waypoint`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use isobar_lab::{Lab, Target};
use isobar_objects::gateway_api::{Gateway, GatewaySpec, Listener};
use isobar_objects::{
    Deployment, DirectoryOptions, DirectorySource, Kind, Namespace, Object, ObjectHead, ObjectRef,
    ObjectSet, ObjectSource as _, Origin, OverlayWriter, Pod, Published, Service, ServiceAccount,
};
use isobar_types::{labels, ports};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::arguments::{Apply, Global, Traffic, Waypoint};
use crate::lab_access::{CONTROL_PLANE, chosen, page};
use crate::output::{Format, Table, cell, print, print_value};

const POLL: Duration = Duration::from_millis(100);
/// Longest time for proxies to learn of an unbinding before the waypoint goes.
const UNBIND: Duration = Duration::from_secs(10);

pub(crate) async fn run(what: Waypoint, global: &Global) -> anyhow::Result<ExitCode> {
    let place = Place::open(chosen(global.lab.as_deref())?).await?;
    match what {
        Waypoint::Apply(apply) => place.apply(&apply).await?,
        Waypoint::List { namespace } => place.list(namespace.as_deref(), global.output)?,
        Waypoint::Status { name, namespace } => {
            place.status(name.as_deref(), namespace.as_deref(), global.output)?;
        }
        Waypoint::Delete {
            names,
            all,
            force,
            namespace,
        } => place.delete(&namespace, &names, all, force).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The objects of a lab, and where this command writes its own.
struct Place {
    lab: Lab,
    // Following ends when the source is dropped.
    _source: DirectorySource,
    published: watch::Receiver<Arc<Published>>,
    writer: OverlayWriter,
}

impl Place {
    async fn open(lab: Lab) -> anyhow::Result<Self> {
        let status = lab.status().await?;
        let overlay = lab.paths().overlay();
        let writer = OverlayWriter::new(overlay.join("cli"))?;
        let source = DirectorySource::open(DirectoryOptions::new(status.objects, Some(overlay)))
            .context("reading the objects")?;
        Ok(Self {
            published: source.subscribe(),
            _source: source,
            writer,
            lab,
        })
    }

    fn objects(&self) -> Arc<ObjectSet> {
        Arc::clone(&self.published.borrow().objects)
    }

    /// Waits until the objects are as `wanted` says; false when the time is over.
    async fn become_so(&self, limit: Duration, wanted: impl Fn(&ObjectSet) -> bool) -> bool {
        let mut published = self.published.clone();
        let so = published.wait_for(|published| wanted(&published.objects));
        matches!(tokio::time::timeout(limit, so).await, Ok(Ok(_)))
    }

    async fn apply(&self, apply: &Apply) -> anyhow::Result<()> {
        let account = apply.service_account.as_deref();
        let name = &name_of(apply);
        let objects = self.objects();
        self.check(&objects, apply, name)?;
        self.writer.put(&gateway(apply, name).into())?;
        print(&format!("waypoint {}/{name} applied\n", apply.namespace))?;
        let bind = json!({ "metadata": { "labels": { labels::USE_WAYPOINT: name } } });
        if apply.enroll_namespace {
            let namespace = ObjectRef::new(Kind::Namespace, "", &apply.namespace);
            self.writer.merge(&namespace, &bind)?;
            print(&format!(
                "namespace {} uses waypoint {name}\n",
                apply.namespace
            ))?;
        }
        if let Some(account) = account {
            let reference = ObjectRef::new(Kind::ServiceAccount, &apply.namespace, account);
            if objects
                .service_accounts
                .get(&apply.namespace, account)
                .is_none()
            {
                self.writer
                    .put(&service_account(&apply.namespace, account, name)?)?;
            } else {
                self.writer.merge(&reference, &bind)?;
            }
            print(&format!(
                "service account {}/{account} uses waypoint {name}\n",
                apply.namespace
            ))?;
        }
        if apply.wait {
            self.wait(&apply.namespace, name, apply.timeout).await?;
            print(&format!("waypoint {}/{name} is ready\n", apply.namespace))?;
        }
        Ok(())
    }

    /// What would surprise later.
    fn check(&self, objects: &ObjectSet, apply: &Apply, name: &str) -> anyhow::Result<()> {
        let Some(namespace) = objects.namespaces.get("", &apply.namespace) else {
            bail!(
                "there is no namespace {}; namespaces are: {}",
                apply.namespace,
                objects
                    .namespaces
                    .iter()
                    .map(|n| n.name())
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        };
        let taken = taken(objects, &apply.namespace, name);
        if !taken.is_empty() {
            bail!(
                "a waypoint called {name} would need objects that are somebody else's: {}; \
                 choose another name with --name",
                taken.join(", ")
            );
        }
        let account = apply
            .service_account
            .as_deref()
            .and_then(|account| objects.service_accounts.get(&apply.namespace, account));
        let bound = [
            apply
                .enroll_namespace
                .then(|| namespace.label(labels::USE_WAYPOINT)),
            account.map(|account| account.label(labels::USE_WAYPOINT)),
        ];
        let other = bound
            .into_iter()
            .flatten()
            .flatten()
            .find(|other| *other != name);
        if let Some(other) = other.filter(|_| !apply.overwrite) {
            bail!("it is bound to waypoint {other} already; --overwrite binds it to {name}");
        }
        if isobar_objects::enrolment::mode(&namespace.object) != Some(labels::MODE_AMBIENT) {
            anstream::eprintln!(
                "warning: namespace {} is not in the mesh: label it {}={}",
                apply.namespace,
                labels::DATAPLANE_MODE,
                labels::MODE_AMBIENT
            );
        }
        Ok(())
    }

    async fn wait(&self, namespace: &str, name: &str, limit: Duration) -> anyhow::Result<()> {
        let ready = |objects: &ObjectSet| {
            let gateway = objects.gateways.get(namespace, name);
            gateway.is_some_and(|gateway| gateway.is_programmed())
        };
        if self.become_so(limit, ready).await {
            return Ok(());
        }
        let objects = self.objects();
        let gateway = objects.gateways.get(namespace, name);
        let why = gateway.map_or_else(String::new, |gateway| unready(gateway));
        bail!(
            "waypoint {namespace}/{name} is not ready after {limit:?}{why}; \
             `isobar waypoint status -n {namespace} {name}` and `isobar lab status` tell more"
        )
    }

    fn list(&self, namespace: Option<&str>, format: Format) -> anyhow::Result<()> {
        let objects = self.objects();
        let found = waypoints(&objects, namespace, None);
        if format != Format::Table {
            return print_value(&values(&found)?, format);
        }
        if found.is_empty() {
            return print("no waypoints; `isobar waypoint apply` deploys one\n");
        }
        print(&list_table(&objects, &found).render())
    }

    fn status(
        &self,
        name: Option<&str>,
        namespace: Option<&str>,
        format: Format,
    ) -> anyhow::Result<()> {
        let objects = self.objects();
        let found = waypoints(&objects, namespace, name);
        if let (true, Some(name)) = (found.is_empty(), name) {
            bail!("there is no waypoint {name}; `isobar waypoint list` shows those there are");
        }
        if format != Format::Table {
            return print_value(&values(&found)?, format);
        }
        print(&status_table(&found).render())
    }

    async fn delete(
        &self,
        namespace: &str,
        names: &[String],
        all: bool,
        force: bool,
    ) -> anyhow::Result<()> {
        let objects = self.objects();
        let names: Vec<String> = if all {
            let found = waypoints(&objects, Some(namespace), None);
            found
                .iter()
                .map(|gateway| gateway.name().to_owned())
                .collect()
        } else {
            names.to_vec()
        };
        for name in &names {
            let Some(gateway) = objects.gateways.get(namespace, name) else {
                bail!("there is no waypoint {namespace}/{name}; `isobar waypoint list` shows them");
            };
            let file = format!("gateway.{namespace}.{name}.json");
            if !self.writer.dir().join(file).exists() {
                bail!(
                    "the Gateway of waypoint {namespace}/{name} is in {}; delete it there",
                    place_of(&gateway.origin)
                );
            }
            self.unbind(namespace, name, force).await?;
            self.writer
                .remove(&ObjectRef::new(Kind::Gateway, namespace, name))?;
            print(&format!("waypoint {namespace}/{name} deleted\n"))?;
        }
        Ok(())
    }

    /// Takes back the labels this command wrote, and waits until every proxy knows: nothing is
    /// refused on the way. A label in a file of the user's is the user's to remove.
    async fn unbind(&self, namespace: &str, name: &str, force: bool) -> anyhow::Result<()> {
        let (written, yours): (Vec<_>, Vec<_>) = bound(&self.objects(), namespace, name)
            .into_iter()
            .partition(|(reference, _)| self.wrote(reference));
        if !yours.is_empty() && !force {
            let list: Vec<_> = yours
                .iter()
                .map(|(reference, origin)| format!("{reference} ({})", place_of(origin)))
                .collect();
            bail!(
                "these name waypoint {namespace}/{name} by themselves: {}; remove the label {} \
                 there first, or say --force and their traffic is refused",
                list.join(", "),
                labels::USE_WAYPOINT
            );
        }
        if written.is_empty() {
            return Ok(());
        }
        let before = self.sync().await.ok();
        for (reference, _) in &written {
            self.writer.remove(reference)?;
            print(&format!("{reference} unbound\n"))?;
        }
        let gone = |objects: &ObjectSet| bound(objects, namespace, name).len() == yours.len();
        self.become_so(UNBIND, gone).await;
        if let Some(before) = before {
            self.settled_after(&before).await;
        }
        Ok(())
    }

    /// True if the label comes from a file this command wrote.
    fn wrote(&self, reference: &ObjectRef) -> bool {
        let kind = reference.kind.to_lowercase();
        let file = if reference.namespace.is_empty() {
            format!("{kind}.{}", reference.name)
        } else {
            format!("{kind}.{}.{}", reference.namespace, reference.name)
        };
        [".patch.json", ".json"]
            .iter()
            .any(|end| self.writer.dir().join(format!("{file}{end}")).exists())
    }

    async fn sync(&self) -> anyhow::Result<Value> {
        page(&self.lab, Target::Outer, CONTROL_PLANE, "/debug/syncz").await
    }

    /// Waits until there is a newer revision than before and every proxy has it. Without a control
    /// plane, or when a proxy does not answer, the deletion goes on after a while.
    async fn settled_after(&self, before: &Value) {
        let start = Instant::now();
        while start.elapsed() < UNBIND {
            tokio::time::sleep(POLL).await;
            let Ok(now) = self.sync().await else { return };
            if now["revision"].as_u64() > before["revision"].as_u64() && settled(&now) {
                return;
            }
        }
        anstream::eprintln!("warning: not every proxy has confirmed the unbinding");
    }
}

/// What names a waypoint in its label, and where that is written: the namespace, accounts, services
/// and pods.
fn bound(objects: &ObjectSet, namespace: &str, name: &str) -> Vec<(ObjectRef, Origin)> {
    fn of<T: ObjectHead>(
        objects: &ObjectSet,
        namespace: &str,
        name: &str,
        all: &mut Vec<(ObjectRef, Origin)>,
    ) {
        for held in T::map(objects).iter() {
            let own = if T::KIND == Kind::Namespace {
                held.name()
            } else {
                held.namespace()
            };
            let place = held.label(labels::USE_WAYPOINT_NAMESPACE).unwrap_or(own);
            if held.label(labels::USE_WAYPOINT) == Some(name) && place == namespace {
                all.push((held.reference(), held.origin.clone()));
            }
        }
    }
    let mut all = Vec::new();
    of::<Namespace>(objects, namespace, name, &mut all);
    of::<ServiceAccount>(objects, namespace, name, &mut all);
    of::<Service>(objects, namespace, name, &mut all);
    of::<Pod>(objects, namespace, name, &mut all);
    all
}

/// `FILE:LINE`.
fn place_of(origin: &Origin) -> String {
    format!("{}:{}", origin.file.display(), origin.line)
}

fn settled(sync: &Value) -> bool {
    let clients = sync["clients"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    clients.iter().all(|client| {
        let types = client["types"].as_object().into_iter().flatten();
        types
            .into_iter()
            .all(|(_, state)| state["status"] != "STALE")
    })
}

/// The name asked for; otherwise one that is not the account's, which is taken by the account.
fn name_of(apply: &Apply) -> String {
    match (&apply.name, &apply.service_account) {
        (Some(name), _) => name.clone(),
        (None, Some(account)) => format!("{account}-waypoint"),
        (None, None) => "waypoint".to_owned(),
    }
}

/// Objects of others by the names that the waypoint's own would have.
fn taken(objects: &ObjectSet, namespace: &str, name: &str) -> Vec<String> {
    fn of<T: ObjectHead>(objects: &ObjectSet, namespace: &str, name: &str) -> Option<String> {
        let held = T::map(objects).get(namespace, name)?;
        let own = held.label(labels::GATEWAY_NAME) == Some(name);
        (!own).then(|| held.reference().to_string())
    }
    [
        of::<Service>(objects, namespace, name),
        of::<ServiceAccount>(objects, namespace, name),
        of::<Deployment>(objects, namespace, name),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn gateway(apply: &Apply, name: &str) -> Gateway {
    let spec = GatewaySpec {
        gateway_class_name: labels::WAYPOINT_CLASS.to_owned(),
        listeners: vec![Listener {
            name: "mesh".to_owned(),
            port: i32::from(ports::HBONE),
            protocol: "HBONE".to_owned(),
            ..Listener::default()
        }],
        ..GatewaySpec::default()
    };
    let mut gateway = Gateway::new(&apply.namespace, name, spec);
    let traffic = match (apply.traffic, &apply.service_account) {
        (Some(traffic), _) => traffic,
        // An account's waypoint guards its pods by whatever address they are called.
        (None, Some(_)) => Traffic::All,
        (None, None) => Traffic::Service,
    };
    let all = gateway.head_mut().labels.get_or_insert_default();
    all.insert(labels::WAYPOINT_FOR.to_owned(), traffic.as_str().to_owned());
    if let Some(account) = &apply.service_account {
        let all = gateway.head_mut().annotations.get_or_insert_default();
        all.insert(labels::FOR_SERVICE_ACCOUNT.to_owned(), account.clone());
    }
    gateway
}

fn service_account(namespace: &str, account: &str, waypoint: &str) -> anyhow::Result<Object> {
    let object: ServiceAccount = serde_json::from_value(json!({
        "metadata": {
            "namespace": namespace,
            "name": account,
            "labels": { labels::USE_WAYPOINT: waypoint },
        }
    }))?;
    Ok(object.into())
}

fn waypoints<'a>(
    objects: &'a ObjectSet,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Vec<&'a Gateway> {
    let ours = [labels::WAYPOINT_CLASS, labels::ISTIO_WAYPOINT_CLASS];
    objects
        .gateways
        .iter()
        .map(|held| &held.object)
        .filter(|gateway| ours.contains(&gateway.spec.gateway_class_name.as_str()))
        .filter(|gateway| namespace.is_none_or(|namespace| gateway.namespace() == namespace))
        .filter(|gateway| name.is_none_or(|name| gateway.name() == name))
        .collect()
}

fn values(gateways: &[&Gateway]) -> anyhow::Result<Value> {
    let all: Result<Vec<Value>, _> = gateways.iter().map(serde_json::to_value).collect();
    Ok(all?.into())
}

fn list_table(objects: &ObjectSet, gateways: &[&Gateway]) -> Table {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "TRAFFIC TYPE",
        "SERVICE ACCOUNT",
        "PROGRAMMED",
        "BOUND",
    ]);
    for gateway in gateways {
        let programmed = if gateway.is_programmed() {
            "True"
        } else {
            "False"
        };
        table.row([
            gateway.namespace().to_owned(),
            gateway.name().to_owned(),
            gateway
                .label(labels::WAYPOINT_FOR)
                .unwrap_or("service")
                .to_owned(),
            gateway
                .annotation(labels::FOR_SERVICE_ACCOUNT)
                .unwrap_or("-")
                .to_owned(),
            programmed.to_owned(),
            bound_text(objects, gateway),
        ]);
    }
    table
}

fn bound_text(objects: &ObjectSet, gateway: &Gateway) -> String {
    let all = bound(objects, gateway.namespace(), gateway.name());
    let names: Vec<_> = all.iter().map(|(object, _)| object.to_string()).collect();
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(", ")
    }
}

fn status_table(gateways: &[&Gateway]) -> Table {
    let mut table = Table::new(["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"]);
    for gateway in gateways {
        let conditions = gateway.gateway_status().unwrap_or_default().conditions;
        let head = || [gateway.namespace().to_owned(), gateway.name().to_owned()];
        if conditions.is_empty() {
            let rest = [
                "Unknown",
                "-",
                "-",
                "the control plane has said nothing yet",
            ];
            table.row(head().into_iter().chain(rest.map(str::to_owned)));
        }
        for condition in conditions {
            let rest = [
                condition.status,
                condition.type_,
                condition.reason,
                condition.message,
            ];
            table.row(head().into_iter().chain(rest));
        }
    }
    table
}

/// The conditions that do not hold, for an error message.
fn unready(gateway: &Gateway) -> String {
    let conditions = gateway.gateway_status().unwrap_or_default().conditions;
    conditions
        .iter()
        .filter(|condition| condition.status != "True")
        .map(|condition| format!("; {}: {}", condition.type_, cell(&json!(condition.message))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::plain;
    use clap::Parser;

    fn apply(line: &str) -> Apply {
        let parsed = crate::arguments::Isobar::parse_from(line.split(' '));
        match parsed.command {
            crate::arguments::Command::Waypoint(Waypoint::Apply(apply)) => apply,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn a_gateway_says_what_was_asked() {
        let apply = apply("isobar waypoint apply -n shop --service-account cart --for all");
        let object: Object = gateway(&apply, "cart").into();
        insta::assert_snapshot!(serde_json::to_string_pretty(&object.to_value().unwrap()).unwrap());
    }

    #[test]
    fn waypoints_in_tables() {
        let apply = apply("isobar waypoint apply -n shop --service-account cart");
        let mut ready = gateway(&apply, "cart");
        ready.status = Some(
            json!({"conditions": [{"type": "Programmed", "status": "True",
            "reason": "Programmed", "message": "serves", "lastTransitionTime":
            "2026-01-01T00:00:00Z"}]}),
        );
        let fresh = gateway(&apply, "fresh");
        let all = [&ready, &fresh];
        let account = service_account("shop", "cart", "cart").unwrap();
        let objects = ObjectSet::of([account]);
        let text = plain(&list_table(&objects, &all)) + "\n" + &plain(&status_table(&all));
        insta::assert_snapshot!(text);
        assert!(unready(&fresh).is_empty());
    }

    #[test]
    fn names_of_others_are_not_taken() {
        let apply = apply("isobar waypoint apply -n shop --service-account cart");
        assert_eq!(name_of(&apply), "cart-waypoint");
        let account = service_account("shop", "cart", "cart-waypoint").unwrap();
        let objects = ObjectSet::of([account]);
        assert_eq!(
            taken(&objects, "shop", "cart"),
            ["ServiceAccount shop/cart"]
        );
        assert!(taken(&objects, "shop", "cart-waypoint").is_empty());
        assert!(taken(&objects, "other", "cart").is_empty());
    }

    #[test]
    fn settled_means_nobody_is_behind() {
        let sync = |status: &str| json!({"clients": [{"types": {"Address": {"status": status}}}]});
        assert!(settled(&sync("SYNCED")) && settled(&sync("NOT SENT")));
        assert!(!settled(&sync("STALE")));
    }
}
