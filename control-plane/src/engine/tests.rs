use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_objects::{
    Kind as ObjectKind, Object, ObjectRef, ObjectSet, Origin, Pod, Service, read_text,
};
use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use isobar_telemetry::Registry;
use proptest::prelude::*;

use super::*;
use crate::model::golden_tests::{gateway, namespace, objects, pod, settings};
use crate::xds::catalog::{Resource, Scope};
use crate::xds::session::{Response, Session};

fn engine() -> Engine {
    Engine {
        settings: settings(),
        catalogs: watch::Sender::default(),
        rosters: watch::Sender::default(),
        plans: watch::Sender::new(None),
        metrics: Metrics::new(&Registry::new()),
        kept_keys: KeptKeys::default(),
        clients: Clients::default(),
        changeover: Changeover::default(),
    }
}

fn published(set: &ObjectSet) -> Arc<Published> {
    Arc::new(Published {
        objects: Arc::new(set.clone()),
        synced: true,
        ..Published::default()
    })
}

fn put(set: &mut ObjectSet, yaml: &str) {
    set.version += 1;
    let read = read_text(std::path::Path::new("-"), yaml);
    for one in read.objects {
        set.insert(one.object, Origin::nowhere());
    }
}

/// A client that has subscribed to what node proxies do.
struct Client {
    session: Session,
    now: Instant,
}

impl Client {
    fn new() -> Self {
        let now = Instant::now();
        let mut client = Self {
            session: Session::new(Scope::default(), Kind::NODE, now),
            now,
        };
        for kind in Kind::NODE {
            client.send(*kind, "");
        }
        client
    }

    fn send(&mut self, kind: Kind, nonce: &str) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        self.session.request(&request, self.now).unwrap();
    }

    /// Everything there is to tell, acknowledged.
    fn told(&mut self, catalog: &Catalog) -> Vec<Response> {
        let mut all = Vec::new();
        while let Some(response) = self.session.next(catalog, self.now) {
            self.send(response.kind, &response.nonce);
            all.push(response);
        }
        all
    }
}

const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
    spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}\n";

#[test]
fn a_change_is_serialised_once_for_fifty_clients() {
    let mut engine = engine();
    let pods: String = (0..20)
        .map(|n| pod(&format!("cart-{n}"), "cart", "app: cart", true))
        .collect();
    let mut set = objects(&format!("{}{SERVICE}{pods}", namespace("a: b")));
    let kept = engine.publish(published(&set), None);
    let mut clients: Vec<Client> = (0..50).map(|_| Client::new()).collect();
    let catalog = engine.catalogs.borrow().clone();
    for client in &mut clients {
        let first = client.told(&catalog);
        assert_eq!(first.iter().map(|r| r.resources.len()).sum::<usize>(), 21);
    }
    let before = engine.metrics.serialisations(Kind::Address.label());
    assert_eq!(before, 21);

    put(&mut set, &pod("cart-7", "cart", "app: cart", false));
    let kept = engine.publish(published(&set), Some(kept));
    let catalog = engine.catalogs.borrow().clone();
    let changes: Vec<Response> = clients.iter_mut().flat_map(|c| c.told(&catalog)).collect();
    assert_eq!(changes.len(), 50);
    let bytes = |response: &Response| response.resources[0].field.as_ptr();
    for change in &changes {
        assert_eq!((change.resources.len(), change.removed.len()), (1, 0));
        assert_eq!(bytes(change), bytes(&changes[0]), "the very same bytes");
    }
    assert_eq!(
        engine.metrics.serialisations(Kind::Address.label()),
        before + 1
    );

    // What nobody is told is not serialised.
    put(
        &mut set,
        &pod("cart-7", "cart", "app: cart", false).replace("phase: Running", "phase: Pending"),
    );
    engine.publish(published(&set), Some(kept));
    assert_eq!(
        engine.metrics.serialisations(Kind::Address.label()),
        before + 1
    );
    assert_eq!(engine.catalogs.borrow().revision, catalog.revision);
}

type Shown = BTreeMap<String, (u64, u8, Vec<String>)>;

