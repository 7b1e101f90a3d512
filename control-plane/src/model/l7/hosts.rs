use std::collections::{BTreeMap, BTreeSet};

use isobar_proto::isobar::v1::ServiceRef;
use isobar_types::NamespacedName;

use super::super::service_entries::EntryPlan;
use super::super::services::ServicePlan;

/// Host names of the mesh's services and of ServiceEntries.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    domain: String,
    known: BTreeMap<String, NamespacedName>,
    /// Hosts of ServiceEntries with their namespaces: several may have the same, and those that are
    /// for their own namespace only are known nowhere else.
    entries: BTreeSet<(String, String)>,
}

impl Hosts {
    /// All published services.
    pub(crate) fn of(services: &[ServicePlan], entries: &[EntryPlan<'_>], domain: &str) -> Self {
        let public = entries.iter().filter(|entry| entry.wire.canonical);
        let public = public.map(|entry| (entry.wire.hostname.clone(), entry.key.clone()));
        let services = services
            .iter()
            .map(|service| (service.wire.hostname.clone(), service.key.clone()));
        let pairs = entries.iter().map(|entry| {
            let wire = &entry.wire;
            (wire.hostname.clone(), wire.namespace.clone())
        });
        Self {
            domain: domain.to_owned(),
            // What is a Service stays one.
            known: public.chain(services).collect(),
            entries: pairs.collect(),
        }
    }

    /// The full form of a host written in `namespace`: a name without a dot is a Service there.
    /// A name that is short by the cluster's domain only is completed too, if it then exists.
    pub(crate) fn resolve(&self, host: &str, namespace: &str) -> String {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if host.contains('*') {
            return host;
        }
        if !host.contains('.') {
            return format!("{host}.{namespace}.svc.{}", self.domain);
        }
        [
            host.clone(),
            format!("{host}.{}", self.domain),
            format!("{host}.svc.{}", self.domain),
        ]
        .into_iter()
        .find(|name| self.known.contains_key(name))
        .unwrap_or(host)
    }

    /// The service with that full name.
    pub(crate) fn service(&self, hostname: &str) -> Option<&NamespacedName> {
        self.known.get(hostname)
    }

    /// A reference to the service of that full name. One that does not exist is referred to as well:
    /// requests for it are then refused, not routed elsewhere.
    /// Of several ServiceEntries that of `namespace` counts.
    pub(crate) fn reference(&self, hostname: &str, namespace: &str) -> ServiceRef {
        let own = (hostname.to_owned(), namespace.to_owned());
        let namespace = match self.service(hostname) {
            Some(key) if !self.entries.contains(&own) => &*key.namespace,
            _ => namespace,
        };
        ServiceRef {
            namespace: namespace.to_owned(),
            hostname: hostname.to_owned(),
        }
    }
}

/// How exactly a host pattern takes a host name; higher is more exact, `None` does not take it.
pub(crate) fn exactness(pattern: &str, hostname: &str) -> Option<usize> {
    match pattern.strip_prefix('*') {
        None => (pattern == hostname).then_some(usize::MAX),
        Some(suffix) => hostname.ends_with(suffix).then_some(suffix.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_resolve_in_their_namespace() {
        let known = |name: &str, ns: &str| {
            (
                format!("{name}.{ns}.svc.cluster.local"),
                NamespacedName {
                    namespace: ns.into(),
                    name: name.into(),
                },
            )
        };
        let hosts = Hosts {
            domain: "cluster.local".into(),
            known: [known("a", "x")].into(),
            entries: BTreeSet::new(),
        };
        for (host, full) in [
            ("a", "a.x.svc.cluster.local"),
            ("A.x.svc.cluster.local.", "a.x.svc.cluster.local"),
            ("a.x", "a.x.svc.cluster.local"),
            ("a.x.svc", "a.x.svc.cluster.local"),
            ("example.com", "example.com"),
            ("*.x.svc", "*.x.svc"),
        ] {
            assert_eq!(hosts.resolve(host, "x"), full, "{host}");
        }
    }

    #[test]
    fn exact_hosts_beat_wildcards() {
        let host = "a.x.svc.cluster.local";
        assert!(exactness(host, host) > exactness("*.x.svc.cluster.local", host));
        assert!(exactness("*.x.svc.cluster.local", host) > exactness("*", host));
        assert_eq!(exactness("*.y.svc.cluster.local", host), None);
    }
}
