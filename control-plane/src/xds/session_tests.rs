use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use isobar_proto::google::rpc::Status;
use isobar_proto::istio::workload::Workload;

use super::catalog::{Catalog, Resource, Scope, WaypointResources, version_text};
use super::kind::Kind;
use super::resources::Resources;
use super::session::{Progress, Response, Session};

/// A resource whose content is `text`, naming the policies in `needs`.
fn resource(kind: Kind, name: &str, text: &str, needs: &[&str]) -> Arc<Resource> {
    let body = Workload {
        name: text.into(),
        ..Workload::default()
    };
    Arc::new(Resource {
        needs: needs.iter().map(|key| (*key).into()).collect(),
        ..Resource::new(kind, name, &body)
    })
}

fn resources(all: Vec<Arc<Resource>>) -> Arc<Resources> {
    Arc::new(all.into_iter().collect())
}

struct World {
    catalog: Catalog,
    session: Session,
    now: Instant,
}

impl World {
    fn node() -> Self {
        Self::with(Scope::default(), Kind::NODE)
    }

    fn waypoint(key: &str) -> Self {
        let scope = Scope {
            waypoint: Some(key.into()),
            ..Scope::default()
        };
        Self::with(scope, Kind::WAYPOINT)
    }

    fn with(scope: Scope, expected: &'static [Kind]) -> Self {
        let now = Instant::now();
        Self {
            catalog: Catalog {
                revision: 1,
                ..Catalog::default()
            },
            session: Session::new(scope, expected, now),
            now,
        }
    }

    fn put(&mut self, kind: Kind, all: &[(&str, &str, &[&str])]) {
        let all = all
            .iter()
            .map(|(name, text, needs)| resource(kind, name, text, needs))
            .collect();
        self.catalog.revision += 1;
        match kind {
            Kind::Address => self.catalog.addresses = resources(all),
            Kind::Authorization => self.catalog.authorizations = resources(all),
            _ => {
                let kinds = self.catalog.waypoints.entry("ns/wp".into()).or_default();
                kinds[kind.index()] = resources(all);
            }
        }
    }

    fn subscribe(&mut self, kind: Kind) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().into(),
            ..Default::default()
        };
        self.session.request(&request, self.now).unwrap();
    }

    fn next(&mut self) -> Option<Response> {
        self.session.next(&self.catalog, self.now)
    }

    fn answer(&mut self, response: &Response, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.kind.url().into(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| Status {
                message: message.into(),
                ..Status::default()
            }),
            ..Default::default()
        };
        self.session.request(&request, self.now).unwrap();
    }

    /// Takes everything there is, acknowledging all of it.
    fn settle(&mut self) -> Vec<String> {
        let mut log = Vec::new();
        while let Some(response) = self.next() {
            log.push(shown(&response));
            self.answer(&response, None);
        }
        log
    }
}

fn shown(response: &Response) -> String {
    let names: Vec<&str> = response.resources.iter().map(|r| &*r.name).collect();
    let removed: Vec<&str> = response.removed.iter().map(|n| &**n).collect();
    format!("{} +{names:?} -{removed:?}", response.kind.label())
}

#[test]
fn nothing_is_sent_before_the_first_full_read() {
    let mut world = World::node();
    world.catalog.revision = 0;
    world.subscribe(Kind::Authorization);
    world.subscribe(Kind::Address);
    assert!(world.next().is_none());
    world.catalog.revision = 1;
    // Then even an empty answer is an answer.
    assert_eq!(world.settle(), ["Authorization +[] -[]", "Address +[] -[]"]);
}

#[test]
fn policies_are_acknowledged_before_the_workloads_that_name_them() {
    let mut world = World::node();
    world.put(Kind::Authorization, &[("ns/p", "1", &[])]);
    world.put(Kind::Address, &[("w", "1", &["ns/p"])]);
    // Addresses asked for first still come second.
    world.subscribe(Kind::Address);
    assert!(world.next().is_none());
    world.subscribe(Kind::Authorization);
    let policies = world.next().unwrap();
    assert_eq!(shown(&policies), "Authorization +[\"ns/p\"] -[]");
    assert!(
        world.next().is_none(),
        "the address waits for the acknowledgement"
    );
    world.answer(&policies, None);
    assert_eq!(world.settle(), ["Address +[\"w\"] -[]"]);

    // A new policy and a workload that names it, in one change; others do not wait.
    world.put(
        Kind::Authorization,
        &[("ns/p", "1", &[]), ("ns/q", "1", &[])],
    );
    world.put(
        Kind::Address,
        &[("w", "2", &["ns/p", "ns/q"]), ("x", "1", &[])],
    );
    let policies = world.next().unwrap();
    assert_eq!(shown(&policies), "Authorization +[\"ns/q\"] -[]");
    let free = world.next().unwrap();
    assert_eq!(shown(&free), "Address +[\"x\"] -[]");
    world.answer(&free, None);
    assert!(world.next().is_none());
    world.answer(&policies, None);
    assert_eq!(world.settle(), ["Address +[\"w\"] -[]"]);

    // The other way round: unnamed first, then removed.
    world.put(Kind::Authorization, &[("ns/p", "1", &[])]);
    world.put(Kind::Address, &[("w", "3", &["ns/p"]), ("x", "1", &[])]);
    assert_eq!(
        world.settle(),
        ["Address +[\"w\"] -[]", "Authorization +[] -[\"ns/q\"]"]
    );
}

