use std::sync::Arc;

use isobar_types::{Identity, NamespacedName, Str};

use super::roster::Roster;
use crate::auth::Caller;

/// Who may ask for whose certificate.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// The only trust domain certificates are issued for.
    pub(crate) trust_domain: Str,
    /// Accounts that may ask on behalf of pods of their own node.
    pub(crate) node_accounts: Arc<[NamespacedName]>,
}

/// Why a certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The requested name is no identity.
    #[error("the requested identity is malformed: {0}")]
    Malformed(String),
    /// The requested identity is of another mesh.
    #[error("trust domain {asked:?} is not served here, only {ours:?}")]
    TrustDomain {
        /// Asked for.
        asked: Str,
        /// Served.
        ours: Str,
    },
    /// Only node proxies may ask for others.
    #[error("{caller} may only ask for its own certificate, not for {asked}")]
    NotANodeProxy {
        /// Who asked.
        caller: String,
        /// For whom.
        asked: String,
    },
    /// The token is not bound to a pod.
    #[error("the token is not bound to a pod, so the caller's node is not known")]
    Unbound,
    /// The pod the token is bound to is another one now.
    #[error("pod {pod} has UID {known}, the token was bound to {token}")]
    StaleToken {
        /// `namespace/name`.
        pod: String,
        /// UID of the pod now.
        known: Str,
        /// UID in the token.
        token: String,
    },
    /// The token contradicts what is known of its pod.
    #[error("pod {pod} runs {what} {known:?}, the token says {token:?}")]
    Contradiction {
        /// `namespace/name`.
        pod: String,
        /// `as` or `on`.
        what: &'static str,
        /// Known.
        known: Str,
        /// Claimed.
        token: String,
    },
    /// No pod of that account lives on the caller's node.
    #[error("no pod of account {account} runs on node {node:?}")]
    NotOnNode {
        /// `namespace/account`.
        account: String,
        /// The caller's node.
        node: String,
    },
}

impl Refusal {
    /// True when a pod that has just been created may change the answer.
    pub(crate) const fn may_pass_soon(&self) -> bool {
        matches!(self, Self::NotOnNode { .. } | Self::Unbound)
    }
}

impl Rules {
    /// The identity to certify for `caller`, who asked for `requested` (a SPIFFE URI) or, without
    /// one, for itself. Pure.
    pub(crate) fn authorise(
        &self,
        caller: &Caller,
        requested: Option<&str>,
        roster: &Roster,
    ) -> Result<Identity, Refusal> {
        let wanted = match requested {
            None => caller.identity.clone(),
            Some(text) => text
                .parse::<Identity>()
                .map_err(|error| Refusal::Malformed(error.to_string()))?,
        };
        if wanted.trust_domain != self.trust_domain {
            return Err(Refusal::TrustDomain {
                asked: wanted.trust_domain,
                ours: self.trust_domain.clone(),
            });
        }
        check_pod(caller, roster)?;
        if wanted == caller.identity {
            return Ok(wanted);
        }
        if !self.is_node(&caller.identity) {
            return Err(Refusal::NotANodeProxy {
                caller: caller.identity.to_string(),
                asked: wanted.to_string(),
            });
        }
        let node = node_of(caller, roster)?;
        if !roster.runs(&node, &wanted.namespace, &wanted.service_account) {
            return Err(Refusal::NotOnNode {
                account: format!("{}/{}", wanted.namespace, wanted.service_account),
                node,
            });
        }
        Ok(wanted)
    }

    fn is_node(&self, identity: &Identity) -> bool {
        self.node_accounts.iter().any(|account| {
            account.namespace == identity.namespace && account.name == identity.service_account
        })
    }
}

/// A token bound to a pod is worth nothing once that pod is another one. A pod that is not known
/// is no contradiction: node proxies need not be objects here.
fn check_pod(caller: &Caller, roster: &Roster) -> Result<(), Refusal> {
    let Some(bound) = &caller.pod else {
        return Ok(());
    };
    let Some(known) = roster.pod(&caller.identity.namespace, &bound.name) else {
        return Ok(());
    };
    let pod = || format!("{}/{}", caller.identity.namespace, bound.name);
    if !known.uid.is_empty() && *known.uid != *bound.uid {
        return Err(Refusal::StaleToken {
            pod: pod(),
            known: known.uid.clone(),
            token: bound.uid.clone(),
        });
    }
    if known.account != caller.identity.service_account {
        return Err(Refusal::Contradiction {
            pod: pod(),
            what: "as",
            known: known.account.clone(),
            token: caller.identity.service_account.to_string(),
        });
    }
    match &caller.node {
        Some(node) if !known.node.is_empty() && *known.node != **node => {
            Err(Refusal::Contradiction {
                pod: pod(),
                what: "on",
                known: known.node.clone(),
                token: node.clone(),
            })
        }
        _ => Ok(()),
    }
}

