//! Which places are preferred by the caller's.

use isobar_proto::isobar::v1 as proto;

use super::*;

/// Pods near the caller, in its zone, in its region, and elsewhere.
fn places() -> Bed {
    let all = [
        ("here", ["r", "z", "s"]),
        ("zone", ["r", "z", "t"]),
        ("region", ["r", "y", "s"]),
        ("world", ["q", "z", "s"]),
    ];
    let placed = all
        .iter()
        .zip(1..)
        .map(|((name, [region, zone, subzone]), n)| {
            let pod = pod(name, &format!("10.0.1.{n}"));
            in_locality(pod, region, zone, subzone)
        });
    Bed::with(placed.collect())
}

fn local(locality: proto::LocalityBalancing, outliers: bool) -> Arc<TrafficRules> {
    rules(proto::TrafficPolicy {
        load_balancer: By::Random.into(),
        locality: Some(locality),
        outlier_detection: outliers.then(proto::OutlierDetection::default),
        ..Default::default()
    })
}

fn shares(from: &str, to: &[(&str, u32)]) -> proto::LocalityBalancing {
    let to = to
        .iter()
        .map(|(place, share)| ((*place).to_owned(), *share));
    proto::LocalityBalancing {
        distribute: vec![proto::locality_balancing::Distribute {
            from: from.into(),
            to: to.collect(),
        }],
        ..Default::default()
    }
}

#[test]
fn the_nearest_that_is_there_is_taken() {
    let bed = places();
    let rules = local(proto::LocalityBalancing::default(), true);
    for nearest in ["here", "zone", "region", "world"] {
        assert_eq!(bed.names(&bed.wanted(&rules)), [nearest]);
        bed.mesh.remove(nearest);
    }
    assert!(bed.choose(&bed.wanted(&rules)).is_err());
}

#[test]
fn without_outlier_detection_nothing_would_ever_go_elsewhere() {
    let bed = places();
    let all = ["here", "region", "world", "zone"];
    for rules in [
        local(proto::LocalityBalancing::default(), false),
        local(
            proto::LocalityBalancing {
                off: true,
                ..Default::default()
            },
            true,
        ),
    ] {
        assert_eq!(bed.names(&bed.wanted(&rules)), all);
    }
}

#[test]
fn who_is_out_makes_room_for_the_next_place() {
    let bed = places();
    let rules = rules(proto::TrafficPolicy {
        load_balancer: By::Random.into(),
        locality: Some(proto::LocalityBalancing::default()),
        outlier_detection: Some(proto::OutlierDetection {
            consecutive_5xx: Some(1),
            max_ejection_percent: 100,
            ..Default::default()
        }),
        ..Default::default()
    });
    let cluster = Arc::new(Cluster::default());
    let wanted = Wanted {
        cluster: Some(&cluster),
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&wanted), ["here"]);
    let outliers = rules.outliers.unwrap();
    let failed = outlier::Outcome::Unreachable;
    let note = |uid: &str| {
        cluster
            .outliers
            .note(&uid.into(), failed, &outliers, 4, Instant::now())
    };
    assert!(note("here"));
    assert_eq!(bed.names(&wanted), ["zone"]);
}

#[test]
fn a_failed_try_leaves_its_place_only_if_it_may() {
    let mut all = pods(&["here", "there", "world"]);
    for (pod, region) in all.iter_mut().zip(["r", "r", "q"]) {
        *pod = in_locality(pod.clone(), region, "z", "s");
    }
    let bed = Bed::with(all);
    let rules = local(proto::LocalityBalancing::default(), true);
    let next = |tried: &[&str], remote| {
        let tried: Vec<Str> = tried.iter().map(|uid| (*uid).into()).collect();
        bed.names(&Wanted {
            tried: &tried,
            remote,
            ..bed.wanted(&rules)
        })
    };
    assert_eq!(next(&[], false), ["here", "there"]);
    assert_eq!(next(&["here"], false), ["there"]);
    assert_eq!(next(&["here"], true), ["there"]);
    assert_eq!(next(&["here", "there"], false), ["here", "there"]);
    assert_eq!(next(&["here", "there"], true), ["world"]);
    let all = ["here", "there", "world"];
    assert_eq!(next(&all, true), ["here", "there"]);
}

#[test]
fn shares_are_those_of_places_and_the_rest_gets_nothing() {
    let bed = places();
    let rules = local(shares("r/z/*", &[("r/y/*", 20), ("r/z/*", 80)]), false);
    let mut zone = 0;
    for dice in 0..1000 {
        let drawn = next_dice(dice) % 100;
        let name = bed.name(&Wanted {
            dice,
            ..bed.wanted(&rules)
        });
        let first = drawn < 20;
        assert_eq!(name == "region", first, "{name} at {drawn}");
        assert_ne!(name, "world");
        zone += usize::from(!first);
    }
    assert!((750..850).contains(&zone), "{zone}");
}

#[test]
fn a_share_of_who_is_not_there_goes_to_the_others() {
    let bed = places();
    let rules = local(shares("r/*", &[("p/*", 90), ("q/*", 10)]), false);
    assert_eq!(bed.names(&bed.wanted(&rules)), ["world"]);
    bed.mesh.remove("world");
    assert!(
        bed.choose(&bed.wanted(&rules)).is_err(),
        "nobody has a share"
    );
    // Callers of a place that no share is for have all.
    let rules = local(shares("o/*", &[("r/z/*", 100)]), false);
    assert_eq!(bed.names(&bed.wanted(&rules)), ["here", "region", "zone"]);
}

#[test]
fn labels_of_caller_and_endpoint_are_compared() {
    let bed = Bed::of(&["a", "b", "c"]);
    bed.mesh.labelled("caller", "rack", "7");
    bed.mesh.labelled("a", "rack", "6");
    bed.mesh.labelled("b", "rack", "7");
    let rules = local(
        proto::LocalityBalancing {
            failover_priority: vec!["rack".into()],
            ..Default::default()
        },
        true,
    );
    assert_eq!(bed.names(&bed.wanted(&rules)), ["b"]);
    bed.mesh.remove("b");
    assert_eq!(bed.names(&bed.wanted(&rules)), ["a", "c"]);
}
