//! The charts: what Helm makes of them is what we make of them, and a real API server takes it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use isobar_chart::{Chart, Manifest, Release, Values};
use isobar_tests::{binaries, scratch};

use crate::definitions::define;
use crate::{alone, run};

/// Assignments that between them switch everything on and off, and use lists, maps and texts that need
/// quotes. Each under a chart's name or `global`.
const SETTINGS: &[&[&str]] = &[
    &[],
    &["crds.istio=false", "crds.gatewayApi=true"],
    &[
        "control-plane.autoscaleEnabled=true",
        "control-plane.podDisruptionBudget.enabled=false",
    ],
    &[
        "control-plane.istiodService=false",
        "control-plane.gatewayClass=false",
        "control-plane.gatewaySecrets=false",
    ],
    &[
        "control-plane.webhook.enabled=false",
        "control-plane.revision=v2",
        "control-plane.revisionTags={stable,prod}",
    ],
    &[
        "control-plane.webhook.failurePolicy=Ignore",
        "control-plane.waypointsOnly=true",
        "control-plane.istio.namespace=istio-other",
        "control-plane.discoverySelectors={a,b}",
    ],
    &[
        "control-plane.ca.secret=cacerts",
        "control-plane.networkPolicy.enabled=true",
    ],
    &[
        "control-plane.waypointClasses={isobar-waypoint,istio-waypoint}",
        "control-plane.replicaCount=3",
    ],
    &[
        "global.tag=v1",
        "global.hub=registry.example/mesh",
        "global.network=n1",
        "global.logAsJson=true",
    ],
    &[
        "control-plane.env.RUST_BACKTRACE=1",
        "control-plane.priorityClassName=high",
        "control-plane.podAnnotations.example\\.org/a=b",
        "control-plane.resources.limits.memory=1Gi",
        "control-plane.resources.limits.cpu=2",
    ],
    &[
        "node.ztunnel.env.XDS_ON_DEMAND=true",
        "node.ztunnel.xdsAddress=https://elsewhere:15012",
        "node.ztunnel.terminationGracePeriodSeconds=600",
        "node.agent.excludeNamespaces={kube-system,monitoring}",
        "node.agent.dnsCapture=false",
        "node.agent.podAnnotations.example\\.org/a=c",
    ],
];

fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/charts")
}

/// Helm itself: `ISOBAR_HELM`, or what `make setup-kube` built.
pub(crate) fn helm_tool() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kube/helm");
    std::env::var_os("ISOBAR_HELM").map_or(built, PathBuf::from)
}

fn helm(args: &[&str]) -> Result<String> {
    let program = helm_tool();
    let home = scratch()?;
    let output = Command::new(&program)
        .args(args)
        .env("HOME", home.path())
        .env_remove("KUBECONFIG")
        .output()
        .with_context(|| format!("{}: run `make setup-kube`", program.display()))?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "helm {}: {out}{err}",
        args.join(" ")
    );
    Ok(out.into_owned())
}

fn render(chart: &Chart, set: &[&str]) -> Result<Vec<Manifest>> {
    let mut values = Values::default();
    for assignment in set {
        values.set(assignment)?;
    }
    let release = Release {
        name: chart.name().to_owned(),
        namespace: "istio-system".to_owned(),
    };
    Ok(chart.render(&release, &values)?)
}

