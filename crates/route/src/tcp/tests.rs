use super::*;

fn caller(ip: [u8; 4]) -> Caller {
    Caller {
        identity: None,
        ip: ip.into(),
        labels: None,
    }
}

#[test]
fn source_ranges_look_at_the_callers_address() {
    let from = proto::L4Match {
        source_subnet: "10.1.0.0/16".into(),
        ..Default::default()
    };
    let block = compile_l4(Some(&from), &[]).unwrap();
    let call = TcpCall {
        destination: "10.96.0.1:80".parse().unwrap(),
        sni: None,
    };
    assert!(block.holds(&call, &caller([10, 1, 2, 3]), "svc"));
    assert!(!block.holds(&call, &caller([10, 2, 2, 3]), "svc"));
    let bad = proto::L4Match {
        source_subnet: "ten".into(),
        ..Default::default()
    };
    assert!(compile_l4(Some(&bad), &[]).is_err());
}

#[test]
fn every_part_of_a_block_for_opaque_connections_must_hold() {
    let from = proto::L4Match {
        port: 80,
        destination_subnets: vec!["10.96.0.0/16".into(), "192.0.2.1".into()],
        source_labels: [("app".to_owned(), "web".to_owned())].into(),
        source_namespace: "shop".into(),
        ..Default::default()
    };
    let block = compile_l4(Some(&from), &["*.example".into()]).unwrap();
    let labels = |app: &str| Some(Arc::new(Labels::from([("app".into(), app.into())])));
    let from = |namespace: &str, app: &str| Caller {
        identity: Some(isobar_types::Identity::new("td", namespace, "a")),
        labels: labels(app),
        ..caller([10, 0, 0, 1])
    };
    let call = |to: &str, sni| TcpCall {
        destination: to.parse().unwrap(),
        sni,
    };
    let web = from("shop", "web");
    let name = Some("a.Example");
    for (to, sni, caller, expect) in [
        ("10.96.3.4:80", name, &web, true),
        ("192.0.2.1:80", name, &web, true),
        ("10.96.3.4:81", name, &web, false),
        ("10.97.0.1:80", name, &web, false),
        ("10.96.3.4:80", Some("example"), &web, false),
        ("10.96.3.4:80", None, &web, false),
        ("10.96.3.4:80", name, &from("bank", "web"), false),
        ("10.96.3.4:80", name, &from("shop", "cart"), false),
        ("10.96.3.4:80", name, &caller([10, 0, 0, 1]), false),
    ] {
        let holds = block.holds(&call(to, sni), caller, "svc.example");
        // Without a name in the connection the service's own counts.
        let expect = expect || (sni.is_none() && to == "10.96.3.4:80");
        assert_eq!(holds, expect, "{to} {sni:?} {caller:?}");
    }
}

fn tcp_route(matches: Vec<proto::L4Match>) -> proto::TcpRoute {
    proto::TcpRoute {
        matches,
        destinations: vec![proto::WeightedDestination::default()],
    }
}

fn tls_route(names: &[&str]) -> proto::TlsRoute {
    proto::TlsRoute {
        matches: vec![proto::TlsMatch {
            sni_hosts: names.iter().map(ToString::to_string).collect(),
            l4: None,
        }],
        destinations: vec![proto::WeightedDestination::default()],
    }
}

/// Place of the rule that takes a connection, and whether it is one of the `tls` list.
fn taken(from: proto::VirtualService, port: u16, sni: Option<&str>) -> Option<(usize, bool)> {
    let mut draft = Tables::default().draft();
    let from = proto::VirtualService {
        namespace: "ns".into(),
        name: "vs".into(),
        parents: vec![proto::ServiceRef {
            namespace: "ns".into(),
            hostname: "svc".into(),
        }],
        ..from
    };
    draft.upsert_virtual_service(&from).unwrap();
    let service = NamespacedHostname::parse("ns/svc").unwrap();
    let call = TcpCall {
        destination: ([10, 96, 0, 1], port).into(),
        sni,
    };
    let decision = match_tcp(&draft.finish(), &service, &call, &caller([10, 0, 0, 1]));
    let TcpDecision::Taken(_, at) = decision else {
        assert!(decision.route().is_none());
        let rules = from.tcp.len() + from.tls.len();
        assert_eq!(decision == TcpDecision::NoRoute, rules > 0);
        return None;
    };
    Some((at, decision.route().unwrap().tls))
}

#[test]
fn the_first_rule_that_matches_takes_the_connection() {
    let by_port = |port| proto::L4Match {
        port,
        ..Default::default()
    };
    let rules = || proto::VirtualService {
        tls: vec![tls_route(&["a.example"]), tls_route(&["*.example"])],
        tcp: vec![tcp_route(vec![by_port(80), by_port(81)])],
        ..Default::default()
    };
    assert_eq!(taken(rules(), 443, Some("a.example")), Some((0, true)));
    assert_eq!(taken(rules(), 443, Some("b.example")), Some((1, true)));
    assert_eq!(taken(rules(), 443, Some("b.elsewhere.long")), None);
    // A star stands for something.
    assert_eq!(taken(rules(), 443, Some(".example")), None);
    assert_eq!(taken(rules(), 81, None), Some((2, false)));
    assert_eq!(taken(rules(), 82, None), None);
    let all = proto::VirtualService {
        tcp: vec![tcp_route(vec![])],
        ..Default::default()
    };
    assert_eq!(taken(all, 82, None), Some((0, false)));
    assert_eq!(taken(proto::VirtualService::default(), 82, None), None);
}
