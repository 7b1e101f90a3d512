//! From objects to running pods, service addresses, rules and names; and back to statuses.

mod desired;
mod statuses;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use isobar_objects::{
    Kind, NetworkPolicy, ObjectHead, ObjectRef, ObjectSet, Pod, Published, Service, deployment_of,
    uid_from,
};
use isobar_runtime::{Lifetime, Scope};
use tokio::sync::{mpsc, watch};

use crate::cluster::{Cluster, PodView, ServiceView};
use crate::dns::{Names, Zone};
use crate::kubelet::Kubelet;
use crate::place::Place;
use crate::plan::{PodAddresses, ServiceAddresses};
use crate::pod::{self, NodeHandle, PodContext, PodOrder, PodPlan, PodReport};
use crate::protocol::{PodPhase, PodStatus, ServiceStatus};
use crate::{nft, policy};

use desired::{Desired, Key, Made};
pub(crate) use statuses::node_value;

/// Changes that come together are worked off together.
const GATHER: Duration = Duration::from_millis(5);

/// What others may know about a lab's pods and services.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) pods: Vec<PodHandle>,
    pub(crate) services: Vec<ServiceStatus>,
    pub(crate) findings: Vec<String>,
    /// Objects were read and everything they ask for has been begun.
    pub(crate) synced: bool,
    /// Gateways that have no Deployment yet, by name.
    pub(crate) waiting_gateways: Vec<String>,
}

/// One pod, to look at, run commands in and give orders to.
#[derive(Debug, Clone)]
pub(crate) struct PodHandle {
    pub(crate) status: PodStatus,
    /// The Deployment it belongs to.
    pub(crate) deployment: Option<String>,
    /// Its label `app`.
    pub(crate) app: Option<String>,
    /// True when nothing but a change of the pod can help.
    pub(crate) stuck: bool,
    /// Environment of its first container.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) place: Option<Place>,
    pub(crate) orders: Option<mpsc::Sender<PodOrder>>,
}

/// A pod that has an actor.
#[derive(Debug)]
struct Entry {
    plan: PodPlan,
    /// Of everything whose change needs a new pod.
    fingerprint: u64,
    orders: mpsc::Sender<PodOrder>,
    report: watch::Receiver<PodReport>,
    /// The report as this step looks at it: all that a step writes fits together.
    seen: PodReport,
    /// Since when it is being ended.
    ending: Option<jiff::Timestamp>,
    /// For pods made from a Deployment.
    made: Option<Made>,
}

/// Keeps the lab as the objects say. One task owns it.
pub(crate) struct Reconciler {
    pub(crate) context: Arc<PodContext>,
    pub(crate) nodes: Vec<Arc<NodeHandle>>,
    pub(crate) outer: Place,
    pub(crate) objects: watch::Receiver<Arc<Published>>,
    pub(crate) names: Names,
    pub(crate) scope: Arc<Scope>,
    pub(crate) view: watch::Sender<Arc<View>>,
    kubelet: Kubelet,
    addresses: Vec<PodAddresses>,
    services: ServiceAddresses,
    pods: BTreeMap<Key, Entry>,
    /// Rules in force, by node; the last is the outer network.
    applied: Vec<String>,
    made: u64,
    /// Services and namespaces that we added something to.
    patched: BTreeSet<ObjectRef>,
    findings: Vec<String>,
    blocked: Vec<PodStatus>,
    poke: mpsc::Sender<()>,
    pokes: mpsc::Receiver<()>,
}

/// What a reconciler is made from.
pub(crate) struct Parts {
    pub(crate) context: Arc<PodContext>,
    pub(crate) nodes: Vec<Arc<NodeHandle>>,
    pub(crate) outer: Place,
    pub(crate) objects: watch::Receiver<Arc<Published>>,
    pub(crate) names: Names,
    pub(crate) scope: Arc<Scope>,
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) kubelet: Kubelet,
}

