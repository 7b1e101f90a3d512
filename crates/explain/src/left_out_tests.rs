//! What an answer says of policies that do not count.

use std::collections::BTreeSet;

use isobar_objects::{DirectoryOptions, DirectorySource, ObjectSource as _};

use super::*;

const MESH: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: \"discoverySelectors: [{matchLabels: {mesh: 'yes'}}]\"}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, mesh: 'yes'}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {mesh: 'yes'}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec: {replicas: 1, selector: {matchLabels: {app: cart}}, template: {metadata: {labels: {app: cart}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80}]}
";

fn deny(name: &str, namespace: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec: {{action: DENY, rules: [{{}}]}}\n"
    )
}

#[test]
fn an_answer_names_the_policies_that_do_not_count_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let canary = "istio.io/rev: canary";
    let text = [
        MESH.to_owned(),
        deny("all", "istio-system", ""),
        deny("mine", "shop", canary),
        deny("elsewhere", "other", canary),
    ];
    std::fs::write(folder.path().join("all.yaml"), text.concat()).unwrap();
    let options = DirectoryOptions::new(vec![folder.path().to_owned()], None);
    let source = DirectorySource::open(options).unwrap();
    let published = source.subscribe().borrow().clone();
    let mut errors = published.findings.iter().filter(|one| one.is_error());
    assert!(errors.next().is_none(), "{:?}", published.findings);
    let question = Question::new("shop", "cart", "cart").unwrap();
    let about = |started: Started| {
        let world = World::by(&started, imagined(&published.objects));
        let found = explain(&world, &question).unwrap();
        assert_eq!(found.allowed(), Some(true), "{found:?}");
        let all = found.left_out.into_iter();
        all.map(|one| (one.policy.name.to_string(), one.because))
            .collect::<Vec<_>>()
    };
    let said = about(Started::default());
    let [(all, selected), (mine, revision)] = &said[..] else {
        panic!("{said:?}");
    };
    assert_eq!((&**all, &**mine), ("all", "mine"));
    assert_eq!(selected, "its namespace istio-system is not selected");
    assert!(revision.starts_with("it belongs to revision canary: where"));
    for (names, words) in [
        (&["default", "canary"][..], "another control plane"),
        (&["default"], "no control plane is called so"),
    ] {
        let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let said = about(Started::default().among(names));
        assert!(said[1].1.contains(words), "{said:?}");
    }
}
