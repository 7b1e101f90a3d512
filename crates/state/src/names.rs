//! What a host name means to a client in some namespace.
//!
//! A pod asks for `cart.shop` as `cart.shop.web.svc.cluster.local` first, so a name that ends in a search
//! domain has two readings. Names of the cluster come first in both, and what its own name server may
//! know is read in one way only: whoever may publish a host in a namespace of his own must not answer
//! for others' Services.

use std::net::IpAddr;
use std::sync::Arc;

use crate::service::{HealthPolicy, Service};
use crate::snapshot::Snapshot;

/// Whose view of names.
#[derive(Debug, Clone, Copy)]
pub struct NameRules<'a> {
    /// Namespace of the client.
    pub namespace: &'a str,
    /// Network of the client.
    pub network: &'a str,
    /// Suffix of service names.
    pub domain: &'a str,
    /// Search domains of the client; `None`: those every pod has.
    pub search: Option<&'a [String]>,
    /// Namespace preferred when several own a name.
    pub preferred_namespace: Option<&'a str>,
}

impl NameRules<'_> {
    /// What a resolver tries behind a name, in this order.
    #[must_use]
    pub fn search_domains(&self) -> Vec<String> {
        if let Some(search) = self.search {
            return search.to_vec();
        }
        let (ns, domain) = (self.namespace, self.domain);
        vec![
            format!("{ns}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.to_owned(),
        ]
    }
}

/// A service found for a name.
#[derive(Debug)]
pub struct Found<'a> {
    /// The service.
    pub service: &'a Arc<Service>,
    /// The name without a search domain, where it was found that way: the answer then starts with
    /// an alias.
    pub alias: Option<String>,
}

struct Candidate {
    name: String,
    stripped: Option<String>,
}

/// Finds the service a name means, or `None` where the mesh does not know it. `name` is in lower
/// case without a dot at the end.
///
/// Names of Services first, then other hosts as they are written, then hosts that stand for a domain.
#[must_use]
pub fn find<'a>(snapshot: &'a Snapshot, rules: &NameRules<'_>, name: &str) -> Option<Found<'a>> {
    let mut all = candidates(rules, name);
    let exact = |candidate: &Candidate| {
        Some(Found {
            service: lookup(snapshot, rules, &candidate.name)?,
            alias: candidate.stripped.clone(),
        })
    };
    let mut of_services = all.iter().filter(|one| is_of_service(rules, &one.name));
    if let Some(found) = of_services.find_map(exact) {
        return Some(found);
    }
    let of_services = in_services(rules, name);
    if of_services.is_some() || is_of_pod(rules, name) {
        let outside = of_services.and_then(|rest| outside(snapshot, rules, rest));
        all.retain(|one| match &one.stripped {
            Some(stripped) if below(&one.name, rules.domain).is_none() => outside == Some(stripped),
            _ => true,
        });
    }
    all.iter()
        .find_map(exact)
        .or_else(|| all.iter().find_map(|one| covering(snapshot, rules, one)))
}

/// The host `*.…` that stands for a name, the most exact one.
fn covering<'a>(
    snapshot: &'a Snapshot,
    rules: &NameRules<'_>,
    candidate: &Candidate,
) -> Option<Found<'a>> {
    let is_inside = below(&candidate.name, rules.domain).is_some();
    let mut rest = candidate.name.as_str();
    while let Some((_, parent)) = rest.split_once('.') {
        // Of the cluster's names a host may stand for those of one namespace, never for all.
        let may_cover = !is_inside || in_services(rules, parent).is_some();
        let service = may_cover.then(|| lookup(snapshot, rules, &format!("*.{parent}")));
        if let Some(service) = service.flatten() {
            return Some(Found {
                service,
                alias: None,
            });
        }
        rest = parent;
    }
    None
}

/// What is before `.domain` at the end of a name.
fn below<'n>(name: &'n str, domain: &str) -> Option<&'n str> {
    name.strip_suffix(domain)?.strip_suffix('.')
}

