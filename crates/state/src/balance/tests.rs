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
fn check_21_failover_ranks_are_those_of_the_reference() {
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
    // Further down the network is an entry like any other.
    let far = converted(&placed("o", "n2", "r1", "z1"));
    assert_eq!(failover_rank(&[Region, Network, Zone], &source, &far), 1);
    // Unknown places are equal to unknown places.
    let nowhere = converted(&placed("s", "n1", "", ""));
    assert_eq!(
        failover_rank(&[Network, Region, Zone], &nowhere, &nowhere),
        5
    );
}

#[test]
fn check_21_the_best_rank_that_is_there_takes_all() {
    use wire::load_balancing::Scope::{Network, Region, Zone};
    let places = [
        ("n1", "r1", "z1"),
        ("n1", "r1", "z2"),
        ("n1", "r2", "z1"),
        ("n2", "r1", "z1"),
        ("n2", "r1", "z2"),
        ("n2", "r2", "z1"),
    ];
    let endpoint = |at: usize, capacity| {
        let (network, region, zone) = places[at];
        let w = wire::Workload {
            network_gateway: crate::testing::waypoint("default", "gateway"),
            capacity: Some(capacity),
            ..placed(&format!("e{at}"), network, region, zone)
        };
        of_workload(serves(w, "default", "web", &[(80, 8080)]))
    };
    let source = converted(&placed("s", "n1", "r1", "z1"));
    let chosen = |mode: wire::load_balancing::Mode, objects: Vec<wire::Address>| {
        let web = wire::Service {
            load_balancing: Some(wire::LoadBalancing {
                routing_preference: [Network, Region, Zone].map(i32::from).to_vec(),
                mode: mode.into(),
                health_policy: 0,
            }),
            ..service("default", "web", "10.96.0.1", &[(80, 8080)])
        };
        let snapshot = mesh(&[vec![of_service(web)], objects].concat());
        let web = snapshot.services().next().unwrap();
        let all = endpoints(&snapshot, web, 80, &source, Purpose::Call);
        let names = |all: Vec<Candidate<'_>>| {
            let names = all.iter().map(|c| c.endpoint.workload.name.to_string());
            names.collect::<Vec<_>>()
        };
        all.map(names).unwrap_or_default()
    };
    use wire::load_balancing::Mode::{Failover, Strict};
    // Every mix of the six places: the lowest number present is the best rank.
    for mix in 1..64_usize {
        let present: Vec<_> = (0..6).filter(|at| mix >> at & 1 == 1).collect();
        let objects: Vec<_> = present.iter().map(|at| endpoint(*at, 1)).collect();
        assert_eq!(
            chosen(Failover, objects.clone()),
            [format!("e{}", present[0])]
        );
        let strict = chosen(Strict, objects);
        assert_eq!(
            strict.len(),
            usize::from(present[0] == 0),
            "all entries or none"
        );
        // A place without any share of the traffic hides nothing.
        let drained: Vec<_> = present
            .iter()
            .enumerate()
            .map(|(n, at)| endpoint(*at, u32::from(n > 0)))
            .collect();
        let next = present.get(1).map(|at| format!("e{at}"));
        assert_eq!(
            chosen(Failover, drained),
            next.into_iter().collect::<Vec<_>>()
        );
    }
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
fn check_11_unready_endpoints_take_traffic_only_where_all_are_allowed() {
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

/// Istio's ztunnel drops unready endpoints when they arrive and finds them again only with their
/// next push; here the policy is asked at each call.
#[test]
fn check_11_a_change_of_the_health_policy_counts_at_once() {
    let unready = wire::Workload {
        status: 1,
        ..serves(
            pod("default", "a", "10.0.0.1"),
            "default",
            "web",
            &[(80, 80)],
        )
    };
    let web = |policy: wire::load_balancing::HealthPolicy| {
        of_service(wire::Service {
            load_balancing: Some(wire::LoadBalancing {
                health_policy: policy.into(),
                ..Default::default()
            }),
            ..service("default", "web", "10.96.0.1", &[(80, 80)])
        })
    };
    use wire::load_balancing::HealthPolicy::{AllowAll, OnlyHealthy};
    let source = converted(&pod("default", "s", "10.0.0.9"));
    let found = |snapshot: &Snapshot| {
        let web = snapshot.services().next().unwrap();
        endpoints(snapshot, web, 80, &source, Purpose::Call).map_or(0, |all| all.len())
    };
    let mut snapshot = mesh(&[web(OnlyHealthy), of_workload(unready)]);
    for (policy, want) in [(OnlyHealthy, 0), (AllowAll, 1), (OnlyHealthy, 0)] {
        let mut draft = snapshot.draft();
        draft.upsert_address(&web(policy)).unwrap();
        snapshot = draft.finish();
        assert_eq!(found(&snapshot), want, "{policy:?}");
    }
}

#[test]
fn check_20_a_named_port_is_each_endpoints_own() {
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
         of capacity 0, 0 without that port, 1 not reachable from here"
    );
}

fn weighted(weights: &[u32]) -> Vec<Endpoint> {
    let make = |capacity: &u32| {
        let mut workload = converted(&pod("default", "a", "10.0.0.1"));
        Arc::make_mut(&mut workload.profile).capacity = *capacity;
        Endpoint {
            workload: Arc::new(workload),
            ports: PortMap::default(),
        }
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

#[test]
fn every_endpoint_that_is_left_out_is_counted() {
    let member = |name: &str, address: &str, ports: &[(u32, u32)]| {
        of_workload(serves(
            pod("default", name, address),
            "default",
            "web",
            ports,
        ))
    };
    // The service's port has a name, and two pods do not have a port of that name.
    let snapshot = mesh(&[
        of_service(service("default", "web", "10.96.0.1", &[(80, 0)])),
        member("a", "10.0.0.1", &[]),
        member("b", "10.0.0.2", &[]),
        member("c", "10.0.0.3", &[(80, 8080)]),
        member("d", "10.0.0.4", &[(80, 8080)]),
    ]);
    let web = snapshot.services().next().unwrap();
    let source = converted(&pod("default", "s", "10.0.0.9"));
    let out = ["c", "d"].map(|name| {
        let uid = crate::testing::uid("default", name);
        crate::outlier::Place::from(&**snapshot.workload_by_uid(&uid).unwrap())
    });
    let avoided = Avoided::all_of(&out);
    let refusal = endpoints_but(&snapshot, web, 80, &source, Purpose::Call, &avoided).unwrap_err();
    assert_eq!(
        refusal.detail,
        "service default/web has no usable endpoint for port 80: of 4 endpoints 0 not ready, 0 \
         of capacity 0, 2 without that port, 0 not reachable from here, 2 out after failed \
         connections (outlierDetection)"
    );
}

#[test]
fn a_second_throw_is_that_of_splitmix64() {
    assert_eq!(next_dice(0), 0xe220_a839_7b1d_cdaf);
    assert_eq!(next_dice(1), 0x910a_2dec_8902_5cc1);
    assert_eq!(next_dice(u64::MAX), 0xe4d9_7177_1b65_2c20);
}
