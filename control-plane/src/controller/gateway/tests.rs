use isobar_types::NamespacedName;

use super::*;
use crate::model::golden_tests::objects;

fn gateway(annotations: &str, listener: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: wp, namespace: shop, annotations: {{{annotations}}}}}\n\
         spec: {{gatewayClassName: isobar-waypoint, listeners: [{listener}]}}\n"
    )
}

const LISTENER: &str = "{name: mesh, port: 15008, protocol: HBONE}";

fn rendered(yaml: &str) -> Rendered {
    rendered_with(yaml, Parameters::default())
}

fn rendered_with(yaml: &str, parameters: Parameters) -> Rendered {
    let facts = GatewayFacts {
        key: NamespacedName {
            namespace: "shop".into(),
            name: "wp".into(),
        },
        ready: false,
        programmed: false,
        listeners: None,
    };
    let pods = WaypointPods {
        image: "isobar/waypoint".to_owned(),
        parameters: Arc::new(parameters),
        ..WaypointPods::default()
    };
    render(&objects(yaml), &facts, &pods)
}

fn conditions(rendered: &Rendered) -> Vec<(&str, bool, &str)> {
    let verdicts = rendered.verdicts.iter();
    verdicts.map(|v| (v.condition, v.holds, v.reason)).collect()
}

const PENDING: (&str, bool, &str) = ("Programmed", false, "Pending");

#[test]
fn a_waypoint_of_ours_says_that_it_ends_tunnels_itself() {
    let binding = |text: &str| format!("ambient.istio.io/waypoint-inbound-binding: {text}");
    let refused = ("isobar.dev/InboundBindingUsed", false, "UnsupportedValue");
    for (text, told) in [("PROXY", true), ("NONE/80", true), ("NONE", false)] {
        let own = rendered(&gateway(&binding(text), LISTENER));
        assert_eq!(conditions(&own).contains(&refused), told, "{text}");
    }
    let class = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
         metadata: {{name: isobar-waypoint, annotations: {{{}}}}}\n\
         spec: {{controllerName: isobar.dev/control-plane}}\n",
        binding("PROXY/15088")
    );
    let of_class = rendered(&(gateway("", LISTENER) + &class));
    assert!(conditions(&of_class).contains(&refused));
}

#[test]
fn pods_are_told_what_the_mesh_is_called_where_they_would_not_know() {
    let facts = GatewayFacts {
        key: NamespacedName {
            namespace: "shop".into(),
            name: "wp".into(),
        },
        ready: false,
        programmed: false,
        listeners: None,
    };
    let pods = WaypointPods {
        names: vec![("TRUST_DOMAIN", "new.example".to_owned())],
        ..WaypointPods::default()
    };
    let set = objects(&gateway("", LISTENER));
    let objects = render(&set, &facts, &pods).objects;
    let deployment = objects[2].to_value().unwrap();
    let env = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
    let env = env.as_array().unwrap();
    assert!(env.contains(&json!({ "name": "TRUST_DOMAIN", "value": "new.example" })));
}

#[test]
fn a_waypoint_has_three_objects_of_its_own() {
    let whole = rendered(&gateway("", LISTENER));
    let kinds: Vec<_> = whole.objects.iter().map(Object::kind).collect();
    assert_eq!(
        kinds,
        [Kind::ServiceAccount, Kind::Service, Kind::Deployment]
    );
    assert_eq!(
        conditions(&whole),
        [("Accepted", true, "Accepted"), PENDING]
    );
    // What it made before is its own, and is written again.
    let mine = "labels: {gateway.istio.io/managed: istio.io-mesh-controller}";
    let again = format!(
        "{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: wp, namespace: shop, {mine}}}\n\
         spec: {{ports: [{{port: 15008}}]}}\n",
        gateway("", LISTENER)
    );
    assert_eq!(rendered(&again).objects.len(), 3);
}

