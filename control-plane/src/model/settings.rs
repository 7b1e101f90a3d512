use isobar_types::{NamespacedName, Str};

/// Settings of the mesh that decide what objects mean.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Trust domain of every identity.
    pub(crate) trust_domain: Str,
    /// Id of this cluster, first part of workload uids.
    pub(crate) cluster_id: Str,
    /// Network every address here belongs to; empty for a cluster's only one.
    pub(crate) network: Str,
    /// Namespace whose policies apply to the whole mesh.
    pub(crate) root_namespace: Str,
    /// DNS suffix of services.
    pub(crate) cluster_domain: Str,
    /// Gateway classes of waypoints this control plane runs.
    pub(crate) waypoint_classes: Vec<String>,
    /// Accounts of the mesh's own parts: a pod of these is nobody's gateway.
    pub(crate) own_accounts: Vec<NamespacedName>,
    /// Where workloads may go, where a namespace does not say.
    pub(crate) outbound: OutboundTraffic,
    /// What becomes of NetworkPolicies inside tunnels, where a namespace does not say.
    pub(crate) port_rules: PortRules,
}

/// What becomes of NetworkPolicies inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum PortRules {
    /// Nothing: port 15008 opens every port of a pod to the mesh.
    Off,
    /// Calls that they forbid are counted and logged, and pass.
    Audit,
    /// Calls that they forbid are refused.
    #[default]
    Enforce,
}

impl PortRules {
    /// By the word of a label.
    pub(super) fn parse(word: &str) -> Option<Self> {
        match word {
            "off" => Some(Self::Off),
            "audit" => Some(Self::Audit),
            "enforce" => Some(Self::Enforce),
            _ => None,
        }
    }
}

impl Settings {
    /// Host name of a Service.
    pub(crate) fn hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.cluster_domain)
    }
}

/// Where workloads may go. The words are those of Istio's `outboundTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OutboundTraffic {
    /// Anywhere.
    #[default]
    #[value(name = "ALLOW_ANY")]
    AllowAny,
    /// To services and workloads of the mesh only.
    #[value(name = "REGISTRY_ONLY")]
    RegistryOnly,
}

impl OutboundTraffic {
    /// By the word of a label.
    pub(super) fn parse(word: &str) -> Option<Self> {
        match word {
            "ALLOW_ANY" => Some(Self::AllowAny),
            "REGISTRY_ONLY" => Some(Self::RegistryOnly),
            _ => None,
        }
    }
}
