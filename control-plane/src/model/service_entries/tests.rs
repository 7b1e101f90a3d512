use std::fmt::Write as _;
use std::net::IpAddr;

use isobar_proto::istio::workload as wire;

use super::super::Plan;
use super::super::golden_tests::{gateway, namespace, planned, pod, reasons};

fn entry(name: &str, head: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: shop{head}}}\nspec: {{{spec}}}\n"
    )
}

const HTTPS: &str = "ports: [{number: 443, name: https, protocol: HTTPS}]";

fn address(bytes: &[u8], length: Option<u32>) -> String {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    match length {
        Some(length) => format!("{ip}/{length}"),
        None => ip.to_string(),
    }
}

fn ports(list: &[wire::Port]) -> String {
    let one = |p: &wire::Port| {
        let protocol = p.app_protocol().as_str_name();
        format!("{}>{}:{protocol}", p.service_port, p.target_port)
    };
    list.iter().map(one).collect::<Vec<_>>().join(",")
}

/// What is published, one line each.
fn told(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    for service in &plan.entries {
        let addresses = service.addresses.iter();
        let addresses: Vec<_> = addresses.map(|a| address(&a.address, a.length)).collect();
        let mut line = format!(
            "{} {addresses:?} {}",
            service.hostname,
            ports(&service.ports)
        );
        let balancing = service.load_balancing.as_ref();
        if let Some(balancing) = balancing {
            let _ = write!(line, " {}", balancing.mode().as_str_name());
        }
        if service.visibility() != wire::service::Visibility::Public {
            let _ = write!(line, " {}", service.visibility().as_str_name());
        }
        if !service.canonical {
            line.push_str(" second");
        }
        if service.waypoint.is_some() {
            line.push_str(" waypoint");
        }
        lines.push(line);
    }
    for workload in &plan.workloads {
        let wire = &workload.wire;
        let addresses = wire.addresses.iter().map(|ip| address(ip, None));
        let at: Vec<_> = addresses.chain([wire.hostname.clone()]).collect();
        let services: Vec<_> = wire
            .services
            .iter()
            .map(|(name, list)| format!("{name} {}", ports(&list.ports)))
            .collect();
        lines.push(format!("{} {} {services:?}", wire.uid, at.join("")));
    }
    lines
}

fn of(entries: &str) -> Vec<String> {
    told(&planned(&format!("{}{entries}", namespace(""))))
}

const UID: &str = "Kubernetes/networking.istio.io/ServiceEntry/shop";

#[test]
fn each_resolution_has_its_services_and_endpoints() {
    let fixed = entry(
        "e",
        "",
        "hosts: [a.example, B.example.], addresses: [192.0.2.1, 198.51.100.7/24], resolution: STATIC, \
         ports: [{number: 443, name: https, protocol: TLS, targetPort: 8443}, {number: 80, name: web}], \
         endpoints: [{address: 10.9.0.1, ports: {web: 8080}}, {address: 10.9.0.1}]",
    );
    let list = |first: &str| format!("443>8443:TLS,80>{first}:UNKNOWN");
    let of_both = |first: &str| {
        let list = list(first);
        format!("[\"shop/a.example {list}\", \"shop/b.example {list}\"]")
    };
    assert_eq!(
        of(&fixed),
        [
            format!(
                "a.example [\"192.0.2.1\", \"198.51.100.0/24\"] {}",
                list("80")
            ),
            format!(
                "b.example [\"192.0.2.1\", \"198.51.100.0/24\"] {}",
                list("80")
            ),
            format!("{UID}/e/10.9.0.1 10.9.0.1 {}", of_both("8080")),
            format!("{UID}/e/10.9.0.1/1 10.9.0.1 {}", of_both("80")),
        ]
    );
    let by_name = "hosts: [a.example, b.example], addresses: [192.0.2.1], resolution: DNS";
    assert_eq!(
        of(&entry("e", "", &format!("{by_name}, {HTTPS}"))),
        [
            "a.example [\"192.0.2.1\"] 443>443:TLS".to_owned(),
            "b.example [\"192.0.2.1\"] 443>443:TLS".to_owned(),
            format!("{UID}/e/a.example a.example [\"shop/a.example 443>443:TLS\"]"),
            format!("{UID}/e/b.example b.example [\"shop/b.example 443>443:TLS\"]"),
        ]
    );
    let elsewhere = format!("{by_name}, {HTTPS}, endpoints: [{{address: far.example}}]");
    let lines = of(&entry("e", "", &elsewhere));
    assert_eq!(lines.len(), 3);
    assert!(lines[2].starts_with(&format!("{UID}/e/far.example far.example [")));
    let itself = format!("hosts: [a.example], addresses: [192.0.2.0/24], {HTTPS}");
    assert_eq!(
        of(&entry("e", "", &itself)),
        ["a.example [\"192.0.2.0/24\"] 443>443:TLS PASSTHROUGH"]
    );
}

