use std::fmt;

use isobar_types::Str;

use crate::strangers::{STRANGERS, Stranger};

/// Kinds of objects the mesh reads and uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Core.
    Namespace,
    /// Core.
    Node,
    /// Core.
    ServiceAccount,
    /// Core.
    Pod,
    /// `apps`.
    Deployment,
    /// Core.
    Service,
    /// `discovery.k8s.io`; only those that no controller makes from a selector.
    EndpointSlice,
    /// `networking.k8s.io`.
    NetworkPolicy,
    /// `networking.istio.io`.
    VirtualService,
    /// `networking.istio.io`.
    DestinationRule,
    /// `networking.istio.io`.
    ServiceEntry,
    /// `networking.istio.io`.
    WorkloadEntry,
    /// `gateway.networking.k8s.io`.
    Gateway,
    /// `gateway.networking.k8s.io`.
    GatewayClass,
    /// `gateway.networking.k8s.io`.
    HttpRoute,
    /// `gateway.networking.k8s.io`.
    GrpcRoute,
    /// `gateway.networking.k8s.io`.
    TcpRoute,
    /// `gateway.networking.k8s.io`.
    TlsRoute,
    /// `gateway.networking.k8s.io`.
    ReferenceGrant,
    /// `security.istio.io`.
    PeerAuthentication,
    /// `security.istio.io`.
    AuthorizationPolicy,
    /// `isobar.dev`.
    RateLimitPolicy,
    /// `networking.istio.io`; another than the Gateway API's.
    IstioGateway,
    /// Core; only those that gateways name are used.
    Secret,
    /// Core; only the one that holds the mesh's settings is used.
    ConfigMap,
}

pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
pub(crate) const ISTIO_NETWORKING: &str = "networking.istio.io";
pub(crate) const ISTIO_SECURITY: &str = "security.istio.io";
/// Resources of our own.
pub(crate) const ISOBAR: &str = "isobar.dev";

impl Kind {
    /// Every kind, in the order in which a reader wants them: what others refer to comes first.
    pub const ALL: &'static [Self] = &[
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::Pod,
        Self::Deployment,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::NetworkPolicy,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Gateway,
        Self::GatewayClass,
        Self::ReferenceGrant,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::RateLimitPolicy,
        Self::Secret,
        Self::ConfigMap,
        Self::IstioGateway,
    ];

    /// The word in `kind:`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Gateway | Self::IstioGateway => "Gateway",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::GatewayClass => "GatewayClass",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RateLimitPolicy => "RateLimitPolicy",
        }
    }

    /// API group; empty for the core group.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace
            | Self::Node
            | Self::ServiceAccount
            | Self::Pod
            | Self::Service
            | Self::ConfigMap
            | Self::Secret => "",
            Self::Deployment => "apps",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::NetworkPolicy => "networking.k8s.io",
            Self::VirtualService
            | Self::DestinationRule
            | Self::ServiceEntry
            | Self::WorkloadEntry
            | Self::IstioGateway => ISTIO_NETWORKING,
            Self::Gateway
            | Self::GatewayClass
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::TcpRoute
            | Self::TlsRoute
            | Self::ReferenceGrant => GATEWAY_GROUP,
            Self::PeerAuthentication | Self::AuthorizationPolicy => ISTIO_SECURITY,
            Self::RateLimitPolicy => ISOBAR,
        }
    }

    /// Versions that are read, the preferred one first.
    #[must_use]
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::VirtualService
            | Self::DestinationRule
            | Self::ServiceEntry
            | Self::WorkloadEntry
            | Self::IstioGateway => &["v1", "v1beta1", "v1alpha3"],
            Self::Gateway
            | Self::GatewayClass
            | Self::HttpRoute
            | Self::PeerAuthentication
            | Self::AuthorizationPolicy => &["v1", "v1beta1"],
            Self::GrpcRoute => &["v1", "v1alpha2"],
            Self::TcpRoute => &["v1alpha2", "v1"],
            Self::TlsRoute => &["v1", "v1alpha3", "v1alpha2"],
            Self::ReferenceGrant => &["v1beta1", "v1", "v1alpha2"],
            _ => &["v1"],
        }
    }

    /// `apiVersion` that is written.
    #[must_use]
    pub fn api_version(self) -> String {
        join_api_version(self.group(), self.versions()[0])
    }

    /// The word in the paths of an API server.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::ServiceAccount => "serviceaccounts",
            Self::Pod => "pods",
            Self::Deployment => "deployments",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::NetworkPolicy => "networkpolicies",
            Self::VirtualService => "virtualservices",
            Self::DestinationRule => "destinationrules",
            Self::ServiceEntry => "serviceentries",
            Self::WorkloadEntry => "workloadentries",
            Self::Gateway | Self::IstioGateway => "gateways",
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
            Self::GatewayClass => "gatewayclasses",
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::TcpRoute => "tcproutes",
            Self::TlsRoute => "tlsroutes",
            Self::ReferenceGrant => "referencegrants",
            Self::PeerAuthentication => "peerauthentications",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::RateLimitPolicy => "ratelimitpolicies",
        }
    }

    /// True for kinds that an API server only knows by a CustomResourceDefinition.
    #[must_use]
    pub const fn is_custom(self) -> bool {
        !matches!(
            self,
            Self::Namespace
                | Self::Node
                | Self::ServiceAccount
                | Self::Pod
                | Self::Deployment
                | Self::Service
                | Self::Secret
                | Self::ConfigMap
                | Self::EndpointSlice
                | Self::NetworkPolicy
        )
    }

    /// True for kinds that live in a namespace.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }

    /// True for routes of the Gateway API, whose status has a part for each parent.
    #[must_use]
    pub const fn is_route(self) -> bool {
        matches!(
            self,
            Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute | Self::TlsRoute
        )
    }

    /// The kind of a group, whatever the version.
    #[must_use]
    pub fn find(group: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == kind && known.group() == group)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `group/version`, or only the version for the core group.
