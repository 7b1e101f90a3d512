//! Types that end in the [`Store`]: addresses and L4 policies, which every proxy takes, and
//! outbound policies, which our node proxies ask our control plane for.

use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::{isobar, istio, type_url};
use isobar_state::{Draft, convert};

use crate::handler::{Rejected, ResourceHandler, decode};
use crate::store::Store;

pub(crate) struct AddressHandler(pub(crate) Store);

pub(crate) struct AuthorizationHandler(pub(crate) Store);

/// Takes outbound policies into a [`Store`]: the one that addresses go to.
#[derive(Debug)]
pub struct OutboundPolicyHandler(pub Store);

impl ResourceHandler for OutboundPolicyHandler {
    fn type_url(&self) -> &'static str {
        type_url::OUTBOUND_POLICY
    }

    fn is_optional(&self) -> bool {
        true
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        apply(&self.0, updates, removed, upsert_outbound, |draft, name| {
            draft.remove_outbound_policy(name)
        })
    }
}

impl ResourceHandler for AddressHandler {
    fn type_url(&self) -> &'static str {
        type_url::ADDRESS
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        apply(&self.0, updates, removed, upsert_address, |draft, name| {
            draft.remove_address(name)
        })
    }
}

impl ResourceHandler for AuthorizationHandler {
    fn type_url(&self) -> &'static str {
        type_url::AUTHORIZATION
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        apply(&self.0, updates, removed, upsert_policy, |draft, name| {
            draft.remove_authorization(name)
        })
    }
}

/// One response is one version.
fn apply(
    store: &Store,
    updates: &[Resource],
    removed: &[String],
    upsert: fn(&mut Draft, &Resource) -> Result<(), String>,
    remove: fn(&mut Draft, &str) -> bool,
) -> Vec<Rejected> {
    let mut draft = store.load().draft();
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
    store.publish(draft.finish());
    rejected
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

fn named(resource: &Resource, content: &str) -> Result<(), String> {
    if resource.name == content {
        return Ok(());
    }
    Err(format!("the resource's content is named {content:?}"))
}
