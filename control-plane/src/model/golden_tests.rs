use std::fmt::Write as _;
use std::path::Path;

use isobar_objects::{ObjectSet, read_text};
use isobar_proto::istio::workload::{GatewayAddress, gateway_address};

use super::{KeptKeys, Plan, plan};

pub(crate) use crate::told::settings;

pub(crate) fn objects(yaml: &str) -> ObjectSet {
    let read = read_text(Path::new("test.yaml"), yaml);
    let errors: Vec<String> = read
        .findings
        .iter()
        .filter(|finding| finding.is_error())
        .map(ToString::to_string)
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    ObjectSet::of(read.objects.into_iter().map(|read| read.object))
}

pub(crate) fn planned(yaml: &str) -> Plan {
    plan(&objects(yaml), &settings(), &KeptKeys::default())
}

/// A pod as one document.
pub(crate) fn pod(name: &str, account: &str, labels: &str, ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    let digit = name.bytes().map(u32::from).sum::<u32>() % 250;
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, uid: u-{name}, labels: {{{labels}}}}}
spec:
  serviceAccountName: {account}
  nodeName: node-1
  containers: [{{name: c, image: i, ports: [{{name: web, containerPort: 9000}}]}}]
status:
  phase: Running
  podIP: 10.244.1.{digit}
  conditions: [{{type: Ready, status: \"{ready}\"}}]
"
    )
}

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}
";

pub(crate) fn gateway(name: &str, extra: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: shop{extra}}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
"
    )
}

pub(super) fn waypoint_pod(name: &str, ready: bool) -> String {
    let labels =
        format!("gateway.networking.k8s.io/gateway-name: {name}, networking.istio.io/tunnel: http");
    pod(&format!("{name}-pod"), name, &labels, ready)
}

pub(crate) fn namespace(labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n"
    )
}

pub(super) fn account(name: &str, labels: &str, annotations: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}, annotations: {{{annotations}}}}}
"
    )
}

fn host(address: Option<&GatewayAddress>) -> String {
    match address.and_then(|a| a.destination.as_ref()) {
        Some(gateway_address::Destination::Hostname(name)) => name.hostname.clone(),
        Some(gateway_address::Destination::Address(_)) => "address".into(),
        None => "-".into(),
    }
}

/// Everything that tests compare, one line each.
fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for service in &plan.services {
        let wire = &service.wire;
        let _ = write!(
            out,
            "service {} waypoint={}",
            wire.hostname,
            host(wire.waypoint.as_ref())
        );
        for part in &wire.weighted_waypoints {
            let _ = write!(out, " {}*{}", host(part.destination.as_ref()), part.weight);
        }
        let _ = writeln!(out);
    }
    for workload in &plan.workloads {
        let wire = &workload.wire;
        let services: Vec<String> = wire
            .services
            .iter()
            .flat_map(|(name, ports)| {
                let ports = ports.ports.iter();
                ports.map(move |p| format!("{name}:{}>{}", p.service_port, p.target_port))
            })
            .collect();
        let _ = writeln!(
            out,
            "workload {} waypoint={} services={services:?} policies={:?}",
            wire.name,
            host(wire.waypoint.as_ref()),
            wire.authorization_policies
        );
    }
    out
}

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no line {start:?} in\n{text}"))
}

pub(crate) fn reasons(plan: &Plan, object: &str) -> Vec<&'static str> {
    plan.verdicts
        .iter()
        .filter(|verdict| verdict.object.to_string() == object)
        .map(|verdict| verdict.reason)
        .collect()
}

const WAYPOINT: &str = "wp.shop.svc.cluster.local";
const DENIED: &str = "denied.waypoint.isobar.invalid";

#[test]
fn pods_and_services_become_workloads_and_services() {
    let yaml = format!(
        "{}{SERVICE}{}{}",
        namespace(""),
        pod("cart-1", "cart", "app: cart, version: v1", true),
        pod("idle-1", "idle", "app: idle", false),
    );
    let plan = planned(&yaml);
    assert_eq!(
        text(&plan),
        "service cart.shop.svc.cluster.local waypoint=-\n\
         workload cart-1 waypoint=- \
         services=[\"shop/cart.shop.svc.cluster.local:80>9000\"] policies=[]\n\
         workload idle-1 waypoint=- services=[] policies=[]\n"
    );
    let wire = &plan.workloads[0].wire;
    assert_eq!(wire.uid, "Kubernetes//Pod/shop/cart-1");
    assert_eq!((wire.status, plan.workloads[1].wire.status), (0, 1));
    assert_eq!(
        (
            wire.canonical_name.as_str(),
            wire.canonical_revision.as_str()
        ),
        ("cart", "v1")
    );
    assert_eq!(wire.trust_domain, "");
    // A named target port is 0 on the Service: only the pods know it.
    assert_eq!(plan.services[0].wire.ports[0].target_port, 0);
    assert_eq!(plan.services[0].wire.ports[0].app_protocol, 1);
}

