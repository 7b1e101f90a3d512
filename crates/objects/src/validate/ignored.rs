//! Annotations of Istio's that ask for something which the mesh does not do.

use super::Report;
use crate::kinds::Kind;
use crate::object::Object;

/// What somebody else runs for us.
const GATEWAYS: &[Kind] = &[Kind::Gateway, Kind::GatewayClass];

/// Key, on what it means something, and what becomes of it.
const IGNORED: &[(&str, &[Kind], &str)] = &[
    (
        "gateway.istio.io/name-override",
        &[Kind::GatewayClass],
        "names by class: each Gateway says what is made for it is called",
    ),
    (
        "gateway.istio.io/controller-version",
        GATEWAYS,
        "versions of the controller: the control plane of the Gateway's revision runs it",
    ),
    (
        "sidecar.istio.io/proxyImage",
        GATEWAYS,
        "an image by annotation: the control plane's own says which one",
    ),
    (
        "proxy.istio.io/config",
        GATEWAYS,
        "proxy settings by annotation",
    ),
    (
        "istio.io/connect-strategy",
        &[Kind::ServiceEntry],
        "strategies of connecting: one endpoint is tried after another",
    ),
    (
        "networking.istio.io/exportTo",
        &[Kind::Service],
        "the visibility of Services: every namespace sees them",
    ),
];

/// Says of each that it is ignored.
pub(super) fn check(object: &Object, report: &mut Report) {
    let (head, kind) = (object.head(), object.kind());
    let Some(annotations) = &head.annotations else {
        return;
    };
    for (key, kinds, what) in IGNORED {
        if annotations.contains_key(*key) && kinds.contains(&kind) {
            report.unsupported(format!("metadata.annotations[{key}]"), what);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::read::typed;

    use super::*;

    #[test]
    fn what_is_ignored_is_told_where_it_would_mean_something() {
        let read = |kind: Kind, head: serde_json::Value| {
            let mut value = json!({ "apiVersion": kind.api_version(), "kind": kind.as_str() });
            value["metadata"] = head;
            if kind == Kind::Service {
                value["spec"] = json!({ "ports": [{ "port": 80 }] });
            }
            let (object, findings) = typed(kind, &value);
            assert!(object.is_some(), "it stays valid");
            findings
                .into_iter()
                .map(|one| one.field)
                .collect::<Vec<_>>()
        };
        let proxy = json!({ "name": "a", "annotations": { "proxy.istio.io/config": "{}" } });
        assert!(read(Kind::Node, proxy).is_empty());
        let seen = json!({ "name": "a", "annotations": { "networking.istio.io/exportTo": "." } });
        let told = ["metadata.annotations[networking.istio.io/exportTo]"];
        assert_eq!(read(Kind::Service, seen), told);
    }
}