/// What is before `.svc.` and the cluster's domain: a namespace, a Service in it, or what is below.
fn in_services<'n>(rules: &NameRules<'_>, name: &'n str) -> Option<&'n str> {
    below(below(name, rules.domain)?, "svc")
}

/// True for the shape that names of Services have.
fn is_of_service(rules: &NameRules<'_>, name: &str) -> bool {
    in_services(rules, name).is_some_and(|rest| rest.split('.').count() == 2)
}

/// True for names that pods have by their addresses.
fn is_of_pod(rules: &NameRules<'_>, name: &str) -> bool {
    below(name, rules.domain).is_some_and(|rest| below(rest, "pod").is_some())
}

/// What is before the search domain of a namespace, at the end of a name that is `rest` below
/// `svc.DOMAIN`. None where the cluster's name server may know the name itself, or nobody: of a Service,
/// or of what is below a Service, as it is or behind the search domains that resolvers try next.
fn outside<'n>(snapshot: &Snapshot, rules: &NameRules<'_>, rest: &'n str) -> Option<&'n str> {
    let zones = rules.search_domains();
    let mut namespaces = zones.iter().filter_map(|zone| in_services(rules, zone));
    let written = namespaces.find_map(|namespace| below(rest, namespace))?;
    let is_of_service = |zone: &String| {
        let full = format!("{written}.{zone}");
        let mut labels = in_services(rules, &full)?.rsplit('.');
        let (namespace, service) = (labels.next()?, labels.next()?);
        let host = format!("{service}.{namespace}.svc.{}", rules.domain);
        snapshot.services_by_hostname(&host).first().map(drop)
    };
    let is_outside =
        written.contains('.') && !zones.iter().any(|zone| is_of_service(zone).is_some());
    is_outside.then_some(written)
}

/// The addresses of a service that a client may use, of one family. Empty: the name exists, but has
/// no such record.
#[must_use]
pub fn addresses(
    snapshot: &Snapshot,
    rules: &NameRules<'_>,
    service: &Service,
    v6: bool,
) -> Vec<IpAddr> {
    let of_family = |ip: &IpAddr| ip.is_ipv6() == v6 && service.ip_families.allows(*ip);
    if !service.vips.is_empty() || !service.cidr_vips.is_empty() {
        let here = service
            .vips
            .iter()
            .filter(|vip| &*vip.network == rules.network);
        return here.map(|vip| vip.ip).filter(of_family).collect();
    }
    let unready_too = service
        .load_balancing
        .as_ref()
        .is_some_and(|lb| lb.health_policy == HealthPolicy::AllowAll);
    snapshot
        .endpoints(&service.key)
        .filter(|e| e.workload.healthy || unready_too)
        .filter(|e| &*e.workload.network == rules.network)
        .filter_map(|e| e.workload.addresses.iter().find(|ip| of_family(ip)))
        .copied()
        .collect()
}

fn lookup<'a>(
    snapshot: &'a Snapshot,
    rules: &NameRules<'_>,
    hostname: &str,
) -> Option<&'a Arc<Service>> {
    let in_cluster = hostname
        .strip_suffix(rules.domain)
        .is_some_and(|rest| rest.ends_with(".svc."));
    snapshot
        .services_by_hostname(hostname)
        .iter()
        // Without an address only names of the cluster are ours: others exist in public DNS.
        .filter(|s| in_cluster || !s.vips.is_empty() || !s.cidr_vips.is_empty())
        .filter(|s| s.visible_from(Some(rules.namespace)))
        .rev()
        .max_by_key(|s| {
            let home = &*s.key.namespace == rules.namespace;
            let preferred = rules.preferred_namespace == Some(&*s.key.namespace);
            (home, s.canonical, preferred)
        })
}

