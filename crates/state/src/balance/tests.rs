use std::sync::Arc;

use isobar_proto::istio::workload as wire;
use proptest::prelude::*;

use super::*;
use crate::testing::{bytes, mesh, of_service, of_workload, pod, serves, service};
use crate::workload::PortMap;

fn placed(name: &str, network: &str, region: &str, zone: &str) -> wire::Workload {
    wire::Workload {
        network: network.to_owned(),
        locality: Some(wire::Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
            subzone: String::new(),
        }),
        ..pod("default", name, "10.0.0.1")
    }
}

fn converted(w: &wire::Workload) -> Workload {
    crate::convert::workload(w, &mut crate::convert::Interner::default()).unwrap()
}

#[test]
fn ranks_are_those_of_the_reference() {
    use RoutingScope::{Network, Region, Zone};
    let source = converted(&placed("s", "n1", "r1", "z1"));
    let cases = [
        ("n1", "r1", "z1", 5),
        ("n1", "r1", "z2", 4),
        ("n1", "r2", "z1", 3),
        ("n2", "r1", "z1", 2),
        ("n2", "r1", "z2", 1),
        ("n2", "r2", "z1", 0),
    ];
    for (network, region, zone, want) in cases {
        let other = converted(&placed("o", network, region, zone));
        let got = failover_rank(&[Network, Region, Zone], &source, &other);
        assert_eq!(got, want, "{network} {region} {zone}");
    }
    let other = converted(&placed("o", "n1", "r2", "z1"));
    assert_eq!(failover_rank(&[Region, Zone], &source, &other), 0);
    assert_eq!(failover_rank(&[], &source, &other), 0);
}

fn preferring(mode: BalanceMode, policy: HealthPolicy) -> Option<wire::LoadBalancing> {
    use wire::load_balancing as lb;
    Some(wire::LoadBalancing {
        routing_preference: vec![lb::Scope::Region.into(), lb::Scope::Zone.into()],
        mode: match mode {
            BalanceMode::Strict => lb::Mode::Strict,
            BalanceMode::Failover => lb::Mode::Failover,
            BalanceMode::Standard | BalanceMode::Passthrough => lb::Mode::UnspecifiedMode,
        }
        .into(),
        health_policy: match policy {
            HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll,
            HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
        }
        .into(),
    })
}

/// Names of the candidates for port 80 of a service with three endpoints: same zone (unready),
/// same region, elsewhere.
fn chosen(mode: BalanceMode, policy: HealthPolicy) -> Result<Vec<String>, Reason> {
    let endpoint = |name, region, zone, ready: bool| {
        let w = wire::Workload {
            status: i32::from(!ready),
            ..placed(name, "", region, zone)
        };
        of_workload(serves(w, "default", "web", &[(80, 8080)]))
    };
    let web = wire::Service {
        load_balancing: preferring(mode, policy),
        ..service("default", "web", "10.96.0.1", &[(80, 8080)])
    };
    let snapshot = mesh(&[
        of_service(web),
        endpoint("zone", "r1", "z1", false),
        endpoint("region", "r1", "z2", true),
        endpoint("far", "r2", "z1", true),
    ]);
    let source = converted(&placed("s", "", "r1", "z1"));
    let web = snapshot.services().next().unwrap();
    endpoints(&snapshot, web, 80, &source, Purpose::Call)
        .map(|all| {
            let names = all.iter().map(|c| c.endpoint.workload.name.to_string());
            names.collect()
        })
        .map_err(|refusal| refusal.reason)
}

#[test]
fn modes_and_health_choose_the_endpoints() {
    use BalanceMode::{Failover, Standard, Strict};
    use HealthPolicy::{AllowAll, OnlyHealthy};
    let cases = [
        (Standard, OnlyHealthy, Ok(vec!["far", "region"])),
        (Standard, AllowAll, Ok(vec!["far", "region", "zone"])),
        (Failover, OnlyHealthy, Ok(vec!["region"])),
        (Failover, AllowAll, Ok(vec!["zone"])),
        (Strict, AllowAll, Ok(vec!["zone"])),
        (Strict, OnlyHealthy, Err(Reason::NoHealthyUpstream)),
    ];
    for (mode, policy, want) in cases {
        let want = want.map(|names| names.into_iter().map(str::to_owned).collect());
        assert_eq!(chosen(mode, policy), want, "{mode:?} {policy:?}");
    }
}

