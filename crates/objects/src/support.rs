//! Fields that are known and not honoured yet. One table: a field leaves it when it works.

mod features;
mod rows;

pub use features::{Feature, State, features};

use serde_json::Value;

use crate::finding::{Finding, Severity};
use crate::kinds::Kind;

/// A field by path (`[]` stands for every item), and when its value asks for something.
struct Gap {
    path: &'static str,
    asks: fn(&Value) -> bool,
    hint: &'static str,
}

const fn gap(path: &'static str) -> Gap {
    Gap {
        path,
        asks: says_something,
        hint: "",
    }
}

const VIRTUAL_SERVICE: &[Gap] = &[
    gap("spec.http[].fault.delay.exponentialDelay"),
    gap("spec.http[].fault.abort.http2Error"),
];

const DESTINATION_RULE: &[Gap] = &[Gap {
    path: "spec.workloadSelector",
    asks: says_something,
    hint: "the rule is in force nowhere; without the field it counts for all callers",
}];

/// Below `spec` and below `spec.subsets[]`.
const TRAFFIC_POLICY: &[Gap] = &[
    gap("trafficPolicy.loadBalancer.zoneAwareLbSetting"),
    Gap {
        path: "trafficPolicy.tls.caCrl",
        asks: says_something,
        hint: "calls are refused until it is removed",
    },
    gap("trafficPolicy.outlierDetection.consecutiveErrors"),
    gap("trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes"),
    gap("trafficPolicy.tunnel"),
    gap("trafficPolicy.retryBudget.budgetInterval"),
];

/// Of policies with `targetRefs`, which waypoints enforce.
const POLICY_OF_WAYPOINTS: &[Gap] = &[
    Gap {
        path: "spec.action",
        asks: is_custom,
        hint: "everything is refused while it stands there; \
               the filter ExternalAuth of an HTTPRoute asks an authoriser",
    },
    gap("spec.provider"),
    gap("spec.rules[].from[].source.requestPrincipals"),
    gap("spec.rules[].from[].source.notRequestPrincipals"),
    Gap {
        path: "spec.rules[].when[].key",
        asks: is_unknowable,
        hint: "",
    },
];

/// A field of policies that node proxies and gateways enforce, of which only gateways see what it asks for.
const fn seen_by_gateways(path: &'static str, asks: fn(&Value) -> bool) -> Gap {
    Gap {
        path,
        asks,
        hint: "node proxies do not see it; gateways that the policy is about do: \
               with targetRefs it is for gateways and waypoints alone",
    }
}

/// Beyond these, of policies that node proxies enforce.
const POLICY_OF_NODES: &[Gap] = &[
    Gap {
        path: "metadata.annotations.istio.io/dry-run",
        asks: is_true,
        hint: "remove the annotation to enforce the policy",
    },
    seen_by_gateways("spec.rules[].from[].source.remoteIpBlocks", says_something),
    seen_by_gateways(
        "spec.rules[].from[].source.notRemoteIpBlocks",
        says_something,
    ),
    seen_by_gateways("spec.rules[].from[].source.trustDomains", says_something),
    seen_by_gateways("spec.rules[].from[].source.notTrustDomains", says_something),
    seen_by_gateways("spec.rules[].when[].key", is_remote),
];

const GATEWAY: &[Gap] = &[
    gap("spec.addresses"),
    gap("spec.allowedListeners"),
    gap("spec.defaultScope"),
    gap("spec.tls"),
];

const ISTIO_GATEWAY: &[Gap] = &[
    Gap {
        path: "spec.servers[].bind",
        asks: is_one_address,
        hint: "servers listen on every address of their pods: remove it",
    },
    gap("spec.servers[].tls.serverCertificate"),
    gap("spec.servers[].tls.privateKey"),
    gap("spec.servers[].tls.caCertificates"),
    gap("spec.servers[].tls.caCrl"),
    gap("spec.servers[].tls.tlsCertificates"),
    gap("spec.servers[].tls.verifyCertificateSpki"),
    gap("spec.servers[].tls.verifyCertificateHash"),
    gap("spec.servers[].tls.cipherSuites"),
];

const HTTP_ROUTE: &[Gap] = &[Gap {
    path: "spec.rules[].backendRefs[].filters[].cors",
    asks: says_something,
    hint: "a preflight is answered before a destination is chosen: write it for the rule",
}];

/// Which tables hold for a kind, each with what its paths begin with.
fn tables(kind: Kind) -> &'static [(&'static str, &'static [Gap])] {
    match kind {
        Kind::VirtualService => &[("", VIRTUAL_SERVICE)],
        Kind::DestinationRule => &[
            ("", DESTINATION_RULE),
            ("spec.", TRAFFIC_POLICY),
            ("spec.subsets[].", TRAFFIC_POLICY),
        ],
        Kind::AuthorizationPolicy => &[("", POLICY_OF_WAYPOINTS)],
        Kind::Gateway => &[("", GATEWAY)],
        Kind::IstioGateway => &[("", ISTIO_GATEWAY)],
        Kind::HttpRoute | Kind::GrpcRoute => &[("", HTTP_ROUTE)],
        _ => &[],
    }
}

/// Paths of the fields of a kind that are not honoured, or not with every value.
fn gaps(kind: Kind) -> Vec<String> {
    let tables = tables(kind).iter();
    tables
        .flat_map(|(root, table)| table.iter().map(move |gap| format!("{root}{}", gap.path)))
        .collect()
}