fn candidates(rules: &NameRules<'_>, name: &str) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = Vec::new();
    let mut add = |name: String, stripped: Option<&str>| {
        if !all.iter().any(|c| c.name == name) {
            all.push(Candidate {
                name,
                stripped: stripped.map(str::to_owned),
            });
        }
    };
    add(name.to_owned(), None);
    for expanded in expansions(rules, name) {
        add(expanded, None);
    }
    for domain in rules.search_domains() {
        let rest = name
            .strip_suffix(&*domain)
            .and_then(|n| n.strip_suffix('.'));
        let Some(rest) = rest.filter(|r| !r.is_empty()) else {
            continue;
        };
        add(rest.to_owned(), Some(rest));
        for expanded in expansions(rules, rest) {
            add(expanded, Some(rest));
        }
    }
    all
}

/// The Kubernetes names a short name may stand for.
fn expansions(rules: &NameRules<'_>, name: &str) -> Vec<String> {
    let (ns, domain) = (rules.namespace, rules.domain);
    let ends_in_svc = name.rsplit('.').next() == Some("svc");
    match name.split('.').count() {
        1 => vec![format!("{name}.{ns}.svc.{domain}")],
        2 => vec![
            format!("{name}.svc.{domain}"),
            format!("{name}.{ns}.svc.{domain}"),
        ],
        3 if ends_in_svc => vec![format!("{name}.{domain}"), format!("{name}.svc.{domain}")],
        3 => vec![format!("{name}.svc.{domain}")],
        4 if ends_in_svc => vec![format!("{name}.{domain}")],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::workload as wire;

    use super::*;

    fn rules() -> NameRules<'static> {
        NameRules {
            namespace: "web",
            network: "",
            domain: "cluster.local",
            search: None,
            preferred_namespace: None,
        }
    }

    fn service(namespace: &str, host: &str, vips: &[[u8; 4]]) -> wire::Address {
        let service = wire::Service {
            name: host.split('.').next().unwrap_or_default().into(),
            namespace: namespace.into(),
            hostname: host.into(),
            addresses: vips
                .iter()
                .map(|ip| wire::NetworkAddress {
                    network: String::new(),
                    address: ip.to_vec(),
                    length: None,
                })
                .collect(),
            ..wire::Service::default()
        };
        wire::Address {
            r#type: Some(wire::address::Type::Service(service)),
        }
    }

    fn mesh() -> Snapshot {
        let mut draft = Snapshot::default().draft();
        for address in [
            service("shop", "cart.shop.svc.cluster.local", &[[10, 0, 0, 1]]),
            service("web", "front.web.svc.cluster.local", &[[10, 0, 0, 2]]),
            service("web", "*.wild.example", &[[10, 0, 0, 3]]),
            service("web", "noaddress.example", &[]),
            service("shop", "headless.shop.svc.cluster.local", &[]),
        ] {
            draft.upsert_address(&address).unwrap();
        }
        let pod = wire::Workload {
            uid: "c//Pod/shop/p".into(),
            name: "p".into(),
            namespace: "shop".into(),
            addresses: vec![vec![10, 1, 0, 9]],
            services: [(
                "shop/headless.shop.svc.cluster.local".to_owned(),
                wire::PortList::default(),
            )]
            .into(),
            ..wire::Workload::default()
        };
        draft
            .upsert_address(&wire::Address {
                r#type: Some(wire::address::Type::Workload(pod)),
            })
            .unwrap();
        draft.finish()
    }

    #[test]
    fn check_45_names_are_found_as_kubernetes_and_its_resolvers_write_them() {
        let mesh = mesh();
        for (name, host, alias) in [
            (
                "cart.shop.svc.cluster.local",
                "cart.shop.svc.cluster.local",
                None,
            ),
            ("cart.shop.svc", "cart.shop.svc.cluster.local", None),
            ("cart.shop", "cart.shop.svc.cluster.local", None),
            ("front", "front.web.svc.cluster.local", None),
            (
                "cart.shop.svc.cluster.local.web.svc.cluster.local",
                "cart.shop.svc.cluster.local",
                Some("cart.shop.svc.cluster.local"),
            ),
            (
                "cart.shop.cluster.local",
                "cart.shop.svc.cluster.local",
                Some("cart.shop"),
            ),
            ("a.b.wild.example", "*.wild.example", None),
        ] {
            let found = find(&mesh, &rules(), name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(&*found.service.key.hostname, host, "{name}");
            assert_eq!(found.alias.as_deref(), alias, "{name}");
        }
        for unknown in [
            "cart",
            "example.com",
            "noaddress.example",
            "wild.example",
            "x.shop",
        ] {
            assert!(find(&mesh, &rules(), unknown).is_none(), "{unknown}");
        }
    }

    /// As [`mesh`], with hosts that somebody publishes in a namespace of his own.
    fn with(hosts: &[&str]) -> Snapshot {
        let mut draft = mesh().draft();
        for host in hosts {
            let address = service("evil", host, &[[203, 0, 113, 5]]);
            draft.upsert_address(&address).unwrap();
        }
        draft.finish()
    }

    #[test]
    fn hosts_of_others_do_not_answer_for_services() {
        let mesh = with(&[
            "*.local",
            "*.cluster.local",
            "*.svc.cluster.local",
            "*.svc",
            "*.shop",
            "*.web",
            "*.pod",
            "*.front",
            "cart.shop",
            "cart.shop.svc",
            "front",
        ]);
        let forms = |name: &str| {
            [
                "",
                ".web.svc.cluster.local",
                ".svc.cluster.local",
                ".cluster.local",
            ]
            .map(|domain| format!("{name}{domain}"))
        };
        for (name, host) in [
            ("front.web", "front.web.svc.cluster.local"),
            ("cart.shop", "cart.shop.svc.cluster.local"),
            ("cart.shop.svc", "cart.shop.svc.cluster.local"),
            ("cart.shop.svc.cluster.local", "cart.shop.svc.cluster.local"),
        ] {
            for asked in forms(name) {
                let found = find(&mesh, &rules(), &asked).unwrap_or_else(|| panic!("{asked}"));
                assert_eq!(&*found.service.key.hostname, host, "{asked}");
            }
        }
        // Services that this proxy is not told of, and names below Services, are left to the cluster.
        for unknown in [
            "none.shop.svc.cluster.local",
            "none.shop.svc.cluster.local.web.svc.cluster.local",
            "pod-0.headless.shop.svc.cluster.local",
            "pod-0.headless.shop.web.svc.cluster.local",
            "pod-0.headless.shop.svc.web.svc.cluster.local",
            "pod-0.front.web.svc.cluster.local",
            "front.shop.svc.cluster.local",
            "1-2-3-4.shop.pod.cluster.local",
        ] {
            assert!(find(&mesh, &rules(), unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn hosts_outside_are_found_behind_search_domains() {
        let mesh = with(&[
            "api.example.com",
            "*.corp.local",
            "vm",
            "db.corp",
            "*.evil.svc.cluster.local",
        ]);
        for (name, host) in [
            ("api.example.com", "api.example.com"),
            ("api.example.com.web.svc.cluster.local", "api.example.com"),
            ("printer.corp.local", "*.corp.local"),
            ("printer.corp.local.web.svc.cluster.local", "*.corp.local"),
            ("vm", "vm"),
            ("db.corp.web.svc.cluster.local", "db.corp"),
            ("a.evil.svc.cluster.local", "*.evil.svc.cluster.local"),
        ] {
            let found = find(&mesh, &rules(), name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(&*found.service.key.hostname, host, "{name}");
        }
        // The resolver of the pod asks for it without a search domain in the end.
        assert!(find(&mesh, &rules(), "vm.web.svc.cluster.local").is_none());
    }

    #[test]
    fn check_45_headless_services_have_their_endpoints_addresses() {
        let mesh = mesh();
        let found = find(&mesh, &rules(), "headless.shop").unwrap();
        let of = |v6| addresses(&mesh, &rules(), found.service, v6);
        assert_eq!(of(false), ["10.1.0.9".parse::<IpAddr>().unwrap()]);
        assert!(of(true).is_empty());
    }
}
