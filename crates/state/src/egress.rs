//! Where workloads may go, and how many connections they may hold: beyond Istio's resources.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use isobar_types::{NamespacedHostname, Reason, Str};

use crate::outbound::{OutboundCall, Refusal, route, service_waypoint};
use crate::outlier::OutlierRule;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::trust::TrustNames;
use crate::workload::Workload;

/// All outbound policies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OutboundPolicies {
    /// By namespace, the empty one for all others: true where only the mesh may be reached.
    pub(crate) registry_only: BTreeMap<Str, bool>,
    /// By service.
    pub(crate) limits: BTreeMap<NamespacedHostname, ConnectionLimits>,
    /// Trust domains that are names of this mesh.
    pub(crate) trust: TrustNames,
}

/// One outbound policy. Made by [`crate::convert::outbound_policy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// Where workloads of a namespace may go.
    Egress {
        /// The namespace; empty for all that have no policy of their own.
        namespace: Str,
        /// Services and workloads of the mesh only.
        registry_only: bool,
    },
    /// Limits towards a service.
    Limits {
        /// The service.
        service: NamespacedHostname,
        /// The limits.
        limits: ConnectionLimits,
    },
    /// Trust domains that are names of this mesh.
    Trust(TrustNames),
}

/// Limits on connections of one workload to one service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections that may be open at once.
    pub max_connections: Option<NonZeroU32>,
    /// Time for the application to accept.
    pub connect_timeout: Option<Duration>,
    /// When endpoints are left out; `None` is never.
    pub outliers: Option<OutlierRule>,
}

impl ConnectionLimits {
    /// Decides whether one more connection to `service` may be opened while `open` are.
    ///
    /// # Errors
    /// [`Reason::Overload`] when the limit is reached.
    pub fn admit(&self, service: &Service, open: u32) -> Result<(), Refusal> {
        match self.max_connections {
            Some(most) if open >= most.get() => Err(Refusal::new(
                Reason::Overload,
                format!(
                    "{open} connections to service {}/{} are open, the most its DestinationRule \
                     allows (connectionPool.tcp.maxConnections)",
                    service.key.namespace, service.name
                ),
            )),
            _ => Ok(()),
        }
    }
}

impl Snapshot {
    /// True if workloads of `namespace` may only reach services and workloads of the mesh.
    #[must_use]
    pub fn is_registry_only(&self, namespace: &str) -> bool {
        let all = &self.outbound.registry_only;
        all.get(namespace)
            .or_else(|| all.get(""))
            .copied()
            .unwrap_or(false)
    }

    /// Limits on connections to a service, if there are any.
    #[must_use]
    pub fn limits(&self, service: &NamespacedHostname) -> Option<ConnectionLimits> {
        self.outbound.limits.get(service).copied()
    }
}

