use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use isobar_proto::isobar::v1 as proto;

use crate::hash::HashKey;
use crate::locality::LocalityRules;
use crate::tls::{Origination, TlsRules};
use crate::virtual_service::{FieldError, duration, port};

/// How connections and requests are spread and limited. Five blocks; what overrides a block
/// replaces the whole of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrafficRules {
    /// How an endpoint is chosen.
    pub balancing: Option<Balancing>,
    /// Limits on connections and requests.
    pub pool: Option<PoolRules>,
    /// When an endpoint is taken out.
    pub outliers: Option<OutlierRules>,
    /// Most retries at once, in relation to what is active.
    pub retry_budget: Option<RetryBudget>,
    /// TLS towards endpoints.
    pub tls: Option<Origination>,
    /// Endpoints are told who called, before any other byte.
    pub proxy: Option<ProxyVersion>,
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Balancing {
    /// The algorithm; the mesh's default where none is named.
    pub simple: Option<LoadBalancer>,
    /// One endpoint for one key; comes before `simple`.
    pub hash: Option<HashKey>,
    /// Preference by the caller's place.
    pub locality: Option<LocalityRules>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
}

/// The plain algorithms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// One after the other.
    RoundRobin,
    /// The less busy of two taken by chance.
    #[default]
    LeastRequest,
    /// By chance.
    Random,
    /// The one whose address was dialled, or none at all: nothing else is looked at.
    Passthrough,
}

/// Slow start of endpoints that are new.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup {
    /// How long an endpoint counts as new.
    pub window: Duration,
    /// Share of its weight it starts with, 0 to 1.
    pub least: f64,
    /// 1 grows evenly; more grows faster at first.
    pub aggression: f64,
}

impl Warmup {
    /// Share of its weight an endpoint of this age gets.
    #[must_use]
    pub fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.as_secs_f64() / self.window.as_secs_f64();
        time.powf(1.0 / self.aggression).clamp(self.least, 1.0)
    }
}

/// Limits on connections and requests of one process to one destination. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolRules {
    /// Deadline of a connect.
    pub connect_timeout: Option<Duration>,
    /// Connections; an HTTP/1.1 request without one waits.
    pub max_connections: Option<u32>,
    /// Socket keepalive, towards endpoints outside the mesh.
    pub keepalive: Option<Keepalive>,
    /// Life of a connection.
    pub max_duration: Option<Duration>,
    /// An opaque connection without bytes is closed after that.
    pub tcp_idle: Option<Duration>,
    /// A kept HTTP connection without requests is closed after that.
    pub http_idle: Option<Duration>,
    /// Requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// Requests under way.
    pub max_requests: Option<u32>,
    /// Requests before a connection is renewed.
    pub max_requests_per_connection: Option<u32>,
    /// Retries under way.
    pub max_retries: Option<u32>,
    /// Requests at once on an HTTP/2 connection.
    pub max_streams: Option<u32>,
    /// HTTP version towards endpoints.
    pub speak: Speak,
    /// HTTP/2 PING: how often, and how long its answer may take.
    pub ping: Option<(Duration, Duration)>,
}

/// HTTP version towards endpoints whose port declares HTTP/1.1 or nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speak {
    /// As the port declares.
    #[default]
    Declared,
    /// HTTP/2.
    Http2,
    /// What the caller speaks.
    AsCaller,
}

/// Socket keepalive; `None` is the system's setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer before the connection is given up.
    pub probes: Option<u32>,
    /// Idle time before the first.
    pub time: Option<Duration>,
    /// Time between two.
    pub interval: Option<Duration>,
}

/// When an endpoint is taken out. Counts of 0 are off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierRules {
    /// 5xx in a row; failures without a response count too, unless they are counted apart.
    pub server_errors: u32,
    /// 502, 503 or 504 in a row.
    pub gateway_errors: u32,
    /// Failures without a response in a row; `None`: not counted apart.
    pub local_failures: Option<u32>,
    /// How often endpoints are looked at to be taken back.
    pub interval: Duration,
    /// How long an endpoint is out the first time; n times as long the n-th time.
    pub base: Duration,
    /// Share of endpoints that may be out, in percent.
    pub most_out: u32,
    /// With a smaller share of endpoints in, nobody is treated as out; in percent.
    pub least_healthy: u32,
}