#[test]
fn a_named_waypoint_is_published_whatever_its_state() {
    let used = namespace("istio.io/use-waypoint: wp");
    let base = format!(
        "{used}{SERVICE}{}",
        pod("cart-1", "cart", "app: cart", true)
    );
    // Missing, not ready, ready: always the same name, never a way around it.
    let missing = planned(&base);
    assert!(line(&text(&missing), "service cart").ends_with(&format!("waypoint={WAYPOINT}")));
    assert_eq!(
        reasons(&missing, "Service shop/cart"),
        ["WaypointIsNotReady"]
    );
    let with = format!("{base}{}{}", gateway("wp", ""), waypoint_pod("wp", false));
    let waiting = planned(&with);
    assert!(line(&text(&waiting), "service cart").ends_with(&format!("waypoint={WAYPOINT}")));
    assert_eq!(
        reasons(&waiting, "Service shop/cart"),
        ["WaypointIsNotReady"]
    );
    let with = format!("{base}{}{}", gateway("wp", ""), waypoint_pod("wp", true));
    let ready = planned(&with);
    assert_eq!(reasons(&ready, "Service shop/cart"), ["WaypointAccepted"]);
    // A waypoint for services is silently not used for pod addresses, and not for itself.
    assert!(line(&text(&ready), "workload cart-1").contains("waypoint=- "));
    assert!(line(&text(&ready), "workload wp-pod").contains("waypoint=- "));
    assert_eq!(ready.instances.len(), 1);
}

#[test]
fn fail_open_passes_only_a_waypoint_that_is_away() {
    let open = namespace("istio.io/use-waypoint: wp, isobar.dev/waypoint-failure: fail-open");
    let away = planned(&format!("{open}{SERVICE}"));
    assert!(line(&text(&away), "service cart").ends_with("waypoint=-"));
    let here = planned(&format!(
        "{open}{SERVICE}{}{}",
        gateway("wp", ""),
        waypoint_pod("wp", true)
    ));
    assert!(line(&text(&here), "service cart").ends_with(&format!("waypoint={WAYPOINT}")));
    // It keeps being told what it serves while it is not ready.
    let waiting = planned(&format!("{open}{SERVICE}{}", gateway("wp", "")));
    assert_eq!(waiting.services[0].waypoints.len(), 1);
}

#[test]
fn what_a_waypoint_does_not_take_is_denied() {
    let labels = ", labels: {istio.io/waypoint-for: workload}";
    let yaml = format!(
        "{}{SERVICE}{}{}{}",
        namespace("istio.io/use-waypoint: wp"),
        gateway("wp", labels),
        waypoint_pod("wp", true),
        pod("cart-1", "cart", "app: cart", true),
    );
    let plan = planned(&yaml);
    assert!(line(&text(&plan), "service cart").ends_with(&format!("waypoint={DENIED}")));
    assert!(line(&text(&plan), "workload cart-1").contains(&format!("waypoint={WAYPOINT}")));
    assert_eq!(
        reasons(&plan, "Service shop/cart"),
        ["UnsupportedTrafficType"]
    );
    // A label alone makes no waypoint pod: the account has to fit.
    let forged = "gateway.networking.k8s.io/gateway-name: wp";
    let plan = planned(&format!("{yaml}{}", pod("evil-1", "evil", forged, true)));
    assert!(line(&text(&plan), "workload evil-1").contains(&format!("waypoint={WAYPOINT}")));
    assert_eq!(plan.instances.len(), 1);
}

const FOR_CART: &str =
    ", labels: {istio.io/waypoint-for: all}, annotations: {istio.io/for-service-account: cart}";
const USES: &str = "istio.io/use-waypoint: wp";

