use std::fmt;
use std::sync::Arc;

use isobar_types::Identity;

use crate::Revocations;

/// Which trust domains are names of one mesh. Asked at every handshake, so that what changes counts from
/// the next one on. By itself every domain is a mesh of its own. Cheap to clone.
#[derive(Clone, Default)]
pub struct TrustDomains(Option<Arc<Ask>>);

type Ask = dyn Fn(&str, &str) -> bool + Send + Sync;

/// What peers are judged by beyond the roots of the own certificate. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PeerTrust {
    /// Lists that a peer's chain must not be on.
    pub revocations: Revocations,
    /// Names of the mesh.
    pub domains: TrustDomains,
}

impl TrustDomains {
    /// Asks `are_one` of two different domains; it must not block.
    #[must_use]
    pub fn told_by(are_one: impl Fn(&str, &str) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(are_one)))
    }

    /// True if both are names of one mesh; a domain always is one with itself.
    #[must_use]
    pub fn are_one(&self, a: &str, b: &str) -> bool {
        a == b || self.0.as_ref().is_some_and(|ask| ask(a, b))
    }

    /// True if both mean the same account of the same mesh.
    pub(crate) fn mean_one(&self, a: &Identity, b: &Identity) -> bool {
        a.namespace == b.namespace
            && a.service_account == b.service_account
            && self.are_one(&a.trust_domain, &b.trust_domain)
    }
}

impl fmt::Debug for TrustDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "TrustDomains(told)",
            None => "TrustDomains(each)",
        })
    }
}