/// Most retries at once, in relation to what is active.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Share of active requests, in percent.
    pub percent: f64,
    /// Allowed whatever the share.
    pub least: u32,
}

/// Traffic rules of a service or subset, by port.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    all: Arc<TrafficRules>,
    ports: Vec<(u16, Arc<TrafficRules>)>,
}

impl Traffic {
    /// The rules for one service port.
    #[must_use]
    pub fn at(&self, port: u16) -> &Arc<TrafficRules> {
        self.own_at(port).unwrap_or(&self.all)
    }

    fn own_at(&self, port: u16) -> Option<&Arc<TrafficRules>> {
        self.ports
            .iter()
            .find(|(own, _)| *own == port)
            .map(|(_, rules)| rules)
    }

    /// What a subset's own rules make of the service's: each block of its own replaces one of the
    /// service's, and for ports of its own nothing is inherited.
    pub(crate) fn overlaid(&self, subset: Option<&Self>) -> Self {
        let Some(subset) = subset else {
            return self.clone();
        };
        let mut ports = subset.ports.clone();
        for (_, rules) in &mut ports {
            if rules.proxy.is_none() && self.all.proxy.is_some() {
                Arc::make_mut(rules).proxy = self.all.proxy;
            }
        }
        for (number, rules) in &self.ports {
            if subset.own_at(*number).is_none() {
                ports.push((*number, Arc::new(subset.all.or(rules))));
            }
        }
        Self {
            all: Arc::new(subset.all.or(&self.all)),
            ports,
        }
    }

    pub(crate) fn compile(from: &proto::TrafficPolicy) -> Result<Self, FieldError> {
        let all = compile_blocks(from)?;
        let mut ports: Vec<(u16, Arc<TrafficRules>)> = Vec::with_capacity(from.port_level.len());
        for (at, one) in from.port_level.iter().enumerate() {
            let under = |e: FieldError| e.under(&format!("portLevelSettings[{at}]"));
            let number = port(one.port, "port.number").map_err(under)?;
            let policy = one.policy.clone().unwrap_or_default();
            // There is no such field for ports: an endpoint that waits for the line would hang.
            let rules = TrafficRules {
                proxy: all.proxy,
                ..compile_blocks(&policy).map_err(under)?
            };
            if ports.iter().all(|(have, _)| *have != number) {
                ports.push((number, Arc::new(rules)));
            }
        }
        Ok(Self {
            all: Arc::new(all),
            ports,
        })
    }
}

impl TrafficRules {
    fn or(&self, other: &Self) -> Self {
        Self {
            balancing: self.balancing.clone().or_else(|| other.balancing.clone()),
            pool: self.pool.or(other.pool),
            outliers: self.outliers.or(other.outliers),
            retry_budget: self.retry_budget.or(other.retry_budget),
            tls: self.tls.clone().or_else(|| other.tls.clone()),
            proxy: self.proxy.or(other.proxy),
        }
    }

    /// How TLS towards endpoints is begun, if it is.
    #[must_use]
    pub const fn tls(&self) -> Option<&Arc<TlsRules>> {
        match &self.tls {
            Some(Origination::On(rules)) => Some(rules),
            Some(Origination::Off) | None => None,
        }
    }

    /// How an endpoint is chosen where nothing else decides.
    #[must_use]
    pub fn balancer(&self) -> LoadBalancer {
        let own = self.balancing.as_ref().and_then(|b| b.simple);
        own.unwrap_or_default()
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> PoolRules {
        self.pool.unwrap_or_default()
    }
}

fn compile_blocks(from: &proto::TrafficPolicy) -> Result<TrafficRules, FieldError> {
    Ok(TrafficRules {
        balancing: compile_balancing(from)?,
        pool: from
            .connection_pool
            .as_ref()
            .map(compile_pool)
            .transpose()?,
        outliers: from
            .outlier_detection
            .as_ref()
            .map(compile_outliers)
            .transpose()?,
        retry_budget: from.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: budget.percent.unwrap_or(20.0).clamp(0.0, 100.0),
            least: budget.min_concurrency.unwrap_or(3),
        }),
        tls: from.tls.as_ref().map(Origination::compile).transpose()?,
        proxy: match from.proxy_protocol() {
            proto::traffic_policy::ProxyProtocol::None => None,
            proto::traffic_policy::ProxyProtocol::V1 => Some(ProxyVersion::V1),
            proto::traffic_policy::ProxyProtocol::V2 => Some(ProxyVersion::V2),
        },
    })
}

