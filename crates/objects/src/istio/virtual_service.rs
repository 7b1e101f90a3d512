use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration;

/// How requests and connections to a host are routed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualServiceSpec {
    /// Hosts the rules apply to; short names resolve in the object's namespace.
    pub hosts: Vec<String>,
    /// Where the rules apply; empty or `mesh` means the mesh itself.
    pub gateways: Vec<String>,
    /// Namespaces that may see it: `.`, `*` or names; empty means all.
    pub export_to: Vec<String>,
    /// HTTP rules; the first that matches wins.
    pub http: Vec<HttpRoute>,
    /// Rules for TLS that is not terminated, by server name.
    pub tls: Vec<TlsRoute>,
    /// Rules for opaque TCP.
    pub tcp: Vec<TcpRoute>,
}

impl VirtualServiceSpec {
    /// True if the rules apply inside the mesh, not only at gateways.
    #[must_use]
    pub fn applies_to_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == "mesh")
    }
}

/// One HTTP rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// Name for logs.
    pub name: String,
    /// One must match; empty matches every request.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
    /// Answer with a redirect.
    pub redirect: Option<HttpRedirect>,
    /// Answer with a fixed status and body.
    pub direct_response: Option<DirectResponse>,
    /// Hand over to another VirtualService.
    pub delegate: Option<Delegate>,
    /// Change path or authority before forwarding.
    pub rewrite: Option<HttpRewrite>,
    /// Deadline of the whole request; none when absent or zero.
    #[serde(with = "duration")]
    pub timeout: Option<Duration>,
    /// When to try again.
    pub retries: Option<HttpRetry>,
    /// Delays and aborts made on purpose.
    pub fault: Option<Fault>,
    /// One shadow destination.
    pub mirror: Option<Destination>,
    /// Several shadow destinations.
    pub mirrors: Vec<Mirror>,
    /// Share of requests shadowed to `mirror`; all when absent.
    pub mirror_percentage: Option<Percent>,
    /// Deprecated integer form of `mirrorPercentage`.
    pub mirror_percent: Option<u32>,
    /// Cross-origin policy.
    pub cors_policy: Option<Cors>,
    /// Header changes for the whole rule.
    pub headers: Option<Headers>,
}

/// All set fields must match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// Name for logs.
    pub name: String,
    /// Path, without the query.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// Request method.
    pub method: Option<StringMatch>,
    /// Host header.
    pub authority: Option<StringMatch>,
    /// Headers that must match; an empty match asks for presence.
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Query parameters that must match.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Compare `uri` exact and prefix without case.
    pub ignore_uri_case: bool,
    /// Destination port; any when absent.
    pub port: Option<u32>,
    /// Labels of the caller's workload.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the caller.
    pub source_namespace: String,
    /// Overrides the rule's gateways.
    pub gateways: Vec<String>,
    /// Name for statistics.
    pub stat_prefix: String,
}

/// One way to match a text; at most one field is set, none asks for presence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StringMatch {
    /// The whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// How the text begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// RE2; the whole text must match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A destination and its share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Relative share; a single destination with 0 gets everything.
    pub weight: i32,
    /// Header changes for this destination.
    pub headers: Option<Headers>,
}

/// A service, or a part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// Host name; a short one resolves in the object's namespace.
    pub host: String,
    /// Subset named by a DestinationRule; empty means the whole service.
    pub subset: String,
    /// Port of the service; the request's own when absent.
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    /// Port number.
    pub number: u32,
}

/// Another VirtualService that continues a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; the object's own when empty.
    pub namespace: String,
}

/// A redirect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRedirect {
    /// New path; unchanged when empty.
    pub uri: String,
    /// New host; unchanged when empty.
    pub authority: String,
    /// New scheme; unchanged when empty.
    pub scheme: String,
    /// New port.
    pub port: Option<u32>,
    /// `FROM_PROTOCOL_DEFAULT` or `FROM_REQUEST_PORT`.
    pub derive_port: Option<String>,
    /// Replacement of the matched prefix.
    pub prefix_rewrite: String,
    /// HTTP status; 301 when absent.
    pub redirect_code: Option<u32>,
}

/// A fixed reply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DirectResponse {
    /// HTTP status.
    pub status: u32,
    /// Body; empty when absent.
    pub body: Option<HttpBody>,
}

