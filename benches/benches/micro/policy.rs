//! Whether a connection is permitted, beside many policies.

use std::net::SocketAddr;
use std::sync::Arc;

use divan::{Bencher, black_box};
use isobar_proto::istio::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};
use isobar_state::{Peer, Snapshot, Workload, authorize};
use isobar_types::{Identity, NetworkAddress};

use crate::mesh;

const POLICIES: [u32; 4] = [1, 10, 1_000, 10_000];

fn allow(n: u32, namespace: &str, principal: &str) -> Authorization {
    let principal = StringMatch {
        match_type: Some(MatchType::Exact(principal.to_owned())),
    };
    let wanted = Match {
        principals: vec![principal],
        ..Default::default()
    };
    Authorization {
        name: format!("allow-{n}"),
        namespace: namespace.to_owned(),
        scope: Scope::Namespace.into(),
        action: Action::Allow.into(),
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![wanted],
            }],
        }],
        ..Default::default()
    }
}

fn permit(bencher: Bencher<'_, '_>, policies: impl Iterator<Item = Authorization>) {
    let mut draft = mesh::snapshot(1_000).draft();
    for policy in policies {
        draft
            .upsert_authorization(&policy)
            .expect("made to be right");
    }
    let snapshot: Snapshot = draft.finish();
    let address = NetworkAddress::new("".into(), mesh::pod_ip(0));
    let found = snapshot.workload_by_address(&address);
    let workload: Arc<Workload> = Arc::clone(found.expect("the made-up mesh has the pod"));
    let peer = Peer {
        identity: Some(Identity::new("cluster.local", "ns-0", "svc-1")),
        ip: mesh::pod_ip(11),
    };
    let to = SocketAddr::new(mesh::pod_ip(0), 8080);
    bencher.bench_local(|| {
        let permit = authorize(&snapshot, black_box(&peer), &workload, to);
        black_box(permit.expect("the last policy allows it"))
    });
}

/// All in the workload's namespace; the caller is in the last.
#[divan::bench(args = POLICIES)]
fn of_this_namespace(bencher: Bencher<'_, '_>, policies: u32) {
    let others = (1..policies).map(|n| allow(n, "ns-0", &format!("cluster.local/ns/a/sa/b-{n}")));
    let last = allow(99_999, "ns-0", "cluster.local/ns/ns-0/sa/svc-1");
    permit(bencher, others.chain([last]));
}

/// One in the workload's namespace, the others in namespaces of their own.
#[divan::bench(args = POLICIES)]
fn of_other_namespaces(bencher: Bencher<'_, '_>, policies: u32) {
    let others = (1..policies).map(|n| allow(n, &format!("other-{n}"), "cluster.local/ns/a/sa/b"));
    let own = allow(99_999, "ns-0", "cluster.local/ns/ns-0/sa/svc-1");
    permit(bencher, others.chain([own]));
}
