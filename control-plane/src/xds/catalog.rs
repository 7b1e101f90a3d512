use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use isobar_proto::envoy::service::discovery::v3::Resource as WireResource;
use isobar_types::{Identity, Str};
use prost::Message;
use xxhash_rust::xxh64::xxh64;

use super::kind::Kind;
use super::names::AddressNames;
use super::portion::LONGEST;
use super::resources::Resources;
use crate::auth::Caller;

/// Field number of `resources` in `DeltaDiscoveryResponse`.
const RESOURCES_FIELD: u32 = 2;

/// One serialised resource. The bytes are made once and shared by every session.
#[derive(Debug)]
pub(crate) struct Resource {
    /// Name on the wire.
    pub(crate) name: Str,
    /// xxHash64 of the serialised message; sent as hex.
    pub(crate) version: u64,
    /// A whole `resources` field of a response: tag, length, body.
    pub(crate) field: Bytes,
    /// Policies that a client must hold before it gets this resource.
    pub(crate) needs: Box<[Str]>,
    /// Order inside one response; lower goes first.
    pub(crate) rank: u8,
}

impl Resource {
    /// Serialises `message` under `name`.
    pub(crate) fn new<M: Message>(kind: Kind, name: &str, message: &M) -> Self {
        let body = message.encode_to_vec();
        let version = xxh64(&body, 0);
        let wire = WireResource {
            version: version_text(version),
            name: name.to_owned(),
            resource: Some(prost_types::Any {
                type_url: kind.url().to_owned(),
                value: body,
            }),
            ..WireResource::default()
        };
        Self {
            name: name.into(),
            version,
            field: field(&wire),
            needs: Box::default(),
            rank: 0,
        }
    }

    /// True if it is too long for any client.
    pub(super) fn is_too_long(&self) -> bool {
        self.field.len() > LONGEST
    }

    /// True if nobody who holds one has to be sent the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.version == other.version && self.needs == other.needs && self.rank == other.rank
    }

    /// The same resource in other words on the wire.
    pub(crate) fn rewritten(&self, wire: &WireResource) -> Self {
        Self {
            name: self.name.clone(),
            version: self.version,
            field: field(wire),
            needs: self.needs.clone(),
            rank: self.rank,
        }
    }
}

fn field(wire: &WireResource) -> Bytes {
    let mut field = Vec::with_capacity(wire.encoded_len() + 8);
    prost::encoding::message::encode(RESOURCES_FIELD, wire, &mut field);
    field.into()
}

/// A version as it is written on the wire.
pub(crate) fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

/// What one waypoint is served besides addresses, by [`Kind::index`]; kinds that are not a
/// waypoint's own stay empty.
pub(crate) type WaypointResources = [Arc<Resources>; Kind::ALL.len()];

/// A pod that runs a waypoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Gateway key, `namespace/name`.
    pub(crate) gateway: Str,
    /// Account the Gateway's pods have to run as; a pod that only carries the label has another.
    pub(crate) identity: Identity,
    /// Kubernetes UID of the pod; empty when it has none.
    pub(crate) uid: Str,
}

/// Everything there is to serve at one moment. Immutable; replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// Counts replacements, from 1; 0 means that nothing has been read yet.
    pub(crate) revision: u64,
    /// Workloads and services: the same for every client.
    pub(crate) addresses: Arc<Resources>,
    /// L4 policies: the same for every client.
    pub(crate) authorizations: Arc<Resources>,
    /// Where workloads may go: the same for every client.
    pub(crate) outbound: Arc<Resources>,
    /// By Gateway key, `namespace/name`.
    pub(crate) waypoints: BTreeMap<Str, WaypointResources>,
    /// Waypoint pods, by `namespace/name`.
    pub(crate) instances: BTreeMap<Str, Instance>,
    /// Bindings to waypoints that are changing over: a later catalog finishes that.
    pub(crate) changing: usize,
    /// What `addresses` may be called; made when first needed.
    pub(crate) names: OnceLock<AddressNames>,
}

/// Whose resources a session sees; decided from the authenticated identity alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scope {
    /// Gateway key of the waypoint this client is an instance of.
    pub(crate) waypoint: Option<Str>,
    /// Node this client's pod runs on.
    pub(crate) node: Option<Str>,
}

impl Catalog {
    /// Whose configuration `caller` may have. The Gateway follows from the pod its token is bound
    /// to, and counts only if the token's account is the one that Gateway's pods run as.
    pub(crate) fn scope_of(&self, caller: &Caller) -> Scope {
        let waypoint = caller.pod.as_ref().and_then(|pod| {
            let key = format!("{}/{}", caller.identity.namespace, pod.name);
            let instance = self.instances.get(key.as_str())?;
            let same_pod = instance.uid.is_empty() || *instance.uid == *pod.uid;
            (same_pod && instance.identity == caller.identity).then(|| instance.gateway.clone())
        });
        let node = caller.node.as_deref().map(Str::from);
        Scope { waypoint, node }
    }

    /// What clients may call addresses.
    pub(crate) fn address_names(&self) -> &AddressNames {
        self.names.get_or_init(|| AddressNames::of(&self.addresses))
    }

    /// The resources of `kind` that `scope` may see.
    pub(crate) fn resources(&self, scope: &Scope, kind: Kind) -> Option<&Arc<Resources>> {
        match kind {
            Kind::Address => Some(&self.addresses),
            Kind::Authorization => Some(&self.authorizations),
            Kind::OutboundPolicy => Some(&self.outbound),
            _ => {
                let waypoint = self.waypoints.get(scope.waypoint.as_ref()?)?;
                Some(&waypoint[kind.index()])
            }
        }
    }
}
