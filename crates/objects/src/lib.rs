//! Kubernetes and Istio objects: reading, validating, watching and writing them.
//!
//! * [`Kind`], [`Object`], [`ObjectSet`]: what the mesh reads, typed; [`istio`], [`gateway_api`]
//!   and [`rate_limit`] hold the resources that are not part of Kubernetes itself.
//! * [`read_text`], [`validate`], [`validate_dir`], [`Finding`]: from text to objects, and what is
//!   wrong with it.
//! * [`ObjectSource`] and [`DirectorySource`]: a set that follows its origin; [`LiveSet`] is the
//!   same for objects that an API server tells one by one.
//! * [`ObjectWriter`] and [`OverlayWriter`]: writing objects back.
//! * [`pods`], [`selectors`], [`enrolment`]: what is derived from one or two objects.

#![forbid(unsafe_code)]

pub mod duration;
pub mod enrolment;
pub mod gateway_api;
pub mod istio;
pub mod pods;
pub mod rate_limit;
pub mod selectors;

mod beside;
mod claims;
mod code;
mod directory;
mod document;
mod expand;
mod finding;
mod guarded;
mod invalid;
mod kinds;
mod live;
mod merge;
mod mesh_config;
mod mesh_lines;
mod mesh_paths;
mod mesh_traces;
mod named_secrets;
mod nameless;
mod names;
mod object;
mod overlay;
mod places;
mod read;
mod served;
mod set;
mod source;
mod strangers;
mod strict;
mod support;
mod targets;
mod validate;
mod writer;

pub use beside::beside;
pub use code::{Code, CodeEntry, codes};
pub use directory::{DirectoryOptions, DirectorySource, validate_dir};
pub use expand::{deployment_of, pods_of, uid_from};
pub use finding::{Finding, Severity};
pub use invalid::{Instead, Invalid, Invalids, Kept};
pub use kinds::{Kind, ObjectRef};
pub use live::{LiveSet, Recalled};
pub use merge::merge_patch;
pub use mesh_config::{
    EntryPolicy, EntryRule, EntryVisibilities, EntryVisibility, MESH_KEY, MeshConfig, OutboundMode,
    OutboundTrafficPolicy, ReadMeshConfig, is_trust_domain, mesh_config_of,
};
pub use mesh_lines::{LineEncoding, WaypointLines};
pub use mesh_paths::{PathForm, PathNormalization};
pub use mesh_traces::MeshTraces;
pub use named_secrets::{
    NamedSecret, UNREAD, authority_of_callers, may_name_secret, named_secrets, secret_name,
};
pub use object::{Object, ObjectHead};
pub use overlay::OverlayWriter;
pub use read::{ReadObject, ReadText, read_text, read_value};
pub use served::ServedObject;
pub use set::{Change, ChangeKind, Held, ObjectMap, ObjectSet, Origin};
pub use source::{ObjectSource, Obscured, Published, StaticSource};
pub use strangers::{STRANGERS, Stranger};
pub use support::{Feature, State, features};
pub use validate::{Extent, validate, validate_set};
pub use writer::{ObjectWriter, WriteError};

pub use k8s_openapi::api::apps::v1::Deployment;
pub use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::api::networking::v1::NetworkPolicy;
