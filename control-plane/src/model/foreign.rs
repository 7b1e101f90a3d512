//! Waypoints that somebody else runs: Gateways of other classes, once their own controller has said
//! where they are reached. Node proxies send traffic to them; what becomes of it there is theirs.

use isobar_objects::ObjectSet;
use isobar_objects::gateway_api::{Gateway, GatewayAddress, InboundBinding, Listener};
use isobar_proto::istio::workload as wire;
use isobar_proto::istio::workload::gateway_address::Destination;
use isobar_types::ports;

use super::services::octets;
use super::settings::Settings;

/// Protocol of a listener behind node proxies.
const PROXIED: &str = "istio.io/PROXY";

/// What is different about them.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// How objects refer to it.
    pub(crate) address: wire::GatewayAddress,
    /// Host name of its Service; empty where it is known by an address only.
    pub(crate) hostname: String,
    /// How the node proxies of its pods hand over what comes out of tunnels; none where its pods end
    /// tunnels themselves.
    binding: Option<InboundBinding>,
}

impl Foreign {
    /// Reads a Gateway of a class that is not served here; `None` for what is no waypoint, or not yet:
    /// it takes tunnels itself, or says how its node proxies do that for it, and it has an address.
    pub(crate) fn read(gateway: &Gateway, set: &ObjectSet, settings: &Settings) -> Option<Self> {
        let binding = InboundBinding::of(gateway, set);
        if binding.is_none() && !takes_tunnels(gateway) {
            return None;
        }
        let addresses = gateway.gateway_status()?.addresses;
        let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
        let (destination, hostname) = destination(&addresses, namespace, settings)?;
        Some(Self {
            address: wire::GatewayAddress {
                destination: Some(destination),
                hbone_mtls_port: u32::from(ports::HBONE),
            },
            hostname,
            binding,
        })
    }

    /// The listener that its binding means: that of its port, else that of the protocol.
    pub(crate) fn listener<'g>(&self, all: &'g [Listener]) -> Option<&'g Listener> {
        let binding = self.binding?;
        all.iter().find(|one| match binding.port {
            Some(port) => one.port == i32::from(port),
            None => binding.proxy_protocol && one.protocol == PROXIED,
        })
    }

    /// What its pods are given in place of tunnels.
    pub(crate) fn tunnel(&self) -> Option<wire::ApplicationTunnel> {
        use wire::application_tunnel::Protocol;

        let binding = self.binding?;
        let protocol = match binding.proxy_protocol {
            true => Protocol::Proxy,
            false => Protocol::None,
        };
        Some(wire::ApplicationTunnel {
            protocol: protocol.into(),
            port: binding.port.map_or(0, u32::from),
        })
    }
}

/// What a Gateway lacks that [`Foreign::read`] takes for none, to be read after "it".
pub(crate) fn lacks(gateway: &Gateway, set: &ObjectSet) -> &'static str {
    match InboundBinding::of(gateway, set).is_some() || takes_tunnels(gateway) {
        true => "has no address, which whoever runs that class writes into its status",
        false => "has no listener of protocol HBONE on port 15008",
    }
}

fn takes_tunnels(gateway: &Gateway) -> bool {
    let mut listeners = gateway.spec.listeners.iter();
    listeners.any(|one| one.protocol == "HBONE" && one.port == i32::from(ports::HBONE))
}

/// By host name where it has one, which outlives addresses, else by its first address.
fn destination(
    addresses: &[GatewayAddress],
    namespace: &str,
    settings: &Settings,
) -> Option<(Destination, String)> {
    let of_kind = |kind: &'static str| {
        let of = addresses.iter();
        let of = of.filter(move |one| one.kind.as_deref().unwrap_or("IPAddress") == kind);
        of.filter_map(|one| one.value.as_deref())
    };
    if let Some(name) = of_kind("Hostname").find(|name| !name.is_empty()) {
        let hostname = name.to_ascii_lowercase();
        let host = wire::NamespacedHostname {
            namespace: namespace.to_owned(),
            hostname: hostname.clone(),
        };
        return Some((Destination::Hostname(host), hostname));
    }
    let ip = of_kind("IPAddress").find_map(|text| text.parse().ok())?;
    let address = wire::NetworkAddress {
        network: settings.network.to_string(),
        address: octets(ip),
        length: None,
    };
    Some((Destination::Address(address), String::new()))
}
