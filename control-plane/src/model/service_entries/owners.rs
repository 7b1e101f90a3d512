//! Addresses that a ServiceEntry must not describe: whoever may write one in a namespace of his own
//! would take over calls to services and pods of others, past their waypoints and policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use isobar_objects::{ObjectHead, ObjectSet};

use super::addresses::net;
use crate::model::pods::PodFacts;
use crate::model::services::ServicePlan;

/// Whose address it is: the namespace, and how to call it.
struct Owner {
    namespace: String,
    name: String,
}

/// Addresses of Services and pods; nothing is read where no entry names an address.
pub(super) struct Owners {
    of: BTreeMap<IpAddr, Owner>,
}

impl Owners {
    pub(super) fn of(set: &ObjectSet, services: &[ServicePlan]) -> Self {
        let mut of = BTreeMap::new();
        let mut entries = set.service_entries.iter();
        if entries.any(|entry| !entry.object.spec.addresses.is_empty()) {
            of.extend(pods(set));
            of.extend(services.iter().flat_map(service));
        }
        Self { of }
    }

    /// The addresses that an entry of `namespace` may describe, and why not the others.
    pub(super) fn sort<'t>(
        &self,
        namespace: &str,
        written: &'t [String],
    ) -> (Vec<&'t String>, Vec<String>) {
        let mut free = Vec::new();
        let mut taken = Vec::new();
        for text in written {
            match self.other(namespace, text) {
                None => free.push(text),
                Some((address, owner)) => taken.push(format!(
                    "address {text} is left out: {address} belongs to {}; an entry may only describe \
                     addresses of its own namespace's Services and pods, and such as are nobody's",
                    owner.name
                )),
            }
        }
        (free, taken)
    }

    fn other(&self, namespace: &str, text: &str) -> Option<(&IpAddr, &Owner)> {
        let net = net(text)?;
        let mut within = self.of.range(net.network()..=net.broadcast());
        within.find(|(_, owner)| owner.namespace != namespace)
    }
}

fn service(service: &ServicePlan) -> impl Iterator<Item = (IpAddr, Owner)> {
    let name = format!("Service {}", service.key);
    service.wire.addresses.iter().filter_map(move |address| {
        let ip = match address.address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(&*address.address).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(&*address.address).ok()?),
        };
        let owner = Owner {
            namespace: service.wire.namespace.clone(),
            name: name.clone(),
        };
        Some((ip, owner))
    })
}

/// Pods with addresses of their own: that of a pod in its node's network is the node's.
fn pods(set: &ObjectSet) -> impl Iterator<Item = (IpAddr, Owner)> {
    let pods = set.pods.iter().filter(|pod| {
        let spec = pod.object.spec.as_ref();
        !spec.and_then(|spec| spec.host_network).unwrap_or(false)
    });
    pods.flat_map(|pod| {
        let pod = &pod.object;
        let ips = PodFacts::read(pod).map_or_else(Vec::new, |facts| facts.ips);
        ips.into_iter().map(|ip| {
            let owner = Owner {
                namespace: pod.namespace().to_owned(),
                name: format!("Pod {}/{}", pod.namespace(), pod.name()),
            };
            (ip, owner)
        })
    })
}
