//! What a control plane tells of the mesh: workloads, services and policies, and the decisions on them.

use std::net::SocketAddr;

use isobar_proto::{isobar, istio};
use isobar_state::outbound::{OutboundCall, route, route_again};
use isobar_state::{Peer, Place, Snapshot, authorize, convert, wire};
use isobar_types::Identity;
use prost::Message as _;

/// A workload or service.
///
/// # Panics
/// When it cannot be removed again, or is another one after it was written down.
pub fn address(data: &[u8]) {
    let Ok(address) = istio::workload::Address::decode(data) else {
        return;
    };
    let mut draft = Snapshot::default().draft();
    if draft.upsert_address(&address).is_err() {
        return;
    }
    let snapshot = draft.finish();
    decide(&snapshot);
    let mut copy = Snapshot::default().draft();
    let workloads = snapshot.workloads().map(|w| wire::address_of_workload(w));
    let services = snapshot.services().map(|s| wire::address_of_service(s));
    for written in workloads.chain(services) {
        assert!(copy.upsert_address(&written).is_ok(), "{written:?}");
    }
    let copy = copy.finish();
    assert!(copy.workloads().eq(snapshot.workloads()));
    assert!(copy.services().eq(snapshot.services()));
    let mut draft = snapshot.draft();
    assert!(draft.remove_address(&convert::address_name(&address)));
    assert_eq!(draft.finish().sizes(), Snapshot::default().sizes());
}

/// An L4 policy.
///
/// # Panics
/// When it is another one after it was written down.
pub fn authorization(data: &[u8]) {
    let Ok(policy) = istio::security::Authorization::decode(data) else {
        return;
    };
    let mut draft = Snapshot::default().draft();
    let taken = draft.upsert_authorization(&policy);
    let listed = format!("{}/{}", policy.namespace, policy.name);
    let workload = istio::workload::Workload {
        uid: "w".to_owned(),
        name: "w".to_owned(),
        namespace: policy.namespace.clone(),
        addresses: vec![vec![10, 0, 0, 1]],
        authorization_policies: vec![listed],
        ..istio::workload::Workload::default()
    };
    // A name that no workload could list is taken as well.
    let _ = draft.upsert_address(&istio::workload::Address {
        r#type: Some(istio::workload::address::Type::Workload(workload)),
    });
    let snapshot = draft.finish();
    decide(&snapshot);
    if taken.is_ok() {
        let mut copy = Snapshot::default().draft();
        for written in snapshot.authorizations().map(|a| wire::authorization(a)) {
            assert!(copy.upsert_authorization(&written).is_ok(), "{written:?}");
        }
        assert!(copy.finish().authorizations().eq(snapshot.authorizations()));
    }
}

/// What a namespace's calls are kept to, or a service's connections.
pub fn outbound_policy(data: &[u8]) {
    if let Ok(policy) = isobar::v1::OutboundPolicy::decode(data) {
        let mut draft = Snapshot::default().draft();
        if draft.upsert_outbound_policy(&policy).is_ok() {
            let snapshot = draft.finish();
            decide(&snapshot);
            let _ = wire::outbound_policies(&snapshot);
            let _ = snapshot
                .draft()
                .remove_outbound_policy(&convert::outbound_policy_name(&policy));
        }
    }
}

/// Asks all that is asked of a mesh, about everything in it.
fn decide(snapshot: &Snapshot) {
    let Some(source) = snapshot.workloads().next() else {
        return;
    };
    let own = source.addresses.iter().copied();
    let vips = snapshot.services().flat_map(|s| &s.vips).map(|vip| vip.ip);
    let elsewhere = [[192, 0, 2, 1].into()];
    for ip in own.chain(vips).chain(elsewhere) {
        let call = OutboundCall {
            source,
            source_ip: ip,
            destination: SocketAddr::new(ip, 80),
            network: &source.network,
            crosses_networks: true,
            ejections: None,
        };
        if let Ok(hop) = route(snapshot, &call, 7) {
            let tried = hop.endpoint().map(|workload| Place::from(&**workload));
            let _ = route_again(snapshot, &call, tried.as_slice(), 7);
        }
        for identity in [None, Some(Identity::new("cluster.local", "shop", "front"))] {
            let _ = authorize(snapshot, &Peer { identity, ip }, source, call.destination);
        }
    }
}
