use std::collections::HashMap;
use std::sync::Arc;

use isobar_types::Str;

use super::resources::Resources;

/// Versions that a client holds. One that holds what there was at some moment costs a reference to
/// that and what has changed since.
#[derive(Debug, Default)]
pub(super) struct Held {
    base: Arc<Resources>,
    /// What is otherwise than in `base`; `None` is not held.
    over: HashMap<Str, Option<u64>>,
    len: usize,
}

impl Held {
    /// The version held of `name`.
    pub(super) fn get(&self, name: &str) -> Option<u64> {
        match self.over.get(name) {
            Some(version) => *version,
            None => self.base.get(name).map(|resource| resource.version),
        }
    }

    /// Number of resources.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Now this version is held.
    pub(super) fn insert(&mut self, name: Str, version: u64) {
        if self.get(&name).is_none() {
            self.len += 1;
        }
        self.over.insert(name, Some(version));
    }

    /// Now none is held.
    pub(super) fn remove(&mut self, name: &str) {
        if self.get(name).is_none() {
            return;
        }
        self.len -= 1;
        if self.base.contains_key(name) {
            self.over.insert(name.into(), None);
        } else {
            self.over.remove(name);
        }
    }

    /// Names of everything held, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &Str> {
        let base = self.base.values().map(|resource| &resource.name);
        let base = base.filter(|name| !self.over.contains_key(*name));
        let over = self.over.iter();
        base.chain(over.filter_map(|(name, version)| version.map(|_| name)))
    }

    /// Exactly `all` is held.
    pub(super) fn settle(&mut self, all: &Arc<Resources>) {
        self.base = all.clone();
        self.over = HashMap::new();
        self.len = all.len();
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::workload::Workload;

    use super::super::catalog::Resource;
    use super::super::kind::Kind;
    use super::*;

    #[test]
    fn what_is_held_is_what_there_was_and_what_came_after() {
        let resource = |name| Arc::new(Resource::new(Kind::Address, name, &Workload::default()));
        let all: Arc<Resources> = Arc::new(["a", "b"].map(resource).into_iter().collect());
        let version = all.get("a").unwrap().version;
        let mut held = Held::default();
        held.insert("x".into(), 7);
        held.settle(&all);
        held.insert("c".into(), 1);
        held.insert("b".into(), 2);
        held.remove("a");
        held.remove("nobody");
        let mut names: Vec<&str> = held.names().map(|name| &**name).collect();
        names.sort_unstable();
        assert_eq!((names, held.len()), (vec!["b", "c"], 2));
        assert_eq!((held.get("a"), held.get("b")), (None, Some(2)));
        held.remove("c");
        held.insert("a".into(), version);
        assert_eq!((held.len(), held.get("c")), (2, None));
    }
}