#[test]
fn pods_may_be_the_endpoints() {
    let spec = "hosts: [a.example], addresses: [192.0.2.1], resolution: STATIC, \
                workloadSelector: {labels: {app: cart}}, \
                ports: [{number: 80, name: web}, {number: 81, name: other, targetPort: 9001}]";
    let yaml = format!(
        "{}{}{}",
        pod("cart-1", "cart", "app: cart", true),
        pod("other", "other", "app: other", true),
        entry("e", "", spec)
    );
    let lines = of(&yaml);
    let of_pod = |name: &str| {
        let start = format!("Kubernetes//Pod/shop/{name} ");
        lines.iter().find(|line| line.starts_with(&start)).unwrap()
    };
    assert!(of_pod("cart-1").ends_with("[\"shop/a.example 80>9000:UNKNOWN,81>9001:UNKNOWN\"]"));
    assert!(of_pod("other").ends_with("[]"));
}

#[test]
fn a_host_has_one_owner_in_a_namespace_and_one_canonical() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}\n";
    let spec =
        |host: &str, more: &str| format!("hosts: [{host}], addresses: [192.0.2.1], {HTTPS}{more}");
    let aged = |name: &str, year: u32, spec: &str| {
        let head = format!(", creationTimestamp: \"{year}-01-01T00:00:00Z\"");
        entry(name, &head, spec)
    };
    let yaml = format!(
        "{}{service}{}{}{}{}",
        namespace(""),
        entry("taken", "", &spec("cart.shop.svc.cluster.local", "")),
        aged("young", 2025, &spec("a.example", "")),
        aged("old", 2024, &spec("a.example", "")),
        aged("other", 2023, &spec("a.example", ", exportTo: [.]"))
            .replace("namespace: shop", "namespace: web"),
    );
    let plan = planned(&yaml);
    let lines = told(&plan);
    assert_eq!(
        lines,
        [
            "a.example [\"192.0.2.1\"] 443>443:TLS PASSTHROUGH NAMESPACE second",
            "a.example [\"192.0.2.1\"] 443>443:TLS PASSTHROUGH",
        ]
    );
    assert_eq!(plan.entries[1].name, "old");
    for name in ["taken", "young"] {
        let said = reasons(&plan, &format!("ServiceEntry shop/{name}"));
        assert_eq!(said, ["HostConflict"], "{name}");
    }
}

#[test]
fn who_may_see_it() {
    for (export_to, expect, said) in [
        ("[]", Some(""), "Accepted"),
        ("[web, \"*\"]", Some(""), "Accepted"),
        ("[shop]", Some("NAMESPACE second"), "Accepted"),
        ("[\"~\"]", None, "Accepted"),
        // Narrower than asked for, never wider.
        ("[., web]", Some("NAMESPACE second"), "UnsupportedValue"),
        ("[web]", None, "UnsupportedValue"),
    ] {
        let spec =
            format!("hosts: [a.example], addresses: [192.0.2.1], {HTTPS}, exportTo: {export_to}");
        let plan = planned(&format!("{}{}", namespace(""), entry("e", "", &spec)));
        let lines = told(&plan);
        let seen = lines
            .first()
            .and_then(|line| line.split_once("PASSTHROUGH"));
        assert_eq!(seen.map(|(_, by)| by.trim()), expect, "{export_to}");
        assert_eq!(reasons(&plan, "ServiceEntry shop/e"), [said], "{export_to}");
    }
}

