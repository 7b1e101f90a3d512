//! The sections of the configuration and how each is read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use isobar_telemetry::logging::LogFormat;
use isobar_types::ports;
use serde::Serialize;

use super::ConfigError;
use super::environment::Environment;
use super::proxy_config::ProxyConfig;
use super::value;

/// A server of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// `https://host:port`.
    pub address: String,
    /// Roots its certificate must chain to.
    pub roots: RootSource,
    /// Another name its certificate may carry.
    pub alt_hostname: Option<String>,
    /// More request headers; their values are not shown.
    #[serde(skip)]
    pub headers: Vec<(String, String)>,
}

/// Where trusted roots are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RootSource {
    /// A PEM file, read again on each connect.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// Those that the operating system trusts.
    System,
}

/// What TLS offers and accepts besides the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// TLS 1.2 as well (`TLS12_ENABLED`).
    pub tls12: bool,
    /// X25519MLKEM768 only (`COMPLIANCE_POLICY=pqc`).
    pub post_quantum_only: bool,
}

/// Where the bearer token is.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenSource {
    /// A file, read again for each call.
    File(PathBuf),
    /// The token itself; not shown.
    Literal(#[serde(skip)] String),
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

/// Port numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Captured outbound.
    pub outbound: u16,
    /// Captured inbound plaintext.
    pub inbound_plaintext: u16,
    /// HBONE.
    pub inbound: u16,
    /// Admin, loopback.
    pub admin: u16,
    /// Metrics.
    pub metrics: u16,
    /// Readiness.
    pub readiness: u16,
    /// SOCKS5 on the pods' loopback; `None` when off.
    pub socks5: Option<u16>,
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// Idle time before the first probe.
    #[serde(with = "value::seconds")]
    pub time: Duration,
    /// Time between probes.
    #[serde(with = "value::seconds")]
    pub interval: Duration,
    /// Probes without an answer until the connection is dead.
    pub retries: u32,
    /// Whether `TCP_USER_TIMEOUT` is set to the sum of the above.
    pub user_timeout: bool,
}

/// HTTP/2 parameters of HBONE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2 {
    /// Receive window of a stream, bytes.
    pub stream_window: u32,
    /// Receive window of a connection, bytes.
    pub connection_window: u32,
    /// Largest frame accepted, bytes.
    pub frame_size: u32,
    /// Streams opened on one pooled connection.
    pub pool_streams: u16,
    /// How long an unused pooled connection is kept.
    #[serde(with = "value::seconds")]
    pub pool_release: Duration,
}

/// DNS proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Address in each pod; loopback means both families.
    pub listen: SocketAddr,
    /// Suffix of service names.
    pub domain: String,
    /// Namespace preferred when several own a name.
    pub preferred_namespace: Option<String>,
}

/// Log format and levels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Logging {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// `RUST_LOG`.
    pub filter: String,
    /// Authorization decisions at info instead of debug.
    pub decisions_at_info: bool,
    /// Lines a second; 0 for no limit. More are dropped and counted.
    pub lines_per_second: u32,
}

impl Logging {
    /// The form telemetry wants.
    #[must_use]
    pub const fn format(&self) -> LogFormat {
        if self.json {
            LogFormat::Json
        } else {
            LogFormat::Text
        }
    }

    pub(super) fn read(env: &Environment) -> Result<Self, ConfigError> {
        Ok(Self {
            json: env.get("LOG_FORMAT") == Some("json"),
            filter: env.get("RUST_LOG").unwrap_or("info").to_owned(),
            decisions_at_info: env.get("AUTHZ_POLICY_INFO_LOGGING") == Some("true"),
            lines_per_second: env.number("ISOBAR_LOG_LINES_PER_SECOND", 1000)?,
        })
    }
}

impl Ports {
    pub(super) fn read(env: &Environment, proxy: &ProxyConfig) -> Result<Self, ConfigError> {
        let socks5 = env.flag("UNSTABLE_ENABLE_SOCKS5", false)?;
        Ok(Self {
            outbound: ports::OUTBOUND,
            inbound_plaintext: ports::INBOUND_PLAINTEXT,
            inbound: ports::HBONE,
            admin: proxy.proxy_admin_port.unwrap_or(ports::ADMIN),
            metrics: proxy.stats_port.unwrap_or(ports::METRICS),
            readiness: ports::READINESS,
            socks5: socks5.then_some(ports::SOCKS5),
        })
    }

