use isobar_proto::isobar::v1 as proto;
use proto::external_auth::Protocol;
use proto::http_route::Action;
use serde_json::{Map, Value, json};

use super::cluster::cluster_name;
use super::listener::Mesh;

/// One filter for each authoriser that some rule or destination has; all are off but where a route
/// switches one on.
pub(super) fn filters(mesh: &Mesh<'_>) -> Vec<Value> {
    let all = all(mesh).into_iter().enumerate();
    all.map(
        |(at, one)| json!({"name": name(at), "disabled": true, "typed_config": filter(mesh, one)}),
    )
    .collect()
}

/// Switches filters on, in the form of what a route says to filters.
pub(super) fn switched_on(mesh: &Mesh<'_>, some: &[proto::ExternalAuth]) -> Map<String, Value> {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
    let known = all(mesh);
    let places = some
        .iter()
        .filter_map(|one| known.iter().position(|have| *have == one));
    let on = places.map(|at| (name(at), json!({"@type": kind, "check_settings": {}})));
    on.collect()
}

fn name(at: usize) -> String {
    format!("authoriser-{at}")
}

fn all<'a>(mesh: &Mesh<'a>) -> Vec<&'a proto::ExternalAuth> {
    let mut all: Vec<&proto::ExternalAuth> = Vec::new();
    for route in mesh.virtual_services.iter().flat_map(|vs| &vs.http) {
        let to = match &route.action {
            Some(Action::Forward(forward)) => &forward.destinations[..],
            _ => &[],
        };
        let own = to.iter().flat_map(|to| &to.external_auth);
        for one in route.external_auth.iter().chain(own) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    all
}

fn filter(mesh: &Mesh<'_>, from: &proto::ExternalAuth) -> Value {
    let to = from.destination.clone().unwrap_or_default();
    let hostname = to.service.map(|service| service.hostname);
    let hostname = hostname.unwrap_or_default();
    let cluster = cluster_name(mesh, &hostname, to.port, "");
    let mut out = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
    });
    let shown = match &from.protocol {
        Some(Protocol::Grpc(grpc)) => {
            out["grpc_service"] = json!({"timeout": "10s",
                "envoy_grpc": {"cluster_name": cluster, "authority": hostname}});
            &grpc.headers
        }
        Some(Protocol::Http(http)) => {
            out["http_service"] = json!({
                "server_uri": {"uri": "http://authoriser", "cluster": cluster, "timeout": "10s"},
                "path_prefix": http.path});
            // Without a list Envoy passes nothing on: no scenario has an answer with a header then.
            if !http.answer_headers.is_empty() {
                let given = json!({"allowed_upstream_headers": named(&http.answer_headers)});
                out["http_service"]["authorization_response"] = given;
            }
            &http.headers
        }
        None => return out,
    };
    if !shown.is_empty() {
        out["allowed_headers"] = named(shown);
    }
    if from.max_body > 0 {
        out["with_request_body"] = json!({
            "max_request_bytes": from.max_body, "allow_partial_message": false});
    }
    out
}

fn named(headers: &[String]) -> Value {
    let one = |name: &String| json!({"exact": name, "ignore_case": true});
    json!({"patterns": headers.iter().map(one).collect::<Vec<_>>()})
}
