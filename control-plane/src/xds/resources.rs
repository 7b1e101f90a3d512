use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isobar_types::Str;
use xxhash_rust::xxh64::xxh64;

use super::catalog::Resource;
use super::portion;

/// Changes that are remembered; who is further behind compares everything.
const STEPS: usize = 64;
/// Names that one remembered change may have.
const NAMES: usize = 1024;
/// Resources in a shard when it is made, and when there are too few shards.
const SHARD: (usize, usize) = (16, 64);

/// Told apart by number, because an address in memory may be used again.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Resources of one kind in one scope, by name. Immutable. A changed copy costs what changed, and
/// knows what that was, so that sessions that have compared an earlier one compare no more than that.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    /// 0 is the one without resources that nothing led to.
    id: u64,
    len: usize,
    /// By hash of the name, a power of two of them; each ordered by name.
    shards: Vec<Arc<Shard>>,
    /// What changed on the way here, oldest first.
    steps: VecDeque<Step>,
}

type Shard = Vec<Arc<Resource>>;

#[derive(Debug, Clone)]
struct Step {
    from: u64,
    names: Arc<[Str]>,
}

impl Resources {
    /// The resource of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        let shard = self.shards.get(self.place(name))?;
        let at = shard.binary_search_by(|one| (*one.name).cmp(name)).ok()?;
        shard.get(at)
    }

    /// True if there is one of that name.
    pub(crate) fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Number of resources.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// All of them, in no order that means something.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Names of what may differ from `earlier`; `None` if that is not known.
    pub(crate) fn changes_since(&self, earlier: &Self) -> Option<impl Iterator<Item = &Str>> {
        let first = if earlier.id == self.id {
            self.steps.len()
        } else {
            self.steps.iter().position(|step| step.from == earlier.id)?
        };
        Some(self.steps.range(first..).flat_map(|step| step.names.iter()))
    }

    /// A copy in which `puts` are added or replaced and `removed` are gone; itself without any.
    pub(crate) fn patched(self: &Arc<Self>, puts: Vec<Resource>, removed: &[Str]) -> Arc<Self> {
        let puts: Vec<Resource> = puts
            .into_iter()
            .filter(|fresh| self.get(&fresh.name).is_none_or(|old| !old.is_same(fresh)))
            .collect();
        for resource in puts.iter().filter(|resource| resource.is_too_long()) {
            tracing::error!("{}", portion::told(resource));
        }
        let removed: Vec<&Str> = removed
            .iter()
            .filter(|name| self.contains_key(name))
            .collect();
        if puts.is_empty() && removed.is_empty() {
            return self.clone();
        }
        let names = puts.iter().map(|one| &one.name).chain(removed.clone());
        let names: Arc<[Str]> = names.cloned().collect();
        let mut next = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            len: self.len,
            shards: self.shards.clone(),
            steps: self.steps.clone(),
        };
        for name in removed {
            next.remove(name);
        }
        for resource in puts {
            next.insert(Arc::new(resource));
        }
        next.fit();
        if names.len() > NAMES {
            next.steps.clear();
        } else {
            let from = self.id;
            next.steps.push_back(Step { from, names });
            let surplus = next.steps.len().saturating_sub(STEPS);
            next.steps.drain(..surplus);
        }
        Arc::new(next)
    }

    fn place(&self, name: &str) -> usize {
        let mask = (self.shards.len() as u64).saturating_sub(1);
        usize::try_from(xxh64(name.as_bytes(), 0) & mask).unwrap_or_default()
    }

    fn insert(&mut self, resource: Arc<Resource>) {
        if self.shards.is_empty() {
            self.shards.push(Arc::default());
        }
        let place = self.place(&resource.name);
        let shard = Arc::make_mut(&mut self.shards[place]);
        match shard.binary_search_by(|one| one.name.cmp(&resource.name)) {
            Ok(at) => shard[at] = resource,
            Err(at) => {
                shard.insert(at, resource);
                self.len += 1;
            }
        }
    }

    fn remove(&mut self, name: &str) {
        let place = self.place(name);
        let Some(shard) = self.shards.get_mut(place) else {
            return;
        };
        let shard = Arc::make_mut(shard);
        if let Ok(at) = shard.binary_search_by(|one| (*one.name).cmp(name)) {
            shard.remove(at);
            self.len -= 1;
        }
    }

    /// More shards once they have grown long.
    fn fit(&mut self) {
        if self.len <= self.shards.len() * SHARD.1 {
            return;
        }
        let count = (self.len / SHARD.0).next_power_of_two();
        let old = std::mem::replace(&mut self.shards, vec![Arc::default(); count]);
        self.len = 0;
        for resource in old.iter().flat_map(|shard| shard.iter()) {
            self.insert(resource.clone());
        }
    }
}

