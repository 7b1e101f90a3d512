use std::future::Future;

use futures_util::FutureExt as _;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload as wire;
use isobar_types::{Identity, NamespacedHostname};
use proto::waypoint::Traffic;

use super::*;
use crate::testing::*;

const OTHER: &str = "other.default.svc.cluster.local";

fn found(mesh: &Mesh, authority: &str) -> Result<Addressed, TargetRefusal> {
    resolve(&mesh.view(), &mesh.world.own, authority, "default")
}

fn refused(mesh: &Mesh, authority: &str) -> (u16, Reason) {
    let refusal = found(mesh, authority).unwrap_err();
    (refusal.status, refusal.reason)
}

/// Key of the service or uid of the pod.
fn named(addressed: &Addressed) -> String {
    match &addressed.target {
        Target::Service(service) => service.key.to_string(),
        Target::Workload(workload) => workload.uid.to_string(),
        Target::Listener(listener) => listener.name.to_string(),
    }
}

/// A pod of no service that is reached through this waypoint.
fn alone(name: &str, ip: &str) -> wire::Workload {
    wire::Workload {
        waypoint: Some(by_name(WAYPOINT)),
        ..stranger(name, ip)
    }
}

#[test]
fn a_service_is_asked_for_by_address_or_name() {
    let mesh = Mesh::new();
    let by_address = found(&mesh, VIP).unwrap();
    let name = format!("{HOST}:8443");
    let by_name = found(&mesh, &name).unwrap();
    for (one, port, of_address) in [(&by_address, 8080, true), (&by_name, 8443, false)] {
        assert_eq!(named(one), format!("default/{HOST}"));
        assert_eq!(one.destination, SocketAddr::from(([10, 96, 0, 1], port)));
        assert_eq!(one.by_address, of_address);
        assert_eq!(one.service().unwrap().key, mesh.known_service(HOST).key);
    }
    assert_eq!((&*by_address.authority, by_name.authority), (VIP, name));
}

