//! What a name means to a client in some namespace. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use isobar_state::{HealthPolicy, Service, Snapshot};

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
#[must_use]
pub fn find<'a>(snapshot: &'a Snapshot, rules: &NameRules<'_>, name: &str) -> Option<Found<'a>> {
    for candidate in candidates(rules, name) {
        if let Some(service) = lookup(snapshot, rules, &candidate.name) {
            return Some(Found {
                service,
                alias: candidate.stripped,
            });
        }
        let mut rest = candidate.name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(service) = lookup(snapshot, rules, &format!("*.{parent}")) {
                return Some(Found {
                    service,
                    alias: None,
                });
            }
            rest = parent;
        }
    }
    None
}

/// The addresses of a service that a client may use, of one family. Empty: the name exists, but has
/// no such record.
#[must_use]
pub(super) fn addresses(
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
    for domain in search_domains(rules) {
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

fn search_domains(rules: &NameRules<'_>) -> Vec<String> {
    if let Some(search) = rules.search {
        return search.to_vec();
    }
    let (ns, domain) = (rules.namespace, rules.domain);
    vec![
        format!("{ns}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ]
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
    use super::*;
    use isobar_proto::istio::workload as wire;

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

    #[test]
    fn check_45_headless_services_have_their_endpoints_addresses() {
        let mesh = mesh();
        let found = find(&mesh, &rules(), "headless.shop").unwrap();
        let of = |v6| addresses(&mesh, &rules(), found.service, v6);
        assert_eq!(of(false), ["10.1.0.9".parse::<IpAddr>().unwrap()]);
        assert!(of(true).is_empty());
    }
}