#[test]
fn an_account_binding_waits_takes_force_and_stays() {
    let pods = pod("cart-1", "cart", "app: cart", true);
    let base = format!("{}{SERVICE}{pods}", namespace(""));
    let bound = |account: &str, rest: &str| planned(&format!("{base}{account}{rest}"));
    let fresh = account("cart", USES, "");
    let latched = account("cart", USES, "isobar.dev/waypoint-latched: wp");

    // Before the waypoint has ever been ready nothing changes.
    let before = bound(&fresh, &gateway("wp", FOR_CART));
    assert!(line(&text(&before), "workload cart-1").contains("waypoint=- "));
    assert_eq!(
        reasons(&before, "ServiceAccount shop/cart"),
        ["WaypointIsNotReady"]
    );
    // Without consent neither.
    let alone = format!("{}{}", gateway("wp", ""), waypoint_pod("wp", true));
    let denied = bound(&fresh, &alone);
    assert_eq!(
        reasons(&denied, "ServiceAccount shop/cart"),
        ["AttachmentDenied"]
    );
    assert!(line(&text(&denied), "service cart").ends_with("waypoint=-"));
    // Ready: in force for pod addresses and for services of that account only, and latched.
    let ready = format!("{}{}", gateway("wp", FOR_CART), waypoint_pod("wp", true));
    let force = bound(&fresh, &ready);
    assert!(line(&text(&force), "workload cart-1").contains(&format!("waypoint={WAYPOINT}")));
    assert!(line(&text(&force), "service cart").ends_with(&format!("waypoint={WAYPOINT}")));
    let latch = force.latches.values().next().unwrap();
    assert_eq!(latch.as_deref(), Some("wp"));
    assert_eq!(force.services[0].sticky.as_deref(), Some("cart"));
    // Afterwards it fails closed, also when the Gateway is gone.
    let gone = bound(&latched, "");
    assert!(line(&text(&gone), "workload cart-1").contains(&format!("waypoint={WAYPOINT}")));
    assert!(line(&text(&gone), "service cart").ends_with(&format!("waypoint={WAYPOINT}")));
    // Removing the label unbinds and takes the latch away.
    let unbound = bound(&account("cart", "", "isobar.dev/waypoint-latched: wp"), "");
    assert!(line(&text(&unbound), "workload cart-1").contains("waypoint=- "));
    assert_eq!(unbound.latches.values().next(), Some(&None));
}

#[test]
fn services_of_several_accounts() {
    let waypoint = format!("{}{}", gateway("wp", FOR_CART), waypoint_pod("wp", true));
    let second = format!(
        "{}{}",
        gateway(
            "wp2",
            ", labels: {istio.io/waypoint-for: all}, annotations: {istio.io/for-service-account: pay}"
        ),
        waypoint_pod("wp2", true)
    );
    let pods = format!(
        "{}{}{}",
        pod("cart-1", "cart", "app: cart", true),
        pod("cart-2", "cart", "app: cart", true),
        pod("pay-1", "pay", "app: cart", true)
    );
    let base = format!(
        "{}{pods}{waypoint}{}",
        namespace(""),
        account("cart", USES, "")
    );
    // One account without a waypoint: refused, not half protected.
    let mixed = planned(&format!("{base}{SERVICE}"));
    assert!(line(&text(&mixed), "service cart").ends_with(&format!("waypoint={DENIED}")));
    assert_eq!(reasons(&mixed, "Service shop/cart"), ["MixedAccounts"]);
    // Each with one: weighted by endpoints.
    let pay = account("pay", "istio.io/use-waypoint: wp2", "");
    let both = planned(&format!("{base}{SERVICE}{second}{pay}"));
    assert!(line(&text(&both), "service cart").ends_with(
        "waypoint=wp.shop.svc.cluster.local wp.shop.svc.cluster.local*2 \
         wp2.shop.svc.cluster.local*1"
    ));
    // Opting out opens nothing that the accounts closed, and it is told.
    let out = SERVICE.replace(
        "namespace: shop}",
        "namespace: shop, labels: {istio.io/use-waypoint: none}}",
    );
    let plan = planned(&format!("{base}{out}"));
    assert!(line(&text(&plan), "service cart").ends_with("waypoint=-"));
    assert_eq!(reasons(&plan, "Service shop/cart"), ["EndpointsBound"]);
    // Bound before the foreign endpoint came: it is left out.
    let sticky = SERVICE.replace(
        "namespace: shop}",
        "namespace: shop, annotations: {isobar.dev/bound-account: cart}}",
    );
    let plan = planned(&format!("{base}{sticky}"));
    assert!(line(&text(&plan), "workload pay-1").contains("services=[]"));
    assert!(line(&text(&plan), "workload cart-1").contains("cart.shop"));
    assert_eq!(
        reasons(&plan, "Service shop/cart"),
        ["ForeignAccount", "WaypointAccepted"]
    );
}

