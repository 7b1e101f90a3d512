use isobar_proto::isobar::v1 as proto;
use proto::http_route::Action;
use serde_json::{Map, Value, json};

use super::cluster::{cluster_name, policy};
use super::external_auth;
use super::listener::{Caller, Mesh};
use super::matching::{route_match, string_match};

/// What Istio's waypoints retry where nothing is said.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// Routes for one caller on one port.
pub(super) struct Routes<'a> {
    pub(super) mesh: &'a Mesh<'a>,
    pub(super) caller: &'a Caller,
    pub(super) port: u16,
}

impl Routes<'_> {
    /// All routes of a service, in order; the plain one where no VirtualService says anything.
    pub(super) fn of(&self, hostname: &str) -> Vec<Value> {
        let mine = self.mesh.virtual_services.iter().filter(|vs| {
            let mut parents = vs.parents.iter();
            !vs.http.is_empty() && parents.any(|parent| parent.hostname == hostname)
        });
        let mut any = false;
        let mut routes = Vec::new();
        for route in mine.flat_map(|vs| &vs.http) {
            any = true;
            routes.extend(self.route(&folded(route)));
        }
        if any {
            return routes;
        }
        let cluster = cluster_name(self.mesh, hostname, self.port.into(), "");
        vec![
            json!({"name": "default", "match": {"prefix": "/"}, "route": {
            "cluster": cluster, "timeout": "0s", "max_grpc_timeout": "0s",
            "retry_policy": retry_policy(None)}}),
        ]
    }

    /// One entry for each match block.
    fn route(&self, from: &proto::HttpRoute) -> Vec<Value> {
        let everything = [proto::HttpMatch::default()];
        let blocks = if from.matches.is_empty() {
            &everything[..]
        } else {
            &from.matches
        };
        let matches = blocks
            .iter()
            .filter_map(|block| route_match(block, self.caller, self.port));
        let made = matches.map(|block| {
            let mut out = json!({"match": block});
            // A rule's own edits come first, then those of its one destination.
            edits(from.headers.as_ref(), &mut out);
            self.act(from, &mut out);
            filters(from, &mut out);
            self.authorisers(&from.external_auth, &mut out);
            out
        });
        made.collect()
    }

    fn authorisers(&self, some: &[proto::ExternalAuth], out: &mut Value) {
        for (name, settings) in external_auth::switched_on(self.mesh, some) {
            out["typed_per_filter_config"][name] = settings;
        }
    }

    fn act(&self, from: &proto::HttpRoute, out: &mut Value) {
        match from.action.as_ref() {
            Some(Action::Forward(forward)) => {
                let mut route = json!({});
                self.forward(from, &forward.destinations, &mut route, out);
                out["route"] = route;
            }
            Some(Action::Redirect(to)) => out["redirect"] = redirect(to, self.port),
            Some(Action::DirectResponse(reply)) => {
                let mut direct = json!({"status": reply.status});
                if !reply.body.is_empty() {
                    let text = String::from_utf8_lossy(&reply.body);
                    direct["body"] = json!({"inline_string": text});
                }
                out["direct_response"] = direct;
            }
            None => {}
        }
    }

    fn forward(
        &self,
        from: &proto::HttpRoute,
        to: &[proto::WeightedDestination],
        route: &mut Value,
        out: &mut Value,
    ) {
        let rewrite = from.rewrite.clone().unwrap_or_default();
        let authority = Some(rewrite.authority)
            .filter(|a| !a.is_empty())
            .or_else(|| new_authority(from.headers.as_ref()));
        if let [only] = to {
            route["cluster"] = json!(self.cluster(only.destination.as_ref()));
            edits(only.headers.as_ref(), out);
            let authority = authority.or_else(|| new_authority(only.headers.as_ref()));
            if let Some(authority) = authority {
                route["host_rewrite_literal"] = json!(authority);
            }
        } else {
            let weighted = to.iter().filter(|one| one.weight > 0).map(|one| {
                let mut entry = json!({
                    "name": self.cluster(one.destination.as_ref()), "weight": one.weight});
                edits(one.headers.as_ref(), &mut entry);
                if let (None, Some(own)) = (&authority, new_authority(one.headers.as_ref())) {
                    entry["host_rewrite_literal"] = json!(own);
                }
                self.authorisers(&one.external_auth, &mut entry);
                entry
            });
            route["weighted_clusters"] = json!({"clusters": weighted.collect::<Vec<_>>()});
            if let Some(authority) = &authority {
                route["host_rewrite_literal"] = json!(authority);
            }
        }
        if !rewrite.uri.is_empty() {
            route["prefix_rewrite"] = json!(rewrite.uri);
        }
        if !rewrite.regex.is_empty() {
            route["regex_rewrite"] = json!({
                "pattern": {"regex": rewrite.regex}, "substitution": rewrite.regex_rewrite});
        }
        if !from.mirrors.is_empty() {
            route["request_mirror_policies"] =
                from.mirrors.iter().map(|m| self.mirror(m)).collect();
        }
        self.hash(to, route);
        let timeout = from.timeout.as_ref().map_or("0s".to_owned(), seconds);
        route["timeout"] = json!(timeout);
        route["max_grpc_timeout"] = json!(timeout);
        if from.retries.as_ref().is_none_or(|r| r.attempts > 0) {
            route["retry_policy"] = retry_policy(from.retries.as_ref());
        }
    }

    fn mirror(&self, from: &proto::Mirror) -> Value {
        json!({"cluster": self.cluster(from.destination.as_ref()),
            "runtime_fraction": {"default_value": share(from.percentage)}})
    }

    fn cluster(&self, to: Option<&proto::Destination>) -> String {
        let (hostname, port) = self.place(to);
        let subset = to.map_or("", |to| to.subset.as_str());
        cluster_name(self.mesh, &hostname, port, subset)
    }

    fn place(&self, to: Option<&proto::Destination>) -> (String, u32) {
        let to = to.cloned().unwrap_or_default();
        let hostname = to.service.map(|s| s.hostname).unwrap_or_default();
        let ports = self.mesh.service(&hostname).map(|s| s.ports.as_slice());
        let port = match (to.port, ports) {
            (0, Some([only])) => only.service_port,
            (0, _) => self.port.into(),
            (port, _) => port,
        };
        (hostname, port)
    }

    /// What of a request decides on the endpoint stands at the route in Envoy.
    fn hash(&self, to: &[proto::WeightedDestination], route: &mut Value) {
        use proto::consistent_hash::Key;

        let keys = to.iter().filter_map(|one| {
            let destination = one.destination.as_ref();
            let (hostname, port) = self.place(destination);
            let subset = destination.map_or("", |to| to.subset.as_str());
            policy(self.mesh, &hostname, subset, port)
                .consistent_hash?
                .key
        });
        let Some(key) = keys.into_iter().next() else {
            return;
        };
        route["hash_policy"] = json!([match key {
            Key::Header(name) => json!({"header": {"header_name": name}}),
            Key::SourceIp(_) => json!({"connection_properties": {"source_ip": true}}),
            Key::QueryParameter(name) => json!({"query_parameter": {"name": name}}),
            Key::Cookie(cookie) => {
                let mut out = json!({"name": cookie.name, "path": cookie.path});
                if let Some(ttl) = &cookie.ttl {
                    out["ttl"] = json!(seconds(ttl));
                }
                json!({"cookie": out})
            }
        }]);
    }
}

