use super::*;

fn request(headers: &[(&str, &[u8])]) -> Request<()> {
    let mut request = Request::builder().method("CONNECT").uri("10.0.0.1:80");
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
    }
    request.body(()).unwrap()
}

#[test]
fn a_request_round_trips() {
    let headers = ConnectHeaders {
        authority: Authority::parse("cart.shop.svc.cluster.local:80").unwrap(),
        baggage: BaggageValue::of(&Baggage {
            cluster: Some("east".into()),
            namespace: Some("web".into()),
            workload_type: Some(WorkloadType::Deployment),
            workload: Some("front".into()),
            service: Some("front".into()),
            revision: None,
            region: Some("r1".into()),
            zone: None,
        }),
        forwarded: Forwarded::parse(r#"for="10.1.2.9:41822";host=cart.shop"#),
        traceparent: Some(TraceParent::new(1 << 100, 7)),
        forwarded_network: Some("net-east".into()),
    };
    let request = headers.to_request().unwrap();
    assert_eq!(
        request.headers()["baggage"],
        "k8s.cluster.name=east,k8s.namespace.name=web,k8s.deployment.name=front,\
         service.name=front,cloud.region=r1"
    );
    assert_eq!(
        request.headers()["forwarded"],
        r#"for="10.1.2.9:41822";host=cart.shop"#
    );
    assert_eq!(ConnectHeaders::from_request(&request).unwrap(), headers);
    // What no other request says stays out of the table of headers.
    for (name, once) in [
        ("baggage", false),
        ("forwarded", true),
        ("traceparent", true),
    ] {
        assert_eq!(request.headers()[name].is_sensitive(), once, "{name}");
    }
}

#[test]
fn baggage_that_no_header_can_carry_is_left_out() {
    let named = |name: &str| Baggage {
        service: Some(name.into()),
        ..Baggage::default()
    };
    let plain = named("cart");
    assert_eq!(BaggageValue::of(&plain).map(|v| v.read()), Some(plain));
    for odd in ["c\u{e4}rt", "cart\r\nx: y"] {
        assert_eq!(BaggageValue::of(&named(odd)), None, "{odd:?}");
    }
}

#[test]
fn authorities() {
    for (text, shown) in [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("[fd00::1]:8080", "[fd00::1]:8080"),
        ("Cart.Shop:1", "cart.shop:1"),
    ] {
        assert_eq!(Authority::parse(text).unwrap().to_string(), shown);
    }
    for bad in [
        "",
        "host",
        ":80",
        "host:",
        "host:99999",
        "host:+1",
        "fd00::1:80",
        "a b:1",
        "u@h:1",
    ] {
        assert!(Authority::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn check_50_malformed_headers_are_absent() {
    let dashes = "-".repeat(55);
    let letters = "a".repeat(55);
    for trace in [
        dashes.as_str(),
        letters.as_str(),
        "",
        "00-00000000000000000000000000000000-0000000000000001-00",
    ] {
        let parsed =
            ConnectHeaders::from_request(&request(&[("traceparent", trace.as_bytes())])).unwrap();
        assert_eq!(parsed.traceparent, None, "{trace}");
    }
    let parsed = ConnectHeaders::from_request(&request(&[
        (
            "baggage",
            b"k8s.namespace.name=a=b,=x,k8s.pod.name=,unknown=1,,",
        ),
        ("baggage", b"service.name=s"),
        ("forwarded", b";;for=;host=\"h\", for=1.1.1.1"),
    ]))
    .unwrap();
    let baggage = parsed.baggage.unwrap().read();
    assert_eq!(
        (baggage.namespace.as_deref(), baggage.service.as_deref()),
        (Some("a"), Some("s"))
    );
    assert_eq!(baggage.workload, None);
    assert_eq!(parsed.forwarded.unwrap().host.as_deref(), Some("h"));
    let not_ascii = request(&[("baggage", b"service.name=s"), ("baggage", b"\xff\xfe")]);
    assert_eq!(
        ConnectHeaders::from_request(&not_ascii).unwrap().baggage,
        None
    );
}

#[test]
fn baggage_that_is_too_long_tells_nothing() {
    let told = |text: &str| Baggage::parse(text).service;
    let name = "n".repeat(253);
    assert_eq!(told(&format!("service.name={name}")), Some(name.clone()));
    assert_eq!(told(&format!("service.name={name}n")), None);
    let padding = "x=1,".repeat(63);
    assert_eq!(
        told(&format!("{padding}service.name=s")).as_deref(),
        Some("s")
    );
    assert_eq!(told(&format!("x=1,{padding}service.name=s")), None);
    let long = "y".repeat(8192);
    assert_eq!(told(&format!("service.name=s,{long}")), None);
}

#[test]
fn every_key_of_baggage_has_its_place() {
    let all = Baggage {
        cluster: Some("east".into()),
        namespace: Some("web".into()),
        workload_type: Some(WorkloadType::CronJob),
        workload: Some("front".into()),
        service: Some("shop".into()),
        revision: Some("v2".into()),
        region: Some("r1".into()),
        zone: Some("z1".into()),
    };
    let text = "k8s.cluster.name=east,k8s.namespace.name=web,k8s.cronjob.name=front,\
                service.name=shop,service.version=v2,cloud.region=r1,cloud.availability_zone=z1";
    assert_eq!(Baggage::parse(text), all);
    assert_eq!(all.to_string(), text);
    let longest = "y".repeat(8192 - "service.name=s,".len());
    let read = Baggage::parse(&format!("service.name=s,{longest}"));
    assert_eq!(read.service.as_deref(), Some("s"));
}

#[test]
fn a_trace_context_has_one_form() {
    let (trace, span) = ("0123456789abcdef0123456789abcdef", "0123456789abcdef");
    let good = format!("00-{trace}-{span}-01");
    assert_eq!(TraceParent::parse(&good).unwrap().to_string(), good);
    for bad in [
        format!("01-{trace}-{span}-01"),
        format!("00-{trace}0-{span}-01"),
        format!("00-{}-{span}-01", &trace[1..]),
        format!("00-{trace}-{span}0-01"),
        format!("00-{trace}-{}-01", &span[1..]),
        format!("00-{trace}-{span}-1"),
        format!("00-{trace}-{span}-001"),
        format!("00-{trace}-{span}-01-"),
        format!("00-{trace}-{span}-0A"),
        format!("00-{}-{span}-01", trace.to_uppercase()),
        format!("00-{trace}-+{}-01", &span[1..]),
        format!("00-{}-{span}-01", "0".repeat(32)),
        format!("00-{trace}-{}-01", "0".repeat(16)),
    ] {
        assert_eq!(TraceParent::parse(&bad), None, "{bad}");
    }
}

#[test]
fn a_host_longer_than_any_name_is_not_kept() {
    let parse =
        |length: usize| Forwarded::parse(&format!("for=10.0.0.1;host={}", "a".repeat(length)));
    let host = |length: usize| parse(length).and_then(|forwarded| forwarded.host);
    assert_eq!(host(253).map(|host| host.len()), Some(253));
    assert_eq!(host(254), None);
    assert_eq!(host(60_000), None);
    let client = parse(60_000).and_then(|forwarded| forwarded.client);
    assert!(client.is_some(), "the rest counts");
}
