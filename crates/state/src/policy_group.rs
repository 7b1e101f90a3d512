//! The policies of a namespace or of the mesh, found by what they ask of a caller: one that can only
//! be about somebody else is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isobar_types::{Identity, Str};

use crate::policy::{Action, Authorization, Match, Rule, TextMatch};

/// A policy under more keys than this is looked at for every caller.
const MOST_KEYS: usize = 1024;

/// Policies that are asked together: same action, all enforced or none.
pub(crate) type Class = (Action, bool);

const fn place(class: Class) -> usize {
    match class {
        (Action::Allow, false) => 0,
        (Action::Allow, true) => 1,
        (Action::Deny, false) => 2,
        (Action::Deny, true) => 3,
    }
}

/// What policies are found by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// Identity, if there is one.
    pub(crate) identity: Option<&'a Identity>,
    /// The identity as policies spell it.
    pub(crate) principal: Option<&'a str>,
    /// The port it wants.
    pub(crate) port: u16,
}

/// One thing that callers must be or want for a policy to hit them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Principal(Str),
    Account(Str, Str),
    /// The empty one: no identity.
    Namespace(Str),
    Port(u16),
}

/// Policies in the order of their names.
type List = Vec<Arc<Authorization>>;

/// Policies of one class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    count: usize,
    principals: BTreeMap<Str, List>,
    accounts: BTreeMap<(Str, Str), List>,
    namespaces: BTreeMap<Str, List>,
    ports: BTreeMap<u16, List>,
    /// Those that may be about anybody.
    rest: List,
}

/// All policies of one namespace, or all global ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PolicyGroup([Index; 4]);

impl PolicyGroup {
    /// True without policies.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|index| index.count == 0)
    }

    /// True if there is a policy of that class.
    pub(crate) fn has(&self, class: Class) -> bool {
        self.0[place(class)].count > 0
    }

    /// Adds a policy that is not there yet.
    pub(crate) fn insert(&mut self, policy: &Arc<Authorization>) {
        let index = &mut self.0[place((policy.action, policy.dry_run))];
        index.count += 1;
        index.each_list(policy, |list| {
            let at = list.partition_point(|other| other.key < policy.key);
            list.insert(at, Arc::clone(policy));
        });
    }

    /// Removes a policy that is there.
    pub(crate) fn remove(&mut self, policy: &Authorization) {
        let index = &mut self.0[place((policy.action, policy.dry_run))];
        index.count = index.count.saturating_sub(1);
        index.each_list(policy, |list| list.retain(|other| other.key != policy.key));
    }

    /// The first policy by name, of those of a class, that `hits`; which is asked of those only that
    /// may be about the caller.
    pub(crate) fn first(
        &self,
        class: Class,
        caller: Caller<'_>,
        hits: impl Fn(&Authorization) -> bool,
    ) -> Option<&Authorization> {
        let mut first: Option<&Authorization> = None;
        for list in self.0[place(class)].about(caller) {
            let before = |policy: &&Authorization| first.is_none_or(|hit| policy.key < hit.key);
            let policies = list.iter().map(Arc::as_ref);
            let found = policies.take_while(before).find(|policy| hits(policy));
            first = found.or(first);
        }
        first
    }
}

impl Index {
    /// Lists of all policies that may be about a caller.
    fn about<'a>(&'a self, caller: Caller<'_>) -> impl Iterator<Item = &'a List> {
        let identity = caller.identity;
        let account = identity.map(|i| (i.namespace.clone(), i.service_account.clone()));
        let namespace = identity.map_or("", |i| &*i.namespace);
        [
            caller.principal.and_then(|p| self.principals.get(p)),
            account.and_then(|account| self.accounts.get(&account)),
            self.namespaces.get(namespace),
            self.ports.get(&caller.port),
            Some(&self.rest),
        ]
        .into_iter()
        .flatten()
    }

    /// Every list that `policy` belongs into. Lists that are left empty go.
    fn each_list(&mut self, policy: &Authorization, change: impl Fn(&mut List)) {
        let Some(keys) = keys(policy) else {
            change(&mut self.rest);
            return;
        };
        for key in &keys {
            match key {
                Key::Principal(text) => at(&mut self.principals, text, &change),
                Key::Account(namespace, name) => {
                    let account = (namespace.clone(), name.clone());
                    at(&mut self.accounts, &account, &change);
                }
                Key::Namespace(name) => at(&mut self.namespaces, name, &change),
                Key::Port(port) => at(&mut self.ports, port, &change),
            }
        }
    }
}

fn at<K: Ord + Clone>(map: &mut BTreeMap<K, List>, key: &K, change: impl Fn(&mut List)) {
    let list = map.entry(key.clone()).or_default();
    change(list);
    if list.is_empty() {
        map.remove(key);
    }
}

/// Keys of which a caller must have one for the policy to hit; none at all: it never does. `None`:
/// it may hit anybody.
fn keys(policy: &Authorization) -> Option<BTreeSet<Key>> {
    let mut all = BTreeSet::new();
    for rule in &policy.rules {
        all.extend(of_rule(rule)?);
    }
    (all.len() <= MOST_KEYS).then_some(all)
}

/// Every clause has to hold, so any one whose keys are known will do: the most telling, the shortest.
fn of_rule(rule: &Rule) -> Option<BTreeSet<Key>> {
    let clauses = rule.clauses.iter().filter(|c| !c.matches.is_empty());
    let known = clauses.filter_map(|clause| {
        // A match without conditions never hits.
        let matches = clause.matches.iter().filter(|m| !m.is_empty());
        let keys: Option<Vec<_>> = matches.map(of_match).collect();
        Some(keys?.into_iter().flatten().collect::<BTreeSet<Key>>())
    });
    known.min_by_key(|keys| {
        let ports = keys.iter().any(|key| matches!(key, Key::Port(_)));
        let namespaces = keys.iter().any(|key| matches!(key, Key::Namespace(_)));
        (ports, namespaces, keys.len())
    })
}

fn of_match(m: &Match) -> Option<BTreeSet<Key>> {
    exact(&m.principals, Key::Principal)
        .or_else(|| {
            let accounts = m.service_accounts.iter();
            let accounts = accounts.map(|a| (a.namespace.clone(), a.service_account.clone()));
            let keys: BTreeSet<Key> = accounts.map(|(ns, name)| Key::Account(ns, name)).collect();
            (!keys.is_empty()).then_some(keys)
        })
        .or_else(|| exact(&m.namespaces, Key::Namespace))
        .or_else(|| {
            let keys: BTreeSet<Key> = m.destination_ports.iter().map(|p| Key::Port(*p)).collect();
            (!keys.is_empty()).then_some(keys)
        })
}

/// Whole texts as keys; `None` where there is none, or one is a pattern.
fn exact(texts: &[TextMatch], key: impl Fn(Str) -> Key) -> Option<BTreeSet<Key>> {
    let keys = texts.iter().map(|text| match text {
        TextMatch::Exact(text) => Some(key(text.clone())),
        TextMatch::Prefix(_) | TextMatch::Suffix(_) | TextMatch::Presence => None,
    });
    let keys: BTreeSet<Key> = keys.collect::<Option<_>>()?;
    (!keys.is_empty()).then_some(keys)
}