/// Filters of a rule's only destination as those of the rule: Envoy has them nowhere else.
fn folded(from: &proto::HttpRoute) -> proto::HttpRoute {
    let mut made = from.clone();
    let Some(Action::Forward(forward)) = &from.action else {
        return made;
    };
    let [only] = &forward.destinations[..] else {
        return made;
    };
    if let Some(to) = &only.redirect {
        made.action = Some(Action::Redirect(to.clone()));
    }
    if only.rewrite.is_some() {
        made.rewrite.clone_from(&only.rewrite);
    }
    made.mirrors.extend(only.mirrors.iter().cloned());
    made.external_auth
        .extend(only.external_auth.iter().cloned());
    made
}

fn redirect(to: &proto::HttpRedirect, asked: u16) -> Value {
    let code = match to.code {
        302 => "FOUND",
        303 => "SEE_OTHER",
        307 => "TEMPORARY_REDIRECT",
        308 => "PERMANENT_REDIRECT",
        _ => "MOVED_PERMANENTLY",
    };
    let mut out = json!({"response_code": code});
    for (field, value) in [
        ("path_redirect", &to.uri),
        ("prefix_rewrite", &to.prefix_rewrite),
        ("host_redirect", &to.authority),
        ("scheme_redirect", &to.scheme),
    ] {
        if !value.is_empty() {
            out[field] = json!(value);
        }
    }
    // As Istio does it: the usual port of a scheme is not written.
    let port = if to.port_from_request {
        asked.into()
    } else {
        to.port
    };
    let usual = matches!((to.scheme.as_str(), port), ("http", 80) | ("https", 443));
    if port != 0 && !usual {
        out["port_redirect"] = json!(port);
    }
    out
}

