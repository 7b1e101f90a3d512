use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Percent, PortSelector};
use crate::duration;

/// Balancing, connections and TLS towards endpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits on connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is taken out.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoint.
    pub tls: Option<TlsSettings>,
    /// Overrides per port; whole blocks are replaced.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// CONNECT or POST tunnel for TCP.
    pub tunnel: Option<Tunnel>,
    /// PROXY protocol towards the endpoint.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Cap on retries in flight.
    pub retry_budget: Option<RetryBudget>,
}

/// Overrides for one port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The port.
    pub port: Option<PortSelector>,
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits on connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is taken out.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoint.
    pub tls: Option<TlsSettings>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// One of the plain algorithms.
    pub simple: Option<SimpleBalancer>,
    /// By a hash of the request.
    pub consistent_hash: Option<ConsistentHash>,
    /// Preference by locality.
    pub locality_lb_setting: Option<LocalitySetting>,
    /// Even spread with zone preference.
    pub zone_aware_lb_setting: Option<ZoneAwareSetting>,
    /// Deprecated form of `warmup.duration`.
    #[serde(with = "duration")]
    pub warmup_duration_secs: Option<Duration>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
}

/// The plain algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleBalancer {
    /// The mesh's default.
    Unspecified,
    /// Deprecated name of least request.
    LeastConn,
    /// Any.
    Random,
    /// The address the caller asked for.
    Passthrough,
    /// One after the other.
    RoundRobin,
    /// Fewest requests in flight.
    LeastRequest,
}

/// By a hash of the request; one source is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// Of a header.
    pub http_header_name: Option<String>,
    /// Of a cookie.
    pub http_cookie: Option<HttpCookie>,
    /// Of the caller's address.
    pub use_source_ip: Option<bool>,
    /// Of a query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Ketama ring.
    pub ring_hash: Option<RingSize>,
    /// Maglev table.
    pub maglev: Option<TableSize>,
    /// Deprecated form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: Option<u64>,
}

/// A cookie to hash.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpCookie {
    /// Name.
    pub name: String,
    /// Path of a cookie the proxy makes.
    pub path: String,
    /// Life of a cookie the proxy makes; 0 is a session cookie.
    #[serde(with = "duration")]
    pub ttl: Option<Duration>,
    /// More attributes.
    pub attributes: Vec<CookieAttribute>,
}

/// An attribute of a cookie that the proxy makes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieAttribute {
    /// Attribute name.
    pub name: String,
    /// Attribute value.
    pub value: String,
}

/// Ketama ring.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingSize {
    /// Least number of points.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TableSize {
    /// Prime number of slots.
    pub table_size: Option<u64>,
}

/// Preference by locality.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalitySetting {
    /// Weights from one locality to others.
    pub distribute: Vec<LocalityDistribute>,
    /// Where to when a region fails.
    pub failover: Vec<LocalityFailover>,
    /// Labels to compare, in order.
    pub failover_priority: Vec<String>,
    /// Turns it on or off.
    pub enabled: Option<bool>,
}

/// Weights from one locality.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityDistribute {
    /// `region/zone/subzone` of the caller.
    pub from: String,
    /// Percentages by locality; their sum is 100.
    pub to: BTreeMap<String, u32>,
}

/// Where to when a region fails.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityFailover {
    /// Region of the caller.
    pub from: String,
    /// Region to go to.
    pub to: String,
}

/// Even spread with zone preference.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneAwareSetting {
    /// Turns it on or off.
    pub enabled: Option<bool>,
    /// Where to when a region fails.
    pub failover: Vec<LocalityFailover>,
    /// Labels to compare, in order.
    pub failover_priority: Vec<String>,
    /// Endpoints below which zones are ignored.
    pub min_cluster_size: Option<u32>,
}

/// Slow start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Warmup {
    /// How long.
    #[serde(with = "duration")]
    pub duration: Option<Duration>,
    /// Share at the start.
    pub minimum_percent: Option<f64>,
    /// Shape of the curve.
    pub aggression: Option<f64>,
}

/// Limits on connections and requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPool {
    /// Of any protocol.
    pub tcp: Option<TcpPool>,
    /// Of HTTP.
    pub http: Option<HttpPool>,
}

