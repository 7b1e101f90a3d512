use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Hosts that become part of the mesh's registry without being Kubernetes Services.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// Names; `*.` may stand for the first labels.
    pub hosts: Vec<String>,
    /// Virtual addresses or networks; without any, each host gets one.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<EntryPort>,
    /// Inside the mesh or not: at L4 it makes no difference.
    pub location: Location,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// The endpoints themselves.
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Pods of the object's namespace that are the endpoints.
    pub workload_selector: Option<LabelsSelector>,
    /// Namespaces that may see it: `.`, `*`, `~` or names; empty means all.
    pub export_to: Vec<String>,
    /// Identities accepted of endpoints besides their own.
    pub subject_alt_names: Vec<String>,
}

/// One port of a ServiceEntry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPort {
    /// Number that clients use.
    pub number: u32,
    /// Protocol, in upper case by custom.
    pub protocol: String,
    /// Name that endpoints refer to.
    pub name: String,
    /// Number at the endpoints; 0 is the same.
    pub target_port: u32,
}

/// Inside the mesh or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// No.
    #[default]
    MeshExternal,
    /// Yes.
    MeshInternal,
}

/// How endpoints are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// Not at all: the address that the caller dials.
    #[default]
    None,
    /// As listed or selected.
    Static,
    /// By DNS, of the listed names or of the host.
    Dns,
    /// As [`Self::Dns`], one address at a time.
    DnsRoundRobin,
    /// By DNS, of the name that the request asks for: a host may stand for all of a domain.
    DynamicDns,
}

impl Resolution {
    /// True if names are resolved by the proxy, which then needs no listed endpoint.
    #[must_use]
    pub const fn is_dns(self) -> bool {
        matches!(self, Self::Dns | Self::DnsRoundRobin | Self::DynamicDns)
    }
}

/// One endpoint, in a ServiceEntry or as an object of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// IP address or host name.
    pub address: String,
    /// Port numbers by the names of the ServiceEntry's ports.
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Network it is on; empty for the cluster's.
    pub network: String,
    /// Region, zone and subzone, joined by `/`.
    pub locality: String,
    /// Share of the calls relative to others; 0 is 1.
    pub weight: u32,
    /// Account it runs as.
    pub service_account: String,
}

/// Selector of Istio's networking resources: equality on labels only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelsSelector {
    /// All must be present with these values.
    pub labels: BTreeMap<String, String>,
}

impl LabelsSelector {
    /// True if it names labels and all of them are among `labels`.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        !self.labels.is_empty() && self.labels.iter().all(found)
    }
}
