use std::sync::{Arc, LazyLock};

use isobar_proto::isobar::v1 as proto;
use isobar_types::{NamespacedHostname, NamespacedName, Str};

use crate::call::Labels;
use crate::table::ResourceError;
use crate::traffic::{Traffic, TrafficRules};
use crate::virtual_service::{FieldError, service_key};

/// A compiled `DestinationRule`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DestinationRule {
    pub(crate) name: NamespacedName,
    pub(crate) host: String,
    pub(crate) services: Vec<NamespacedHostname>,
    pub(crate) created: i64,
    subsets: Vec<OwnSubset>,
    traffic: Option<Traffic>,
}

/// A subset as its object has it.
#[derive(Debug, Clone, PartialEq)]
struct OwnSubset {
    name: Str,
    labels: Labels,
    traffic: Option<Traffic>,
}

/// A named group of a service's endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Subset {
    /// Name, as routes use it.
    pub name: Str,
    /// The `DestinationRule` that defines it.
    pub rule: NamespacedName,
    /// Labels an endpoint's workload must have.
    pub labels: Labels,
    /// Traffic rules, those of the whole service filled in where the subset is silent.
    pub traffic: Traffic,
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
        let policy = |policy: Option<&proto::TrafficPolicy>| {
            let compiled = policy.map(Traffic::compile).transpose();
            compiled.map_err(|e| e.under("trafficPolicy"))
        };
        let mut subsets: Vec<OwnSubset> = Vec::with_capacity(from.subsets.len());
        for (at, subset) in from.subsets.iter().enumerate() {
            let here = format!("subsets[{at}]");
            let traffic = policy(subset.traffic_policy.as_ref());
            let traffic = traffic.map_err(|e| wrap(e.under(&here)))?;
            subsets.push(OwnSubset {
                name: subset.name.as_str().into(),
                labels: subset.labels.clone(),
                traffic,
            });
        }
        Ok(Self {
            name: NamespacedName {
                namespace: from.namespace.as_str().into(),
                name: from.name.as_str().into(),
            },
            host: from.host.clone(),
            services: from.services.iter().map(service_key).collect(),
            created: from.created,
            subsets,
            traffic: policy(from.traffic_policy.as_ref()).map_err(wrap)?,
        })
    }
}

/// What all rules of one service say together: subsets of all, the first of one name; the traffic
/// policy of the first that has one, which every subset inherits.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Combined {
    pub(crate) names: Vec<NamespacedName>,
    pub(crate) subsets: Vec<Arc<Subset>>,
    pub(crate) traffic: Traffic,
}

impl Combined {
    /// Of these rules, the oldest first.
    pub(crate) fn of(rules: &[&DestinationRule]) -> Self {
        let traffic = rules.iter().find_map(|rule| rule.traffic.clone());
        let mut combined = Self {
            names: rules.iter().map(|rule| rule.name.clone()).collect(),
            subsets: Vec::new(),
            traffic: traffic.unwrap_or_default(),
        };
        for rule in rules {
            for own in &rule.subsets {
                if combined.subsets.iter().all(|have| have.name != own.name) {
                    combined.subsets.push(Arc::new(Subset {
                        name: own.name.clone(),
                        rule: rule.name.clone(),
                        labels: own.labels.clone(),
                        traffic: combined.traffic.overlaid(own.traffic.as_ref()),
                    }));
                }
            }
        }
        combined
    }
}

/// For services without rules.
pub(crate) static NO_RULES: LazyLock<Arc<TrafficRules>> = LazyLock::new(Arc::default);
