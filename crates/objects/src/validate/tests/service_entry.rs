use super::*;

const PORTS: &str = "ports: [{number: 443, name: https}]";

fn entry(text: &str) -> String {
    spec("networking.istio.io/v1", "ServiceEntry", text)
}

#[test]
fn service_entries_that_say_something_else_than_they_mean() {
    let dns = |rest: &str| entry(&format!("{{resolution: DNS, {PORTS}, {rest}}}"));
    let fixed = |rest: &str| {
        entry(&format!(
            "{{hosts: [a.b], resolution: STATIC, {PORTS}, {rest}}}"
        ))
    };
    assert_errors(&[
        (dns("hosts: []"), &["spec.hosts"]),
        (dns("hosts: [\"*\"]"), &["spec.hosts[0]"]),
        (dns("hosts: [\"*.a.b\"]"), &["spec.hosts[0]"]),
        (
            dns("hosts: [a_b, a.b, a.b]"),
            &["spec.hosts[0]", "spec.hosts[2]"],
        ),
        (
            dns("hosts: [a.b], addresses: [10.0.0.0/8, x, 10.0.0.1/32]"),
            &["spec.addresses[0]", "spec.addresses[1]"],
        ),
        (entry("{hosts: [a.b], resolution: DNS}"), &["spec.ports"]),
        (
            entry(
                "{hosts: [a.b], ports: [{number: 0, name: a}, {number: 1, name: a, targetPort: 70000}, \
                 {number: 1}]}",
            ),
            &[
                "spec.ports[0].number",
                "spec.ports[1].targetPort",
                "spec.ports[2].name",
                "spec.ports[2].number",
                "spec.ports[1].name",
            ],
        ),
        (fixed("location: MESH_EXTERNAL"), &["spec.endpoints"]),
        (
            fixed("endpoints: [{address: 10.0.0.1}], workloadSelector: {labels: {a: b}}"),
            &["spec.endpoints"],
        ),
        (
            fixed("endpoints: [{address: far.example}, {address: 10.0.0.1, ports: {http: 80}}]"),
            &["spec.endpoints[0].address", "spec.endpoints[1].ports.http"],
        ),
        (
            entry("{hosts: [a.b], endpoints: [{address: 10.0.0.1}]}"),
            &["spec.endpoints"],
        ),
        (
            dns("hosts: [a.b], exportTo: [., \"~\", A]"),
            &["spec.exportTo[2]"],
        ),
    ]);
    for fine in [
        dns(
            "hosts: [a.b, b.c], exportTo: [., other], endpoints: [{address: c.d, ports: {https: 1}}]",
        ),
        fixed("endpoints: [{address: 10.0.0.1, locality: a/b, weight: 2, serviceAccount: x}]"),
        fixed("workloadSelector: {labels: {a: b}}, location: MESH_INTERNAL"),
        entry("{hosts: [\"*.a.b\"], addresses: [10.0.0.0/8]}"),
        entry(&format!(
            "{{hosts: [a.b, \"*.a.b\"], resolution: DYNAMIC_DNS, {PORTS}}}"
        )),
    ] {
        assert!(lines(&fine).is_empty(), "{:?}", lines(&fine));
    }
    let later = fixed("endpoints: [{address: \"unix:///run/x\"}]");
    let severities: Vec<_> = findings(&later).iter().map(|f| f.severity).collect();
    assert_eq!(severities, [Severity::Unsupported]);
}

#[test]
fn a_host_that_is_found_by_its_callers_has_no_endpoints_and_is_outside() {
    assert_errors(&[
        (
            entry(&format!(
                "{{hosts: [\"*.a.b\"], resolution: DYNAMIC_DNS, {PORTS}, endpoints: [{{address: c.d}}]}}"
            )),
            &["spec.endpoints"],
        ),
        (
            entry(&format!(
                "{{hosts: [\"*.a.b\"], resolution: DYNAMIC_DNS, {PORTS}, location: MESH_INTERNAL}}"
            )),
            &["spec.location"],
        ),
    ]);
}

#[test]
fn service_entries_have_no_more_than_istio_takes() {
    let list =
        |count: usize, one: fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(", ");
    let entry = |hosts: usize, addresses: usize, endpoints: usize| {
        entry(&format!(
            "{{resolution: STATIC, {PORTS}, hosts: [{}], addresses: [{}], endpoints: [{}]}}",
            list(hosts, |at| format!("h{at}.b")),
            list(addresses, |at| format!("10.1.{}.{}", at / 256, at % 256)),
            list(endpoints, |at| format!(
                "{{address: 10.{}.{}.1}}",
                at / 256,
                at % 256
            )),
        ))
    };
    assert_errors(&[
        (entry(256, 256, 4096), &[]),
        (entry(257, 1, 1), &["spec.hosts"]),
        (entry(1, 257, 1), &["spec.addresses"]),
        (entry(1, 1, 4097), &["spec.endpoints"]),
    ]);
}
