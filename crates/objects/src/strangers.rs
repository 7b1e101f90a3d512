//! Kinds of the mesh's own APIs that are known and not honoured.

use crate::finding::{Finding, Severity};
use crate::kinds::{GATEWAY_GROUP, ISTIO_NETWORKING, ISTIO_SECURITY, ObjectRef};

/// A kind of which no object has an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stranger {
    /// API group.
    pub group: &'static str,
    /// The word in `kind:`.
    pub kind: &'static str,
    /// The word in the paths of an API server.
    pub plural: &'static str,
}

const fn kind(group: &'static str, kind: &'static str, plural: &'static str) -> Stranger {
    Stranger {
        group,
        kind,
        plural,
    }
}

const TELEMETRY: &str = "telemetry.istio.io";
const EXTENSIONS: &str = "extensions.istio.io";
const EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";

/// All of them.
pub const STRANGERS: &[Stranger] = &[
    kind(ISTIO_NETWORKING, "EnvoyFilter", "envoyfilters"),
    kind(ISTIO_NETWORKING, "ProxyConfig", "proxyconfigs"),
    kind(ISTIO_NETWORKING, "Sidecar", "sidecars"),
    kind(ISTIO_NETWORKING, "WorkloadGroup", "workloadgroups"),
    kind(
        ISTIO_SECURITY,
        "RequestAuthentication",
        "requestauthentications",
    ),
    kind(TELEMETRY, "Telemetry", "telemetries"),
    kind(EXTENSIONS, "WasmPlugin", "wasmplugins"),
    kind(EXTENSIONS, "TrafficExtension", "trafficextensions"),
    kind(GATEWAY_GROUP, "BackendTLSPolicy", "backendtlspolicies"),
    kind(GATEWAY_GROUP, "ListenerSet", "listenersets"),
    kind(GATEWAY_GROUP, "UDPRoute", "udproutes"),
    kind(EXPERIMENTAL, "XBackend", "xbackends"),
    kind(
        EXPERIMENTAL,
        "XBackendTrafficPolicy",
        "xbackendtrafficpolicies",
    ),
    kind(EXPERIMENTAL, "XListenerSet", "xlistenersets"),
    kind(EXPERIMENTAL, "XMesh", "xmeshes"),
];

impl Stranger {
    /// The one of a group.
    #[must_use]
    pub fn find(group: &str, kind: &str) -> Option<Self> {
        let mut all = STRANGERS.iter().copied();
        all.find(|one| one.group == group && one.kind == kind)
    }

    /// An object of this kind; `namespace` is empty for cluster-wide ones.
    #[must_use]
    pub fn object(self, namespace: &str, name: &str) -> ObjectRef {
        ObjectRef {
            group: self.group.into(),
            kind: self.kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// What there is to say about each object of this kind.
    #[must_use]
    pub fn finding(self) -> Finding {
        Finding::new(
            Severity::Unsupported,
            "kind",
            format!(
                "not supported yet: kind {} of {}; it has no effect",
                self.kind, self.group
            ),
        )
    }
}