#[test]
fn a_client_that_subscribes_to_addresses_alone_is_served_after_a_while() {
    let mut world = World::node();
    world.put(Kind::Address, &[("w", "1", &[])]);
    world.subscribe(Kind::Address);
    assert!(world.next().is_none());
    world.now = world.session.deadline(world.now).unwrap();
    assert_eq!(world.settle(), ["Address +[\"w\"] -[]"]);
    assert_eq!(world.session.deadline(world.now), None);
}

#[test]
fn a_refused_policy_keeps_back_what_names_it() {
    let mut world = World::node();
    world.put(
        Kind::Authorization,
        &[("ns/bad", "1", &[]), ("ns/good", "1", &[])],
    );
    world.put(
        Kind::Address,
        &[("a", "1", &["ns/bad"]), ("b", "1", &["ns/good"])],
    );
    world.subscribe(Kind::Authorization);
    world.subscribe(Kind::Address);
    let policies = world.next().unwrap();
    world.answer(&policies, Some("ns/bad: no such thing"));
    assert_eq!(world.settle(), ["Address +[\"b\"] -[]"]);
    assert_eq!(
        world.session.progress(Kind::Authorization, &world.catalog),
        Progress::Error
    );
    // A better version is sent, and everything follows.
    world.put(
        Kind::Authorization,
        &[("ns/bad", "2", &[]), ("ns/good", "1", &[])],
    );
    assert_eq!(
        world.settle(),
        ["Authorization +[\"ns/bad\"] -[]", "Address +[\"a\"] -[]"]
    );
    assert_eq!(
        world.session.progress(Kind::Authorization, &world.catalog),
        Progress::Synced
    );
}

#[test]
fn a_policy_goes_only_after_its_successor_is_in_force() {
    let (p, q) = (
        "ns/converted_network_policy_p",
        "ns/converted_network_policy_q",
    );
    for refused in [false, true] {
        let mut world = World::node();
        world.put(Kind::Authorization, &[(p, "1", &[]), ("ns/all", "1", &[])]);
        world.put(Kind::Address, &[("w", "1", &[p])]);
        world.subscribe(Kind::Authorization);
        world.subscribe(Kind::Address);
        world.settle();
        world.put(Kind::Authorization, &[(q, "1", &[])]);
        world.put(Kind::Address, &[("w", "2", &[q])]);
        let first = world.next().unwrap();
        assert_eq!(shown(&first), format!("Authorization +[{q:?}] -[]"));
        assert!(world.next().is_none());
        world.answer(&first, refused.then_some(&format!("{q}: no") as &str));
        let both = format!("Authorization +[] -[\"ns/all\", {p:?}]");
        // What is made for workloads stays with one that names it, whatever else goes.
        let expected = match refused {
            true => vec!["Authorization +[] -[\"ns/all\"]"],
            false => vec!["Address +[\"w\"] -[]", &both],
        };
        assert_eq!(world.settle(), expected);
    }
}

#[test]
fn one_response_at_a_time_and_changes_merge_behind_it() {
    let mut world = World::node();
    world.subscribe(Kind::Authorization);
    world.subscribe(Kind::Address);
    world.settle();
    world.put(Kind::Address, &[("w", "1", &[])]);
    let first = world.next().unwrap();
    for version in ["2", "3", "4"] {
        world.put(Kind::Address, &[("w", version, &[]), (version, "1", &[])]);
        assert!(world.next().is_none());
    }
    assert_eq!(
        world.session.progress(Kind::Address, &world.catalog),
        Progress::Stale
    );
    // An answer to something else is no answer.
    let stray = Response {
        nonce: "stray".into(),
        ..world_response(Kind::Address)
    };
    world.answer(&stray, None);
    assert!(world.next().is_none());
    world.answer(&first, None);
    assert_eq!(world.settle(), ["Address +[\"4\", \"w\"] -[]"]);
    assert_eq!(
        world.session.progress(Kind::Address, &world.catalog),
        Progress::Synced
    );
}

