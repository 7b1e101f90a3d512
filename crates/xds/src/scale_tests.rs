//! What a big mesh costs: applying it, changing one part in a hundred, looking things up, and what
//! of that a data-path worker notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::istio::security;
use isobar_proto::istio::workload::{self as wire, address::Type};
use isobar_state::outbound::{OutboundCall, route};
use isobar_state::{Peer, authorize};
use isobar_types::Identity;

use crate::handler::ResourceHandler;
use crate::mesh::{AddressHandler, AuthorizationHandler};
use crate::store::Store;
use crate::testing::resource;

const PODS_A_SERVICE: usize = 10;
const PODS_A_NODE: usize = 100;
const SERVICES_A_NAMESPACE: usize = 20;

fn host(service: usize) -> (String, String) {
    let namespace = format!("ns-{}", service / SERVICES_A_NAMESPACE);
    let host = format!("svc-{service}.{namespace}.svc.cluster.local");
    (namespace, host)
}

fn pod(n: usize, revision: usize) -> Resource {
    let service = n / PODS_A_SERVICE;
    let (namespace, host) = host(service);
    let number = u32::try_from(n).unwrap();
    let uid = format!("Kubernetes//Pod/{namespace}/svc-{service}-{n}");
    let ports = vec![wire::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 0,
    }];
    let mut w = wire::Workload {
        uid: uid.clone(),
        name: format!("svc-{service}-{n}"),
        namespace: namespace.clone(),
        addresses: vec![(0x0a00_0000 + number).to_be_bytes().to_vec()],
        service_account: format!("svc-{service}"),
        node: format!("node-{}", n / PODS_A_NODE),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        canonical_name: format!("svc-{service}"),
        canonical_revision: format!("v{revision}"),
        workload_name: format!("svc-{service}"),
        workload_type: wire::WorkloadType::Pod.into(),
        ..Default::default()
    };
    let key = format!("{namespace}/{host}");
    w.services.insert(key, wire::PortList { ports });
    let message = wire::Address {
        r#type: Some(Type::Workload(w)),
    };
    resource(&uid, "1", &message)
}

fn service(n: usize) -> Resource {
    let (namespace, host) = host(n);
    let number = u32::try_from(n).unwrap();
    let name = format!("{namespace}/{host}");
    let s = wire::Service {
        name: format!("svc-{n}"),
        namespace,
        hostname: host,
        addresses: vec![wire::NetworkAddress {
            address: (0x6440_0000 + number).to_be_bytes().to_vec(),
            ..Default::default()
        }],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
        canonical: true,
        ..Default::default()
    };
    let message = wire::Address {
        r#type: Some(Type::Service(s)),
    };
    resource(&name, "1", &message)
}

fn mesh(pods: usize) -> Vec<Resource> {
    let services = (0..pods / PODS_A_SERVICE).map(service);
    services.chain((0..pods).map(|n| pod(n, 0))).collect()
}

/// A data-path worker that decides all the time, and now and then holds a snapshot while the next
/// one is published.
struct Probe {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Stall>,
}

/// The longest that a step of a worker has taken.
#[derive(Debug, Default, Clone, Copy)]
struct Stall {
    /// On a CPU.
    busy: Duration,
    /// From its begin to its end, locks and page faults included, but for what others had the CPU.
    held: Duration,
}

/// CPU time of this thread, and the time it could have run and waited for a CPU: what the other
/// programs of the machine cost it.
fn times() -> (Duration, Duration) {
    // The kernel adds up when it switches, or at a tick: without this a short step costs nothing.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let mut numbers = text.split_whitespace().map(|n| n.parse().unwrap());
    let mut next = || Duration::from_nanos(numbers.next().unwrap());
    (next(), next())
}

