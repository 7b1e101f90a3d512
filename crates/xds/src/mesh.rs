//! Types that end in the [`Store`]: addresses and L4 policies, which every proxy takes, and
//! outbound policies, which our node proxies ask our control plane for.

use std::collections::BTreeSet;

use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::{isobar, istio, type_url};
use isobar_state::{Draft, Interner, convert};
use isobar_types::{NamespacedName, Str};

use crate::handler::{Rejected, ResourceHandler, decode};
use crate::store::Store;

pub(crate) struct AddressHandler(Writer);

pub(crate) struct AuthorizationHandler {
    writer: Writer,
    /// Names of unreadable policies whose place is taken by one that refuses. They are not held, so
    /// the server does not tell of their removal to a new stream.
    stand_ins: BTreeSet<String>,
    first_of_stream: bool,
}

impl AddressHandler {
    pub(crate) fn new(store: Store) -> Self {
        Self(Writer::new(store))
    }
}

impl AuthorizationHandler {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            writer: Writer::new(store),
            stand_ins: BTreeSet::new(),
            first_of_stream: true,
        }
    }
}

/// Takes outbound policies into a [`Store`]: the one that addresses go to.
pub struct OutboundPolicyHandler {
    writer: Writer,
    upsert: fn(&mut Draft, &Resource) -> Result<(), String>,
}

impl OutboundPolicyHandler {
    /// A handler that feeds `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            writer: Writer::new(store),
            upsert: upsert_outbound,
        }
    }

    /// A handler that keeps nothing of them but the names of the mesh: for a proxy that no workload's
    /// calls leave by.
    #[must_use]
    pub fn trust_only(store: Store) -> Self {
        Self {
            writer: Writer::new(store),
            upsert: upsert_trust,
        }
    }
}

impl ResourceHandler for OutboundPolicyHandler {
    fn type_url(&self) -> &'static str {
        type_url::OUTBOUND_POLICY
    }

    fn is_optional(&self) -> bool {
        true
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        self.writer
            .apply(updates, removed, self.upsert, |draft, name| {
                draft.remove_outbound_policy(name)
            })
    }
}

impl ResourceHandler for AddressHandler {
    fn type_url(&self) -> &'static str {
        type_url::ADDRESS
    }

    fn stored_name(&self, name: &str) -> Option<Str> {
        let snapshot = self.0.store.load();
        snapshot.workload_by_uid(name).map(|w| w.uid.clone())
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        self.0
            .apply(updates, removed, upsert_address, |draft, name| {
                draft.remove_address(name)
            })
    }
}

impl ResourceHandler for AuthorizationHandler {
    fn type_url(&self) -> &'static str {
        type_url::AUTHORIZATION
    }

    fn stream_opened(&mut self) {
        self.first_of_stream = true;
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        let mut removed = removed.to_vec();
        if std::mem::take(&mut self.first_of_stream) {
            // What is still meant has been sent again.
            let sent: BTreeSet<_> = updates.iter().map(|r| &r.name).collect();
            let gone = self.stand_ins.iter().filter(|name| !sent.contains(name));
            removed.extend(gone.cloned());
        }
        let before = self.writer.store.load();
        let known = |name: &str| {
            NamespacedName::parse(name).is_some_and(|key| before.authorization(&key).is_some())
        };
        let rejected = self
            .writer
            .apply(updates, &removed, upsert_policy, |draft, name| {
                draft.remove_authorization(name)
            });
        let bad: BTreeSet<_> = rejected.iter().map(|r| &r.name).collect();
        for resource in updates {
            if !bad.contains(&resource.name) {
                self.stand_ins.remove(&resource.name);
            } else if !known(&resource.name) {
                self.stand_ins.insert(resource.name.clone());
            }
        }
        for name in &removed {
            self.stand_ins.remove(name);
        }
        rejected
    }
}

/// Makes the next snapshot of a store.
struct Writer {
    store: Store,
    interner: Interner,
}

impl Writer {
    fn new(store: Store) -> Self {
        Self {
            store,
            interner: Interner::default(),
        }
    }

    /// One response is one version.
    fn apply(
        &mut self,
        updates: &[Resource],
        removed: &[String],
        upsert: fn(&mut Draft, &Resource) -> Result<(), String>,
        remove: fn(&mut Draft, &str) -> bool,
    ) -> Vec<Rejected> {
        let interner = std::mem::take(&mut self.interner);
        let mut draft = self.store.load().draft_with(interner);
        let mut rejected = Vec::new();
        for resource in updates {
            if let Err(reason) = upsert(&mut draft, resource) {
                let name = resource.name.clone();
                rejected.push(Rejected { name, reason });
            }
        }
        for name in removed {
            if !remove(&mut draft, name) {
                tracing::debug!(name, "a resource to be removed was not there");
            }
        }
        for warning in draft.take_warnings() {
            tracing::warn!("{warning}");
        }
        let (snapshot, interner) = draft.finish_with();
        self.store.publish(snapshot);
        self.interner = interner;
        rejected
    }
}

fn upsert_address(draft: &mut Draft, resource: &Resource) -> Result<(), String> {
    let address: istio::workload::Address = decode(resource)?;
    // A resource under a foreign name could never be removed again.
    named(resource, &convert::address_name(&address))?;
    draft.upsert_address(&address).map_err(|e| e.to_string())
}

fn upsert_policy(draft: &mut Draft, resource: &Resource) -> Result<(), String> {
    let policy: istio::security::Authorization = decode(resource)?;
    named(resource, &format!("{}/{}", policy.namespace, policy.name))?;
    draft
        .upsert_authorization(&policy)
        .map_err(|e| e.to_string())
}

fn upsert_outbound(draft: &mut Draft, resource: &Resource) -> Result<(), String> {
    let policy: isobar::v1::OutboundPolicy = decode(resource)?;
    named(resource, &convert::outbound_policy_name(&policy))?;
    draft
        .upsert_outbound_policy(&policy)
        .map_err(|e| e.to_string())
}

fn upsert_trust(draft: &mut Draft, resource: &Resource) -> Result<(), String> {
    use isobar::v1::outbound_policy::Kind;

    let policy: isobar::v1::OutboundPolicy = decode(resource)?;
    match policy.kind {
        Some(Kind::Trust(_)) => upsert_outbound(draft, resource),
        _ => Ok(()),
    }
}

fn named(resource: &Resource, content: &str) -> Result<(), String> {
    if resource.name == content {
        return Ok(());
    }
    Err(format!("the resource's content is named {content:?}"))
}