fn shown(all: &crate::xds::resources::Resources) -> Shown {
    let one = |resource: &Arc<Resource>| {
        let needs = resource.needs.iter().map(ToString::to_string).collect();
        (
            resource.name.to_string(),
            (resource.version, resource.rank, needs),
        )
    };
    all.values().map(one).collect()
}

/// Everything that is served, by scope and kind.
fn served(catalog: &Catalog) -> BTreeMap<String, Shown> {
    let mut all = BTreeMap::new();
    all.insert("addresses".to_owned(), shown(&catalog.addresses));
    all.insert("authorizations".to_owned(), shown(&catalog.authorizations));
    all.insert("outbound".to_owned(), shown(&catalog.outbound));
    for (key, kinds) in &catalog.waypoints {
        for kind in Kind::ALL {
            all.insert(
                format!("{key} {}", kind.label()),
                shown(&kinds[kind.index()]),
            );
        }
    }
    all
}

/// A mesh in which a pod may matter to others in many ways; `level` says in how many.
fn mesh(level: u8) -> String {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let mut yaml = format!("{}{SERVICE}", namespace("a: b"));
    yaml += &policy(
        "of-cart",
        "selector: {matchLabels: {app: cart}}, action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}]",
    );
    yaml += "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
        metadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {app: pay}}, mtls: {mode: STRICT}}\n";
    yaml += "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-1, labels: {topology.kubernetes.io/zone: z}}\n";
    if level > 0 {
        yaml += &gateway("wp", "");
        yaml += &pod(
            "wp-1",
            "wp",
            "gateway.networking.k8s.io/gateway-name: wp",
            true,
        );
        yaml += &SERVICE
            .replace(
                "name: cart,",
                "name: pay, labels: {istio.io/use-waypoint: wp},",
            )
            .replace("app: cart", "app: pay")
            .replace("0.7", "0.8");
        yaml += "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\n\
            spec: {host: pay, subsets: [{name: a, labels: {version: v1}}]}\n";
    }
    if level > 1 {
        yaml += "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: bound, namespace: shop, labels: {istio.io/use-waypoint: wp}}\n";
        yaml += "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: shop}\n\
            spec: {podSelector: {matchLabels: {app: cart}}, ingress: [{from: [{podSelector: {matchLabels: {app: pay}}}], ports: [{port: 80}]}]}\n";
    }
    if level > 2 {
        yaml += "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: shop}\n\
            spec: {hosts: [far.example], addresses: [10.244.1.0/24], ports: [{number: 80, name: http, protocol: HTTP}], \
            resolution: STATIC, workloadSelector: {labels: {app: pay}}}\n";
    }
    yaml
}

/// NetworkPolicies, more of them with each level.
fn isolation(level: u8) -> String {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let all = [
        // Nothing is missing: callers by address, a port by name.
        policy(
            "by-name",
            "podSelector: {matchLabels: {app: cart}}, ingress: [{from: [{podSelector: {matchLabels: {app: pay}}}, \
             {podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: wp}}}], ports: [{port: web}, {port: 15008}]}, \
             {from: [{ipBlock: {cidr: 169.254.7.127/32}}]}]",
        ),
        policy(
            "from-namespaces",
            "podSelector: {matchLabels: {version: v1}}, ingress: [{from: [{namespaceSelector: {matchLabels: {a: b}}}]}]",
        ),
        // Leads to whoever is there, through their waypoints; names are looked up elsewhere.
        policy(
            "out",
            "podSelector: {matchLabels: {app: pay}}, policyTypes: [Egress], egress: [\
             {to: [{podSelector: {matchLabels: {version: v1}}}, {namespaceSelector: {matchLabels: {c: d}}}]}, \
             {ports: [{port: 53, protocol: UDP}]}]",
        ),
        // Shuts doors, and probes.
        policy("deny", "podSelector: {}, policyTypes: [Ingress]"),
        policy(
            "shut",
            "podSelector: {matchLabels: {app: pay}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]",
        ),
    ];
    all[..usize::from(level)].concat()
}

