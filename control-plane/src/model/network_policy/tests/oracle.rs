//! What is made of NetworkPolicies against what NetworkPolicies mean: the same calls are decided by
//! a network plugin written down here, and by the node proxies' own evaluation of the DENY.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use isobar_proto::istio::workload::{Address, address};
use isobar_state::{Peer, Snapshot, authorize};
use isobar_types::Identity;
use proptest::prelude::*;
use proptest::sample::select;

use super::{KeptKeys, Plan, objects, plan, settings};
use crate::model::{End, dropped};

const TARGET: &str = "10.9.0.1";
/// The target's port `web`.
const WEB: u16 = 9000;
const PORTS: [u16; 8] = [1, 80, 81, 8080, WEB, 15007, 15009, 65535];

type Labels = BTreeMap<&'static str, &'static str>;

#[derive(Debug, Clone)]
struct Caller {
    namespace: &'static str,
    labels: Labels,
    ip: IpAddr,
}

#[derive(Debug, Clone)]
enum PeerOf {
    Selectors {
        namespaces: Option<Labels>,
        pods: Option<Labels>,
    },
    Block {
        cidr: &'static str,
        except: Vec<&'static str>,
    },
}

#[derive(Debug, Clone)]
enum Port {
    Every,
    One(u16),
    Range(u16, u16),
    Named(&'static str),
    Udp(u16),
}

#[derive(Debug, Clone)]
struct Rule {
    from: Vec<PeerOf>,
    ports: Vec<Port>,
}

#[derive(Debug, Clone)]
struct Policy {
    selects: bool,
    rules: Vec<Rule>,
}

fn namespace_labels(name: &str) -> Labels {
    match name {
        "shop" => Labels::from([("tier", "back")]),
        "front" => Labels::from([("tier", "front")]),
        _ => Labels::new(),
    }
}

fn holds(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// The network plugin.
fn lets_in(policies: &[Policy], caller: &Caller, port: u16) -> bool {
    let mut selecting = policies.iter().filter(|policy| policy.selects).peekable();
    if selecting.peek().is_none() {
        return true;
    }
    let from = |peer: &PeerOf| match peer {
        PeerOf::Selectors { namespaces, pods } => {
            let there = match namespaces {
                None => caller.namespace == "shop",
                Some(selector) => holds(selector, &namespace_labels(caller.namespace)),
            };
            there
                && pods
                    .as_ref()
                    .is_none_or(|selector| holds(selector, &caller.labels))
        }
        PeerOf::Block { cidr, except } => {
            let within = |text: &&str| text.parse::<IpNet>().unwrap().contains(&caller.ip);
            within(cidr) && !except.iter().any(within)
        }
    };
    let to = |open: &Port| match open {
        Port::Every => true,
        Port::One(number) => *number == port,
        Port::Range(start, end) => (*start..=*end).contains(&port),
        Port::Named(name) => *name == "web" && port == WEB,
        Port::Udp(_) => false,
    };
    selecting.flat_map(|policy| &policy.rules).any(|rule| {
        (rule.from.is_empty() || rule.from.iter().any(from))
            && (rule.ports.is_empty() || rule.ports.iter().any(to))
    })
}

fn labels_text(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}: {v}")).collect();
    pairs.join(", ")
}

fn selector_text(name: &str, selector: Option<&Labels>) -> Option<String> {
    selector.map(|labels| format!("{name}: {{matchLabels: {{{}}}}}", labels_text(labels)))
}

fn policy_text(index: usize, policy: &Policy) -> String {
    let rules = policy.rules.iter().map(|rule| {
        let peers = rule.from.iter().map(|peer| match peer {
            PeerOf::Selectors { namespaces, pods } => {
                let both = [
                    selector_text("namespaceSelector", namespaces.as_ref()),
                    selector_text("podSelector", pods.as_ref()),
                ];
                let both: Vec<String> = both.into_iter().flatten().collect();
                format!("{{{}}}", both.join(", "))
            }
            PeerOf::Block { cidr, except } => {
                format!(
                    "{{ipBlock: {{cidr: {cidr}, except: [{}]}}}}",
                    except.join(", ")
                )
            }
        });
        let ports = rule.ports.iter().map(|port| match port {
            Port::Every => "{protocol: TCP}".to_owned(),
            Port::One(number) => format!("{{port: {number}}}"),
            Port::Range(start, end) => format!("{{port: {start}, endPort: {end}}}"),
            Port::Named(name) => format!("{{port: {name}}}"),
            Port::Udp(number) => format!("{{port: {number}, protocol: UDP}}"),
        });
        let list = |items: Vec<String>| items.join(", ");
        format!(
            "{{from: [{}], ports: [{}]}}",
            list(peers.collect()),
            list(ports.collect())
        )
    });
    let rules: Vec<String> = rules.collect();
    let select = if policy.selects { "target" } else { "other" };
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: p{index}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{role: {select}}}}}, policyTypes: [Ingress], \
         ingress: [{}]}}\n",
        rules.join(", ")
    )
}

