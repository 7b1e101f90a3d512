use std::hash::Hash;
use std::sync::Arc;

use isobar_proto::isobar::v1 as isobar;
use isobar_proto::istio;
use isobar_types::{NamespacedHostname, NamespacedName, NetworkAddress};

use crate::convert::{self, Address, ConvertError, Interner};
use crate::egress::OutboundPolicy;
use crate::policy::{Authorization, PolicyScope};
use crate::service::{Endpoint, Service};
use crate::sharded::Sharded;
use crate::slots::{Addressed, At, OfHost};
use crate::snapshot::{ByName, ByUid, Group, Snapshot, address_rank};
use crate::workload::{Ending, Workload};

/// The next version of a [`Snapshot`] in the making. What is not changed stays shared.
#[derive(Debug)]
pub struct Draft {
    next: Snapshot,
    decisions_changed: bool,
    interner: Interner,
    warnings: Vec<String>,
}

impl Draft {
    pub(crate) fn new(base: Snapshot, interner: Interner) -> Self {
        Self {
            next: base,
            decisions_changed: false,
            interner,
            warnings: Vec::new(),
        }
    }

    /// Adds or replaces a workload or service.
    ///
    /// # Errors
    /// When a field cannot be understood; the object's previous version stays.
    pub fn upsert_address(
        &mut self,
        address: &istio::workload::Address,
    ) -> Result<(), ConvertError> {
        match convert::address(address, &mut self.interner, &mut self.warnings)? {
            Address::Workload(workload) => self.put_workload(*workload),
            Address::Service(service) => self.put_service(*service),
        }
        Ok(())
    }

    /// Adds or replaces a policy.
    ///
    /// # Errors
    /// When a field cannot be understood. The policy's previous version stays; if there is none, one
    /// that refuses everything the policy applies to takes its place.
    pub fn upsert_authorization(
        &mut self,
        policy: &istio::security::Authorization,
    ) -> Result<(), ConvertError> {
        let error = match convert::authorization(policy, &mut self.interner) {
            Ok(policy) => {
                self.put_authorization(policy);
                return Ok(());
            }
            Err(error) => error,
        };
        if let Some(closed) = convert::closed(policy, &mut self.interner)
            && self.next.policies.get(&closed.key).is_none()
        {
            self.warnings.push(format!(
                "policy {} cannot be read and no earlier version of it is known: until it is \
                 corrected, what it applies to is refused",
                closed.key
            ));
            self.put_authorization(closed);
        }
        Err(error)
    }

    /// The policy of that key, as of now.
    #[must_use]
    pub fn authorization(&self, key: &NamespacedName) -> Option<&Arc<Authorization>> {
        self.next.policies.get(key)
    }

    /// Adds or replaces an outbound policy.
    ///
    /// # Errors
    /// When a field cannot be understood; the policy's previous version stays.
    pub fn upsert_outbound_policy(
        &mut self,
        policy: &isobar::OutboundPolicy,
    ) -> Result<(), ConvertError> {
        let policy = convert::outbound_policy(policy, &mut self.interner)?;
        let all = Arc::make_mut(&mut self.next.outbound);
        match policy {
            OutboundPolicy::Egress {
                namespace,
                registry_only,
            } => {
                let before = all.registry_only.insert(namespace, registry_only);
                self.decisions_changed |= before != Some(registry_only);
            }
            OutboundPolicy::Limits { service, limits } => {
                all.limits.insert(service, limits);
            }
            OutboundPolicy::Trust(names) => {
                self.decisions_changed |= all.trust != names;
                all.trust = names;
            }
        }
        Ok(())
    }

    /// Removes an outbound policy by resource name. Returns whether there was one.
    pub fn remove_outbound_policy(&mut self, name: &str) -> bool {
        let all = Arc::make_mut(&mut self.next.outbound);
        match name.split_once('/') {
            Some(("egress", namespace)) => {
                let had = all.registry_only.remove(namespace).is_some();
                self.decisions_changed |= had;
                had
            }
            Some(("limits", service)) => NamespacedHostname::parse(service)
                .is_some_and(|service| all.limits.remove(&service).is_some()),
            Some(("trust", "")) => {
                let had = !std::mem::take(&mut all.trust).is_empty();
                self.decisions_changed |= had;
                had
            }
            _ => false,
        }
    }

    /// Removes a workload by uid, or else a service by `namespace/hostname`. Returns whether there
    /// was one.
    pub fn remove_address(&mut self, name: &str) -> bool {
        if self.take_workload(name).is_some() {
            return true;
        }
        NamespacedHostname::parse(name).is_some_and(|key| self.take_service(&key).is_some())
    }