#[test]
fn names_that_are_taken_leave_nothing_half_made() {
    let somebody = |kind: &str, version: &str, spec: &str| {
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: wp, namespace: shop}}\n{spec}"
        )
    };
    let service = somebody("Service", "v1", "spec: {ports: [{port: 80}]}\n");
    let deployment = somebody(
        "Deployment",
        "apps/v1",
        "spec: {selector: {matchLabels: {app: wp}}, template: {metadata: {labels: {app: wp}}, \
         spec: {containers: [{name: c, image: i}]}}}\n",
    );
    for (what, others, names) in [
        ("service", service.clone(), vec!["Service shop/wp"]),
        ("deployment", deployment.clone(), vec!["Deployment shop/wp"]),
        (
            "both",
            format!("{service}{deployment}"),
            vec!["Service shop/wp", "Deployment shop/wp"],
        ),
    ] {
        let clash = rendered(&format!("{}{others}", gateway("", LISTENER)));
        assert!(clash.objects.is_empty(), "{what}");
        assert_eq!(
            conditions(&clash),
            [("Accepted", false, "Conflict"), PENDING]
        );
        for name in names {
            let text = &clash.verdicts[0].message;
            assert!(text.contains(name), "{what}: {text}");
        }
    }
}

#[test]
fn a_waypoint_cannot_run_as_the_account_it_guards() {
    let clash = rendered(&gateway("istio.io/for-service-account: wp", LISTENER));
    assert!(clash.objects.is_empty());
    assert_eq!(conditions(&clash)[0], ("Accepted", false, "Conflict"));
    let text = &clash.verdicts[0].message;
    assert!(text.contains("ServiceAccount shop/wp"), "{text}");
    // An account that is there already is used, whoever made it, and stays as it is.
    let account =
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: wp, namespace: shop}\n";
    let used = rendered(&format!("{}{account}", gateway("", LISTENER)));
    let kinds: Vec<_> = used.objects.iter().map(Object::kind).collect();
    assert_eq!(kinds, [Kind::Service, Kind::Deployment]);
}

#[test]
fn without_the_mesh_listener_it_is_not_accepted() {
    let odd = rendered(&gateway("", "{name: web, port: 80, protocol: HTTP}"));
    assert_eq!(
        conditions(&odd),
        [("Accepted", false, "ListenersNotValid"), PENDING]
    );
}

#[test]
fn a_waypoints_pod_has_what_it_needs_and_may_do_nothing() {
    let pods = WaypointPods {
        image: "registry.example/waypoint:1".to_owned(),
        control_plane: Some("https://isobard.mesh.svc:15012".to_owned()),
        ..WaypointPods::default()
    };
    let set = objects(&gateway("", LISTENER));
    let pod = pod(set.gateways.get("shop", "wp").unwrap(), "wp", &pods);
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example/waypoint:1");
    let environment = container["env"].as_array().unwrap();
    assert!(
        environment
            .contains(&json!({ "name": "XDS_ADDRESS", "value": "https://isobard.mesh.svc:15012" }))
    );
    let mounts: Vec<_> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    for (mount, volume) in mounts.iter().zip(pod["volumes"].as_array().unwrap()) {
        assert_eq!(mount["name"], volume["name"]);
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        container["securityContext"]["capabilities"]["drop"][0],
        "ALL"
    );
}

#[test]
fn what_is_there_stays_while_its_parameters_are_not_known() {
    let mine = "labels: {gateway.istio.io/managed: istio.io-mesh-controller}";
    let there = format!(
        "{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: wp, namespace: shop, {mine}}}\n\
         spec: {{ports: [{{port: 15008}}]}}\n",
        gateway("", LISTENER)
    );
    let key = NamespacedName {
        namespace: "shop".into(),
        name: "wp".into(),
    };
    let parameters = Parameters {
        refused: BTreeMap::new(),
        overlays: [(key.clone(), Overlay::default())].into(),
        mistakes: [(key.clone(), "wrong".to_owned())].into(),
        unknown: [key].into(),
    };
    let kept = rendered_with(&there, parameters);
    assert_eq!(kept.kept, [ObjectRef::new(Kind::Service, "shop", "wp")]);
    // What is missing is made: it has to run.
    let kinds: Vec<_> = kept.objects.iter().map(Object::kind).collect();
    assert_eq!(kinds, [Kind::ServiceAccount, Kind::Deployment]);
    assert_eq!(
        conditions(&kept)[0],
        ("Accepted", false, "InvalidParameters")
    );
}