#[test]
fn hosts_without_an_address_are_given_one_and_keep_it() {
    let spec = format!("hosts: [a.example, b.example], resolution: DNS, {HTTPS}");
    let yaml = |status: &str| {
        let entry = entry("e", "", &spec);
        format!("{}{entry}{status}", namespace(""))
    };
    let given = |plan: &Plan| -> Vec<String> {
        plan.entries
            .iter()
            .map(|service| {
                let all = service.addresses.iter().map(|a| address(&a.address, None));
                all.collect::<Vec<_>>().join(" ")
            })
            .collect()
    };
    let first = planned(&yaml(""));
    let addresses = given(&first);
    for both in &addresses {
        let (v4, v6) = both.split_once(' ').unwrap();
        assert!(v4.starts_with("240.240."), "{both}");
        assert!(v6.starts_with("2001:2::f0f0:"), "{both}");
    }
    assert_ne!(addresses[0], addresses[1]);
    // The same without memory, and to be remembered.
    assert_eq!(given(&planned(&yaml(""))), addresses);
    let remembered = first.allocated.values().flatten();
    let remembered: Vec<_> = remembered
        .map(|a| format!("{} {}", a.host, a.value))
        .collect();
    assert_eq!(remembered.len(), 4);

    // What is remembered stays; what is not ours, or another's, does not.
    let status = "status: {addresses: [{value: 240.240.9.9, host: a.example}, \
                  {value: 10.0.0.1, host: b.example}, {value: 240.240.9.9, host: b.example}]}\n";
    let kept = given(&planned(&yaml(status)));
    assert!(kept[0].starts_with("240.240.9.9 "), "{kept:?}");
    assert_eq!(kept[1], addresses[1]);

    for (head, spec, said) in [
        (
            ", labels: {networking.istio.io/enable-autoallocate-ip: \"false\"}",
            spec.clone(),
            "NoAddress",
        ),
        (
            "",
            format!(
                "hosts: [\"*.example\"], resolution: STATIC, endpoints: [{{address: 10.0.0.1}}], {HTTPS}"
            ),
            "NoAddress",
        ),
        ("", format!("hosts: [a.example], {HTTPS}"), "NoAddress"),
    ] {
        let plan = planned(&format!("{}{}", namespace(""), entry("e", head, &spec)));
        assert!(plan.allocated.is_empty(), "{spec}");
        assert_eq!(reasons(&plan, "ServiceEntry shop/e"), [said], "{spec}");
    }
}

#[test]
fn a_taken_place_leads_to_the_next() {
    let spec = |host: &str| format!("hosts: [{host}], resolution: DNS, {HTTPS}");
    let alone = planned(&format!(
        "{}{}",
        namespace(""),
        entry("e", "", &spec("a.example"))
    ));
    let own = address(&alone.entries[0].addresses[0].address, None);
    let status = format!("status: {{addresses: [{{value: {own}, host: z.example}}]}}\n");
    let both = planned(&format!(
        "{}{}{}{status}",
        namespace(""),
        entry("e", "", &spec("a.example")),
        entry("z", "", &spec("z.example")),
    ));
    let of = |at: usize| address(&both.entries[at].addresses[0].address, None);
    assert_eq!(of(1), own);
    assert_ne!(of(0), own);
}

