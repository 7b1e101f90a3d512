//! What is told about a waypoint's listeners, and about addresses that a Gateway asks for.

use isobar_objects::gateway_api::{Gateway, InboundBinding};
use isobar_objects::{ObjectRef, ObjectSet};
use isobar_types::{labels, ports};

use crate::model::{ListenerFacts, Severity, Verdict};

/// Condition of a Gateway that asks for another way into its pods than tunnels.
const BINDING: &str = "isobar.dev/InboundBindingUsed";
/// Condition of a Gateway that asks for addresses.
const ADDRESSES: &str = "isobar.dev/AddressesUsed";

/// The listeners of a waypoint. Routes are attached to Services, never to the waypoint itself.
pub(super) fn of_waypoint(gateway: &Gateway) -> Vec<ListenerFacts> {
    let all = gateway.spec.listeners.iter();
    let facts = all.map(|listener| {
        let problem = if listener.protocol != "HBONE" {
            let text = format!(
                "a waypoint does not serve protocol {}: its listener has protocol HBONE and port {}",
                listener.protocol,
                ports::HBONE
            );
            Some(("UnsupportedProtocol", text))
        } else if listener.port != i32::from(ports::HBONE) {
            let text = format!("a waypoint listens on port {} only", ports::HBONE);
            Some(("PortUnavailable", text))
        } else {
            None
        };
        ListenerFacts {
            name: listener.name.clone(),
            port: u16::try_from(listener.port).unwrap_or_default(),
            kinds: &[],
            attached: 0,
            served: problem.is_none(),
            problem,
        }
    });
    facts.collect()
}

/// Says that a waypoint of ours does not stand behind the node proxies of its pods.
pub(super) fn binding(
    reference: &ObjectRef,
    gateway: &Gateway,
    set: &ObjectSet,
) -> Option<Verdict> {
    let asked = InboundBinding::of(gateway, set)?;
    if !asked.proxy_protocol && asked.port.is_none() {
        return None;
    }
    let text = format!(
        "annotation {} is not honoured: gateways of class {} end tunnels themselves, on port {}; only \
         those of classes that somebody else runs can be bound to node proxies",
        labels::INBOUND_BINDING,
        gateway.spec.gateway_class_name,
        ports::HBONE
    );
    let verdict = Verdict::fails(reference.clone(), BINDING, "UnsupportedValue", text);
    Some(verdict.severity(Severity::Warning))
}

/// Says that addresses which a Gateway asks for are not used.
pub(super) fn addresses(reference: &ObjectRef, gateway: &Gateway) -> Option<Verdict> {
    let asked = gateway.spec.addresses.iter();
    let asked: Vec<&str> = asked.filter_map(|one| one.value.as_deref()).collect();
    if gateway.spec.addresses.is_empty() {
        return None;
    }
    let text = format!(
        "spec.addresses is not honoured ({}): the Service of the Gateway has the addresses that the \
         cluster gives it, and status.addresses names them",
        asked.join(", ")
    );
    let verdict = Verdict::fails(reference.clone(), ADDRESSES, "UnsupportedAddress", text);
    Some(verdict.severity(Severity::Warning))
}