/// The documents of a stream, without those that hold only comments and without blank lines at ends.
fn documents(text: &str) -> Vec<String> {
    let parts = format!("\n{text}")
        .split("\n---\n")
        .map(str::trim)
        .collect::<Vec<_>>()
        .join("\u{0}");
    parts
        .split('\u{0}')
        .filter(|part| {
            part.lines()
                .any(|line| !line.is_empty() && !line.starts_with('#'))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn helm_finds_nothing_to_blame() {
    alone(async {
        for chart in Chart::family()? {
            let folder = charts().join(chart.name());
            let said = helm(&["lint", "--strict", &folder.to_string_lossy()])?;
            ensure!(said.contains("0 chart(s) failed"), "{said}");
        }
        Ok(())
    });
}

#[test]
fn helm_renders_what_we_render() {
    alone(async {
        for set in SETTINGS {
            for chart in Chart::family()? {
                let own = format!("{}.", chart.name());
                let mut args = vec!["template", chart.name()];
                let folder = charts().join(chart.name());
                let folder = folder.to_string_lossy();
                args.extend([&*folder, "--namespace", "istio-system"]);
                for assignment in *set {
                    let ours = assignment.strip_prefix(&*own);
                    let shared = Some(*assignment).filter(|set| set.starts_with("global."));
                    // Only the parts of a family have a global part.
                    let shared = shared.filter(|_| chart.name() != "crds");
                    args.extend(ours.or(shared).into_iter().flat_map(|set| ["--set", set]));
                }
                let theirs = documents(&helm(&args)?);
                let text: String = render(&chart, set)?.iter().map(Manifest::printed).collect();
                let ours = documents(&text);
                ensure!(
                    theirs.len() == ours.len(),
                    "{set:?}: {theirs:#?}\n{ours:#?}"
                );
                for (theirs, ours) in theirs.iter().zip(&ours) {
                    ensure!(theirs == ours, "{set:?}\nHelm:\n{theirs}\n\nours:\n{ours}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn helm_refuses_the_values_that_we_refuse() {
    alone(async {
        let folder = charts().join("control-plane");
        let folder = folder.to_string_lossy();
        for wrong in [
            "replicas=2",
            "replicaCount=two",
            "portRules=of",
            "global.hubb=x",
        ] {
            let theirs = helm(&["template", "control-plane", &folder, "--set", wrong]);
            ensure!(theirs.is_err(), "Helm takes {wrong}");
            let top = if wrong.starts_with("global.") {
                ""
            } else {
                "control-plane."
            };
            let ours = render(&Chart::named("control-plane")?, &[&format!("{top}{wrong}")]);
            ensure!(ours.is_err(), "we take {wrong}");
        }
        Ok(())
    });
}

#[test]
fn the_api_server_takes_every_object() {
    run(async |server| {
        server.namespace("istio-system").await?;
        define(server).await?;
        for set in SETTINGS {
            for chart in Chart::family()? {
                let text: String = render(&chart, set)?.iter().map(Manifest::printed).collect();
                let file = server.folder().join("chart.yaml");
                std::fs::write(&file, text)?;
                let file = file.to_string_lossy();
                let how = ["--server-side", "--validate=strict", "--dry-run=server"];
                // They were applied by another command before.
                let args = [&["apply", "--force-conflicts", "-f", &*file][..], &how].concat();
                let said = server
                    .kubectl(&args)
                    .await
                    .with_context(|| format!("{set:?}"))?;
                ensure!(said.contains("serverside-applied"), "{said}");
            }
        }
        Ok(())
    });
}

/// A control plane's Deployment, whoever installed it.
fn standing(name: &str, arguments: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment,
           metadata: {{name: {name}, namespace: mesh, labels: {{app.kubernetes.io/name: isobard}}}},
           spec: {{selector: {{matchLabels: {{app: a}}}}, template: {{metadata: {{labels: {{app: a}}}},
             spec: {{containers: [{{name: c, image: i, args: [{arguments}]}}]}}}}}}}}"
    )
}

/// What the chart gives to the account of a control plane there.
const BINDING: &str = "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding,
    metadata: {name: of-mesh},
    roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: isobard},
    subjects: [{kind: ServiceAccount, name: isobard, namespace: mesh}]}";

#[test]
fn helm_installs_no_second_control_plane_for_what_names_nobody() {
    run(async |server| {
        server.namespace("mesh").await?;
        server.namespace("other").await?;
        let folder = charts().join("control-plane");
        let (folder, config) = (folder.to_string_lossy(), server.admin()?);
        let config = format!("--kubeconfig={}", config.to_string_lossy());
        let install = [
            "install",
            "c",
            &*folder,
            "-n",
            "other",
            "--dry-run=server",
            &config,
        ];
        let install = |set: &[&str]| {
            let more = set.iter().flat_map(|set| ["--set", *set]);
            let more: Vec<&str> = more.chain(["--set", "gatewayClass=false"]).collect();
            helm(&[&install[..], &more].concat())
        };
        let default: &[&str] = &["revision=v2", "revisionTags={default}"];
        install(&[])?;
        install(default)?;
        for arguments in ["--kubernetes", "'--revision=v1', '--revision-tag=default'"] {
            server.apply(&standing("isobard", arguments)).await?;
            // Anybody can make such a Deployment.
            install(&[])?;
            server.apply(BINDING).await?;
            for set in [&[][..], default] {
                let said = install(set).err().context("it is refused")?.to_string();
                let words = [
                    "Deployment mesh/isobard",
                    "what names nobody",
                    "revision=NAME",
                ];
                ensure!(words.iter().all(|word| said.contains(word)), "{said}");
            }
            install(&["revision=v2", "revisionTags={stable}"])?;
            server
                .kubectl(&["delete", "clusterrolebinding", "of-mesh"])
                .await?;
        }
        server.apply(BINDING).await?;
        // One with another name is nobody's rival, and an upgrade is no second installation.
        server
            .apply(&standing("isobard", "'--revision=v1'"))
            .await?;
        install(&[])?;
        server.apply(&standing("isobard", "--kubernetes")).await?;
        let upgrade = [
            "install",
            "c",
            &*folder,
            "-n",
            "mesh",
            "--dry-run=server",
            &config,
        ];
        let said = helm(&[&upgrade[..], &["--set", "gatewayClass=false"]].concat());
        let said = said
            .err()
            .map_or_else(String::new, |error| error.to_string());
        ensure!(!said.contains("what names nobody"), "{said}");
        Ok(())
    });
}

#[test]
fn helm_does_not_replace_the_roots_of_another_mesh() {
    run(async |server| {
        server.namespace("istio-system").await?;
        server.namespace("mesh").await?;
        let folder = charts().join("control-plane");
        let (folder, config) = (folder.to_string_lossy(), server.admin()?);
        let config = format!("--kubeconfig={}", config.to_string_lossy());
        let install = |set: &str| {
            let more = ["--set", "gatewayClass=false", "--set", set, &config];
            let what = ["install", "c", &*folder, "-n", "mesh", "--dry-run=server"];
            helm(&[&what[..], &more].concat())
        };
        install("replicaCount=1")?;
        server
            .apply(
                "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio-ca-root-cert, namespace: istio-system},
                  data: {root-cert.pem: THEIRS}}",
            )
            .await?;
        let said = install("replicaCount=1").err().context("it is refused")?;
        let said = said.to_string();
        ensure!(
            said.contains(
                "ConfigMap istio-system/istio-ca-root-cert has the roots of another mesh"
            ),
            "{said}"
        );
        for set in ["ca.secret=cacerts", "waypointsOnly=true"] {
            install(set)?;
        }
        // One that is installed again with the root that was kept.
        server
            .apply(
                "{apiVersion: v1, kind: Secret, metadata: {name: istio-ca-secret, namespace: mesh},
                  stringData: {ca-cert.pem: THEIRS}}",
            )
            .await?;
        install("replicaCount=1")?;
        Ok(())
    });
}

#[test]
fn the_programs_know_the_arguments_of_the_charts() {
    let folder = binaries().unwrap();
    for set in SETTINGS {
        for chart in Chart::family().unwrap() {
            for manifest in render(&chart, set).unwrap() {
                let containers = &manifest.value["spec"]["template"]["spec"]["containers"];
                for container in containers.as_array().into_iter().flatten() {
                    let program = container["name"].as_str().unwrap();
                    if program == "ztunnel" {
                        // It takes its settings from the environment.
                        continue;
                    }
                    let args = container["args"].as_array().unwrap();
                    let output = Command::new(folder.join(program))
                        .args(args.iter().map(|arg| arg.as_str().unwrap()))
                        .arg("--version")
                        .env("NODE_NAME", "node-1")
                        .env("POD_NAMESPACE", "istio-system")
                        .output()
                        .unwrap();
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "{program} {args:?}: {said}");
                }
            }
        }
    }
}
