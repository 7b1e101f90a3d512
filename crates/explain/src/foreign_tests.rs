//! What is answered about waypoints that somebody else runs.

use isobar_objects::{DirectoryOptions, DirectorySource, ObjectSource as _};

use super::*;

/// A Service behind somebody else's waypoint, and one of whose calls that takes a share.
const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: isobar-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: ext, namespace: shop}
spec: {clusterIP: 10.96.0.30, selector: {app: ext}, ports: [{name: mesh, port: 15008}]}
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: shop, labels: {istio.io/use-waypoint: ext}}
spec: {clusterIP: 10.96.0.8, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: ext}, annotations: {istio.io/use-waypoint-canary-weight: '30'}}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: wall, namespace: shop}
spec: {targetRefs: [{kind: Service, group: '', name: pay}, {kind: Service, group: '', name: cart}], action: DENY, rules: [{}]}
";

fn pod(name: &str, ip: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}-1, namespace: shop, uid: u-{name}, labels: {{app: {name}, gateway.networking.k8s.io/gateway-name: {name}}}, annotations: {{ambient.istio.io/redirection: enabled}}}}
spec: {{nodeName: n1, serviceAccountName: {name}, containers: [{{name: c, image: i}}]}}
status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}
"
    )
}

/// With the waypoint at this address.
fn world(address: &str) -> World {
    let theirs = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: ext, namespace: shop}}\n\
         spec: {{gatewayClassName: somebody, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n\
         status: {{addresses: [{address}]}}\n"
    );
    let pods = [
        pod("ext", "10.0.0.30"),
        pod("cart", "10.0.0.7"),
        pod("web", "10.0.0.8"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{SHOP}{theirs}{}", pods.concat());
    std::fs::write(folder.path().join("all.yaml"), text).unwrap();
    let options = DirectoryOptions::new(vec![folder.path().to_owned()], None);
    let source = DirectorySource::open(options).unwrap();
    let published = source.subscribe().borrow().clone();
    World::imagined(&published.objects)
}

#[test]
fn what_a_waypoint_of_somebody_elses_does_is_not_made_up() {
    let theirs = Outcome::Unknown {
        waypoint: "shop/ext".to_owned(),
    };
    for address in [
        "{type: Hostname, value: ext.shop.svc.cluster.local}",
        "{type: IPAddress, value: 10.0.0.30}",
        "{type: IPAddress, value: 10.96.0.30}",
    ] {
        let world = world(address);
        let ask = |to: &str| {
            let question = Question::new("shop", "web-1", to).unwrap();
            explain(&world, &question).unwrap()
        };
        let found = ask("http://pay/");
        assert_eq!(found.ways.len(), 1, "{address}: {found:#?}");
        assert_eq!(found.ways[0].outcome, theirs, "{address}");
        assert_eq!(found.allowed(), None, "{address}");
        let last = found.ways[0].steps.last().unwrap();
        assert_eq!(last.place, "waypoint shop/ext", "{address}");
        assert!(last.because.contains("not known here"), "{last:?}");
        // Beside one of ours, whose answer is known.
        let found = ask("http://cart/");
        let mut ways = found.ways.iter().map(|way| (way.share, &way.outcome));
        let refused = ways.next().map(|(share, way)| (share, way.is_allowed()));
        assert_eq!(refused, Some((0.7, Some(false))), "{address}: {found:#?}");
        assert_eq!(ways.next(), Some((0.3, &theirs)), "{address}");
        assert_eq!(found.allowed(), None, "{address}");
    }
}
