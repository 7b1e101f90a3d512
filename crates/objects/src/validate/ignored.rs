//! Labels and annotations of Istio's that ask for something which the mesh does not do.

use super::Report;
use crate::kinds::Kind;
use crate::object::Object;

/// Where such a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Label,
    Annotation,
}

use Place::{Annotation, Label};

/// Kinds that a waypoint may be named on.
const BOUND: &[Kind] = &[Kind::Namespace, Kind::Service, Kind::ServiceEntry];
/// What somebody else runs for us.
const GATEWAYS: &[Kind] = &[Kind::Gateway, Kind::GatewayClass];

/// Key, where it stands and on what (nothing: on anything), and what becomes of it.
const IGNORED: &[(&str, Place, &[Kind], &str)] = &[
    (
        "istio.io/use-waypoint-canary",
        Label,
        BOUND,
        "a second waypoint for a part of the calls: all of them use the first one",
    ),
    (
        "istio.io/use-waypoint-canary-namespace",
        Label,
        BOUND,
        "a second waypoint for a part of the calls: all of them use the first one",
    ),
    (
        "istio.io/use-waypoint-canary-weight",
        Annotation,
        BOUND,
        "a second waypoint for a part of the calls: all of them use the first one",
    ),
    (
        "gateway.istio.io/name-override",
        Annotation,
        GATEWAYS,
        "other names for what is made for a Gateway: it is called as the Gateway is",
    ),
    (
        "gateway.istio.io/controller-version",
        Annotation,
        GATEWAYS,
        "versions of the controller: the control plane of the Gateway's revision runs it",
    ),
    (
        "ambient.istio.io/waypoint-inbound-binding",
        Annotation,
        GATEWAYS,
        "another way into a waypoint: it takes HBONE on port 15008",
    ),
    (
        "sidecar.istio.io/proxyImage",
        Annotation,
        GATEWAYS,
        "an image by annotation: the control plane's own says which one",
    ),
    (
        "proxy.istio.io/config",
        Annotation,
        GATEWAYS,
        "proxy settings by annotation",
    ),
    (
        "istio.io/connect-strategy",
        Annotation,
        &[Kind::ServiceEntry],
        "strategies of connecting: one endpoint is tried after another",
    ),
    (
        "networking.istio.io/exportTo",
        Annotation,
        &[Kind::Service],
        "the visibility of Services: every namespace sees them",
    ),
    (
        "galley.istio.io/analyze-suppress",
        Annotation,
        &[],
        "findings that are kept back: all of them are told",
    ),
];

/// Says of each that it is ignored.
pub(super) fn check(object: &Object, report: &mut Report) {
    let (head, kind) = (object.head(), object.kind());
    let (labels, annotations) = (&head.labels, &head.annotations);
    if labels.is_none() && annotations.is_none() {
        return;
    }
    for (key, place, kinds, what) in IGNORED {
        let (field, map) = match place {
            Label => ("labels", labels),
            Annotation => ("annotations", annotations),
        };
        let is_there = map.as_ref().is_some_and(|map| map.contains_key(*key));
        if is_there && (kinds.is_empty() || kinds.contains(&kind)) {
            report.unsupported(format!("metadata.{field}[{key}]"), what);
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
            let (object, findings) = typed(kind, &value);
            assert!(object.is_some(), "it stays valid");
            findings
                .into_iter()
                .map(|one| one.field)
                .collect::<Vec<_>>()
        };
        let canary = json!({
            "name": "a",
            "labels": { "istio.io/use-waypoint-canary": "b" },
            "annotations": { "istio.io/use-waypoint-canary-weight": "10" },
        });
        let told = [
            "metadata.labels[istio.io/use-waypoint-canary]",
            "metadata.annotations[istio.io/use-waypoint-canary-weight]",
        ];
        assert_eq!(read(Kind::Namespace, canary.clone()), told);
        assert!(read(Kind::Node, canary).is_empty());
        let suppressed = json!({
            "name": "a", "annotations": { "galley.istio.io/analyze-suppress": "*" },
        });
        let told = ["metadata.annotations[galley.istio.io/analyze-suppress]"];
        assert_eq!(read(Kind::Node, suppressed), told);
    }
}
