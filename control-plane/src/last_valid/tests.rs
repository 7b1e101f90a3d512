use isobar_kubernetes::Record;
use isobar_objects::{LiveSet, ObjectHead as _, ServedObject};
use serde_json::{Value, json};

use super::*;
use crate::model::golden_tests::objects;

fn policy(namespace: &str, uid: &str, spec: &Value) -> ServedObject {
    let value = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": namespace, "uid": uid, "resourceVersion": "7" },
        "spec": spec, "status": { "conditions": [] },
    });
    ServedObject::read(Kind::AuthorizationPolicy, &value)
}

fn good() -> Value {
    json!({ "action": "ALLOW", "rules": [{}] })
}

fn bad() -> Value {
    json!({ "action": "ALOW" })
}

fn known(versions: &Versions) -> Known {
    Known::Record(Record::of_versions(versions.clone()))
}

fn name(namespace: &str) -> ObjectRef {
    ObjectRef::new(Kind::AuthorizationPolicy, namespace, "p")
}

/// What should be kept of these objects, where `kept` is.
fn wanted(live: &mut LiveSet, kept: &Versions) -> (Published, Wanted) {
    let published = live.publish().unwrap();
    let wanted = Texts::default().wanted(&published, kept, "istio-system");
    (published, wanted)
}

#[test]
fn the_last_valid_version_is_kept_while_the_object_is_not_valid() {
    let none = Versions::new();
    let mut live = LiveSet::new();
    live.put(policy("shop", "one", &good()));
    assert_eq!(wanted(&mut live, &none).1, Wanted::default());
    live.put(policy("shop", "one", &bad()));
    let (published, found) = wanted(&mut live, &none);
    let read = read_version("one", &found.versions["one"]).unwrap();
    assert_eq!(read.reference(), name("shop"));
    let text = &found.versions["one"];
    assert!(!text.contains("status") && !text.contains("resourceVersion"));

    // Who reads it in another life has what this one has, and would write the same.
    let mut later = LiveSet::new();
    later.recall([(read.reference(), read)].into());
    later.put(policy("shop", "one", &bad()));
    let (then, again) = wanted(&mut later, &found.versions);
    assert_eq!(again, found);
    let spec = |published: &Published| {
        let held = published.objects.authorization_policies.get("shop", "p");
        held.map(|held| held.spec.clone())
    };
    assert_eq!(spec(&then), spec(&published));

    later.put(policy("shop", "one", &good()));
    assert_eq!(wanted(&mut later, &found.versions).1, Wanted::default());
    live.remove(&name("shop"));
    assert_eq!(wanted(&mut live, &found.versions).1, Wanted::default());
}

#[test]
fn what_cannot_be_read_here_stays_as_long_as_its_object_is_not_valid() {
    let kept = Versions::from([("one".to_owned(), "of a newer program".to_owned())]);
    let mut live = LiveSet::new();
    live.put(policy("shop", "one", &bad()));
    assert_eq!(wanted(&mut live, &kept).1.versions, kept);
    // Another object of the name inherits nothing.
    live.put(policy("shop", "two", &bad()));
    assert_eq!(wanted(&mut live, &kept).1, Wanted::default());
}

/// A keeper that has everything to write, and what it publishes; `keep` is the server.
struct Bed {
    source: watch::Sender<Arc<Published>>,
    published: watch::Receiver<Arc<Published>>,
    _scope: isobar_runtime::Scope,
}

impl Bed {
    fn by(keep: Keep) -> Self {
        let mut live = LiveSet::new();
        live.put(policy("shop", "one", &good()));
        live.put(policy("shop", "one", &bad()));
        let source = watch::Sender::new(Arc::new(live.publish().unwrap()));
        let keeper = Keeper {
            keep,
            known: watch::channel(Arc::new(known(&Versions::new()))).1,
            root_namespace: "istio-system".to_owned(),
            leads: watch::channel(true).1,
            texts: Texts::default(),
            failure: None,
            left_out: 0,
        };
        let (sender, published) = watch::channel(Arc::default());
        let scope = isobar_runtime::Scope::new("keeper");
        let run = keeper.run(source.subscribe(), sender, scope.lifetime());
        scope.spawn("keeper", run);
        Self {
            source,
            published,
            _scope: scope,
        }
    }

