use isobar_proto::isobar::v1 as proto;
use proto::string_match::MatchType;
use serde_json::{Value, json};

use super::listener::Caller;

/// A route match, or `None` for one that this caller or port never meets.
pub(super) fn route_match(from: &proto::HttpMatch, caller: &Caller, port: u16) -> Option<Value> {
    let port_is = from.port == 0 || from.port == u32::from(port);
    let namespace_is =
        from.source_namespace.is_empty() || from.source_namespace == caller.namespace;
    let mut labels = from.source_labels.iter();
    let labels_are = labels.all(|(key, value)| caller.labels.get(key) == Some(value));
    if !port_is || !namespace_is || !labels_are {
        return None;
    }
    let mut out = match from.uri.as_ref().and_then(|uri| uri.match_type.as_ref()) {
        Some(MatchType::Exact(path)) => json!({"path": path}),
        Some(MatchType::Prefix(prefix)) => json!({"prefix": prefix}),
        Some(MatchType::Regex(regex)) => json!({"safe_regex": {"regex": regex}}),
        Some(MatchType::PathPrefix(prefix)) => match prefix.trim_end_matches('/') {
            "" => json!({"prefix": "/"}),
            elements => json!({"path_separated_prefix": elements}),
        },
        None | Some(MatchType::Present(_)) => json!({"prefix": "/"}),
    };
    if from.ignore_uri_case {
        out["case_sensitive"] = json!(false);
    }
    let mut headers: Vec<Value> = Vec::new();
    headers.extend(from.headers.iter().map(|(name, m)| header(name, m, false)));
    let without = &from.without_headers;
    headers.extend(without.iter().map(|(name, m)| header(name, m, true)));
    for (name, m) in [
        (":method", &from.method),
        (":authority", &from.authority),
        (":scheme", &from.scheme),
    ] {
        headers.extend(m.as_ref().map(|m| header(name, m, false)));
    }
    out["headers"] = json!(headers);
    let query = from
        .query_params
        .iter()
        .map(|(name, m)| match string_match(m) {
            Some(text) => json!({"name": name, "string_match": text}),
            None => json!({"name": name, "present_match": true}),
        });
    out["query_parameters"] = query.collect();
    Some(out)
}

fn header(name: &str, m: &proto::StringMatch, inverted: bool) -> Value {
    let mut out = json!({"name": name});
    if inverted {
        out["invert_match"] = json!(true);
    }
    match string_match(m) {
        Some(text) => {
            out["string_match"] = text;
            if inverted {
                out["treat_missing_header_as_empty"] = json!(true);
            }
        }
        None => out["present_match"] = json!(true),
    }
    out
}

/// `None` for mere presence.
pub(super) fn string_match(from: &proto::StringMatch) -> Option<Value> {
    match from.match_type.as_ref() {
        Some(MatchType::Exact(text)) => Some(json!({"exact": text})),
        Some(MatchType::Prefix(text) | MatchType::PathPrefix(text)) => {
            Some(json!({"prefix": text}))
        }
        Some(MatchType::Regex(text)) => Some(json!({"safe_regex": {"regex": text}})),
        None | Some(MatchType::Present(_)) => None,
    }
}
