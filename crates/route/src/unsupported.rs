use isobar_proto::isobar::v1 as proto;

use crate::header_text::HeaderText;

/// Fields of a `VirtualService` that are accepted and not honoured, by path; empty if all are.
/// The control plane puts them on the object's status, so that nothing is dropped in silence.
#[must_use]
pub fn unsupported(object: &proto::VirtualService) -> Vec<String> {
    let mut out = Vec::new();
    for (at, route) in object.http.iter().enumerate() {
        let here = format!("http[{at}]");
        header_commands(route.headers.as_ref(), &here, &mut out);
        if let Some(proto::http_route::Action::Forward(forward)) = &route.action {
            for (place, destination) in forward.destinations.iter().enumerate() {
                let there = format!("{here}.route[{place}]");
                header_commands(destination.headers.as_ref(), &there, &mut out);
            }
        }
    }
    out
}

/// Substitutions that are not known are sent as they are written.
fn header_commands(headers: Option<&proto::Headers>, here: &str, out: &mut Vec<String>) {
    let Some(headers) = headers else { return };
    for (side, operations) in [
        ("request", &headers.request),
        ("response", &headers.response),
    ] {
        let Some(operations) = operations else {
            continue;
        };
        for (kind, map) in [("set", &operations.set), ("add", &operations.add)] {
            for (name, value) in map {
                if HeaderText::problem(value).is_some() {
                    out.push(format!("{here}.headers.{side}.{kind}.{name}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_the_field() {
        let set = |value: &str| proto::VirtualService {
            http: vec![proto::HttpRoute {
                headers: Some(proto::Headers {
                    request: Some(proto::HeaderOperations {
                        set: [("x".to_owned(), value.to_owned())].into(),
                        ..Default::default()
                    }),
                    response: None,
                }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let object = set("%DYNAMIC_METADATA(a)%");
        assert_eq!(unsupported(&object), ["http[0].headers.request.set.x"]);
        assert!(unsupported(&set("%PROTOCOL%")).is_empty());
        assert!(unsupported(&proto::VirtualService::default()).is_empty());
    }
}