    /// Removes a policy by `namespace/name`. Returns whether there was one.
    pub fn remove_authorization(&mut self, name: &str) -> bool {
        NamespacedName::parse(name).is_some_and(|key| self.take_authorization(&key).is_some())
    }

    /// Adds or replaces a workload.
    pub fn put_workload(&mut self, mut workload: Workload) {
        if self.next.workloads.get(&*workload.uid).map(|w| &**w) == Some(&workload) {
            return;
        }
        let old = self.take_workload_entry(&workload.uid);
        if let Some(old) = old {
            self.decisions_changed |= !decides_alike(&old, &workload);
            // Stored once, also where others hold the key for longer than the workload.
            workload.uid = Arc::clone(&old.uid);
            workload.name = Ending::of(&old.uid, &workload.name);
        }
        let workload = Arc::new(workload);
        let next = &mut self.next;
        for address in workload.network_addresses() {
            at_insert(&mut next.by_address, &address, &workload, address_rank);
        }
        for address in workload.host_addresses() {
            *next.on_hosts.entry(&address) += 1;
        }
        if !workload.hostname.is_empty() {
            let key = hostname_key(&workload);
            group_insert(&mut next.by_workload_hostname, &key, &workload, |w| {
                w.uid.clone()
            });
        }
        Arc::make_mut(next.by_node.entry(&workload.node)).insert(ByName(Arc::clone(&workload)));
        for (service, ports) in workload.services.iter() {
            let endpoint = Endpoint {
                workload: Arc::clone(&workload),
                ports: ports.clone(),
            };
            Arc::make_mut(next.endpoints.entry(service)).insert(ByUid(endpoint));
        }
        next.workloads.put(workload);
    }

    fn take_workload(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let old = self.take_workload_entry(uid);
        self.decisions_changed |= old.is_some();
        old
    }

    fn take_workload_entry(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let next = &mut self.next;
        let old = next.workloads.remove(uid)?;
        for address in old.network_addresses() {
            at_remove(&mut next.by_address, &address, |w| w.uid == old.uid);
        }
        for address in old.host_addresses() {
            let count = next.on_hosts.entry(&address);
            *count = count.saturating_sub(1);
            if *count == 0 {
                next.on_hosts.remove(&address);
            }
        }
        if !old.hostname.is_empty() {
            let key = hostname_key(&old);
            group_remove(&mut next.by_workload_hostname, &key, |w| w.uid == old.uid);
        }
        let on_node = Arc::make_mut(next.by_node.entry(&old.node));
        on_node.remove(&ByName(Arc::clone(&old)));
        if on_node.is_empty() {
            next.by_node.remove(&old.node);
        }
        for service in old.services.keys() {
            let endpoints = Arc::make_mut(next.endpoints.entry(service));
            endpoints.remove(&*old.uid);
            if endpoints.is_empty() {
                next.endpoints.remove(service);
            }
        }
        Some(old)
    }

    /// Adds or replaces a service.
    pub fn put_service(&mut self, service: Service) {
        if self.next.services.get(&service.key).map(|s| &**s) == Some(&service) {
            return;
        }
        self.take_service(&service.key);
        let service = Arc::new(service);
        let next = &mut self.next;
        let rank = |s: &Service| s.key.clone();
        for vip in &service.vips {
            at_insert(&mut next.by_vip, vip, &service, rank);
        }
        let others = next.by_hostname.get(&*service.key.hostname);
        let group = with(others.map(|of_host| &of_host.0[..]), &service, rank);
        next.by_hostname.put(OfHost(group));
        for range in &service.cidr_vips {
            group_insert(&mut next.ranges.services, range, &service, rank);
            next.ranges.count(&range.0, range.1);
        }
        next.services.put(service);
        self.decisions_changed = true;
    }

    fn take_service(&mut self, key: &NamespacedHostname) -> Option<Arc<Service>> {
        let next = &mut self.next;
        let old = next.services.remove(key)?;
        for vip in &old.vips {
            at_remove(&mut next.by_vip, vip, |s| s.key == *key);
        }
        if let Some(OfHost(group)) = next.by_hostname.get(&*key.hostname) {
            match without(group, |s| s.key == *key) {
                Some(rest) => drop(next.by_hostname.put(OfHost(rest))),
                None => drop(next.by_hostname.remove(&*key.hostname)),
            }
        }
        for range in &old.cidr_vips {
            group_remove(&mut next.ranges.services, range, |s| s.key == *key);
            next.ranges.discount(&range.0, range.1);
        }
        self.decisions_changed = true;
        Some(old)
    }