/// One [`Severity::Unsupported`] finding for each field that asks for what we do not do yet.
pub(crate) fn unsupported(kind: Kind, object: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let nodes: &[(&str, &[Gap])] = match kind {
        Kind::AuthorizationPolicy if !has_targets(object) => &[("", POLICY_OF_NODES)],
        _ => &[],
    };
    for (root, table) in tables(kind).iter().chain(nodes) {
        for gap in *table {
            let path = format!("{root}{}", gap.path);
            visit(object, &path, String::new(), &mut |field, value| {
                if (gap.asks)(value) {
                    findings.push(finding(field, gap.hint));
                }
            });
        }
    }
    findings
}

fn finding(field: String, hint: &str) -> Finding {
    let leaf = field.rsplit(['.', ']']).find(|part| !part.is_empty());
    let message = format!("not supported yet: {}", leaf.unwrap_or(&field));
    let finding = Finding::new(Severity::Unsupported, field, message);
    if hint.is_empty() {
        finding
    } else {
        finding.with_hint(hint)
    }
}

/// Calls `found` with every value at `path`.
fn visit(value: &Value, path: &str, so_far: String, found: &mut dyn FnMut(String, &Value)) {
    // The one key with dots in it.
    let (key, rest) = match path.split_once('.') {
        Some(_) if path.starts_with("istio.io/") => (path, None),
        Some((key, rest)) => (key, Some(rest)),
        None => (path, None),
    };
    let (name, each) = key
        .strip_suffix("[]")
        .map_or((key, false), |name| (name, true));
    let Some(inner) = value.get(name) else {
        return;
    };
    let mut field = so_far;
    crate::strict::push_key(&mut field, name);
    let mut step = |field: String, inner: &Value| match rest {
        Some(rest) => visit(inner, rest, field, found),
        None => found(field, inner),
    };
    if each {
        for (index, item) in inner.as_array().into_iter().flatten().enumerate() {
            step(format!("{field}[{index}]"), item);
        }
    } else {
        step(field, inner);
    }
}

fn is_one_address(value: &Value) -> bool {
    !matches!(value.as_str(), None | Some("" | "0.0.0.0" | "::"))
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Object(map) => map.values().any(says_something),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

fn is_true(value: &Value) -> bool {
    value.as_str() == Some("true")
}

fn is_custom(value: &Value) -> bool {
    value.as_str() == Some("CUSTOM")
}

/// Conditions that need tokens or Envoy's own metadata.
fn is_unknowable(value: &Value) -> bool {
    value.as_str().is_some_and(|key| {
        key.starts_with("request.auth.") || key.starts_with("experimental.envoy.")
    })
}

fn is_remote(value: &Value) -> bool {
    value.as_str() == Some("remote.ip")
}

fn has_targets(policy: &Value) -> bool {
    let spec = policy.get("spec");
    let says = |field| spec.and_then(|s| s.get(field)).is_some_and(says_something);
    says("targetRefs") || says("targetRef")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(kind: Kind, value: &Value) -> Vec<String> {
        let findings = unsupported(kind, value);
        findings.into_iter().map(|finding| finding.field).collect()
    }

    #[test]
    fn every_gap_that_is_used_is_named_with_its_place() {
        let object = json!({"spec": {
            "exportTo": ["."],
            "http": [
                {"retries": {"attempts": 0}, "mirrors": []},
                {"retries": {"attempts": 2}, "fault": {"abort": {"http2Error": "X"}},
                 "match": [{}, {"statPrefix": "g"}]}],
        }});
        assert_eq!(
            fields(Kind::VirtualService, &object),
            ["spec.http[1].fault.abort.http2Error"]
        );
        let rule = json!({"spec": {
            "exportTo": ["*"],
            "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}, "loadBalancer": {"simple": "RANDOM"}},
            "subsets": [{"trafficPolicy": {"tls": {"mode": "DISABLE", "caCrl": "/l"}}}]}});
        assert_eq!(
            fields(Kind::DestinationRule, &rule),
            ["spec.subsets[0].trafficPolicy.tls.caCrl"]
        );
        let route = json!({"spec": {"rules": [{
            "filters": [{"type": "CORS", "cors": {"allowOrigins": ["*"]}}],
            "backendRefs": [{"filters": [{"type": "CORS", "cors": {"allowOrigins": ["*"]}}]}]}]}});
        assert_eq!(
            fields(Kind::HttpRoute, &route),
            ["spec.rules[0].backendRefs[0].filters[0].cors"]
        );
        let policy = json!({"metadata": {"annotations": {"istio.io/dry-run": "true"}},
            "spec": {"action": "CUSTOM", "rules": [{"when": [
                {"key": "source.ip"}, {"key": "request.auth.claims[iss]"}]}]}});
        assert_eq!(
            fields(Kind::AuthorizationPolicy, &policy),
            [
                "spec.action",
                "spec.rules[0].when[1].key",
                "metadata.annotations[istio.io/dry-run]"
            ]
        );
        let told = unsupported(Kind::AuthorizationPolicy, &policy);
        let hint = told[0].hint.as_deref().unwrap_or("");
        assert!(hint.contains("everything is refused"), "{hint}");
        assert!(hint.contains("ExternalAuth"), "{hint}");
        let by_address = json!({"spec": {"selector": {"matchLabels": {"istio": "ingressgateway"}},
            "rules": [{"from": [{"source": {"remoteIpBlocks": ["192.0.2.0/24"]}}]}]}});
        let told = unsupported(Kind::AuthorizationPolicy, &by_address);
        let hint = told[0].hint.as_deref().unwrap_or("");
        assert!(
            hint.contains("gateways that the policy is about do"),
            "{told:?}"
        );
        let mut targeted = policy;
        targeted["spec"]["targetRefs"] = json!([{"kind": "Service", "name": "x"}]);
        assert_eq!(
            fields(Kind::AuthorizationPolicy, &targeted),
            ["spec.action", "spec.rules[0].when[1].key"]
        );
    }
}
