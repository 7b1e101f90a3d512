//! Rules beyond types: those of Kubernetes and Istio that a wrong object would break.

mod authorization;
mod canary;
mod destination_rule;
mod gateway;
mod ignored;
mod istio_gateway;
mod kubernetes;
mod mesh_config;
mod network_policy;
mod peer_authentication;
mod rate_limit;
mod references;
mod route;
mod service_entry;
mod virtual_service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isobar_types::is_framing;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::finding::{Finding, Severity};
use crate::names;
use crate::object::{Object, ObjectHead as _};
use crate::support;

pub(crate) use authorization::is_usable as is_usable_target;
pub(crate) use references::host_claims;
pub use references::{Extent, validate_set};

/// What is wrong or worth knowing about one object on its own, beyond types: used by the directory
/// source, by `isobard --validate` and by the admission webhook.
#[must_use]
pub fn validate(object: &Object) -> Vec<Finding> {
    let mut findings = validate_fields(object);
    if let Ok(value) = object.to_value() {
        findings.extend(support::unsupported(object.kind(), &value));
    }
    let reference = object.reference();
    findings
        .into_iter()
        .map(|finding| finding.about(&reference))
        .collect()
}

/// As [`validate`], without what is not supported yet and without naming the object.
pub(crate) fn validate_fields(object: &Object) -> Vec<Finding> {
    let mut report = Report::default();
    head(object, &mut report);
    ignored::check(object, &mut report);
    match object {
        Object::VirtualService(object) => virtual_service::check(&object.spec, &mut report),
        Object::DestinationRule(object) => destination_rule::check(&object.spec, &mut report),
        Object::AuthorizationPolicy(object) => authorization::check(object, &mut report),
        Object::RateLimitPolicy(object) => rate_limit::check(object, &mut report),
        Object::PeerAuthentication(object) => peer_authentication::check(&object.spec, &mut report),
        Object::ServiceEntry(object) => service_entry::check(&object.spec, &mut report),
        Object::WorkloadEntry(object) => service_entry::endpoint(&object.spec, &mut report),
        Object::Gateway(object) => {
            gateway::names(object, &mut report);
            gateway::binding(&**object, &mut report);
            gateway::check(object, &mut report);
        }
        Object::IstioGateway(object) => istio_gateway::check(&object.spec, &mut report),
        Object::HttpRoute(object) => route::http(&object.spec, &mut report),
        Object::GrpcRoute(object) => route::grpc(&object.spec, &mut report),
        Object::TcpRoute(object) => route::tcp(&object.spec, &mut report),
        Object::TlsRoute(object) => route::tls(&object.spec, &mut report),
        Object::ReferenceGrant(object) => route::grant(&object.spec, &mut report),
        Object::NetworkPolicy(object) => network_policy::check(object, &mut report),
        Object::ConfigMap(object) => mesh_config::check(object, &mut report),
        Object::Service(object) => kubernetes::service(object, &mut report),
        Object::Pod(object) => kubernetes::pod(object, &mut report),
        Object::Deployment(object) => kubernetes::deployment(object, &mut report),
        Object::GatewayClass(object) => {
            gateway::binding(&**object, &mut report);
            report.required("spec.controllerName", &object.spec.controller_name);
        }
        Object::Namespace(object) => {
            report.label("metadata.name", "a namespace: no dots", object.name());
        }
        Object::Node(_)
        | Object::ServiceAccount(_)
        | Object::Secret(_)
        | Object::EndpointSlice(_) => {}
    }
    report.0
}

fn head(object: &Object, report: &mut Report) {
    let head = object.head();
    if let Some(namespace) = &head.namespace
        && object.kind().is_namespaced()
    {
        report.label("metadata.namespace", "a namespace", namespace);
    }
    report.labels("metadata.labels", head.labels.as_ref());
    for key in head.annotations.iter().flat_map(BTreeMap::keys) {
        if !names::is_qualified(key) {
            let message = format!("{key:?} is not a valid annotation key");
            report.error(format!("metadata.annotations[{key}]"), message);
        }
    }
}

/// Findings being collected.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Finding>);

