//! Follows the mesh: what was allowed is asked again when the answer may have changed.

use std::collections::HashMap;
use std::sync::Arc;

use isobar_runtime::Lifetime;
use isobar_state::{Snapshot, Workload};
use isobar_xds::Store;

use crate::pods::Pods;
use crate::proxy::Connections;
use crate::zds::PodInfo;

impl Pods {
    /// Asks again about open inbound connections, and those that are passed through, whenever a decision may
    /// have changed: all of them after a change of policies, services or known workloads, those of one pod
    /// when its own workload has become another. Runs until `life` is stopped: a drain does not suspend policy.
    pub async fn recheck(self, store: Store, life: Lifetime) {
        let mut versions = store.versions();
        let mut seen = Seen::default();
        seen.changed(&store.load(), self.node(), self.connections());
        loop {
            tokio::select! {
                () = life.stopped() => return,
                changed = versions.changed() => if changed.is_err() {
                    return;
                },
            }
            versions.borrow_and_update();
            let snapshot = store.load();
            for (uid, info, connections) in seen.changed(&snapshot, self.node(), self.connections())
            {
                let cut = connections.recheck(&snapshot, self.network());
                if cut > 0 {
                    let pod = format!("{}/{}", info.namespace, info.name);
                    tracing::info!(uid, pod, cut, "connections cut by policy");
                }
            }
        }
    }
}

type Served = (String, PodInfo, Arc<Connections>);

/// What the last decisions were made on.
#[derive(Debug, Default)]
struct Seen {
    policy_version: u64,
    /// The workload of each pod, by the pod's uid. One that was away and has come back, or has been
    /// replaced, may list other policies, and its arrival alone changes no policy version.
    workloads: HashMap<String, Option<Arc<Workload>>>,
}

