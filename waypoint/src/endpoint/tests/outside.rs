//! Addresses that stand for themselves, and endpoints that are told by a host name.

use isobar_route::Balancing;

use super::*;

fn passthrough() -> wire::Service {
    wire::Service {
        load_balancing: Some(wire::LoadBalancing {
            mode: wire::load_balancing::Mode::Passthrough.into(),
            ..Default::default()
        }),
        ..service()
    }
}

#[test]
fn an_address_that_stands_for_itself_is_dialled() {
    let mut bed = Bed::of(&["a"]);
    bed.mesh.service(passthrough());
    bed.service = bed.mesh.known_service(HOST);
    let rules = TrafficRules::default();
    let dialled = |address: &str, port| Wanted {
        dialled: Some(ip(address)),
        port,
        ..bed.wanted(&rules)
    };
    let outside = bed.choose(&dialled("192.0.2.7", 8080)).unwrap();
    assert_eq!(outside.address.to_string(), "192.0.2.7:8080");
    assert_eq!(outside.workload.tunnel, TunnelProtocol::None);
    assert_eq!(bed.address(&dialled("192.0.2.7", 8443)), "192.0.2.7:9443");
    // A pod of the mesh is itself there too.
    let pod = bed.choose(&dialled("10.0.1.1", 8080)).unwrap();
    assert_eq!(
        (&*pod.workload.uid, pod.workload.tunnel),
        ("a", TunnelProtocol::Hbone)
    );
    let none = bed.choose(&dialled("192.0.2.7", 81)).unwrap_err();
    assert_eq!(none.reason, Reason::NoCluster);
    let none = bed.choose(&bed.wanted(&rules)).unwrap_err();
    assert_eq!(none.reason, Reason::NoHealthyUpstream);
    assert!(none.detail.contains("dialled none of them"), "{none:?}");
}

/// Rules that say PASSTHROUGH, for a service that balances.
fn as_dialled() -> TrafficRules {
    TrafficRules {
        balancing: Some(Balancing {
            simple: Some(LoadBalancer::Passthrough),
            ..Balancing::default()
        }),
        ..TrafficRules::default()
    }
}

/// Not a pod: no node, no tunnel.
fn outside(name: &str, address: &str) -> wire::Workload {
    wire::Workload {
        node: String::new(),
        tunnel_protocol: 0,
        ..pod(name, address)
    }
}

#[test]
fn the_endpoint_that_was_dialled_is_taken() {
    let bed = Bed::of(&["a", "b", "c"]);
    let rules = as_dialled();
    let dialled = |address: &str| Wanted {
        dialled: Some(ip(address)),
        ..bed.wanted(&rules)
    };
    assert_eq!(bed.names(&dialled("10.0.1.2")), ["b"]);
    assert_eq!(bed.address(&dialled("10.0.1.3")), "10.0.1.3:8080");
    // The service's own address stands for any of its pods.
    assert_eq!(bed.names(&dialled("10.96.0.1")), ["a", "b", "c"]);
    assert_eq!(bed.names(&bed.wanted(&rules)), ["a", "b", "c"]);
    let tried: [Str; 2] = ["a".into(), "b".into()];
    let again = Wanted {
        tried: &tried,
        ..dialled("10.96.0.1")
    };
    assert_eq!(bed.names(&again), ["c"]);
}

#[test]
fn an_address_of_the_service_is_dialled_where_all_is_outside() {
    let rules = as_dialled();
    let with = |bed: &Bed, address: &str| {
        bed.address(&Wanted {
            dialled: Some(ip(address)),
            ..bed.wanted(&rules)
        })
    };
    let bed = Bed::with(vec![outside("a", "192.0.2.1"), outside("b", "192.0.2.2")]);
    assert_eq!(with(&bed, "198.51.100.7"), "198.51.100.7:8080");
    // Given out by the control plane: nobody is there.
    for given in ["240.240.0.1", "2001:2::1"] {
        let at = with(&bed, given);
        assert!(at.starts_with("192.0.2."), "{given}: {at}");
    }
    for near in [
        "240.0.0.1",
        "240.241.0.1",
        "241.240.0.1",
        "2001:2:1::1",
        "2001:3::1",
    ] {
        let at = SocketAddr::new(ip(near), 8080).to_string();
        assert_eq!(with(&bed, near), at);
    }
    // Where one is of the mesh, the address is the service's.
    let pod_on_a_node = wire::Workload {
        node: "node-1".into(),
        ..outside("b", "192.0.2.2")
    };
    let of_mesh = wire::Workload {
        node: String::new(),
        ..pod("b", "192.0.2.2")
    };
    for inside in [pod_on_a_node, of_mesh] {
        let bed = Bed::with(vec![outside("a", "192.0.2.1"), inside]);
        let at = with(&bed, "198.51.100.7");
        assert!(at.starts_with("192.0.2."), "{at}");
    }
    // With nobody at all nothing says that it is outside.
    let bed = Bed::of(&[]);
    let wanted = Wanted {
        dialled: Some(ip("198.51.100.7")),
        ..bed.wanted(&rules)
    };
    assert!(bed.choose(&wanted).is_err());
}

fn named(name: &str, host: &str) -> wire::Workload {
    wire::Workload {
        addresses: Vec::new(),
        hostname: host.into(),
        ..outside(name, "192.0.2.1")
    }
}

/// Runs what asks for names.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn names_that_nobody_resolves_leave_the_others() {
    run(async {
        let bed = Bed::with(vec![named("a", "a.example")]);
        let rules = balanced(By::Random);
        let view = bed.mesh.view();
        let none = bed.turns.choose(&view, &bed.wanted(&rules)).await;
        let none = none.unwrap_err();
        assert_eq!(none.reason, Reason::NoHealthyUpstream);
        assert!(none.detail.ends_with("has no ready endpoint"), "{none:?}");
        bed.mesh.pods([pod("b", "10.0.1.2")]);
        let view = bed.mesh.view();
        let found = bed.turns.choose(&view, &bed.wanted(&rules)).await;
        assert_eq!(&*found.unwrap().workload.uid, "b");
    });
}

#[test]
fn a_domain_says_which_host_is_none_of_it() {
    let bed = Bed::of(&[]);
    let wild = wire::Service {
        hostname: "*.example.com".into(),
        ..service()
    };
    bed.mesh.service(wild);
    let service = bed.mesh.known_service("*.example.com");
    let key = "default/*.example.com".to_owned();
    let ports = wire::PortList {
        ports: vec![port(8080, 8080)],
    };
    bed.mesh.pods([wire::Workload {
        services: [(key, ports)].into(),
        ..named("all", "*.example.com")
    }]);
    let rules = balanced(By::Random);
    let wanted = Wanted {
        service: &service,
        asked: Some(Asked {
            host: "a.other.com",
            turn: "a",
        }),
        ..bed.wanted(&rules)
    };
    let none = bed.choose(&wanted).unwrap_err();
    assert!(
        none.detail.contains("\"a.other.com\" is no host"),
        "{none:?}"
    );
}