pub(crate) fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Splits `apiVersion` into group and version.
pub(crate) fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Which object: the identity that overlays, findings and writers go by. May name any kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// API group; empty for the core group.
    pub group: Str,
    /// Kind as written.
    pub kind: Str,
    /// Namespace; empty for cluster-wide kinds.
    pub namespace: Str,
    /// Name.
    pub name: Str,
}

impl ObjectRef {
    /// An object of a kind the mesh uses; `namespace` is dropped for cluster-wide kinds.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            group: kind.group().into(),
            kind: kind.as_str().into(),
            namespace: if kind.is_namespaced() { namespace } else { "" }.into(),
            name: name.into(),
        }
    }

    /// The kind, if the mesh uses it.
    #[must_use]
    pub fn known(&self) -> Option<Kind> {
        Kind::find(&self.group, &self.kind)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// What `apiVersion` and `kind` together mean to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recognised {
    /// A kind the mesh uses.
    Used(Kind),
    /// A kind of the mesh's APIs that is not honoured yet.
    NotYet,
    /// A usual kind that is none of the mesh's business.
    Unused,
    /// Right kind, wrong version or group; the text says which to write.
    WrongVersion(String),
    /// Nothing we have heard of.
    Unknown,
}

/// Kinds that users' YAML often holds and that mean nothing to the mesh.
const UNUSED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
        ],
    ),
    (
        "apps",
        &[
            "ControllerRevision",
            "DaemonSet",
            "ReplicaSet",
            "StatefulSet",
        ],
    ),
    ("batch", &["CronJob", "Job"]),
    ("autoscaling", &["HorizontalPodAutoscaler"]),
    ("policy", &["PodDisruptionBudget"]),
    ("networking.k8s.io", &["Ingress", "IngressClass"]),
    (
        "rbac.authorization.k8s.io",
        &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"],
    ),
    ("storage.k8s.io", &["CSIDriver", "StorageClass"]),
    ("scheduling.k8s.io", &["PriorityClass"]),
    ("coordination.k8s.io", &["Lease"]),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"]),
    ("apiregistration.k8s.io", &["APIService"]),
    (
        "admissionregistration.k8s.io",
        &[
            "MutatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingWebhookConfiguration",
        ],
    ),
    ("monitoring.coreos.com", &["PodMonitor", "ServiceMonitor"]),
    (
        "cert-manager.io",
        &["Certificate", "ClusterIssuer", "Issuer"],
    ),
];

pub(crate) fn recognise(api_version: &str, kind: &str) -> Recognised {
    let (group, version) = split_api_version(api_version);
    if let Some(known) = Kind::find(group, kind) {
        return if known.versions().contains(&version) {
            Recognised::Used(known)
        } else {
            Recognised::WrongVersion(known.api_version())
        };
    }
    let listed = |table: &[(&str, &[&str])]| {
        table
            .iter()
            .any(|(of, kinds)| *of == group && kinds.contains(&kind))
    };
    if Stranger::find(group, kind).is_some() {
        Recognised::NotYet
    } else if listed(UNUSED) {
        Recognised::Unused
    } else if let Some(known) = Kind::ALL.iter().find(|known| known.as_str() == kind) {
        Recognised::WrongVersion(known.api_version())
    } else {
        Recognised::Unknown
    }
}

/// Words for `kind:` that would have been understood, for suggestions.
pub(crate) fn known_words() -> impl Iterator<Item = &'static str> {
    Kind::ALL
        .iter()
        .map(|kind| kind.as_str())
        .chain(STRANGERS.iter().map(|one| one.kind))
        .chain(UNUSED.iter().flat_map(|(_, kinds)| kinds.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_recognised_by_group_and_version() {
        let is = |api: &str, kind: &str| recognise(api, kind);
        assert_eq!(is("v1", "Pod"), Recognised::Used(Kind::Pod));
        for version in ["v1", "v1beta1", "v1alpha3"] {
            assert_eq!(
                is(&format!("networking.istio.io/{version}"), "VirtualService"),
                Recognised::Used(Kind::VirtualService)
            );
        }
        assert_eq!(
            is("gateway.networking.k8s.io/v1", "Gateway"),
            Recognised::Used(Kind::Gateway)
        );
        assert_eq!(
            is("networking.istio.io/v1", "Gateway"),
            Recognised::Used(Kind::IstioGateway)
        );
        assert_eq!(is("networking.istio.io/v1", "Sidecar"), Recognised::NotYet);
        assert_eq!(is("v1", "LimitRange"), Recognised::Unused);
        assert_eq!(
            is("extensions/v1beta1", "Deployment"),
            Recognised::WrongVersion("apps/v1".into())
        );
        assert_eq!(is("v1", "Pot"), Recognised::Unknown);
    }
}
