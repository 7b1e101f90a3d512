use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use isobar_types::{CLUSTER_DOMAIN, DEFAULT_CLUSTER_ID, DEFAULT_TRUST_DOMAIN, ports};

use super::proxy_config::{MESH_FILE, ProxyConfig};
use super::section::{
    Dns, Http2, Keepalive, Logging, Ports, Tls, TokenSource, Upstream, UpstreamNames,
};
use super::value;
use super::{Config, ConfigError, Mode};
use crate::local::LocalMesh;

const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const ZDS_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
const META: &str = "ISTIO_META_";
const META_JSON: &str = "ISTIO_METAJSON_";

const ON_DEMAND: &str = "XDS_ON_DEMAND";

const XDS: UpstreamNames = UpstreamNames {
    address: "XDS_ADDRESS",
    roots: "XDS_ROOT_CA",
    alt_hostname: "ALT_XDS_HOSTNAME",
    headers: "XDS_HEADER_",
};
const CA: UpstreamNames = UpstreamNames {
    address: "CA_ADDRESS",
    roots: "CA_ROOT_CA",
    alt_hostname: "ALT_CA_HOSTNAME",
    headers: "CA_HEADER_",
};

/// Switches of Istio's ztunnel for what this program does not have: each must be off.
const UNSUPPORTED: [(&str, &str); 1] = [("FAKE_CA", "the self-signed test authority")];

/// Environment variables of a process, as values.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    cores: usize,
}

impl Environment {
    /// The environment of this process. Variables that are not Unicode are left out.
    #[must_use]
    pub fn of_process() -> Self {
        Self::new(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
            isobar_runtime::worker_threads(None),
        )
    }

    /// Given variables, on a machine with `cores` cores.
    pub fn new<K: Into<String>, V: Into<String>>(
        variables: impl IntoIterator<Item = (K, V)>,
        cores: usize,
    ) -> Self {
        let variables = variables
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        Self { variables, cores }
    }

