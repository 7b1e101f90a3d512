use std::time::Duration;

use isobar_proto::isobar::v1 as proto;
use isobar_types::{NamespacedHostname, NamespacedName, Str};

use crate::call::Labels;
use crate::table::ResourceError;
use crate::virtual_service::{FieldError, duration, service_key};

/// A compiled `DestinationRule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DestinationRule {
    pub(crate) name: NamespacedName,
    pub(crate) host: String,
    pub(crate) services: Vec<NamespacedHostname>,
    pub(crate) created: i64,
    pub(crate) subsets: Vec<Subset>,
    pub(crate) rules: TrafficRules,
}

/// A named group of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// Name, as routes use it.
    pub name: Str,
    /// The `DestinationRule` that defines it.
    pub rule: NamespacedName,
    /// Labels an endpoint's workload must have.
    pub labels: Labels,
    /// Traffic rules, those of the whole service filled in where the subset is silent.
    pub rules: TrafficRules,
}

/// How connections and requests are spread and limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficRules {
    /// How an endpoint is chosen.
    pub balancer: Option<LoadBalancer>,
    /// Deadline of a connect.
    pub connect_timeout: Option<Duration>,
    /// Most connections to one endpoint.
    pub max_connections: Option<u32>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The less busy of two taken by chance.
    LeastRequest,
    /// By chance.
    Random,
}

impl TrafficRules {
    fn or(self, other: Self) -> Self {
        Self {
            balancer: self.balancer.or(other.balancer),
            connect_timeout: self.connect_timeout.or(other.connect_timeout),
            max_connections: self.max_connections.or(other.max_connections),
        }
    }
}

impl Subset {
    /// True if a workload with these labels belongs to the subset; one without known labels does
    /// only if the subset asks for none.
    #[must_use]
    pub fn contains(&self, labels: Option<&Labels>) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.is_some_and(|have| have.get(key) == Some(value)))
    }
}

impl DestinationRule {
    pub(crate) fn compile(from: &proto::DestinationRule) -> Result<Self, ResourceError> {
        let wrap = |e: FieldError| e.of("DestinationRule", &from.namespace, &from.name);
        let rules = compile_rules(from.traffic_policy.as_ref())
            .map_err(|e| wrap(e.under("trafficPolicy")))?;
        let name = NamespacedName {
            namespace: from.namespace.as_str().into(),
            name: from.name.as_str().into(),
        };
        let mut subsets: Vec<Subset> = Vec::with_capacity(from.subsets.len());
        for (at, subset) in from.subsets.iter().enumerate() {
            let here = format!("subsets[{at}]");
            let own = compile_rules(subset.traffic_policy.as_ref())
                .map_err(|e| wrap(e.under("trafficPolicy").under(&here)))?;
            // Of two subsets of one name the first counts, as in Istio.
            if subsets.iter().all(|s| *s.name != *subset.name) {
                subsets.push(Subset {
                    name: subset.name.as_str().into(),
                    rule: name.clone(),
                    labels: subset.labels.clone(),
                    rules: own.or(rules),
                });
            }
        }
        Ok(Self {
            name,
            host: from.host.clone(),
            services: from.services.iter().map(service_key).collect(),
            created: from.created,
            subsets,
            rules,
        })
    }
}

fn compile_rules(from: Option<&proto::TrafficPolicy>) -> Result<TrafficRules, FieldError> {
    use proto::traffic_policy::LoadBalancer as From;
    let Some(from) = from else {
        return Ok(TrafficRules::default());
    };
    let pool = from.connection_pool.unwrap_or_default();
    let balancer = match From::try_from(from.load_balancer) {
        Ok(From::RoundRobin) => Some(LoadBalancer::RoundRobin),
        Ok(From::LeastRequest) => Some(LoadBalancer::LeastRequest),
        Ok(From::Random) => Some(LoadBalancer::Random),
        // PASSTHROUGH would go round the mesh; the pods of the service are balanced instead.
        Ok(From::Unspecified | From::Passthrough) => None,
        Err(_) => return Err(FieldError::new("loadBalancer", "an unknown load balancer")),
    };
    Ok(TrafficRules {
        balancer,
        connect_timeout: duration(
            pool.connect_timeout.as_ref(),
            "connectionPool.tcp.connectTimeout",
        )?,
        max_connections: Some(pool.max_connections).filter(|n| *n > 0),
    })
}

/// What all rules of one service say together: subsets of all, the oldest object first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Combined {
    pub(crate) names: Vec<NamespacedName>,
    pub(crate) subsets: Vec<Subset>,
    pub(crate) rules: TrafficRules,
}

impl Combined {
    pub(crate) fn add(&mut self, rule: &DestinationRule) {
        for subset in &rule.subsets {
            if self.subsets.iter().all(|have| have.name != subset.name) {
                self.subsets.push(subset.clone());
            }
        }
        self.names.push(rule.name.clone());
        self.rules = self.rules.or(rule.rules);
    }
}
