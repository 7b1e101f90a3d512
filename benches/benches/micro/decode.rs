//! What the control plane sent becomes a snapshot.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use isobar_proto::istio::workload::Address;
use isobar_state::{Snapshot, Traversal};
use prost::Message as _;

use crate::mesh;

/// From bytes to a snapshot that has all of them: divide by the size for one resource.
#[divan::bench(args = [1_000, 10_000, 100_000], sample_count = 10, sample_size = 1)]
fn everything(bencher: Bencher<'_, '_>, pods: u32) {
    let bytes: Vec<Vec<u8>> = mesh::addresses(pods)
        .iter()
        .map(prost::Message::encode_to_vec)
        .collect();
    bencher
        .counter(ItemsCount::new(bytes.len()))
        .bench_local(|| {
            let mut draft = Snapshot::empty(Traversal::Required).draft();
            for resource in &bytes {
                let address = Address::decode(black_box(&**resource)).expect("encoded above");
                draft.upsert_address(&address).expect("made to be right");
            }
            black_box(draft.finish())
        });
}

/// One pod changed in a mesh of that size.
#[divan::bench(args = [1_000, 10_000, 100_000])]
fn one_change(bencher: Bencher<'_, '_>, pods: u32) {
    let snapshot = mesh::snapshot(pods);
    let last = mesh::addresses(pods).pop().expect("more than none");
    let bytes = last.encode_to_vec();
    bencher.bench_local(|| {
        let address = Address::decode(black_box(&*bytes)).expect("encoded above");
        let mut draft = snapshot.draft();
        draft.upsert_address(&address).expect("made to be right");
        black_box(draft.finish())
    });
}
