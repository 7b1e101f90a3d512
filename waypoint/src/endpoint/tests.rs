mod choice;
mod left_out;
mod nearest;
mod outside;

use std::collections::BTreeSet;

use isobar_proto::isobar::v1::traffic_policy::LoadBalancer as By;
use isobar_proto::istio::workload as wire;
use isobar_types::NamespacedHostname;

use super::*;
use crate::testing::*;

/// A caller in region r, zone z, subzone s, and pods of a service.
struct Bed {
    mesh: Mesh,
    turns: Turns,
    service: Arc<Service>,
    source: Arc<Workload>,
}

impl Bed {
    fn of(names: &[&str]) -> Self {
        Self::with(pods(names))
    }

    fn with(pods: Vec<wire::Workload>) -> Self {
        let mesh = Mesh::new();
        let caller = in_locality(stranger("caller", "10.0.0.9"), "r", "z", "s");
        mesh.pods([caller]);
        mesh.pods(pods);
        Self {
            turns: Turns::new(&mesh.world, Rc::new(LocalScope::new("test"))),
            service: mesh.known_service(HOST),
            source: mesh.known_pod("caller"),
            mesh,
        }
    }

    fn wanted<'a>(&'a self, rules: &'a TrafficRules) -> Wanted<'a> {
        Wanted {
            service: &self.service,
            port: 8080,
            subset: None,
            rules,
            cluster: None,
            hash: None,
            source: &self.source,
            tried: &[],
            remote: false,
            dialled: None,
            asked: None,
            session: None,
            dice: 0,
        }
    }

    fn choose(&self, wanted: &Wanted<'_>) -> Result<Endpoint, NoEndpoint> {
        self.turns.choose_now(&self.mesh.view(), wanted)
    }

    /// Name of the pod that is chosen.
    fn name(&self, wanted: &Wanted<'_>) -> String {
        self.choose(wanted).unwrap().workload.name.to_string()
    }

    /// Names of all that are chosen with some of the dice.
    fn names(&self, wanted: &Wanted<'_>) -> Vec<String> {
        let with = |dice| self.name(&Wanted { dice, ..*wanted });
        let names: BTreeSet<_> = (0..60).map(with).collect();
        names.into_iter().collect()
    }