#[test]
fn no_namespace_has_all_addresses_there_are() {
    let many = (0..17).map(|at| {
        let hosts: Vec<String> = (0..256)
            .map(|host| format!("h{host}.e{at}.example"))
            .collect();
        let spec = format!("hosts: [{}], resolution: DNS, {HTTPS}", hosts.join(", "));
        entry(&format!("e{at:02}"), "", &spec)
    });
    let many: String = many.collect();
    let spec = format!("hosts: [a.example], resolution: DNS, {HTTPS}");
    let other = entry("own", "", &spec).replace("namespace: shop", "namespace: web");
    let plan = planned(&format!("{}{many}{other}", namespace("")));
    let given = |name: &str| {
        let mut all = plan.allocated.iter();
        all.find(|(key, _)| &*key.name == name)
            .map_or(0, |(_, all)| all.len())
    };
    assert_eq!([given("e00"), given("e16"), given("own")], [512, 0, 2]);
    assert_eq!(reasons(&plan, "ServiceEntry shop/e16"), ["NoAddress"]);
    assert_eq!(reasons(&plan, "ServiceEntry web/own"), ["Accepted"]);
    let longest = plan.verdicts.iter().map(|one| one.message.len()).max();
    assert!(longest < Some(4096), "{longest:?}");
}

#[test]
fn a_policy_or_waypoint_in_front_is_never_passed_by() {
    let spec = format!("hosts: [a.example], addresses: [192.0.2.1], resolution: DNS, {HTTPS}");
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                  metadata: {name: p, namespace: shop}\n\
                  spec: {targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: e}], rules: [{}]}\n";
    for (labels, more, waypoint, said) in [
        ("", String::new(), false, vec!["Accepted"]),
        ("", policy.to_owned(), true, vec!["Accepted"]),
        (
            ", labels: {istio.io/use-waypoint: wp}",
            gateway("wp", ""),
            true,
            vec!["Accepted", "WaypointIsNotReady"],
        ),
    ] {
        let yaml = format!("{}{}{more}", namespace(""), entry("e", labels, &spec));
        let plan = planned(&yaml);
        assert_eq!(plan.entries[0].waypoint.is_some(), waypoint, "{yaml}");
        assert_eq!(reasons(&plan, "ServiceEntry shop/e"), said, "{yaml}");
    }
    let inherited = format!(
        "{}{}",
        namespace("istio.io/use-waypoint: wp"),
        entry("e", "", &spec)
    );
    assert!(planned(&inherited).entries[0].waypoint.is_some());
    let out = entry("e", ", labels: {istio.io/use-waypoint: none}", &spec);
    let out = format!("{}{out}", namespace("istio.io/use-waypoint: wp"));
    assert!(planned(&out).entries[0].waypoint.is_none());
}

fn workload_entry(name: &str, head: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: {name}, namespace: shop{head}}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn workload_entries_are_endpoints_of_what_selects_them() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.7, selector: {app: cart}, \
                   ports: [{name: web, port: 80, targetPort: 8080}, {name: more, port: 81, targetPort: named}]}\n";
    let selecting = entry(
        "e",
        "",
        "hosts: [a.example], addresses: [192.0.2.1], resolution: STATIC, \
         workloadSelector: {labels: {app: cart}}, ports: [{number: 443, name: web, targetPort: 8443}]",
    );
    let yaml = format!(
        "{}{service}{selecting}{}{}{}",
        namespace(""),
        workload_entry(
            "vm",
            ", labels: {app: cart}",
            "address: 10.9.0.1, ports: {web: 9090}, serviceAccount: vm"
        ),
        workload_entry(
            "named",
            "",
            "address: far.example, labels: {app: cart}, weight: 3, network: away"
        ),
        workload_entry("other", "", "address: 10.9.0.3, labels: {app: other}"),
    );
    let plan = planned(&yaml);
    let lines = told(&plan);
    let of = |name: &str| {
        let start = format!("Kubernetes/networking.istio.io/WorkloadEntry/shop/{name} ");
        let mut lines = lines.iter();
        lines
            .find_map(|line| line.strip_prefix(&start))
            .unwrap()
            .to_owned()
    };
    let cart = "shop/cart.shop.svc.cluster.local";
    assert_eq!(
        of("vm"),
        format!("10.9.0.1 [\"shop/a.example 443>9090:UNKNOWN\", \"{cart} 80>9090:UNKNOWN\"]")
    );
    assert_eq!(
        of("named"),
        format!("far.example [\"shop/a.example 443>8443:UNKNOWN\", \"{cart} 80>8080:UNKNOWN\"]")
    );
    assert_eq!(of("other"), "10.9.0.3 []");
    let vm = plan.workloads.iter().find(|w| w.wire.name == "vm").unwrap();
    assert_eq!(vm.wire.service_account, "vm");
    assert_eq!((&*vm.wire.network, vm.wire.capacity), ("", None));
    let named = plan.workloads.iter().find(|w| w.wire.name == "named");
    let named = &named.unwrap().wire;
    assert_eq!((&*named.network, named.capacity), ("away", Some(3)));
}

