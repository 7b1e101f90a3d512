//! Telemetry of an inbound connection: which service was meant.

use std::sync::Arc;

use isobar_state::{Service, Snapshot, Workload};

/// The service an inbound connection to `port` of `workload` is for: the one the caller named if
/// the workload is an endpoint of it, else the first that leads to the port.
pub(super) fn service_of(
    snapshot: &Snapshot,
    workload: &Workload,
    named_host: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    let named = named_host.and_then(|host| {
        let mut keys = workload.services.keys();
        keys.find(|key| &*key.hostname == host)
    });
    let by_port = || {
        let mut services = workload.services.iter();
        services
            .find(|(_, ports)| ports.iter().any(|(_, target)| target == port))
            .map(|(key, _)| key)
    };
    snapshot.service(named.or_else(by_port)?).cloned()
}
