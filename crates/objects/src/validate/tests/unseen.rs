//! Policies that are weaker than they look.

use super::*;

#[test]
fn what_node_proxies_cannot_see_is_told() {
    let fields = |spec: &str| -> Vec<String> {
        let read = read_text(Path::new("a.yaml"), &policy(spec));
        assert_eq!(read.objects.len(), 1, "{:?}", read.findings);
        read.findings
            .into_iter()
            .map(|finding| finding.field)
            .collect()
    };
    let rules = "rules: [{to: [{operation: {ports: [\"80\"], methods: [GET], notPaths: [/x]}}], \
                 when: [{key: source.ip, values: [10.0.0.1]}, {key: \"request.headers[a]\", values: [b]}]}]";
    let told = [
        "spec.rules[0].to[0].operation.methods",
        "spec.rules[0].to[0].operation.notPaths",
        "spec.rules[0].when[1].key",
    ];
    assert_eq!(fields(&format!("{{{rules}}}")), told);
    assert_eq!(fields(&format!("{{action: DENY, {rules}}}")), told);
    let target = "targetRefs: [{kind: Service, group: \"\", name: svc}]";
    assert!(fields(&format!("{{{target}, {rules}}}")).is_empty());
}

#[test]
fn a_policy_that_some_calls_do_not_pass_is_told() {
    let told = |waypoint: &str, target: &str| -> Vec<String> {
        let texts = [
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: \
             {istio.io/use-waypoint: wp}}\n"
                .to_owned(),
            "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {ports: [{port: 80}]}\n"
                .to_owned(),
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp{waypoint}}}\n\
                 spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, \
                 protocol: HBONE}}]}}\n"
            ),
            policy(&format!("{{targetRefs: [{target}]}}")),
        ];
        let mut set = ObjectSet::default();
        for text in &texts {
            let read = read_text(Path::new("a.yaml"), text);
            assert_eq!(read.objects.len(), 1, "{:?}", read.findings);
            for one in read.objects {
                set.insert(one.object, Origin::nowhere());
            }
        }
        let found = validate_set(&set, Extent::Mesh);
        found.into_iter().map(|one| one.message).collect()
    };
    let gateway = "{kind: Gateway, group: gateway.networking.k8s.io, name: wp}";
    let service = "{kind: Service, group: \"\", name: svc}";
    for target in [gateway, service] {
        for waypoint in ["", ", labels: {istio.io/waypoint-for: service}"] {
            let found = told(waypoint, target);
            assert_eq!(found.len(), 1, "{waypoint} {target}: {found:?}");
            assert!(found[0].contains("waypoint default/wp takes service traffic only"));
        }
        for waypoint in [
            ", labels: {istio.io/waypoint-for: all}",
            ", annotations: {FOR: app}",
        ] {
            let waypoint = waypoint.replace("FOR", isobar_types::labels::FOR_SERVICE_ACCOUNT);
            assert!(told(&waypoint, target).is_empty(), "{waypoint} {target}");
        }
    }
}
