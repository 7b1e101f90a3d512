use isobar_objects::{DirectoryOptions, DirectorySource, ObjectSource as _};

use super::*;

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
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

fn found(parts: &[&str], lives: Lives) -> Vec<Diagnosis> {
    let folder = tempfile::tempdir().unwrap();
    for (number, part) in parts.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{number}.yaml")), part).unwrap();
    }
    let options = DirectoryOptions::new(vec![folder.path().to_owned()], None);
    let source = DirectorySource::open(options).unwrap();
    let published = source.subscribe().borrow().clone();
    diagnose(&published, lives, "istio-system", &Started::default())
}

fn codes(parts: &[&str], lives: Lives) -> Vec<String> {
    let found = found(parts, lives);
    found.iter().map(|one| one.code.to_string()).collect()
}

fn route(extra: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: cart, namespace: shop}}\n\
         spec: {{hosts: [cart], http: [{{route: [{{destination: {{host: cart{extra}}}}}]}}]}}\n"
    )
}

#[test]
fn a_good_folder_has_nothing_to_say() {
    assert_eq!(codes(&[SHOP], Lives::No), [""; 0]);
}

#[test]
fn an_object_may_keep_findings_about_itself_back() {
    for (codes, kept) in [
        ("ISO0403", true),
        ("IST0101, iso0403", true),
        ("'*'", true),
        ("ISO0109", false),
        ("IST0101", false),
    ] {
        let silent =
            format!("namespace: shop, annotations: {{galley.istio.io/analyze-suppress: {codes}}}");
        let silent = silent.replace("IST0101, iso0403", "'IST0101, iso0403'");
        let yaml = route("").replace("namespace: shop", &silent);
        let all = found(&[SHOP, &yaml], Lives::No);
        assert_eq!(all.len(), 1, "it is there all the same");
        assert_eq!(all[0].kept_back, kept, "{codes}");
    }
}

#[test]
fn text_routes_and_doors_have_codes_and_fields() {
    assert_eq!(codes(&[SHOP, &route("")], Lives::No), ["ISO0403"]);
    assert_eq!(
        codes(&[SHOP, &route(", subset: v9")], Lives::No)[..2],
        ["ISO0109", "ISO0213"]
    );
    let unknown = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                   metadata: {name: cart, namespace: shop}\nspec: {hots: [cart]}\n";
    let all = found(&[SHOP, unknown], Lives::No);
    assert_eq!(all[0].code, Code::UNKNOWN_FIELD);
    assert_eq!(
        (all[0].gravity, &*all[0].field),
        (Gravity::Error, "spec.hots")
    );
    assert_eq!(all[0].fix, "did you mean hosts?");
    assert_eq!(all[0].place.as_ref().unwrap().1, Some(4));
    let broken = codes(&[SHOP, "a: [\n", "kind: Pod\n"], Lives::No);
    assert_eq!(broken, ["ISO0101", "ISO0102"]);
    let twice = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
                 spec: {ports: [{port: 80}]}\n";
    assert_eq!(codes(&[SHOP, twice], Lives::No), ["ISO0106"]);
}

#[test]
fn a_shut_door_names_policy_field_and_port() {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {name: cart, namespace: shop}\n\
                  spec: {podSelector: {matchLabels: {app: cart}}, ingress: [{ports: [{port: 80}]}]}\n";
    let all = found(&[SHOP, policy], Lives::No);
    let doors: Vec<_> = all
        .iter()
        .filter(|one| one.code == Code::DOOR_SHUT)
        .collect();
    assert_eq!(doors.len(), 1, "{all:?}");
    assert_eq!(doors[0].field, "spec.ingress[0].ports");
    assert!(doors[0].message.contains("15008") && doors[0].message.contains("shop/cart-"));
    assert!(doors[0].fix.contains("isobar netpol fix"));
}

#[test]
fn probes_that_are_shut_out_have_a_code_of_their_own() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: slow, namespace: shop, labels: {app: slow}}\n\
               spec: {containers: [{name: c, image: i, livenessProbe: {tcpSocket: {port: 8080}}}]}\n";
    let deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n\
                spec: {podSelector: {}, policyTypes: [Ingress]}\n";
    let all = found(&[SHOP, pod, deny], Lives::No);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (all[0].code, all[0].gravity),
        (Code::PROBES_SHUT, Gravity::Warning)
    );
    assert_eq!(all[0].field, "spec.ingress[0]");
    let said = &all[0].message;
    assert!(
        said.starts_with("169.254.7.127/32 is not let in to shop/slow: "),
        "{said}"
    );
    assert_eq!(codes(&[SHOP, pod], Lives::No), [""; 0]);
}