    fn address(&self, wanted: &Wanted<'_>) -> String {
        self.choose(wanted).unwrap().address.to_string()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn turns_come_in_order_from_a_place_that_dice_give() {
    let bed = Bed::of(&["a", "b", "c"]);
    let rules = balanced(By::RoundRobin);
    let next = |dice| {
        bed.name(&Wanted {
            dice,
            ..bed.wanted(&rules)
        })
    };
    // The dice count for the first turn only.
    let turns = [next(7), next(7), next(0), next(1), next(7)];
    assert_eq!(turns, ["c", "a", "b", "c", "a"]);
    // Another port has turns of its own.
    let other = Wanted {
        port: 8443,
        dice: 2,
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.address(&other), "10.0.1.1:9443");
    assert_eq!(bed.address(&other), "10.0.1.2:9443");
    assert_eq!(next(0), "b");
}

#[test]
fn turns_are_shared_by_weight() {
    let mut all = pods(&["a", "b", "c"]);
    all[1].capacity = Some(2);
    let bed = Bed::with(all);
    let rules = balanced(By::RoundRobin);
    let turns: Vec<_> = (0..8).map(|_| bed.name(&bed.wanted(&rules))).collect();
    assert_eq!(turns, ["b", "b", "c", "a", "b", "b", "c", "a"]);
}

#[test]
fn the_less_busy_of_two_is_taken() {
    let bed = Bed::of(&["a", "b"]);
    let rules = balanced(By::LeastRequest);
    // Dice that show a first, then b.
    let dice = (0..).step_by(2).find(|d| next_dice(*d) % 2 == 1).unwrap();
    let chosen = || {
        bed.name(&Wanted {
            dice,
            ..bed.wanted(&rules)
        })
    };
    let busy = |uid: &str| bed.turns.busy(&uid.into());
    assert_eq!(chosen(), "a", "as busy as the other");
    let one = busy("a");
    assert_eq!(chosen(), "b");
    let two = busy("b");
    assert_eq!(chosen(), "a", "as busy as the other");
    let three = busy("b");
    assert_eq!(chosen(), "a");
    drop((two, three));
    assert_eq!(chosen(), "b");
    drop(one);
    assert_eq!(chosen(), "a", "nobody is busy any more");
}

#[test]
fn requests_that_say_nothing_go_to_the_less_busy() {
    let bed = Bed::of(&["a", "b"]);
    let rules = TrafficRules::default();
    let dice = (0..).step_by(2).find(|d| next_dice(*d) % 2 == 1).unwrap();
    let _busy = bed.turns.busy(&"a".into());
    let wanted = Wanted {
        dice,
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.name(&wanted), "b");
}

#[test]
fn what_is_busy_is_forgotten_when_it_is_not_and_there_is_much() {
    let bed = Bed::of(&["a"]);
    let entries = || bed.turns.busy.borrow().len();
    let held: Vec<_> = (0..3)
        .map(|n| bed.turns.busy(&format!("held-{n}").into()))
        .collect();
    for n in 3..=MOST_ENTRIES {
        drop(bed.turns.busy(&format!("{n}").into()));
    }
    assert_eq!(entries(), MOST_ENTRIES + 1, "so many are kept");
    let again = bed.turns.busy(&"held-1".into());
    assert_eq!(entries(), 3, "those that are under way");
    assert_eq!(bed.turns.open_requests(&"held-0".into()), 1);
    assert_eq!(bed.turns.open_requests(&"held-1".into()), 2);
    drop((held, again));
    assert_eq!(bed.turns.open_requests(&"held-1".into()), 0);
}

#[test]
fn turns_and_memories_are_bounded() {
    let bed = Bed::of(&["a", "b"]);
    let rules = balanced(By::RoundRobin);
    let key = |n: usize| {
        let host = NamespacedHostname {
            namespace: "default".into(),
            hostname: format!("{n}.example").into(),
        };
        (host, None, 80)
    };
    for n in 0..MOST_ENTRIES {
        bed.turns.next.borrow_mut().insert(key(n), 0);
    }
    let entries = || bed.turns.next.borrow().len();
    assert_eq!(bed.turns.turn(&bed.wanted(&rules)), 1);
    assert_eq!(entries(), MOST_ENTRIES + 1);
    let other = Wanted {
        port: 8443,
        dice: 40,
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.turns.turn(&other), 41);
    assert_eq!(entries(), 1, "all begin anew");
    assert_eq!(bed.turns.turn(&other), 42);

    let remembered = rules_that_remember();
    let at = |port| bed.turns.cluster(&remembered, &bed.service, None, port);
    for n in 0..MOST_ENTRIES {
        bed.turns.known.borrow_mut().insert(key(n), Arc::default());
    }
    let entries = || bed.turns.known.borrow().len();
    let first = at(8080).unwrap();
    assert_eq!(entries(), MOST_ENTRIES + 1);
    let again = at(8080).unwrap();
    assert_eq!(entries(), 1, "all are asked for again");
    assert!(Arc::ptr_eq(&first, &again), "they are known to all workers");
}

/// Rules with a limit, for which destinations are remembered.
fn rules_that_remember() -> TrafficRules {
    TrafficRules {
        pool: Some(isobar_route::PoolRules {
            max_requests: Some(1),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn destinations_are_remembered_where_their_rules_ask_for_it() {
    let bed = Bed::of(&["a"]);
    let subset = choice::subset("v1");
    let of = |rules, subset, port| bed.turns.cluster(rules, &bed.service, subset, port);
    let (plain, rules) = (TrafficRules::default(), rules_that_remember());
    assert!(of(&plain, None, 8080).is_none());
    let whole = of(&rules, None, 8080).unwrap();
    for other in [of(&rules, None, 8443), of(&rules, Some(&subset), 8080)] {
        assert!(!Arc::ptr_eq(&whole, &other.unwrap()));
    }
    assert!(Arc::ptr_eq(&whole, &of(&rules, None, 8080).unwrap()));
    let key = (bed.service.key.clone(), Some("v1".into()), 8080);
    let known = bed.mesh.world.clusters.find(&key).unwrap();
    let subset = of(&rules, Some(&subset), 8080).unwrap();
    assert!(Arc::ptr_eq(&known, &subset));
}
