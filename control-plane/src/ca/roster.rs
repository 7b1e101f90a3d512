use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_types::Str;

/// What the authority knows of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodRecord {
    /// Kubernetes UID; empty when it has none yet.
    pub(crate) uid: Str,
    /// Node it is scheduled to; empty before.
    pub(crate) node: Str,
    /// Account it runs as.
    pub(crate) account: Str,
}

/// Pods that are pending or running, and which accounts live on which node. A changed copy shares
/// the namespaces in which nothing changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    namespaces: BTreeMap<Str, Arc<Residents>>,
}

/// The pods of one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Residents {
    pods: BTreeMap<Str, PodRecord>,
    /// Number of pods by node and account; of those that have a node.
    accounts: BTreeMap<(Str, Str), usize>,
}

impl Roster {
    /// Adds a pod that is pending or running, or replaces it; finished pods must not be added.
    pub(crate) fn insert(&mut self, namespace: &str, name: &str, pod: PodRecord) {
        if self.pod(namespace, name) == Some(&pod) {
            return;
        }
        let here = self.namespaces.entry(namespace.into()).or_default();
        let here = Arc::make_mut(here);
        here.remove(name);
        if !pod.node.is_empty() {
            let place = (pod.node.clone(), pod.account.clone());
            *here.accounts.entry(place).or_default() += 1;
        }
        here.pods.insert(name.into(), pod);
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, namespace: &str, name: &str) {
        if self.pod(namespace, name).is_none() {
            return;
        }
        let Some(here) = self.namespaces.get_mut(namespace) else {
            return;
        };
        let here = Arc::make_mut(here);
        here.remove(name);
        if here.pods.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// The pod of that name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&PodRecord> {
        self.namespaces.get(namespace)?.pods.get(name)
    }

    /// True if a pod of that account lives on that node.
    pub(crate) fn runs(&self, node: &str, namespace: &str, account: &str) -> bool {
        let here = self.namespaces.get(namespace);
        here.is_some_and(|here| here.accounts.contains_key(&(node.into(), account.into())))
    }
}

impl Residents {
    fn remove(&mut self, name: &str) {
        let Some(pod) = self.pods.remove(name) else {
            return;
        };
        let place = (pod.node, pod.account);
        if let Some(count) = self.accounts.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.accounts.remove(&place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_lives_on_a_node_as_long_as_a_pod_of_it_does() {
        let record = |node: &str| PodRecord {
            uid: "u".into(),
            node: node.into(),
            account: "a".into(),
        };
        let mut roster = Roster::default();
        roster.insert("shop", "p", record("n"));
        roster.insert("shop", "q", record("n"));
        roster.insert("shop", "r", record(""));
        let before = roster.clone();
        roster.remove("shop", "p");
        assert!(roster.runs("n", "shop", "a"));
        roster.insert("shop", "q", record("m"));
        assert!(!roster.runs("n", "shop", "a") && roster.runs("m", "shop", "a"));
        assert!(!roster.runs("", "shop", "a"));
        for name in ["q", "r", "r"] {
            roster.remove("shop", name);
        }
        assert_eq!(roster, Roster::default());
        assert!(before.runs("n", "shop", "a") && before.pod("shop", "p").is_some());
    }
}