#[test]
fn what_runs_is_held_against_what_is_asked() {
    let pod = |name: &str, annotation: &str, label: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{label}}}, \
             annotations: {{{annotation}}}}}\nspec: {{nodeName: node-1, containers: [{{name: c, image: i}}]}}\n\
             status: {{phase: Running, podIP: 10.244.1.9, podIPs: [{{ip: 10.244.1.9}}]}}\n"
        )
    };
    let redirected = "ambient.istio.io/redirection: enabled";
    let opted_out = "istio.io/dataplane-mode: none";
    let of = |text: &str| codes(&[SHOP, text], Lives::Yes);
    assert_eq!(of(&pod("a", redirected, "")), [""; 0]);
    assert_eq!(of(&pod("a", "", "")), ["ISO0401"]);
    assert_eq!(of(&pod("a", redirected, opted_out)), ["ISO0402"]);
    assert_eq!(
        of(&pod("a", "", "istio.io/dataplane-mode: sidecar"))[1..],
        ["ISO0404"]
    );
    let served = |value: &str| {
        let condition = "{type: isobar.dev/Redirected, status: 'VALUE', message: nobody listens}";
        let condition = condition.replace("VALUE", value);
        let phase = format!("{{conditions: [{condition}], phase");
        pod("a", redirected, "").replace("{phase", &phase)
    };
    assert_eq!(of(&served("True")), [""; 0]);
    let unserved = found(&[SHOP, &served("False")], Lives::Yes);
    assert_eq!(unserved.len(), 1, "{unserved:?}");
    assert_eq!(unserved[0].code, Code::NOT_REDIRECTED);
    assert_eq!(unserved[0].message, "nobody listens");
    let bypass = "ambient.istio.io/bypass-inbound-capture: \"true\"";
    let both = format!("{redirected}, {bypass}");
    assert_eq!(of(&pod("a", &both, "")), ["ISO0408"]);
    // Of files nothing runs, so nothing can be wrong with it.
    assert_eq!(codes(&[SHOP, &pod("a", "", "")], Lives::No), [""; 0]);
}

#[test]
fn what_the_control_plane_would_say_has_codes() {
    let bound = SHOP.replace(
        "istio.io/dataplane-mode: ambient",
        "istio.io/dataplane-mode: ambient, istio.io/use-waypoint: nowhere, istio-injection: enabled",
    );
    let all = found(&[&bound], Lives::No);
    let codes: Vec<String> = all.iter().map(|one| one.code.to_string()).collect();
    assert_eq!(codes, ["ISO0201", "ISO0405"], "{all:?}");
    assert!(all[0].fix.contains("isobar waypoint apply"));
    assert_eq!(
        field_in("not honoured yet: spec.http[0].fault, spec.tls"),
        Some("spec.http[0].fault".to_owned())
    );
}

#[test]
fn policies_that_count_for_nobody_are_told_and_nothing_follows_from_them() {
    let policy = |name: &str, namespace: &str, labels: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
             spec: {{action: DENY, rules: [{{}}]}}\n"
        )
    };
    let mesh = |value: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: istio-system, labels: {{mesh: '{value}'}}}}\n\
             ---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data: {{mesh: \"discoverySelectors: [{{matchLabels: {{mesh: 'yes'}}}}]\"}}\n"
        )
    };
    let about = |value: &str| {
        let text = [
            mesh(value),
            policy("all", "istio-system", ""),
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: in, labels: {mesh: 'yes'}}\n"
                .to_owned(),
            policy("mine", "in", ""),
            policy("canary", "in", "istio.io/rev: canary"),
        ];
        let said = found(&[&text.concat()], Lives::No);
        let left_out = [Code::LEFT_OUT, Code::ROOT_LEFT_OUT];
        let said = said.into_iter().filter(|one| left_out.contains(&one.code));
        said.map(|one| format!("{} {}", one.code, one.object.unwrap().name))
            .collect::<Vec<_>>()
    };
    assert_eq!(about("yes"), ["ISO0409 canary"]);
    let mut all = about("no");
    all.sort();
    assert_eq!(
        all,
        ["ISO0409 all", "ISO0409 canary", "ISO0410 istio-system"]
    );
}

#[test]
fn waypoints_that_callers_outside_the_mesh_pass_by_say_so() {
    let waypoint = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: isobar-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {action: DENY, rules: [{}], targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]}
";
    let of = |mesh: &str| {
        let shop = SHOP.replace("istio.io/dataplane-mode: ambient", mesh);
        found(&[&shop, waypoint], Lives::No)
    };
    let inside = of("istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp");
    assert!(inside.is_empty(), "{inside:?}");
    let outside = of("istio.io/use-waypoint: wp");
    assert_eq!(outside.len(), 1, "{outside:?}");
    assert_eq!(outside[0].code, Code::PAST_WAYPOINT);
    assert!(outside[0].message.contains("shop/cart-"), "{outside:?}");
}
