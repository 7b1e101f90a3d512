use std::fmt;
use std::str::FromStr;

use crate::Str;

const SCHEME: &str = "spiffe://";

/// A workload identity: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT` (Istio's SPIFFE form).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Trust domain, for example `cluster.local`.
    pub trust_domain: Str,
    /// Kubernetes namespace of the service account.
    pub namespace: Str,
    /// Service account name.
    pub service_account: Str,
}

/// Why a text is not a workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
pub struct IdentityError(pub String);

impl Identity {
    /// Builds an identity from its parts; the parts are taken as they are.
    pub fn new(
        trust_domain: impl Into<Str>,
        namespace: impl Into<Str>,
        service_account: impl Into<Str>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The identity without its scheme, as policies write principals: `cluster.local/ns/a/sa/b`.
    #[must_use]
    pub fn principal(&self) -> String {
        self.parts().concat()
    }

    /// As text, in one piece of memory: `spiffe://cluster.local/ns/a/sa/b`.
    #[must_use]
    pub fn uri(&self) -> String {
        let [domain, ns, namespace, sa, account] = self.parts();
        [SCHEME, domain, ns, namespace, sa, account].concat()
    }

    fn parts(&self) -> [&str; 5] {
        [
            &self.trust_domain,
            "/ns/",
            &self.namespace,
            "/sa/",
            &self.service_account,
        ]
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        self.parts()
            .into_iter()
            .try_for_each(|part| f.write_str(part))
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Exactly five non-empty parts after the scheme; anything else is not an identity.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || IdentityError(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let mut parts = rest.split('/');
        let mut next = || parts.next().filter(|p| !p.is_empty());
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account)) =
            (next(), next(), next(), next(), next())
        else {
            return Err(wrong());
        };
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self::new(trust_domain, namespace, account))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let text = "spiffe://cluster.local/ns/shop/sa/cart";
        let id: Identity = text.parse().unwrap();
        assert_eq!(id, Identity::new("cluster.local", "shop", "cart"));
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart");
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "",
            "cluster.local/ns/a/sa/b",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/sa/a/ns/b",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
