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
