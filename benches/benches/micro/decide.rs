//! Where a new connection goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use divan::{Bencher, black_box};
use isobar_state::outbound::{NextHop, OutboundCall, route};
use isobar_state::{Snapshot, Workload};
use isobar_types::NetworkAddress;

use crate::mesh;

const PODS: [u32; 3] = [1_000, 10_000, 100_000];

fn known(snapshot: &Snapshot, ip: IpAddr) -> Arc<Workload> {
    let address = NetworkAddress::new("".into(), ip);
    let found = snapshot.workload_by_address(&address);
    Arc::clone(found.expect("the made-up mesh has the pod"))
}

fn decide(bencher: Bencher<'_, '_>, pods: u32, to: impl Fn(u32) -> SocketAddr) {
    let snapshot = mesh::snapshot(pods);
    let source = known(&snapshot, mesh::pod_ip(1));
    let mut dice = 0_u64;
    bencher.bench_local(|| {
        dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let any = u32::try_from(dice >> 40).unwrap_or(0);
        let call = OutboundCall {
            source: &source,
            source_ip: mesh::pod_ip(1),
            destination: to(any),
            network: "",
            crosses_networks: false,
            ejections: None,
        };
        let hop: NextHop = route(&snapshot, black_box(&call), dice).expect("a way to everything");
        black_box(hop)
    });
}

#[divan::bench(args = PODS)]
fn service_address(bencher: Bencher<'_, '_>, pods: u32) {
    decide(bencher, pods, |any| {
        SocketAddr::new(mesh::service_ip(any % (pods / 10)), 80)
    });
}

#[divan::bench(args = PODS)]
fn pod_address(bencher: Bencher<'_, '_>, pods: u32) {
    decide(bencher, pods, |any| {
        SocketAddr::new(mesh::pod_ip(any % pods), 8080)
    });
}

#[divan::bench(args = PODS)]
fn address_outside(bencher: Bencher<'_, '_>, pods: u32) {
    decide(bencher, pods, |any| {
        let outside = std::net::Ipv4Addr::from(0xc633_0000 + any % 65_536);
        SocketAddr::new(outside.into(), 443)
    });
}
