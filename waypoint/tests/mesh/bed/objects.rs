//! Objects as the control plane sends them.

use std::collections::BTreeMap;

use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::security;

use super::HOST;

pub(crate) fn service_ref() -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: "default".into(),
        hostname: HOST.into(),
    }
}

/// A destination: this service's subset, or the whole service for the empty name.
pub(crate) fn to(subset: &str, weight: u32) -> proto::WeightedDestination {
    proto::WeightedDestination {
        destination: Some(proto::Destination {
            service: Some(service_ref()),
            subset: subset.into(),
            ..Default::default()
        }),
        weight,
        ..Default::default()
    }
}

pub(crate) fn forward(
    name: &str,
    destinations: Vec<proto::WeightedDestination>,
) -> proto::HttpRoute {
    proto::HttpRoute {
        name: name.into(),
        action: Some(proto::http_route::Action::Forward(proto::HttpForward {
            destinations,
        })),
        ..Default::default()
    }
}

pub(crate) fn on_prefix(prefix: &str) -> proto::HttpMatch {
    proto::HttpMatch {
        uri: Some(proto::StringMatch {
            match_type: Some(proto::string_match::MatchType::Prefix(prefix.into())),
        }),
        ..Default::default()
    }
}

pub(crate) fn virtual_service(http: Vec<proto::HttpRoute>) -> proto::VirtualService {
    proto::VirtualService {
        namespace: "default".into(),
        name: "vs".into(),
        parents: vec![service_ref()],
        http,
        ..Default::default()
    }
}

/// Subsets v1 and v2 by the label `version`.
pub(crate) fn subsets() -> proto::DestinationRule {
    let subset = |version: &str| proto::Subset {
        name: version.into(),
        labels: BTreeMap::from([("version".to_owned(), version.to_owned())]),
        traffic_policy: None,
    };
    proto::DestinationRule {
        namespace: "default".into(),
        name: "dr".into(),
        services: vec![service_ref()],
        subsets: vec![subset("v1"), subset("v2")],
        ..Default::default()
    }
}

pub(crate) fn deny_path(path: &str) -> proto::Authorization {
    proto::Authorization {
        namespace: "default".into(),
        name: "no-admin".into(),
        action: proto::authorization::Action::Deny.into(),
        services: vec![service_ref()],
        rules: vec![proto::AuthorizationRule {
            to: vec![proto::AuthorizationOperation {
                paths: vec![proto::ValueMatch {
                    match_type: Some(proto::value_match::MatchType::Prefix(path.into())),
                }],
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Allows one account of namespace default.
pub(crate) fn allow_account(account: &str) -> proto::Authorization {
    on_account(account, proto::authorization::Action::Allow)
}

/// Allows or denies one account of namespace default.
pub(crate) fn on_account(
    account: &str,
    action: proto::authorization::Action,
) -> proto::Authorization {
    proto::Authorization {
        namespace: "default".into(),
        name: "only".into(),
        action: action.into(),
        services: vec![service_ref()],
        rules: vec![proto::AuthorizationRule {
            from: vec![proto::AuthorizationSource {
                principals: vec![proto::ValueMatch {
                    match_type: Some(proto::value_match::MatchType::Exact(format!(
                        "cluster.local/ns/default/sa/{account}"
                    ))),
                }],
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A DENY on one account of namespace default for every pod there, as node proxies get it.
pub(crate) fn pods_deny(account: &str) -> security::Authorization {
    let principal = format!("cluster.local/ns/default/sa/{account}");
    let matches = security::Match {
        principals: vec![security::StringMatch {
            match_type: Some(security::string_match::MatchType::Exact(principal)),
        }],
        ..Default::default()
    };
    let clause = security::Clause {
        matches: vec![matches],
    };
    security::Authorization {
        name: "pods".into(),
        namespace: "default".into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule {
            clauses: vec![clause],
        }],
        ..Default::default()
    }
}