#[test]
fn object_labels_beat_accounts_and_accounts_beat_namespaces() {
    let yaml = |pod_labels: &str| {
        format!(
            "{}{}{}{}{}",
            namespace("istio.io/use-waypoint: ns-wp"),
            pod("cart-1", "cart", pod_labels, true),
            account("cart", USES, "isobar.dev/waypoint-latched: wp"),
            gateway("wp", FOR_CART),
            gateway("own", ", labels: {istio.io/waypoint-for: all}"),
        )
    };
    for (labels, expect) in [
        ("app: cart", WAYPOINT),
        ("istio.io/use-waypoint: own", "own.shop.svc.cluster.local"),
        ("istio.io/use-waypoint: none", "-"),
    ] {
        let text = text(&planned(&yaml(labels)));
        let want = format!("waypoint={expect} ");
        assert!(
            line(&text, "workload cart-1").contains(&want),
            "{labels}: {text}"
        );
    }
}

pub(super) fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: {namespace}}}\nspec:\n  {{{spec}}}\n"
    )
}

const ROUTES: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec:
  hosts: [cart]
  http:
  - match: [{sourceLabels: {team: a}}]
    route: [{destination: {host: cart, subset: v1}}]
  - route: [{destination: {host: away.other.svc.cluster.local}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: unrelated, namespace: shop}
spec: {host: unrelated, subsets: [{name: v1, labels: {colour: red}}]}
";

#[test]
fn a_waypoint_sees_what_it_serves_and_nothing_else() {
    let second = SERVICE
        .replace("name: cart", "name: pay")
        .replace("app: cart", "app: pay");
    let yaml = format!(
        "{}{}{}{}{}{ROUTES}{}",
        namespace(""),
        SERVICE.replace(
            "namespace: shop}",
            "namespace: shop, labels: {istio.io/use-waypoint: wp}}"
        ),
        second.replace(
            "namespace: shop}",
            "namespace: shop, labels: {istio.io/use-waypoint: wp2}}"
        ),
        gateway("wp", ""),
        gateway("wp2", ""),
        pod(
            "cart-1",
            "cart",
            "app: cart, version: v1, team: a, colour: red",
            true
        ),
    );
    let plan = planned(&yaml);
    let of = |name: &str| {
        plan.waypoints
            .iter()
            .find(|w| &*w.key.name == name)
            .unwrap()
    };
    let (one, two) = (of("wp"), of("wp2"));
    assert_eq!(one.routes.len(), 1);
    assert_eq!(
        one.routes[0].parents[0].hostname,
        "cart.shop.svc.cluster.local"
    );
    assert_eq!(one.rules.len(), 1);
    // Only the keys that a rule or subset names.
    let keys: Vec<_> = one.labels[0].labels.keys().cloned().collect();
    assert_eq!(keys, ["team", "version"]);
    assert!(two.routes.is_empty() && two.rules.is_empty() && two.labels.is_empty());
}

#[test]
fn policies_with_targets_reach_their_waypoint_or_refuse() {
    let spec = "targetRefs: [{kind: Service, group: '', name: cart}], action: ALLOW, \
                rules: [{to: [{operation: {methods: [GET]}}]}]";
    let yaml = |labels: &str| {
        format!(
            "{}{}{}{}{}",
            namespace(""),
            SERVICE.replace(
                "namespace: shop}",
                &format!("namespace: shop, labels: {{{labels}}}}}")
            ),
            gateway("wp", ""),
            waypoint_pod("wp", true),
            policy("shop", spec),
        )
    };
    let bound = planned(&yaml("istio.io/use-waypoint: wp"));
    assert_eq!(bound.waypoints[0].authorizations.len(), 1);
    assert_eq!(bound.waypoints[0].authorizations[0].services.len(), 1);
    assert!(bound.authorizations.is_empty(), "not for node proxies");
    assert_eq!(reasons(&bound, "AuthorizationPolicy shop/p"), ["Accepted"]);
    // Without a waypoint nobody could enforce it: the Service refuses.
    let alone = planned(&yaml(""));
    assert!(line(&text(&alone), "service cart").ends_with(&format!("waypoint={DENIED}")));
    assert_eq!(
        reasons(&alone, "AuthorizationPolicy shop/p"),
        ["AncestorNotBound"]
    );
}
