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
    from.traffic = 42;
    assert!(draft.set_waypoint(&from).is_err());
    let tables = draft.finish();
    let own = tables.waypoint().unwrap();
    assert!(own.for_services && own.for_workloads && own.account.is_none());
}