fn node_of(caller: &Caller, roster: &Roster) -> Result<String, Refusal> {
    let bound = caller.pod.as_ref().ok_or(Refusal::Unbound)?;
    if let Some(node) = &caller.node {
        return Ok(node.clone());
    }
    roster
        .pod(&caller.identity.namespace, &bound.name)
        .map(|pod| pod.node.to_string())
        .filter(|node| !node.is_empty())
        .ok_or(Refusal::Unbound)
}

#[cfg(test)]
mod tests {
    use super::super::roster::PodRecord;
    use super::*;
    use crate::auth::BoundPod;

    fn rules() -> Rules {
        Rules {
            trust_domain: "cluster.local".into(),
            node_accounts: vec![NamespacedName::parse("istio-system/ztunnel").unwrap()].into(),
        }
    }

    fn roster() -> Roster {
        let mut roster = Roster::default();
        let mut pod = |ns: &str, name: &str, uid: &str, node: &str, account: &str| {
            roster.insert(
                ns,
                name,
                PodRecord {
                    uid: uid.into(),
                    node: node.into(),
                    account: account.into(),
                },
            );
        };
        pod("istio-system", "ztunnel-1", "z1", "node-1", "ztunnel");
        pod("shop", "cart-1", "c1", "node-1", "cart");
        pod("shop", "pay-1", "p1", "node-2", "pay");
        pod("shop", "new-1", "n1", "", "new");
        roster
    }

    fn caller(ns: &str, account: &str, pod: Option<(&str, &str)>, node: Option<&str>) -> Caller {
        Caller {
            identity: Identity::new("cluster.local", ns, account),
            pod: pod.map(|(name, uid)| BoundPod {
                name: name.into(),
                uid: uid.into(),
            }),
            node: node.map(Into::into),
        }
    }

    fn ztunnel() -> Caller {
        caller(
            "istio-system",
            "ztunnel",
            Some(("ztunnel-1", "z1")),
            Some("node-1"),
        )
    }

    #[test]
    fn a_node_proxy_gets_identities_of_its_node() {
        let asked = "spiffe://cluster.local/ns/shop/sa/cart";
        let got = rules()
            .authorise(&ztunnel(), Some(asked), &roster())
            .unwrap();
        assert_eq!(got.to_string(), asked);
        // Without a node in the token, the pod tells it.
        let plain = caller("istio-system", "ztunnel", Some(("ztunnel-1", "z1")), None);
        assert!(rules().authorise(&plain, Some(asked), &roster()).is_ok());
        // A node proxy that is no object here is placed by its token.
        let unknown = caller("istio-system", "ztunnel", Some(("zt", "u")), Some("node-1"));
        assert!(rules().authorise(&unknown, Some(asked), &roster()).is_ok());
    }

    #[test]
    fn everything_else_is_refused() {
        let cart = "spiffe://cluster.local/ns/shop/sa/cart";
        let pay = "spiffe://cluster.local/ns/shop/sa/pay";
        let zt = |pod: Option<(&str, &str)>, node| caller("istio-system", "ztunnel", pod, node);
        let cases = [
            (
                ztunnel(),
                pay,
                "no pod of account shop/pay runs on node \"node-1\"",
            ),
            (
                ztunnel(),
                "spiffe://cluster.local/ns/shop/sa/new",
                "no pod of account",
            ),
            (
                ztunnel(),
                "spiffe://other/ns/shop/sa/cart",
                "trust domain \"other\"",
            ),
            (ztunnel(), "cluster.local/ns/shop/sa/cart", "malformed"),
            (ztunnel(), "", "malformed"),
            (zt(None, None), cart, "not bound to a pod"),
            (zt(Some(("gone", "x")), None), cart, "not bound to a pod"),
            (
                zt(Some(("ztunnel-1", "old")), Some("node-1")),
                cart,
                "has UID z1",
            ),
            (
                zt(Some(("ztunnel-1", "z1")), Some("node-2")),
                pay,
                "runs on \"node-1\"",
            ),
            (
                caller("shop", "pay", Some(("pay-1", "p1")), Some("node-2")),
                cart,
                "only ask for its own",
            ),
            (
                caller("shop", "ztunnel", None, Some("node-1")),
                cart,
                "only ask for its own",
            ),
            (
                caller("shop", "cart", Some(("pay-1", "p1")), None),
                pay,
                "runs as \"pay\"",
            ),
        ];
        for (caller, asked, expect) in cases {
            let result = rules().authorise(&caller, Some(asked), &roster());
            let text = result.expect_err(asked).to_string();
            assert!(text.contains(expect), "{text:?} should say {expect:?}");
        }
    }

    #[test]
    fn anybody_may_have_their_own() {
        let pay = caller("shop", "pay", Some(("pay-1", "p1")), Some("node-2"));
        let own = rules().authorise(&pay, None, &roster()).unwrap();
        assert_eq!(own, pay.identity);
        let named = rules().authorise(&pay, Some(&own.to_string()), &roster());
        assert_eq!(named.unwrap(), own);
        let stale = caller("shop", "pay", Some(("pay-1", "before")), Some("node-2"));
        assert!(matches!(
            rules().authorise(&stale, None, &roster()),
            Err(Refusal::StaleToken { .. })
        ));
    }
}