#[test]
fn what_cannot_be_rendered_is_kept_and_told() {
    let parameters = Parameters::default();
    let facts = GatewayFacts {
        key: NamespacedName {
            namespace: "shop".into(),
            name: "wp".into(),
        },
        ready: true,
        programmed: true,
        listeners: None,
    };
    let mut made = Made::of(&parameters, &facts);
    let wrong = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "wp", "namespace": "shop" },
        "spec": { "replicas": "3" },
    });
    made.add::<Deployment>("deployment", true, wrong);
    assert!(made.objects.is_empty());
    assert_eq!(made.kept, [ObjectRef::new(Kind::Deployment, "shop", "wp")]);
    assert!(made.mistake.unwrap().contains("deployment: "));
}

/// A Service or Deployment of that name, made for a Gateway.
fn made_before(kind: &str, name: &str, gateway: &str) -> String {
    let labels = format!(
        "{{gateway.istio.io/managed: istio.io-mesh-controller, \
         gateway.networking.k8s.io/gateway-name: {gateway}}}"
    );
    let head = format!("metadata: {{name: {name}, namespace: shop, labels: {labels}}}");
    match kind {
        "Service" => format!(
            "---\napiVersion: v1\nkind: Service\n{head}\nspec: {{clusterIP: 10.96.0.7, ports: [{{port: 15008}}]}}\n"
        ),
        _ => format!(
            "---\napiVersion: apps/v1\nkind: Deployment\n{head}\nspec: {{selector: {{matchLabels: {{app: wp}}}}, \
             template: {{metadata: {{labels: {{app: wp}}}}, spec: {{containers: [{{name: c, image: i}}]}}}}}}\n"
        ),
    }
}

#[test]
fn what_is_made_has_the_name_that_the_gateway_asks_for() {
    const OTHER: &str = "gateway.istio.io/name-override: front";
    let names = |rendered: &Rendered| -> Vec<String> {
        let all = rendered.objects.iter();
        all.map(|one| one.reference().to_string()).collect()
    };
    let whole = rendered(&gateway(OTHER, LISTENER));
    // The account is who the waypoint is, and stays.
    let expect = [
        "ServiceAccount shop/wp",
        "Service shop/front",
        "Deployment shop/front",
    ];
    assert_eq!(names(&whole), expect);
    let deployment = whole.objects[2].to_value().unwrap();
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels[CANONICAL_NAME], "front");
    assert_eq!(labels["gateway.networking.k8s.io/gateway-name"], "wp");

    // What has the old name goes once a pod of the new Deployment is ready, and not before.
    let before = [
        gateway(OTHER, LISTENER),
        made_before("Service", "wp", "wp"),
        made_before("Deployment", "wp", "wp"),
    ];
    let kept = rendered(&before.concat());
    assert_eq!(names(&kept), expect);
    let old = [
        ObjectRef::new(Kind::Service, "shop", "wp"),
        ObjectRef::new(Kind::Deployment, "shop", "wp"),
    ];
    assert_eq!(kept.kept, old);
    for (called, ready, stays) in [
        ("wp", true, true),
        ("front", false, true),
        ("front", true, false),
    ] {
        let pod = format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop, labels: \
             {{gateway.networking.k8s.io/gateway-name: wp, service.istio.io/canonical-name: {called}}}}}\n\
             spec: {{serviceAccountName: wp, containers: [{{name: c, image: i}}]}}\n\
             status: {{phase: Running, podIP: 10.0.0.1, conditions: [{{type: Ready, status: '{}'}}]}}\n",
            if ready { "True" } else { "False" }
        );
        let now = rendered(&format!("{}{pod}", before.concat()));
        assert_eq!(!now.kept.is_empty(), stays, "{called} {ready}");
    }
}

#[test]
fn a_name_that_another_gateway_or_somebody_else_has_is_refused_and_what_ran_runs_on() {
    const OTHER: &str = "gateway.istio.io/name-override: front";
    let somebody = "---\napiVersion: v1\nkind: Service\nmetadata: {name: front, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    for taken in [
        somebody.to_owned(),
        made_before("Service", "front", "another"),
    ] {
        let yaml = [
            gateway(OTHER, LISTENER),
            made_before("Deployment", "wp", "wp"),
            taken,
        ];
        let clash = rendered(&yaml.concat());
        assert!(clash.objects.is_empty());
        assert_eq!(
            conditions(&clash),
            [("Accepted", false, "Conflict"), PENDING]
        );
        assert!(clash.verdicts[0].message.contains("Service shop/front"));
        assert_eq!(clash.kept, [ObjectRef::new(Kind::Deployment, "shop", "wp")]);
    }
}