impl Seen {
    /// The pods whose connections have to be looked at, as of `snapshot`.
    fn changed(&mut self, snapshot: &Snapshot, node: &str, pods: Vec<Served>) -> Vec<Served> {
        let all = snapshot.policy_version() != self.policy_version;
        self.policy_version = snapshot.policy_version();
        let mut before = std::mem::take(&mut self.workloads);
        let mut changed = Vec::new();
        for (uid, info, connections) in pods {
            let workload = snapshot
                .local_workload(node, &info.namespace, &info.name, &info.service_account)
                .cloned();
            let same = |old: &Option<Arc<Workload>>| match (old, &workload) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            let fresh = before.remove(&uid).is_none_or(|old| !same(&old));
            self.workloads.insert(uid.clone(), workload);
            if all || fresh {
                changed.push((uid, info, connections));
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::security::{self, Action, Scope};
    use isobar_proto::istio::workload as wire;
    use isobar_state::Peer;
    use isobar_types::Identity;

    use super::*;
    use crate::proxy::View;

    fn cart(policies: &[&str]) -> wire::Address {
        let w = wire::Workload {
            uid: "Kubernetes//Pod/shop/cart".to_owned(),
            name: "cart".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
            node: "node-1".to_owned(),
            addresses: vec![vec![10, 0, 0, 1]],
            tunnel_protocol: 1,
            authorization_policies: policies.iter().map(|p| (*p).to_owned()).collect(),
            ..Default::default()
        };
        wire::Address {
            r#type: Some(wire::address::Type::Workload(w)),
        }
    }

    fn deny(name: &str, scope: Scope) -> security::Authorization {
        security::Authorization {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            scope: scope.into(),
            action: Action::Deny.into(),
            rules: vec![security::Rule { clauses: vec![] }],
            ..Default::default()
        }
    }

    fn next(snapshot: &Snapshot, change: impl FnOnce(&mut isobar_state::Draft)) -> Snapshot {
        let mut draft = snapshot.draft();
        change(&mut draft);
        draft.finish()
    }

    /// The pod `shop/cart` with one open connection, and how many of its connections a change of
    /// the mesh cuts.
    struct Bed {
        seen: Seen,
        connections: Arc<Connections>,
        guard: crate::proxy::InboundGuard,
    }

    impl Bed {
        fn new(snapshot: &Snapshot) -> Self {
            let connections = Arc::<Connections>::default();
            let workload = snapshot.workload_by_uid("Kubernetes//Pod/shop/cart");
            let peer = Peer {
                identity: Some(Identity::new("cluster.local", "web", "front")),
                ip: "10.0.0.9".parse().unwrap(),
            };
            let to = "10.0.0.1:8080".parse().unwrap();
            let view = View {
                src: "10.0.0.9:1".parse().unwrap(),
                original_dst: None,
                actual_dst: "10.0.0.1:8080".into(),
                protocol: "HBONE",
            };
            let guard = connections.inbound(peer, to, workload.unwrap().clone(), view);
            let mut bed = Self {
                seen: Seen::default(),
                connections,
                guard,
            };
            bed.due(snapshot);
            bed
        }

        fn due(&mut self, snapshot: &Snapshot) -> Vec<Served> {
            let info = PodInfo {
                name: "cart".to_owned(),
                namespace: "shop".to_owned(),
                service_account: "cart".to_owned(),
            };
            let pods = vec![("u1".to_owned(), info, self.connections.clone())];
            self.seen.changed(snapshot, "node-1", pods)
        }

        fn cut_by(&mut self, snapshot: &Snapshot) -> usize {
            let due = self.due(snapshot);
            due.iter().map(|(_, _, c)| c.recheck(snapshot, "")).sum()
        }
    }

    #[tokio::test]
    async fn check_37_a_live_connection_is_cut_whatever_it_is_that_denies_it() {
        let mesh = next(&Snapshot::default(), |draft| {
            draft.upsert_address(&cart(&[])).unwrap();
            let selected = deny("selected", Scope::WorkloadSelector);
            draft.upsert_authorization(&selected).unwrap();
        });
        // A policy.
        let mut bed = Bed::new(&mesh);
        let denied = next(&mesh, |draft| {
            let policy = deny("all", Scope::Namespace);
            draft.upsert_authorization(&policy).unwrap();
        });
        assert_eq!(bed.cut_by(&denied), 1);
        let ending = format!("{:?}", bed.guard.withdrawn().await);
        assert!(
            ending.contains("connection closed due to policy change"),
            "{ending}"
        );
        assert!(
            ending.contains("explicitly denied by: shop/all"),
            "{ending}"
        );
        assert_eq!(bed.cut_by(&denied), 0, "nothing is new");

        // A label, or a selector: the policy is old, the workload comes to list it.
        let mut bed = Bed::new(&mesh);
        let listed = next(&mesh, |draft| {
            draft.upsert_address(&cart(&["shop/selected"])).unwrap();
        });
        assert_eq!(bed.cut_by(&listed), 1);

        // The workload goes, and comes back with other policies.
        let mut bed = Bed::new(&mesh);
        let gone = next(&mesh, |draft| {
            assert!(draft.remove_address("Kubernetes//Pod/shop/cart"));
        });
        assert_eq!(
            bed.cut_by(&gone),
            0,
            "what was allowed stays while nothing is known"
        );
        let back = next(&gone, |draft| {
            draft.upsert_address(&cart(&["shop/selected"])).unwrap();
        });
        assert_ne!(back.policy_version(), back.version(), "no policy changed");
        assert_eq!(bed.cut_by(&back), 1);
    }

    #[test]
    fn what_changes_nothing_is_not_looked_at() {
        let mesh = next(&Snapshot::default(), |draft| {
            draft.upsert_address(&cart(&[])).unwrap();
        });
        let mut bed = Bed::new(&mesh);
        let other = next(&mesh, |draft| {
            let mut other = cart(&[]);
            if let Some(wire::address::Type::Workload(w)) = &mut other.r#type {
                w.uid = "other".to_owned();
                w.name = "other".to_owned();
            }
            draft.upsert_address(&other).unwrap();
        });
        assert!(bed.due(&other).is_empty());
    }
}
