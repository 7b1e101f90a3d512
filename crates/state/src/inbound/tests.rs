use isobar_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    at, host, ip, mesh, of_service, of_workload, pod, serves, service, uid, waypoint,
    waypoint_objects,
};

fn ask(snapshot: &Snapshot, name: &str, authority: &str) -> Result<SocketAddr, (u16, Reason)> {
    let workload = snapshot.workload_by_uid(&uid("default", name)).unwrap();
    let call = InboundCall {
        workload,
        local_ip: workload.addresses[0],
        authority: &Authority::parse(authority).unwrap(),
        network: "",
    };
    resolve(snapshot, &call)
        .map(|target| target.to)
        .map_err(|refusal| (refusal.status, refusal.reason))
}

#[test]
fn authorities_have_a_host_and_a_port() {
    let host = |host: &str, port| Authority::Host {
        host: host.into(),
        port,
    };
    for (text, want) in [
        ("10.0.0.1:80", Authority::Address(at("10.0.0.1:80"))),
        ("[fd00::1]:80", Authority::Address(at("[fd00::1]:80"))),
        (
            "[::ffff:10.0.0.1]:80",
            Authority::Address(at("10.0.0.1:80")),
        ),
        ("Web.Default:8080", host("web.default", 8080)),
    ] {
        assert_eq!(Authority::parse(text).unwrap(), want, "{text}");
    }
    for bad in [
        "",
        ":80",
        "web",
        "web:",
        "web:0",
        "10.0.0.1:0",
        "web:+80",
        "web:65536",
        "a b:80",
        "user@web:80",
        "web:80:90",
        "[fd00::1]",
        "fd00::1",
    ] {
        let read = Authority::parse(bad);
        assert!(read.is_err(), "{bad}: {read:?}");
    }
}

#[test]
fn a_pod_takes_what_is_for_its_own_address() {
    let snapshot = mesh(&[
        of_workload(pod("default", "a", "10.0.0.1")),
        of_workload(pod("default", "b", "10.0.0.2")),
    ]);
    assert_eq!(ask(&snapshot, "a", "10.0.0.1:80"), Ok(at("10.0.0.1:80")));
    let foreign = Err((400, Reason::UnknownDestination));
    assert_eq!(ask(&snapshot, "a", "10.0.0.2:80"), foreign);
    assert_eq!(ask(&snapshot, "a", "1.2.3.4:80"), foreign);
    for port in [15001, 15006, 15008] {
        let refusal = ask(&snapshot, "a", &format!("10.0.0.1:{port}"));
        assert_eq!(refusal, Err((503, Reason::ReservedPort)));
    }
}

#[test]
fn a_host_name_means_the_pods_own_port_for_it() {
    let web = service("default", "web", "10.96.0.1", &[(80, 8080), (81, 0)]);
    let snapshot = mesh(&[
        of_service(web),
        of_workload(serves(
            pod("default", "a", "10.0.0.1"),
            "default",
            "web",
            &[(81, 9001)],
        )),
    ]);
    let name = host("default", "web");
    let asked = |port| ask(&snapshot, "a", &format!("{name}:{port}"));
    assert_eq!(asked(80), Ok(at("10.0.0.1:8080")));
    assert_eq!(asked(81), Ok(at("10.0.0.1:9001")));
    assert_eq!(asked(82), Err((503, Reason::NoSuchPort)));
    assert_eq!(
        ask(&snapshot, "a", "nowhere.example:80"),
        Err((503, Reason::UnknownDestination))
    );
}

#[test]
fn a_waypoint_takes_what_it_is_the_waypoint_of() {
    let mut objects = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    objects.extend(waypoint_objects("default", "wp2", "10.96.0.8", "10.0.0.51"));
    objects.push(of_service(wire::Service {
        waypoint: waypoint("default", "wp"),
        ..service("default", "web", "10.96.0.1", &[(80, 8080)])
    }));
    objects.push(of_service(wire::Service {
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: waypoint("default", "wp2"),
            weight: 1,
        }],
        ..service("default", "shop", "10.96.0.2", &[(80, 8080)])
    }));
    objects.push(of_workload(wire::Workload {
        waypoint: waypoint("default", "wp"),
        ..pod("default", "a", "10.0.0.1")
    }));
    let snapshot = mesh(&objects);
    let foreign = Err((400, Reason::UnknownDestination));
    assert_eq!(ask(&snapshot, "wp", "10.96.0.1:80"), Ok(at("10.0.0.50:80")));
    assert_eq!(ask(&snapshot, "wp", "10.0.0.1:80"), Ok(at("10.0.0.50:80")));
    assert_eq!(ask(&snapshot, "wp", "10.96.0.2:80"), foreign);
    assert_eq!(
        ask(&snapshot, "wp2", "10.96.0.2:80"),
        Ok(at("10.0.0.51:80"))
    );
    assert_eq!(ask(&snapshot, "wp2", "10.96.0.1:80"), foreign);
    assert_eq!(ask(&snapshot, "a", "10.96.0.1:80"), foreign);
}

#[test]
fn an_application_tunnel_replaces_the_port_after_the_check() {
    let tunnelled = |port| wire::Workload {
        application_tunnel: Some(wire::ApplicationTunnel { protocol: 1, port }),
        ..pod("default", "a", "10.0.0.1")
    };
    let snapshot = mesh(&[of_workload(tunnelled(15088))]);
    assert_eq!(ask(&snapshot, "a", "1.2.3.4:80"), Ok(at("10.0.0.1:15088")));
    assert_eq!(
        ask(&snapshot, "a", "10.0.0.1:15008"),
        Err((503, Reason::ReservedPort))
    );
    let snapshot = mesh(&[of_workload(tunnelled(0))]);
    let workload = snapshot.workloads().next().unwrap();
    let call = InboundCall {
        workload,
        local_ip: ip("10.0.0.1"),
        authority: &Authority::parse("10.0.0.1:80").unwrap(),
        network: "",
    };
    let target = resolve(&snapshot, &call).unwrap();
    assert_eq!(
        (target.to, target.proxy_protocol),
        (at("10.0.0.1:80"), true)
    );
}
