//! Which rule of a VirtualService takes a request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderValue, Method};
use isobar_proto::isobar::v1 as proto;
use isobar_route::{Caller, HttpCall, HttpDecision, Tables, match_http};
use isobar_types::{Identity, NamespacedHostname};
use proto::string_match::MatchType;

const ROUTES: [u32; 4] = [10, 100, 1_000, 10_000];
const SERVICE: &str = "svc.default.svc.cluster.local";

fn text(kind: MatchType) -> proto::StringMatch {
    proto::StringMatch {
        match_type: Some(kind),
    }
}

fn tables(routes: u32, block: impl Fn(u32) -> proto::HttpMatch) -> Tables {
    let service = proto::ServiceRef {
        namespace: "default".to_owned(),
        hostname: SERVICE.to_owned(),
    };
    let http = (0..routes).map(|n| {
        let destination = proto::WeightedDestination {
            destination: Some(proto::Destination {
                service: Some(service.clone()),
                ..Default::default()
            }),
            ..Default::default()
        };
        proto::HttpRoute {
            matches: vec![block(n)],
            action: Some(proto::http_route::Action::Forward(proto::HttpForward {
                destinations: vec![destination],
            })),
            ..Default::default()
        }
    });
    let object = proto::VirtualService {
        namespace: "default".to_owned(),
        name: "routes".to_owned(),
        parents: vec![service.clone()],
        http: http.collect(),
        ..Default::default()
    };
    let mut draft = Tables::default().draft();
    draft
        .upsert_virtual_service(&object)
        .expect("made to be right");
    draft.finish()
}

/// Asks for the last of the rules.
fn find(bencher: Bencher<'_, '_>, tables: &Tables, path: &str, headers: &HeaderMap) {
    let service = NamespacedHostname::parse(&format!("default/{SERVICE}")).expect("a name");
    let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
    let caller = Caller {
        identity: Some(Identity::new("cluster.local", "default", "client")),
        ip,
        labels: None,
    };
    let call = HttpCall {
        method: &Method::GET,
        path,
        query: None,
        authority: "svc",
        written_authority: "svc",
        scheme: "http",
        headers,
        destination: SocketAddr::new(ip, 80),
    };
    bencher.bench_local(|| {
        let decision = match_http(tables, &service, black_box(&call), &caller);
        assert!(
            matches!(decision, HttpDecision::Taken(_)),
            "no rule took it"
        );
        black_box(decision)
    });
}

#[divan::bench(args = ROUTES)]
fn whole_path(bencher: Bencher<'_, '_>, routes: u32) {
    let tables = tables(routes, |n| proto::HttpMatch {
        uri: Some(text(MatchType::Exact(format!("/shop/item/{n}")))),
        ..Default::default()
    });
    let path = format!("/shop/item/{}", routes - 1);
    find(bencher, &tables, &path, &HeaderMap::new());
}

#[divan::bench(args = ROUTES)]
fn start_of_path(bencher: Bencher<'_, '_>, routes: u32) {
    let tables = tables(routes, |n| proto::HttpMatch {
        uri: Some(text(MatchType::Prefix(format!("/shop/{n}/")))),
        ..Default::default()
    });
    let path = format!("/shop/{}/basket", routes - 1);
    find(bencher, &tables, &path, &HeaderMap::new());
}

#[divan::bench(args = ROUTES)]
fn header(bencher: Bencher<'_, '_>, routes: u32) {
    let tables = tables(routes, |n| proto::HttpMatch {
        headers: [("x-user".to_owned(), text(MatchType::Exact(n.to_string())))].into(),
        ..Default::default()
    });
    let mut headers = HeaderMap::new();
    headers.insert("x-user", HeaderValue::from(routes - 1));
    find(bencher, &tables, "/", &headers);
}

/// Regular expressions are asked one after the other.
#[divan::bench(args = [10, 100, 1_000])]
fn regular_expression(bencher: Bencher<'_, '_>, routes: u32) {
    let tables = tables(routes, |n| proto::HttpMatch {
        uri: Some(text(MatchType::Regex(format!("/shop/[a-z]+/{n}")))),
        ..Default::default()
    });
    let path = format!("/shop/item/{}", routes - 1);
    find(bencher, &tables, &path, &HeaderMap::new());
}