    /// Adds or replaces a policy.
    pub fn put_authorization(&mut self, policy: Authorization) {
        if self.next.policies.get(&policy.key).map(|p| &**p) == Some(&policy) {
            return;
        }
        self.take_authorization(&policy.key);
        let policy = Arc::new(policy);
        let next = &mut self.next;
        let group = match policy.scope {
            PolicyScope::Global => Some(&mut next.global_policies),
            PolicyScope::Namespace => Some(next.namespace_policies.entry(&policy.key.namespace)),
            PolicyScope::WorkloadSelector => None,
        };
        if let Some(group) = group {
            Arc::make_mut(group).insert(&policy);
        }
        next.policies.put(policy);
        self.decisions_changed = true;
    }

    fn take_authorization(&mut self, key: &NamespacedName) -> Option<Arc<Authorization>> {
        let next = &mut self.next;
        let old = next.policies.remove(key)?;
        match old.scope {
            PolicyScope::Global => {
                Arc::make_mut(&mut next.global_policies).remove(&old);
            }
            PolicyScope::Namespace => {
                let group = Arc::make_mut(next.namespace_policies.entry(&key.namespace));
                group.remove(&old);
                if group.is_empty() {
                    next.namespace_policies.remove(&key.namespace);
                }
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.decisions_changed = true;
        Some(old)
    }

    /// What was odd but accepted since the last call; for the log.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The snapshot, one version later.
    #[must_use]
    pub fn finish(self) -> Snapshot {
        self.finish_with().0
    }

    /// As [`Self::finish`]; gives back the strings for the next draft.
    #[must_use]
    pub fn finish_with(mut self) -> (Snapshot, Interner) {
        self.next.version += 1;
        if self.decisions_changed {
            self.next.policy_version = self.next.version;
        }
        self.interner.sweep();
        (self.next, self.interner)
    }
}

/// True if a change from one to the other leaves every answer of [`crate::authorize()`] as it was.
fn decides_alike(a: &Workload, b: &Workload) -> bool {
    a.authorization_policies == b.authorization_policies
        && a.waypoint == b.waypoint
        && a.services == b.services
        && a.namespace == b.namespace
        && a.identity() == b.identity()
        && a.addresses == b.addresses
        && a.hostname == b.hostname
}

fn hostname_key(workload: &Workload) -> NamespacedHostname {
    NamespacedHostname {
        namespace: workload.namespace.clone(),
        hostname: workload.hostname.clone(),
    }
}

fn with<T, R: Ord>(group: Option<&[Arc<T>]>, item: &Arc<T>, rank: impl Fn(&T) -> R) -> Group<T> {
    let mut all: Vec<_> = group.unwrap_or_default().to_vec();
    let at = all.partition_point(|other| rank(other) < rank(item));
    all.insert(at, Arc::clone(item));
    all.into()
}

fn without<T>(group: &[Arc<T>], is_it: impl Fn(&T) -> bool) -> Option<Group<T>> {
    let rest: Vec<_> = group.iter().filter(|item| !is_it(item)).cloned().collect();
    (!rest.is_empty()).then(|| rest.into())
}

fn group_insert<K: Hash + Eq + Clone, T, R: Ord>(
    map: &mut Sharded<(K, Group<T>)>,
    key: &K,
    item: &Arc<T>,
    rank: impl Fn(&T) -> R,
) {
    let group = with(map.value(key).map(|g| &g[..]), item, rank);
    map.put((key.clone(), group));
}

fn group_remove<K: Hash + Eq + Clone, T>(
    map: &mut Sharded<(K, Group<T>)>,
    key: &K,
    is_it: impl Fn(&T) -> bool,
) {
    let Some(group) = map.value(key) else { return };
    match without(group, is_it) {
        Some(rest) => drop(map.put((key.clone(), rest))),
        None => drop(map.remove(key)),
    }
}

fn at_insert<T: Addressed, R: Ord>(
    map: &mut Sharded<At<T>>,
    key: &NetworkAddress,
    item: &Arc<T>,
    rank: impl Fn(&T) -> R,
) {
    let others = map.get(key).map(|at| &at.group()[..]);
    if let Some(at) = At::new(with(others, item, rank), key) {
        map.put(at);
    }
}

fn at_remove<T: Addressed>(
    map: &mut Sharded<At<T>>,
    key: &NetworkAddress,
    is_it: impl Fn(&T) -> bool,
) {
    let Some(at) = map.get(key) else { return };
    let rest = without(at.group(), is_it);
    match rest.and_then(|rest| At::new(rest, key)) {
        Some(at) => drop(map.put(at)),
        None => drop(map.remove(key)),
    }
}

#[cfg(test)]
mod tests;
