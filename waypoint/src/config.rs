//! Settings, by the environment variables that Istio's proxies use.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use isobar_types::{DEFAULT_CLUSTER_ID, DEFAULT_TRUST_DOMAIN, ports};
use isobar_xds::{Roots, Token};

use crate::plaintext::Door;

const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const SERVER: &str = "https://isobard.istio-system.svc:15012";

/// Everything a waypoint is told at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// `POD_NAME`.
    pub pod_name: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `SERVICE_ACCOUNT`.
    pub service_account: String,
    /// `GATEWAY_NAME`: the Gateway this waypoint was made for.
    pub gateway: String,
    /// `INSTANCE_IP`.
    pub ip: IpAddr,
    /// `NODE_NAME`.
    pub node: String,
    /// `CLUSTER_ID`.
    pub cluster_id: String,
    /// `NETWORK`.
    pub network: String,
    /// `TRUST_DOMAIN`.
    pub trust_domain: String,
    /// `XDS_ADDRESS`.
    pub xds_address: String,
    /// `XDS_ROOT_CA`: file or PEM.
    pub xds_roots: Roots,
    /// `ALT_XDS_HOSTNAME`.
    pub xds_name: Option<String>,
    /// `CA_ADDRESS`.
    pub ca_address: String,
    /// `CA_ROOT_CA`: file or PEM.
    pub ca_roots: Roots,
    /// `ALT_CA_HOSTNAME`.
    pub ca_name: Option<String>,
    /// `AUTH_TOKEN`: file or token.
    pub token: Option<Token>,
    /// `SECRET_TTL`, seconds or with a unit.
    pub secret_ttl: Duration,
    /// `CRL_PATH`: lists of revoked certificates, PEM or DER, followed while they change; none by default.
    pub revocation_file: Option<PathBuf>,
    /// Where tunnels come in: `HBONE_PORT`, normally 15008.
    pub hbone: SocketAddr,
    /// Loopback, normally port 15000: `ADMIN_PORT`.
    pub admin: SocketAddr,
    /// Normally port 15020: `STATS_PORT`.
    pub stats: SocketAddr,
    /// Normally port 15021: `READINESS_PORT`.
    pub readiness: SocketAddr,
    /// `TERMINATION_GRACE_PERIOD`: how long a drain may take.
    pub drain: Duration,
    /// `WORKER_THREADS`; the cores by default.
    pub workers: usize,
    /// `ISOBAR_PLAINTEXT`: ports that take plain traffic from outside the mesh; none by default.
    pub plaintext: Vec<Door>,
    /// `RUST_LOG`.
    pub log_filter: String,
    /// `LOG_FORMAT=json`.
    pub log_json: bool,
    /// `ACCESS_LOG=off` silences the line per request.
    pub access_log: bool,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?}: {problem}")]
pub struct ConfigError {
    /// The variable.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong.
    pub problem: String,
}

struct Variables(BTreeMap<String, String>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    fn or(&self, name: &str, default: &str) -> String {
        self.get(name).unwrap_or(default).to_owned()
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
        default: T,
        what: &str,
    ) -> Result<T, ConfigError> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        text.parse().map_err(|_| ConfigError {
            variable: name,
            value: text.to_owned(),
            problem: format!("expected {what}"),
        })
    }

    fn roots(&self, name: &str) -> Roots {
        match self.get(name) {
            Some(text) if text.contains("-----BEGIN") => Roots::Pem(text.to_owned()),
            Some(path) => Roots::File(PathBuf::from(path)),
            None => Roots::File(PathBuf::from(ROOT_FILE)),
        }
    }

    fn doors(&self, name: &'static str, any: IpAddr) -> Result<Vec<Door>, ConfigError> {
        let all = self.get(name).unwrap_or("").split(',').map(str::trim);
        let doors = all.filter(|text| !text.is_empty()).map(|text| {
            Door::read(text, any).ok_or_else(|| ConfigError {
                variable: name,
                value: text.to_owned(),
                problem: "expected PORT=HOST:PORT, such as 8080=web.shop.svc.cluster.local:80"
                    .to_owned(),
            })
        });
        doors.collect()
    }

    fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" | "s" => 1.0,
            "ms" => 0.001,
            "m" => 60.0,
            "h" => 3600.0,
            _ => f64::NAN,
        };
        digits
            .parse::<f64>()
            .ok()
            .and_then(|n| Duration::try_from_secs_f64(n * unit).ok())
            .ok_or_else(|| ConfigError {
                variable: name,
                value: text.to_owned(),
                problem: "expected a duration such as 30s, 5m or 24h".to_owned(),
            })
    }
}

