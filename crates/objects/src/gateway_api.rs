//! Gateway API: Gateway, GatewayClass, routes and grants, field by field.

mod binding;
mod external_auth;
mod route;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::istio::Resource;

pub use binding::InboundBinding;
pub use external_auth::{ExternalAuthFilter, ForwardBody, GrpcAuth, HttpAuth};
pub use route::{
    BackendRef, CorsFilter, ExtensionRef, Fraction, GrantFrom, GrantTo, GrpcMethodMatch, GrpcRoute,
    GrpcRouteMatch, GrpcRouteRule, GrpcRouteSpec, HeaderModifier, HttpRoute, HttpRouteMatch,
    HttpRouteRule, HttpRouteSpec, MatchKind, NamedMatch, NamedValue, ParentReference, PathMatch,
    PathMatchKind, PathModifier, ReferenceGrant, ReferenceGrantSpec, RequestMirror,
    RequestRedirect, RouteFilter, RouteRetry, RouteTimeouts, SessionCookie, SessionLifetime,
    SessionPersistence, SessionType, TcpRoute, TcpRouteRule, TcpRouteSpec, TlsRoute, TlsRouteSpec,
    UrlRewrite,
};

/// `gateway.networking.k8s.io` Gateway; a waypoint is one.
pub type Gateway = Resource<GatewaySpec>;
/// `gateway.networking.k8s.io` GatewayClass.
pub type GatewayClass = Resource<GatewayClassSpec>;

/// Who runs the gateways of a class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    /// Name of the controller.
    pub controller_name: String,
    /// Settings of the controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<ParametersReference>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// An object with settings of the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParametersReference {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A gateway that somebody wants.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Class, for example `isobar-waypoint`.
    pub gateway_class_name: String,
    /// Ports it listens on.
    pub listeners: Vec<Listener>,
    /// Addresses asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<GatewayAddress>,
    /// What its deployment should carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Infrastructure>,
    /// Which ListenerSets may attach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_listeners: Option<Value>,
    /// TLS of the gateway itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Value>,
    /// Whether it is the default gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_scope: Option<String>,
}

/// One port of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// Unique name.
    pub name: String,
    /// Host name it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Port number.
    pub port: i32,
    /// `HBONE` on a waypoint; else `HTTP`, `HTTPS`, `TLS`, `TCP`.
    pub protocol: String,
    /// TLS of the listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Value>,
    /// Who may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// A certificate that a listener shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateRef {
    /// API group; that of Secrets when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind; `Secret` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; the Gateway's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl CertificateRef {
    /// True if it names a Secret.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        let group = self.group.as_deref().unwrap_or_default();
        group.is_empty() && self.kind.as_deref().is_none_or(|kind| kind == "Secret")
    }
}

impl Listener {
    /// Certificates that it names, where these can be read.
    #[must_use]
    pub fn certificate_refs(&self) -> Vec<CertificateRef> {
        let tls = self.tls.as_ref().and_then(|tls| tls.get("certificateRefs"));
        let refs = tls.cloned().map(serde_json::from_value);
        refs.and_then(Result::ok).unwrap_or_default()
    }
}

/// Who may use a listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    /// From which namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    /// Which kinds of routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<RouteKind>,
}

/// From which namespaces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteNamespaces {
    /// `Same` when absent.
    pub from: FromNamespaces,
    /// For `Selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// From which namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNamespaces {
    /// All.
    All,
    /// Those that a label selector takes.
    Selector,
    /// The gateway's own.
    #[default]
    Same,
    /// None.
    None,
}

/// A kind of route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteKind {
    /// API group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind.
    pub kind: String,
}

/// An address of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayAddress {
    /// `IPAddress` or `Hostname`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What a gateway's deployment should carry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// Labels of everything made for it.
    pub labels: BTreeMap<String, String>,
    /// Annotations of everything made for it.
    pub annotations: BTreeMap<String, String>,
    /// Settings of the controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<ParametersReference>,
}

/// What the controller says about a gateway; build it, then write it with `patch_status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatus {
    /// Where it is reached.
    pub addresses: Vec<GatewayAddress>,
    /// Accepted, Programmed and so on.
    pub conditions: Vec<Condition>,
    /// Per listener.
    pub listeners: Vec<ListenerStatus>,
}

/// What the controller says about a listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Kinds of routes it takes.
    pub supported_kinds: Vec<RouteKind>,
    /// Routes attached.
    pub attached_routes: i32,
    /// Accepted, Programmed and so on.
    pub conditions: Vec<Condition>,
}

impl Gateway {
    /// The status as last written, if it has the usual shape.
    #[must_use]
    pub fn gateway_status(&self) -> Option<GatewayStatus> {
        GatewayStatus::deserialize(self.status.as_ref()?).ok()
    }

    /// True if condition `Programmed` is `True`.
    #[must_use]
    pub fn is_programmed(&self) -> bool {
        self.gateway_status().is_some_and(|status| {
            status
                .conditions
                .iter()
                .any(|c| c.type_ == "Programmed" && c.status == "True")
        })
    }
}
