use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use isobar_types::Str;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::gateway_api::{
    Gateway, GatewayClass, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute,
};
use crate::istio::{
    AuthorizationPolicy, DestinationRule, IstioGateway, PeerAuthentication, ServiceEntry,
    VirtualService, WorkloadEntry,
};
use crate::kinds::{Kind, ObjectRef};
use crate::object::{Object, ObjectHead};
use crate::rate_limit::RateLimitPolicy;

/// Where an object came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// File; `-` for objects that did not come from one.
    pub file: Arc<Path>,
    /// Line of the document's first line when the object last changed, from 1.
    pub line: u32,
}

/// An object in a set. Reads as the object itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Held<T> {
    /// The object.
    pub object: T,
    /// Where its base came from.
    pub origin: Origin,
    /// Version of the set in which it last changed.
    pub changed: u64,
}

impl<T> Deref for Held<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.object
    }
}

/// Objects of one kind by namespace and name; cheap to clone, ordered. A changed copy shares the
/// namespaces in which nothing changed.
#[derive(Debug)]
pub struct ObjectMap<T>(Arc<BTreeMap<Str, Arc<ByName<T>>>>);

type ByName<T> = BTreeMap<Str, Arc<Held<T>>>;

impl<T> Clone for ObjectMap<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for ObjectMap<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> ObjectMap<T> {
    /// One object; `namespace` is empty for cluster-wide kinds.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Held<T>>> {
        self.0.get(namespace)?.get(name)
    }

    /// All objects, ordered by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Held<T>>> {
        self.0.values().flat_map(|names| names.values())
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Held<T>>> {
        let names = self.0.get(namespace).into_iter();
        names.flat_map(|names| names.values())
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(|names| names.len()).sum()
    }

    /// True without objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if both are the same map, so that nothing can have changed.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn insert(&mut self, namespace: &str, name: &str, held: Arc<Held<T>>) {
        let names = Arc::make_mut(&mut self.0).entry(namespace.into());
        Arc::make_mut(names.or_default()).insert(name.into(), held);
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        if self.get(namespace, name).is_none() {
            return;
        }
        let map = Arc::make_mut(&mut self.0);
        if let Some(names) = map.get_mut(namespace) {
            let names = Arc::make_mut(names);
            names.remove(name);
            if names.is_empty() {
                map.remove(namespace);
            }
        }
    }

    fn compare(&self, old: &Self, kind: Kind, changes: &mut Vec<Change>) {
        if self.is_same(old) {
            return;
        }
        let mut note = |what, namespace: &Str, name: &Str| {
            changes.push(Change {
                what,
                object: ObjectRef::new(kind, namespace, name),
            });
        };
        let is_shared = |namespace: &Str| match (self.0.get(namespace), old.0.get(namespace)) {
            (Some(names), Some(before)) => Arc::ptr_eq(names, before),
            _ => false,
        };
        for (namespace, names) in &*self.0 {
            if is_shared(namespace) {
                continue;
            }
            for (name, held) in &**names {
                match old.get(namespace, name) {
                    None => note(ChangeKind::Added, namespace, name),
                    Some(before) if !Arc::ptr_eq(before, held) => {
                        note(ChangeKind::Changed, namespace, name);
                    }
                    Some(_) => {}
                }
            }
        }
        for (namespace, names) in &*old.0 {
            if is_shared(namespace) {
                continue;
            }
            for name in names.keys() {
                if self.get(namespace, name).is_none() {
                    note(ChangeKind::Removed, namespace, name);
                }
            }
        }
    }
}

/// One difference between two sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub what: ChangeKind,
    /// To which object.
    pub object: ObjectRef,
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// Its content is another.
    Changed,
    /// It is gone.
    Removed,
}