fn world_response(kind: Kind) -> Response {
    Response {
        kind,
        nonce: String::new(),
        revision: 0,
        resources: Arc::default(),
        removed: Vec::new(),
    }
}

#[test]
fn a_client_that_comes_back_gets_only_what_differs() {
    let mut world = World::node();
    world.put(
        Kind::Address,
        &[("same", "1", &[]), ("changed", "2", &[]), ("new", "1", &[])],
    );
    world.subscribe(Kind::Authorization);
    let old = resource(Kind::Address, "changed", "1", &[]);
    let same = resource(Kind::Address, "same", "1", &[]);
    let request = DeltaDiscoveryRequest {
        type_url: Kind::Address.url().into(),
        initial_resource_versions: [&old, &same]
            .map(|r| (r.name.to_string(), version_text(r.version)))
            .into_iter()
            .chain([("gone".to_owned(), "abc".to_owned())])
            .collect(),
        ..Default::default()
    };
    world.session.request(&request, world.now).unwrap();
    assert_eq!(
        world.settle(),
        [
            "Authorization +[] -[]",
            "Address +[\"changed\", \"new\"] -[\"gone\"]"
        ]
    );
}

#[test]
fn names_are_served_one_by_one() {
    let mut world = World::node();
    world.put(Kind::Address, &[("a", "1", &[]), ("b", "1", &[])]);
    world.subscribe(Kind::Authorization);
    let ask = |world: &mut World, add: &[&str], remove: &[&str]| {
        let request = DeltaDiscoveryRequest {
            type_url: Kind::Address.url().into(),
            resource_names_subscribe: add.iter().map(|n| (*n).into()).collect(),
            resource_names_unsubscribe: remove.iter().map(|n| (*n).into()).collect(),
            ..Default::default()
        };
        world.session.request(&request, world.now).unwrap();
    };
    ask(&mut world, &["*"], &["*"]);
    assert_eq!(world.settle(), ["Authorization +[] -[]", "Address +[] -[]"]);
    ask(&mut world, &["a", "nobody"], &[]);
    assert_eq!(world.settle(), ["Address +[\"a\"] -[\"nobody\"]"]);
    ask(&mut world, &["b"], &["a"]);
    assert_eq!(world.settle(), ["Address +[\"b\"] -[]"]);
}

#[test]
fn a_waypoint_sees_its_own_and_in_order() {
    let mut world = World::waypoint("ns/wp");
    let other: WaypointResources = Default::default();
    world.catalog.waypoints.insert("ns/other".into(), other);
    world.put(Kind::Address, &[("s", "1", &[])]);
    world.put(Kind::Waypoint, &[("ns/wp", "1", &[])]);
    world.put(Kind::Authorization, &[("ns/a", "1", &[])]);
    world.put(Kind::WaypointAuthorization, &[("ns/p", "1", &[])]);
    world.put(Kind::DestinationRule, &[("ns/d", "1", &[])]);
    world.put(Kind::VirtualService, &[("ns/v", "1", &[])]);
    for kind in Kind::WAYPOINT.iter().rev() {
        world.subscribe(*kind);
    }
    assert_eq!(
        world.settle(),
        [
            "Credential +[] -[]",
            "Waypoint +[\"ns/wp\"] -[]",
            "Authorization +[\"ns/a\"] -[]",
            "WaypointAuthorization +[\"ns/p\"] -[]",
            "RateLimitPolicy +[] -[]",
            "Address +[\"s\"] -[]",
            "WorkloadLabels +[] -[]",
            "DestinationRule +[\"ns/d\"] -[]",
            "VirtualService +[\"ns/v\"] -[]",
        ]
    );
    // Route and subset change together: the subset is there before the route names it, and goes
    // after the route has stopped naming it.
    world.put(Kind::DestinationRule, &[("ns/e", "1", &[])]);
    world.put(Kind::VirtualService, &[("ns/v", "2", &[])]);
    assert_eq!(
        world.settle(),
        [
            "DestinationRule +[\"ns/e\"] -[]",
            "VirtualService +[\"ns/v\"] -[]",
            "DestinationRule +[] -[\"ns/d\"]",
        ]
    );
}

