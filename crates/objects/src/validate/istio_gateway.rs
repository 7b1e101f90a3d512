use super::Report;
use crate::istio::{GatewaySpec, Server, ServerTls, ServerTlsMode, TlsVersion};
use crate::names;
use isobar_types::ports;

/// Ports that every gateway of ours uses itself.
const RESERVED: [u16; 4] = [ports::ADMIN, ports::HBONE, ports::METRICS, ports::READINESS];

pub(super) fn check(spec: &GatewaySpec, report: &mut Report) {
    if spec.selector.is_empty() {
        report.warning(
            "spec.selector",
            "without labels no pod is a gateway: name those of your gateway's pods",
        );
    }
    report.labels("spec.selector", Some(&spec.selector));
    if spec.servers.is_empty() {
        report.error("spec.servers", "needs at least one server");
    }
    for (index, server) in spec.servers.iter().enumerate() {
        check_server(&format!("spec.servers[{index}]"), server, report);
    }
}

fn check_server(field: &str, server: &Server, report: &mut Report) {
    report.port(format!("{field}.port.number"), server.port.number.into());
    if RESERVED
        .iter()
        .any(|own| u32::from(*own) == server.port.number)
    {
        let message = format!("port {} is the gateway's own", server.port.number);
        report.error(format!("{field}.port.number"), message);
    }
    report.required(&format!("{field}.port.protocol"), &server.port.protocol);
    if server.hosts.is_empty() {
        report.error(format!("{field}.hosts"), "needs at least one host");
    }
    for (at, host) in server.hosts.iter().enumerate() {
        let (_, host) = host.split_once('/').unwrap_or(("", host));
        let bare = host.strip_prefix("*.").unwrap_or(host);
        if host != "*" && !names::is_subdomain(&bare.to_ascii_lowercase()) {
            let message = format!("{host:?} is neither a host name nor a pattern such as *.x.y");
            report.error(format!("{field}.hosts[{at}]"), message);
        }
    }
    let protocol = server.port.protocol.to_ascii_uppercase();
    let known = [
        "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS", "TCP", "MONGO",
    ];
    if !protocol.is_empty() && !known.contains(&protocol.as_str()) {
        report.unsupported(format!("{field}.port.protocol"), &protocol);
    }
    let needs = matches!(protocol.as_str(), "HTTPS" | "TLS");
    match &server.tls {
        None if needs => {
            let message = format!("a server of protocol {protocol} needs it");
            report.error(format!("{field}.tls"), message);
        }
        None => {}
        Some(tls) => check_tls(&format!("{field}.tls"), tls, needs, report),
    }
}

fn check_tls(field: &str, tls: &ServerTls, ends: bool, report: &mut Report) {
    let shows = matches!(
        tls.mode,
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual
    );
    let named = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    if ends && shows && !named && tls.server_certificate.is_empty() {
        let message = "must name the Secret with certificate and key";
        report.error(format!("{field}.credentialName"), message);
    }
    if matches!(
        tls.max_protocol_version,
        TlsVersion::V1_0 | TlsVersion::V1_1
    ) {
        let message = "versions before 1.2 are not spoken";
        report.error(format!("{field}.maxProtocolVersion"), message);
    }
}