#[test]
fn what_stands_for_a_domain_has_an_address_and_needs_a_waypoint() {
    let spec = format!("hosts: [\"*.a.example\", b.example], resolution: DYNAMIC_DNS, {HTTPS}");
    let of = |more: &str| {
        let labels = if more.is_empty() {
            ""
        } else {
            "istio.io/use-waypoint: wp"
        };
        planned(&format!(
            "{}{more}{}",
            namespace(labels),
            entry("d", "", &spec)
        ))
    };
    for (more, reason) in [
        (String::new(), "NoWaypoint"),
        (gateway("wp", ""), "Accepted"),
    ] {
        let plan = of(&more);
        assert!(
            reasons(&plan, "ServiceEntry shop/d").contains(&reason),
            "{reason}"
        );
        let lines = told(&plan);
        assert!(lines[0].starts_with("*.a.example [\"240.240."), "{lines:?}");
        let at = |host: &str| {
            let start = format!("{UID}/d/{host} {host} ");
            lines.iter().any(|line| line.starts_with(&start))
        };
        assert!(at("b.example"), "{lines:?}");
        assert_eq!(at("*.a.example"), reason == "Accepted", "{lines:?}");
    }
}

#[test]
fn hosts_of_other_namespaces_are_left_out() {
    let spec = "hosts: [a.example, \"*.svc.cluster.local\", cart.web.svc.cluster.local, db.shop.svc.cluster.local], \
                addresses: [192.0.2.1], resolution: STATIC, endpoints: [{address: 192.0.2.1}]";
    let yaml = format!(
        "{}{}",
        namespace(""),
        entry("e", "", &format!("{spec}, {HTTPS}"))
    );
    let plan = planned(&yaml);
    let hosts: Vec<&str> = plan.entries.iter().map(|e| &*e.hostname).collect();
    assert_eq!(hosts, ["a.example", "db.shop.svc.cluster.local"]);
    let services: Vec<&String> = plan.workloads[0].wire.services.keys().collect();
    assert_eq!(
        services,
        ["shop/a.example", "shop/db.shop.svc.cluster.local"]
    );
    assert_eq!(reasons(&plan, "ServiceEntry shop/e"), ["ForeignHost"]);
    let alone = planned(
        &yaml
            .replace("a.example, ", "")
            .replace(", db.shop", ", x.web"),
    );
    assert!(alone.entries.is_empty() && alone.workloads.is_empty());
}

/// A node, a pod on its network and a Service, none of them of the namespace shop.
const OTHERS: &str = "---
apiVersion: v1
kind: Node
metadata: {name: node-9}
status: {addresses: [{type: Hostname, address: node-9}, {type: InternalIP, address: 10.9.9.9}]}
---
apiVersion: v1
kind: Pod
metadata: {name: on-host, namespace: web}
spec: {hostNetwork: true, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.9.9.8}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: web}
spec: {clusterIP: 10.96.0.50, ports: [{port: 80}]}
";