impl Config {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// At the first setting that cannot be used.
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::read(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// Reads given variables.
    ///
    /// # Errors
    /// At the first setting that cannot be used.
    pub fn read(
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let v = Variables(variables.into_iter().collect());
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ip = v.parsed("INSTANCE_IP", local, "an address")?;
        let any = if ip.is_ipv6() {
            IpAddr::from([0_u16; 8])
        } else {
            any
        };
        let port = |name, default| v.parsed(name, default, "a port");
        let token = match v.get("AUTH_TOKEN") {
            Some(text) if text.contains('/') => Some(Token::File(text.into())),
            Some(text) => Some(Token::Literal(text.to_owned())),
            None => Some(Token::File(TOKEN_FILE.into())),
        };
        let day = Duration::from_secs(24 * 3600);
        Ok(Self {
            pod_name: v.or("POD_NAME", "waypoint"),
            namespace: v.or("POD_NAMESPACE", "default"),
            service_account: v.or("SERVICE_ACCOUNT", "default"),
            gateway: v.or("GATEWAY_NAME", ""),
            ip,
            node: v.or("NODE_NAME", ""),
            cluster_id: v.or("CLUSTER_ID", DEFAULT_CLUSTER_ID),
            network: v.or("NETWORK", ""),
            trust_domain: v.or("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN),
            xds_address: v.or("XDS_ADDRESS", SERVER),
            xds_roots: v.roots("XDS_ROOT_CA"),
            xds_name: v.get("ALT_XDS_HOSTNAME").map(str::to_owned),
            ca_address: v.or("CA_ADDRESS", &v.or("XDS_ADDRESS", SERVER)),
            ca_roots: v.roots("CA_ROOT_CA"),
            ca_name: v.get("ALT_CA_HOSTNAME").map(str::to_owned),
            token,
            secret_ttl: v.duration("SECRET_TTL", day)?,
            revocation_file: v.get("CRL_PATH").map(PathBuf::from),
            plaintext: v.doors("ISOBAR_PLAINTEXT", any)?,
            hbone: SocketAddr::new(any, port("HBONE_PORT", ports::HBONE)?),
            admin: SocketAddr::new(local, port("ADMIN_PORT", ports::ADMIN)?),
            stats: SocketAddr::new(any, port("STATS_PORT", ports::METRICS)?),
            readiness: SocketAddr::new(any, port("READINESS_PORT", ports::READINESS)?),
            drain: v.duration("TERMINATION_GRACE_PERIOD", Duration::from_secs(5))?,
            workers: isobar_runtime::worker_threads(Some(v.parsed(
                "WORKER_THREADS",
                0,
                "a number",
            )?)),
            log_filter: v.or("RUST_LOG", "info"),
            log_json: v.get("LOG_FORMAT") == Some("json"),
            access_log: v.get("ACCESS_LOG") != Some("off"),
        })
    }

    /// Node id on the wire: `waypoint~IP~POD.NAMESPACE~NAMESPACE.svc.cluster.local`.
    #[must_use]
    pub fn node_id(&self) -> String {
        let (pod, namespace) = (&self.pod_name, &self.namespace);
        format!(
            "waypoint~{}~{pod}.{namespace}~{namespace}.svc.cluster.local",
            self.ip
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        )
    }

    #[test]
    fn defaults_and_overrides() {
        let config = read(&[]).unwrap();
        assert_eq!(config.hbone.port(), 15008);
        assert!(config.admin.ip().is_loopback());
        assert_eq!(config.revocation_file, None);
        let config = read(&[
            ("INSTANCE_IP", "10.1.2.3"),
            ("POD_NAME", "wp-1"),
            ("POD_NAMESPACE", "shop"),
            ("TERMINATION_GRACE_PERIOD", "2m"),
            ("WORKER_THREADS", "3"),
            ("CRL_PATH", "/etc/crl/ca-crl.pem"),
        ])
        .unwrap();
        assert_eq!(
            config.node_id(),
            "waypoint~10.1.2.3~wp-1.shop~shop.svc.cluster.local"
        );
        assert_eq!(config.drain, Duration::from_secs(120));
        assert_eq!(config.workers, 3);
        let lists = std::path::Path::new("/etc/crl/ca-crl.pem");
        assert_eq!(config.revocation_file.as_deref(), Some(lists));
        let error = read(&[("HBONE_PORT", "x")]).unwrap_err();
        assert_eq!(error.variable, "HBONE_PORT");
        assert!(read(&[("SECRET_TTL", "5 years")]).is_err());
        let written = "8080=web.shop.svc.cluster.local:80, 127.0.0.1:81=10.96.0.1:80";
        let config = read(&[("ISOBAR_PLAINTEXT", written)]).unwrap();
        let doors: Vec<_> = config.plaintext.iter().map(ToString::to_string).collect();
        let all = [
            "0.0.0.0:8080=web.shop.svc.cluster.local:80",
            "127.0.0.1:81=10.96.0.1:80",
        ];
        assert_eq!(doors, all);
        for wrong in ["8080", "8080=web", "x=web:80", "8080=web:0", "0=we b:80"] {
            let error = read(&[("ISOBAR_PLAINTEXT", wrong)]).unwrap_err();
            assert_eq!(error.value, wrong);
        }
    }
}
