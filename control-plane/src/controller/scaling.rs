//! Scalers and disruption budgets of waypoints, and the ConfigMaps that ask for them.
//!
//! They are no objects of the mesh: nobody watches them. What was written is remembered, and found by
//! label after a change of the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isobar_kubernetes::{Cluster, ConfigMapError, Extra, ExtraError, ExtraRef};
use isobar_objects::ObjectHead as _;
use isobar_objects::gateway_api::Gateway;
use isobar_runtime::Lifetime;
use isobar_types::{NamespacedName, labels};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::gateway::{CLASS_NAME, metadata};
use super::parameters::{Overlay, Parameters};
use crate::engine::Planned;
use crate::model::{MANAGED, MANAGER as CONTROLLER, is_managed};

/// How often ConfigMaps are read again, whoever changed them.
const AGAIN: Duration = Duration::from_secs(10);
/// The same after a failure, and failures after which waypoints are run without.
const SOON: Duration = Duration::from_secs(1);
const MOST: u32 = 5;
/// Label of a ConfigMap in the root namespace that counts for every Gateway of a class.
const DEFAULTS: &str = "gateway.istio.io/defaults-for-class";
/// What may be asked for, by key of the ConfigMap.
const EXTRAS: [(&str, Extra); 2] = [
    ("horizontalPodAutoscaler", Extra::Scaler),
    ("podDisruptionBudget", Extra::Budget),
];

/// Reads parameters, and writes what only they ask for.
pub(crate) struct Scaling {
    cluster: Cluster,
    manager: String,
    root_namespace: String,
    /// Classes of Gateways that are ours.
    classes: Vec<String>,
    parameters: watch::Sender<Arc<Parameters>>,
    /// What was asked of ConfigMaps last, and when.
    asked: Option<(Asked, Instant)>,
    /// What is there; `None` while others may have written.
    written: Option<BTreeMap<ExtraRef, Value>>,
}

/// Class and own ConfigMap of every Gateway.
type Asked = BTreeMap<NamespacedName, (String, Option<Result<String, String>>)>;

impl Scaling {
    /// Reads nothing before it runs.
    pub(crate) fn new(
        cluster: Cluster,
        manager: &str,
        root_namespace: &str,
        classes: Vec<String>,
    ) -> Self {
        Self {
            manager: manager.to_owned(),
            cluster,
            root_namespace: root_namespace.to_owned(),
            classes,
            parameters: watch::Sender::default(),
            asked: None,
            written: None,
        }
    }

    /// What ConfigMaps say.
    pub(crate) fn parameters(&self) -> watch::Receiver<Arc<Parameters>> {
        self.parameters.subscribe()
    }