#[test]
fn asking_by_name_does_not_widen_the_scope() {
    let mut world = World::waypoint("ns/other");
    world.put(Kind::VirtualService, &[("ns/v", "1", &[])]);
    world
        .catalog
        .waypoints
        .insert("ns/other".into(), Default::default());
    for kind in Kind::WAYPOINT {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().into(),
            resource_names_subscribe: vec!["ns/v".into(), "ns/wp".into()],
            ..Default::default()
        };
        world.session.request(&request, world.now).unwrap();
    }
    for line in world.settle() {
        assert!(line.contains("+[] "), "{line}");
    }
    // Without a Gateway of its own a client gets no answer to the waypoint's kinds at all.
    let mut nobody = World::node();
    nobody.put(Kind::VirtualService, &[("ns/v", "1", &[])]);
    nobody.now += Duration::from_secs(5);
    nobody.subscribe(Kind::VirtualService);
    assert!(nobody.next().is_none());
}

#[test]
fn unknown_types_end_the_stream() {
    let mut world = World::node();
    let request = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        ..Default::default()
    };
    assert!(world.session.request(&request, world.now).is_err());
}

#[test]
fn a_long_first_answer_comes_in_parts_and_counts_when_all_are_there() {
    let mut world = World::node();
    world.session.portion = 250;
    let text = "x".repeat(100);
    world.put(
        Kind::Authorization,
        &[
            ("ns/a", &text, &[]),
            ("ns/b", &text, &[]),
            ("ns/c", "", &[]),
        ],
    );
    world.put(Kind::Address, &[("w", "1", &["ns/b"])]);
    world.subscribe(Kind::Authorization);
    world.subscribe(Kind::Address);
    let first = world.next().unwrap();
    assert_eq!(shown(&first), r#"Authorization +["ns/a"] -[]"#);
    assert!(first.nonce.ends_with('+'));
    assert!(world.next().is_none(), "one part at a time");
    world.answer(&first, None);
    // What is gone meanwhile, and all that is left with it, still ends the first answer.
    world.put(Kind::Authorization, &[("ns/a", &text, &[])]);
    let last = world.next().unwrap();
    assert_eq!(shown(&last), "Authorization +[] -[]");
    assert!(!last.nonce.ends_with('+'));
    world.answer(&last, None);
    assert_eq!(world.settle(), [r#"Address +["w"] -[]"#]);
    assert_eq!(world.session.confirmed(), world.catalog.revision);
    // Later ones too, what is to go at the end.
    world.put(
        Kind::Authorization,
        &[("ns/d", &text, &[]), ("ns/e", &text, &[])],
    );
    let log = world.settle();
    assert_eq!(
        log,
        [
            r#"Authorization +["ns/d"] -[]"#,
            r#"Authorization +["ns/e"] -["ns/a"]"#
        ]
    );
    assert!(world.settle().is_empty());
}

#[test]
fn a_resource_of_absurd_length_stops_nothing_else() {
    let mut world = World::node();
    world.put(
        Kind::Authorization,
        &[("ns/a", "1", &[]), ("ns/b", "1", &[])],
    );
    world.put(
        Kind::Address,
        &[("v", "1", &["ns/a"]), ("w", "1", &["ns/b"])],
    );
    let long = Arc::new(Resource {
        field: vec![0; (64 << 20) + 1].into(),
        ..Resource::new(Kind::Authorization, "ns/b", &Workload::default())
    });
    let short = world.catalog.authorizations.get("ns/a").cloned();
    world.catalog.authorizations = resources(short.into_iter().chain([long]).collect());
    world.subscribe(Kind::Authorization);
    world.subscribe(Kind::Address);
    let log = world.settle();
    assert_eq!(
        log,
        [r#"Authorization +["ns/a"] -[]"#, r#"Address +["v"] -[]"#]
    );
    let state = world.session.subscription(Kind::Authorization).unwrap();
    assert!(
        state
            .error
            .as_deref()
            .unwrap_or_default()
            .starts_with("ns/b has ")
    );
    // One that fits is sent, and the complaint ends.
    world.put(
        Kind::Authorization,
        &[("ns/a", "1", &[]), ("ns/b", "2", &[])],
    );
    let log = world.settle();
    assert_eq!(
        log,
        [r#"Authorization +["ns/b"] -[]"#, r#"Address +["w"] -[]"#]
    );
    let state = world.session.subscription(Kind::Authorization).unwrap();
    assert_eq!(state.error, None);
}