#[test]
fn a_named_port_is_each_endpoints_own() {
    let named = |name, port| {
        of_workload(serves(
            pod("default", name, "10.0.0.1"),
            "default",
            "web",
            port,
        ))
    };
    let snapshot = mesh(&[
        of_service(service(
            "default",
            "web",
            "10.96.0.1",
            &[(80, 0), (81, 9000)],
        )),
        named("a", &[(80, 8001)]),
        named("b", &[(80, 8002)]),
        named("c", &[(81, 9001)]),
    ]);
    let web = snapshot.services().next().unwrap();
    let source = converted(&pod("default", "s", "10.0.0.9"));
    let ports = |port| {
        let all = endpoints(&snapshot, web, port, &source, Purpose::Call).unwrap();
        all.iter().map(|c| c.port).collect::<Vec<_>>()
    };
    assert_eq!(ports(80), [8001, 8002]);
    assert_eq!(ports(81), [9000, 9000, 9001]);
    let refusal = endpoints(&snapshot, web, 82, &source, Purpose::Call).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoSuchPort);
    assert_eq!(
        refusal.detail,
        "service default/web has no port 82; its ports: 80, 81"
    );
}

#[test]
fn a_proxy_behind_an_application_tunnel_needs_no_service_port() {
    let tunnelled = wire::Workload {
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        }),
        ..serves(pod("default", "wp", "10.0.0.2"), "default", "wp", &[])
    };
    let snapshot = mesh(&[
        of_service(service("default", "wp", "10.96.0.2", &[])),
        of_workload(tunnelled),
    ]);
    let wp = snapshot.services().next().unwrap();
    let source = converted(&pod("default", "s", "10.0.0.9"));
    let all = endpoints(&snapshot, wp, 15008, &source, Purpose::Waypoint).unwrap();
    assert_eq!(all[0].port, 15008);
    assert!(endpoints(&snapshot, wp, 15008, &source, Purpose::Call).is_err());
}

#[test]
fn what_is_missing_is_told() {
    let snapshot = mesh(&[of_service(service(
        "default",
        "web",
        "10.96.0.1",
        &[(80, 80)],
    ))]);
    let web = snapshot.services().next().unwrap();
    let source = converted(&pod("default", "s", "10.0.0.9"));
    let refusal = endpoints(&snapshot, web, 80, &source, Purpose::Call).unwrap_err();
    assert_eq!(
        refusal.detail,
        "service default/web has no endpoints: does its selector match any pod?"
    );

    let unready = wire::Workload {
        status: 1,
        ..serves(
            pod("default", "a", "10.0.0.1"),
            "default",
            "web",
            &[(80, 80)],
        )
    };
    let elsewhere = wire::Workload {
        network: "other".to_owned(),
        addresses: vec![bytes("10.0.0.1")],
        ..serves(
            pod("default", "b", "10.0.0.1"),
            "default",
            "web",
            &[(80, 80)],
        )
    };
    let mut draft = snapshot.draft();
    draft.upsert_address(&of_workload(unready)).unwrap();
    draft.upsert_address(&of_workload(elsewhere)).unwrap();
    let snapshot = draft.finish();
    let web = snapshot.services().next().unwrap();
    let refusal = endpoints(&snapshot, web, 80, &source, Purpose::Call).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoHealthyUpstream);
    assert_eq!(
        refusal.detail,
        "service default/web has no usable endpoint for port 80: of 2 endpoints 1 not ready, 0 \
         without that port, 1 not reachable from here"
    );
}

fn weighted(weights: &[u32]) -> Vec<Endpoint> {
    let make = |capacity: &u32| Endpoint {
        workload: Arc::new(Workload {
            capacity: *capacity,
            ..converted(&pod("default", "a", "10.0.0.1"))
        }),
        ports: PortMap::default(),
    };
    weights.iter().map(make).collect()
}

proptest! {
    /// Over all dice the shares equal the weights exactly.
    #[test]
    fn shares_equal_weights(weights in prop::collection::vec(0..20u32, 0..8)) {
        let all = weighted(&weights);
        let candidates: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(at, endpoint)| Candidate { endpoint, port: at as u16 })
            .collect();
        let total: u32 = weights.iter().sum();
        let mut counts = vec![0; weights.len()];
        for dice in 0..u64::from(total) {
            counts[usize::from(pick(&candidates, dice).unwrap().port)] += 1;
        }
        prop_assert_eq!(counts, weights);
        if total == 0 {
            prop_assert_eq!(pick(&candidates, 7), None);
        }
    }
}