    /// Publishes the same once more, and waits until it is published on.
    async fn again(&mut self) -> Arc<Published> {
        let next = Published::clone(&self.source.borrow());
        let objects = Arc::new(ObjectSet::clone(&next.objects));
        let next = Arc::new(Published {
            objects: Arc::clone(&objects),
            ..next
        });
        self.source.send_replace(next);
        let is_it = |one: &Arc<Published>| Arc::ptr_eq(&one.objects, &objects);
        self.published.wait_for(is_it).await.unwrap().clone()
    }

    fn why(published: &Published) -> String {
        match &published.invalid[&name("shop")].kept {
            Kept::Yes => String::new(),
            Kept::No(why) => why.clone(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_refused_waits_for_its_turn() {
    let (count, mut tries) = watch::channel(0);
    let mut kept = Bed::by(Box::new(move |_, _| {
        count.send_modify(|count| *count += 1);
        Box::pin(async { Err(Unkept::Refused("forbidden".to_owned())) })
    }));
    let refused = |one: &Arc<Published>| one.synced && Bed::why(one) == "forbidden";
    kept.published.wait_for(refused).await.unwrap();
    for _ in 0..50 {
        let published = kept.again().await;
        assert_eq!(Bed::why(&published), "forbidden");
    }
    assert_eq!(*tries.borrow(), 1, "no time has passed");
    let start = Instant::now();
    tries.wait_for(|tries| *tries == 4).await.unwrap();
    assert!(start.elapsed() >= PAUSE.0, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_for_a_write() {
    let (count, tries) = watch::channel(0);
    let mut kept = Bed::by(Box::new(move |_, _| {
        count.send_modify(|count| *count += 1);
        Box::pin(std::future::pending())
    }));
    for _ in 0..3 {
        let published = kept.again().await;
        assert_eq!(Bed::why(&published), "not yet");
    }
    assert_eq!(*tries.borrow(), 1);
}

#[test]
fn it_is_told_which_versions_are_kept() {
    let mut live = LiveSet::new();
    live.put(policy("shop", "one", &good()));
    live.put(policy("shop", "one", &bad()));
    live.put(policy("never", "two", &bad()));
    let (published, found) = wanted(&mut live, &Versions::new());
    let why = |known: &Known, wanted: &Wanted, failure: Option<&str>| {
        let all = marked(&published, known, wanted, failure).unwrap();
        assert_eq!(all[&name("never")].kept, Kept::Yes, "nothing to keep");
        match &all[&name("shop")].kept {
            Kept::Yes => String::new(),
            Kept::No(why) => why.clone(),
        }
    };
    let (empty, full) = (Record::default(), known(&found.versions));
    assert_eq!(why(&full, &found, None), "");
    assert_eq!(why(&Known::Nothing, &found, None), "not yet");
    assert_eq!(why(&Known::Record(empty.clone()), &found, None), "not yet");
    let failed = why(&Known::Record(empty), &found, Some("forbidden"));
    assert_eq!(failed, "forbidden");
    let unreadable = Known::Unreadable("away".to_owned());
    assert!(why(&unreadable, &found, None).ends_with("away"));
    let left_out = Wanted {
        versions: Versions::new(),
        left_out: [name("shop")].into(),
    };
    assert!(why(&full, &left_out, None).contains("900 KiB"));
    assert!(why(&full, &Wanted::default(), None).contains("written down"));

    live.put(policy("shop", "one", &good()));
    let mended = live.publish().unwrap();
    assert_eq!(marked(&mended, &full, &found, None), None);
}

#[test]
fn the_room_goes_to_policies_of_the_root_first_and_then_to_each_namespace() {
    let object = |kind, namespace: &str, at: usize| {
        ObjectRef::new(kind, namespace, &format!("{namespace}{at}"))
    };
    let policy = Kind::AuthorizationPolicy;
    let all: Vec<_> = (0..9)
        .map(|at| object(policy, "greedy", at))
        .chain((0..2).map(|at| object(policy, "shop", at)))
        .chain((0..2).map(|at| object(Kind::DestinationRule, "shop", at)))
        .chain([object(policy, "root", 0)])
        .chain([object(Kind::ConfigMap, "root", 1)])
        .collect();
    let uids: Vec<String> = (0..all.len()).map(|at| format!("{at:010}")).collect();
    let entries = all.iter().zip(&uids).map(|(object, uid)| Entry {
        object,
        uid,
        text: "x".repeat(90),
    });
    let shared = share(entries.collect(), "root", 600);
    assert_eq!(shared.versions.len(), 6);
    let out = |kind, namespace: &str| {
        let of = |one: &&ObjectRef| one.known() == Some(kind) && *one.namespace == *namespace;
        shared.left_out.iter().filter(of).count()
    };
    assert_eq!((out(policy, "root"), out(policy, "shop")), (0, 0));
    assert_eq!(out(Kind::ConfigMap, "root"), 0);
    assert_eq!(out(policy, "greedy"), 9 - 2);
    assert_eq!(out(Kind::DestinationRule, "shop"), 2);
}

/// An object of each kind that may be kept, with fields of many sorts.
const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: shop, uid: u}
data: {mesh: 'trustDomainAliases: [a]', meshNetworks: 'networks: {}'}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x, namespace: shop, uid: u, annotations: {a: b}}
spec:
  hosts: [x.example]
  gateways: [mesh]
  http:
  - match: [{uri: {prefix: /a}, headers: {k: {regex: 'a.*'}}, withoutHeaders: {l: {exact: b}}}]
    rewrite: {uri: /b}
    timeout: 3s
    retries: {attempts: 2, perTryTimeout: 1s, retryOn: 5xx}
    fault: {delay: {percentage: {value: 0.5}, fixedDelay: 1s}, abort: {httpStatus: 503}}
    headers: {request: {set: {a: b}, remove: [c]}}
    mirror: {host: y.example}
    corsPolicy: {allowOrigins: [{exact: a}], maxAge: 1m, allowCredentials: true}
    route: [{destination: {host: x.example, subset: v1, port: {number: 80}}, weight: 0}, {destination: {host: x.example}, weight: 100}]
  - redirect: {uri: /c, redirectCode: 302}
  - directResponse: {status: 404, body: {string: gone}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: x, namespace: shop, uid: u}
spec:
  host: x.example
  trafficPolicy:
    loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 0s}}}
    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 1m}
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: x, namespace: shop, uid: u}
spec: {hosts: [x.example], location: MESH_EXTERNAL, ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS, exportTo: [.]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: x, namespace: shop, uid: u}
spec: {address: 10.9.9.9, ports: {http: 80}, labels: {a: b}, weight: 2, locality: a/b}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: x, namespace: shop, uid: u}
spec: {selector: {a: b}, servers: [{port: {number: 443, name: h, protocol: HTTPS}, hosts: [x.example], tls: {mode: SIMPLE, credentialName: c}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: x, namespace: shop, uid: u}
spec: {gatewayClassName: c, listeners: [{name: m, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Same}}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: x, uid: u}
spec: {controllerName: example.org/c}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: x, namespace: shop, uid: u}
spec:
  parentRefs: [{group: '', kind: Service, name: x, port: 80}]
  hostnames: [x.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: k, value: v}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]
    timeouts: {request: 1s}
    backendRefs: [{name: x, port: 80, weight: 0}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: x, namespace: shop, uid: u}