    /// Ports no connection may be sent to: they belong to the proxy itself.
    #[must_use]
    pub fn is_reserved(&self, port: u16) -> bool {
        ports::is_reserved(port) || self.socks5 == Some(port)
    }
}

impl Keepalive {
    pub(super) fn read(env: &Environment) -> Result<Option<Self>, ConfigError> {
        if !env.flag("KEEPALIVE_ENABLED", true)? {
            return Ok(None);
        }
        Ok(Some(Self {
            time: env.duration("KEEPALIVE_TIME", Duration::from_secs(180))?,
            interval: env.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180))?,
            retries: env.number("KEEPALIVE_RETRIES", 9)?,
            user_timeout: env.flag("USER_TIMEOUT_ENABLED", false)?,
        }))
    }
}

impl Http2 {
    pub(super) fn read(env: &Environment) -> Result<Self, ConfigError> {
        Ok(Self {
            stream_window: env.number("HTTP2_STREAM_WINDOW_SIZE", 4 * 1024 * 1024)?,
            connection_window: env.number("HTTP2_CONNECTION_WINDOW_SIZE", 16 * 1024 * 1024)?,
            frame_size: env.number("HTTP2_FRAME_SIZE", 1024 * 1024)?,
            pool_streams: env.number("POOL_MAX_STREAMS_PER_CONNECTION", 100)?,
            pool_release: env.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300))?,
        })
    }
}

impl Dns {
    pub(super) fn read(
        env: &Environment,
        proxy: &ProxyConfig,
        domain: &str,
    ) -> Result<Option<Self>, ConfigError> {
        let capture = env.metadata("DNS_CAPTURE", proxy);
        if capture.is_some_and(|v| !v.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let text = env.metadata("DNS_PROXY_ADDR", proxy);
        let listen = match text.as_deref() {
            None => (Ipv4Addr::LOCALHOST, ports::DNS).into(),
            Some(text) => parse_dns_address(text).ok_or_else(|| {
                ConfigError::value("DNS_PROXY_ADDR", text, "expected localhost:PORT or IP:PORT")
            })?,
        };
        Ok(Some(Self {
            listen,
            domain: domain.to_owned(),
            preferred_namespace: env.owned("PREFERED_SERVICE_NAMESPACE"),
        }))
    }
}

fn parse_dns_address(text: &str) -> Option<SocketAddr> {
    if let Some(port) = text.strip_prefix("localhost:") {
        return Some((IpAddr::from(Ipv4Addr::LOCALHOST), port.parse().ok()?).into());
    }
    text.parse().ok()
}

impl Upstream {
    /// Reads one of `XDS_*` and `CA_*`; `None` for an empty address.
    pub(super) fn read(
        env: &Environment,
        names: &UpstreamNames,
        default: &str,
        root: &Path,
    ) -> Result<Option<Self>, ConfigError> {
        let address = env.get(names.address).unwrap_or(default);
        if address.is_empty() {
            return Ok(None);
        }
        let roots = match env.get(names.roots) {
            Some("SYSTEM") => RootSource::System,
            Some(text) if text.contains("-----BEGIN") => RootSource::Pem(text.to_owned()),
            Some(path) => RootSource::File(path.into()),
            None => RootSource::File(root.to_owned()),
        };
        Ok(Some(Self {
            address: with_scheme(names.address, address)?,
            roots,
            alt_hostname: env.owned(names.alt_hostname),
            headers: env.with_prefix(names.headers)?,
        }))
    }
}

/// Names of the variables of one [`Upstream`].
pub(super) struct UpstreamNames {
    pub(super) address: &'static str,
    pub(super) roots: &'static str,
    pub(super) alt_hostname: &'static str,
    pub(super) headers: &'static str,
}

fn with_scheme(variable: &str, address: &str) -> Result<String, ConfigError> {
    if address.starts_with("https://") {
        return Ok(address.to_owned());
    }
    if address.contains("://") {
        let expected = "expected host:port or https://host:port; the control plane is TLS only";
        return Err(ConfigError::value(variable, address, expected));
    }
    Ok(format!("https://{address}"))
}
