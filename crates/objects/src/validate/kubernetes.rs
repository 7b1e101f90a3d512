use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Report;
use crate::object::ObjectHead;
use crate::selectors;

pub(super) fn service(service: &Service, report: &mut Report) {
    let word = "a service: no dots";
    report.label("metadata.name", word, service.name());
    let Some(spec) = &service.spec else {
        report.error("spec", "must be there");
        return;
    };
    report.labels("spec.selector", spec.selector.as_ref());
    let ports: Vec<_> = spec.ports.iter().flatten().collect();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let external = spec.type_.as_deref() == Some("ExternalName");
    if ports.is_empty() && !headless && !external {
        report.error("spec.ports", "needs at least one port");
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        report.port(format!("{field}.port"), port.port.into());
        if let Some(IntOrString::Int(target)) = &port.target_port {
            report.port(format!("{field}.targetPort"), (*target).into());
        }
        if ports.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
            report.error(format!("{field}.name"), "must be there with several ports");
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !taken.insert((port.port, protocol)) {
            let message = format!("{protocol} port {} is there twice", port.port);
            report.error(format!("{field}.port"), message);
        }
    }
    let named = ports.iter().enumerate();
    report.unique(
        "port name",
        named.filter_map(|(index, port)| {
            Some((format!("spec.ports[{index}].name"), port.name.as_deref()?))
        }),
    );
    if let Some(address) = &spec.cluster_ip
        && !matches!(address.as_str(), "" | "None")
        && address.parse::<IpAddr>().is_err()
    {
        let message = format!("{address:?} is neither an address nor None");
        report.error("spec.clusterIP", message);
    }
}

pub(super) fn pod(pod: &Pod, report: &mut Report) {
    match &pod.spec {
        Some(spec) => pod_spec("spec", spec, report),
        None => report.error("spec", "must be there"),
    }
}

fn pod_spec(field: &str, spec: &PodSpec, report: &mut Report) {
    if spec.containers.is_empty() {
        report.error(
            format!("{field}.containers"),
            "needs at least one container",
        );
    }
    let lists = [
        ("containers", spec.containers.as_slice()),
        (
            "initContainers",
            spec.init_containers.as_deref().unwrap_or_default(),
        ),
    ];
    for (list, containers) in lists {
        for (index, container) in containers.iter().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            report.label(format!("{field}.name"), "a container", &container.name);
            for (at, port) in container.ports.iter().flatten().enumerate() {
                let field = format!("{field}.ports[{at}].containerPort");
                report.port(field, port.container_port.into());
            }
        }
        let named = containers.iter().enumerate();
        report.unique(
            "container",
            named.map(|(index, container)| {
                let field = format!("{field}.{list}[{index}].name");
                (field, container.name.as_str())
            }),
        );
    }
}

pub(super) fn deployment(deployment: &Deployment, report: &mut Report) {
    let Some(spec) = &deployment.spec else {
        report.error("spec", "must be there");
        return;
    };
    if let Some(replicas) = spec.replicas.filter(|replicas| *replicas < 0) {
        report.error("spec.replicas", format!("{replicas} is negative"));
    }
    report.selector("spec.selector", Some(&spec.selector));
    let head = spec.template.metadata.as_ref();
    let labels = head
        .and_then(|head| head.labels.clone())
        .unwrap_or_default();
    report.labels("spec.template.metadata.labels", Some(&labels));
    if selectors::is_empty(&spec.selector) {
        report.error("spec.selector", "must not be empty");
    } else if !selectors::selects(&spec.selector, &labels) {
        report.error(
            "spec.selector",
            "does not select the labels in spec.template.metadata.labels",
        );
    }
    match &spec.template.spec {
        Some(spec) => pod_spec("spec.template.spec", spec, report),
        None => report.error("spec.template.spec", "must be there"),
    }
}
