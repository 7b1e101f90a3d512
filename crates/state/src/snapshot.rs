use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use isobar_types::{NamespacedHostname, NamespacedName, NetworkAddress, Str};

use crate::convert::Interner;
use crate::draft::Draft;
use crate::egress::OutboundPolicies;
use crate::policy::Authorization;
use crate::policy_group::PolicyGroup;
use crate::ranges::Ranges;
use crate::service::{Endpoint, Service};
use crate::sharded::Sharded;
use crate::slots::{At, OfHost};
use crate::workload::{Few, TunnelProtocol, Workload};

/// Several objects under one key, in a fixed order.
pub(crate) type Group<T> = Few<Arc<T>>;
/// Endpoints of one service by workload uid.
pub(crate) type EndpointMap = BTreeSet<ByUid>;
/// Workloads of one node by namespace, name and uid.
pub(crate) type NodeMap = BTreeSet<ByName>;

/// An endpoint, ordered by its workload's uid without a copy of it.
#[derive(Debug, Clone)]
pub(crate) struct ByUid(pub(crate) Endpoint);

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        &self.0.workload.uid
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.workload.uid == other.0.workload.uid
    }
}

impl Eq for ByUid {}

impl PartialOrd for ByUid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByUid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.workload.uid.cmp(&other.0.workload.uid)
    }
}

/// A workload, ordered by namespace, name and uid without copies of them.
#[derive(Debug, Clone)]
pub(crate) struct ByName(pub(crate) Arc<Workload>);

/// What workloads of a node are ordered by; also a place among them to start from.
pub(crate) trait Placed {
    fn place(&self) -> (&str, &str, &str);
}

impl Placed for ByName {
    fn place(&self) -> (&str, &str, &str) {
        (&self.0.namespace, &self.0.name, &self.0.uid)
    }
}

impl Placed for (&str, &str, &str) {
    fn place(&self) -> (&str, &str, &str) {
        *self
    }
}

impl<'a> Borrow<dyn Placed + 'a> for ByName {
    fn borrow(&self) -> &(dyn Placed + 'a) {
        self
    }
}

impl PartialEq for dyn Placed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Placed + '_ {}

impl PartialOrd for dyn Placed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Placed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for ByName {}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

/// Whether a bound workload refuses traffic that did not come through its waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Traversal {
    /// It does: a policy of the waypoint is never skipped.
    #[default]
    Required,
    /// It does not, as Istio's own ztunnel: for a control plane that sends calls to services
    /// without a waypoint straight to pods that have one.
    Trusted,
}

/// One immutable version of the mesh. Cloning copies a few pointers.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(crate) version: u64,
    pub(crate) policy_version: u64,
    pub(crate) traversal: Traversal,
    pub(crate) workloads: Sharded<Arc<Workload>>,
    pub(crate) by_address: Sharded<At<Workload>>,
    /// How many workloads use the network of the host at an address.
    pub(crate) on_hosts: Sharded<(NetworkAddress, u32)>,
    pub(crate) by_node: Sharded<(Str, Arc<NodeMap>)>,
    pub(crate) by_workload_hostname: Sharded<(NamespacedHostname, Group<Workload>)>,
    pub(crate) services: Sharded<Arc<Service>>,
    pub(crate) by_vip: Sharded<At<Service>>,
    pub(crate) ranges: Ranges,
    pub(crate) by_hostname: Sharded<OfHost>,
    pub(crate) endpoints: Sharded<(NamespacedHostname, Arc<EndpointMap>)>,
    pub(crate) policies: Sharded<Arc<Authorization>>,
    pub(crate) namespace_policies: Sharded<(Str, Arc<PolicyGroup>)>,
    pub(crate) global_policies: Arc<PolicyGroup>,
    pub(crate) outbound: Arc<OutboundPolicies>,
}

