use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Shards of a map. At 100,000 entries one shard holds about 100, so that a push of one entry
/// copies some 100 pointers, and a push of many copies each touched shard once.
const SHARDS: usize = 1024;

type Shard<K, V> = HashMap<K, V, RandomState>;

/// A map whose clones share what they have in common: copying costs one pointer, changing an entry
/// of a shared map copies its shard.
#[derive(Debug)]
pub(crate) struct Sharded<K, V> {
    hasher: RandomState,
    shards: Arc<[Arc<Shard<K, V>>]>,
    len: usize,
}

impl<K, V> Clone for Sharded<K, V> {
    fn clone(&self) -> Self {
        Self {
            hasher: self.hasher.clone(),
            shards: Arc::clone(&self.shards),
            len: self.len,
        }
    }
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        let hasher = RandomState::new();
        let empty = Arc::new(Shard::with_hasher(hasher.clone()));
        Self {
            hasher,
            shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(),
            len: 0,
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Sharded<K, V> {
    fn shard_of<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The middle bits: the maps inside the shards use the lowest and the highest of the same hash.
        (self.hasher.hash_one(key) >> 32) as usize % SHARDS
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shards.get(self.shard_of(key))?.get(key)
    }

    fn shard_mut<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut Shard<K, V> {
        let at = self.shard_of(key);
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[at])
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.shard_mut(&key).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        // Looking first keeps a miss from copying the shard.
        self.get(key)?;
        let old = self.shard_mut(key).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// The entry of `key`, made if missing.
    pub(crate) fn entry(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        if self.get(key).is_none() {
            self.insert(key.clone(), V::default());
        }
        self.shard_mut(key).entry(key.clone()).or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Entries in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_do_not_see_later_changes() {
        let mut map = Sharded::default();
        for n in 0..5000u32 {
            map.insert(n, n);
        }
        let old = map.clone();
        map.insert(1, 100);
        map.remove(&2);
        map.remove(&9999);
        *map.entry(&6000) += 7;
        assert_eq!(
            (old.get(&1), old.get(&2), old.len()),
            (Some(&1), Some(&2), 5000)
        );
        assert_eq!(
            (map.get(&1), map.get(&2), map.len()),
            (Some(&100), None, 5000)
        );
        assert_eq!(map.get(&6000), Some(&7));
        assert_eq!(map.iter().count(), map.len());
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut map = Sharded::default();
        for n in 0..5000u32 {
            map.insert(n, n);
        }
        let old = map.clone();
        map.insert(1, 100);
        let same = old
            .shards
            .iter()
            .zip(map.shards.iter())
            .filter(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        assert_eq!(same, SHARDS - 1);
    }
}