/// A body as text or base64 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpBody {
    /// Text.
    pub string: Option<String>,
    /// Base64.
    pub bytes: Option<String>,
}

/// A change of the request line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRewrite {
    /// Replaces the path, or the matched prefix.
    pub uri: String,
    /// Replaces the host.
    pub authority: String,
    /// Replaces by pattern.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A substitution in the path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegexRewrite {
    /// RE2 pattern.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Text with `\1` for groups.
    pub rewrite: String,
}

/// Header changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// Of the request.
    pub request: Option<HeaderOperations>,
    /// Of the response.
    pub response: Option<HeaderOperations>,
}

/// Changes of one header block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderOperations {
    /// Replaces values.
    pub set: BTreeMap<String, String>,
    /// Appends values.
    pub add: BTreeMap<String, String>,
    /// Removes headers.
    pub remove: Vec<String>,
}

/// When to try again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRetry {
    /// Extra tries; 0 turns retries off.
    pub attempts: i32,
    /// Deadline of each try.
    #[serde(with = "duration")]
    pub per_try_timeout: Option<Duration>,
    /// Conditions and status codes, separated by commas.
    pub retry_on: String,
    /// Allow other localities.
    pub retry_remote_localities: Option<bool>,
    /// Prefer another host.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base interval between tries.
    #[serde(with = "duration")]
    pub backoff: Option<Duration>,
}

/// Faults made on purpose.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Delay before forwarding.
    pub delay: Option<Delay>,
    /// Answer instead of forwarding.
    pub abort: Option<Abort>,
}

/// A delay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delay {
    /// Share delayed; none when absent, as Istio has it.
    pub percentage: Option<Percent>,
    /// Deprecated integer form of `percentage`.
    pub percent: Option<i32>,
    /// How long.
    #[serde(with = "duration")]
    pub fixed_delay: Option<Duration>,
    /// Declared by Istio, never implemented.
    #[serde(with = "duration")]
    pub exponential_delay: Option<Duration>,
}

/// An abort.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Abort {
    /// Share aborted; all when absent, as Istio has it.
    pub percentage: Option<Percent>,
    /// Status to return.
    pub http_status: Option<i32>,
    /// gRPC status to return, by name or number.
    pub grpc_status: Option<String>,
    /// Declared by Istio, never implemented.
    pub http2_error: Option<String>,
}

/// A share, 0 to 100.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Percent {
    /// The share.
    pub value: f64,
}

/// A shadow destination.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// Share; all when absent.
    pub percentage: Option<Percent>,
}

/// Cross-origin policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// Deprecated form of `allowOrigins`.
    pub allow_origin: Vec<String>,
    /// Origins that may call.
    pub allow_origins: Vec<StringMatch>,
    /// Methods they may use.
    pub allow_methods: Vec<String>,
    /// Headers they may send.
    pub allow_headers: Vec<String>,
    /// Headers they may read.
    pub expose_headers: Vec<String>,
    /// How long a preflight holds.
    #[serde(with = "duration")]
    pub max_age: Option<Duration>,
    /// Whether credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// `FORWARD` or `IGNORE`.
    pub unmatched_preflights: Option<String>,
}

/// One rule for TLS that is not terminated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// One must match.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// A match on the server name and the connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatch {
    /// Server names, also `*.suffix`.
    pub sni_hosts: Vec<String>,
    /// Destination networks.
    pub destination_subnets: Vec<String>,
    /// Destination port.
    pub port: Option<u32>,
    /// Labels of the caller's workload.
    pub source_labels: BTreeMap<String, String>,
    /// Overrides the object's gateways.
    pub gateways: Vec<String>,
    /// Namespace of the caller.
    pub source_namespace: String,
}

/// One rule for opaque TCP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// One must match; empty matches every connection.
    #[serde(rename = "match")]
    pub matches: Vec<L4Match>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// A match on the connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4Match {
    /// Destination networks.
    pub destination_subnets: Vec<String>,
    /// Destination port.
    pub port: Option<u32>,
    /// Source network.
    pub source_subnet: String,
    /// Labels of the caller's workload.
    pub source_labels: BTreeMap<String, String>,
    /// Overrides the object's gateways.
    pub gateways: Vec<String>,
    /// Namespace of the caller.
    pub source_namespace: String,
}