spec: {rules: [{matches: [{method: {service: a, method: b}}], backendRefs: [{name: x, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: x, namespace: shop, uid: u}
spec: {rules: [{backendRefs: [{name: x, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: x, namespace: shop, uid: u}
spec: {hostnames: [x.example], rules: [{backendRefs: [{name: x, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: x, namespace: shop, uid: u}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: x, namespace: shop, uid: u}
spec: {selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: x, namespace: shop, uid: u, annotations: {istio.io/dry-run: 'false'}}
spec:
  targetRefs: [{kind: Service, group: '', name: x}]
  action: DENY
  rules:
  - from: [{source: {notNamespaces: [a], ipBlocks: [10.0.0.0/8]}}]
    to: [{operation: {methods: [GET], paths: ['/a/*']}}]
    when: [{key: 'request.headers[k]', notValues: [v]}]
---
apiVersion: isobar.dev/v1
kind: RateLimitPolicy
metadata: {name: x, namespace: shop, uid: u}
spec: {targetRefs: [{group: '', kind: Service, name: x}], limits: [{name: all, requests: 1, per: 1s}]}
";

#[test]
fn every_kind_can_be_written_down_and_read_back() {
    let set = objects(OBJECTS);
    let all = set.objects();
    let kinds = Kind::ALL.iter().filter(|kind| kind.is_custom()).count();
    assert_eq!(all.len(), kinds + 1, "one of each, and a MeshConfig");
    for object in all {
        let reference = object.reference();
        let text = text(&set, &reference, "u");
        let text = text.unwrap_or_else(|| panic!("{reference}"));
        let read = read_version("u", &text).unwrap();
        assert_eq!(read, object, "{text}");
    }
    assert!(set.service_entries.get("shop", "x").unwrap().uid() == "u");
}
