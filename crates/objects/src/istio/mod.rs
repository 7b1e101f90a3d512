//! Istio's traffic and security resources, field by field.
//!
//! Every field of Istio's API is here, also those the mesh does not honour yet, so that a field
//! that is known and not supported can be told from one that does not exist. Field meanings are
//! those of Istio's API reference; comments name only what matters to us.

mod authorization_policy;
mod destination_rule;
mod gateway;
mod peer_authentication;
mod service_entry;
mod traffic_policy;
mod virtual_service;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

pub use authorization_policy::{
    Action, AuthorizationPolicySpec, Condition, ExtensionProvider, From, Operation, Rule, Source,
    TargetReference, To,
};
pub use destination_rule::{DestinationRuleSpec, Subset};
pub use gateway::{GatewaySpec, Server, ServerPort, ServerTls, ServerTlsMode, TlsVersion};
pub use peer_authentication::{MutualTls, MutualTlsMode, PeerAuthenticationSpec};
pub use service_entry::{
    EntryPort, LabelsSelector, Location, Resolution, ServiceEntrySpec, WorkloadEntrySpec,
};
pub use traffic_policy::{
    ConnectionPool, ConsistentHash, CookieAttribute, H2UpgradePolicy, HttpCookie, HttpKeepAlive,
    HttpPool, LoadBalancer, LocalityDistribute, LocalityFailover, LocalitySetting,
    OutlierDetection, PortTrafficPolicy, ProxyProtocol, RetryBudget, RingSize, SimpleBalancer,
    TableSize, TcpKeepalive, TcpPool, TlsMode, TlsSettings, TrafficPolicy, Tunnel, Warmup,
    ZoneAwareSetting,
};
pub use virtual_service::{
    Abort, Cors, Delay, Delegate, Destination, DirectResponse, Fault, HeaderOperations, Headers,
    HttpBody, HttpMatch, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, L4Match, Mirror, Percent,
    PortSelector, RegexRewrite, RouteDestination, StringMatch, TcpRoute, TlsMatch, TlsRoute,
    VirtualServiceSpec,
};

/// A resource with the usual head and a `spec` of its own kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource<S> {
    /// Group and version as the user wrote them.
    pub api_version: String,
    /// Kind as the user wrote it.
    pub kind: String,
    /// Name, namespace, labels and the rest of the head.
    pub metadata: ObjectMeta,
    /// What the user asks for.
    pub spec: S,
    /// What controllers say about it; any shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// `networking.istio.io` VirtualService.
pub type VirtualService = Resource<VirtualServiceSpec>;
/// `networking.istio.io` DestinationRule.
pub type DestinationRule = Resource<DestinationRuleSpec>;
/// `networking.istio.io` ServiceEntry.
pub type ServiceEntry = Resource<ServiceEntrySpec>;
/// `networking.istio.io` WorkloadEntry.
pub type WorkloadEntry = Resource<WorkloadEntrySpec>;
/// `networking.istio.io` Gateway; the name is taken by the Gateway API's.
pub type IstioGateway = Resource<GatewaySpec>;
/// `security.istio.io` AuthorizationPolicy.
pub type AuthorizationPolicy = Resource<AuthorizationPolicySpec>;
/// `security.istio.io` PeerAuthentication.
pub type PeerAuthentication = Resource<PeerAuthenticationSpec>;

/// Istio's workload selector: equality on labels only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// All must be present with these values; empty selects every workload.
    pub match_labels: BTreeMap<String, String>,
}

impl WorkloadSelector {
    /// True if every label of the selector is among `labels`.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }
}
