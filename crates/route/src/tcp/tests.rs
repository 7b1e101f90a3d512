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