macro_rules! set {
    ($($(#[doc = $doc:literal])+ $map:ident: $kind:ident;)+) => {
        /// All objects in force at one moment. Cheap to clone; kinds that did not change are shared
        /// between versions.
        #[derive(Clone, Default)]
        pub struct ObjectSet {
            /// Grows with every change.
            pub version: u64,
            $($(#[doc = $doc])+ pub $map: ObjectMap<$kind>,)+
        }

        impl ObjectSet {
            /// What differs from `old`, additions and changes of a kind before its removals.
            #[must_use]
            pub fn changes_since(&self, old: &Self) -> Vec<Change> {
                let mut changes = Vec::new();
                $(self.$map.compare(&old.$map, Kind::$kind, &mut changes);)+
                changes
            }

            /// Removes an object, if it is there.
            pub fn remove(&mut self, object: &ObjectRef) {
                match object.known() {
                    $(Some(Kind::$kind) => self.$map.remove(&object.namespace, &object.name),)+
                    None => {}
                }
            }

            /// True if an object of that identity is in the set.
            #[must_use]
            pub fn contains(&self, object: &ObjectRef) -> bool {
                match object.known() {
                    $(Some(Kind::$kind) => {
                        self.$map.get(&object.namespace, &object.name).is_some()
                    })+
                    None => false,
                }
            }

            /// Labels of an object, if it is in the set.
            #[must_use]
            pub fn labels(&self, object: &ObjectRef) -> Option<&BTreeMap<String, String>> {
                match object.known() {
                    $(Some(Kind::$kind) => {
                        let held = self.$map.get(&object.namespace, &object.name)?;
                        Some(held.labels())
                    })+
                    None => None,
                }
            }

            /// A copy of an object, if it is in the set.
            #[must_use]
            pub fn object(&self, object: &ObjectRef) -> Option<Object> {
                match object.known() {
                    $(Some(Kind::$kind) => {
                        let held = self.$map.get(&object.namespace, &object.name)?;
                        Some(held.object.clone().into())
                    })+
                    None => None,
                }
            }

            /// Version of the set in which an object last changed, if it is in the set.
            #[must_use]
            pub fn last_changed(&self, object: &ObjectRef) -> Option<u64> {
                match object.known() {
                    $(Some(Kind::$kind) => {
                        let held = self.$map.get(&object.namespace, &object.name)?;
                        Some(held.changed)
                    })+
                    None => None,
                }
            }

            /// Adds an object or replaces the one with its identity.
            pub fn insert(&mut self, object: Object, origin: Origin) {
                match object {
                    $(Object::$kind(object) => self.hold(*object, origin),)+
                }
            }

            /// True if an equal object from that file is in the set.
            pub(crate) fn holds(&self, object: &Object, file: &Path) -> bool {
                match object {
                    $(Object::$kind(object) => self
                        .$map
                        .get(object.namespace(), object.name())
                        .is_some_and(|held| *held.origin.file == *file && held.object == **object),)+
                }
            }

            /// All objects, kind by kind.
            #[must_use]
            pub fn objects(&self) -> Vec<Object> {
                let mut all = Vec::with_capacity(self.len());
                $(all.extend(self.$map.iter().map(|held| Object::from(held.object.clone())));)+
                all
            }

            /// Number of objects.
            #[must_use]
            pub fn len(&self) -> usize {
                0 $(+ self.$map.len())+
            }
        }
    };
}

set! {
    /// Namespaces.
    namespaces: Namespace;
    /// Nodes.
    nodes: Node;
    /// Service accounts.
    service_accounts: ServiceAccount;
    /// Pods.
    pods: Pod;
    /// Deployments.
    deployments: Deployment;
    /// Services.
    services: Service;
    /// Endpoints of Services without a selector.
    endpoint_slices: EndpointSlice;
    /// Network policies.
    network_policies: NetworkPolicy;
    /// Virtual services.
    virtual_services: VirtualService;
    /// Destination rules.
    destination_rules: DestinationRule;
    /// Service entries.
    service_entries: ServiceEntry;
    /// Endpoints outside the cluster.
    workload_entries: WorkloadEntry;
    /// Gateways of the Gateway API, waypoints among them.
    gateways: Gateway;
    /// Gateway classes.
    gateway_classes: GatewayClass;
    /// Who may refer to objects of another namespace.
    reference_grants: ReferenceGrant;
    /// HTTP routes of the Gateway API.
    http_routes: HttpRoute;
    /// gRPC routes of the Gateway API.
    grpc_routes: GrpcRoute;
    /// TCP routes of the Gateway API.
    tcp_routes: TcpRoute;
    /// TLS routes of the Gateway API.
    tls_routes: TlsRoute;
    /// Peer authentications.
    peer_authentications: PeerAuthentication;
    /// Authorization policies.
    authorization_policies: AuthorizationPolicy;
    /// Rate limits.
    rate_limit_policies: RateLimitPolicy;
    /// Istio's Gateways.
    istio_gateways: IstioGateway;
    /// Secrets; only those that gateways name are used.
    secrets: Secret;
    /// Settings of the mesh.
    config_maps: ConfigMap;
}

impl ObjectSet {
    /// True without objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an object or replaces the one with its identity.
    fn hold<T: ObjectHead>(&mut self, object: T, origin: Origin) {
        let held = Arc::new(Held {
            changed: self.version,
            origin,
            object,
        });
        let (namespace, name) = (
            held.object.namespace().to_owned(),
            held.object.name().to_owned(),
        );
        T::map_mut(self).insert(&namespace, &name, held);
    }

    /// A set of objects that did not come from files; for tests and tools.
    #[must_use]
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut set = Self {
            version: 1,
            ..Self::default()
        };
        for object in objects {
            set.insert(object, Origin::nowhere());
        }
        set
    }
}

impl Origin {
    /// The origin of objects that did not come from a file.
    #[must_use]
    pub fn nowhere() -> Self {
        static NOWHERE: LazyLock<Arc<Path>> = LazyLock::new(|| Path::new("-").into());
        Self {
            file: NOWHERE.clone(),
            line: 0,
        }
    }
}

impl fmt::Debug for ObjectSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectSet")
            .field("version", &self.version)
            .field("objects", &self.len())
            .finish_non_exhaustive()
    }
}
