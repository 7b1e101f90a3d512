//! Scalers and disruption budgets of waypoints, and the ConfigMaps that ask for them.
//!
//! They are no objects of the mesh: nobody watches them. What was written is remembered, and found by
//! label after a change of the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isobar_kubernetes::{Cluster, ConfigMapError, Extra, ExtraError, ExtraRef, Texts};
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
use crate::model::{MANAGED, MANAGER as CONTROLLER, is_managed, name_of};
use crate::revision::Revision;

/// How often ConfigMaps are read again, whoever changed them.
const AGAIN: Duration = Duration::from_secs(10);
/// How often what was written is written again, whoever changed or removed it.
const ANEW: Duration = Duration::from_secs(60);
/// The same while the server does not answer.
const SOON: Duration = Duration::from_secs(1);
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
    /// Classes of Gateways that are ours, and what we are called.
    classes: Vec<String>,
    revision: Revision,
    /// What the server says about what it does not take.
    refused: BTreeMap<NamespacedName, String>,
    parameters: watch::Sender<Arc<Parameters>>,
    /// What was asked of ConfigMaps last, and when.
    asked: Option<(Asked, Instant)>,
    /// What is there; `None` while others may have written.
    written: Option<BTreeMap<ExtraRef, Value>>,
    /// When everything was last written, changed or not.
    anew: Instant,
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
        revision: Revision,
    ) -> Self {
        Self {
            manager: manager.to_owned(),
            cluster,
            root_namespace: root_namespace.to_owned(),
            classes,
            revision,
            refused: BTreeMap::new(),
            parameters: watch::Sender::default(),
            asked: None,
            written: None,
            anew: Instant::now(),
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
        loop {
            let mut answers = true;
            let planned = plans.borrow_and_update().clone();
            let is_leader = *leads.borrow_and_update();
            if let Some(planned) = planned.filter(|_| is_leader) {
                answers = self.read(&planned).await;
                if let Err(error) = self.write(&planned).await {
                    tracing::warn!(%error, "scalers of waypoints could not be written");
                }
                let refused = &self.refused;
                self.parameters.send_if_modified(|known| {
                    let is_new = known.refused != *refused;
                    if is_new {
                        Arc::make_mut(known).refused.clone_from(refused);
                    }
                    is_new
                });
            } else {
                self.written = None;
            }
            tokio::select! {
                () = life.draining() => return,
                changed = plans.changed() => if changed.is_err() { return },
                changed = leads.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(if answers { AGAIN } else { SOON }) => {}
            }
        }
    }

    /// False if the server does not answer, so that it has to be asked again soon.
    async fn read(&mut self, planned: &Planned) -> bool {
        let asked = asked(planned, &self.revision);
        let is_known = self
            .asked
            .as_ref()
            .is_some_and(|(before, at)| *before == asked && at.elapsed() < AGAIN);
        if is_known {
            return true;
        }
        let mut answers = true;
        let mut tell = |error: &ConfigMapError| {
            answers &= error.is_answer();
            tracing::warn!(%error, "parameters of waypoints could not be read");
            answers
        };
        let mut classes = Ok(BTreeMap::new());
        let mut own = BTreeMap::new();
        if !asked.is_empty() {
            let found = self.cluster.config_maps(&self.root_namespace, DEFAULTS);
            classes = found.await;
        }
        let mut goes_on = classes.as_ref().map_err(&mut tell).err() != Some(false);
        for (key, (_, name)) in &asked {
            let Some(Ok(name)) = name else { continue };
            if !goes_on {
                break;
            }
            let found = self.cluster.config_map(&key.namespace, name).await;
            goes_on = found.as_ref().map_err(&mut tell).err() != Some(false);
            own.insert(key.clone(), found);
        }
        let found = Found {
            classes,
            own,
            root_namespace: &self.root_namespace,
        };
        let mut next = found.settle(&asked, &self.parameters.borrow().clone());
        next.refused.clone_from(&self.refused);
        self.asked = answers.then(|| (asked, Instant::now()));
        self.parameters.send_if_modified(|known| {
            let is_new = **known != next;
            if is_new {
                *known = Arc::new(next);
            }
            is_new
        });
        answers
    }

    async fn write(&mut self, planned: &Planned) -> Result<(), ExtraError> {
        let parameters = self.parameters.borrow().clone();
        let wanted = wanted(planned, &parameters, &self.revision);
        let others = of_others(planned, &self.revision);
        let mut spared = spared(planned, &parameters);
        spared.extend(others.iter().cloned());
        let mut written = match self.written.take() {
            Some(written) => written,
            None => self.earlier().await?,
        };
        written.retain(|object, _| !is_of(object, &others));
        if self.anew.elapsed() > ANEW {
            self.anew = Instant::now();
            written.values_mut().for_each(|value| *value = Value::Null);
        }
        let done = self.bring(&mut written, wanted, &spared).await;
        self.written = Some(written);
        done
    }

    /// The first failure is told, after everything was tried.
    async fn bring(
        &mut self,
        written: &mut BTreeMap<ExtraRef, Value>,
        wanted: BTreeMap<ExtraRef, Value>,
        spared: &BTreeSet<NamespacedName>,
    ) -> Result<(), ExtraError> {
        let mut failed = None;
        self.refused.clear();
        let gone: Vec<ExtraRef> = written
            .keys()
            .filter(|object| !wanted.contains_key(*object) && !is_of(object, spared))
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
                Err(error) => {
                    if let Some(text) = error.refusal() {
                        let kind = object.kind.kind();
                        let text = format!("the API server refuses the {kind}: {text}");
                        self.refused.insert(gateway_of(&object), text);
                    }
                    failed = failed.or(Some(error));
                }
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
                    && self.revision.made(labels)
            });
            found.extend(ours.map(|(object, _)| (object, Value::Null)));
        }
        Ok(found)
    }
}