/// Limits of any protocol.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpPool {
    /// Connections to the host.
    pub max_connections: Option<i32>,
    /// Deadline of a connect.
    #[serde(with = "duration")]
    pub connect_timeout: Option<Duration>,
    /// Socket keepalive.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Life of a connection.
    #[serde(with = "duration")]
    pub max_connection_duration: Option<Duration>,
    /// Close after so long without bytes.
    #[serde(with = "duration")]
    pub idle_timeout: Option<Duration>,
}

/// Socket keepalive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Idle time before the first.
    #[serde(with = "duration")]
    pub time: Option<Duration>,
    /// Time between two.
    #[serde(with = "duration")]
    pub interval: Option<Duration>,
}

/// Limits of HTTP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpPool {
    /// Requests waiting for a connection.
    pub http1_max_pending_requests: Option<i32>,
    /// Requests in flight.
    pub http2_max_requests: Option<i32>,
    /// Requests before a connection is renewed.
    pub max_requests_per_connection: Option<i32>,
    /// Retries in flight.
    pub max_retries: Option<i32>,
    /// Close after so long without requests.
    #[serde(with = "duration")]
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 becomes HTTP/2 upstream.
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Same protocol upstream as downstream.
    pub use_client_protocol: Option<bool>,
    /// Streams of one connection.
    pub max_concurrent_streams: Option<i32>,
    /// HTTP/2 PING.
    pub http2_keep_alive: Option<HttpKeepAlive>,
}

/// Whether HTTP/1.1 becomes HTTP/2 upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// The mesh's default.
    Default,
    /// Never.
    DoNotUpgrade,
    /// Always.
    Upgrade,
}

/// HTTP/2 PING.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpKeepAlive {
    /// Time between two.
    #[serde(with = "duration")]
    pub interval: Option<Duration>,
    /// Deadline of the answer.
    #[serde(with = "duration")]
    pub timeout: Option<Duration>,
}

/// When an endpoint is taken out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Deprecated form of `consecutive5xxErrors`.
    pub consecutive_errors: Option<i32>,
    /// Count local failures apart.
    pub split_external_local_origin_errors: Option<bool>,
    /// Local failures in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// 502, 503 or 504 in a row.
    pub consecutive_gateway_errors: Option<u32>,
    /// 5xx in a row.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Time between two looks.
    #[serde(with = "duration")]
    pub interval: Option<Duration>,
    /// How long out, times the count.
    #[serde(with = "duration")]
    pub base_ejection_time: Option<Duration>,
    /// Share that may be out.
    pub max_ejection_percent: Option<i32>,
    /// Below this share of healthy endpoints nothing is out.
    pub min_health_percent: Option<i32>,
    /// Status codes that count.
    pub outlier_detection_http_error_codes: Vec<serde_json::Value>,
}

/// TLS towards the endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsSettings {
    /// How.
    pub mode: Option<TlsMode>,
    /// Path of the own certificate.
    pub client_certificate: String,
    /// Path of the own key.
    pub private_key: String,
    /// Path of the roots.
    pub ca_certificates: String,
    /// Secret with certificate, key and roots.
    pub credential_name: String,
    /// Names accepted of the server.
    pub subject_alt_names: Vec<String>,
    /// Server name to send.
    pub sni: String,
    /// Do not verify.
    pub insecure_skip_verify: Option<bool>,
    /// Path of a revocation list.
    pub ca_crl: String,
}

/// Kinds of TLS towards the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// None.
    Disable,
    /// Server is verified.
    Simple,
    /// Both are verified, with given certificates.
    Mutual,
    /// Both are verified, with the mesh's certificates.
    IstioMutual,
}

/// CONNECT or POST tunnel for TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tunnel {
    /// `CONNECT` or `POST`.
    pub protocol: String,
    /// Host to ask for.
    pub target_host: String,
    /// Port to ask for.
    pub target_port: u32,
}

/// PROXY protocol towards the endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyProtocol {
    /// `V1` or `V2`.
    pub version: String,
}

/// Cap on retries in flight.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Share of active requests that may be retries.
    pub percent: Option<Percent>,
    /// Retries allowed whatever the share.
    pub min_retry_concurrency: Option<u32>,
    /// Window.
    #[serde(with = "duration")]
    pub budget_interval: Option<Duration>,
}
