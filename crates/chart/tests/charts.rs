//! The charts, and the plain YAML that is rendered from them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use isobar_chart::{Chart, Manifest, Release, Values};

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests")
}

fn render(name: &str, set: &[&str]) -> Vec<Manifest> {
    let mut values = Values::default();
    for assignment in set {
        values.set(assignment).unwrap();
    }
    let release = Release {
        name: name.to_owned(),
        namespace: "istio-system".to_owned(),
    };
    let chart = Chart::named(name).unwrap();
    chart.render(&release, &values).unwrap()
}

fn find<'a>(all: &'a [Manifest], kind: &str, name: &str) -> Option<&'a Manifest> {
    all.iter()
        .find(|one| one.kind() == kind && one.name() == name)
}

/// Compares with a file of the project; `ISOBAR_WRITE=1` writes it instead.
fn compare(path: &Path, text: &str) {
    if std::env::var_os("ISOBAR_WRITE").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == text,
        "{} is not what the chart says: write it anew by running this test with ISOBAR_WRITE=1",
        path.display()
    );
}

#[test]
fn the_plain_yaml_is_what_the_charts_say() {
    for chart in Chart::family().unwrap() {
        let text: String = render(chart.name(), &[])
            .iter()
            .map(Manifest::printed)
            .collect();
        let file = manifests().join(format!("kubernetes/{}.yaml", chart.name()));
        compare(&file, &text);
    }
}

#[test]
fn the_schemas_are_what_the_values_say() {
    for chart in Chart::family().unwrap() {
        let text = serde_json::to_string_pretty(&chart.schema()).unwrap() + "\n";
        let file = manifests().join(format!("charts/{}/values.schema.json", chart.name()));
        compare(&file, &text);
    }
}

#[test]
fn versions_are_those_of_the_programs() {
    for chart in Chart::family().unwrap() {
        assert_eq!(
            chart.version(),
            env!("CARGO_PKG_VERSION"),
            "{}",
            chart.name()
        );
        let file = manifests().join(format!("charts/{}/Chart.yaml", chart.name()));
        let text = std::fs::read_to_string(file).unwrap();
        assert!(
            text.contains(&format!("appVersion: {}\n", chart.version())),
            "{text}"
        );
    }
}

#[test]
fn values_switch_parts_on_and_off() {
    let plain = render("control-plane", &[]);
    assert!(find(&plain, "PodDisruptionBudget", "isobard").is_some());
    assert!(find(&plain, "Service", "istiod").is_some());
    assert!(find(&plain, "HorizontalPodAutoscaler", "isobard").is_none());
    assert_eq!(
        find(&plain, "Deployment", "isobard").unwrap().value["spec"]["replicas"],
        1
    );
    let other = render(
        "control-plane",
        &[
            "control-plane.autoscaleEnabled=true,control-plane.podDisruptionBudget.enabled=false",
            "control-plane.istiodService=false,control-plane.gatewayClass=false",
            "control-plane.ca.secret=cacerts,control-plane.networkPolicy.enabled=true",
            "control-plane.env.A=1,global.network=n1,global.tag=t",
            "control-plane.waypointClasses={isobar-waypoint,istio-waypoint}",
        ],
    );
    for (kind, name) in [
        ("PodDisruptionBudget", "isobard"),
        ("Service", "istiod"),
        ("GatewayClass", "isobar-waypoint"),
    ] {
        assert!(find(&other, kind, name).is_none(), "{kind} {name}");
    }
    assert!(find(&other, "HorizontalPodAutoscaler", "isobard").is_some());
    assert!(find(&other, "NetworkPolicy", "isobard").is_some());
    let deployment = &find(&other, "Deployment", "isobard").unwrap().value;
    assert!(deployment["spec"]["replicas"].is_null());
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "isobar/isobard:t");
    let args: Vec<_> = container["args"].as_array().unwrap().iter().collect();
    for wanted in [
        "--ca-dir=/etc/cacerts",
        "--network=n1",
        "--waypoint-class=istio-waypoint",
    ] {
        assert!(args.iter().any(|arg| *arg == wanted), "{args:?}");
    }
    // The secret is only read where the authority is kept in it.
    let role = &find(&other, "Role", "isobard").unwrap().value;
    assert!(!role["rules"].to_string().contains("secrets"), "{role}");
}