#[test]
fn endpoints_do_not_take_calls_to_addresses_of_others() {
    let at =
        |name: &str, address: &str| workload_entry(name, "", &format!("address: \"{address}\""));
    let listed = "hosts: [a.example], addresses: [192.0.2.1], resolution: STATIC, \
                  endpoints: [{address: 10.9.9.9}, {address: 192.0.2.9}]";
    let yaml = format!(
        "{}{OTHERS}{}{}{}{}{}{}",
        namespace(""),
        at("node", "10.9.9.9"),
        at("on-host", "10.9.9.8"),
        at("service", "10.96.0.50"),
        at("mapped", "::ffff:10.96.0.50"),
        at("vm", "192.0.2.10"),
        entry("e", "", &format!("{listed}, {HTTPS}")),
    );
    let plan = planned(&yaml);
    let mode = |end: &str| {
        let mut all = plan.workloads.iter();
        let found = all.find(|one| one.wire.uid.ends_with(end));
        found.unwrap_or_else(|| panic!("{end}")).wire.network_mode()
    };
    for taken in ["node", "on-host", "service", "mapped"] {
        let end = format!("WorkloadEntry/shop/{taken}");
        assert_eq!(mode(&end), wire::NetworkMode::HostNetwork, "{taken}");
        let said = reasons(&plan, &format!("WorkloadEntry shop/{taken}"));
        assert_eq!(said, ["AddressConflict"], "{taken}");
    }
    assert_eq!(mode("shop/vm"), wire::NetworkMode::Standard);
    assert_eq!(reasons(&plan, "WorkloadEntry shop/vm"), ["Accepted"]);
    assert_eq!(mode("/e/10.9.9.9"), wire::NetworkMode::HostNetwork);
    assert_eq!(mode("/e/192.0.2.9"), wire::NetworkMode::Standard);
    assert_eq!(reasons(&plan, "ServiceEntry shop/e"), ["AddressConflict"]);
    // Who runs the mesh may say what nodes are.
    let root = yaml.replace(
        "name: node, namespace: shop",
        "name: node, namespace: istio-system",
    );
    let said = reasons(&planned(&root), "WorkloadEntry istio-system/node");
    assert_eq!(said, ["Accepted"]);
}

#[test]
fn entries_describe_no_addresses_of_nodes_but_as_they_are() {
    for (addresses, more, said) in [
        (
            "10.9.9.9",
            ", resolution: STATIC, endpoints: [{address: 192.0.2.9}]",
            "AddressConflict",
        ),
        (
            "10.9.0.0/16",
            ", resolution: STATIC, endpoints: [{address: 192.0.2.9}]",
            "AddressConflict",
        ),
        (
            "\"::ffff:10.9.9.9\"",
            ", resolution: STATIC, endpoints: [{address: 192.0.2.9}]",
            "AddressConflict",
        ),
        ("\"::ffff:10.96.0.50\"", "", "AddressConflict"),
        ("10.96.0.0/16", "", "AddressConflict"),
        ("10.9.0.0/16", "", "Accepted"),
    ] {
        let spec = format!("hosts: [a.example], addresses: [{addresses}], {HTTPS}{more}");
        let yaml = format!("{}{OTHERS}{}", namespace(""), entry("e", "", &spec));
        let plan = planned(&yaml);
        assert!(
            reasons(&plan, "ServiceEntry shop/e").contains(&said),
            "{spec}"
        );
        let is_left_out = plan.entries[0].addresses.is_empty();
        assert_eq!(is_left_out, said != "Accepted", "{spec}");
    }
    let bound = format!("hosts: [a.example], addresses: [10.9.0.0/16], {HTTPS}");
    let bound = entry("e", ", labels: {istio.io/use-waypoint: wp}", &bound);
    let plan = planned(&format!(
        "{}{OTHERS}{}{bound}",
        namespace(""),
        gateway("wp", "")
    ));
    assert!(plan.entries[0].addresses.is_empty());
}
