//! Destinations that are no plain Service: what has several addresses, none, or a name only.

use std::collections::BTreeMap;

use isobar_objects::{DirectoryOptions, DirectorySource, ObjectSource as _};

use super::*;

/// Pods with a name of their own, each a possible caller.
const PODS: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart, zone: a}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: uncaptured, namespace: shop, annotations: {ambient.istio.io/dns-capture: 'false'}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: plain}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host1, namespace: shop}
spec: {hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, nodeName: node-1, containers: [{name: c, image: i}]}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host2, namespace: shop}
spec: {hostNetwork: true, nodeName: node-1, containers: [{name: c, image: i}]}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server1, namespace: shop, labels: {app: server, zone: a}}
spec:
  nodeName: node-1
  hostname: one
  subdomain: headless
  containers: [{name: c, image: i, readinessProbe: {tcpSocket: {port: 8080}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: server2, namespace: shop, labels: {app: server, zone: b}}
spec: {nodeName: node-2, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: server.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {type: ExternalName, externalName: api.example.org}
";

/// Hosts of each kind; those with `wp` are behind the waypoint.
const ENTRIES: &str = "\
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: isobar-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static, namespace: shop}
spec:
  hosts: [static.example.com]
  addresses: [203.0.113.5]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: server}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: lists, namespace: shop}
spec:
  hosts: [lists.example.com]
  addresses: [172.30.0.1]
  resolution: NONE
  ports: [{number: 15014, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: [dns.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: api.example.org, ports: {http: 8443}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: inside, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: [inside.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: server.shop.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: direct, namespace: shop}
spec:
  hosts: [direct.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: server.shop.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: none, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: [none.example.com]
  addresses: [192.0.2.9]
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: domain, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: ['*.wild.example.com']
  resolution: DYNAMIC_DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: behind, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn world(more: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    let text = [PODS, ENTRIES, more].concat();
    std::fs::write(folder.path().join("all.yaml"), text).unwrap();
    let options = DirectoryOptions::new(vec![folder.path().to_owned()], None);
    let source = DirectorySource::open(options).unwrap();
    let published = source.subscribe().borrow().clone();
    let errors: Vec<_> = published.findings.iter().filter(|f| f.is_error()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    World::imagined(&published.objects)
}

fn ask(world: &World, source: &str, destination: &str) -> Explanation {
    let question = Question::new("shop", source, destination).unwrap();
    explain(world, &question).unwrap()
}

/// Where calls end as `SHARE END`, in order of the ends; pods of one way share it.
fn ends(found: &Explanation) -> Vec<String> {
    let mut all: BTreeMap<String, f64> = BTreeMap::new();
    for way in &found.ways {
        let ends = match &way.outcome {
            Outcome::Reaches { pods, port } => pods.iter().map(|p| format!("{p} {port}")).collect(),
            Outcome::Leaves { to } => vec![format!("leaves {to}")],
            Outcome::Named { host, port } => vec![format!("named {host} {port}")],
            Outcome::Refused { reason, status, .. } => {
                vec![format!(
                    "refused {} {}",
                    reason.as_str(),
                    status.unwrap_or(0)
                )]
            }
            other => panic!("{other:?}"),
        };
        let share = way.share / ends.len() as f64;
        for end in ends {
            *all.entry(end).or_default() += share;
        }
    }
    let percent = |share: f64| (share * 100.0).round();
    let all = all.into_iter();
    all.map(|(end, share)| format!("{} {end}", percent(share)))
        .collect()
}

fn is(world: &World, source: &str, destination: &str, expected: &[&str]) {
    let found = ask(world, source, destination);
    assert_eq!(ends(&found), expected, "{source} {destination}: {found:#?}");
}

#[test]
fn hosts_behind_a_waypoint_go_to_what_they_resolve_to() {
    let split = "\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: behind, namespace: shop}
spec:
  hosts: [behind]
  http:
  - route:
    - {destination: {host: dns.example.com, port: {number: 80}}, weight: 50}
    - {destination: {host: server.shop.svc.cluster.local}, weight: 50}
";
    let world = world(split);
    let named = "named api.example.org 8443";
    is(
        &world,
        "cart",
        "http://dns.example.com/",
        &[&format!("100 {named}")],
    );
    let found = ask(&world, "cart", "http://behind/");
    assert_eq!(
        ends(&found),
        [
            format!("50 {named}"),
            "25 shop/server1 8080".into(),
            "25 shop/server2 8080".into()
        ]
    );
    assert_eq!(found.allowed(), None);
    // A name of the cluster is one that somebody here knows: plain text to its pods.
    let pods = ["50 shop/server1 8080", "50 shop/server2 8080"];
    is(&world, "cart", "http://inside.example.com/", &pods);
    is(&world, "cart", "http://direct.example.com/", &pods);
    let strict = "\
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    let world = self::world(strict);
    is(
        &world,
        "cart",
        "http://inside.example.com/",
        &["100 refused plaintext_refused 503"],
    );
    is(
        &world,
        "cart",
        "http://direct.example.com/",
        &["100 refused plaintext_refused 0"],
    );
}

#[test]
fn a_domain_behind_a_waypoint_is_the_host_that_is_asked_for() {
    let world = world("");
    is(
        &world,
        "cart",
        "http://a.wild.example.com/",
        &["100 named a.wild.example.com 80"],
    );
}

#[test]
fn addresses_that_stand_for_themselves_pass_a_waypoint() {
    let world = world("");
    for to in ["http://none.example.com/", "192.0.2.9:80"] {
        is(&world, "cart", to, &["100 leaves 192.0.2.9:80"]);
    }
    let routed = "\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: behind, namespace: shop}
spec: {hosts: [behind], http: [{route: [{destination: {host: none.example.com}}]}]}
";
    let world = self::world(routed);
    is(
        &world,
        "cart",
        "http://behind/",
        &["100 refused no_healthy_upstream 503"],
    );
}

#[test]
fn entries_are_nothing_to_callers_outside_the_mesh() {
    let world = world("");
    let stranger = "plain/stranger";
    is(
        &world,
        stranger,
        "203.0.113.5:80",
        &["100 leaves 203.0.113.5:80"],
    );
    is(
        &world,
        stranger,
        "172.30.0.1:15014",
        &["100 leaves 172.30.0.1:15014"],
    );
    is(
        &world,
        stranger,
        "static.example.com:80",
        &["100 named static.example.com 80"],
    );
    is(
        &world,
        stranger,
        "server.shop:80",
        &["50 shop/server1 8080", "50 shop/server2 8080"],
    );
    // Its own node proxy would have said more.
    is(
        &world,
        "cart",
        "static.example.com:80",
        &["50 shop/server1 80", "50 shop/server2 80"],
    );
}

#[test]
fn who_does_not_ask_the_mesh_for_names_is_told_those_of_the_cluster() {
    let world = world("");
    is(
        &world,
        "uncaptured",
        "static.example.com:80",
        &["100 named static.example.com 80"],
    );
    is(
        &world,
        "uncaptured",
        "203.0.113.5:80",
        &["50 shop/server1 80", "50 shop/server2 80"],
    );
    is(
        &world,
        "uncaptured",
        "server:80",
        &["50 shop/server1 8080", "50 shop/server2 8080"],
    );
    let found = ask(&world, "uncaptured", "static.example.com:80");
    let told = format!("{found:?}");
    assert!(
        told.contains("annotation ambient.istio.io/dns-capture"),
        "{told}"
    );
}

#[test]
fn a_headless_service_is_any_of_its_pods() {
    let world = world("");
    for caller in ["cart", "uncaptured", "plain/stranger"] {
        let both = ["50 shop/server1 80", "50 shop/server2 80"];
        is(&world, caller, "headless.shop:80", &both);
    }
    let one = "one.headless.shop.svc.cluster.local:80";
    is(&world, "cart", one, &["100 shop/server1 80"]);
}

#[test]
fn another_name_is_followed() {
    let world = world("");
    for caller in ["cart", "uncaptured", "plain/stranger"] {
        is(
            &world,
            caller,
            "alias.shop:80",
            &["50 shop/server1 8080", "50 shop/server2 8080"],
        );
        is(
            &world,
            caller,
            "away.shop:443",
            &["100 named api.example.org 443"],
        );
    }
    let told = format!("{:?}", ask(&world, "cart", "alias:80"));
    assert!(
        told.contains("Service shop/alias is an ExternalName"),
        "{told}"
    );
    let circle = "\
---
apiVersion: v1
kind: Service
metadata: {name: circle, namespace: shop}
spec: {type: ExternalName, externalName: circle.shop.svc.cluster.local}
";
    let question = Question::new("shop", "cart", "circle:80").unwrap();
    let error = explain(&self::world(circle), &question).unwrap_err();
    assert!(
        error.to_string().contains("circle names no Service"),
        "{error}"
    );
}

#[test]
fn pods_of_a_nodes_network_call_from_outside_the_mesh() {
    let world = world("");
    for host in ["host1", "host2"] {
        let found = ask(&world, host, "pod/shop/server2:8080");
        assert_eq!(found.source, format!("shop/{host}"));
        assert_eq!(ends(&found), ["100 shop/server2 8080"]);
        is(&world, host, "10.0.0.1:22", &["100 leaves 10.0.0.1:22"]);
    }
    is(
        &world,
        "host1",
        "server:80",
        &["50 shop/server1 8080", "50 shop/server2 8080"],
    );
    // Kubernetes gives it the name server of its node.
    is(&world, "host2", "server:80", &["100 named server 80"]);
    let strict = "\
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    let world = self::world(strict);
    // The probe's port is open to root on the pod's own node.
    is(
        &world,
        "host1",
        "pod/shop/server1:8080",
        &["100 shop/server1 8080"],
    );
    is(
        &world,
        "host1",
        "pod/shop/server1:8081",
        &["100 refused plaintext_refused 0"],
    );
    is(
        &world,
        "host1",
        "pod/shop/server2:8080",
        &["100 refused plaintext_refused 0"],
    );
}

fn rule(balancer: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: behind, namespace: shop}}\n\
         spec: {{host: behind, trafficPolicy: {{loadBalancer: {balancer}, outlierDetection: {{consecutive5xxErrors: 5}}}}}}\n"
    )
}

#[test]
fn endpoints_near_the_caller_come_first() {
    let near = "{localityLbSetting: {enabled: true, failoverPriority: [zone]}}";
    let world = world(&rule(near));
    is(&world, "cart", "http://behind/", &["100 shop/server1 8080"]);
    let told = format!("{:?}", ask(&world, "cart", "http://behind/"));
    assert!(told.contains("among 1 of 2 endpoints"), "{told}");
    let off = "{localityLbSetting: {enabled: false, failoverPriority: [zone]}}";
    is(
        &self::world(&rule(off)),
        "cart",
        "http://behind/",
        &["50 shop/server1 8080", "50 shop/server2 8080"],
    );
}

#[test]
fn a_key_leads_to_one_endpoint_and_its_absence_to_any() {
    let world = world(&rule("{consistentHash: {httpHeaderName: x-user}}"));
    let by = |user: &str| {
        let mut question = Question::new("shop", "cart", "behind:80").unwrap();
        let headers = [format!("x-user: {user}")];
        question.request = Some(Asked::new("GET", "/", &headers).unwrap());
        ends(&explain(&world, &question).unwrap())
    };
    let mut found: Vec<Vec<String>> = (0..32).map(|n| by(&n.to_string())).collect();
    found.sort();
    found.dedup();
    assert_eq!(
        found,
        [["100 shop/server1 8080"], ["100 shop/server2 8080"]]
    );
    is(
        &world,
        "cart",
        "http://behind/",
        &["50 shop/server1 8080", "50 shop/server2 8080"],
    );
    let told = format!("{:?}", ask(&world, "cart", "http://behind/"));
    assert!(told.contains("the call does not have the key"), "{told}");
}