/// One change: which pod, and what of it.
type Edit = (u8, u8, u8, u8, u8);

fn edit(set: &mut ObjectSet, (name, kind, app, account, more): Edit) {
    let name = format!("pod-{name}");
    if kind == 0 {
        set.version += 1;
        set.remove(&ObjectRef::new(ObjectKind::Pod, "shop", &name));
        return;
    }
    let apps = [
        "app: cart",
        "app: pay",
        "app: cart, version: v1",
        "app: pay, version: v1",
        "app: none, istio.io/use-waypoint: wp",
    ];
    let app = apps[usize::from(app)];
    let account = ["a", "bound", "wp"][usize::from(account)];
    let mut yaml = pod(&name, account, app, kind != 1);
    match more {
        1 => yaml = yaml.replace("  podIP: ", "  hostIP: "),
        2 => yaml = yaml.replace("phase: Running", "phase: Succeeded"),
        3 => yaml = yaml.replace("node-1", "node-2"),
        4 => {
            yaml = yaml.replace(
                "labels: {",
                "annotations: {ambient.istio.io/redirection: enabled}, labels: {",
            )
        }
        5 => {
            yaml = yaml.replace(
                "labels: {",
                "labels: {gateway.networking.k8s.io/gateway-name: wp, ",
            )
        }
        6 => {
            yaml = yaml.replace(
                "image: i,",
                "image: i, readinessProbe: {httpGet: {port: web}},",
            )
        }
        7 => yaml = yaml.replace("nodeName: ", "hostNetwork: true\n  nodeName: "),
        8 => yaml = yaml.replace("containerPort: 9000", "containerPort: 9001"),
        9 => {
            yaml = yaml
                .replace("namespace: shop,", "namespace: far,")
                .replace("10.244.1.", "10.244.2.");
        }
        _ => {}
    }
    put(set, &yaml);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// After each of many changes of pods: the same is served, known to the authority and told to
    /// users as if everything had been planned from the beginning.
    #[test]
    fn patched_plans_are_what_plans_are(
        level in 0..4_u8,
        isolated in 0..6_u8,
        ambient in any::<bool>(),
        edits in proptest::collection::vec((0..6_u8, 0..4_u8, 0..5_u8, 0..3_u8, 0..13_u8), 1..40),
    ) {
        let mut yaml = mesh(level) + &isolation(isolated);
        yaml += "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: far, labels: {c: d}}\n";
        if ambient {
            yaml = yaml.replace("labels: {a: b}}", "labels: {a: b, istio.io/dataplane-mode: ambient}}");
        }
        let mut set = objects(&yaml);
        let (mut quick, mut plain) = (engine(), engine());
        let mut kept = Some(quick.publish(published(&set), None));
        plain.publish(published(&set), None);
        for one in edits {
            edit(&mut set, one);
            kept = Some(quick.publish(published(&set), kept.take()));
            plain.publish(published(&set), None);
            let catalogs = [&quick, &plain].map(|engine| engine.catalogs.borrow().clone());
            prop_assert_eq!(served(&catalogs[0]), served(&catalogs[1]), "{:?}", one);
            prop_assert_eq!(&catalogs[0].instances, &catalogs[1].instances);
            prop_assert_eq!(&**quick.rosters.borrow(), &**plain.rosters.borrow());
            let plans = [&quick, &plain].map(|engine| engine.plans.borrow().clone().unwrap());
            prop_assert_eq!(plans[0].published.objects.version, plans[1].published.objects.version);
            let [quick, plain] = plans.map(|planned| planned.plan);
            prop_assert_eq!(&quick.verdicts, &plain.verdicts);
            prop_assert_eq!(&quick.remedies, &plain.remedies);
            prop_assert_eq!(&quick.gateways, &plain.gateways);
            prop_assert_eq!(&quick.latches, &plain.latches);
            let sticky = |plan: &Plan| -> Vec<_> { plan.services.iter().map(|s| (s.key.clone(), s.sticky.clone())).collect() };
            prop_assert_eq!(sticky(&quick), sticky(&plain));
        }
    }
}

