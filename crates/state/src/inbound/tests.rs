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
fn check_23_an_address_that_is_not_the_pods_needs_a_waypoint_relation() {
    for [a, b, other] in [
        ["10.0.0.1", "10.0.0.2", "1.2.3.4"],
        ["fd00::1", "fd00::2", "2001:db8::1"],
    ] {
        let snapshot = mesh(&[
            of_workload(pod("default", "a", a)),
            of_workload(pod("default", "b", b)),
        ]);
        let to = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port).to_string();
        assert_eq!(ask(&snapshot, "a", &to(a, 80)), Ok(at(&to(a, 80))));
        let foreign = Err((400, Reason::UnknownDestination));
        assert_eq!(ask(&snapshot, "a", &to(b, 80)), foreign);
        assert_eq!(ask(&snapshot, "a", &to(other, 80)), foreign);
        // What is foreign is told before what is reserved.
        assert_eq!(ask(&snapshot, "a", &to(b, 15006)), foreign);
    }
}

#[test]
fn check_24_the_meshs_own_ports_are_never_delivered_to() {
    let reserved = Err((503, Reason::ReservedPort));
    for (ip, authority) in [("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]")] {
        // A host name leads to a port too: the target counts, not what was asked for.
        let ports: Vec<_> = [15001, 15006, 15008].map(|p| (p - 15000, p)).to_vec();
        let web = pod("default", "a", ip);
        let snapshot = mesh(&[
            of_service(service("default", "web", "10.96.0.1", &ports)),
            of_workload(serves(web, "default", "web", &[])),
        ]);
        for (short, port) in ports {
            let direct = ask(&snapshot, "a", &format!("{authority}:{port}"));
            assert_eq!(direct, reserved, "{authority}:{port}");
            let named = ask(
                &snapshot,
                "a",
                &format!("{}:{short}", host("default", "web")),
            );
            assert_eq!(named, reserved, "by name to {port}");
        }
        assert!(ask(&snapshot, "a", &format!("{authority}:15009")).is_ok());
    }
}

#[test]
fn check_25_a_host_name_means_the_pods_own_port_for_it() {
    for (ip, to) in [("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]")] {
        let web = service("default", "web", "10.96.0.1", &[(80, 8080), (81, 0)]);
        let pod = pod("default", "a", ip);
        let snapshot = mesh(&[
            of_service(web),
            of_workload(serves(pod, "default", "web", &[(81, 9001)])),
        ]);
        let name = host("default", "web");
        let asked = |port| ask(&snapshot, "a", &format!("{name}:{port}"));
        assert_eq!(asked(80), Ok(at(&format!("{to}:8080"))));
        assert_eq!(asked(81), Ok(at(&format!("{to}:9001"))));
        assert_eq!(asked(82), Err((503, Reason::NoSuchPort)));
        assert_eq!(
            ask(&snapshot, "a", "nowhere.example:80"),
            Err((503, Reason::UnknownDestination))
        );
    }
}

/// A named port that only other endpoints know is unknown here.
#[test]
fn check_25_a_named_port_of_others_is_unknown() {
    let web = service("default", "web", "10.96.0.1", &[(80, 0)]);
    let snapshot = mesh(&[
        of_service(web),
        of_workload(pod("default", "a", "10.0.0.1")),
        of_workload(serves(
            pod("default", "b", "10.0.0.2"),
            "default",
            "web",
            &[(80, 9001)],
        )),
    ]);
    let asked = ask(&snapshot, "a", &format!("{}:80", host("default", "web")));
    assert_eq!(asked, Err((503, Reason::NoSuchPort)));
}