    /// Reads the whole configuration.
    ///
    /// # Errors
    /// At the first setting that cannot be used; the text names it.
    pub fn parse(&self) -> Result<Config, ConfigError> {
        self.refuse_unsupported()?;
        let proxy = ProxyConfig::read(Path::new(MESH_FILE), self.get("PROXY_CONFIG"))?;
        let mode = self.mode()?;
        let default_server = match (
            &proxy.discovery_address,
            self.get("KUBERNETES_SERVICE_HOST"),
        ) {
            (Some(address), _) => address.clone(),
            (None, Some(_)) => "https://istiod.istio-system.svc:15012".to_owned(),
            (None, None) => "https://localhost:15012".to_owned(),
        };
        let root = Path::new(ROOT_FILE);
        let xds = Upstream::read(self, &XDS, &default_server, root)?;
        let ca = Upstream::read(self, &CA, &default_server, root)?.ok_or(ConfigError::Missing {
            variable: CA.address,
            why: "without an authority no workload has a certificate",
        })?;
        let domain = self.get("CLUSTER_DOMAIN").unwrap_or(CLUSTER_DOMAIN);
        let shared_mark = (mode == Mode::Shared).then_some(ports::PACKET_MARK);
        let dns = Dns::read(self, &proxy, domain)?;
        let on_demand = self.on_demand(dns.is_some())?;
        if !self.flag("ENABLE_PROXY", true)? {
            return Err(ConfigError::Unsupported {
                variable: "ENABLE_PROXY",
                value: "false".into(),
                feature: "running without the proxy",
            });
        }
        Ok(Config {
            pod_name: self.owned("POD_NAME").unwrap_or_default(),
            pod_namespace: self.owned("POD_NAMESPACE").unwrap_or_default(),
            service_account: self.owned("SERVICE_ACCOUNT").unwrap_or_default(),
            instance_ip: self.number("INSTANCE_IP", IpAddr::from(Ipv4Addr::new(1, 1, 1, 1)))?,
            node_name: self.owned("NODE_NAME"),
            cluster_id: self.cluster_id(&proxy),
            network: self.owned("NETWORK").unwrap_or_default(),
            trust_domain: self
                .owned("TRUST_DOMAIN")
                .unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned()),
            metadata: self.all_metadata(&proxy),
            xds,
            ca,
            token: self.token(),
            secret_ttl: self.duration("SECRET_TTL", Duration::from_secs(24 * 3600))?,
            ports: Ports::read(self, &proxy)?,
            local: self.local_mesh()?,
            zds_socket: self.get("INPOD_UDS").unwrap_or(ZDS_SOCKET).into(),
            packet_mark: self.optional_number("PACKET_MARK")?.or(shared_mark),
            port_reuse: self.flag("INPOD_PORT_REUSE", true)?,
            original_source: self.optional_flag("ENABLE_ORIG_SRC")?,
            require_waypoint: self.flag("ISOBAR_REQUIRE_WAYPOINT", true)?,
            same_node: self.flag("ISOBAR_SAME_NODE", false)?,
            revocation_file: self.owned("CRL_PATH").map(Into::into),
            state_dir: self.owned("ISOBAR_STATE_DIR").map(Into::into),
            ipv6: self.flag("IPV6_ENABLED", true)?,
            keepalive: Keepalive::read(self)?,
            http2: Http2::read(self)?,
            response_baggage: self.flag("ENABLE_RESPONSE_BAGGAGE", true)?,
            drain: self.drain()?,
            worker_threads: self.worker_threads(proxy.concurrency)?,
            dns,
            on_demand,
            tls: self.tls()?,
            logging: Logging::read(self)?,
            localhost_app_tunnel: self.flag("LOCALHOST_APP_TUNNEL", true)?,
            mode,
        })
    }

    /// The value of a variable; an empty one counts.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The value of a variable that is not empty.
    pub(super) fn owned(&self, name: &str) -> Option<String> {
        self.get(name).filter(|v| !v.is_empty()).map(str::to_owned)
    }

    pub(super) fn optional_flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(ConfigError::value(name, other, "expected true or false")),
        }
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.optional_flag(name)?.unwrap_or(default))
    }

    pub(super) fn optional_number<T: FromStr>(&self, name: &str) -> Result<Option<T>, ConfigError>
    where
        T::Err: std::fmt::Display,
    {
        let Some(text) = self.owned(name) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|error: T::Err| ConfigError::value(name, &text, error.to_string()))
    }

    pub(super) fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, ConfigError>
    where
        T::Err: std::fmt::Display,
    {
        Ok(self.optional_number(name)?.unwrap_or(default))
    }

    pub(super) fn duration(&self, name: &str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(text) = self.owned(name) else {
            return Ok(default);
        };
        value::duration(&text).ok_or_else(|| {
            ConfigError::value(
                name,
                &text,
                "expected a duration such as 5m, 1h30m or 100ms",
            )
        })
    }

    /// A metadata entry: `ISTIO_META_NAME`, then `NAME` of the proxy config's metadata, with or
    /// without that prefix, then the plain variable.
    pub(super) fn metadata(&self, name: &str, proxy: &ProxyConfig) -> Option<String> {
        let prefixed = format!("{META}{name}");
        self.owned(&prefixed)
            .or_else(|| proxy.proxy_metadata.get(&prefixed).cloned())
            .or_else(|| proxy.proxy_metadata.get(name).cloned())
            .or_else(|| self.owned(name))
    }

    fn all_metadata(&self, proxy: &ProxyConfig) -> BTreeMap<String, serde_json::Value> {
        let mut all = BTreeMap::new();
        for (key, value) in &proxy.proxy_metadata {
            let key = key.strip_prefix(META).unwrap_or(key);
            all.insert(key.to_owned(), value.as_str().into());
        }
        for (key, value) in &self.variables {
            if let Some(key) = key.strip_prefix(META) {
                all.insert(key.to_owned(), value.as_str().into());
            } else if let Some(key) = key.strip_prefix(META_JSON) {
                match serde_json::from_str(value) {
                    Ok(value) => drop(all.insert(key.to_owned(), value)),
                    Err(error) => {
                        tracing::warn!(variable = %format!("{META_JSON}{key}"), %error, "skipped: not JSON");
                    }
                }
            }
        }
        all
    }

    /// The mesh told by `LOCAL_XDS` or the file `LOCAL_XDS_PATH`; empty if neither is set.
    fn local_mesh(&self) -> Result<LocalMesh, ConfigError> {
        const INLINE: &str = "LOCAL_XDS";
        const FILE: &str = "LOCAL_XDS_PATH";
        let (variable, text) = match (self.owned(INLINE), self.owned(FILE)) {
            (None, None) => return Ok(LocalMesh::default()),
            (Some(_), Some(path)) => {
                let expected = "LOCAL_XDS is set as well; set one of the two";
                return Err(ConfigError::value(FILE, &path, expected));
            }
            (Some(text), None) => (INLINE, text),
            (None, Some(path)) => {
                let read = std::fs::read_to_string(&path);
                let text = read.map_err(|error| ConfigError::File {
                    path: format!("{FILE}={path}"),
                    reason: error.to_string(),
                })?;
                (FILE, text)
            }
        };
        LocalMesh::parse(&text).map_err(|error| ConfigError::Local {
            variable,
            reason: error.to_string(),
        })
    }

    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        for (variable, feature) in UNSUPPORTED {
            if let Some(value) = self.get(variable)
                && !matches!(value, "" | "false")
            {
                return Err(ConfigError::Unsupported {
                    variable,
                    value: value.to_owned(),
                    feature,
                });
            }
        }
        Ok(())
    }

    fn on_demand(&self, answers_names: bool) -> Result<bool, ConfigError> {
        let on = self.flag(ON_DEMAND, false)?;
        if on && answers_names {
            let expected = "names are answered from what is known, and on demand little is: set \
                            DNS_CAPTURE=false as well";
            return Err(ConfigError::value(ON_DEMAND, "true", expected));
        }
        Ok(on)
    }

    fn tls(&self) -> Result<Tls, ConfigError> {
        const COMPLIANCE: &str = "COMPLIANCE_POLICY";
        let post_quantum_only = match self.get(COMPLIANCE) {
            None | Some("") => false,
            Some("pqc") => true,
            Some(other) => return Err(ConfigError::value(COMPLIANCE, other, "expected pqc")),
        };
        Ok(Tls {
            tls12: self.flag("TLS12_ENABLED", false)?,
            post_quantum_only,
        })
    }

    fn cluster_id(&self, proxy: &ProxyConfig) -> String {
        self.metadata("CLUSTER_ID", proxy)
            .unwrap_or_else(|| DEFAULT_CLUSTER_ID.to_owned())
    }

    fn mode(&self) -> Result<Mode, ConfigError> {
        match self.get("PROXY_MODE") {
            None | Some("" | "shared") => return Ok(Mode::Shared),
            Some("dedicated") => {}
            Some(other) => {
                let expected = "expected shared or dedicated";
                return Err(ConfigError::value("PROXY_MODE", other, expected));
            }
        }
        let variable = "PROXY_WORKLOAD_INFO";
        let text = self.owned(variable).ok_or(ConfigError::Missing {
            variable,
            why: "dedicated mode serves one workload (namespace/name/serviceaccount)",
        })?;
        let parts: Vec<_> = text.split('/').collect();
        match parts.as_slice() {
            [namespace, name, account] if parts.iter().all(|p| !p.is_empty()) => {
                Ok(Mode::Dedicated {
                    name: (*name).to_owned(),
                    namespace: (*namespace).to_owned(),
                    service_account: (*account).to_owned(),
                })
            }
            _ => Err(ConfigError::value(
                variable,
                &text,
                "expected namespace/name/serviceaccount",
            )),
        }
    }

    fn token(&self) -> Option<TokenSource> {
        match self.owned("AUTH_TOKEN") {
            // A path that is not there yet may come later; a token has no slash.
            Some(text) if text.contains('/') || Path::new(&text).exists() => {
                Some(TokenSource::File(text.into()))
            }
            Some(token) => Some(TokenSource::Literal(token)),
            None => Path::new(TOKEN_FILE)
                .exists()
                .then(|| TokenSource::File(TOKEN_FILE.into())),
        }
    }

    /// Request headers named by variables: what follows `prefix` is the header's name.
    pub(super) fn with_prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, ConfigError> {
        let mut headers = Vec::new();
        for (variable, value) in &self.variables {
            let Some(name) = variable.strip_prefix(prefix) else {
                continue;
            };
            let good = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && http::HeaderValue::from_str(value).is_ok();
            if !good {
                let expected = "expected a header name after the prefix, and a header value";
                return Err(ConfigError::value(variable, value, expected));
            }
            headers.push((name.to_ascii_lowercase(), value.clone()));
        }
        Ok(headers)
    }

    /// Istio's rule: five seconds short of the pod's grace period.
    fn drain(&self) -> Result<Duration, ConfigError> {
        let derived = match self.optional_number::<u64>("TERMINATION_GRACE_PERIOD_SECONDS")? {
            Some(grace) if grace > 10 => grace - 5,
            Some(grace) => grace.saturating_sub(1).max(1),
            None => 5,
        };
        self.duration(
            "CONNECTION_TERMINATION_DEADLINE",
            Duration::from_secs(derived),
        )
    }

    fn worker_threads(&self, concurrency: Option<u16>) -> Result<usize, ConfigError> {
        let limit = self.cores_of("ZTUNNEL_RESOURCE_CPU_LIMIT")?;
        let request = self.cores_of("ZTUNNEL_RESOURCE_CPU_REQUEST")?;
        let downward = self.optional_number("ZTUNNEL_CPU_LIMIT")?;
        let cores = limit.or(downward).unwrap_or(self.cores).max(1);
        let variable = "ZTUNNEL_WORKER_THREADS";
        if let Some(text) = self.owned(variable) {
            let count = match text.strip_suffix('%') {
                Some(percent) => percent
                    .parse::<usize>()
                    .ok()
                    .filter(|p| (1..=100).contains(p))
                    .map(|p| (cores * p).div_ceil(100)),
                None => text.parse().ok().map(|n| if n == 0 { cores } else { n }),
            };
            return count.map(|n: usize| n.max(1)).ok_or_else(|| {
                ConfigError::value(
                    variable,
                    &text,
                    "expected a number or a percentage 1%..100%",
                )
            });
        }
        let count = match (concurrency, limit) {
            (Some(0), _) => cores,
            (Some(asked), _) => usize::from(asked),
            (None, Some(limit)) => limit.max(request.unwrap_or(0)),
            (None, None) => cores.div_ceil(4).max(request.unwrap_or(0)).max(2),
        };
        Ok(count.max(1))
    }

    fn cores_of(&self, variable: &str) -> Result<Option<usize>, ConfigError> {
        let Some(text) = self.owned(variable) else {
            return Ok(None);
        };
        value::cores(&text).map(Some).ok_or_else(|| {
            ConfigError::value(
                variable,
                &text,
                "expected a quantity such as 2, 1.5 or 500m",
            )
        })
    }
}
