//! How much the routes of one namespace may put on hosts. Routes of a caller's own namespace stand among the
//! rules of somebody else's host: many large ones would make these too long to be sent at all, and those
//! of the host's owner with them.

use std::collections::{BTreeMap, BTreeSet};

use super::attach::{Attachment, RouteStatus};

/// Of all hosts together, in bytes as they are sent.
const OF_NAMESPACE: usize = 32 << 20;
/// At one host of its own, and at one of another namespace. What is longer than 64 MiB is not sent.
const AT_OWN: usize = 16 << 20;
pub(super) const AT_ANOTHER: usize = 1 << 20;

/// Why routes do not count.
const REASON: &str = "TooManyRules";
const TEXT: &str = "the routes of this namespace have more rules at a host than are kept, or at all hosts \
                    together: requests there that would be theirs are answered with 500";
const AGAIN: &str = "behind the routes of this namespace's hosts those of wildcard hosts come again, and at all \
                     its hosts together that is more than is kept: requests there that no route of the \
                     host takes are answered with 500";

/// Namespaces whose routes at a host do not count: as callers, `None` for everybody.
pub(super) type Crowded<'a> = BTreeSet<Option<&'a str>>;

/// What routes have come to, by namespace.
#[derive(Debug, Default)]
pub(super) struct Room {
    used: BTreeMap<String, usize>,
    /// What rules of wildcard hosts come to again at more exact ones, by the namespace of the latter.
    again: BTreeMap<String, usize>,
    /// Routes that do not count somewhere, by kind, namespace and name, and what is told of them.
    left_out: BTreeMap<String, &'static str>,
}

impl Room {
    /// Of the routes at one host, those for which there is no room. All of a namespace's are left out,
    /// so that none of its requests is taken by a rule that was meant for others.
    pub(super) fn without<'a>(&mut self, attached: &[Attachment<'a>]) -> Crowded<'a> {
        let mut sizes: BTreeMap<Option<&str>, (&str, usize)> = BTreeMap::new();
        for one in attached {
            let of = sizes.entry(one.consumer);
            let (_, size) = of.or_insert((&one.route.namespace, 0));
            *size = size.saturating_add(one.route.size);
        }
        let sizes = sizes.into_iter();
        let crowded = sizes.filter_map(|(consumer, (namespace, size))| {
            let fits = self.take(namespace, consumer.is_none(), size);
            (!fits).then_some(consumer)
        });
        let crowded: Crowded<'_> = crowded.collect();
        self.leave_out(attached, |one| crowded.contains(&one.consumer));
        crowded
    }

    /// Of the routes at one host of a Gateway in `home`, the namespaces of those for which there is no room.
    pub(super) fn without_at_gateway<'a>(
        &mut self,
        attached: &[Attachment<'a>],
        home: &str,
    ) -> BTreeSet<&'a str> {
        let sizes = sizes(attached).into_iter();
        let crowded = sizes.filter_map(|(namespace, size)| {
            let fits = self.take(namespace, namespace == home, size);
            (!fits).then_some(namespace)
        });
        let crowded: BTreeSet<&str> = crowded.collect();
        self.leave_out(attached, |one| crowded.contains(&*one.route.namespace));
        crowded
    }

    /// The same for routes of a wildcard host where they stand again, behind those of a more exact one.
    /// The room is that of the more exact host's `owners`, who made the place, and apart from that of
    /// their own rules: neither can those of the wildcard be driven out by hosts of others, nor others'
    /// rules by a large wildcard.
    pub(super) fn without_again<'a>(
        &mut self,
        attached: &[Attachment<'a>],
        owners: &[Attachment<'_>],
        home: &str,
    ) -> BTreeSet<&'a str> {
        let mut crowded = BTreeSet::new();
        for (namespace, size) in sizes(attached) {
            // What is too long for one host was told where the wildcard has its own.
            if size > most(namespace == home) {
                crowded.insert(namespace);
            } else if !self.take_again(owners, size) {
                crowded.insert(namespace);
                for one in owners {
                    let told = self.left_out.entry(one.route.object.to_string());
                    told.or_insert(AGAIN);
                }
            }
        }
        crowded
    }

    fn take(&mut self, namespace: &str, is_own: bool, size: usize) -> bool {
        size <= most(is_own) && charge(&mut self.used, namespace, size)
    }

    /// One owner pays, the first that can: who joins a host costs its others nothing.
    fn take_again(&mut self, owners: &[Attachment<'_>], size: usize) -> bool {
        let owners = owners.iter().map(|one| &*one.route.namespace);
        let owners: BTreeSet<&str> = owners.collect();
        let mut owners = owners.into_iter();
        owners.any(|owner| charge(&mut self.again, owner, size))
    }

    fn leave_out(&mut self, attached: &[Attachment<'_>], is_out: impl Fn(&Attachment<'_>) -> bool) {
        let out = attached.iter().filter(|one| is_out(one));
        self.left_out
            .extend(out.map(|one| (one.route.object.to_string(), TEXT)));
    }

    /// Says so on the routes.
    pub(super) fn tell(&self, statuses: &mut [RouteStatus]) {
        for status in statuses {
            let Some(text) = self.left_out.get(&status.object.to_string()) else {
                continue;
            };
            let parents = status.parents.iter_mut();
            let conditions = parents.flat_map(|parent| &mut parent.conditions);
            for one in conditions.filter(|one| one.condition == "Programmed") {
                one.holds = false;
                one.reason = REASON;
                (*text).clone_into(&mut one.message);
            }
        }
    }
}

/// Of the routes at a host of a Gateway, by namespace.
fn sizes<'a>(attached: &[Attachment<'a>]) -> BTreeMap<&'a str, usize> {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for one in attached {
        let size = sizes.entry(&one.route.namespace).or_default();
        *size = size.saturating_add(one.route.size);
    }
    sizes
}

/// At one host.
fn most(is_own: bool) -> usize {
    match is_own {
        true => AT_OWN,
        false => AT_ANOTHER,
    }
}

/// Whether there is room in what a namespace has at all hosts, which is then used.
fn charge(of_all: &mut BTreeMap<String, usize>, namespace: &str, size: usize) -> bool {
    let used = of_all.entry(namespace.to_owned()).or_default();
    let fits = used.saturating_add(size) <= OF_NAMESPACE;
    if fits {
        *used += size;
    }
    fits
}