#[test]
fn ordinary_changes_of_pods_are_patches() {
    for (level, wanted) in [(0, 5), (1, 5), (2, 5), (3, 0)] {
        let mut engine = engine();
        let mut set = objects(&mesh(level));
        for name in ["cart-1", "cart-2"] {
            put(&mut set, &pod(name, "a", "app: cart", true));
        }
        let mut kept = Some(engine.publish(published(&set), None));
        let all = [
            pod("cart-1", "a", "app: cart", false),
            pod("cart-1", "a", "app: cart, version: v1", true),
            pod("cart-3", "a", "app: cart", true),
            pod("cart-3", "a", "app: cart", true).replace("10.244.1", "10.244.2"),
            pod("cart-3", "a", "app: cart", true).replace("node-1", "node-2"),
        ];
        for yaml in all {
            put(&mut set, &yaml);
            kept = Some(engine.publish(published(&set), kept.take()));
        }
        assert_eq!(engine.metrics.patches(), wanted, "level {level}");
    }
}

#[test]
fn pods_under_network_policies_are_patched_unless_policies_mean_them() {
    let ambient = mesh(0).replace("a: b", "a: b, istio.io/dataplane-mode: ambient");
    let mut engine = engine();
    let mut set = objects(&(ambient + &isolation(3)));
    for (name, app) in [("cart-1", "cart"), ("pay-1", "pay"), ("none-1", "none")] {
        put(&mut set, &pod(name, "a", &format!("app: {app}"), true));
    }
    let mut kept = Some(engine.publish(published(&set), None));
    for (yaml, is_patch) in [
        // Ready or not, wherever it is admitted.
        (pod("cart-1", "a", "app: cart", false), true),
        (pod("pay-1", "a", "app: pay", false), true),
        // One more of a kind; the first of a kind.
        (pod("cart-2", "a", "app: cart", true), true),
        (pod("cart-3", "a", "app: cart, version: v1", true), false),
        // Another label, another pod, that no policy asks for.
        (pod("none-1", "a", "app: none, x: y", true), true),
        (pod("none-2", "a", "app: none", true), true),
        // Whom a policy admits by its address, and one that it admits no more.
        (pod("pay-2", "a", "app: pay", true), false),
        (pod("pay-2", "a", "app: none", true), false),
    ] {
        put(&mut set, &yaml);
        let before = engine.metrics.patches();
        kept = Some(engine.publish(published(&set), kept.take()));
        let patched = engine.metrics.patches() - before;
        assert_eq!(patched == 1, is_patch, "{yaml}");
    }
    // The last of a kind.
    set.version += 1;
    set.remove(&ObjectRef::new(ObjectKind::Pod, "shop", "cart-3"));
    let before = engine.metrics.patches();
    engine.publish(published(&set), kept);
    assert_eq!(engine.metrics.patches(), before);
}

/// Objects as in a cluster of 10,000 pods and 1,000 Services with some NetworkPolicies; made from these two, since reading so
/// much text takes long.
struct Large {
    pod: Pod,
    service: Service,
    /// Namespaces of the mesh, with a policy each.
    others: ObjectSet,
}

impl Large {
    fn new() -> Self {
        let set = objects(&format!("{SERVICE}{}", pod("p", "default", "app: a", true)));
        let others: String = (0..10)
            .map(|number| {
                format!(
                    "---\napiVersion: v1\nkind: Namespace\n\
                     metadata: {{name: ns-{number}, labels: {{istio.io/dataplane-mode: ambient}}}}\n\
                     ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: np, namespace: ns-{number}}}\n\
                     spec: {{podSelector: {{matchLabels: {{app: svc-{number}}}}}, ingress: [{{ports: [{{port: 80}}, {{port: 15008}}], \
                     from: [{{podSelector: {{matchLabels: {{app: svc-1{number}}}}}}}]}}]}}\n"
                )
            })
            .collect();
        let service = set.services.iter().next().unwrap().object.clone();
        let pod = set.pods.iter().next().unwrap().object.clone();
        Self {
            pod,
            service,
            others: objects(&others),
        }
    }

