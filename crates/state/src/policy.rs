use ipnet::IpNet;
use isobar_types::{NamespacedName, Str};

/// An L4 policy. Made by [`crate::convert::authorization`] from `istio.security.Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Key: namespace and name. A global policy keeps the namespace of its object.
    pub key: NamespacedName,
    /// What it applies to.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// Any of them; none: never matches.
    pub rules: Vec<Rule>,
    /// Evaluate and tell, but do not enforce.
    pub dry_run: bool,
}

/// What a policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyScope {
    /// Every workload.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// Workloads that list the policy's key.
    WorkloadSelector,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Let pass; where an enforced ALLOW exists, whatever none matches is refused.
    Allow,
    /// Refuse, whatever else matches.
    Deny,
}

/// All clauses; none: matches everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// Any match; a clause without matches is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// The alternatives.
    pub matches: Vec<Match>,
}

/// All groups; a group holds if (positive list empty or one hits) and no negative one hits.
/// A match with every list empty never matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// Namespace of the peer's identity; the empty string without one.
    pub namespaces: Vec<TextMatch>,
    /// Negation of `namespaces`.
    pub not_namespaces: Vec<TextMatch>,
    /// The peer's identity without its scheme; nothing hits without one.
    pub principals: Vec<TextMatch>,
    /// Negation of `principals`.
    pub not_principals: Vec<TextMatch>,
    /// The TCP peer's address.
    pub source_ips: Vec<IpNet>,
    /// Negation of `source_ips`.
    pub not_source_ips: Vec<IpNet>,
    /// The address that is dialled.
    pub destination_ips: Vec<IpNet>,
    /// Negation of `destination_ips`.
    pub not_destination_ips: Vec<IpNet>,
    /// The port that is dialled.
    pub destination_ports: Vec<u16>,
    /// Negation of `destination_ports`.
    pub not_destination_ports: Vec<u16>,
    /// Namespace and account of the peer's identity, in any trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Negation of `service_accounts`.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

impl Match {
    /// True if every list is empty. The destructuring makes a new list choose its place here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
            service_accounts,
            not_service_accounts,
        } = self;
        namespaces.is_empty()
            && not_namespaces.is_empty()
            && principals.is_empty()
            && not_principals.is_empty()
            && source_ips.is_empty()
            && not_source_ips.is_empty()
            && destination_ips.is_empty()
            && not_destination_ips.is_empty()
            && destination_ports.is_empty()
            && not_destination_ports.is_empty()
            && service_accounts.is_empty()
            && not_service_accounts.is_empty()
    }
}

/// An account in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub service_account: Str,
}

/// The forms of a text condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// The whole text.
    Exact(Str),
    /// The start.
    Prefix(Str),
    /// The end.
    Suffix(Str),
    /// Not empty.
    Presence,
}

impl TextMatch {
    /// True if `text` satisfies the condition.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(want) => text == &**want,
            Self::Prefix(want) => text.starts_with(&**want),
            Self::Suffix(want) => text.ends_with(&**want),
            Self::Presence => !text.is_empty(),
        }
    }
}