    /// Follows plans until `life` ends; does nothing while `leads` is not true.
    pub(crate) async fn run(
        mut self,
        mut plans: watch::Receiver<Option<Planned>>,
        mut leads: watch::Receiver<bool>,
        life: Lifetime,
    ) {
        let mut failures = 0;
        loop {
            let planned = plans.borrow_and_update().clone();
            let is_leader = *leads.borrow_and_update();
            if let Some(planned) = planned.filter(|_| is_leader) {
                match self.read(&planned).await {
                    Ok(()) => failures = 0,
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(%error, "parameters of waypoints could not be read");
                        self.do_without(&planned, failures);
                    }
                }
                if let Err(error) = self.write(&planned).await {
                    tracing::warn!(%error, "scalers of waypoints could not be written");
                }
            } else {
                self.written = None;
            }
            tokio::select! {
                () = life.draining() => return,
                changed = plans.changed() => if changed.is_err() { return },
                changed = leads.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(if failures == 0 { AGAIN } else { SOON }) => {}
            }
        }
    }

    async fn read(&mut self, planned: &Planned) -> Result<(), ConfigMapError> {
        let asked = asked(planned);
        let is_known = self
            .asked
            .as_ref()
            .is_some_and(|(before, at)| *before == asked && at.elapsed() < AGAIN);
        if is_known {
            return Ok(());
        }
        let mut classes = BTreeMap::new();
        if !asked.is_empty() {
            let found = self.cluster.config_maps(&self.root_namespace, DEFAULTS);
            for (name, (labels, data)) in found.await? {
                let class = labels.get(DEFAULTS).cloned().unwrap_or_default();
                // The first by name, where there are several.
                classes.entry(class).or_insert((name, Overlay::read(&data)));
            }
        }
        let last = self.parameters.borrow().clone();
        let mut next = Parameters::default();
        for (key, (class, own)) in &asked {
            let of_class = match classes.get(class) {
                Some((name, Err(error))) => {
                    Err(format!("ConfigMap {}/{name}: {error}", self.root_namespace))
                }
                Some((_, Ok(overlay))) => Ok(overlay.clone()),
                None => Ok(Overlay::default()),
            };
            let of_gateway = match own {
                None => Ok(Overlay::default()),
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(name)) => {
                    let found = self.cluster.config_map(&key.namespace, name).await?;
                    let place = format!("ConfigMap {}/{name}", key.namespace);
                    found.map_or_else(
                        || Err(format!("{place} is not there")),
                        |data| Overlay::read(&data).map_err(|error| format!("{place}: {error}")),
                    )
                }
            };
            let overlay = match of_class.and_then(|below| Ok(of_gateway?.over(&below))) {
                Ok(overlay) => overlay,
                Err(error) => {
                    next.mistakes.insert(key.clone(), error);
                    last.overlays.get(key).cloned().unwrap_or_default()
                }
            };
            next.overlays.insert(key.clone(), overlay);
        }
        self.asked = Some((asked, Instant::now()));
        self.parameters.send_if_modified(|known| {
            let is_new = **known != next;
            if is_new {
                *known = Arc::new(next);
            }
            is_new
        });
        Ok(())
    }

    /// A waypoint whose ConfigMaps cannot be read has to run all the same.
    fn do_without(&self, planned: &Planned, failures: u32) {
        if failures < MOST {
            return;
        }
        self.parameters.send_if_modified(|known| {
            let gateways = planned.plan.gateways.iter().map(|facts| &facts.key);
            let missing: Vec<_> = gateways
                .filter(|key| !known.overlays.contains_key(key))
                .cloned()
                .collect();
            let unknown = !missing.is_empty();
            let overlays = &mut Arc::make_mut(known).overlays;
            overlays.extend(missing.into_iter().map(|key| (key, Overlay::default())));
            unknown
        });
    }

    async fn write(&mut self, planned: &Planned) -> Result<(), ExtraError> {
        let wanted = wanted(planned, &self.parameters.borrow().clone());
        let mut written = match self.written.take() {
            Some(written) => written,
            None => self.earlier().await?,
        };
        let done = self.bring(&mut written, wanted).await;
        self.written = Some(written);
        done
    }

    /// The first failure is told, after everything was tried.
    async fn bring(
        &self,
        written: &mut BTreeMap<ExtraRef, Value>,
        wanted: BTreeMap<ExtraRef, Value>,
    ) -> Result<(), ExtraError> {
        let mut failed = None;
        let gone: Vec<ExtraRef> = written
            .keys()
            .filter(|object| !wanted.contains_key(*object))
            .cloned()
            .collect();
        for object in gone {
            match self.cluster.delete_extra(&object).await {
                Ok(()) => drop(written.remove(&object)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for (object, value) in wanted {
            if written.get(&object) == Some(&value) {
                continue;
            }
            let (manager, label) = (&*self.manager, (MANAGED, CONTROLLER));
            let done = self.cluster.apply_extra(&object, &value, manager, label);
            match done.await {
                Ok(()) => drop(written.insert(object, value)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// What earlier lives of this process, or other replicas, wrote for Gateways of our classes.
    async fn earlier(&self) -> Result<BTreeMap<ExtraRef, Value>, ExtraError> {
        let mut found = BTreeMap::new();
        let selector = format!("{MANAGED}={CONTROLLER}");
        for (_, kind) in EXTRAS {
            let all = self.cluster.extras(kind, &selector).await?.into_iter();
            let ours = all.filter(|(_, labels)| {
                let class = labels.get(CLASS_NAME);
                class.is_some_and(|class| self.classes.contains(class))
            });
            found.extend(ours.map(|(object, _)| (object, Value::Null)));
        }
        Ok(found)
    }
}

fn asked(planned: &Planned) -> Asked {
    let set = &planned.published.objects;
    let gateways = planned.plan.gateways.iter().filter_map(|facts| {
        let gateway = set.gateways.get(&facts.key.namespace, &facts.key.name)?;
        let own = gateway.spec.infrastructure.as_ref();
        let own = own.and_then(|own| own.parameters_ref.as_ref());
        let own = own.map(|own| match (&*own.group, &*own.kind) {
            ("", "ConfigMap") => Ok(own.name.clone()),
            (group, kind) => Err(format!(
                "parametersRef must name a ConfigMap of the core group, not {kind} of {group:?}"
            )),
        });
        let class = gateway.spec.gateway_class_name.clone();
        Some((facts.key.clone(), (class, own)))
    });
    gateways.collect()
}

/// Only beside a Deployment that is ours.
fn wanted(planned: &Planned, parameters: &Parameters) -> BTreeMap<ExtraRef, Value> {
    let set = &planned.published.objects;
    let mut all = BTreeMap::new();
    for facts in &planned.plan.gateways {
        let (namespace, name) = (&*facts.key.namespace, &*facts.key.name);
        let deployment = set.deployments.get(namespace, name);
        let is_ours = deployment.is_some_and(|one| is_managed(one.labels()));
        let gateway = set.gateways.get(namespace, name).filter(|_| is_ours);
        let overlay = parameters.overlays.get(&facts.key);
        let (Some(gateway), Some(overlay)) = (gateway, overlay) else {
            continue;
        };
        for (key, kind) in EXTRAS {
            let place = ExtraRef {
                kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            let object = overlay.extra(key, base(gateway, kind));
            all.extend(object.map(|object| (place, object)));
        }
    }
    all
}

fn base(gateway: &Gateway, kind: Extra) -> Value {
    let spec = match kind {
        Extra::Scaler => json!({ "scaleTargetRef": {
            "apiVersion": "apps/v1", "kind": "Deployment", "name": gateway.name(),
        } }),
        Extra::Budget => {
            json!({ "selector": { "matchLabels": { labels::GATEWAY_NAME: gateway.name() } } })
        }
    };
    json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind(),
        "metadata": metadata(gateway, gateway.name()),
        "spec": spec,
    })
}