/// What the server said about ConfigMaps.
struct Found<'a, E> {
    /// Labels and texts of those for classes, by name.
    classes: Result<BTreeMap<String, (Texts, Texts)>, E>,
    /// Gateways' own; one that is missing here was not asked for.
    own: BTreeMap<NamespacedName, Result<Option<Texts>, E>>,
    root_namespace: &'a str,
}

impl<E: std::fmt::Display> Found<'_, E> {
    /// What holds now. A Gateway about which nothing good is known keeps what held before, and no
    /// other Gateway hears of it.
    fn settle(&self, asked: &Asked, last: &Parameters) -> Parameters {
        let mut classes = BTreeMap::new();
        let listed = self.classes.as_ref().map_err(ToString::to_string);
        for (name, (labels, data)) in listed.iter().copied().flatten() {
            let class = labels.get(DEFAULTS).cloned().unwrap_or_default();
            let place = format!("ConfigMap {}/{name}", self.root_namespace);
            let read = || Overlay::read(data).map_err(|error| format!("{place}: {error}"));
            // The first by name, where there are several.
            classes.entry(class).or_insert_with(read);
        }
        let mut next = Parameters::default();
        for (key, (class, own)) in asked {
            let of_class = match &listed {
                Ok(_) => classes
                    .get(class)
                    .cloned()
                    .unwrap_or_else(|| Ok(Overlay::default())),
                Err(error) => Err(error.clone()),
            };
            let of_gateway = match own {
                None => Ok(Overlay::default()),
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(name)) => self.own(key, name),
            };
            let overlay = match of_class.and_then(|below| Ok(of_gateway?.over(&below))) {
                Ok(overlay) => overlay,
                Err(error) => {
                    next.mistakes.insert(key.clone(), error);
                    let known = last.overlays.get(key);
                    let known = known.filter(|_| !last.unknown.contains(key)).cloned();
                    known.unwrap_or_else(|| {
                        next.unknown.insert(key.clone());
                        Overlay::default()
                    })
                }
            };
            next.overlays.insert(key.clone(), overlay);
        }
        next
    }

    fn own(&self, key: &NamespacedName, name: &str) -> Result<Overlay, String> {
        let place = format!("ConfigMap {}/{name}", key.namespace);
        match self.own.get(key) {
            Some(Ok(Some(data))) => {
                Overlay::read(data).map_err(|error| format!("{place}: {error}"))
            }
            Some(Ok(None)) => Err(format!("{place} is not there")),
            Some(Err(error)) => Err(format!("{place} cannot be read: {error}")),
            None => Err(format!(
                "{place} cannot be read: the API server does not answer"
            )),
        }
    }
}