    fn set(&self) -> ObjectSet {
        let services = (0..1000).map(|number| self.service(number));
        let pods = (0..10_000).map(|number| self.pod(number, true));
        let mut set = ObjectSet::of(services.chain(pods));
        for policy in self.others.network_policies.iter() {
            set.insert(policy.object.clone().into(), Origin::nowhere());
        }
        for namespace in self.others.namespaces.iter() {
            set.insert(namespace.object.clone().into(), Origin::nowhere());
        }
        set
    }

    fn service(&self, number: u32) -> Object {
        let mut service = self.service.clone();
        service.metadata.name = Some(format!("svc-{number}"));
        service.metadata.namespace = Some(format!("ns-{}", number % 10));
        let spec = service.spec.as_mut().unwrap();
        spec.cluster_ip = Some(format!("10.96.{}.{}", number / 250, number % 250));
        spec.selector = Some([("app".to_owned(), format!("svc-{number}"))].into());
        service.into()
    }

    fn pod(&self, number: u32, ready: bool) -> Object {
        let of = number % 1000;
        let mut pod = self.pod.clone();
        pod.metadata.name = Some(format!("pod-{number}"));
        pod.metadata.namespace = Some(format!("ns-{}", of % 10));
        pod.metadata.labels = Some([("app".to_owned(), format!("svc-{of}"))].into());
        pod.spec.as_mut().unwrap().node_name = Some(format!("node-{}", number % 200));
        let status = pod.status.as_mut().unwrap();
        status.pod_ip = Some(format!("10.1.{}.{}", number / 250, number % 250));
        let ready = if ready { "True" } else { "False" };
        ready.clone_into(&mut status.conditions.as_mut().unwrap()[0].status);
        pod.into()
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or_default()
        / 1024
}

/// What each stage costs in a large mesh. Prints it, and holds that a change of one pod is far from
/// what planning everything costs; run with `--nocapture` to read it.
#[test]
fn a_large_mesh() {
    let mut memory = vec![("nothing", resident())];
    let large = Large::new();
    let mut set = large.set();
    memory.push(("objects", resident()));
    let mut engine = engine();
    let started = Instant::now();
    let mut kept = Some(engine.publish(published(&set), None));
    let first = started.elapsed();
    memory.push(("catalog", resident()));
    let catalog = engine.catalogs.borrow().clone();
    let started = Instant::now();
    let mut clients: Vec<Client> = (0..50).map(|_| Client::new()).collect();
    for client in &mut clients {
        assert_eq!(
            client
                .told(&catalog)
                .iter()
                .map(|r| r.resources.len())
                .sum::<usize>(),
            11_010
        );
    }
    let pushes = started.elapsed();
    memory.push(("50 clients", resident()));
    let bytes: usize = catalog.addresses.values().map(|one| one.field.len()).sum();
    let (mut planning, mut telling) = (Duration::ZERO, Duration::ZERO);
    const CHANGES: u32 = 200;
    for number in 0..CHANGES {
        set.version += 1;
        set.insert(large.pod(number % 7, number % 2 == 0), Origin::nowhere());
        let published = published(&set);
        let started = Instant::now();
        kept = Some(engine.publish(published, kept.take()));
        planning += started.elapsed();
        let catalog = engine.catalogs.borrow().clone();
        let started = Instant::now();
        let told: usize = clients
            .iter_mut()
            .map(|client| client.told(&catalog).len())
            .sum();
        telling += started.elapsed();
        assert!(told <= 50);
    }
    memory.push(("changes", resident()));
    println!("everything planned and serialised in {first:?}; {bytes} bytes served");
    println!("50 first answers decided in {pushes:?}");
    println!(
        "a changed pod: planned in {:?}, decided for 50 clients in {:?}",
        planning / CHANGES,
        telling / CHANGES
    );
    println!(
        "MB in memory: {memory:?}; a Pod is {} bytes",
        size_of::<isobar_objects::Held<Pod>>()
    );
    assert_eq!(engine.metrics.patches(), u64::from(CHANGES));
    assert!(planning / CHANGES < first / 10, "{planning:?} {first:?}");
}
