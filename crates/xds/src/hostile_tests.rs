//! Hostile and broken resources among good ones.

use std::collections::BTreeSet;

use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use isobar_proto::istio::security;
use isobar_proto::istio::workload::{self as wire, address::Type};
use isobar_proto::type_url::ADDRESS;
use proptest::prelude::*;

use crate::ads::Subscription;
use crate::handler::ResourceHandler;
use crate::mesh::{AddressHandler, AuthorizationHandler};
use crate::status::SyncStatus;
use crate::store::Store;
use crate::testing::resource;

fn of_workload(w: wire::Workload) -> wire::Address {
    wire::Address {
        r#type: Some(Type::Workload(w)),
    }
}

fn good(n: usize) -> Resource {
    let uid = format!("good-{n}");
    let w = wire::Workload {
        uid: uid.clone(),
        name: uid.clone(),
        namespace: "default".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    };
    resource(&uid, "1", &of_workload(w))
}

/// A resource that must be rejected, whatever the numbers.
fn hostile(n: usize, kind: u8, noise: &[u8]) -> Resource {
    let name = format!("hostile-{n}");
    let bad = |change: &dyn Fn(&mut wire::Workload)| {
        let mut w = wire::Workload {
            uid: name.clone(),
            ..Default::default()
        };
        change(&mut w);
        resource(&name, "1", &of_workload(w))
    };
    match kind % 8 {
        0 => Resource {
            resource: None,
            ..bad(&|_| {})
        },
        1 => {
            let mut broken = bad(&|_| {});
            let value = &mut broken.resource.as_mut().unwrap().value;
            // A field number of 0 does not exist, so no noise can make this well-formed.
            *value = [&[0x00], noise].concat();
            broken
        }
        2 => bad(&|w| w.uid = format!("another-{noise:?}")),
        3 => bad(&|w| w.addresses = vec![[noise, &[0; 17]].concat()]),
        4 => bad(&|w| w.tunnel_protocol = 1000 + i32::from(kind)),
        5 => bad(&|w| {
            let key = String::from_utf8_lossy(noise).replace('/', "");
            w.services.insert(key, wire::PortList::default());
        }),
        6 => bad(&|w| w.waypoint = Some(wire::GatewayAddress::default())),
        _ => bad(&|w| w.uid.clear()),
    }
}

proptest! {
    /// Each good one applies, each bad one is named with a reason, and nothing else happens.
    #[test]
    fn check_08_good_siblings_of_hostile_resources_apply(
        kinds in prop::collection::vec(prop::option::of(any::<u8>()), 0..40),
        noise in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let resources: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(n, kind)| kind.map_or_else(|| good(n), |kind| hostile(n, kind, &noise)))
            .collect();
        let store = Store::default();
        let rejected = AddressHandler::new(store.clone()).apply(&resources, &[]);
        let snapshot = store.load();
        let known: BTreeSet<_> = snapshot.workloads().map(|w| w.uid.to_string()).collect();
        let named: BTreeSet<_> = rejected.iter().map(|r| r.name.clone()).collect();
        for resource in &resources {
            let is_good = resource.name.starts_with("good");
            prop_assert_eq!(known.contains(&resource.name), is_good, "{}", resource.name);
            prop_assert_eq!(named.contains(&resource.name), !is_good, "{}", resource.name);
        }
        prop_assert_eq!(known.len() + named.len(), resources.len());
        prop_assert!(rejected.iter().all(|r| !r.reason.is_empty()));
    }

    #[test]
    fn noise_for_policies_never_panics(
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..10),
    ) {
        let resources: Vec<_> = values
            .into_iter()
            .enumerate()
            .map(|(n, value)| {
                let mut r = resource(&format!("ns/p{n}"), "", &security::Authorization::default());
                r.resource.as_mut().unwrap().value = value;
                r
            })
            .collect();
        let store = Store::default();
        let _ = AuthorizationHandler::new(store.clone()).apply(&resources, &[]);
        prop_assert!(store.load().version() == 1);
    }
}

/// A server that refuses long requests must still get the answer, and the log stays readable.
#[test]
fn r_19_a_refusal_of_everything_is_short() {
    let store = Store::default();
    let mut subscription = Subscription::new(Box::new(AddressHandler::new(store)));
    let status = SyncStatus::new([(ADDRESS, false)].into_iter());
    let response = DeltaDiscoveryResponse {
        type_url: ADDRESS.to_owned(),
        nonce: "n".to_owned(),
        resources: (0..5000)
            .map(|n| {
                let mut bad = hostile(n, 2, &[b'x'; 2000]);
                bad.name.push('\n');
                bad
            })
            .collect(),
        ..Default::default()
    };
    let text = subscription
        .take(&response, &status)
        .error_detail
        .unwrap()
        .message;
    assert!(text.len() < 64 << 10, "{} bytes", text.len());
    assert!(
        text.starts_with("hostile-0 : the resource's content is named"),
        "{text:.80}"
    );
    assert!(text.ends_with(" more"), "{}", &text[text.len() - 40..]);
    assert!(!text.contains('\n'));
    println!(
        "R-19: 5000 bad resources of 2000 bytes refused in {} bytes",
        text.len()
    );
}
