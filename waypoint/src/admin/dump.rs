//! `/config_dump`: the shape that `isobar proxy-config waypoint` reads.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use isobar_route::Action;
use isobar_state::{Service, TunnelProtocol, Workload};
use isobar_types::NamespacedHostname;
use serde_json::{Value, json};

use super::Admin;
use super::routes::virtual_service;
use crate::cluster::Load;
use crate::world::View;

pub(super) fn page(admin: &Admin) -> Value {
    let view = admin.world.view();
    let own = &admin.world.own;
    let info = view.tables.waypoint();
    let services = served(&view);
    json!({
        "proxy": {
            "kind": "waypoint",
            "pod": &*own.pod,
            "namespace": &*own.identity.namespace,
            "serviceAccount": &*own.identity.service_account,
            "identity": own.identity.to_string(),
            "ip": own.ip.to_string(),
            "gateway": info.map(|i| i.name.to_string()),
            "hostname": info.map(|i| i.hostname.to_string()),
            "forServices": info.is_some_and(|i| i.for_services),
            "forWorkloads": info.is_some_and(|i| i.for_workloads),
            "forServiceAccount": info.and_then(|i| i.account.as_deref()),
            "version": env!("CARGO_PKG_VERSION"),
        },
        "sync": admin.sync.report(),
        "listeners": listeners(admin, &view, &services),
        "routes": view.tables.virtual_services().map(|v| virtual_service(v)).collect::<Vec<_>>(),
        "clusters": services.iter().flat_map(|s| clusters(admin, &view, s)).collect::<Vec<_>>(),
        "endpoints": services.iter().flat_map(|s| endpoints(admin, &view, s)).collect::<Vec<_>>(),
        "policies": policies(&view),
        "workloads": workloads(admin, &view),
        "certificates": certificates(admin),
    })
}

/// Services that name this waypoint, and those its routes lead to.
fn served(view: &View) -> Vec<std::sync::Arc<Service>> {
    let targets: BTreeSet<&NamespacedHostname> = view
        .tables
        .virtual_services()
        .flat_map(|v| v.http.iter())
        .filter_map(|r| match &r.action {
            Action::Forward(all) => Some(all),
            Action::Redirect(_) | Action::Direct(_) => None,
        })
        .flatten()
        .filter_map(|w| w.target.service.as_ref())
        .collect();
    let mut all: Vec<_> = view
        .snapshot
        .services()
        .filter(|s| crate::target::names_us(view, s) || targets.contains(&s.key))
        .cloned()
        .collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

fn listeners(admin: &Admin, view: &View, services: &[std::sync::Arc<Service>]) -> Vec<Value> {
    let mut out = vec![json!({
        "name": "hbone",
        "address": admin.config.hbone.ip().to_string(),
        "port": admin.config.hbone.port(),
        "protocol": "HBONE",
    })];
    let edge = view.tables.waypoint().map_or(&[][..], |own| &own.listeners);
    out.extend(edge.iter().map(|listener| {
        json!({
            "name": &*listener.name,
            "address": admin.config.hbone.ip().to_string(),
            "port": listener.port,
            "protocol": format!("{:?}", listener.protocol).to_uppercase(),
        })
    }));
    for service in services {
        for (port, target) in service.ports.iter() {
            out.push(json!({
                "name": format!("inbound-vip|{port}|{}", service.key.hostname),
                "service": service.key.to_string(),
                "addresses": service.vips.iter().map(|v| v.ip.to_string()).collect::<Vec<_>>(),
                "port": port,
                "targetPort": target,
                "protocol": service.protocol(port).map_or("AUTO".to_owned(), |p| format!("{p:?}").to_uppercase()),
                "routes": view.tables.virtual_services_of(&service.key).iter()
                    .map(|v| v.name.to_string()).collect::<Vec<_>>(),
            }));
        }
    }
    out
}

fn clusters(admin: &Admin, view: &View, service: &Service) -> Vec<Value> {
    let subsets = view.tables.subsets(&service.key);
    let all = view.tables.destination_rules_of(&service.key);
    let mut out = Vec::new();
    for (port, _) in service.ports.iter() {
        let mut one = |subset: Option<&isobar_route::Subset>| {
            let rules = view.tables.traffic(&service.key, subset, port);
            let key = (service.key.clone(), subset.map(|s| s.name.clone()), port);
            let cluster = admin.world.clusters.find(&key);
            let left_out = cluster
                .as_ref()
                .and_then(|c| c.outliers.out(Instant::now()));
            let names = subset.map_or(all, |s| std::slice::from_ref(&s.rule)).iter();
            out.push(json!({
                "service": service.key.to_string(),
                "port": port,
                "subset": subset.map(|s| &*s.name),
                "labels": subset.map(|s| &s.labels),
                "balancer": balancer(rules),
                "limits": rules.pool.map(|pool| format!("{pool:?}")),
                "outlierDetection": rules.outliers.map(|outliers| format!("{outliers:?}")),
                "out": left_out.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>()),
                "activeRequests": cluster.as_ref().map(|c| c.count(Load::Request)),
                "connectionsInUse": cluster.as_ref().map(|c| c.count(Load::Connection)),
                "destinationRule": names.map(ToString::to_string).collect::<Vec<_>>(),
            }));
        };
        one(None);
        subsets.iter().for_each(|s| one(Some(&**s)));
    }
    out
}