impl Reconciler {
    pub(crate) fn new(parts: Parts) -> Self {
        let (poke, pokes) = mpsc::channel(1);
        let addresses = parts
            .nodes
            .iter()
            .map(|node| PodAddresses::new(&node.plan))
            .collect();
        Self {
            applied: vec![String::new(); parts.nodes.len() + 1],
            context: parts.context,
            nodes: parts.nodes,
            outer: parts.outer,
            objects: parts.objects,
            names: parts.names,
            scope: parts.scope,
            view: parts.view,
            kubelet: parts.kubelet,
            addresses,
            services: ServiceAddresses::default(),
            pods: BTreeMap::new(),
            made: 0,
            patched: BTreeSet::new(),
            findings: Vec::new(),
            blocked: Vec::new(),
            poke,
            pokes,
        }
    }

    /// Works until the lab ends.
    pub(crate) async fn run(mut self, life: Lifetime) {
        loop {
            let published = Arc::clone(&self.objects.borrow_and_update());
            if published.synced {
                self.step(&published).await;
            }
            tokio::select! {
                changed = self.objects.changed() => if changed.is_err() { return },
                _ = self.pokes.recv() => {}
                () = life.draining() => return,
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn step(&mut self, published: &Published) {
        let objects = &published.objects;
        self.findings.clear();
        self.blocked.clear();
        for entry in self.pods.values_mut() {
            entry.seen = entry.report.borrow_and_update().clone();
        }
        self.forget_gone().await;
        let wanted = desired::pods(objects, &self.kubelet);
        self.follow(wanted).await;
        self.forget_patches(objects).await;
        self.write_namespaces(objects).await;
        let services = self.assign(objects).await;
        self.write_statuses().await;
        let cluster = self.cluster(objects, services);
        self.names.set(Zone::of(&cluster));
        let policies: Vec<Arc<NetworkPolicy>> = objects
            .network_policies
            .iter()
            .map(|held| Arc::new(held.object.clone()))
            .collect();
        self.apply(&cluster, &policies).await;
        self.publish(&cluster, objects);
    }

    /// Starts what is missing, ends what is not wanted, takes over new labels.
    async fn follow(&mut self, wanted: BTreeMap<Key, Desired>) {
        let kept = self.kept_for_rollout(&wanted);
        for (key, entry) in &mut self.pods {
            let fits = wanted
                .get(key)
                .is_some_and(|want| want.fingerprint == entry.fingerprint);
            if !fits && !kept.contains(key) && entry.ending.is_none() {
                entry.ending = Some(jiff::Timestamp::now());
                // It has ended by itself if it does not listen.
                let _ = entry.orders.try_send(PodOrder::End);
            }
        }
        for (key, want) in wanted {
            match self.pods.get_mut(&key) {
                // The old one is still ending.
                Some(entry) if entry.fingerprint != want.fingerprint => {}
                Some(entry) => entry.plan.pod = want.pod,
                None => self.start(key, want).await,
            }
        }
    }

    /// Pods of an older template stay until those of the new one are ready.
    fn kept_for_rollout(&self, wanted: &BTreeMap<Key, Desired>) -> Vec<Key> {
        let old = self
            .pods
            .iter()
            .filter(|(key, _)| !wanted.contains_key(key));
        old.filter(|(_, entry)| {
            let Some(old) = &entry.made else {
                return false;
            };
            let mut newer = wanted.iter().filter(|(_, want)| {
                want.made.as_ref().is_some_and(|new| {
                    new.deployment == old.deployment && new.template != old.template
                })
            });
            newer.any(|(key, _)| self.pods.get(key).is_none_or(|entry| !entry.seen.ready))
        })
        .map(|(key, _)| key.clone())
        .collect()
    }

    async fn start(&mut self, key: Key, want: Desired) {
        let index = match self.schedule(&want.pod) {
            Ok(index) => index,
            Err(why) => return self.block(&key, &want, why),
        };
        let Some(ip) = self.addresses[index].take() else {
            let node = &self.nodes[index].plan.name;
            let why = format!("{node} has no free pod address");
            return self.block(&key, &want, why);
        };
        let node = &self.nodes[index].plan;
        let admitted = self
            .kubelet
            .admit(&want.pod, node, want.made.is_some())
            .await;
        let given = match admitted {
            Ok(given) => given,
            Err(why) => {
                self.addresses[index].give_back(ip);
                return self.block(&key, &want, why);
            }
        };
        self.made += 1;
        let number = self.made.to_string();
        let print = want.fingerprint.to_string();
        let own = || uid_from(&["Pod", &key.0, &key.1, &print, &number]);
        let plan = PodPlan {
            uid: given.unwrap_or_else(own),
            node: Arc::clone(&self.nodes[index]),
            ip,
            device: format!("pod{number}"),
            pod: want.pod,
        };
        let (orders, inbox) = mpsc::channel(8);
        let (report, seen) = watch::channel(PodReport::new());
        let actor = pod::run(plan.clone(), Arc::clone(&self.context), inbox, report);
        self.scope.spawn("pod", actor);
        let (mut watched, poke) = (seen.clone(), self.poke.clone());
        self.scope.spawn("pod watch", async move {
            while watched.changed().await.is_ok() {
                // One poke that waits is enough.
                let _ = poke.try_send(());
            }
        });
        let entry = Entry {
            plan,
            fingerprint: want.fingerprint,
            orders,
            seen: PodReport::new(),
            report: seen,
            ending: None,
            made: want.made,
        };
        self.pods.insert(key, entry);
    }

    /// The node a pod asks for, else the one with the fewest pods.
    fn schedule(&self, pod: &Pod) -> Result<usize, String> {
        let spec = pod.spec.as_ref();
        if spec.and_then(|spec| spec.host_network) == Some(true) {
            return Err("hostNetwork is not supported by the lab".to_owned());
        }
        let named = |name: &str| {
            self.nodes
                .iter()
                .position(|node| node.plan.name == name)
                .ok_or_else(|| format!("there is no node {name:?} in this lab"))
        };
        if let Some(name) = spec.and_then(|spec| spec.node_name.as_deref()) {
            return named(name);
        }
        for (key, value) in spec.iter().flat_map(|s| s.node_selector.iter().flatten()) {
            match key.as_str() {
                "kubernetes.io/hostname" => return named(value),
                "kubernetes.io/os" if value == "linux" => {}
                _ => return Err(format!("no node has the label {key}={value}")),
            }
        }
        let load = |index: usize| {
            let name = &self.nodes[index].plan.name;
            let pods = self.pods.values();
            pods.filter(|entry| entry.plan.node.plan.name == *name)
                .count()
        };
        (0..self.nodes.len())
            .min_by_key(|index| load(*index))
            .ok_or_else(|| "there are no nodes".to_owned())
    }

    fn block(&mut self, key: &Key, want: &Desired, why: String) {
        self.blocked.push(statuses::blocked(key, &want.pod, why));
    }

    async fn forget_gone(&mut self) {
        let gone: Vec<Key> = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.seen.gone)
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            let Some(entry) = self.pods.remove(&key) else {
                continue;
            };
            let number = usize::from(entry.plan.node.plan.number) - 1;
            self.addresses[number].give_back(entry.plan.ip);
            let object = entry.plan.pod.reference();
            if let Err(error) = self.kubelet.forget(&object).await {
                self.findings.push(error);
            }
        }
    }

    /// Takes back what was added to services and namespaces that are gone: one that comes again with
    /// that name is another.
    async fn forget_patches(&mut self, objects: &ObjectSet) {
        let exists = |object: &ObjectRef| match object.known() {
            Some(Kind::Service) => objects
                .services
                .get(&object.namespace, &object.name)
                .is_some(),
            _ => objects.namespaces.get("", &object.name).is_some(),
        };
        let gone: Vec<ObjectRef> = self
            .patched
            .iter()
            .filter(|object| !exists(object))
            .cloned()
            .collect();
        for object in gone {
            self.patched.remove(&object);
            if let Err(error) = self.kubelet.forget(&object).await {
                self.findings.push(error);
            }
        }
    }

    async fn assign(&mut self, objects: &ObjectSet) -> Vec<ServiceView> {
        self.services
            .retain(|namespace, name| objects.services.get(namespace, name).is_some());
        let mut views = Vec::new();
        for held in objects.services.iter() {
            let service = &held.object;
            let ip = match desired::address_wish(service) {
                desired::Wish::None => None,
                desired::Wish::Any => self.assign_one(service, None).await,
                desired::Wish::This(ip) => self.assign_one(service, Some(ip)).await,
            };
            self.findings.extend(desired::unserved(service));
            views.push(ServiceView {
                namespace: service.namespace().to_owned(),
                name: service.name().to_owned(),
                ip,
                service: Arc::new(service.clone()),
            });
        }
        views
    }

    async fn assign_one(
        &mut self,
        service: &Service,
        asked: Option<std::net::Ipv4Addr>,
    ) -> Option<std::net::Ipv4Addr> {
        let (namespace, name) = (service.namespace(), service.name());
        match self.services.assign(namespace, name, asked) {
            Ok(ip) => {
                if asked.is_none() {
                    let patch = serde_json::json!({"spec": {
                        "clusterIP": ip, "clusterIPs": [ip]
                    }});
                    self.patch(&service.reference(), &patch).await;
                }
                Some(ip)
            }
            Err(why) => {
                self.findings
                    .push(format!("Service {namespace}/{name}: {why}"));
                None
            }
        }
    }

    async fn patch(&mut self, object: &ObjectRef, patch: &serde_json::Value) {
        self.patched.insert(object.clone());
        if let Err(error) = self.kubelet.patch(object, patch).await {
            self.findings.push(error);
        }
    }

    fn cluster(&self, objects: &ObjectSet, services: Vec<ServiceView>) -> Cluster {
        let pods = self.pods.values().filter_map(|entry| {
            let report = &entry.seen;
            report.place.as_ref()?;
            let pod = &entry.plan.pod;
            Some(PodView {
                namespace: pod.namespace().to_owned(),
                labels: pod.labels().clone(),
                ip: entry.plan.ip,
                node: entry.plan.node.plan.name.clone(),
                device: entry.plan.device.clone(),
                ready: report.ready && entry.ending.is_none(),
                pod: Arc::clone(pod),
            })
        });
        Cluster {
            pods: pods.collect(),
            services,
            namespaces: statuses::namespace_labels(objects),
        }
    }

    /// Puts rules into force where they differ from those in force.
    async fn apply(&mut self, cluster: &Cluster, policies: &[Arc<NetworkPolicy>]) {
        let mut texts = Vec::with_capacity(self.applied.len());
        for node in &self.nodes {
            let (policy, findings) = policy::rules(cluster, policies, &node.plan.name);
            self.findings.extend(findings);
            texts.push(nft::services(cluster, &node.plan.name) + &policy);
        }
        texts.push(nft::services(cluster, ""));
        let places = self
            .nodes
            .iter()
            .map(|node| &node.place)
            .chain([&self.outer]);
        let changes =
            places
                .zip(&texts)
                .zip(&self.applied)
                .map(|((place, text), old)| async move {
                    if text == old {
                        return Ok(());
                    }
                    place.configure(&["nft", "-f", "-"], text).await
                });
        let done = join_all(changes).await;
        for ((done, text), applied) in done.into_iter().zip(texts).zip(&mut self.applied) {
            match done {
                Ok(()) => *applied = text,
                Err(error) => {
                    let words = crate::stage::with_causes(&error);
                    tracing::error!("rules were not taken: {words}\n{text}");
                    self.findings.push(words);
                }
            }
        }
        self.findings.sort();
        self.findings.dedup();
    }

    fn publish(&self, cluster: &Cluster, objects: &ObjectSet) {
        let running = self.pods.values().map(|entry| {
            let report = &entry.seen;
            PodHandle {
                status: statuses::of(&entry.plan, report, entry.ending.is_some()),
                deployment: deployment_of(&entry.plan.pod),
                app: entry.plan.pod.label("app").map(str::to_owned),
                env: report.env.clone(),
                stuck: report.stuck || report.phase == PodPhase::Failed,
                place: report.place.clone(),
                orders: Some(entry.orders.clone()),
            }
        });
        let blocked = self.blocked.iter().map(|status| PodHandle {
            status: status.clone(),
            deployment: None,
            app: None,
            env: Vec::new(),
            stuck: true,
            place: None,
            orders: None,
        });
        let mut pods: Vec<PodHandle> = running.chain(blocked).collect();
        pods.sort_by(|a, b| {
            let key = |p: &PodHandle| (p.status.namespace.clone(), p.status.name.clone());
            key(a).cmp(&key(b))
        });
        self.view.send_replace(Arc::new(View {
            pods,
            services: statuses::services(cluster),
            findings: self.findings.clone(),
            synced: true,
            waiting_gateways: desired::gateways_without_deployment(objects),
        }));
    }
}
