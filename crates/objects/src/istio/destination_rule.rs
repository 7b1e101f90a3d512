use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{TrafficPolicy, WorkloadSelector};

/// What holds for traffic to a host once routing has chosen it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    /// Host it is about; a short name resolves in the object's namespace.
    pub host: String,
    /// Policy for all ports and subsets.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of endpoints.
    pub subsets: Vec<Subset>,
    /// Namespaces that may see it: `.`, `*` or names; empty means all.
    pub export_to: Vec<String>,
    /// Client workloads it applies to.
    pub workload_selector: Option<WorkloadSelector>,
}

/// A named group of endpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Name that routes use.
    pub name: String,
    /// Labels of the endpoints in it; empty takes all.
    pub labels: BTreeMap<String, String>,
    /// Overrides the rule's policy.
    pub traffic_policy: Option<TrafficPolicy>,
}