/// Decides again about an open connection that was passed through to a destination outside the mesh. It goes
/// on whatever the mesh has come to know of the destination since, unless that is closed to the caller now.
///
/// # Errors
/// Where the caller's namespace may reach the registry only, and that does not hold the destination.
pub fn pass_again(snapshot: &Snapshot, call: &OutboundCall<'_>) -> Result<(), Refusal> {
    if !snapshot.is_registry_only(&call.source.namespace) {
        return Ok(());
    }
    match route(snapshot, call, 0) {
        Err(refusal)
            if matches!(
                refusal.reason,
                Reason::UnknownDestination | Reason::NoSuchPort
            ) =>
        {
            Err(refusal)
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What a workload's own address is to callers that may reach nothing but the registry.
pub(crate) enum Listed<'a> {
    /// It may be called.
    Open,
    /// It is an endpoint of ServiceEntries only, none of which lists the port: they open what they name,
    /// not a whole machine.
    NoPort,
    /// It is an endpoint of ServiceEntries only, and those that list the port have waypoints, of which this
    /// is one: a call to the address would go past it, and nobody at the other end would notice.
    Guarded(&'a Arc<Service>),
}

pub(crate) fn listed<'a>(snapshot: &'a Snapshot, workload: &Workload, port: u16) -> Listed<'a> {
    if !workload.uid.contains("/networking.istio.io/ServiceEntry/") {
        return Listed::Open;
    }
    let mut listed = Listed::NoPort;
    for (key, ports) in workload.services.iter() {
        if !ports.iter().any(|(_, target)| target == port) {
            continue;
        }
        let guarded = |service: &&Arc<Service>| service_waypoint(service, 0).is_some();
        match snapshot.service(key).filter(guarded) {
            // Calls to the address have a waypoint of their own otherwise.
            Some(service) if workload.waypoint.is_none() => listed = Listed::Guarded(service),
            Some(_) | None => return Listed::Open,
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use isobar_proto::isobar::v1 as wire;
    use wire::outbound_policy::Kind;

    use super::*;
    use crate::outbound::NextHop;
    use crate::testing::{at, host, ip, of_service, of_workload, pod, service, uid};

    fn egress(namespace: &str, registry_only: bool) -> wire::OutboundPolicy {
        wire::OutboundPolicy {
            kind: Some(Kind::Egress(wire::Egress {
                namespace: namespace.to_owned(),
                registry_only,
            })),
        }
    }

    fn limits(max_connections: u32, seconds: i64) -> wire::OutboundPolicy {
        wire::OutboundPolicy {
            kind: Some(Kind::Limits(wire::ConnectionLimits {
                namespace: "shop".to_owned(),
                hostname: host("shop", "cart"),
                max_connections,
                connect_timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
                ..wire::ConnectionLimits::default()
            })),
        }
    }

    fn world(policies: &[wire::OutboundPolicy]) -> Snapshot {
        let mut draft = Snapshot::default().draft();
        for address in [
            of_workload(pod("shop", "cart", "10.0.0.1")),
            of_workload(pod("web", "front", "10.0.0.2")),
            of_service(service("shop", "cart", "10.96.0.1", &[(80, 8080)])),
        ] {
            draft.upsert_address(&address).unwrap();
        }
        for policy in policies {
            draft.upsert_outbound_policy(policy).unwrap();
        }
        draft.finish()
    }

    fn go(snapshot: &Snapshot, from: (&str, &str), to: &str) -> Result<NextHop, Refusal> {
        let source = snapshot.workload_by_uid(&uid(from.0, from.1)).unwrap();
        let call = OutboundCall {
            source,
            source_ip: ip("10.0.0.1"),
            destination: at(to),
            network: "",
            crosses_networks: false,
            ejections: None,
        };
        route(snapshot, &call, 0)
    }

    #[test]
    fn unknown_destinations_are_refused_where_only_the_mesh_may_be_reached() {
        const CART: (&str, &str) = ("shop", "cart");
        const FRONT: (&str, &str) = ("web", "front");
        for (policies, cart, front) in [
            (vec![], true, true),
            (vec![egress("shop", true)], false, true),
            (vec![egress("", true)], false, false),
            (vec![egress("", true), egress("shop", false)], true, false),
        ] {
            let snapshot = world(&policies);
            for (who, open) in [(CART, cart), (FRONT, front)] {
                let gone = go(&snapshot, who, "192.0.2.1:443");
                if open {
                    assert_eq!(gone, Ok(NextHop::Passthrough(at("192.0.2.1:443"))));
                } else {
                    let refusal = gone.unwrap_err();
                    assert_eq!(refusal.reason, Reason::UnknownDestination);
                    assert!(refusal.detail.contains("REGISTRY_ONLY"), "{refusal}");
                }
                // What the mesh knows is reached, or refused for reasons of its own.
                assert!(go(&snapshot, who, "10.0.0.2:80").is_ok());
                let known = go(&snapshot, who, "10.96.0.1:80");
                assert!(known.is_err_and(|r| r.reason == Reason::NoHealthyUpstream));
            }
        }
        let mut draft = world(&[egress("shop", true)]).draft();
        assert!(draft.remove_outbound_policy("egress/shop"));
        assert!(!draft.remove_outbound_policy("egress/shop"));
        assert!(go(&draft.finish(), CART, "192.0.2.1:443").is_ok());
    }

    #[test]
    fn what_was_passed_through_ends_once_only_the_registry_may_be_reached() {
        let open = world(&[]);
        let source = open.workload_by_uid(&uid("shop", "cart")).unwrap();
        let call = |to: &str| OutboundCall {
            source,
            source_ip: ip("10.0.0.1"),
            destination: at(to),
            network: "",
            crosses_networks: true,
            ejections: None,
        };
        let unknown = call("192.0.2.1:443");
        assert_eq!(pass_again(&open, &unknown), Ok(()));
        let mut draft = open.draft();
        draft.upsert_outbound_policy(&egress("shop", true)).unwrap();
        let closed = draft.finish();
        assert_eq!(closed.policy_version(), closed.version(), "a decision");
        let refusal = pass_again(&closed, &unknown).unwrap_err();
        assert!(refusal.detail.contains("REGISTRY_ONLY"), "{refusal}");
        // Known by now; that it has no endpoint concerns new connections.
        assert_eq!(pass_again(&closed, &call("10.96.0.1:80")), Ok(()));
        let mut draft = closed.draft();
        draft.upsert_outbound_policy(&egress("shop", true)).unwrap();
        let same = draft.finish();
        assert_ne!(same.policy_version(), same.version(), "nothing is new");
    }

    #[test]
    fn service_entries_open_the_ports_they_list() {
        use isobar_proto::istio::workload as istio;

        let list = |target_port| istio::PortList {
            ports: vec![istio::Port {
                service_port: 443,
                target_port,
                ..istio::Port::default()
            }],
        };
        let mut far = pod("shop", "far", "192.0.2.1");
        far.uid = "c/networking.istio.io/ServiceEntry/shop/far/192.0.2.1".to_owned();
        far.services = [("shop/far.example".to_owned(), list(8443))].into();
        let mut itself = service("shop", "raw", "198.51.100.1", &[(443, 443)]);
        itself.load_balancing = Some(istio::LoadBalancing {
            mode: istio::load_balancing::Mode::Passthrough.into(),
            ..istio::LoadBalancing::default()
        });
        for (policies, open) in [(vec![], true), (vec![egress("shop", true)], false)] {
            let mut draft = world(&policies).draft();
            for address in [of_workload(far.clone()), of_service(itself.clone())] {
                draft.upsert_address(&address).unwrap();
            }
            let snapshot = draft.finish();
            let cart = ("shop", "cart");
            assert!(go(&snapshot, cart, "192.0.2.1:8443").is_ok());
            assert!(go(&snapshot, cart, "198.51.100.1:443").is_ok());
            for (to, reason) in [
                ("192.0.2.1:22", Reason::UnknownDestination),
                ("198.51.100.1:22", Reason::NoSuchPort),
            ] {
                let gone = go(&snapshot, cart, to);
                assert_eq!(
                    gone.as_ref().err().map(|r| r.reason),
                    (!open).then_some(reason)
                );
            }
        }
    }

    #[test]
    fn endpoints_of_service_entries_are_not_called_past_their_waypoint() {
        use isobar_proto::istio::workload as istio;

        let mut far = pod("shop", "far", "192.0.2.1");
        far.uid = "c/networking.istio.io/ServiceEntry/shop/far/192.0.2.1".to_owned();
        let ports = istio::PortList {
            ports: crate::testing::port_list(&[(443, 8443)]),
        };
        let key = format!("shop/{}", host("shop", "far"));
        far.services = [(key, ports)].into();
        let guarded = istio::Service {
            waypoint: crate::testing::waypoint("shop", "wp"),
            ..service("shop", "far", "10.96.0.9", &[(443, 8443)])
        };
        let cart = ("shop", "cart");
        for (policies, open) in [(vec![], true), (vec![egress("shop", true)], false)] {
            let mut draft = world(&policies).draft();
            for address in [of_workload(far.clone()), of_service(guarded.clone())] {
                draft.upsert_address(&address).unwrap();
            }
            let gone = go(&draft.finish(), cart, "192.0.2.1:8443");
            match gone {
                Ok(_) => assert!(open),
                Err(refusal) => {
                    assert!(!open, "{refusal}");
                    assert_eq!(refusal.reason, Reason::UnknownDestination);
                    assert!(refusal.detail.contains("call it by its name"), "{refusal}");
                }
            }
        }
    }

    #[test]
    fn limits_come_go_and_count() {
        let snapshot = world(&[limits(2, 3)]);
        let service = snapshot.services_by_hostname(&host("shop", "cart"))[0].clone();
        let found = snapshot.limits(&service.key).unwrap();
        assert_eq!(found.connect_timeout, Some(Duration::from_secs(3)));
        assert!(found.admit(&service, 1).is_ok());
        let refusal = found.admit(&service, 2).unwrap_err();
        assert_eq!(refusal.reason, Reason::Overload);
        assert!(refusal.detail.contains("service shop/cart"), "{refusal}");
        let any = world(&[limits(0, 0)]).limits(&service.key).unwrap();
        assert_eq!(any, ConnectionLimits::default());
        assert!(any.admit(&service, u32::MAX).is_ok());
        let mut draft = snapshot.draft();
        let name = format!("limits/shop/{}", host("shop", "cart"));
        assert!(draft.remove_outbound_policy(&name));
        assert_eq!(draft.finish().limits(&service.key), None);
    }
}
