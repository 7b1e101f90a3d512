//! Trust domains that are names of one mesh: while a mesh is renamed, peers show the old name or the new.

use std::borrow::Cow;
use std::collections::BTreeSet;

use isobar_types::{Identity, Str};

use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// The names; none where the mesh has one name only.
pub type TrustNames = BTreeSet<Str>;

impl Snapshot {
    /// True if both trust domains are names of one mesh; a domain always is one with itself.
    #[must_use]
    pub fn is_one_trust(&self, a: &str, b: &str) -> bool {
        let names = &self.outbound.trust;
        a == b || (names.contains(a) && names.contains(b))
    }

    /// True if both are the same account of the same mesh; allocates nothing.
    #[must_use]
    pub fn mean_one(&self, a: &Identity, b: &Identity) -> bool {
        a.namespace == b.namespace
            && a.service_account == b.service_account
            && self.is_one_trust(&a.trust_domain, &b.trust_domain)
    }

    /// The account under the one of its names that stands for all of them; `identity` itself where there is no
    /// other. Which one that is says nothing: it is for counting and comparing.
    #[must_use]
    pub fn one_name<'a>(&self, identity: &'a Identity) -> Cow<'a, Identity> {
        let names = &self.outbound.trust;
        match names.first() {
            Some(first)
                if *first != identity.trust_domain && names.contains(&identity.trust_domain) =>
            {
                Cow::Owned(Identity {
                    trust_domain: first.clone(),
                    ..identity.clone()
                })
            }
            _ => Cow::Borrowed(identity),
        }
    }

    /// True if `identity` is the workload's, under any name of the mesh; allocates nothing.
    #[must_use]
    pub fn has_identity(&self, workload: &Workload, identity: &Identity) -> bool {
        workload.namespace == identity.namespace
            && workload.service_account == identity.service_account
            && self.is_one_trust(&workload.trust_domain, &identity.trust_domain)
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::isobar::v1 as wire;
    use wire::outbound_policy::Kind;

    use super::*;
    use crate::testing::{of_workload, pod, uid};

    fn trust(domains: &[&str]) -> wire::OutboundPolicy {
        let domains = domains.iter().map(|&one| one.to_owned()).collect();
        wire::OutboundPolicy {
            kind: Some(Kind::Trust(wire::Trust { domains })),
        }
    }

    #[test]
    fn a_mesh_is_known_by_any_of_its_names_and_by_no_other() {
        let mut draft = Snapshot::default().draft();
        let cart = of_workload(pod("shop", "cart", "10.0.0.1"));
        draft.upsert_address(&cart).unwrap();
        let plain = draft.finish();
        let mut draft = plain.draft();
        draft
            .upsert_outbound_policy(&trust(&["cluster.local", "old.example"]))
            .unwrap();
        let renamed = draft.finish();
        assert!(renamed.policy_version() > plain.policy_version());
        let cart = renamed.workload_by_uid(&uid("shop", "cart")).unwrap();
        for (domain, before, after) in [
            ("cluster.local", true, true),
            ("old.example", false, true),
            ("other.example", false, false),
        ] {
            let mut identity = cart.identity();
            identity.trust_domain = domain.into();
            assert_eq!(plain.has_identity(cart, &identity), before, "{domain}");
            assert_eq!(renamed.has_identity(cart, &identity), after, "{domain}");
            identity.service_account = "thief".into();
            assert!(!renamed.has_identity(cart, &identity), "{domain}");
        }
        assert!(renamed.is_one_trust("other.example", "other.example"));
        let mut draft = renamed.draft();
        assert!(draft.remove_outbound_policy("trust/"));
        assert!(!draft.remove_outbound_policy("trust/"));
        assert!(!draft.finish().is_one_trust("cluster.local", "old.example"));
    }

    #[test]
    fn one_name_stands_for_an_account_under_all_names_of_the_mesh() {
        let plain = Snapshot::default();
        let mut draft = plain.draft();
        let domains = ["new.example", "old.example", "a.example"];
        draft.upsert_outbound_policy(&trust(&domains)).unwrap();
        let renamed = draft.finish();
        let account = |domain| Identity::new(domain, "shop", "cart");
        let stands = renamed.one_name(&account("new.example")).into_owned();
        assert!(renamed.mean_one(&stands, &account("new.example")));
        for domain in domains {
            assert_eq!(*renamed.one_name(&account(domain)), stands, "{domain}");
            let own = account(domain);
            assert_eq!(*plain.one_name(&own), own);
        }
        let other = account("other.example");
        assert_eq!(
            *renamed.one_name(&other),
            other,
            "it is no name of the mesh"
        );
        let one = renamed.one_name(&stands);
        assert!(matches!(one, Cow::Borrowed(_)), "nothing is made anew");
    }

    #[test]
    fn names_that_are_none_are_refused_and_change_nothing() {
        let mut draft = Snapshot::default().draft();
        draft.upsert_outbound_policy(&trust(&["a", "b"])).unwrap();
        assert!(draft.upsert_outbound_policy(&trust(&["a", ""])).is_err());
        assert!(draft.finish().is_one_trust("a", "b"));
    }
}