impl Report {
    fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Finding::error(field, message));
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Finding::warning(field, message));
    }

    fn unsupported(&mut self, field: impl Into<String>, message: &str) {
        let message = format!("not supported yet: {message}");
        self.push(Finding::new(Severity::Unsupported, field, message));
    }

    /// A name that has to be a DNS label; `what` says whose name.
    fn label(&mut self, field: impl Into<String>, what: &str, name: &str) {
        if !names::is_label(name) {
            let other = || format!("{name:?} is not the name of {what}");
            self.error(field, names::too_long_label(name).unwrap_or_else(other));
        }
    }

    fn required(&mut self, field: &str, text: &str) {
        if text.is_empty() {
            self.error(field, "must not be empty");
        }
    }

    fn port(&mut self, field: impl Into<String>, port: i64) {
        if !(1..=65535).contains(&port) {
            self.error(field, format!("{port} is not a port: 1 to 65535"));
        }
    }

    fn labels(&mut self, field: &str, labels: Option<&BTreeMap<String, String>>) {
        for (key, value) in labels.into_iter().flatten() {
            let field = format!("{field}[{key}]");
            if !names::is_qualified(key) {
                self.error(field, format!("{key:?} is not a valid label key"));
            } else if !names::is_label_value(value) {
                let message = format!(
                    "{value:?} is not a valid label value: at most 63 letters, digits, \"-\", \"_\", \".\""
                );
                self.error(field, message);
            }
        }
    }

    fn selector(&mut self, field: &str, selector: Option<&LabelSelector>) {
        let Some(selector) = selector else { return };
        self.labels(
            &format!("{field}.matchLabels"),
            selector.match_labels.as_ref(),
        );
        for (index, rule) in selector.match_expressions.iter().flatten().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            if !names::is_qualified(&rule.key) {
                let message = format!("{:?} is not a valid label key", rule.key);
                self.error(format!("{field}.key"), message);
            }
            let listed = rule.values.iter().flatten().count();
            match rule.operator.as_str() {
                "In" | "NotIn" if listed == 0 => {
                    let message = format!("{} needs at least one value", rule.operator);
                    self.error(format!("{field}.values"), message);
                }
                "Exists" | "DoesNotExist" if listed > 0 => {
                    let message = format!("{} takes no values", rule.operator);
                    self.error(format!("{field}.values"), message);
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => {
                    let message = format!("{other:?} is none of In, NotIn, Exists, DoesNotExist");
                    self.error(format!("{field}.operator"), message);
                }
            }
        }
    }

    /// An address or a network in CIDR form.
    fn network(&mut self, field: impl Into<String>, text: &str) {
        if parse_network(text).is_none() {
            let message =
                format!("{text:?} is neither an address nor a network such as 10.0.0.0/8");
            self.error(field, message);
        }
    }

    /// A header that a rule writes.
    fn framing(&mut self, field: impl Into<String>, name: &str) {
        if is_framing(name) {
            let message = format!("{name:?} says where messages end or what the connection is for");
            let hint = "only proxies and applications write it: take it out";
            self.push(Finding::error(field, message).with_hint(hint));
        }
    }

    /// What is sent as the value of a header, or as part of one (RFC 9110 §5.5).
    fn header_value(&mut self, field: impl Into<String>, text: &str) {
        if text.chars().any(|c| c.is_control() && c != '\t') {
            let message = format!("{text:?} has a control character, which no header may have");
            self.error(field, message);
        }
    }

    fn pattern(&mut self, field: impl Into<String>, pattern: &str) {
        if let Err(error) = isobar_route::Pattern::full(pattern) {
            let message = format!("invalid regular expression {pattern:?}: {}", error.problem);
            self.push(Finding::error(field, message).with_hint("the syntax is RE2's"));
        }
    }

    /// Every item once.
    fn unique<'a>(&mut self, what: &str, items: impl Iterator<Item = (String, &'a str)>) {
        let mut seen = BTreeSet::new();
        for (field, item) in items {
            if !seen.insert(item) {
                self.error(field, format!("{what} {item:?} is there twice"));
            }
        }
    }
}

fn parse_network(text: &str) -> Option<ipnet::IpNet> {
    text.parse::<ipnet::IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(ipnet::IpNet::from))
}

#[cfg(test)]
mod tests;