fn pod_text(name: &str, namespace: &str, labels: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}, \
         annotations: {{ambient.istio.io/redirection: enabled}}}}\n\
         spec: {{serviceAccountName: {name}, nodeName: node-1, containers: [{{name: c, image: i, \
         ports: [{{name: web, containerPort: {WEB}}}]}}]}}\n\
         status: {{phase: Running, podIP: {ip}}}\n"
    )
}

fn world(callers: &[Caller], policies: &[Policy]) -> Plan {
    let yaml = text(callers, policies);
    plan(&objects(&yaml), &settings(), &KeptKeys::default())
}

fn text(callers: &[Caller], policies: &[Policy]) -> String {
    let mut yaml = String::new();
    for name in ["shop", "front", "plain"] {
        let labels = labels_text(&namespace_labels(name));
        yaml.push_str(&format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
        ));
    }
    yaml.push_str(&pod_text("target", "shop", "role: target", TARGET));
    for (index, caller) in callers.iter().enumerate() {
        yaml.push_str(&pod_text(
            &format!("caller{index}"),
            caller.namespace,
            &labels_text(&caller.labels),
            &caller.ip.to_string(),
        ));
    }
    for (index, policy) in policies.iter().enumerate() {
        yaml.push_str(&policy_text(index, policy));
    }
    yaml
}

#[test]
fn a_network_plugin_asks_both_ends_and_only_pods() {
    let policies = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {name: out, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: left}}, policyTypes: [Egress], egress: [\
         {to: [{podSelector: {matchLabels: {role: target}}}], ports: [{port: web}]}, \
         {to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}\n";
    let caller = |namespace, app, ip: &str| Caller {
        namespace,
        labels: Labels::from([("app", app)]),
        ip: ip.parse().unwrap(),
    };
    let callers = [
        caller("shop", "left", "10.0.0.1"),
        caller("front", "left", "10.0.0.2"),
    ];
    let set = objects(&(text(&callers, &[]) + policies));
    let end = |pod, ip: &str| End {
        pod,
        ip: ip.parse().unwrap(),
    };
    let isolated = end(Some(("shop", "caller0")), "10.0.0.1");
    let free = end(Some(("front", "caller1")), "10.0.0.2");
    let target = end(Some(("shop", "target")), TARGET);
    assert_eq!(dropped(&set, &free, &target, 80), None);
    assert_eq!(dropped(&set, &isolated, &target, WEB), None);
    let found = dropped(&set, &isolated, &target, 15008).unwrap();
    assert!(found.leaving);
    assert_eq!(
        found.to_string(),
        "NetworkPolicy shop/out: no rule lets the caller out on port 15008"
    );
    assert!(dropped(&set, &isolated, &free, WEB).is_some());
    assert_eq!(dropped(&set, &isolated, &isolated, 80), None, "itself");
    assert_eq!(dropped(&set, &isolated, &end(None, "192.0.2.7"), 443), None);
    assert!(dropped(&set, &isolated, &end(None, "198.51.100.7"), 443).is_some());
}

fn snapshot(plan: &Plan) -> Snapshot {
    let mut draft = Snapshot::default().draft();
    for policy in &plan.authorizations {
        draft.upsert_authorization(policy).unwrap();
    }
    for workload in &plan.workloads {
        let message = Address {
            r#type: Some(address::Type::Workload(workload.wire.clone())),
        };
        draft.upsert_address(&message).unwrap();
    }
    draft.finish()
}

fn some_labels() -> impl Strategy<Value = Labels> {
    select(vec![
        Labels::new(),
        Labels::from([("app", "left")]),
        Labels::from([("app", "right")]),
        Labels::from([("app", "left"), ("tier", "front")]),
    ])
}

