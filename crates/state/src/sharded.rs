use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Entries of a shard, on average, before there are twice as many shards: a push of one entry copies
/// some 50 pointers, a push of many copies each touched shard once. More shards would be mostly room
/// that tables keep for more.
const ENTRIES: usize = 64;
/// There are never more. At 100,000 entries one shard holds about 100.
const SHARDS: usize = 1024;

/// What lies in a [`Sharded`] map; knows its key, so that none is stored beside it.
pub(crate) trait Slot: Clone {
    /// Hashes the key, as whoever asks for it does.
    fn hash_key<H: Hasher>(&self, state: &mut H);

    /// Whether both have one key.
    fn is_same(&self, other: &Self) -> bool;
}

/// A slot that is found by `Q`, whose hash is that of the slot's key.
pub(crate) trait Found<Q: ?Sized>: Slot {
    /// Whether the key is that.
    fn is(&self, key: &Q) -> bool;
}

impl<K: Hash + Eq + Clone, V: Clone> Slot for (K, V) {
    fn hash_key<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<Q: Eq + ?Sized, K: Hash + Eq + Clone + Borrow<Q>, V: Clone> Found<Q> for (K, V) {
    fn is(&self, key: &Q) -> bool {
        self.0.borrow() == key
    }
}

/// A map whose clones share what they have in common: copying costs one pointer, changing an entry
/// of a shared map copies its shard.
#[derive(Debug)]
pub(crate) struct Sharded<S> {
    hasher: RandomState,
    /// A power of two of them.
    shards: Arc<[Arc<HashTable<S>>]>,
    len: usize,
}

impl<S> Clone for Sharded<S> {
    fn clone(&self) -> Self {
        Self {
            hasher: self.hasher.clone(),
            shards: Arc::clone(&self.shards),
            len: self.len,
        }
    }
}

impl<S> Default for Sharded<S> {
    fn default() -> Self {
        Self {
            hasher: RandomState::default(),
            shards: Arc::new([Arc::default()]),
            len: 0,
        }
    }
}

/// Tables use the lowest and the highest bits of the same hash.
const fn shard_of(hash: u64, shards: usize) -> usize {
    (hash >> 32) as usize & (shards - 1)
}

fn hash_of<S: Slot>(hasher: &RandomState, slot: &S) -> u64 {
    let mut state = hasher.build_hasher();
    slot.hash_key(&mut state);
    state.finish()
}

impl<S: Slot> Sharded<S> {
    pub(crate) fn get<Q: Hash + ?Sized>(&self, key: &Q) -> Option<&S>
    where
        S: Found<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let shard = &self.shards[shard_of(hash, self.shards.len())];
        shard.find(hash, |slot| slot.is(key))
    }

    fn shard_mut(&mut self, hash: u64) -> &mut HashTable<S> {
        let at = shard_of(hash, self.shards.len());
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[at])
    }

    /// Adds an entry, or replaces that of the same key, which is returned.
    pub(crate) fn put(&mut self, slot: S) -> Option<S> {
        self.grow();
        let hasher = self.hasher.clone();
        let hash = hash_of(&hasher, &slot);
        let rehash = |slot: &S| hash_of(&hasher, slot);
        let same = |other: &S| slot.is_same(other);
        match self.shard_mut(hash).entry(hash, same, rehash) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), slot)),
            Entry::Vacant(entry) => {
                entry.insert(slot);
                self.len += 1;
                None
            }
        }
    }

    /// Doubles the shards when there is more in them than there should be.
    fn grow(&mut self) {
        let shards = self.shards.len();
        if shards == SHARDS || self.len < shards * ENTRIES {
            return;
        }
        let mut parts: Vec<HashTable<S>> = (0..shards * 2).map(|_| HashTable::new()).collect();
        let count = parts.len();
        let rehash = |slot: &S| hash_of(&self.hasher, slot);
        for slot in self.iter() {
            let hash = rehash(slot);
            parts[shard_of(hash, count)].insert_unique(hash, slot.clone(), rehash);
        }
        self.shards = parts.into_iter().map(Arc::new).collect();
    }

    pub(crate) fn remove<Q: Hash + ?Sized>(&mut self, key: &Q) -> Option<S>
    where
        S: Found<Q>,
    {
        // Looking first keeps a miss from copying the shard.
        self.get(key)?;
        let hash = self.hasher.hash_one(key);
        let entry = self.shard_mut(hash).find_entry(hash, |slot| slot.is(key));
        let (slot, _) = entry.ok()?.remove();
        self.len -= 1;
        Some(slot)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Entries in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &S> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Sharded<(K, V)> {
    /// The value of a key.
    pub(crate) fn value<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get(key).map(|(_, value)| value)
    }

    /// The value of a key, made if missing.
    pub(crate) fn entry(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        self.grow();
        let hasher = self.hasher.clone();
        let hash = hasher.hash_one(key);
        let missing = self.get(key).is_none();
        self.len += usize::from(missing);
        let rehash = |slot: &(K, V)| hash_of(&hasher, slot);
        let shard = self.shard_mut(hash);
        let entry = shard.entry(hash, |slot| slot.0 == *key, rehash);
        let entry = entry.or_insert_with(|| (key.clone(), V::default()));
        &mut entry.into_mut().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(count: u32) -> Sharded<(u32, u32)> {
        let mut map = Sharded::default();
        for n in 0..count {
            map.put((n, n));
        }
        map
    }

    #[test]
    fn clones_do_not_see_later_changes() {
        let mut map = filled(5000);
        let old = map.clone();
        assert_eq!(map.put((1, 100)), Some((1, 1)));
        map.remove(&2);
        map.remove(&9999);
        *map.entry(&6000) += 7;
        assert_eq!(
            (old.value(&1), old.value(&2), old.len()),
            (Some(&1), Some(&2), 5000)
        );
        assert_eq!(
            (map.value(&1), map.value(&2), map.len()),
            (Some(&100), None, 5000)
        );
        assert_eq!(map.value(&6000), Some(&7));
        assert_eq!(map.iter().count(), map.len());
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut map = filled(5000);
        let old = map.clone();
        map.put((1, 100));
        let shards = old.shards.iter().zip(map.shards.iter());
        let same = shards.filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(same, old.shards.len() - 1);
        assert!(old.shards.iter().all(|shard| shard.len() < 2 * ENTRIES));
    }

    #[test]
    fn shards_grow_with_what_is_in_them_and_clones_keep_theirs() {
        let mut map = filled(ENTRIES as u32);
        let old = map.clone();
        assert_eq!(map.shards.len(), 1);
        map.put((ENTRIES as u32, 0));
        assert_eq!((old.shards.len(), map.shards.len()), (1, 2));
        assert_eq!((old.iter().count(), map.iter().count()), (64, 65));
        assert!((0..=ENTRIES as u32).all(|n| map.get(&n).is_some()));
        assert_eq!(filled(200_000).shards.len(), SHARDS);
    }
}
