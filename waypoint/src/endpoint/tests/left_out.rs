//! Endpoints that fail are left out, those that are new get less.

use isobar_route::{Balancing, OutlierRules};

use super::*;
use crate::outlier::Outcome;

const OUTLIERS: OutlierRules = OutlierRules {
    server_errors: 1,
    gateway_errors: 0,
    local_failures: None,
    interval: Duration::from_secs(1000),
    base: Duration::from_secs(1000),
    most_out: 100,
    least_healthy: 0,
};

fn random(outliers: OutlierRules) -> TrafficRules {
    TrafficRules {
        outliers: Some(outliers),
        ..TrafficRules::clone(&balanced(By::Random))
    }
}

/// A failure of this pod; true if it is out now.
fn fails(cluster: &Cluster, uid: &str, rules: &TrafficRules) -> bool {
    let all = cluster.endpoints.load(Ordering::Relaxed);
    let outliers = &cluster.outliers;
    let failed = Outcome::Answered(500);
    outliers.note(
        &uid.into(),
        failed,
        &rules.outliers.unwrap(),
        all,
        Instant::now(),
    )
}

#[test]
fn who_fails_gets_nothing_for_a_while() {
    let bed = Bed::of(&["a", "b", "c"]);
    let rules = random(OUTLIERS);
    let cluster = Arc::new(Cluster::default());
    let wanted = Wanted {
        cluster: Some(&cluster),
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&wanted), ["a", "b", "c"]);
    assert_eq!(cluster.endpoints.load(Ordering::Relaxed), 3);
    assert!(fails(&cluster, "b", &rules));
    assert_eq!(bed.names(&wanted), ["a", "c"]);
    // The rules of somebody else, or none that leave anybody out.
    let plain = balanced(By::Random);
    let others = Wanted {
        cluster: Some(&cluster),
        ..bed.wanted(&plain)
    };
    assert_eq!(bed.names(&others), ["a", "b", "c"]);
    assert_eq!(bed.names(&bed.wanted(&rules)), ["a", "b", "c"]);
    // A session with who is out ends.
    let stays = Wanted {
        session: Some(Session::endpoint("b")),
        cluster: Some(&cluster),
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&stays), ["a", "c"]);
}

#[test]
fn where_too_few_would_be_left_all_are_used() {
    let bed = Bed::of(&["a", "b", "c", "d", "e"]);
    let rules = random(OutlierRules {
        least_healthy: 70,
        ..OUTLIERS
    });
    let cluster = Arc::new(Cluster::default());
    let wanted = Wanted {
        cluster: Some(&cluster),
        ..bed.wanted(&rules)
    };
    bed.names(&wanted);
    assert!(fails(&cluster, "a", &rules));
    assert_eq!(
        bed.names(&wanted),
        ["b", "c", "d", "e"],
        "four of five are 80 %"
    );
    assert!(fails(&cluster, "b", &rules));
    assert_eq!(
        bed.names(&wanted),
        ["a", "b", "c", "d", "e"],
        "three of five are 60 %"
    );
}

#[test]
fn who_is_gone_takes_no_place_among_those_that_are_out() {
    let bed = Bed::of(&["a", "b", "c", "d"]);
    let rules = random(OutlierRules {
        most_out: 25,
        ..OUTLIERS
    });
    let cluster = Arc::new(Cluster::default());
    let wanted = Wanted {
        cluster: Some(&cluster),
        ..bed.wanted(&rules)
    };
    bed.names(&wanted);
    assert!(fails(&cluster, "a", &rules));
    assert!(!fails(&cluster, "b", &rules), "one of four may be out");
    bed.mesh.remove("a");
    bed.mesh.pods([pod("e", "10.0.1.9")]);
    bed.names(&wanted);
    assert!(fails(&cluster, "b", &rules));
    assert_eq!(bed.names(&wanted), ["c", "d", "e"]);
}

/// A share that grows from `least` over a long time.
fn warmed(least: f64) -> TrafficRules {
    TrafficRules {
        balancing: Some(Balancing {
            simple: Some(LoadBalancer::Random),
            warmup: Some(Warmup {
                window: Duration::from_secs(100_000),
                least,
                aggression: 1.0,
            }),
            ..Balancing::default()
        }),
        ..TrafficRules::default()
    }
}

#[test]
fn a_new_endpoint_takes_its_share_of_its_turns() {
    let bed = Bed::of(&["a", "c"]);
    let rules = warmed(0.25);
    let cluster = Arc::new(Cluster::default());
    let with = |dice| Wanted {
        cluster: Some(&cluster),
        dice,
        ..bed.wanted(&rules)
    };
    assert_eq!(
        bed.names(&with(0)),
        ["a", "c"],
        "none is new at the first look"
    );
    bed.mesh.pods([pod("b", "10.0.1.9")]);
    let mut taken = 0;
    for dice in 0..600_u64 {
        let second = next_dice(dice);
        let upper = f64::from(u32::try_from(second >> 32).unwrap());
        let expected = match dice % 3 {
            0 => "a",
            2 => "c",
            _ if upper / f64::from(u32::MAX) < 0.25 => "b",
            // A third throw for those that are not new.
            _ if next_dice(second).is_multiple_of(2) => "a",
            _ => "c",
        };
        taken += usize::from(expected == "b");
        assert_eq!(bed.name(&with(dice)), expected, "{dice}");
    }
    assert!((30..70).contains(&taken), "{taken} of 200 turns");
    // Rules that warm nobody up.
    let plain = balanced(By::Random);
    let all = Wanted {
        cluster: Some(&cluster),
        dice: 1,
        ..bed.wanted(&plain)
    };
    assert_eq!(bed.name(&all), "b");
}

#[test]
fn a_share_of_nothing_is_nothing() {
    let bed = Bed::of(&["a"]);
    let rules = warmed(0.0);
    let cluster = Arc::new(Cluster::default());
    // Its second throw is 0.
    let dice = 0x9e37_79b9_7f4a_7c15_u64.wrapping_neg();
    assert_eq!((next_dice(dice), dice % 2), (0, 1));
    let wanted = Wanted {
        cluster: Some(&cluster),
        dice,
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.name(&wanted), "a");
    bed.mesh.pods([pod("b", "10.0.1.9")]);
    assert_eq!(bed.name(&wanted), "a");
}

#[test]
fn where_all_are_new_they_take_their_turns() {
    let bed = Bed::of(&["old"]);
    let rules = warmed(0.0);
    let cluster = Arc::new(Cluster::default());
    let wanted = Wanted {
        cluster: Some(&cluster),
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&wanted), ["old"]);
    bed.mesh.remove("old");
    bed.mesh.pods(pods(&["a", "b"]));
    assert_eq!(bed.names(&wanted), ["a", "b"]);
}
