use super::Report;
use crate::istio::{MutualTlsMode, PeerAuthenticationSpec};

pub(super) fn check(spec: &PeerAuthenticationSpec, report: &mut Report) {
    let selected = spec
        .selector
        .as_ref()
        .is_some_and(|selector| !selector.match_labels.is_empty());
    if let Some(selector) = &spec.selector {
        report.labels("spec.selector.matchLabels", Some(&selector.match_labels));
    }
    if !spec.port_level_mtls.is_empty() && !selected {
        report.error("spec.portLevelMtls", "needs a selector");
    }
    for (port, mode) in &spec.port_level_mtls {
        let field = format!("spec.portLevelMtls.{port}");
        match port.parse::<i64>() {
            Ok(number) => report.port(field.clone(), number),
            Err(_) => report.error(field.clone(), format!("{port:?} is not a port number")),
        }
        disabled(&format!("{field}.mode"), mode.mode, report);
    }
    if let Some(mtls) = &spec.mtls {
        disabled("spec.mtls.mode", mtls.mode, report);
    }
}

fn disabled(field: &str, mode: MutualTlsMode, report: &mut Report) {
    if mode == MutualTlsMode::Disable {
        report.warning(
            field,
            "DISABLE counts as PERMISSIVE: inside the mesh mutual TLS cannot be turned off",
        );
    }
}