fn some_namespaces() -> impl Strategy<Value = Labels> {
    select(vec![
        Labels::new(),
        Labels::from([("tier", "front")]),
        Labels::from([("tier", "back")]),
        Labels::from([("tier", "none")]),
    ])
}

fn some_peer() -> impl Strategy<Value = PeerOf> {
    let block = (
        select(vec![
            "10.0.0.0/8",
            "10.1.0.0/16",
            "0.0.0.0/0",
            "10.1.0.2/32",
        ]),
        prop::collection::vec(
            select(vec!["10.1.0.0/24", "10.2.0.0/16", "10.1.0.3/32"]),
            0..3,
        ),
    )
        .prop_filter("exceptions are inside", |(cidr, except)| {
            let outer: IpNet = cidr.parse().unwrap();
            except
                .iter()
                .all(|e| outer.contains(&e.parse::<IpNet>().unwrap()))
        })
        .prop_map(|(cidr, except)| PeerOf::Block { cidr, except });
    let selectors = (
        prop::option::of(some_namespaces()),
        prop::option::of(some_labels()),
    )
        .prop_filter("one of them is there", |(n, p)| n.is_some() || p.is_some())
        .prop_map(|(namespaces, pods)| PeerOf::Selectors { namespaces, pods });
    prop_oneof![selectors, block]
}

fn some_port() -> impl Strategy<Value = Port> {
    let one = || select(vec![80_u16, 81, 8080, 15008]);
    prop_oneof![
        1 => Just(Port::Every),
        4 => one().prop_map(Port::One),
        2 => (one(), 0_u16..200).prop_map(|(start, more)| Port::Range(start, start + more)),
        1 => Just(Port::Range(82, 65535)),
        2 => select(vec!["web", "none"]).prop_map(Port::Named),
        1 => one().prop_map(Port::Udp),
    ]
}

fn some_policy() -> impl Strategy<Value = Policy> {
    let rule = (
        prop::collection::vec(some_peer(), 0..3),
        prop::collection::vec(some_port(), 0..3),
    )
        .prop_map(|(from, ports)| Rule { from, ports });
    (prop::bool::weighted(0.8), prop::collection::vec(rule, 0..3))
        .prop_map(|(selects, rules)| Policy { selects, rules })
}

fn some_callers() -> impl Strategy<Value = Vec<Caller>> {
    let caller = (
        select(vec!["shop", "front", "plain"]),
        some_labels(),
        0_u8..3,
    );
    prop::collection::vec(caller, 1..5).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(index, (namespace, labels, net))| Caller {
                namespace,
                labels,
                ip: format!("10.{net}.0.{}", index + 1).parse().unwrap(),
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_network_plugin_is_foretold(
        callers in some_callers(),
        policies in prop::collection::vec(some_policy(), 0..4),
    ) {
        let set = objects(&text(&callers, &policies));
        let target = End { pod: Some(("shop", "target")), ip: TARGET.parse().unwrap() };
        for (index, caller) in callers.iter().enumerate() {
            let name = format!("caller{index}");
            let from = End { pod: Some((caller.namespace, &name)), ip: caller.ip };
            for port in PORTS.into_iter().chain([15008]) {
                let found = dropped(&set, &from, &target, port);
                let expected = lets_in(&policies, caller, port);
                prop_assert_eq!(found.is_none(), expected, "{:?} to {}: {:?}", caller, port, found);
            }
        }
    }

    #[test]
    fn the_deny_refuses_what_the_policies_forbid(
        callers in some_callers(),
        policies in prop::collection::vec(some_policy(), 0..4),
    ) {
        let plan = world(&callers, &policies);
        let snapshot = snapshot(&plan);
        let target = snapshot.workload_by_uid("Kubernetes//Pod/shop/target").unwrap();
        for (index, caller) in callers.iter().enumerate() {
            let identity =
                Identity::new("cluster.local", caller.namespace, format!("caller{index}"));
            let known = Peer { identity: Some(identity), ip: caller.ip };
            let unknown = Peer { identity: None, ip: caller.ip };
            for port in PORTS {
                let to = SocketAddr::new(TARGET.parse().unwrap(), port);
                let decided = authorize(&snapshot, &known, target, to);
                prop_assert_eq!(
                    decided.is_ok(),
                    lets_in(&policies, caller, port),
                    "{:?} to {}: {:?}", caller, port, decided
                );
                // Plaintext stays with the network plugin.
                prop_assert!(authorize(&snapshot, &unknown, target, to).is_ok());
            }
        }
    }
}