/// The name goes into the path of a request: a DNS subdomain leads nowhere else.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|part| {
            let mut bytes = part.bytes();
            bytes.all(|byte| plain(byte) || byte == b'-')
                && part.bytes().next().is_some_and(plain)
                && part.bytes().next_back().is_some_and(plain)
        })
}

fn gateway_of(object: &ExtraRef) -> NamespacedName {
    NamespacedName {
        namespace: object.namespace.as_str().into(),
        name: object.name.as_str().into(),
    }
}

fn is_of(object: &ExtraRef, gateways: &BTreeSet<NamespacedName>) -> bool {
    gateways.contains(&gateway_of(object))
}

/// Gateways that another control plane runs.
fn of_others(planned: &Planned, revision: &Revision) -> BTreeSet<NamespacedName> {
    let set = &planned.published.objects;
    let keys = planned.plan.gateways.iter().map(|facts| &facts.key);
    let others = keys.filter(|key| !revision.runs(set, &key.namespace, &key.name));
    others.cloned().collect()
}

/// Gateways whose scalers and budgets stay: it is not known whether they are wanted.
fn spared(planned: &Planned, parameters: &Parameters) -> BTreeSet<NamespacedName> {
    let gateways = planned.plan.gateways.iter().map(|facts| &facts.key);
    let unread = |key: &&NamespacedName| {
        parameters.unknown.contains(*key) || !parameters.overlays.contains_key(*key)
    };
    gateways.filter(unread).cloned().collect()
}

