//! What a choice is made of before the load balancer is asked: port, subset, account, session, tries.

use std::collections::BTreeMap;

use isobar_route::Traffic;
use isobar_types::NamespacedName;

use super::*;

/// A subset by the label `version`.
pub(super) fn subset(version: &str) -> Subset {
    Subset {
        name: version.into(),
        rule: NamespacedName {
            namespace: "default".into(),
            name: "rule".into(),
        },
        labels: BTreeMap::from([("version".to_owned(), version.to_owned())]),
        traffic: Traffic::default(),
    }
}

/// One pod for one key, whatever the dice say.
fn by_key(bed: &Bed, key: u64) -> Wanted<'_> {
    static PLAIN: std::sync::LazyLock<TrafficRules> = std::sync::LazyLock::new(Default::default);
    Wanted {
        hash: Some(key),
        ..bed.wanted(&PLAIN)
    }
}

#[test]
fn a_key_has_one_endpoint_and_keys_are_shared_by_weight() {
    let mut all = pods(&["a", "b", "c"]);
    all[2].capacity = Some(2);
    let bed = Bed::with(all);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for n in 0..400_u64 {
        let key = isobar_route::mix(0, &n.to_le_bytes());
        let owners = bed.names(&by_key(&bed, key));
        let best =
            [("a", 1), ("b", 1), ("c", 2)].map(|(uid, w)| (isobar_route::score(key, uid, w), uid));
        let (_, best) = best.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        assert_eq!(owners, [best]);
        *counts.entry(best.to_owned()).or_default() += 1;
    }
    assert!((150..250).contains(&counts["c"]), "{counts:?}");
    assert!(counts["a"] > 60 && counts["b"] > 60, "{counts:?}");
}

#[test]
fn what_was_tried_is_taken_again_only_if_nothing_else_is_left() {
    let bed = Bed::of(&["a", "b", "c"]);
    let first = bed.name(&by_key(&bed, 7));
    let mut tried: Vec<Str> = vec![first.as_str().into()];
    let then = |tried: &[Str]| {
        bed.name(&Wanted {
            tried,
            ..by_key(&bed, 7)
        })
    };
    let second = then(&tried);
    tried.push(second.as_str().into());
    let third = then(&tried);
    let all: BTreeSet<_> = [&first, &second, &third].into();
    assert_eq!(all.len(), 3, "{all:?}");
    tried.push(third.as_str().into());
    assert_eq!(then(&tried), first);
}

#[test]
fn a_waypoint_of_an_account_chooses_among_its_pods() {
    let of = |name, ip, namespace: &str, account: &str| wire::Workload {
        namespace: namespace.into(),
        service_account: account.into(),
        ..pod(name, ip)
    };
    let bed = Bed::with(vec![
        of("own", "10.0.1.1", "default", "server"),
        of("other", "10.0.1.2", "default", "other"),
        of("elsewhere", "10.0.1.3", "away", "server"),
    ]);
    let rules = balanced(By::Random);
    assert_eq!(
        bed.names(&bed.wanted(&rules)),
        ["elsewhere", "other", "own"]
    );
    bed.mesh
        .describe(|own| own.for_service_account = "server".into());
    assert_eq!(bed.names(&bed.wanted(&rules)), ["own"]);
    // Of a service that uses another waypoint all are as good.
    for waypoint in [None, Some(by_name("other.default.svc.cluster.local"))] {
        bed.mesh.service(wire::Service {
            waypoint,
            ..service()
        });
        let foreign = bed.mesh.known_service(HOST);
        let wanted = Wanted {
            service: &foreign,
            ..bed.wanted(&rules)
        };
        assert_eq!(bed.names(&wanted), ["elsewhere", "other", "own"]);
    }
    // One of several waypoints of a service is one of its own.
    bed.mesh.service(wire::Service {
        waypoint: None,
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: Some(by_name(WAYPOINT)),
            weight: 1,
        }],
        ..service()
    });
    let shared = bed.mesh.known_service(HOST);
    let wanted = Wanted {
        service: &shared,
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&wanted), ["own"]);
}

#[test]
fn a_subset_is_those_with_its_labels() {
    let bed = Bed::of(&["a", "b", "c"]);
    bed.mesh.labelled("a", "version", "v1");
    bed.mesh.labelled("b", "version", "v2");
    let rules = balanced(By::Random);
    let subsets = ["v1", "v2", "v3"].map(subset);
    let of = |at: usize| Wanted {
        subset: Some(&subsets[at]),
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&of(0)), ["a"]);
    assert_eq!(bed.names(&of(1)), ["b"]);
    let none = bed.choose(&of(2)).unwrap_err();
    assert_eq!(none.reason, Reason::NoHealthyUpstream);
    assert!(none.detail.starts_with("subset v3 of service"), "{none:?}");
}

