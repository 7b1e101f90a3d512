use super::*;

fn labels(uid: &str, version: &str) -> proto::WorkloadLabels {
    proto::WorkloadLabels {
        uid: uid.into(),
        labels: [("version".to_owned(), version.to_owned())].into(),
    }
}

fn rule(name: &str, created: i64, subsets: &[(&str, &str)]) -> proto::DestinationRule {
    proto::DestinationRule {
        namespace: "ns".into(),
        name: name.into(),
        services: vec![proto::ServiceRef {
            namespace: "ns".into(),
            hostname: "Svc".into(),
        }],
        subsets: subsets
            .iter()
            .map(|(name, version)| proto::Subset {
                name: (*name).into(),
                labels: [("version".to_owned(), (*version).to_owned())].into(),
                traffic_policy: None,
            })
            .collect(),
        created,
        ..Default::default()
    }
}

#[test]
fn subsets_select_by_labels_and_the_older_object_counts() {
    let mut draft = Tables::default().draft();
    draft.upsert_labels(&labels("one", "v1"));
    draft.upsert_labels(&labels("two", "v2"));
    draft
        .upsert_destination_rule(&rule("young", 9, &[("v1", "odd"), ("v2", "v2")]))
        .unwrap();
    draft
        .upsert_destination_rule(&rule("old", 1, &[("v1", "v1")]))
        .unwrap();
    let tables = draft.finish();
    let service = NamespacedHostname::parse("ns/svc").unwrap();
    let inside = |subset: &str, uid: &str| {
        let labels = tables.labels(uid).map(|l| &**l);
        tables.subset(&service, subset).unwrap().contains(labels)
    };
    assert!(inside("v1", "one") && !inside("v1", "two"));
    assert!(inside("v2", "two"));
    assert!(!inside("v1", "unknown"));
    assert!(tables.subset(&service, "v9").is_none());
    let names = tables.destination_rules_of(&service).iter();
    assert_eq!(
        names.map(ToString::to_string).collect::<Vec<_>>(),
        ["ns/old", "ns/young"]
    );
    let rule = |subset: &str| tables.subset(&service, subset).unwrap().rule.to_string();
    assert_eq!(
        (rule("v1"), rule("v2")),
        ("ns/old".into(), "ns/young".into())
    );
    let mut draft = tables.draft();
    draft.remove_labels("one");
    draft.remove_destination_rule("ns/old");
    let next = draft.finish();
    assert!(next.labels("one").is_none() && tables.labels("one").is_some());
    assert_eq!(
        next.subset(&service, "v1").unwrap().labels["version"],
        "odd"
    );
    assert!(next.version() > tables.version());
}

#[test]
fn a_bad_object_leaves_its_last_good_form() {
    let mut draft = Tables::default().draft();
    draft
        .upsert_destination_rule(&rule("r", 1, &[("v1", "v1")]))
        .unwrap();
    let mut bad = rule("r", 1, &[]);
    bad.traffic_policy = Some(proto::TrafficPolicy {
        load_balancer: 99,
        ..Default::default()
    });
    let error = draft.upsert_destination_rule(&bad).unwrap_err();
    assert_eq!(error.field, "trafficPolicy.loadBalancer");
    let service = NamespacedHostname::parse("ns/svc").unwrap();
    assert!(draft.finish().subset(&service, "v1").is_some());
}

#[test]
fn a_waypoint_knows_what_it_takes() {
    let mut draft = Tables::default().draft();
    let mut from = proto::Waypoint {
        namespace: "ns".into(),
        name: "wp".into(),
        hostname: "wp.ns.svc.cluster.local".into(),
        traffic: proto::waypoint::Traffic::All.into(),
        ..Default::default()
    };
    draft.set_waypoint(&from).unwrap();
    from.path_normalization = 42;
    assert!(draft.set_waypoint(&from).is_err());
    from.path_normalization = proto::PathNormalization::MergeSlashes.into();
    draft.set_waypoint(&from).unwrap();
    from.traffic = 42;
    assert!(draft.set_waypoint(&from).is_err());
    let tables = draft.finish();
    let own = tables.waypoint().unwrap();
    assert!(own.for_services && own.for_workloads && own.account.is_none());
    assert_eq!(own.paths, Normalization::MergeSlashes);
}

fn service(name: &str) -> NamespacedHostname {
    NamespacedHostname::parse(name).unwrap()
}

fn reference() -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: "ns".into(),
        hostname: "svc".into(),
    }
}

