//! Looking at those policies only that may be about a caller changes no decision.

use proptest::prelude::*;

use super::*;
use crate::policy::PolicyScope;

const CLASSES: [Class; 4] = [
    (Action::Allow, false),
    (Action::Allow, true),
    (Action::Deny, false),
    (Action::Deny, true),
];

fn principals() -> impl Strategy<Value = Vec<TextMatch>> {
    let one = prop_oneof![
        4 => prop::sample::select(vec!["web/sa/front", "web/sa/other", "shop/sa/front"])
            .prop_map(|who| TextMatch::Exact(format!("cluster.local/ns/{who}").into())),
        1 => Just(TextMatch::Prefix("cluster.local/ns/web".into())),
        1 => Just(TextMatch::Suffix("/front".into())),
        1 => Just(TextMatch::Presence),
    ];
    prop::collection::vec(one, 0..3)
}

fn namespaces() -> impl Strategy<Value = Vec<TextMatch>> {
    let one = prop_oneof![
        4 => prop::sample::select(vec!["web", "shop", ""])
            .prop_map(|name| TextMatch::Exact(name.into())),
        1 => Just(TextMatch::Suffix("b".into())),
        1 => Just(TextMatch::Presence),
    ];
    prop::collection::vec(one, 0..2)
}

fn accounts() -> impl Strategy<Value = Vec<ServiceAccountMatch>> {
    let one = prop::sample::select(vec![("web", "front"), ("shop", "front")]);
    let one = one.prop_map(|(namespace, account)| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: account.into(),
    });
    prop::collection::vec(one, 0..2)
}

fn rarely<T: std::fmt::Debug + Clone + 'static>(
    some: impl Strategy<Value = Vec<T>> + 'static,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 1 => some]
}

fn one_match() -> impl Strategy<Value = Match> {
    let ports = || rarely(prop::collection::vec(80..82_u16, 1..3));
    let what = (
        rarely(principals()),
        rarely(principals()),
        rarely(namespaces()),
        rarely(namespaces()),
        rarely(accounts()),
        rarely(accounts()),
        ports(),
        ports(),
    );
    what.prop_map(
        |(principals, not_principals, namespaces, not_namespaces, sa, not_sa, p, not_p)| Match {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            service_accounts: sa,
            not_service_accounts: not_sa,
            destination_ports: p,
            not_destination_ports: not_p,
            ..Match::default()
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<Authorization>> {
    let clause = prop::collection::vec(one_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let rules = prop::collection::vec(rule, 0..3);
    let kind = prop::sample::select(CLASSES.to_vec());
    let named = prop::collection::btree_map(0..40_u8, (kind, rules), 0..12);
    named.prop_map(|all| {
        let policy = |(number, ((action, dry_run), rules)): (u8, (_, _))| Authorization {
            key: NamespacedName {
                namespace: "shop".into(),
                name: format!("p{number:02}").into(),
            },
            scope: PolicyScope::Namespace,
            action,
            rules,
            dry_run,
        };
        all.into_iter().map(policy).collect()
    })
}

fn group_of<'a>(policies: impl Iterator<Item = &'a Authorization>) -> PolicyGroup {
    let mut group = PolicyGroup::default();
    for policy in policies {
        group.insert(&Arc::new(policy.clone()));
    }
    group
}

proptest! {
    #[test]
    fn what_is_found_is_what_asking_every_policy_finds(all in policies()) {
        // The order in which they come makes no difference.
        let group = group_of(all.iter().rev());
        prop_assert_eq!(&group, &group_of(all.iter()));
        for who in [None, FRONT, OTHER, Some(("shop", "front")), Some(("db", "x"))] {
            let peer = peer(who, "10.0.9.9");
            for port in 80..83 {
                let attributes = Attributes::new(&peer, at(&format!("{POD}:{port}")));
                for class in CLASSES {
                    let mut of_class = all.iter().filter(|p| (p.action, p.dry_run) == class);
                    prop_assert_eq!(group.has(class), of_class.clone().next().is_some());
                    let expect = of_class.find(|p| attributes.matches(p));
                    let hits = |p: &Authorization| attributes.matches(p);
                    prop_assert_eq!(group.first(class, attributes.caller(), hits), expect);
                }
            }
        }
    }

    #[test]
    fn what_is_taken_away_leaves_nothing_behind(all in policies(), gone in any::<u16>()) {
        let goes = |at: usize| gone & (1 << (at % 16)) != 0;
        let mut group = group_of(all.iter());
        for (at, policy) in all.iter().enumerate() {
            if goes(at) {
                group.remove(policy);
            }
        }
        let rest = all.iter().enumerate().filter(|(at, _)| !goes(*at));
        prop_assert_eq!(group, group_of(rest.map(|(_, policy)| policy)));
    }
}

/// Policies that a caller is asked about.
fn asked(all: &[Match], who: Option<(&str, &str)>) -> usize {
    let policy = |(at, one): (usize, &Match)| Authorization {
        key: NamespacedName {
            namespace: "shop".into(),
            name: format!("p{at}").into(),
        },
        scope: PolicyScope::Namespace,
        action: Action::Allow,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![one.clone()],
            }],
        }],
        dry_run: false,
    };
    let all: Vec<Authorization> = all.iter().enumerate().map(policy).collect();
    let group = group_of(all.iter());
    let peer = peer(who, "10.0.9.9");
    let attributes = Attributes::new(&peer, at(&format!("{POD}:80")));
    let count = std::cell::Cell::new(0);
    let found = group.first((Action::Allow, false), attributes.caller(), |_| {
        count.set(count.get() + 1);
        false
    });
    assert_eq!(found, None);
    count.get()
}

#[test]
fn policies_about_others_are_not_asked() {
    let exact = |text: &str| vec![TextMatch::Exact(text.into())];
    let about = |n: u32| Match {
        principals: exact(&format!("cluster.local/ns/web/sa/front{n}")),
        ..Match::default()
    };
    let mut all: Vec<Match> = (0..1000).map(about).collect();
    assert_eq!(asked(&all, Some(("web", "front7"))), 1);
    all.extend((0..1000).map(|n| Match {
        namespaces: exact(&format!("ns-{n}")),
        ..Match::default()
    }));
    all.extend((0..1000).map(|n| Match {
        service_accounts: vec![ServiceAccountMatch {
            namespace: "ns-7".into(),
            service_account: format!("a{n}").into(),
        }],
        ..Match::default()
    }));
    all.extend((0..1000).map(|n| Match {
        destination_ports: vec![n],
        ..Match::default()
    }));
    // Its namespace, its account, its port.
    assert_eq!(asked(&all, Some(("ns-7", "a7"))), 3);
    assert_eq!(asked(&all, None), 1);
    // A pattern may be about anybody.
    all.push(Match {
        principals: vec![TextMatch::Prefix("cluster.local/ns/x".into())],
        ..Match::default()
    });
    assert_eq!(asked(&all, None), 2);
}
