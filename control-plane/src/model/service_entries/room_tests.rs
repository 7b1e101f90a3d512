//! Endpoints for which there is no room.

use super::super::golden_tests::{namespace, planned, reasons};
use super::super::room::{OF_NAMESPACE, REASON};

fn object(kind: &str, name: &str, labels: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{{spec}}}\n"
    )
}

/// So many ports that `count` endpoints have no room for them.
fn ports(count: usize, key: &str) -> String {
    let ports =
        (1..=OF_NAMESPACE / 12 / count).map(|port| format!("{{name: p{port}, {key}: {port}}}"));
    ports.collect::<Vec<_>>().join(", ")
}

#[test]
fn entries_take_room_for_those_that_they_select() {
    let ports = ports(2048, "number");
    let with = |selector: fn(usize) -> String| {
        let each = (0..64).map(|at| {
            let spec = format!(
                "hosts: [h{at}.example], addresses: [192.0.2.1], resolution: STATIC, \
                 ports: [{ports}], workloadSelector: {{labels: {{{}}}}}",
                selector(at)
            );
            let own = format!("address: 10.9.0.{at}, labels: {{at: \"{at}\"}}");
            let own = object(
                "WorkloadEntry",
                &format!("vm-{at}"),
                "app: vm, at: none",
                &own,
            );
            object("ServiceEntry", &format!("e{at:02}"), "", &spec) + &own
        });
        let plan = planned(&format!("{}{}", namespace(""), each.collect::<String>()));
        let listed = plan.workloads.iter().map(|one| one.wire.services.len());
        (
            listed.collect::<Vec<_>>(),
            reasons(&plan, "ServiceEntry shop/e63").concat(),
        )
    };
    let own = with(|at| format!("app: vm, at: \"{at}\""));
    assert_eq!(own, (vec![1; 64], "Accepted".to_owned()));
    // All of them for each entry are twice what there is room for.
    let all = with(|_| "app: vm".to_owned());
    assert_eq!(all, (vec![31; 64], REASON.to_owned()));
}

#[test]
fn a_service_without_room_is_meant_by_namespace_and_name() {
    let service = |name: &str, namespace: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{clusterIP: 10.96.0.7, selector: {{app: vm}}, ports: [{ports}]}}\n"
        )
    };
    let vms = (0..100).map(|at| {
        let spec = format!("address: 10.9.0.{at}");
        object("WorkloadEntry", &format!("vm-{at}"), "app: vm", &spec)
    });
    let other = object("WorkloadEntry", "other", "app: vm", "address: 10.9.1.1");
    let plan = planned(&format!(
        "{}{}{}{}{}{}",
        namespace(""),
        service("many", "shop", &ports(100, "port")),
        service("few", "shop", "{port: 80}"),
        service("many", "web", "{port: 80}"),
        vms.collect::<String>(),
        other.replace("namespace: shop", "namespace: web"),
    ));
    assert_eq!(reasons(&plan, "Service shop/many"), [REASON]);
    let of = |name: &str| {
        let found = plan.workloads.iter().find(|one| one.wire.name == name);
        let names = found.unwrap().wire.services.keys().cloned();
        names.collect::<Vec<_>>()
    };
    assert_eq!(of("vm-0"), ["shop/few.shop.svc.cluster.local"]);
    assert_eq!(of("other"), ["web/many.web.svc.cluster.local"]);
}

#[test]
fn that_there_is_no_room_is_told_beside_many_problems() {
    let hosts: Vec<String> = (0..12)
        .map(|at| format!("h{at}.web.svc.cluster.local"))
        .collect();
    let endpoints: Vec<String> = (0..1000)
        .map(|at| format!("{{address: 10.9.{}.{}}}", at / 250, at % 250))
        .collect();
    let spec = format!(
        "hosts: [{}, a.example], addresses: [192.0.2.1], resolution: STATIC, ports: [{}], endpoints: [{}]",
        hosts.join(", "),
        ports(1000, "number"),
        endpoints.join(", ")
    );
    let entry = object("ServiceEntry", "e", "", &spec);
    let plan = planned(&format!("{}{entry}", namespace("")));
    assert!(plan.workloads.is_empty());
    let mut verdicts = plan.verdicts.iter();
    let told = verdicts.find(|one| one.object.to_string() == "ServiceEntry shop/e");
    let told = &told.unwrap().message;
    assert!(
        told.contains(&hosts[9]) && !told.contains(&hosts[10]),
        "{told}"
    );
    assert!(told.contains("more than 32 MiB"), "{told}");
}