/// CPU time of this thread. Wall-clock time would count the other programs of the machine.
fn cpu_time() -> Duration {
    times().0
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

impl Probe {
    fn start(store: Store) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut longest = Stall::default();
            while !told.load(Ordering::Relaxed) {
                let snapshot = store.load();
                std::thread::sleep(Duration::from_millis(1));
                let (busy, waited) = times();
                let start = Instant::now();
                let source = snapshot.workloads_on_node("node-0").next().cloned();
                if let Some(source) = source {
                    let call = OutboundCall {
                        source: &source,
                        source_ip: source.addresses[0],
                        destination: "100.64.0.1:80".parse().unwrap(),
                        network: "",
                        crosses_networks: false,
                        ejections: None,
                    };
                    let _ = route(&snapshot, &call, 1);
                }
                drop(snapshot);
                let (now_busy, now_waited) = times();
                let held = start.elapsed().saturating_sub(now_waited - waited);
                longest.busy = longest.busy.max(now_busy - busy);
                longest.held = longest.held.max(held);
            }
            longest
        });
        Self { stop, thread }
    }

    fn stop(self) -> Stall {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[derive(Debug)]
struct Cost {
    /// Everything, from nothing.
    whole: Duration,
    /// Resident memory that this took, per byte of content.
    memory: f64,
    /// One change in a hundred: the median of some rounds.
    churn: Duration,
    /// One decision.
    decision: Duration,
    /// During the changes.
    stall: Stall,
}

fn measure(pods: usize) -> Cost {
    let store = Store::default();
    let mut handler = AddressHandler::new(store.clone());
    let all = mesh(pods);
    let content = all.iter().filter_map(|r| r.resource.as_ref());
    let content: usize = content.map(|any| any.value.len()).sum();
    let before = resident();
    let start = cpu_time();
    assert!(handler.apply(&all, &[]).is_empty());
    let whole = cpu_time() - start;
    let memory = resident().saturating_sub(before) as f64 / content as f64;
    drop(all);

    let probe = Probe::start(store.clone());
    let mut rounds: Vec<_> = (1..=7)
        .map(|round| {
            let changes: Vec<_> = (0..pods).step_by(100).map(|n| pod(n, round)).collect();
            let start = cpu_time();
            assert!(handler.apply(&changes, &[]).is_empty());
            let took = cpu_time() - start;
            // The worker lets go of what it holds; then what is old is freed, here.
            std::thread::sleep(Duration::from_millis(3));
            store.reap();
            took
        })
        .collect();
    let stall = probe.stop();
    rounds.sort_unstable();

    let snapshot = store.load();
    let source = snapshot.workloads_on_node("node-0").next().unwrap();
    const CALLS: u32 = 2000;
    let start = cpu_time();
    for n in 0..CALLS {
        let service = n as usize % (pods / PODS_A_SERVICE);
        let vip = (0x6440_0000 + u32::try_from(service).unwrap()).to_be_bytes();
        let call = OutboundCall {
            source,
            source_ip: source.addresses[0],
            destination: (vip, 80).into(),
            network: "",
            crosses_networks: false,
            ejections: None,
        };
        assert!(route(&snapshot, &call, u64::from(n)).is_ok());
    }
    Cost {
        whole,
        memory,
        churn: rounds[3],
        decision: (cpu_time() - start) / CALLS,
        stall,
    }
}

/// The bar: from 1,000 to 100,000 workloads nothing grows faster than the mesh, and no worker is
/// held up for more than 10 ms by one change in a hundred.
#[test]
fn cost_grows_no_faster_than_the_mesh_and_no_worker_stops() {
    let costs: Vec<_> = [1_000, 10_000, 100_000]
        .into_iter()
        .map(|pods| {
            let cost = measure(pods);
            println!("{pods} workloads: {cost:.1?}");
            (pods, cost)
        })
        .collect();
    let (_, small) = &costs[1];
    let (_, big) = &costs[2];
    // Ten times the mesh, ten times the cost; a square would be a hundred. What is between is for caches
    // and a machine that is busy with other tests.
    assert!(
        big.whole < small.whole * 50,
        "applying everything: {costs:?}"
    );
    assert!(big.churn < small.churn * 50, "applying changes: {costs:?}");
    assert!(big.decision < small.decision * 50, "a decision: {costs:?}");
    assert!(big.memory < 10.0, "memory per byte received: {costs:?}");
    assert!(
        big.stall.busy < Duration::from_millis(10),
        "a worker stopped: {costs:?}"
    );
}

#[test]
fn ten_thousand_policies_of_one_namespace_are_applied_and_evaluated_in_time() {
    let store = Store::default();
    AddressHandler::new(store.clone()).apply(&[pod(0, 0)], &[]);
    let policy = |n: usize| {
        let matching = security::Match {
            principals: vec![security::StringMatch {
                match_type: Some(security::string_match::MatchType::Exact(format!(
                    "cluster.local/ns/other/sa/a{n}"
                ))),
            }],
            ..Default::default()
        };
        let message = security::Authorization {
            name: format!("p{n}"),
            namespace: "ns-0".to_owned(),
            scope: security::Scope::Namespace.into(),
            action: security::Action::Deny.into(),
            rules: vec![security::Rule {
                clauses: vec![security::Clause {
                    matches: vec![matching],
                }],
            }],
            ..Default::default()
        };
        resource(&format!("ns-0/p{n}"), "", &message)
    };
    let mut handler = AuthorizationHandler::new(store.clone());
    let times: Vec<_> = [0..1_000, 1_000..10_000]
        .into_iter()
        .map(|range| {
            let policies: Vec<_> = range.map(policy).collect();
            let start = cpu_time();
            assert!(handler.apply(&policies, &[]).is_empty());
            cpu_time() - start
        })
        .collect();
    let snapshot = store.load();
    let target = snapshot.workloads().next().unwrap();
    let peer = Peer {
        identity: Some(Identity::new("cluster.local", "other", "b")),
        ip: "10.0.0.9".parse().unwrap(),
    };
    let start = cpu_time();
    for _ in 0..100 {
        assert!(authorize(&snapshot, &peer, target, "10.0.0.0:80".parse().unwrap()).is_ok());
    }
    let decision = (cpu_time() - start) / 100;
    println!("1,000 then 9,000 policies applied in {times:.1?}; one decision {decision:.1?}");
    assert!(times[1] < times[0] * 60, "{times:?}");
    // Policies about others are not looked at.
    assert!(decision < Duration::from_millis(1), "{decision:?}");
}