impl FromIterator<Arc<Resource>> for Resources {
    fn from_iter<I: IntoIterator<Item = Arc<Resource>>>(all: I) -> Self {
        let mut made = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            ..Self::default()
        };
        for resource in all {
            made.insert(resource);
            made.fit();
        }
        made
    }
}

/// Merges freshly made resources with the previous ones: what did not change keeps its allocation,
/// and where nothing changed all stay as they are, so that sessions can compare pointers. What is as
/// before is let go as it is made. Of two with one name the last counts.
pub(crate) fn share(
    previous: &Arc<Resources>,
    fresh: impl IntoIterator<Item = Resource>,
) -> Arc<Resources> {
    let mut present: HashSet<Str> = HashSet::new();
    let mut puts: HashMap<Str, Resource> = HashMap::new();
    for resource in fresh {
        match previous.get(&resource.name) {
            Some(old) if old.is_same(&resource) => {
                puts.remove(&resource.name);
                present.insert(old.name.clone());
            }
            _ => {
                present.insert(resource.name.clone());
                puts.insert(resource.name.clone(), resource);
            }
        }
    }
    let gone = previous.values().map(|one| &one.name);
    let gone: Vec<Str> = gone
        .filter(|name| !present.contains(*name))
        .cloned()
        .collect();
    drop(present);
    previous.patched(puts.into_values().collect(), &gone)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use isobar_proto::istio::workload::Workload;
    use proptest::prelude::*;

    use super::super::kind::Kind;
    use super::*;

    fn resource(name: u16, content: u8) -> Resource {
        let body = Workload {
            name: content.to_string(),
            ..Workload::default()
        };
        Resource::new(Kind::Address, &format!("r{name}"), &body)
    }

    fn contents(all: &Resources) -> BTreeMap<Str, u64> {
        let pairs = all.values().map(|one| (one.name.clone(), one.version));
        pairs.collect()
    }

    proptest! {
        /// Against a plain map: contents, lookups, and what is said to have changed since each of
        /// the earlier ones.
        #[test]
        fn a_changed_copy_is_what_a_map_would_be(
            edits in proptest::collection::vec((0..300_u16, proptest::option::of(0..3_u8)), 1..200),
            at_once in 1..8_usize,
        ) {
            let mut oracle: BTreeMap<Str, u64> = BTreeMap::new();
            let mut now: Arc<Resources> = Arc::default();
            let mut earlier = vec![(now.clone(), oracle.clone())];
            for edit in edits.chunks(at_once) {
                let last: BTreeMap<u16, Option<u8>> = edit.iter().copied().collect();
                let (mut puts, mut removed) = (Vec::new(), Vec::new());
                for (name, content) in last {
                    if let Some(content) = content {
                        let one = resource(name, content);
                        oracle.insert(one.name.clone(), one.version);
                        puts.push(one);
                    } else {
                        let name: Str = format!("r{name}").into();
                        oracle.remove(&name);
                        removed.push(name);
                    }
                }
                now = now.patched(puts, &removed);
                prop_assert_eq!(now.len(), oracle.len());
                prop_assert_eq!(&contents(&now), &oracle);
                prop_assert!(oracle.keys().all(|name| now.contains_key(name)));
                earlier.push((now.clone(), oracle.clone()));
            }
            for (then, was) in earlier {
                let Some(names) = now.changes_since(&then) else { continue };
                let names: BTreeSet<&Str> = names.collect();
                let differ = oracle.keys().chain(was.keys());
                let mut differ = differ.filter(|name| oracle.get(*name) != was.get(*name));
                prop_assert!(differ.all(|name| names.contains(name)));
            }
        }
    }

    #[test]
    fn what_did_not_change_is_the_same() {
        let all = |content| (0..500).map(move |name| resource(name, content));
        let first = share(&Arc::default(), all(1));
        assert!(Arc::ptr_eq(&first, &share(&first, all(1))));
        let mut some: Vec<Resource> = all(1).collect();
        some[7] = resource(7, 2);
        some.pop();
        let second = share(&first, some);
        let changed: BTreeSet<&str> = second
            .changes_since(&first)
            .unwrap()
            .map(|n| &**n)
            .collect();
        assert_eq!(changed, ["r499", "r7"].into());
        assert!(Arc::ptr_eq(
            first.get("r8").unwrap(),
            second.get("r8").unwrap()
        ));
        assert!(first.changes_since(&second).is_none(), "nobody goes back");
    }
}
