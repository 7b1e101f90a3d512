use serde::{Deserialize, Serialize};

use super::WorkloadSelector;

/// Who may do what with a target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    /// Workloads it protects; absent means the whole namespace.
    pub selector: Option<WorkloadSelector>,
    /// Deprecated singular of `targetRefs`.
    pub target_ref: Option<TargetReference>,
    /// What it protects at a waypoint or gateway.
    pub target_refs: Vec<TargetReference>,
    /// One must match; none at all never matches.
    pub rules: Vec<Rule>,
    /// What a match means; ALLOW when absent.
    pub action: Action,
    /// External authoriser of CUSTOM.
    pub provider: Option<ExtensionProvider>,
}

impl AuthorizationPolicySpec {
    /// `targetRefs` and the deprecated `targetRef` together.
    pub fn targets(&self) -> impl Iterator<Item = &TargetReference> {
        self.target_refs.iter().chain(&self.target_ref)
    }
}

/// What a match means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Permit; with any ALLOW policy present everything else is refused.
    #[default]
    Allow,
    /// Refuse.
    Deny,
    /// Only record.
    Audit,
    /// Ask an external authoriser.
    Custom,
}

/// An object that a policy is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetReference {
    /// API group; empty is the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; only the policy's own is allowed.
    pub namespace: String,
}

/// An external authoriser.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// Its name in the mesh settings.
    pub name: String,
}

/// Matches when `from`, `to` and `when` do; an empty list matches everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// One source must match.
    pub from: Vec<From>,
    /// One operation must match.
    pub to: Vec<To>,
    /// All conditions must hold.
    pub when: Vec<Condition>,
}

/// Wraps a source, as Istio writes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct From {
    /// The source.
    pub source: Option<Source>,
}

/// Wraps an operation, as Istio writes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct To {
    /// The operation.
    pub operation: Option<Operation>,
}

/// The caller; all non-empty lists must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// SPIFFE ids without scheme; `*` alone, in front or at the end.
    pub principals: Vec<String>,
    /// None of these.
    pub not_principals: Vec<String>,
    /// `iss/sub` of a token.
    pub request_principals: Vec<String>,
    /// None of these.
    pub not_request_principals: Vec<String>,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// None of these.
    pub not_namespaces: Vec<String>,
    /// Peer addresses or networks.
    pub ip_blocks: Vec<String>,
    /// None of these.
    pub not_ip_blocks: Vec<String>,
    /// Original client addresses or networks.
    pub remote_ip_blocks: Vec<String>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<String>,
    /// `namespace/account`, or `account` in the policy's namespace.
    pub service_accounts: Vec<String>,
    /// None of these.
    pub not_service_accounts: Vec<String>,
    /// Trust domains.
    pub trust_domains: Vec<String>,
    /// None of these.
    pub not_trust_domains: Vec<String>,
}

/// What the caller does; all non-empty lists must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Host headers, compared without case.
    pub hosts: Vec<String>,
    /// None of these.
    pub not_hosts: Vec<String>,
    /// Port numbers as text.
    pub ports: Vec<String>,
    /// None of these.
    pub not_ports: Vec<String>,
    /// HTTP methods.
    pub methods: Vec<String>,
    /// None of these.
    pub not_methods: Vec<String>,
    /// Paths, also with `*`, `{*}` and `{**}`.
    pub paths: Vec<String>,
    /// None of these.
    pub not_paths: Vec<String>,
}

/// A further condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Attribute, for example `source.ip` or `request.headers[x]`.
    pub key: String,
    /// One must match.
    pub values: Vec<String>,
    /// None of these.
    pub not_values: Vec<String>,
}