fn compile_balancing(from: &proto::TrafficPolicy) -> Result<Option<Balancing>, FieldError> {
    use proto::traffic_policy::LoadBalancer as From;
    let named = From::try_from(from.load_balancer)
        .map_err(|_| FieldError::new("loadBalancer", "an unknown load balancer"))?;
    let simple = match named {
        From::RoundRobin => Some(LoadBalancer::RoundRobin),
        From::LeastRequest => Some(LoadBalancer::LeastRequest),
        From::Random => Some(LoadBalancer::Random),
        From::Passthrough => Some(LoadBalancer::Passthrough),
        From::Unspecified => None,
    };
    let extra = from.consistent_hash.is_some() || from.locality.is_some() || from.warmup.is_some();
    if named == From::Unspecified && !extra {
        return Ok(None);
    }
    let hash = from.consistent_hash.as_ref().map(HashKey::compile);
    Ok(Some(Balancing {
        simple,
        hash: hash.transpose().map_err(|e| e.under("loadBalancer"))?,
        locality: from.locality.as_ref().map(LocalityRules::compile),
        warmup: from
            .warmup
            .as_ref()
            .map(compile_warmup)
            .transpose()?
            .flatten(),
    }))
}

fn compile_warmup(from: &proto::Warmup) -> Result<Option<Warmup>, FieldError> {
    let window = duration(from.duration.as_ref(), "loadBalancer.warmup.duration")?;
    let or = |value: f64, default: f64| if value > 0.0 { value } else { default };
    Ok(window.map(|window| Warmup {
        window,
        least: (or(from.minimum_percent, 10.0) / 100.0).clamp(0.0, 1.0),
        aggression: or(from.aggression, 1.0),
    }))
}

fn compile_pool(from: &proto::ConnectionPool) -> Result<PoolRules, FieldError> {
    use proto::http_pool::Upgrade;
    let time = |value: Option<&prost_types::Duration>, field: &str| {
        duration(value, field).map_err(|e| e.under("connectionPool"))
    };
    let limit = |most: u32| Some(most).filter(|most| *most > 0);
    let keepalive = from.tcp_keepalive.as_ref().map(|keepalive| {
        Ok(Keepalive {
            probes: limit(keepalive.probes),
            time: time(keepalive.time.as_ref(), "tcp.tcpKeepalive.time")?,
            interval: time(keepalive.interval.as_ref(), "tcp.tcpKeepalive.interval")?,
        })
    });
    let http = from.http.unwrap_or_default();
    let tcp_idle = time(from.tcp_idle_timeout.as_ref(), "tcp.idleTimeout")?;
    let ping = time(http.ping_interval.as_ref(), "http.http2KeepAlive.interval")?;
    let answer = time(http.ping_timeout.as_ref(), "http.http2KeepAlive.timeout")?;
    Ok(PoolRules {
        connect_timeout: time(from.connect_timeout.as_ref(), "tcp.connectTimeout")?,
        max_connections: limit(from.max_connections),
        keepalive: keepalive.transpose()?,
        max_duration: time(
            from.max_connection_duration.as_ref(),
            "tcp.maxConnectionDuration",
        )?,
        tcp_idle,
        http_idle: time(http.idle_timeout.as_ref(), "http.idleTimeout")?.or(tcp_idle),
        max_pending: limit(http.max_pending),
        max_requests: limit(http.max_requests),
        max_requests_per_connection: limit(http.max_requests_per_connection),
        max_retries: limit(http.max_retries),
        max_streams: limit(http.max_concurrent_streams),
        speak: match http.h2_upgrade() {
            _ if http.use_client_protocol => Speak::AsCaller,
            Upgrade::Upgrade => Speak::Http2,
            Upgrade::Default | Upgrade::DoNotUpgrade => Speak::Declared,
        },
        ping: ping.map(|every| (every, answer.unwrap_or(every))),
    })
}

