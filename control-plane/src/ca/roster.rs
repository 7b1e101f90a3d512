use std::collections::{BTreeMap, BTreeSet};

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

/// Pods that are pending or running, and which accounts live on which node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    /// By `namespace/name`.
    pods: BTreeMap<Str, PodRecord>,
    /// (node, namespace, account) of every pod that has a node.
    accounts: BTreeSet<(Str, Str, Str)>,
}

impl Roster {
    /// Adds a pod that is pending or running; finished pods must not be added.
    pub(crate) fn insert(&mut self, namespace: &str, name: &str, pod: PodRecord) {
        if !pod.node.is_empty() {
            self.accounts
                .insert((pod.node.clone(), namespace.into(), pod.account.clone()));
        }
        self.pods.insert(format!("{namespace}/{name}").into(), pod);
    }

    /// The pod of that name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&PodRecord> {
        self.pods.get(format!("{namespace}/{name}").as_str())
    }

    /// True if a pod of that account lives on that node.
    pub(crate) fn runs(&self, node: &str, namespace: &str, account: &str) -> bool {
        self.accounts
            .contains(&(node.into(), namespace.into(), account.into()))
    }
}