#[test]
fn a_revision_is_in_the_name_of_everything() {
    let plain = render("control-plane", &["control-plane.revision=default"]);
    assert!(find(&plain, "Deployment", "isobard").is_some());
    let named = render(
        "control-plane",
        &["control-plane.revision=v2,control-plane.gatewayClass=false"],
    );
    assert_eq!(named.len() + 1, plain.len());
    for manifest in &named {
        assert!(manifest.name().ends_with("-v2"), "{}", manifest.name());
        let text = manifest.value.to_string();
        for name in ["isobard\"", "isobar-validator\"", "isobar-control-plane\""] {
            // The program and its image are called so whatever the revision.
            let is_pod = manifest.kind() == "Deployment" || name == "isobard\"";
            assert!(is_pod || !text.contains(name), "{name}: {text}");
        }
    }
    let service = &find(&named, "Service", "isobard-v2").unwrap().value;
    let pods = &find(&named, "Deployment", "isobard-v2").unwrap().value;
    let labels = &pods["spec"]["template"]["metadata"]["labels"];
    assert_eq!(service["spec"]["selector"]["app"], labels["app"]);
}

#[test]
fn waypoints_alone_have_no_right_to_write_on_others() {
    let all = render("control-plane", &["control-plane.waypointsOnly=true"]);
    let role = &find(&all, "ClusterRole", "isobard").unwrap().value;
    let rules = role["rules"].as_array().unwrap().iter();
    let statuses: Vec<String> = rules
        .filter(|rule| rule["resources"].to_string().contains("/status"))
        .map(|rule| format!("{}{}", rule["apiGroups"], rule["resources"]))
        .collect();
    assert_eq!(
        statuses,
        [r#"["gateway.networking.k8s.io"]["gateways/status","gatewayclasses/status"]"#]
    );
    let text = role.to_string();
    assert!(text.contains("isobar-ca-root-cert") && !text.contains("istio-ca-root-cert"));
}

#[test]
fn mistakes_in_values_are_named() {
    for (set, words) in [
        ("control-plane.replicas=2", "there is no replicas"),
        (
            "control-plane.replicaCount=two",
            "replicaCount must be a number",
        ),
        ("control-plane.portRules=of", "portRules must be one of"),
        ("global.hubb=x", "there is no global.hubb"),
    ] {
        let mut values = Values::default();
        values.set(set).unwrap();
        let release = Release {
            name: "control-plane".to_owned(),
            namespace: "istio-system".to_owned(),
        };
        let chart = Chart::named("control-plane").unwrap();
        let error = chart.render(&release, &values).unwrap_err().to_string();
        assert!(error.contains(words), "{set}: {error}");
    }
    assert!(
        Chart::named("nodes")
            .unwrap_err()
            .to_string()
            .contains("crds, control-plane, node")
    );
}

#[test]
fn nothing_is_cluster_admin() {
    for chart in Chart::family().unwrap() {
        for manifest in render(chart.name(), &[]) {
            let value = &manifest.value;
            if manifest.kind().ends_with("Binding") {
                assert_eq!(value["roleRef"]["name"], manifest.name(), "{value}");
                assert_ne!(value["roleRef"]["name"], "cluster-admin");
            }
            for rule in value["rules"].as_array().into_iter().flatten() {
                assert!(!rule.to_string().contains("\"*\""), "{rule}");
                let verbs = rule["verbs"].to_string();
                for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
                    assert!(!verbs.contains(verb), "{rule}");
                }
            }
        }
    }
}

#[test]
fn only_the_node_is_privileged_and_only_as_far_as_it_must() {
    let pod = |all: &[Manifest], kind: &str, name: &str| {
        find(all, kind, name).unwrap().value["spec"]["template"]["spec"].clone()
    };
    let control_plane = pod(&render("control-plane", &[]), "Deployment", "isobard");
    assert_eq!(control_plane["securityContext"]["runAsNonRoot"], true);
    assert!(control_plane["priorityClassName"].is_null());
    let node = render("node", &[]);
    for name in ["ztunnel", "isobar-cni"] {
        assert_eq!(
            pod(&node, "DaemonSet", name)["priorityClassName"],
            "system-node-critical"
        );
    }
    let pods = [
        control_plane,
        pod(&node, "DaemonSet", "ztunnel"),
        pod(&node, "DaemonSet", "isobar-cni"),
    ];
    for pod in &pods {
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_ne!(context["privileged"], true, "{container}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{container}");
            let requests = &container["resources"]["requests"];
            assert!(requests["cpu"].is_string() && requests["memory"].is_string());
            assert!(!container["readinessProbe"].is_null(), "{container}");
        }
    }
}