fn compile_outliers(from: &proto::OutlierDetection) -> Result<OutlierRules, FieldError> {
    let time = |value: Option<&prost_types::Duration>, field: &str, default: u64| {
        let own = duration(value, field).map_err(|e| e.under("outlierDetection"))?;
        Ok(own.unwrap_or(Duration::from_secs(default)))
    };
    let share = |percent: u32, default: u32| match percent {
        0 => default,
        percent => percent.min(100),
    };
    Ok(OutlierRules {
        server_errors: from.consecutive_5xx.unwrap_or(5),
        gateway_errors: from.consecutive_gateway_errors,
        local_failures: from
            .split_local_errors
            .then(|| from.consecutive_local_failures.unwrap_or(5)),
        interval: time(from.interval.as_ref(), "interval", 10)?,
        base: time(from.base_ejection_time.as_ref(), "baseEjectionTime", 30)?,
        most_out: share(from.max_ejection_percent, 10),
        least_healthy: share(from.min_health_percent, 0),
    })
}

pub(crate) fn header_name(name: &str, field: &str) -> Result<HeaderName, FieldError> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| FieldError::new(field, format!("{name:?} is not a header name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(max_connections: u32, max_requests: u32) -> proto::TrafficPolicy {
        proto::TrafficPolicy {
            connection_pool: Some(proto::ConnectionPool {
                max_connections,
                http: Some(proto::HttpPool {
                    max_requests,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn blocks_are_replaced_whole_and_ports_inherit_nothing() {
        let mut top = pool(1, 2);
        top.load_balancer = proto::traffic_policy::LoadBalancer::Random.into();
        top.port_level = vec![proto::PortTrafficPolicy {
            port: 80,
            policy: Some(pool(5, 0)),
        }];
        let service = Traffic::compile(&top).unwrap();
        let limits = |t: &Traffic, port| {
            let limits = t.at(port).limits();
            (limits.max_connections, limits.max_requests)
        };
        assert_eq!(limits(&service, 81), (Some(1), Some(2)));
        assert_eq!(limits(&service, 80), (Some(5), None));
        assert_eq!(service.at(81).balancer(), LoadBalancer::Random);
        assert_eq!(service.at(80).balancer(), LoadBalancer::LeastRequest);
        let mut own = pool(7, 0);
        own.port_level = vec![proto::PortTrafficPolicy {
            port: 82,
            policy: None,
        }];
        let own = Traffic::compile(&own).unwrap();
        let subset = service.overlaid(Some(&own));
        assert_eq!(limits(&subset, 81), (Some(7), None));
        assert_eq!(limits(&subset, 80), (Some(7), None));
        assert_eq!(limits(&subset, 82), (None, None));
        assert_eq!(subset.at(81).balancer(), LoadBalancer::Random);
        assert_eq!(service.overlaid(None), service);
    }

    #[test]
    fn every_port_and_subset_is_told_who_called() {
        let mut top = pool(1, 2);
        top.proxy_protocol = proto::traffic_policy::ProxyProtocol::V1.into();
        top.port_level = vec![proto::PortTrafficPolicy {
            port: 80,
            policy: Some(pool(5, 0)),
        }];
        let service = Traffic::compile(&top).unwrap();
        let mut own = pool(7, 0);
        own.port_level = vec![proto::PortTrafficPolicy {
            port: 82,
            policy: None,
        }];
        let silent = service.overlaid(Some(&Traffic::compile(&own).unwrap()));
        own.proxy_protocol = proto::traffic_policy::ProxyProtocol::V2.into();
        let other = service.overlaid(Some(&Traffic::compile(&own).unwrap()));
        for port in [80, 81, 82] {
            assert_eq!(service.at(port).proxy, Some(ProxyVersion::V1), "{port}");
            assert_eq!(silent.at(port).proxy, Some(ProxyVersion::V1), "{port}");
            assert_eq!(other.at(port).proxy, Some(ProxyVersion::V2), "{port}");
        }
    }

    #[test]
    fn a_subset_may_end_the_tls_that_its_service_asks_for() {
        let with = |off: bool| proto::TrafficPolicy {
            tls: Some(proto::EndpointTls {
                off,
                ..Default::default()
            }),
            ..Default::default()
        };
        let service = Traffic::compile(&with(false)).unwrap();
        assert!(service.at(1).tls().is_some());
        let off = Traffic::compile(&with(true)).unwrap();
        assert!(service.overlaid(Some(&off)).at(1).tls().is_none());
        assert!(off.overlaid(Some(&service)).at(1).tls().is_some());
    }

    #[test]
    fn outlier_detection_has_istios_defaults() {
        let rules = compile_outliers(&proto::OutlierDetection::default()).unwrap();
        assert_eq!((rules.server_errors, rules.gateway_errors), (5, 0));
        assert_eq!(rules.local_failures, None);
        assert_eq!(rules.interval, Duration::from_secs(10));
        assert_eq!(rules.base, Duration::from_secs(30));
        assert_eq!((rules.most_out, rules.least_healthy), (10, 0));
    }

    #[test]
    fn warming_up_grows_from_the_least_share_to_all() {
        let even = Warmup {
            window: Duration::from_secs(100),
            least: 0.1,
            aggression: 1.0,
        };
        let share = |w: &Warmup, secs| w.share(Duration::from_secs(secs));
        assert!((share(&even, 0) - 0.1).abs() < 1e-9);
        assert!((share(&even, 50) - 0.5).abs() < 1e-9);
        assert!((share(&even, 100) - 1.0).abs() < 1e-9);
        let fast = Warmup {
            aggression: 2.0,
            ..even
        };
        assert!((share(&fast, 25) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn new_endpoints_are_warmed_up_as_rules_say() {
        let made = |minimum_percent, aggression| {
            let policy = proto::TrafficPolicy {
                warmup: Some(proto::Warmup {
                    duration: Some(prost_types::Duration {
                        seconds: 30,
                        nanos: 0,
                    }),
                    minimum_percent,
                    aggression,
                }),
                ..Default::default()
            };
            let rules = Traffic::compile(&policy).unwrap();
            rules.at(1).balancing.as_ref().unwrap().warmup.unwrap()
        };
        let plain = made(0.0, 0.0);
        assert_eq!(plain.window, Duration::from_secs(30));
        assert!((plain.least - 0.1).abs() < 1e-9, "{plain:?}");
        assert!((plain.aggression - 1.0).abs() < 1e-9, "{plain:?}");
        let own = made(25.0, 2.0);
        assert!((own.least - 0.25).abs() < 1e-9, "{own:?}");
        assert!((own.aggression - 2.0).abs() < 1e-9, "{own:?}");
        let nothing = Traffic::compile(&proto::TrafficPolicy::default()).unwrap();
        assert!(nothing.at(1).balancing.is_none());
    }

    #[test]
    fn endpoints_are_spoken_to_as_the_pool_says() {
        use proto::http_pool::Upgrade;
        let speak = |use_client_protocol, upgrade: Upgrade| {
            let http = proto::HttpPool {
                use_client_protocol,
                h2_upgrade: upgrade.into(),
                ..Default::default()
            };
            let pool = proto::ConnectionPool {
                http: Some(http),
                ..Default::default()
            };
            compile_pool(&pool).unwrap().speak
        };
        assert_eq!(speak(false, Upgrade::Default), Speak::Declared);
        assert_eq!(speak(false, Upgrade::DoNotUpgrade), Speak::Declared);
        assert_eq!(speak(false, Upgrade::Upgrade), Speak::Http2);
        assert_eq!(speak(true, Upgrade::Upgrade), Speak::AsCaller);
    }

    #[test]
    fn a_port_is_kept_once() {
        let mut top = pool(1, 0);
        let of = |most| proto::PortTrafficPolicy {
            port: 80,
            policy: Some(pool(most, 0)),
        };
        top.port_level = vec![of(5), of(6)];
        let service = Traffic::compile(&top).unwrap();
        assert_eq!(service.at(80).limits().max_connections, Some(5));
    }
}