fn balancer(rules: &isobar_route::TrafficRules) -> String {
    let hash = rules.balancing.as_ref().and_then(|b| b.hash.as_ref());
    hash.map_or_else(
        || format!("{:?}", rules.balancer()),
        |key| format!("ConsistentHash({key:?})"),
    )
}

fn endpoints(admin: &Admin, view: &View, service: &Service) -> Vec<Value> {
    let all = view.snapshot.endpoints(&service.key);
    all.map(|endpoint| {
        let workload = &endpoint.workload;
        let labels = view.tables.labels(&workload.uid);
        let subsets = view.tables.subsets(&service.key).iter();
        json!({
            "service": service.key.to_string(),
            "workload": workload.display_name(),
            "hostname": &*workload.hostname,
            "addresses": addresses(admin, workload),
            "ports": endpoint.ports.iter().map(|(s, t)| json!({"service": s, "target": t})).collect::<Vec<_>>(),
            "healthy": workload.healthy,
            "protocol": protocol(workload.tunnel),
            "subsets": subsets.filter(|s| s.contains(labels.map(|l| &**l)))
                .map(|s| s.name.to_string()).collect::<Vec<_>>(),
        })
    })
    .collect()
}

/// Its own, or those that its host name had when it was last asked for.
fn addresses(admin: &Admin, workload: &Workload) -> Vec<String> {
    let text = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect();
    match admin.world.names.last(&workload.hostname) {
        Some(resolved) if workload.addresses.is_empty() => text(&resolved),
        _ => text(&workload.addresses),
    }
}

const fn protocol(tunnel: TunnelProtocol) -> &'static str {
    match tunnel {
        TunnelProtocol::Hbone => "HBONE",
        TunnelProtocol::None => "TCP",
    }
}

fn policies(view: &View) -> Vec<Value> {
    let all = view.tables.policies();
    all.map(|policy| {
        json!({
            "name": policy.name.to_string(),
            "action": policy.action(),
            "wholeWaypoint": policy.whole_waypoint,
            "services": policy.services.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "unenforceable": policy.unenforceable(),
        })
    })
    .collect()
}

fn workloads(admin: &Admin, view: &View) -> Vec<Value> {
    let mut all: Vec<_> = view.snapshot.workloads().collect();
    all.sort_by(|a, b| a.uid.cmp(&b.uid));
    all.iter()
        .map(|workload| {
            json!({
                "uid": &*workload.uid,
                "name": &*workload.name,
                "namespace": &*workload.namespace,
                "serviceAccount": &*workload.service_account,
                "hostname": &*workload.hostname,
                "addresses": addresses(admin, workload),
                "node": &*workload.node,
                "protocol": protocol(workload.tunnel),
                "healthy": workload.healthy,
                "labels": view.tables.labels(&workload.uid).map(|l| &**l),
            })
        })
        .collect()
}

fn certificates(admin: &Admin) -> Vec<Value> {
    use isobar_xds::CertState;
    let time = |at: std::time::SystemTime| {
        jiff::Timestamp::try_from(at).map_or_else(|e| e.to_string(), |t| format!("{t:.0}"))
    };
    let chain = |all: &[isobar_tls::CertificateInfo]| -> Vec<Value> {
        let one = |c: &isobar_tls::CertificateInfo| {
            json!({
                "serialNumber": c.serial,
                "validFrom": time(c.not_before),
                "expirationTime": time(c.not_after),
            })
        };
        all.iter().map(one).collect()
    };
    let all = admin.certificates.report().into_iter();
    all.map(|report| {
        let (state, own, roots) = match &report.state {
            CertState::Initializing => ("Initializing".to_owned(), Vec::new(), Vec::new()),
            CertState::Unavailable(error) => {
                (format!("Unavailable: {error}"), Vec::new(), Vec::new())
            }
            CertState::Available(certificate) => (
                "Available".to_owned(),
                chain(certificate.chain()),
                chain(certificate.roots()),
            ),
        };
        json!({
            "identity": report.identity.to_string(),
            "state": state,
            "certChain": own,
            "rootCerts": roots,
        })
    })
    .collect()
}
