use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::gateway_api::{
    Gateway, GatewayClass, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute,
};
use crate::istio::{
    AuthorizationPolicy, DestinationRule, IstioGateway, PeerAuthentication, Resource, ServiceEntry,
    VirtualService, WorkloadEntry,
};
use crate::kinds::{Kind, ObjectRef};
use crate::rate_limit::RateLimitPolicy;
use crate::set::{ObjectMap, ObjectSet};
use crate::strict::{self, Strict};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// What every kind of object has: a head with a name and labels, and a place in [`ObjectSet`].
pub trait ObjectHead: Sized + Send + Sync + 'static {
    /// Its kind.
    const KIND: Kind;

    /// The head as Kubernetes has it.
    fn head(&self) -> &ObjectMeta;

    /// The head, to change it.
    fn head_mut(&mut self) -> &mut ObjectMeta;

    /// The map of this kind.
    fn map(set: &ObjectSet) -> &ObjectMap<Self>;

    /// The map of this kind, to change it.
    fn map_mut(set: &mut ObjectSet) -> &mut ObjectMap<Self>;

    /// Name; empty only in objects that were never read or written.
    fn name(&self) -> &str {
        self.head().name.as_deref().unwrap_or_default()
    }

    /// Namespace; empty for cluster-wide kinds.
    fn namespace(&self) -> &str {
        self.head().namespace.as_deref().unwrap_or_default()
    }

    /// Labels; empty when there are none.
    fn labels(&self) -> &BTreeMap<String, String> {
        self.head().labels.as_ref().unwrap_or(&NO_LABELS)
    }

    /// Annotations; empty when there are none.
    fn annotations(&self) -> &BTreeMap<String, String> {
        self.head().annotations.as_ref().unwrap_or(&NO_LABELS)
    }

    /// Value of one label.
    fn label(&self, key: &str) -> Option<&str> {
        self.labels().get(key).map(String::as_str)
    }

    /// Value of one annotation.
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations().get(key).map(String::as_str)
    }

    /// `metadata.uid`; empty when there is none.
    fn uid(&self) -> &str {
        self.head().uid.as_deref().unwrap_or_default()
    }

    /// Creation time in seconds since the epoch; 0 when there is none, as in plain files.
    fn created(&self) -> i64 {
        let time = self.head().creation_timestamp.as_ref();
        time.map_or(0, |time| time.0.as_second())
    }

    /// Its identity.
    fn reference(&self) -> ObjectRef {
        ObjectRef::new(Self::KIND, self.namespace(), self.name())
    }
}

macro_rules! objects {
    ($($kind:ident => $map:ident;)+) => {
        /// One object of a kind the mesh uses.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Object {
            $(#[doc = concat!("A ", stringify!($kind), ".")] $kind(Box<$kind>),)+
        }

        impl Object {
            /// Its kind.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)+ }
            }

            /// The head as Kubernetes has it.
            #[must_use]
            pub fn head(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => object.head(),)+ }
            }

            /// The head, to change it.
            pub fn head_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => object.head_mut(),)+ }
            }

            /// Its identity.
            #[must_use]
            pub fn reference(&self) -> ObjectRef {
                match self { $(Self::$kind(object) => object.reference(),)+ }
            }

            /// The object as it is written: nulls left out.
            ///
            /// # Errors
            /// Never for objects that were read; numbers that JSON cannot hold otherwise.
            pub fn to_value(&self) -> Result<Value, serde_json::Error> {
                let mut value = match self {
                    $(Self::$kind(object) => serde_json::to_value(object)?,)+
                };
                prune_nulls(&mut value);
                Ok(value)
            }

            /// Reads an object of a known kind; unknown fields and the first wrong type go to
            /// `strict`.
            pub(crate) fn deserialize(kind: Kind, value: &Value, strict: &Strict) -> Option<Self> {
                match kind {
                    $(Kind::$kind => strict::from_value::<$kind>(value, strict)
                        .map(|object| Self::$kind(Box::new(object))),)+
                }
            }
        }

        $(
            impl From<$kind> for Object {
                fn from(object: $kind) -> Self {
                    Self::$kind(Box::new(object))
                }
            }

            impl ObjectHead for $kind {
                const KIND: Kind = Kind::$kind;
                fn head(&self) -> &ObjectMeta {
                    &self.metadata
                }
                fn head_mut(&mut self) -> &mut ObjectMeta {
                    &mut self.metadata
                }
                fn map(set: &ObjectSet) -> &ObjectMap<Self> {
                    &set.$map
                }
                fn map_mut(set: &mut ObjectSet) -> &mut ObjectMap<Self> {
                    &mut set.$map
                }
            }
        )+
    };
}

objects! {
    Namespace => namespaces;
    Node => nodes;
    ServiceAccount => service_accounts;
    Pod => pods;
    Deployment => deployments;
    Service => services;
    EndpointSlice => endpoint_slices;
    NetworkPolicy => network_policies;
    VirtualService => virtual_services;
    DestinationRule => destination_rules;
    ServiceEntry => service_entries;
    WorkloadEntry => workload_entries;
    Gateway => gateways;
    GatewayClass => gateway_classes;
    ReferenceGrant => reference_grants;
    HttpRoute => http_routes;
    GrpcRoute => grpc_routes;
    TcpRoute => tcp_routes;
    TlsRoute => tls_routes;
    PeerAuthentication => peer_authentications;
    AuthorizationPolicy => authorization_policies;
    RateLimitPolicy => rate_limit_policies;
    IstioGateway => istio_gateways;
    Secret => secrets;
    ConfigMap => config_maps;
}

impl<S> Resource<S>
where
    Self: ObjectHead,
{
    /// An object of this kind in its preferred version.
    pub fn new(namespace: &str, name: &str, spec: S) -> Self {
        Self {
            api_version: Self::KIND.api_version(),
            kind: Self::KIND.as_str().to_owned(),
            metadata: ObjectMeta {
                namespace: Self::KIND.is_namespaced().then(|| namespace.to_owned()),
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            spec,
            status: None,
        }
    }
}

/// Removes map entries that are null, at every depth: an absent option is no `null` in a file.
fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, entry| !entry.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}