#[test]
fn a_session_stays_where_it_is_until_a_try_has_failed_there() {
    let bed = Bed::of(&["a", "b", "c"]);
    let rules = balanced(By::Random);
    let stays = |uid| Wanted {
        session: Some(Session::endpoint(uid)),
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&stays("b")), ["b"]);
    assert_eq!(bed.names(&stays("c")), ["c"]);
    // Who is gone has no sessions.
    assert_eq!(bed.names(&stays("d")), ["a", "b", "c"]);
    let tried: [Str; 1] = ["b".into()];
    let again = Wanted {
        tried: &tried,
        ..stays("b")
    };
    assert_eq!(bed.names(&again), ["a", "c"]);
    let elsewhere: [Str; 1] = ["a".into()];
    let again = Wanted {
        tried: &elsewhere,
        ..stays("b")
    };
    assert_eq!(bed.names(&again), ["b", "c"], "a failed try ends the stay");
}

#[test]
fn a_missing_port_or_endpoint_says_which() {
    let bed = Bed::of(&[]);
    let rules = TrafficRules::default();
    let none = bed.choose(&bed.wanted(&rules)).unwrap_err();
    assert_eq!(none.reason, Reason::NoHealthyUpstream);
    assert!(none.detail.contains("has no endpoints"), "{none:?}");
    bed.mesh.pods(pods(&["a"]));
    let unknown = Wanted {
        port: 81,
        ..bed.wanted(&rules)
    };
    let none = bed.choose(&unknown).unwrap_err();
    assert_eq!(none.reason, Reason::NoCluster);
    assert!(none.detail.contains("has no port 81"), "{none:?}");
    // An account without a pod of its own.
    bed.mesh
        .describe(|own| own.for_service_account = "nobody".into());
    let none = bed.choose(&bed.wanted(&rules)).unwrap_err();
    assert_eq!(none.reason, Reason::NoHealthyUpstream);
    assert!(none.detail.ends_with("has no ready endpoint"), "{none:?}");
    assert!(none.detail.starts_with("service "), "{none:?}");
}

#[test]
fn the_address_is_of_the_callers_family_where_there_is_one() {
    let both = wire::Workload {
        addresses: vec![bytes("fd00::1"), bytes("10.0.1.1")],
        ..pod("both", "10.0.1.1")
    };
    let bed = Bed::with(vec![both]);
    let rules = TrafficRules::default();
    assert_eq!(bed.address(&bed.wanted(&rules)), "10.0.1.1:8080");
    bed.mesh.pods([stranger("six", "fd00::9")]);
    let six = bed.mesh.known_pod("six");
    let of_six = Wanted {
        source: &six,
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.address(&of_six), "[fd00::1]:8080");
    // Where there is none, the other one.
    bed.mesh.pods([pod("both", "10.0.1.1")]);
    assert_eq!(bed.address(&of_six), "10.0.1.1:8080");
    // Who has no address is taken for IPv4.
    bed.mesh.pods([wire::Workload {
        addresses: Vec::new(),
        ..stranger("none", "10.0.0.8")
    }]);
    bed.mesh.pods([wire::Workload {
        addresses: vec![bytes("fd00::1"), bytes("10.0.1.1")],
        ..pod("both", "10.0.1.1")
    }]);
    let none = bed.mesh.known_pod("none");
    let of_none = Wanted {
        source: &none,
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.address(&of_none), "10.0.1.1:8080");
}

#[test]
fn a_tunnel_ends_at_the_pod_or_at_the_waypoint_that_is_asked_for_another() {
    let bed = Bed::with(vec![wire::Workload {
        addresses: vec![bytes("10.0.1.1"), bytes("fd00::1")],
        ..pod("a", "10.0.1.1")
    }]);
    let to = |address: &str| Endpoint {
        workload: bed.mesh.known_pod("a"),
        address: SocketAddr::new(ip(address), 8080),
    };
    assert_eq!(to("fd00::1").tunnel_ip(), ip("fd00::1"));
    assert_eq!(to("10.0.1.1").tunnel_ip(), ip("10.0.1.1"));
    assert_eq!(to("10.96.0.1").tunnel_ip(), ip("10.0.1.1"));
}
