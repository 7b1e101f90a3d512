use super::Report;
use crate::gateway_api::{FromNamespaces, Gateway, InboundBinding};
use crate::names;
use crate::object::ObjectHead;
use isobar_types::{labels, ports};

/// Names that the Gateway gives to what is made for it.
pub(super) fn names(gateway: &Gateway, report: &mut Report) {
    for (key, what) in [
        (
            "gateway.istio.io/name-override",
            "a Deployment and a Service",
        ),
        ("gateway.istio.io/service-account", "a ServiceAccount"),
    ] {
        if let Some(name) = gateway.annotation(key) {
            report.label(format!("metadata.annotations[{key}]"), what, name);
        }
    }
}

/// How traffic gets into waypoints that somebody else runs, by a Gateway or by its class.
pub(super) fn binding(object: &impl ObjectHead, report: &mut Report) {
    let Some(text) = object.annotation(labels::INBOUND_BINDING) else {
        return;
    };
    if let Err(message) = InboundBinding::parse(text) {
        let field = format!("metadata.annotations[{}]", labels::INBOUND_BINDING);
        report.warning(field, format!("{message}: as if it were not there"));
    }
}

pub(super) fn check(gateway: &Gateway, report: &mut Report) {
    let spec = &gateway.spec;
    report.required("spec.gatewayClassName", &spec.gateway_class_name);
    if spec.listeners.is_empty() {
        report.error("spec.listeners", "needs at least one listener");
    }
    let is_waypoint = matches!(
        spec.gateway_class_name.as_str(),
        labels::WAYPOINT_CLASS | labels::ISTIO_WAYPOINT_CLASS
    );
    let is_edge = spec.gateway_class_name == labels::GATEWAY_CLASS;
    // What somebody else runs takes traffic of the mesh all the same.
    let is_foreign = gateway.annotation(labels::INBOUND_BINDING).is_some()
        || spec.listeners.iter().any(|one| one.protocol == "HBONE");
    if !is_waypoint && !is_edge && !is_foreign && !spec.gateway_class_name.is_empty() {
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
