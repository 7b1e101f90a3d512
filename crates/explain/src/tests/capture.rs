//! Who is captured, and what passes by.

use isobar_objects::ObjectHead as _;

use super::*;

/// A policy that refuses everybody.
const REFUSES: &str = "\
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {ports: [\"8080\"]}}]}]}
";

#[test]
fn a_pod_reaches_itself_whatever_policies_say() {
    let closed = netpol("np", "app: cart", "policyTypes: [Ingress, Egress]");
    let world = world(&[SHOP, REFUSES, &closed]);
    let pod = world.objects.pods.in_namespace("shop");
    let mut pod = pod.map(|held| held.object.clone());
    let pod = pod.find(|pod| pod.name().starts_with("cart-")).unwrap();
    let ip = pod.status.as_ref().unwrap().pod_ip.clone().unwrap();
    let by_name = format!("pod/shop/{}:8080", pod.name());
    for to in [by_name, format!("{ip}:8080"), "127.0.0.1:8080".to_owned()] {
        let found = ask(&world, "cart", &to, None);
        assert_eq!(found.allowed(), Some(true), "{to}: {}", text(&found));
        assert!(text(&found).contains("stays in the pod"));
    }
}

#[test]
fn plain_text_passes_by_a_pod_that_is_not_captured_and_tunnels_do_not() {
    let open = SHOP.replace(
        "metadata: {labels: {app: reviews",
        "metadata: {annotations: {ambient.istio.io/bypass-inbound-capture: 'true'}, labels: {app: reviews",
    );
    for (shop, plain) in [(SHOP, Some(false)), (open.as_str(), Some(true))] {
        let world = world(&[shop, REFUSES]);
        let stranger = ask(&world, "plain/stranger", "reviews.shop:80", None);
        assert_eq!(stranger.allowed(), plain, "{}", text(&stranger));
        assert_eq!(
            ask(&world, "cart", "reviews:80", None).allowed(),
            Some(false)
        );
    }
}

#[test]
fn who_is_not_redirected_calls_in_plain_text_whatever_labels_ask_for() {
    let strict = "\
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    let mut objects = world(&[SHOP, strict]).objects;
    let mut cart = {
        let mut pods = objects.pods.in_namespace("shop");
        let found = pods.find(|held| held.object.name().starts_with("cart-"));
        found.unwrap().object.clone()
    };
    cart.metadata.annotations = None;
    objects.insert(cart.into(), isobar_objects::Origin::nowhere());
    let found = ask(&World::of(objects), "cart", "reviews:80", None);
    assert_eq!(refusal(&found.ways[0]).0, Reason::PlaintextRefused);
    assert!(
        text(&found).contains("nobody says that its traffic is redirected"),
        "{}",
        text(&found)
    );
}
