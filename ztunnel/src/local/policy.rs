use isobar_proto::istio::security as wire;
use serde::{Deserialize, Serialize};

use super::{LocalError, address, bad};

/// One L4 policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// Name of the object.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What it covers.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Rules of clauses of matches.
    #[serde(default)]
    pub rules: Vec<Vec<Vec<Match>>>,
    /// Told but not enforced.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a policy covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The whole mesh.
    Global,
    /// Its namespace.
    Namespace,
    /// The workloads that list it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Let in; what nothing allows is refused then.
    Allow,
    /// Refuse.
    Deny,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Text {
    /// The whole of it.
    Exact(String),
    /// Its start.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// Anything not empty.
    Presence([(); 0]),
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
}

/// One match: every list that is not empty must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "each is the key of the dump")]
pub struct Match {
    pub namespaces: Vec<Text>,
    pub not_namespaces: Vec<Text>,
    pub service_accounts: Vec<Account>,
    pub not_service_accounts: Vec<Account>,
    pub principals: Vec<Text>,
    pub not_principals: Vec<Text>,
    pub source_ips: Vec<String>,
    pub not_source_ips: Vec<String>,
    pub destination_ips: Vec<String>,
    pub not_destination_ips: Vec<String>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

impl Policy {
    pub(super) fn wire(&self, object: &str) -> Result<wire::Authorization, LocalError> {
        let clause = |matches: &Vec<Match>| {
            let matches = matches.iter().map(|m| m.wire(object));
            Ok::<_, LocalError>(wire::Clause {
                matches: matches.collect::<Result<_, _>>()?,
            })
        };
        let rules = self.rules.iter().map(|clauses| {
            Ok(wire::Rule {
                clauses: clauses.iter().map(clause).collect::<Result<_, _>>()?,
            })
        });
        Ok(wire::Authorization {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            scope: match self.scope {
                Scope::Global => wire::Scope::Global,
                Scope::Namespace => wire::Scope::Namespace,
                Scope::WorkloadSelector => wire::Scope::WorkloadSelector,
            }
            .into(),
            action: match self.action {
                Action::Allow => wire::Action::Allow,
                Action::Deny => wire::Action::Deny,
            }
            .into(),
            rules: rules.collect::<Result<_, LocalError>>()?,
            dry_run: self.dry_run,
            ..wire::Authorization::default()
        })
    }
}

impl Match {
    fn wire(&self, object: &str) -> Result<wire::Match, LocalError> {
        let ranges = |field, texts: &[String]| -> Result<Vec<_>, _> {
            texts.iter().map(|t| range(object, field, t)).collect()
        };
        Ok(wire::Match {
            namespaces: texts(&self.namespaces),
            not_namespaces: texts(&self.not_namespaces),
            service_accounts: accounts(&self.service_accounts),
            not_service_accounts: accounts(&self.not_service_accounts),
            principals: texts(&self.principals),
            not_principals: texts(&self.not_principals),
            source_ips: ranges("sourceIps", &self.source_ips)?,
            not_source_ips: ranges("notSourceIps", &self.not_source_ips)?,
            destination_ips: ranges("destinationIps", &self.destination_ips)?,
            not_destination_ips: ranges("notDestinationIps", &self.not_destination_ips)?,
            destination_ports: ports(&self.destination_ports),
            not_destination_ports: ports(&self.not_destination_ports),
            ..wire::Match::default()
        })
    }
}

fn texts(all: &[Text]) -> Vec<wire::StringMatch> {
    use wire::string_match::MatchType;
    let one = |text: &Text| wire::StringMatch {
        match_type: Some(match text {
            Text::Exact(x) => MatchType::Exact(x.clone()),
            Text::Prefix(x) => MatchType::Prefix(x.clone()),
            Text::Suffix(x) => MatchType::Suffix(x.clone()),
            Text::Presence(_) => MatchType::Presence(()),
        }),
    };
    all.iter().map(one).collect()
}

fn accounts(all: &[Account]) -> Vec<wire::ServiceAccountMatch> {
    let one = |account: &Account| wire::ServiceAccountMatch {
        namespace: account.namespace.clone(),
        service_account: account.service_account.clone(),
    };
    all.iter().map(one).collect()
}

fn ports(all: &[u16]) -> Vec<u32> {
    all.iter().copied().map(u32::from).collect()
}

/// `address/bits`.
fn range(object: &str, field: &'static str, text: &str) -> Result<wire::Address, LocalError> {
    let expected = "a range such as 10.0.0.0/8";
    let (ip, bits) = text
        .split_once('/')
        .ok_or_else(|| bad(object, field, text, expected))?;
    Ok(wire::Address {
        address: address(object, field, ip)?,
        length: bits
            .parse()
            .map_err(|_| bad(object, field, text, expected))?,
    })
}
