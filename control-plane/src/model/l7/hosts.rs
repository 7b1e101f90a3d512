use std::collections::BTreeMap;

use isobar_proto::isobar::v1::ServiceRef;
use isobar_types::NamespacedName;

use super::super::services::ServicePlan;

/// Host names of the mesh's services.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    domain: String,
    known: BTreeMap<String, NamespacedName>,
}

impl Hosts {
    /// All published services.
    pub(crate) fn of(services: &[ServicePlan], domain: &str) -> Self {
        Self {
            domain: domain.to_owned(),
            known: services
                .iter()
                .map(|service| (service.wire.hostname.clone(), service.key.clone()))
                .collect(),
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
    pub(crate) fn reference(&self, hostname: &str, namespace: &str) -> ServiceRef {
        let namespace = self
            .service(hostname)
            .map_or(namespace, |key| &*key.namespace);
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
