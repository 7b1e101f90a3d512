//! Host names that a ServiceEntry must not have: whoever may write one in a namespace of his own would
//! take over calls by name to Services of others, past their waypoints and policies.

use isobar_objects::istio::ServiceEntry;
use isobar_objects::{Finding, ObjectHead};

/// Of whom a host of the cluster's domain is.
enum Zone<'h> {
    /// A namespace: its name, a Service in it, or what is below.
    Namespace(&'h str),
    /// Of all namespaces, or of none.
    Cluster,
}

/// Why an entry of `namespace` must not have `host`, which is in lower case without a dot at the end.
///
/// Names at or below `domain`, and such as lack only that, are for the namespace in them. A wildcard that
/// is broader than `domain` (`*.local`) may be meant for hosts outside: node proxies do not let it stand
/// for names of the cluster.
pub(super) fn refused(host: &str, namespace: &str, domain: &str) -> Option<String> {
    let owner = match zone(host, domain)? {
        Zone::Namespace(owner) if owner == namespace => return None,
        Zone::Namespace(owner) => format!("is a name of namespace {owner}: write it there"),
        Zone::Cluster => {
            "is a name of the cluster itself, or would stand for all namespaces".to_owned()
        }
    };
    Some(format!(
        "host {host} is left out: it {owner}; of the cluster's names an entry may have those \
         that end in .{namespace}.svc.{domain}"
    ))
}

fn zone<'h>(host: &'h str, domain: &str) -> Option<Zone<'h>> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if name == domain || ["svc", "pod"].contains(&name) || name.ends_with(".pod") {
        return Some(Zone::Cluster);
    }
    let inside = name
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix('.'));
    let services = inside.unwrap_or(name).strip_suffix("svc");
    match (services.and_then(|rest| rest.strip_suffix('.')), inside) {
        (Some(rest), _) => rest.rsplit('.').next().map(Zone::Namespace),
        // `svc.DOMAIN`, `pod.DOMAIN` and what nobody knows yet.
        (None, Some(_)) => Some(Zone::Cluster),
        (None, None) => None,
    }
}

/// What of an entry is refused before it is stored.
pub(crate) fn refused_hosts(entry: &ServiceEntry, domain: &str) -> Vec<Finding> {
    let hosts = entry.spec.hosts.iter().enumerate();
    let refused = hosts.filter_map(|(index, host)| {
        let text = refused(&normal(host), entry.namespace(), domain)?;
        let finding = Finding::error(format!("spec.hosts[{index}]"), text);
        Some(finding.about(&entry.reference()))
    });
    refused.collect()
}

/// A host as it is published.
pub(super) fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_cluster_are_for_the_namespace_in_them() {
        let is_refused = |host: &str| refused(host, "shop", "cluster.local").is_some();
        for host in [
            "api.example.com",
            "*.example.com",
            "*.com",
            "vm",
            "db.corp",
            "cart.web",
            "*.local",
            "*.corp.local",
            "cart.shop.svc.clusterset.local",
            "notcluster.local",
            "x.svc.example",
            "cart.shop.svc",
            "cart.shop.svc.cluster.local",
            "*.shop.svc.cluster.local",
            "db-0.db.shop.svc.cluster.local",
        ] {
            assert!(!is_refused(host), "{host}");
        }
        for host in [
            "*.cluster.local",
            "cluster.local",
            "*.svc.cluster.local",
            "svc.cluster.local",
            "*.svc",
            "*.pod",
            "1-2-3-4.web.pod",
            "cart.web.svc",
            "*.web.svc",
            "cart.web.svc.cluster.local",
            "*.web.svc.cluster.local",
            "shop.web.svc.cluster.local",
            "cart.shop.web.svc.cluster.local",
            "1-2-3-4.web.pod.cluster.local",
            "cart.web.cluster.local",
        ] {
            assert!(is_refused(host), "{host}");
        }
    }
}
