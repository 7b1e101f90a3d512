//! Secrets that something names, each watched by its name: the server is never asked for others, and what
//! it does not let us have is as if it were not there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{Kind, NamedSecret, ObjectRef, ObjectSet};
use isobar_runtime::Scope;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::watch::{Notice, Watch};

/// Secrets that are followed at most; each takes a connection to the API server.
const MOST: usize = 256;

/// Secrets and who names them, in whatever order.
pub type Names = Vec<NamedSecret>;

/// Says which Secrets the objects name.
#[derive(Clone)]
pub(crate) struct Which(Arc<dyn Fn(&ObjectSet) -> Names + Send + Sync>);

impl Which {
    pub(crate) fn new(which: impl Fn(&ObjectSet) -> Names + Send + Sync + 'static) -> Self {
        Self(Arc::new(which))
    }
}

impl fmt::Debug for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Which(..)")
    }
}

/// The Secrets that are followed.
pub(crate) struct Named {
    which: Which,
    client: Client,
    notices: mpsc::Sender<Notice>,
    /// A watch ends with its sender.
    followed: BTreeMap<ObjectRef, watch::Sender<()>>,
    missing: Missing,
    /// How many were too many when that was last said.
    left_out: usize,
}

impl Named {
    pub(crate) fn new(which: Which, client: Client, notices: mpsc::Sender<Notice>) -> Self {
        Self {
            which,
            client,
            notices,
            followed: BTreeMap::new(),
            missing: Missing::default(),
            left_out: 0,
        }
    }

    /// Begins and ends watches; Secrets that are not followed any more.
    pub(crate) fn follow(&mut self, objects: &ObjectSet, scope: &Scope) -> Vec<ObjectRef> {
        let Shared { taken, left_out } = share((self.which.0)(objects), MOST, &self.followed);
        let all = self.followed.keys();
        let gone: Vec<ObjectRef> = all.filter(|one| !taken.contains(*one)).cloned().collect();
        for one in &gone {
            self.followed.remove(one);
            self.missing.known(one);
        }
        if left_out.len() > self.left_out {
            tracing::warn!(
                left_out = left_out.len(),
                first = left_out.first().map(tracing::field::display),
                most = MOST,
                "too many Secrets are named: some are not read"
            );
        }
        self.left_out = left_out.len();
        for secret in taken {
            if !self.followed.contains_key(&secret) {
                let stop = self.begin(secret.clone(), scope);
                self.missing.asked(secret.clone(), Instant::now());
                self.followed.insert(secret, stop);
            }
        }
        gone
    }

    fn begin(&self, secret: ObjectRef, scope: &Scope) -> watch::Sender<()> {
        let (stop, mut stopped) = watch::channel(());
        let watch = Watch {
            kind: Kind::Secret,
            client: self.client.clone(),
            fields: None,
            only: Some(secret),
            slim: true,
            notices: self.notices.clone(),
        };
        scope.spawn("secret", async move {
            tokio::select! {
                () = watch.run() => {}
                _ = stopped.changed() => {}
            }
        });
        stop
    }

    /// True if this Secret is one of those.
    pub(crate) fn follows(&self, secret: &ObjectRef) -> bool {
        self.followed.contains_key(secret)
    }

    /// It was found, or it is known that there is none to be had.
    pub(crate) fn known(&mut self, secret: &ObjectRef) {
        self.missing.known(secret);
    }

    /// Until when others wait for what is not known yet, if anything is not.
    pub(crate) fn wait(&self, patience: Duration) -> Option<Instant> {
        self.missing.since.map(|since| since + patience)
    }

    /// Others went on without what is not known yet, and wait for that no more; how many those are.
    pub(crate) fn give_up(&mut self) -> usize {
        std::mem::take(&mut self.missing).all.len()
    }
}

/// Secrets that others wait for.
#[derive(Default)]
struct Missing {
    all: BTreeSet<ObjectRef>,
    /// When the first was asked for, while there were always some: who names more and more of them does
    /// not make others wait longer.
    since: Option<Instant>,
}

impl Missing {
    fn asked(&mut self, secret: ObjectRef, now: Instant) {
        self.all.insert(secret);
        self.since.get_or_insert(now);
    }

    fn known(&mut self, secret: &ObjectRef) {
        self.all.remove(secret);
        if self.all.is_empty() {
            self.since = None;
        }
    }
}

#[derive(Default)]
struct Shared {
    taken: BTreeSet<ObjectRef>,
    left_out: BTreeSet<ObjectRef>,
}

