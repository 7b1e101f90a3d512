//! What is answered about policies that were never valid.

use isobar_objects::{
    DirectoryOptions, DirectorySource, Instead, Kind, ObjectRef, ObjectSource as _,
};

use super::*;

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec: {selector: {matchLabels: {app: cart}}, template: {metadata: {labels: {app: cart}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80}]}
---
";

/// What the status would say, and whether a call gets through.
fn with_policy(annotation: &str) -> (Instead, Option<bool>) {
    let folder = tempfile::tempdir().unwrap();
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: shop, annotations: {{{annotation}}}}}\n\
         spec: {{acton: ALLOW}}\n"
    );
    std::fs::write(folder.path().join("all.yaml"), format!("{SHOP}{policy}")).unwrap();
    let options = DirectoryOptions::new(vec![folder.path().to_owned()], None);
    let source = DirectorySource::open(options).unwrap();
    let published = source.subscribe().borrow().clone();
    let reference = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p");
    let world = World::imagined(&published.objects);
    let question = Question::new("shop", "cart", "cart").unwrap();
    let found = explain(&world, &question).unwrap();
    (published.invalid[&reference].instead, found.allowed())
}

#[test]
fn a_policy_that_was_never_valid_refuses_unless_it_is_a_dry_run() {
    assert_eq!(with_policy("a: b"), (Instead::Refusal, Some(false)));
    let dry_run = with_policy("istio.io/dry-run: 'true'");
    assert_eq!(dry_run, (Instead::Nothing, Some(true)));
}
