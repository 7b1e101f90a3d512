use std::collections::BTreeSet;
use std::net::IpAddr;

use super::virtual_service::host_name;
use super::{Report, parse_network};
use crate::istio::{Location, Resolution, ServiceEntrySpec, WorkloadEntrySpec};
use crate::names;

/// As many as Istio's definition of the kind takes. Each endpoint is one of each host.
const MOST_HOSTS: usize = 256;
const MOST_ADDRESSES: usize = 256;
const MOST_ENDPOINTS: usize = 4096;

pub(super) fn check(spec: &ServiceEntrySpec, report: &mut Report) {
    for (field, count, most) in [
        ("spec.hosts", spec.hosts.len(), MOST_HOSTS),
        ("spec.addresses", spec.addresses.len(), MOST_ADDRESSES),
        ("spec.endpoints", spec.endpoints.len(), MOST_ENDPOINTS),
    ] {
        if count > most {
            let message =
                format!("{count} are too many: {most} at most, write another entry for the rest");
            report.error(field, message);
        }
    }
    hosts(spec, report);
    addresses(spec, report);
    ports(spec, report);
    endpoints(spec, report);
    for (index, place) in spec.export_to.iter().enumerate() {
        if !matches!(place.as_str(), "." | "*" | "~") {
            report.label(format!("spec.exportTo[{index}]"), "a namespace", place);
        }
    }
    if let Some(selector) = &spec.workload_selector {
        report.labels("spec.workloadSelector.labels", Some(&selector.labels));
    }
}

fn hosts(spec: &ServiceEntrySpec, report: &mut Report) {
    if spec.hosts.is_empty() {
        report.error("spec.hosts", "needs at least one host");
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if host == "*" {
            report.error(field, "\"*\" alone is not allowed here");
        } else if matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
            && spec.endpoints.is_empty()
            && host.contains('*')
        {
            let message = format!("{host:?} cannot be resolved, and there are no endpoints");
            report.error(field, message);
        } else {
            host_name(&field, host, report);
        }
    }
    let named = spec.hosts.iter().enumerate();
    report.unique(
        "host",
        named.map(|(index, host)| (format!("spec.hosts[{index}]"), host.as_str())),
    );
}

fn addresses(spec: &ServiceEntrySpec, report: &mut Report) {
    let ranges = matches!(spec.resolution, Resolution::None | Resolution::Static);
    for (index, address) in spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        match parse_network(address) {
            Some(net) if net.prefix_len() < net.max_prefix_len() && !ranges => {
                let message = "a network needs resolution NONE or STATIC";
                report.error(field, message);
            }
            _ => report.network(field, address),
        }
    }
}

fn ports(spec: &ServiceEntrySpec, report: &mut Report) {
    if spec.ports.is_empty() && spec.resolution != Resolution::None {
        report.error("spec.ports", "needs at least one port");
    }
    let mut taken = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        report.port(format!("{field}.number"), port.number.into());
        if port.target_port != 0 {
            report.port(format!("{field}.targetPort"), port.target_port.into());
        }
        report.required(&format!("{field}.name"), &port.name);
        if !taken.insert(port.number) {
            let message = format!("port {} is there twice", port.number);
            report.error(format!("{field}.number"), message);
        }
    }
    let named = spec.ports.iter().enumerate();
    report.unique(
        "port name",
        named.map(|(index, port)| (format!("spec.ports[{index}].name"), port.name.as_str())),
    );
}

fn endpoints(spec: &ServiceEntrySpec, report: &mut Report) {
    let listed = !spec.endpoints.is_empty();
    if listed && spec.workload_selector.is_some() {
        report.error("spec.endpoints", "cannot be used with workloadSelector");
    }
    match spec.resolution {
        Resolution::None if listed => {
            report.error("spec.endpoints", "cannot be used with resolution NONE");
        }
        Resolution::Static if !listed && spec.workload_selector.is_none() => {
            let message = "resolution STATIC needs endpoints or a workloadSelector";
            report.error("spec.endpoints", message);
        }
        Resolution::DnsRoundRobin if spec.endpoints.len() > 1 => {
            let message = "resolution DNS_ROUND_ROBIN takes one endpoint";
            report.error("spec.endpoints", message);
        }
        Resolution::DynamicDns if listed || spec.workload_selector.is_some() => {
            let message = "resolution DYNAMIC_DNS takes none: the host that is asked for is one";
            report.error("spec.endpoints", message);
        }
        Resolution::DynamicDns if spec.location == Location::MeshInternal => {
            let message = "resolution DYNAMIC_DNS is for hosts outside the mesh";
            report.error("spec.location", message);
        }
        _ => {}
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        one(&format!("spec.endpoints[{index}]"), endpoint, spec, report);
    }
}

/// An endpoint that is an object of its own.
pub(super) fn endpoint(spec: &WorkloadEntrySpec, report: &mut Report) {
    let address = spec.address.as_str();
    if address.starts_with("unix://") {
        report.unsupported("spec.address", "sockets of the file system");
    } else if address.parse::<IpAddr>().is_err() && !names::is_hostname(address) {
        let message = format!("{address:?} is neither an address nor a host name");
        report.error("spec.address", message);
    }
    for (name, port) in &spec.ports {
        report.port(format!("spec.ports.{name}"), (*port).into());
    }
    report.labels("spec.labels", Some(&spec.labels));
}

fn one(field: &str, endpoint: &WorkloadEntrySpec, spec: &ServiceEntrySpec, report: &mut Report) {
    let address = endpoint.address.as_str();
    let is_ip = address.parse::<IpAddr>().is_ok();
    if address.starts_with("unix://") {
        report.unsupported(format!("{field}.address"), "sockets of the file system");
    } else if !is_ip && (!spec.resolution.is_dns() || !names::is_hostname(address)) {
        let wanted = if spec.resolution.is_dns() {
            "neither an address nor a host name"
        } else {
            "not an IP address"
        };
        report.error(
            format!("{field}.address"),
            format!("{address:?} is {wanted}"),
        );
    }
    for (name, port) in &endpoint.ports {
        let field = format!("{field}.ports.{name}");
        if spec.ports.iter().all(|known| known.name != *name) {
            let message = format!("the ServiceEntry has no port of the name {name:?}");
            report.error(field.clone(), message);
        }
        report.port(field, (*port).into());
    }
    report.labels(&format!("{field}.labels"), Some(&endpoint.labels));
}