fn asked(planned: &Planned, revision: &Revision) -> Asked {
    let set = &planned.published.objects;
    let gateways = planned.plan.gateways.iter().filter_map(|facts| {
        let (namespace, name) = (&*facts.key.namespace, &*facts.key.name);
        let gateway = set.gateways.get(namespace, name)?;
        if !revision.runs(set, namespace, name) {
            return None;
        }
        let own = gateway.spec.infrastructure.as_ref();
        let own = own.and_then(|own| own.parameters_ref.as_ref());
        let own = own.map(|own| match (&*own.group, &*own.kind) {
            ("", "ConfigMap") if is_name(&own.name) => Ok(own.name.clone()),
            ("", "ConfigMap") => Err(format!(
                "parametersRef: {:?} is no name of a ConfigMap",
                own.name
            )),
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
fn wanted(
    planned: &Planned,
    parameters: &Parameters,
    revision: &Revision,
) -> BTreeMap<ExtraRef, Value> {
    let set = &planned.published.objects;
    let mut all = BTreeMap::new();
    for facts in &planned.plan.gateways {
        let (namespace, name) = (&*facts.key.namespace, &*facts.key.name);
        let gateway = set.gateways.get(namespace, name);
        let gateway = gateway.filter(|gateway| {
            let deployment = set.deployments.get(namespace, name_of(gateway));
            deployment.is_some_and(|one| is_managed(one.labels()))
                && revision.runs(set, namespace, name)
        });
        let overlay = parameters.overlays.get(&facts.key);
        let (Some(gateway), Some(overlay)) = (gateway, overlay) else {
            continue;
        };
        for (key, kind) in EXTRAS {
            let place = ExtraRef {
                kind,
                namespace: namespace.to_owned(),
                name: name_of(gateway).to_owned(),
            };
            let object = overlay.extra(key, base(gateway, kind, revision));
            all.extend(object.map(|object| (place, object)));
        }
    }
    all
}

fn base(gateway: &Gateway, kind: Extra, revision: &Revision) -> Value {
    let spec = match kind {
        Extra::Scaler => json!({ "scaleTargetRef": {
            "apiVersion": "apps/v1", "kind": "Deployment", "name": name_of(gateway),
        } }),
        Extra::Budget => {
            json!({ "selector": { "matchLabels": { labels::GATEWAY_NAME: gateway.name() } } })
        }
    };
    json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind(),
        "metadata": metadata(gateway, name_of(gateway), revision),
        "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> NamespacedName {
        NamespacedName {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn texts(text: &str) -> Texts {
        [("podDisruptionBudget".to_owned(), text.to_owned())].into()
    }

    fn asked_by(names: &[&str]) -> Asked {
        let all = names.iter().map(|name| {
            let own = Some(Ok((*name).to_owned()));
            (key(name), ("isobar-waypoint".to_owned(), own))
        });
        all.collect()
    }

    fn found(own: &[(&str, Result<Option<Texts>, &'static str>)]) -> Found<'static, &'static str> {
        Found {
            classes: Ok(BTreeMap::new()),
            own: own
                .iter()
                .cloned()
                .map(|(name, one)| (key(name), one))
                .collect(),
            root_namespace: "istio-system",
        }
    }

    const GOOD: &str = "spec: {minAvailable: 1}";

    #[test]
    fn one_gateways_trouble_is_its_own() {
        let names = ["bad", "good", "gone", "refused", "unasked"];
        let asked = asked_by(&names);
        let troubled = || {
            found(&[
                ("bad", Ok(Some(texts("spec: {minAvailable: [1]}")))),
                ("good", Ok(Some(texts(GOOD)))),
                ("gone", Ok(None)),
                ("refused", Err("forbidden")),
            ])
        };
        // A new leader knows nothing of them, and must not take anything away.
        let first = troubled().settle(&asked, &Parameters::default());
        assert!(first.overlays[&key("good")].has("podDisruptionBudget"));
        assert_eq!(first.overlays.len(), names.len());
        for name in ["bad", "gone", "refused", "unasked"] {
            assert!(first.mistakes.contains_key(&key(name)), "{name}");
            assert!(first.unknown.contains(&key(name)), "{name}");
        }
        assert!(!first.unknown.contains(&key("good")));
        // Nothing becomes known by asking again.
        assert_eq!(troubled().settle(&asked, &first), first);

        let well = names.map(|name| (name, Ok(Some(texts(GOOD)))));
        let well = found(&well).settle(&asked, &first);
        assert!(well.mistakes.is_empty() && well.unknown.is_empty());
        let later = troubled().settle(&asked, &well);
        assert_eq!(later.overlays, well.overlays);
        assert!(later.unknown.is_empty());
        assert_eq!(later.mistakes.len(), 4);
    }

    #[test]
    fn without_the_classes_everything_stays() {
        let asked = asked_by(&["wp"]);
        let well = found(&[("wp", Ok(Some(texts(GOOD))))]).settle(&asked, &Parameters::default());
        let mut lost = found(&[("wp", Ok(None))]);
        lost.classes = Err("no answer");
        let later = lost.settle(&asked, &well);
        assert_eq!(later.overlays, well.overlays);
        assert_eq!(later.mistakes[&key("wp")], "no answer");
    }

    #[test]
    fn a_name_leads_to_nothing_but_a_config_map() {
        for good in ["size", "a.b-c.0", "x"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a".repeat(254);
        for bad in [
            "",
            "..",
            "a/b",
            "../secrets/s",
            "a b",
            "A",
            "-a",
            "a-",
            "a?b",
            "a%2fb",
            "a\n",
            &long,
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn extras_of_a_gateway_are_found_by_its_name() {
        let object = |name: &str| ExtraRef {
            kind: Extra::Scaler,
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        let spared = [key("wp")].into();
        assert!(is_of(&object("wp"), &spared));
        assert!(!is_of(&object("other"), &spared));
    }
}