fn retry_policy(from: Option<&proto::Retries>) -> Value {
    let mut codes: Vec<u16> = Vec::new();
    let mut words: Vec<&str> = Vec::new();
    let written = from.map_or("", |r| r.retry_on.as_str());
    let on = if written.is_empty() {
        RETRY_ON
    } else {
        written
    };
    for word in on.split(',').map(str::trim) {
        match word.parse() {
            Ok(code) => codes.push(code),
            Err(_) => words.push(word),
        }
    }
    if !codes.is_empty() && !words.contains(&"retriable-status-codes") {
        words.push("retriable-status-codes");
    }
    let mut out = json!({
        "retry_on": words.join(","),
        "num_retries": from.map_or(2, |r| r.attempts),
        "retriable_status_codes": codes,
    });
    if !from.is_some_and(|r| r.same_hosts) {
        out["host_selection_retry_max_attempts"] = json!(5);
        out["retry_host_predicate"] = json!([{"name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]);
    }
    if let Some(limit) = from.and_then(|r| r.per_try_timeout.as_ref()) {
        out["per_try_timeout"] = json!(seconds(limit));
    }
    if let Some(wait) = from.and_then(|r| r.backoff.as_ref()) {
        out["retry_back_off"] = json!({"base_interval": seconds(wait)});
    }
    out
}

/// A duration in the JSON form of messages.
pub(super) fn seconds(from: &prost_types::Duration) -> String {
    format!("{}.{:09}s", from.seconds, from.nanos)
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// The authority that header operations write; `set` wins over `add`.
fn new_authority(headers: Option<&proto::Headers>) -> Option<String> {
    let request = headers?.request.as_ref()?;
    let mut all = request.set.iter().chain(&request.add);
    all.find(|(name, _)| is_authority(name))
        .map(|(_, value)| value.clone())
}

/// Puts header operations where Envoy has them, after those that are there.
fn edits(headers: Option<&proto::Headers>, out: &mut Value) {
    let Some(headers) = headers else { return };
    for (side, operations) in [
        ("request", &headers.request),
        ("response", &headers.response),
    ] {
        let Some(operations) = operations else {
            continue;
        };
        let set = operations
            .set
            .iter()
            .map(|pair| (pair, "OVERWRITE_IF_EXISTS_OR_ADD"));
        let add = operations
            .add
            .iter()
            .map(|pair| (pair, "APPEND_IF_EXISTS_OR_ADD"));
        let written = set.chain(add).filter(|((name, _), _)| !is_authority(name));
        let written = written.map(|((name, value), action)| {
            json!({"header": {"key": name, "value": value}, "append_action": action,
                // What is written as nothing is kept; what turns out to be nothing is not.
                "keep_empty_value": value.is_empty()})
        });
        push(out, &format!("{side}_headers_to_add"), written.collect());
        let removed = operations.remove.iter().map(|name| json!(name));
        push(out, &format!("{side}_headers_to_remove"), removed.collect());
    }
}

fn push(out: &mut Value, field: &str, entries: Vec<Value>) {
    if let (false, Some(map)) = (entries.is_empty(), out.as_object_mut()) {
        let list = map.entry(field).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.extend(entries);
        }
    }
}

/// What other filters than the router read from a route.
fn filters(from: &proto::HttpRoute, out: &mut Value) {
    let mut all = Map::new();
    if let Some(fault) = &from.fault {
        all.insert("envoy.filters.http.fault".to_owned(), fault_filter(fault));
    }
    if let Some(cors) = &from.cors {
        all.insert("envoy.filters.http.cors".to_owned(), cors_filter(cors));
    }
    if !all.is_empty() {
        out["typed_per_filter_config"] = Value::Object(all);
    }
}

/// A percentage, to a millionth.
fn share(percentage: f64) -> Value {
    let numerator = (percentage * 10_000.0).round();
    json!({"numerator": numerator as u32, "denominator": "MILLION"})
}

fn fault_filter(from: &proto::Fault) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
    let mut out = json!({"@type": kind});
    if let Some(delay) = &from.delay {
        let by = delay.fixed.as_ref().map_or("0s".to_owned(), seconds);
        out["delay"] = json!({"percentage": share(delay.percentage), "fixed_delay": by});
    }
    if let Some(abort) = &from.abort {
        out["abort"] = json!({"percentage": share(abort.percentage)});
        if abort.http_status == 0 {
            out["abort"]["grpc_status"] = json!(abort.grpc_status);
        } else {
            out["abort"]["http_status"] = json!(abort.http_status);
        }
    }
    out
}

fn cors_filter(from: &proto::Cors) -> Value {
    let origins: Vec<_> = from.allow_origins.iter().filter_map(string_match).collect();
    let mut out = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": origins,
        "allow_methods": from.allow_methods.join(","),
        "allow_headers": from.allow_headers.join(","),
        "expose_headers": from.expose_headers.join(","),
        "allow_credentials": from.allow_credentials,
        "filter_enabled": {"default_value": {"numerator": 100, "denominator": "HUNDRED"}},
        "forward_not_matching_preflights": !from.answer_unmatched_preflights,
    });
    if let Some(age) = &from.max_age {
        out["max_age"] = json!(age.seconds.to_string());
    }
    out
}