#[test]
fn a_waypoint_has_listeners_until_it_is_forgotten() {
    let listener = |name: &str, port| proto::Listener {
        name: name.into(),
        port,
        service_port: port,
        ..Default::default()
    };
    let mut draft = Tables::default().draft();
    draft
        .set_waypoint(&proto::Waypoint {
            namespace: "ns".into(),
            name: "gw".into(),
            listeners: vec![listener("a", 8080), listener("b", 8081)],
            ..Default::default()
        })
        .unwrap();
    let tables = draft.finish();
    let own = tables.waypoint().unwrap();
    assert_eq!(&*own.listener("b").unwrap().name, "b");
    assert!(own.listener("c").is_none());
    let mut draft = tables.draft();
    draft.clear_waypoint();
    assert!(draft.finish().waypoint().is_none());
}

#[test]
fn every_workload_with_labels_counts_once() {
    let mut draft = Tables::default().draft();
    for number in 0..1000 {
        draft.upsert_labels(&labels(&format!("uid-{number}"), "v1"));
    }
    draft.upsert_labels(&labels("uid-7", "v2"));
    let tables = draft.finish();
    assert_eq!(tables.labelled_workloads(), 1000);
    assert_eq!(tables.labels("uid-7").unwrap()["version"], "v2");
    // A change of one workload copies one part of many.
    let parts = tables.labels.iter().filter(|part| !part.is_empty());
    assert!(parts.count() > 200);
}

#[test]
fn rules_of_a_service_are_its_own() {
    let mut draft = Tables::default().draft();
    let mut from = rule("r", 1, &[]);
    from.traffic_policy = Some(proto::TrafficPolicy {
        load_balancer: proto::traffic_policy::LoadBalancer::Random.into(),
        ..Default::default()
    });
    draft.upsert_destination_rule(&from).unwrap();
    let tables = draft.finish();
    let balancing = |name: &str| {
        let rules = tables.traffic(&service(name), None, 80);
        rules.balancing.as_ref().and_then(|b| b.simple)
    };
    assert_eq!(balancing("ns/svc"), Some(crate::LoadBalancer::Random));
    assert_eq!(balancing("ns/other"), None);
    let names: Vec<_> = tables
        .destination_rules()
        .map(|(name, _)| name.to_string())
        .collect();
    assert_eq!(names, ["ns/r"]);
}

#[test]
fn policies_come_and_go() {
    let policy = |name: &str, dry_run| proto::Authorization {
        namespace: "ns".into(),
        name: name.into(),
        services: vec![reference()],
        dry_run,
        ..Default::default()
    };
    let none = Tables::default();
    let mut draft = none.draft();
    draft.upsert_policy(&policy("a", false));
    let one = draft.finish();
    assert!(!one.observes() && one.has_policies(Some(&service("ns/svc"))));
    assert!(!one.has_policies(Some(&service("ns/other"))) && !one.has_policies(None));
    assert!(!one.same_policies(&none));
    assert!(one.draft().finish().same_policies(&one));
    let mut draft = one.draft();
    draft.upsert_policy(&policy("b", true));
    let two = draft.finish();
    assert!(two.observes());
    let names = |tables: &Tables| {
        let service = service("ns/svc");
        let all = tables.policies_of(Some(&service));
        let names: Vec<_> = all.map(|p| p.name.name.to_string()).collect();
        assert_eq!(names.len(), tables.policies().count());
        names.join(" ")
    };
    assert_eq!(names(&two), "a b");
    let mut draft = two.draft();
    draft.remove_policy("ns/a");
    draft.remove_policy("ns/unknown");
    assert_eq!(names(&draft.finish()), "b");
}

#[test]
fn rate_limits_come_and_go() {
    let limits = |name: &str, whole_waypoint| proto::RateLimitPolicy {
        namespace: "ns".into(),
        name: name.into(),
        services: vec![reference()],
        whole_waypoint,
        limits: vec![proto::RateLimit {
            requests: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut draft = Tables::default().draft();
    draft.upsert_rate_limits(&limits("own", false)).unwrap();
    draft.upsert_rate_limits(&limits("all", true)).unwrap();
    let mut bad = limits("bad", false);
    bad.limits[0].requests = 0;
    let error = draft.upsert_rate_limits(&bad).unwrap_err();
    assert_eq!(error.field, "limits[0].requests");
    let names = |tables: &Tables, of: Option<&str>| {
        let of = of.map(service);
        let all = tables.rate_limits_of(of.as_ref());
        let names: Vec<_> = all.map(|l| l.name.name.to_string()).collect();
        names.join(" ")
    };
    let tables = draft.finish();
    assert_eq!(tables.rate_limits().count(), 2);
    assert_eq!(names(&tables, Some("ns/svc")), "all own");
    assert_eq!(names(&tables, Some("ns/other")), "all");
    assert_eq!(names(&tables, None), "all");
    let mut draft = tables.draft();
    draft.remove_rate_limits("ns/all");
    let tables = draft.finish();
    assert_eq!(names(&tables, Some("ns/svc")), "own");
    assert_eq!(tables.rate_limits().count(), 1);
}
