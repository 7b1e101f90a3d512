//! Discovery of what only waypoints need, compiled into [`Tables`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::{isobar::v1 as proto, type_url};
use isobar_route::{Draft, Tables};
use isobar_xds::{Rejected, ResourceHandler, decode};
use tokio::sync::watch;

/// The newest tables. Cheap to clone; readers never wait.
#[derive(Debug, Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tables: ArcSwap<Tables>,
    /// Where the newest are in memory.
    newest: AtomicUsize,
    version: watch::Sender<u64>,
}

impl Default for Feed {
    fn default() -> Self {
        let tables = Arc::new(Tables::default());
        Self {
            shared: Arc::new(Shared {
                newest: AtomicUsize::new(Arc::as_ptr(&tables).addr()),
                tables: ArcSwap::new(tables),
                version: watch::Sender::new(0),
            }),
        }
    }
}

impl Feed {
    /// The newest tables.
    #[must_use]
    pub fn load(&self) -> Arc<Tables> {
        self.shared.tables.load_full()
    }

    /// As [`isobar_xds::Store::is_newest`].
    pub(crate) fn is_newest(&self, tables: &Arc<Tables>) -> bool {
        self.shared.newest.load(Ordering::Acquire) == Arc::as_ptr(tables).addr()
    }

    /// Version of the newest tables; changes after they are in place.
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Puts the next tables in place; one writer only (the discovery client, or a test).
    pub fn publish(&self, tables: Tables) {
        let version = tables.version();
        let tables = Arc::new(tables);
        let place = Arc::as_ptr(&tables).addr();
        self.shared.tables.store(tables);
        self.shared.newest.store(place, Ordering::Release);
        self.shared.version.send_replace(version);
    }

    /// One handler for each resource type that only waypoints take.
    #[must_use]
    pub fn handlers(&self) -> Vec<Box<dyn ResourceHandler>> {
        // Policies first: a route must not be usable before the policy on its service is there.
        let kinds = [
            Kind::Policy,
            Kind::Waypoint,
            Kind::RateLimits,
            Kind::Labels,
            Kind::DestinationRule,
            Kind::VirtualService,
        ];
        kinds
            .into_iter()
            .map(|kind| {
                Box::new(Handler {
                    kind,
                    feed: self.clone(),
                    described: Vec::new(),
                }) as Box<dyn ResourceHandler>
            })
            .collect()
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Policy,
    Waypoint,
    RateLimits,
    Labels,
    DestinationRule,
    VirtualService,
}

struct Handler {
    kind: Kind,
    feed: Feed,
    /// Descriptions of this waypoint by name, the one in force last. When its name changes there are
    /// two for a while: the new one comes before the old one goes.
    described: Vec<(String, proto::Waypoint)>,
}

impl ResourceHandler for Handler {
    fn type_url(&self) -> &'static str {
        match self.kind {
            Kind::Policy => type_url::WAYPOINT_AUTHORIZATION,
            Kind::Waypoint => type_url::WAYPOINT,
            Kind::RateLimits => type_url::RATE_LIMIT_POLICY,
            Kind::Labels => type_url::WORKLOAD_LABELS,
            Kind::DestinationRule => type_url::DESTINATION_RULE,
            Kind::VirtualService => type_url::VIRTUAL_SERVICE,
        }
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        let mut draft = self.feed.load().draft();
        // Removals first: a new description of the waypoint may come together with the removal
        // of its old name.
        for name in removed {
            self.remove(&mut draft, name);
        }
        let mut rejected = Vec::new();
        for resource in updates {
            if let Err(reason) = self.upsert(&mut draft, resource) {
                let name = resource.name.clone();
                tracing::warn!(name, "a resource is not usable: {reason}");
                rejected.push(Rejected { name, reason });
            }
        }
        self.feed.publish(draft.finish());
        rejected
    }
}

