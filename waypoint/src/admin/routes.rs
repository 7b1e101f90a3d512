//! VirtualServices in `/config_dump`.

use std::sync::Arc;

use isobar_route::{
    Action, AuthProtocol, ExternalAuth, HttpMatch, HttpRoute, L4Match, RateLimits, Redirect,
    VirtualService, Weighted,
};
use serde_json::{Value, json};

pub(super) fn virtual_service(object: &VirtualService) -> Value {
    json!({
        "name": object.name.to_string(),
        "hosts": object.hosts,
        "services": object.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "created": object.created,
        "http": object.http.iter().map(http_route).collect::<Vec<_>>(),
        "tcp": object.tcp.iter().map(|r| json!({
            "matches": r.matches.iter().map(l4_match).collect::<Vec<_>>(),
            "destinations": destinations(&r.destinations),
        })).collect::<Vec<_>>(),
    })
}

fn http_route(route: &HttpRoute) -> Value {
    let (action, to) = match &route.action {
        Action::Forward(all) => ("forward", json!(destinations(all))),
        Action::Redirect(r) => ("redirect", json!(redirect(r))),
        Action::Direct(r) => ("direct", json!(r.status)),
    };
    json!({
        "name": route.name,
        "matches": route.matches.iter().map(http_match).collect::<Vec<_>>(),
        "action": action,
        "to": to,
        "timeoutMillis": route.timeout.map(|t| t.as_millis()),
        "retries": route.retries.as_ref().map(|r| r.attempts),
        "authorisers": authorisers(&route.external_auth),
        "rateLimits": limits(&route.limits),
    })
}

/// Null where there are none.
fn authorisers(all: &[ExternalAuth]) -> Option<Vec<Value>> {
    let one = |one: &ExternalAuth| {
        json!({
            "host": &*one.target.host,
            "service": one.target.service.as_ref().map(ToString::to_string),
            "port": port(one.target.port),
            "protocol": match one.protocol {
                AuthProtocol::Grpc { .. } => "GRPC",
                AuthProtocol::Http { .. } => "HTTP",
            },
            "maxBody": one.max_body,
        })
    };
    (!all.is_empty()).then(|| all.iter().map(one).collect())
}

/// Names of policies; null where there are none.
fn limits(all: &[Arc<RateLimits>]) -> Option<Vec<String>> {
    (!all.is_empty()).then(|| all.iter().map(|one| one.name.to_string()).collect())
}

/// Matches as `= VALUE`, `prefix VALUE`, `regex VALUE` or `present`; null is no condition.
fn http_match(m: &HttpMatch) -> Value {
    fn list<K: ToString, T: ToString>(all: &[(K, T)]) -> Vec<String> {
        let one = |(key, text): &(K, T)| format!("{} {}", key.to_string(), text.to_string());
        all.iter().map(one).collect()
    }
    let text = |t: &Option<isobar_route::TextMatch>| t.as_ref().map(ToString::to_string);
    json!({
        "name": m.name,
        "uri": text(&m.uri),
        "ignoreUriCase": m.ignore_uri_case.then_some(true),
        "scheme": text(&m.scheme),
        "method": text(&m.method),
        "authority": text(&m.authority),
        "headers": list(&m.headers),
        "withoutHeaders": list(&m.without_headers),
        "query": list(&m.query),
        "port": port(m.port),
        "sourceLabels": m.source_labels,
        "sourceNamespace": m.source_namespace,
    })
}

fn l4_match(m: &L4Match) -> Value {
    json!({
        "sniHosts": m.sni_hosts,
        "subnets": m.subnets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "source": m.source.map(|net| net.to_string()),
        "port": port(m.port),
        "sourceLabels": m.source_labels,
        "sourceNamespace": m.source_namespace,
    })
}

fn redirect(redirect: &Redirect) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or("{scheme}");
    let authority = redirect.authority.as_deref().unwrap_or("{authority}");
    let port = redirect
        .port
        .map_or_else(String::new, |port| format!(":{port}"));
    let port = if redirect.port_from_request {
        ":{port}".to_owned()
    } else {
        port
    };
    let prefix = redirect.prefix_rewrite.as_ref();
    let prefix = prefix.map_or_else(|| "{path}".to_owned(), |p| format!("{p}{{rest}}"));
    let uri = redirect.uri.clone().unwrap_or(prefix);
    format!("{} {scheme}://{authority}{port}{uri}", redirect.code)
}

fn destinations(all: &[Weighted]) -> Vec<Value> {
    let total: u64 = all.iter().map(|w| u64::from(w.weight)).sum();
    all.iter()
        .map(|w| {
            json!({
                "host": &*w.target.host,
                "service": w.target.service.as_ref().map(ToString::to_string),
                "subset": w.target.subset.as_deref(),
                "port": port(w.target.port),
                "weight": w.weight,
                "of": total,
                "authorisers": authorisers(w.external_auth()),
                "rateLimits": limits(w.limits()),
            })
        })
        .collect()
}

/// In matches and targets 0 stands for every port.
fn port(port: u16) -> Option<u16> {
    Some(port).filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_proto::isobar::v1 as proto;
    use isobar_route::Tables;
    use proto::string_match::MatchType;

    fn text(match_type: MatchType) -> proto::StringMatch {
        proto::StringMatch {
            match_type: Some(match_type),
        }
    }

    #[test]
    fn matches_and_targets_are_words_and_real_ports() {
        let matches = proto::HttpMatch {
            uri: Some(text(MatchType::Prefix("/a".into()))),
            headers: [(
                "end-user".to_owned(),
                text(MatchType::Exact("jason".into())),
            )]
            .into(),
            without_headers: [("z".to_owned(), text(MatchType::Present(true)))].into(),
            ..Default::default()
        };
        let to = proto::WeightedDestination {
            destination: Some(proto::Destination {
                host: "reviews".into(),
                subset: "v2".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let forward = proto::HttpForward {
            destinations: vec![to],
        };
        let object = proto::VirtualService {
            namespace: "bookinfo".into(),
            name: "reviews".into(),
            http: vec![proto::HttpRoute {
                matches: vec![matches],
                action: Some(proto::http_route::Action::Forward(forward)),
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut draft = Tables::default().draft();
        draft.upsert_virtual_service(&object).unwrap();
        let tables = draft.finish();
        let dump = virtual_service(tables.virtual_services().next().unwrap());
        let (one, to) = (&dump["http"][0]["matches"][0], &dump["http"][0]["to"][0]);
        assert_eq!(one["uri"], "prefix /a");
        assert_eq!(one["headers"], json!(["end-user = jason"]));
        assert_eq!(one["withoutHeaders"], json!(["z present"]));
        assert_eq!((&one["port"], &to["port"]), (&Value::Null, &Value::Null));
        assert_eq!((&to["subset"], &to["weight"]), (&json!("v2"), &to["of"]));
    }

    #[test]
    fn redirects_show_what_they_replace() {
        let to = Redirect {
            uri: None,
            authority: Some("other".into()),
            scheme: None,
            port: Some(81),
            code: 301,
            prefix_rewrite: None,
            port_from_request: false,
        };
        assert_eq!(redirect(&to), "301 {scheme}://other:81{path}");
    }
}