#[test]
fn the_address_of_a_named_service_is_one_of_this_network() {
    let mesh = Mesh::new();
    mesh.service(wire::Service {
        addresses: vec![on_network("far", "10.97.0.1"), on_network("", "10.96.0.1")],
        ..service()
    });
    let name = format!("{HOST}:8080");
    let near = found(&mesh, &name).unwrap().destination;
    assert_eq!(near.to_string(), VIP);
    mesh.service(wire::Service {
        addresses: vec![on_network("far", "10.97.0.1")],
        ..service()
    });
    let none = found(&mesh, &name).unwrap();
    assert_eq!(none.destination.to_string(), "0.0.0.0:8080");
    assert_eq!(none.dialled(&mesh.known_service(HOST)), None);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_reason() {
    let mesh = Mesh::new();
    mesh.pods([stranger("foreign", "10.0.1.1"), alone("own", "10.0.1.2")]);
    for (authority, status, reason) in [
        ("nonsense", 400, Reason::BadRequest),
        ("10.1.2.3:80", 404, Reason::UnknownDestination),
        ("nobody.example:80", 404, Reason::UnknownDestination),
        ("10.96.0.1:81", 404, Reason::NoSuchPort),
        ("10.0.1.1:80", 403, Reason::WaypointNotAllowed),
    ] {
        assert_eq!(refused(&mesh, authority), (status, reason), "{authority}");
    }
    let pod = found(&mesh, "10.0.1.2:80").unwrap();
    assert_eq!((&*named(&pod), pod.service().is_none()), ("own", true));
    // Before it knows itself it serves nobody.
    mesh.tables(isobar_route::Draft::clear_waypoint);
    assert_eq!(refused(&mesh, VIP), (503, Reason::WaypointNotReady));
}

#[test]
fn a_waypoint_takes_the_kind_of_traffic_it_is_for() {
    let mesh = Mesh::new();
    mesh.pods([alone("own", "10.0.1.2")]);
    let pod = "10.0.1.2:80";
    for (traffic, services, pods) in [
        (Traffic::All, true, true),
        (Traffic::Service, true, false),
        (Traffic::Workload, false, true),
        (Traffic::None, false, false),
    ] {
        mesh.describe(|own| own.traffic = traffic.into());
        for (authority, takes) in [(VIP, services), (pod, pods)] {
            let now = found(&mesh, authority).map(|_| ());
            assert_eq!(now.is_ok(), takes, "{traffic:?} {authority}");
            if let Err(refusal) = now {
                assert_eq!(refusal.reason, Reason::WaypointNotAllowed);
                assert!(refusal.detail.contains("waypoint-for"), "{refusal:?}");
            }
        }
    }
}

/// The address of this waypoint's own service.
const OWN_VIP: &str = "10.96.0.50";

#[test]
fn this_waypoint_is_named_by_host_by_its_service_or_by_its_own_address() {
    let mesh = Mesh::new();
    for (host, vip) in [(WAYPOINT, OWN_VIP), (OTHER, "10.96.0.51")] {
        mesh.service(wire::Service {
            name: host.into(),
            hostname: host.into(),
            addresses: vec![on_network("", vip)],
            waypoint: None,
            ..service()
        });
    }
    for (gateway, ours) in [
        (by_name(WAYPOINT), true),
        (by_name(OTHER), false),
        (by_address("", OWN_VIP), true),
        (by_address("", "10.96.0.51"), false),
        // Its pod.
        (by_address("", "10.0.0.250"), true),
        (by_address("far", "10.0.0.250"), false),
        (by_address("", "10.0.0.251"), false),
    ] {
        let text = format!("{gateway:?}");
        mesh.service(wire::Service {
            waypoint: Some(gateway.clone()),
            ..service()
        });
        assert_eq!(found(&mesh, VIP).is_ok(), ours, "{text}");
        mesh.pods([wire::Workload {
            waypoint: Some(gateway),
            ..alone("own", "10.0.1.2")
        }]);
        assert_eq!(found(&mesh, "10.0.1.2:80").is_ok(), ours, "{text}");
    }
    mesh.service(wire::Service {
        waypoint: None,
        ..service()
    });
    assert_eq!(refused(&mesh, VIP), (403, Reason::WaypointNotAllowed));
}

#[test]
fn one_of_several_waypoints_of_a_service_serves_it() {
    let mesh = Mesh::new();
    let of = |hosts: &[&str]| {
        let all = hosts.iter().map(|host| wire::WeightedWaypoint {
            destination: Some(by_name(host)),
            weight: 1,
        });
        mesh.service(wire::Service {
            waypoint: None,
            weighted_waypoints: all.collect(),
            ..service()
        });
        let named = names_us(&mesh.view(), &mesh.known_service(HOST));
        (found(&mesh, VIP).is_ok(), named)
    };
    assert_eq!(of(&[OTHER, WAYPOINT]), (true, true));
    assert_eq!(of(&[OTHER]), (false, false));
}

#[test]
fn a_service_names_us_by_host_name_only() {
    let mesh = Mesh::new();
    let names = |waypoint| {
        mesh.service(wire::Service {
            waypoint,
            ..service()
        });
        names_us(&mesh.view(), &mesh.known_service(HOST))
    };
    assert!(names(Some(by_name(WAYPOINT))));
    assert!(!names(Some(by_name(OTHER))));
    assert!(!names(Some(by_address("", "10.0.0.250"))));
    assert!(!names(None));
}

#[test]
fn only_an_address_of_the_service_itself_is_one_that_was_dialled() {
    let mesh = Mesh::new();
    mesh.service(wire::Service {
        name: "other".into(),
        hostname: OTHER.into(),
        ..service()
    });
    mesh.pods([alone("own", "10.0.1.2")]);
    let (own, other) = (mesh.known_service(HOST), mesh.known_service(OTHER));
    let by_address = found(&mesh, VIP).unwrap();
    let service = by_address.service().unwrap().clone();
    let dialled = IpAddr::from([10, 96, 0, 1]);
    assert_eq!(by_address.dialled(&service), Some(dialled));
    let foreign = if service.key == own.key { &other } else { &own };
    assert_eq!(by_address.dialled(foreign), None);
    let by_name = found(&mesh, &format!("{HOST}:8080")).unwrap();
    assert_eq!(by_name.dialled(&own), None, "a name was asked for");
    let pod = found(&mesh, "10.0.1.2:80").unwrap();
    assert_eq!(pod.dialled(&own), None);
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(test);
}

#[test]
fn discovery_has_a_moment_for_what_may_be_early() {
    run(async {
        let mesh = Mesh::new();
        mesh.service(wire::Service {
            waypoint: None,
            ..service()
        });
        let asked = |authority| resolve_in_time(&mesh.world, authority, "default");
        for (authority, come) in [
            // A binding that is on its way.
            (VIP, (|mesh: &Mesh| mesh.service(service())) as fn(&Mesh)),
            // A pod that is.
            ("10.0.1.2:80", |mesh| mesh.pods([alone("own", "10.0.1.2")])),
        ] {
            let early = asked(authority);
            tokio::pin!(early);
            assert!((&mut early).now_or_never().is_none(), "{authority}");
            // Something else comes first.
            mesh.labelled("x", "y", "z");
            assert!((&mut early).now_or_never().is_none(), "{authority}");
            come(&mesh);
            let addressed = (&mut early).now_or_never().unwrap().unwrap();
            assert_eq!(addressed.authority, authority);
        }
        mesh.tables(isobar_route::Draft::clear_waypoint);
        let early = asked(VIP);
        tokio::pin!(early);
        assert!((&mut early).now_or_never().is_none());
        mesh.describe(|_| {});
        assert!((&mut early).now_or_never().unwrap().is_ok());
    });
}

#[test]
fn the_moment_ends_and_what_cannot_come_is_refused_at_once() {
    run(async {
        let mesh = Mesh::new();
        let began = tokio::time::Instant::now();
        let late = resolve_in_time(&mesh.world, "10.1.2.3:80", "default").await;
        assert_eq!(late.unwrap_err().reason, Reason::UnknownDestination);
        assert_eq!(began.elapsed(), KNOWN_WITHIN);
        for (authority, reason) in [
            ("nonsense", Reason::BadRequest),
            ("10.96.0.1:81", Reason::NoSuchPort),
        ] {
            let now = resolve_in_time(&mesh.world, authority, "default").now_or_never();
            assert_eq!(now.unwrap().unwrap_err().reason, reason);
        }
    });
}

fn caller() -> Peer {
    Peer {
        identity: Some(Identity::new("cluster.local", "default", "caller")),
        address: SocketAddr::from(([10, 0, 0, 9], 4711)),
        foreign: false,
    }
}

#[test]
fn an_open_tunnel_goes_on_while_its_target_is_the_same_and_ours() {
    let mesh = Mesh::new();
    mesh.pods([alone("own", "10.0.1.2")]);
    let before = found(&mesh, VIP).unwrap();
    let to_pod = found(&mesh, "10.0.1.2:80").unwrap();
    let now = |before: &Addressed| again(&mesh.view(), &mesh.world, before, &caller());
    assert_eq!((now(&before), now(&to_pod)), (Ok(()), Ok(())));
    // The service's own address goes to another one.
    mesh.service(wire::Service {
        name: "other".into(),
        hostname: OTHER.into(),
        ..service()
    });
    mesh.remove(&format!("default/{HOST}"));
    let refusal = now(&before).unwrap_err();
    assert_eq!(
        (refusal.status, refusal.reason),
        (404, Reason::UnknownDestination)
    );
    assert!(refusal.detail.contains("something else"), "{refusal:?}");
    // Or to a pod.
    mesh.remove(&format!("default/{OTHER}"));
    assert!(now(&before).is_err());
    mesh.pods([alone("third", "10.96.0.1")]);
    let refusal = now(&before).unwrap_err();
    assert!(refusal.detail.contains("something else"), "{refusal:?}");
    mesh.service(wire::Service {
        waypoint: None,
        ..service()
    });
    assert_eq!(now(&before).unwrap_err().reason, Reason::WaypointNotAllowed);
}

#[test]
fn a_pod_that_is_gone_is_for_the_caller_to_find_out() {
    let mesh = Mesh::new();
    mesh.pods([alone("own", "10.0.1.2"), alone("other", "10.0.1.3")]);
    let before = found(&mesh, "10.0.1.2:80").unwrap();
    let now = || again(&mesh.view(), &mesh.world, &before, &caller());
    mesh.remove("own");
    assert_eq!(now(), Ok(()));
    // It lives at another address, and another pod at its.
    mesh.pods([alone("own", "10.0.1.4"), alone("other", "10.0.1.2")]);
    let refusal = now().unwrap_err();
    assert_eq!(
        (refusal.status, refusal.reason),
        (404, Reason::UnknownDestination)
    );
    // Another waypoint's by now.
    mesh.remove("other");
    mesh.pods([wire::Workload {
        waypoint: None,
        ..alone("own", "10.0.1.2")
    }]);
    assert_eq!(now().unwrap_err().reason, Reason::WaypointNotAllowed);
}

#[test]
fn the_callers_namespace_decides_who_an_address_is() {
    let mesh = Mesh::new();
    mesh.service(wire::Service {
        namespace: "away".into(),
        visibility: wire::service::Visibility::Namespace.into(),
        ..service()
    });
    let of = |namespace| {
        let found = resolve(&mesh.view(), &mesh.world.own, VIP, namespace);
        named(&found.unwrap())
    };
    assert_eq!(of("away"), format!("away/{HOST}"));
    assert_eq!(of("default"), format!("default/{HOST}"));
}

#[test]
fn what_is_handed_over_is_leaving_unless_it_is_ours_as_well() {
    let mesh = Mesh::new();
    mesh.pods([alone("own", "10.0.1.2")]);
    let both = [VIP, "10.0.1.2:80"].map(|authority| found(&mesh, authority).unwrap());
    let gateway = |host: &str| GatewayAddress {
        destination: GatewayDestination::Hostname(NamespacedHostname {
            namespace: "default".into(),
            hostname: host.into(),
        }),
        hbone_port: 15008,
    };
    let leaving = |now: &[&str], also: &[&str]| {
        let now = now.first().map(|host| gateway(host));
        let also: Vec<_> = also.iter().map(|host| gateway(host)).collect();
        let mut service = Service::clone(&mesh.known_service(HOST));
        (service.waypoint, service.also_waypoints) = (now.clone(), also.clone());
        let mut pod = Workload::clone(&mesh.known_pod("own"));
        let profile = Arc::make_mut(&mut pod.profile);
        (profile.waypoint, profile.also_waypoints) = (now, also);
        let mut draft = mesh.world.store.load().draft();
        draft.put_service(service);
        draft.put_workload(pod);
        mesh.world.store.publish(draft.finish());
        let (view, own) = (mesh.view(), &mesh.world.own);
        both.each_ref().map(|one| is_leaving(&view, own, one))
    };
    assert_eq!(leaving(&[WAYPOINT], &[]), [false; 2]);
    assert_eq!(leaving(&[WAYPOINT], &[WAYPOINT]), [false; 2]);
    assert_eq!(leaving(&[OTHER], &[WAYPOINT]), [true; 2]);
    assert_eq!(leaving(&[], &[WAYPOINT]), [true; 2]);
    assert_eq!(leaving(&[OTHER], &[OTHER]), [false; 2]);
    assert_eq!(leaving(&[OTHER], &[]), [false; 2]);
    assert!(both.iter().all(|one| !one.is_raw()));
}