/// Gives out `most` watches: in turn one to each namespace of those who name Secrets, as whoever names many
/// takes none away from others. Within a namespace, and where the last turn is not enough for all, who has
/// a watch keeps it, and those of Gateways come before those of DestinationRules.
fn share(named: Names, most: usize, have: &BTreeMap<ObjectRef, watch::Sender<()>>) -> Shared {
    let place = |one: NamedSecret| {
        let is_new = !have.contains_key(&one.secret);
        let of_rule = one.by.known() == Some(Kind::DestinationRule);
        (is_new, of_rule, one.by.namespace, one.secret)
    };
    let ordered: BTreeSet<_> = named.into_iter().map(place).collect();
    let mut seen = BTreeSet::new();
    let mut turns: HashMap<_, usize> = HashMap::new();
    let mut all = Vec::with_capacity(ordered.len());
    for (is_new, of_rule, namespace, secret) in ordered {
        // Named twice in a namespace it takes one turn.
        if seen.insert((namespace.clone(), secret.clone())) {
            let turn = turns.entry(namespace.clone()).or_default();
            all.push((*turn, is_new, of_rule, namespace, secret));
            *turn += 1;
        }
    }
    all.sort_unstable();
    let mut shared = Shared::default();
    for (.., secret) in all {
        if shared.taken.len() < most || shared.taken.contains(&secret) {
            shared.taken.insert(secret);
        } else {
            shared.left_out.insert(secret);
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: Kind, namespace: &str, names: std::ops::Range<usize>) -> Names {
        let one = |at: usize| NamedSecret {
            secret: ObjectRef::new(Kind::Secret, namespace, &format!("s{at:03}")),
            by: ObjectRef::new(kind, namespace, "by"),
        };
        names.map(one).collect()
    }

    /// How many of each namespace, and how many are left out; `have` becomes what is taken.
    fn shared(named: Names, have: &mut BTreeMap<ObjectRef, watch::Sender<()>>) -> String {
        let Shared { taken, left_out } = share(named, 8, have);
        *have = taken
            .into_iter()
            .map(|one| (one, watch::channel(()).0))
            .collect();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for one in have.keys() {
            *counts.entry(&*one.namespace).or_default() += 1;
        }
        let counts = counts
            .iter()
            .map(|(name, count)| format!("{name}={count} "));
        format!("{}-{}", counts.collect::<String>(), left_out.len())
    }

    #[test]
    fn who_names_many_takes_none_away_from_other_namespaces() {
        let mut have = BTreeMap::new();
        let many = named(Kind::IstioGateway, "a", 0..20);
        assert_eq!(shared(many.clone(), &mut have), "a=8 -12");
        let late = named(Kind::DestinationRule, "z", 0..2);
        let both = [many.clone(), late.clone()].concat();
        assert_eq!(shared(both, &mut have), "a=6 z=2 -14");
        let third = named(Kind::Gateway, "m", 0..9);
        let all = [many, late, third].concat();
        assert_eq!(shared(all, &mut have), "a=3 m=3 z=2 -23");
        assert_eq!(shared(Vec::new(), &mut have), "-0");
    }

    #[test]
    fn gateways_come_first_and_who_has_a_watch_keeps_it() {
        let rules = named(Kind::DestinationRule, "a", 0..8);
        let gateways = named(Kind::Gateway, "a", 8..12);
        let mut have = BTreeMap::new();
        assert_eq!(
            shared([rules.clone(), gateways.clone()].concat(), &mut have),
            "a=8 -4"
        );
        for one in &gateways {
            assert!(have.contains_key(&one.secret), "{}", one.secret);
        }
        // Another one, first by its name, is late.
        let kept: Vec<_> = have.keys().cloned().collect();
        let late = named(Kind::Gateway, "Z", 0..1).into_iter().map(|mut one| {
            one.by = gateways[0].by.clone();
            one
        });
        let late: Names = late.collect();
        assert_eq!(
            shared([late, rules, gateways].concat(), &mut have),
            "a=8 -5"
        );
        assert_eq!(have.into_keys().collect::<Vec<_>>(), kept);
    }

    #[test]
    fn whoever_is_named_counts_for_those_who_name_it() {
        // A grant lets `a` name what it likes in `b`.
        let mut foreign = named(Kind::Gateway, "b", 0..20);
        for one in &mut foreign {
            one.by = ObjectRef::new(Kind::Gateway, "a", "by");
        }
        let own = named(Kind::Gateway, "b", 50..54);
        let mut have = BTreeMap::new();
        shared([foreign, own.clone()].concat(), &mut have);
        assert_eq!(have.len(), 8);
        assert!(own.iter().all(|one| have.contains_key(&one.secret)));
    }

    #[test]
    fn others_wait_from_the_first_that_is_missing() {
        let secret = |name: &str| ObjectRef::new(Kind::Secret, "a", name);
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut missing = Missing::default();
        missing.asked(secret("one"), start);
        missing.asked(secret("two"), later);
        assert_eq!(missing.since, Some(start));
        missing.known(&secret("one"));
        assert_eq!(missing.since, Some(start));
        missing.known(&secret("two"));
        assert_eq!(missing.since, None);
        missing.asked(secret("three"), later);
        assert_eq!(missing.since, Some(later));
    }
}