impl Handler {
    fn upsert(&mut self, draft: &mut Draft, resource: &Resource) -> Result<(), String> {
        match self.kind {
            Kind::Policy => {
                let message: proto::Authorization = decode(resource)?;
                named(resource, &message.namespace, &message.name)?;
                draft.upsert_policy(&message);
                Ok(())
            }
            Kind::Waypoint => {
                let message: proto::Waypoint = decode(resource)?;
                draft.set_waypoint(&message).map_err(|e| e.to_string())?;
                self.described.retain(|(name, _)| *name != resource.name);
                self.described.push((resource.name.clone(), message));
                Ok(())
            }
            Kind::RateLimits => {
                let message: proto::RateLimitPolicy = decode(resource)?;
                named(resource, &message.namespace, &message.name)?;
                draft
                    .upsert_rate_limits(&message)
                    .map_err(|e| e.to_string())
            }
            Kind::Labels => {
                let message: proto::WorkloadLabels = decode(resource)?;
                if message.uid != resource.name {
                    return Err(format!("the content is about {:?}", message.uid));
                }
                draft.upsert_labels(&message);
                Ok(())
            }
            Kind::DestinationRule => {
                let message: proto::DestinationRule = decode(resource)?;
                named(resource, &message.namespace, &message.name)?;
                draft
                    .upsert_destination_rule(&message)
                    .map_err(|e| e.to_string())
            }
            Kind::VirtualService => {
                let message: proto::VirtualService = decode(resource)?;
                named(resource, &message.namespace, &message.name)?;
                draft
                    .upsert_virtual_service(&message)
                    .map_err(|e| e.to_string())
            }
        }
    }

    fn remove(&mut self, draft: &mut Draft, name: &str) {
        match self.kind {
            Kind::Policy => draft.remove_policy(name),
            Kind::Waypoint => self.undescribe(draft, name),
            Kind::RateLimits => draft.remove_rate_limits(name),
            Kind::Labels => draft.remove_labels(name),
            Kind::DestinationRule => draft.remove_destination_rule(name),
            Kind::VirtualService => draft.remove_virtual_service(name),
        }
    }

    /// Forgets the description of that name, no other: what is in force under another one stays.
    fn undescribe(&mut self, draft: &mut Draft, name: &str) {
        let in_force = self.described.last().is_some_and(|(last, _)| last == name);
        self.described.retain(|(known, _)| known != name);
        if !in_force {
            return;
        }
        draft.clear_waypoint();
        if let Some((name, rest)) = self.described.last()
            && let Err(error) = draft.set_waypoint(rest)
        {
            // Not to be: it was usable when it came.
            tracing::warn!(name, "the description that is left is not usable: {error}");
        }
    }
}

/// A resource under a foreign name could never be removed again.
fn named(resource: &Resource, namespace: &str, name: &str) -> Result<(), String> {
    let content = format!("{namespace}/{name}");
    if resource.name == content {
        return Ok(());
    }
    Err(format!("the resource's content is named {content:?}"))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::Any;

    use super::*;

    fn described(name: &str) -> Resource {
        let message = proto::Waypoint {
            namespace: "ns".into(),
            name: name.into(),
            traffic: proto::waypoint::Traffic::All.into(),
            ..proto::Waypoint::default()
        };
        Resource {
            name: format!("ns/{name}"),
            resource: Some(Any {
                type_url: type_url::WAYPOINT.into(),
                value: message.encode_to_vec(),
            }),
            ..Resource::default()
        }
    }

    #[test]
    fn only_the_description_of_that_name_is_removed() {
        let feed = Feed::default();
        let mut handlers = feed.handlers();
        let handler = handlers
            .iter_mut()
            .find(|one| one.type_url() == type_url::WAYPOINT)
            .unwrap();
        let known = || feed.load().waypoint().map(|own| own.name.name.to_string());
        let mut step = |updates: &[&str], removed: &[&str]| {
            let updates: Vec<_> = updates.iter().map(|name| described(name)).collect();
            let removed: Vec<_> = removed.iter().map(|name| format!("ns/{name}")).collect();
            assert!(handler.apply(&updates, &removed).is_empty());
            known()
        };
        assert_eq!(step(&["old"], &[]).as_deref(), Some("old"));
        // The new name comes first, and the old one is removed later.
        assert_eq!(step(&["new"], &[]).as_deref(), Some("new"));
        assert_eq!(step(&[], &["old"]).as_deref(), Some("new"));
        // Both at once.
        assert_eq!(step(&["newer"], &["new"]).as_deref(), Some("newer"));
        // There and back again, before the first was removed.
        assert_eq!(step(&["other"], &[]).as_deref(), Some("other"));
        assert_eq!(step(&[], &["other"]).as_deref(), Some("newer"));
        assert_eq!(step(&[], &["unknown"]).as_deref(), Some("newer"));
        assert_eq!(step(&[], &["newer"]), None);
    }
}
