use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Report, parse_network};

pub(super) fn check(policy: &NetworkPolicy, report: &mut Report) {
    let Some(spec) = &policy.spec else {
        report.error("spec", "must be there");
        return;
    };
    report.selector("spec.podSelector", spec.pod_selector.as_ref());
    for (index, word) in spec.policy_types.iter().flatten().enumerate() {
        if !matches!(word.as_str(), "Ingress" | "Egress") {
            let field = format!("spec.policyTypes[{index}]");
            report.error(field, format!("{word:?} is neither Ingress nor Egress"));
        }
    }
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let field = format!("spec.ingress[{index}]");
        peers(&format!("{field}.from"), rule.from.as_deref(), report);
        ports(&field, rule.ports.as_deref(), report);
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let field = format!("spec.egress[{index}]");
        peers(&format!("{field}.to"), rule.to.as_deref(), report);
        ports(&field, rule.ports.as_deref(), report);
    }
}

fn peers(field: &str, peers: Option<&[NetworkPolicyPeer]>, report: &mut Report) {
    for (index, peer) in peers.into_iter().flatten().enumerate() {
        let field = format!("{field}[{index}]");
        let by_label = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        report.selector(&format!("{field}.podSelector"), peer.pod_selector.as_ref());
        report.selector(
            &format!("{field}.namespaceSelector"),
            peer.namespace_selector.as_ref(),
        );
        let Some(block) = &peer.ip_block else {
            if !by_label {
                report.error(
                    field,
                    "needs one of podSelector, namespaceSelector and ipBlock",
                );
            }
            continue;
        };
        if by_label {
            report.error(
                format!("{field}.ipBlock"),
                "cannot be used with podSelector or namespaceSelector",
            );
        }
        let outer = network(&format!("{field}.ipBlock.cidr"), &block.cidr, report);
        for (at, text) in block.except.iter().flatten().enumerate() {
            let field = format!("{field}.ipBlock.except[{at}]");
            let inner = network(&field, text, report);
            if let (Some(outer), Some(inner)) = (outer, inner)
                && !outer.contains(&inner)
            {
                report.error(field, format!("{text} is not within {}", block.cidr));
            }
        }
    }
}

/// Kubernetes wants the prefix length to be written here.
fn network(field: &str, text: &str, report: &mut Report) -> Option<IpNet> {
    let parsed = parse_network(text).filter(|_| text.contains('/'));
    if parsed.is_none() {
        let message = format!("{text:?} is not a network such as 10.0.0.0/8");
        report.error(field, message);
    }
    parsed
}

fn ports(field: &str, ports: Option<&[NetworkPolicyPort]>, report: &mut Report) {
    for (index, port) in ports.into_iter().flatten().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let number = match &port.port {
            Some(IntOrString::Int(number)) => {
                report.port(format!("{field}.port"), (*number).into());
                Some(*number)
            }
            Some(IntOrString::String(name)) if name.is_empty() => {
                report.error(format!("{field}.port"), "must not be empty");
                None
            }
            _ => None,
        };
        if let Some(end) = port.end_port {
            let field = format!("{field}.endPort");
            match number {
                Some(start) if end < start => {
                    report.error(field, format!("{end} is below port {start}"));
                }
                Some(_) => report.port(field, end.into()),
                None => report.error(field, "needs a port number in port"),
            }
        }
        if let Some(protocol) = &port.protocol
            && !matches!(protocol.as_str(), "TCP" | "UDP" | "SCTP")
        {
            let message = format!("{protocol:?} is none of TCP, UDP, SCTP");
            report.error(format!("{field}.protocol"), message);
        }
    }
}