/// What an address belongs to.
#[derive(Debug, Clone)]
pub enum AddressObject<'a> {
    /// A workload.
    Workload(&'a Arc<Workload>),
    /// A service.
    Service(&'a Arc<Service>),
}

impl Snapshot {
    /// The empty mesh, version 0.
    #[must_use]
    pub fn empty(traversal: Traversal) -> Self {
        Self {
            traversal,
            ..Self::default()
        }
    }

    /// Starts the next version.
    #[must_use]
    pub fn draft(&self) -> Draft {
        self.draft_with(Interner::default())
    }

    /// As [`Self::draft`], with the strings of earlier drafts: a writer that goes on for days keeps
    /// them, or each small change would store its names anew.
    #[must_use]
    pub fn draft_with(&self, interner: Interner) -> Draft {
        Draft::new(self.clone(), interner)
    }

    /// Grows by one with each finished draft.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The version in which a decision of [`crate::authorize()`] may last have changed: open
    /// connections need a new look only when this number has changed.
    #[must_use]
    pub const fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// The workload with that uid.
    #[must_use]
    pub fn workload_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The preferred workload at an address: a pod in the mesh, a pod, one in the mesh, any other.
    #[must_use]
    pub fn workload_by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads_at(address).first()
    }

    /// All workloads at an address, the preferred one first; those on the host's network are not
    /// found by address.
    #[must_use]
    pub fn workloads_at(&self, address: &NetworkAddress) -> &[Arc<Workload>] {
        self.by_address
            .get(address)
            .map_or(&[], |at| &at.group()[..])
    }

    /// True for addresses of the mesh's own: of a workload, of a host that workloads use the network
    /// of, or of a service, whoever may see it.
    #[must_use]
    pub fn has_address(&self, address: &NetworkAddress) -> bool {
        self.by_address.get(address).is_some()
            || self.on_hosts.get(address).is_some()
            || self.by_vip.get(address).is_some()
    }

    /// Workloads of that host name and namespace.
    #[must_use]
    pub fn workloads_by_hostname(&self, key: &NamespacedHostname) -> &[Arc<Workload>] {
        self.by_workload_hostname
            .value(key)
            .map_or(&[], |group| &group[..])
    }

    /// The service of a virtual address, as a client in `client_namespace` sees it: its own
    /// namespace's, the canonical one, the first by namespace; then address ranges.
    #[must_use]
    pub fn service_by_vip(
        &self,
        address: &NetworkAddress,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let exact = self
            .by_vip
            .get(address)
            .map_or(&[][..], |at| &at.group()[..]);
        best_service(exact, client_namespace)
            .or_else(|| self.service_by_range(address, client_namespace))
    }

    fn service_by_range(
        &self,
        address: &NetworkAddress,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.ranges
            .covering(address)
            .filter_map(|(length, group)| Some((length, best_service(group, client_namespace)?)))
            .max_by_key(|(length, service)| {
                let home = client_namespace == Some(&*service.key.namespace);
                (home, *length, service.canonical)
            })
            .map(|(_, service)| service)
    }

    /// The service of that key.
    #[must_use]
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Services of a host name, one a namespace, ordered by namespace.
    #[must_use]
    pub fn services_by_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname
            .get(hostname)
            .map_or(&[], |of_host| &of_host.0[..])
    }

    /// The service a client in `client_namespace` means by a host name.
    #[must_use]
    pub fn service_by_hostname(
        &self,
        hostname: &str,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        best_service(self.services_by_hostname(hostname), client_namespace)
    }

    /// What an address belongs to, workloads first: the answer to "is this a service?".
    #[must_use]
    pub fn object_at(
        &self,
        address: &NetworkAddress,
        client_namespace: Option<&str>,
    ) -> Option<AddressObject<'_>> {
        if let Some(workload) = self.workload_by_address(address) {
            return Some(AddressObject::Workload(workload));
        }
        self.service_by_vip(address, client_namespace)
            .map(AddressObject::Service)
    }

    /// A pod of this node by name. An empty `node` means any.
    #[must_use]
    pub fn local_workload<'a>(
        &'a self,
        node: &str,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&'a Arc<Workload>> {
        let is_it = |w: &Workload| {
            &*w.namespace == namespace && &*w.name == name && &*w.service_account == service_account
        };
        let first = (namespace, name, "");
        let from = Bound::Included(&first as &dyn Placed);
        let on = |map: &'a NodeMap| {
            map.range::<dyn Placed, _>((from, Bound::Unbounded))
                .map(|ByName(workload)| workload)
                .take_while(|w| &*w.namespace == namespace && &*w.name == name)
                .find(|w| is_it(w))
        };
        if node.is_empty() {
            return self.by_node.iter().find_map(|(_, map)| on(map));
        }
        on(self.by_node.value(node)?)
    }

    /// Workloads of a node, ordered by namespace and name.
    pub fn workloads_on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let on = self.by_node.value(node).into_iter();
        on.flat_map(|map| map.iter().map(|ByName(workload)| workload))
    }

    /// The endpoints of a service by workload uid, unready ones included.
    pub fn endpoints(&self, key: &NamespacedHostname) -> impl Iterator<Item = &Endpoint> {
        self.endpoints
            .value(key)
            .into_iter()
            .flat_map(|map| map.iter().map(|ByUid(endpoint)| endpoint))
    }

    /// One workload as endpoint of a service.
    #[must_use]
    pub fn endpoint(&self, key: &NamespacedHostname, uid: &str) -> Option<&Endpoint> {
        self.endpoints
            .value(key)?
            .get(uid)
            .map(|ByUid(endpoint)| endpoint)
    }

    /// The policy of that key.
    #[must_use]
    pub fn authorization(&self, key: &NamespacedName) -> Option<&Arc<Authorization>> {
        self.policies.get(key)
    }

    /// Every workload, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Every service, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// Every policy, in no particular order.
    pub fn authorizations(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.policies.iter()
    }

    /// Numbers of workloads, services and policies.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (
            self.workloads.len(),
            self.services.len(),
            self.policies.len(),
        )
    }

    /// Workloads that own `ip` in `network` and carry no other claim: used to tell whether a
    /// connection comes from a given workload.
    pub(crate) fn owns(workload: &Workload, ip: IpAddr) -> bool {
        workload.addresses.contains(&ip)
    }
}

/// Same namespace, then canonical, then the first; invisible ones not at all.
fn best_service<'a>(
    services: &'a [Arc<Service>],
    client_namespace: Option<&str>,
) -> Option<&'a Arc<Service>> {
    services
        .iter()
        .filter(|s| s.visible_from(client_namespace))
        .rev()
        .max_by_key(|s| (client_namespace == Some(&*s.key.namespace), s.canonical))
}

/// Sort key of workloads that share an address; the smallest is preferred.
pub(crate) fn address_rank(workload: &Workload) -> (bool, bool, Str) {
    let pod = workload.uid.contains("//Pod/");
    let hbone = workload.tunnel == TunnelProtocol::Hbone;
    (!pod, !hbone, workload.uid.clone())
}