#[test]
fn check_23_a_waypoint_takes_what_it_is_the_waypoint_of() {
    for f in [
        [
            "10.96.0.9",
            "10.0.0.50",
            "10.96.0.8",
            "10.0.0.51",
            "10.96.0.1",
            "10.96.0.2",
            "10.0.0.1",
        ],
        [
            "fd96::9", "fd00::50", "fd96::8", "fd00::51", "fd96::1", "fd96::2", "fd00::1",
        ],
    ] {
        let [wp_vip, wp, wp2_vip, wp2, web, shop, a] = f;
        let mut objects = waypoint_objects("default", "wp", wp_vip, wp);
        objects.extend(waypoint_objects("default", "wp2", wp2_vip, wp2));
        objects.push(of_service(wire::Service {
            waypoint: waypoint("default", "wp"),
            ..service("default", "web", web, &[(80, 8080)])
        }));
        objects.push(of_service(wire::Service {
            weighted_waypoints: vec![wire::WeightedWaypoint {
                destination: waypoint("default", "wp2"),
                weight: 1,
            }],
            ..service("default", "shop", shop, &[(80, 8080)])
        }));
        objects.push(of_workload(wire::Workload {
            waypoint: waypoint("default", "wp"),
            ..pod("default", "a", a)
        }));
        let snapshot = mesh(&objects);
        let to = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
        let asked = |name, ip| ask(&snapshot, name, &to(ip).to_string());
        let foreign = Err((400, Reason::UnknownDestination));
        assert_eq!(asked("wp", web), Ok(to(wp)));
        assert_eq!(asked("wp", a), Ok(to(wp)));
        assert_eq!(asked("wp", shop), foreign);
        assert_eq!(asked("wp2", shop), Ok(to(wp2)));
        assert_eq!(asked("wp2", web), foreign);
        assert_eq!(asked("a", web), foreign);
    }
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

/// What a peer may ask a pod's proxy for: that pod. Everything else is a way to make the proxy act on
/// the peer's behalf. Statuses as Istio's ztunnel answers.
#[test]
fn r_16_a_caller_reaches_the_pod_and_nothing_else() {
    const FOREIGN: [&str; 24] = [
        // Other pods, the node, the API server, name servers.
        "10.0.0.2",
        "10.0.9.9",
        "172.30.0.11",
        "10.96.0.1",
        "10.96.0.10",
        "fd00::2",
        "fd00:9::9",
        // Loopback and what Linux takes for it, also as IPv6.
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        // Credentials of clouds, probes of the node.
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "169.254.7.127",
        "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
        // Everybody.
        "224.0.0.1",
        "ff02::1",
    ];
    let mut asked = 0;
    for (own, other) in [("10.0.0.1", "10.0.0.3"), ("fd00::1", "fd00::3")] {
        let ports = [(80, 8080), (15, 15001)];
        let snapshot = mesh(&[
            of_service(service("default", "web", "10.96.0.1", &ports)),
            of_service(service("default", "shop", "10.96.0.2", &ports)),
            of_workload(serves(pod("default", "a", own), "default", "web", &[])),
            of_workload(serves(pod("default", "b", other), "default", "shop", &[])),
            of_workload(pod("default", "c", "10.0.0.2")),
            of_workload(pod("default", "d", "fd00::2")),
        ]);
        let mut expect = |authority: String, want: Result<SocketAddr, (u16, Reason)>| {
            asked += 1;
            assert_eq!(ask(&snapshot, "a", &authority), want, "{authority}");
        };
        let at_port = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        expect(at_port(own, 9000).to_string(), Ok(at_port(own, 9000)));
        for ip in FOREIGN.into_iter().chain([other]) {
            for port in [80, 15000, 15008] {
                let foreign = Err((400, Reason::UnknownDestination));
                expect(at_port(ip, port).to_string(), foreign);
            }
        }
        for port in [15001, 15006, 15008] {
            let reserved = Err((503, Reason::ReservedPort));
            expect(at_port(own, port).to_string(), reserved);
        }
        let name = |service, port| format!("{}:{port}", host("default", service));
        expect(name("web", 80), Ok(at_port(own, 8080)));
        expect(name("web", 15), Err((503, Reason::ReservedPort)));
        expect(name("web", 81), Err((503, Reason::NoSuchPort)));
        let unknown = Err((503, Reason::UnknownDestination));
        expect(name("nobody", 80), unknown);
        for text in ["localhost:80", "127.1:80", "2130706433:80", "0x7f000001:80"] {
            // Names, if anything: they are looked up in the mesh only.
            expect(text.to_owned(), unknown);
        }
        // The name of a service of others: the port is theirs, the pod still this one (as in Istio).
        expect(name("shop", 80), Ok(at_port(own, 8080)));
    }
    println!("R-16: {asked} authorities over pods of both families, as written");
}

#[test]
fn a_host_name_is_as_long_as_names_may_be() {
    let authority = |length| Authority::parse(&format!("{}:80", "a".repeat(length)));
    assert!(authority(253).is_ok());
    assert!(authority(254).is_err() && authority(300).is_err());
}

#[test]
fn a_waypoint_is_known_by_its_name_or_by_its_address() {
    let mut objects = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    objects.push(of_service(wire::Service {
        waypoint: waypoint("default", "wp"),
        ..service("default", "web", "10.96.0.1", &[(80, 8080)])
    }));
    objects.push(of_workload(pod("default", "a", "10.0.0.1")));
    let snapshot = mesh(&objects);
    let asked = |name, local| {
        let workload = snapshot.workload_by_uid(&uid("default", name)).unwrap();
        is_waypoint_of(&snapshot, workload, ip(local), "", ip("10.96.0.1"))
    };
    assert!(asked("wp", "10.0.0.50"));
    assert!(asked("wp", "10.0.0.51"), "an address that is not known yet");
    assert!(asked("a", "10.0.0.50"), "another form of the same pod");
    assert!(!asked("a", "10.0.0.1"));
}
