use isobar_objects::enrolment::EnrolmentRules;
use isobar_objects::{EntryVisibilities, MeshTraces, ObjectRef, WaypointLines};
use isobar_route::path::Normalization;
use isobar_types::{Identity, NamespacedName, Str};

/// Settings of the mesh that decide what objects mean.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Trust domain of every identity.
    pub(crate) trust_domain: Str,
    /// Other names that it has, whose identities count as its own.
    pub(crate) trust_domain_aliases: Vec<Str>,
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
    /// Who may see ServiceEntries, besides what they say themselves.
    pub(crate) entry_visibilities: Option<EntryVisibilities>,
    /// What is wanted of waypoints' lines.
    pub(crate) lines: WaypointLines,
    /// How far waypoints normalise paths.
    pub(crate) paths: Normalization,
    /// Where waypoints send spans.
    pub(crate) traces: Option<MeshTraces>,
    /// Node proxies let waypoints in to what is behind them by a policy of their own.
    pub(crate) allow_waypoints: bool,
    /// Whose pods node agents take into the mesh. Only they are told so; a control plane goes by what they
    /// do by themselves, and by what they wrote on pods.
    pub(crate) enrolment: EnrolmentRules,
    /// ConfigMap of the MeshConfig.
    pub(crate) mesh_config: ObjectRef,
    /// What the control plane was told itself, which counts before that.
    pub(crate) given: Given,
}

/// What somebody said who started the control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Where workloads may go.
    pub(crate) outbound: bool,
    /// Which namespaces count.
    pub(crate) selectors: bool,
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
    /// Every name of the trust domain, each once, its own first.
    pub(crate) fn names(&self) -> Vec<Str> {
        let mut all = vec![self.trust_domain.clone()];
        for alias in &self.trust_domain_aliases {
            if !alias.is_empty() && !all.contains(alias) {
                all.push(alias.clone());
            }
        }
        all
    }

    /// What a peer with this identity of the mesh may be called in its certificate.
    pub(crate) fn principals(&self, identity: &Identity) -> Vec<String> {
        let named = |name: Str| {
            let own = Identity {
                trust_domain: name,
                ..identity.clone()
            };
            own.principal()
        };
        self.names().into_iter().map(named).collect()
    }

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
