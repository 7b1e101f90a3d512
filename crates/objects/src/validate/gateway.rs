use super::Report;
use crate::gateway_api::{FromNamespaces, GatewaySpec};
use crate::names;
use isobar_types::{labels, ports};

pub(super) fn check(spec: &GatewaySpec, report: &mut Report) {
    report.required("spec.gatewayClassName", &spec.gateway_class_name);
    if spec.listeners.is_empty() {
        report.error("spec.listeners", "needs at least one listener");
    }
    let is_waypoint = matches!(
        spec.gateway_class_name.as_str(),
        labels::WAYPOINT_CLASS | labels::ISTIO_WAYPOINT_CLASS
    );
    let is_edge = spec.gateway_class_name == labels::GATEWAY_CLASS;
    if !is_waypoint && !is_edge && !spec.gateway_class_name.is_empty() {
        let message = format!("gateways of class {:?}", spec.gateway_class_name);
        report.unsupported("spec.gatewayClassName", &message);
    }
    for (index, listener) in spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        if !names::is_subdomain(&listener.name) {
            let message = format!("{:?} is not the name of a listener", listener.name);
            report.error(format!("{field}.name"), message);
        }
        report.port(format!("{field}.port"), listener.port.into());
        report.required(&format!("{field}.protocol"), &listener.protocol);
        let is_hbone = listener.protocol == "HBONE" && listener.port == i32::from(ports::HBONE);
        if is_waypoint && !is_hbone {
            report.unsupported(
                &field,
                "a waypoint listens on port 15008 with protocol HBONE only",
            );
        }
        if is_edge {
            let known = ["HTTP", "HTTPS", "TLS", "TCP"];
            if !known.contains(&listener.protocol.as_str()) {
                report.unsupported(format!("{field}.protocol"), &listener.protocol);
            }
            let own = [ports::ADMIN, ports::HBONE, ports::METRICS, ports::READINESS];
            if own.iter().any(|own| i32::from(*own) == listener.port) {
                let message = format!("port {} is the gateway's own", listener.port);
                report.error(format!("{field}.port"), message);
            }
        } else if listener.tls.is_some() {
            report.unsupported(format!("{field}.tls"), "tls of a waypoint's listener");
        }
        let routes = listener.allowed_routes.as_ref();
        if let Some(namespaces) = routes.and_then(|routes| routes.namespaces.as_ref()) {
            let field = format!("{field}.allowedRoutes.namespaces");
            let by_label = namespaces.from == FromNamespaces::Selector;
            if by_label && namespaces.selector.is_none() {
                report.error(
                    format!("{field}.selector"),
                    "must be there with from: Selector",
                );
            }
            report.selector(&format!("{field}.selector"), namespaces.selector.as_ref());
        }
    }
    let named = spec.listeners.iter().enumerate();
    report.unique(
        "listener",
        named.map(|(index, listener)| {
            let field = format!("spec.listeners[{index}].name");
            (field, listener.name.as_str())
        }),
    );
}
