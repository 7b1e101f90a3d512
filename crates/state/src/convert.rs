//! From wire messages to the types of this crate. A resource with a field that cannot be understood
//! is rejected whole, with the field's name: accepting half a policy could loosen it.

mod fields;
mod outbound;
mod policy;
mod workload;

use std::collections::HashSet;
use std::sync::Arc;

use isobar_proto::istio;
use isobar_types::Str;

use crate::service::Service;
use crate::workload::{Profile, Workload};

pub use outbound::{outbound_policy, outbound_policy_name};
pub use policy::authorization;
pub(crate) use policy::closed;
pub use workload::{service, workload};

/// Why a resource is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that must be set is not.
    #[error("{field} is not set")]
    Missing {
        /// Path of the field.
        field: String,
    },
    /// Bytes that are no address.
    #[error("{field} has {len} bytes; an address has 4 or 16")]
    Address {
        /// Path of the field.
        field: String,
        /// Number of bytes found.
        len: usize,
    },
    /// A prefix longer than its address.
    #[error("{field} has prefix length {length}, more than the address has bits")]
    Prefix {
        /// Path of the field.
        field: String,
        /// Length found, in bits.
        length: u32,
    },
    /// An enum number this version does not know.
    #[error("{field} has the unknown value {value}")]
    UnknownValue {
        /// Path of the field.
        field: String,
        /// Number found.
        value: i32,
    },
    /// A known value that is not supported.
    #[error("{field} has the value {value}, which is not supported")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// Name of the value.
        value: &'static str,
    },
    /// A number that is no port.
    #[error("{field} is {value}; a port is at most 65535")]
    Port {
        /// Path of the field.
        field: String,
        /// Number found.
        value: u32,
    },
    /// A message inside that cannot be read.
    #[error("{field} holds a message that cannot be read")]
    Malformed {
        /// Path of the field.
        field: String,
    },
    /// A namespace that cannot be part of a name.
    #[error("namespace is {0:?}; a namespace has no slash")]
    Namespace(String),
    /// A text that is no key.
    #[error("{field} is {key:?}; expected NAMESPACE/NAME")]
    Key {
        /// Path of the field.
        field: String,
        /// Text found.
        key: String,
    },
}

/// Shares equal strings and profiles, so that a namespace is stored once and not once a workload.
#[derive(Debug, Default)]
pub struct Interner {
    known: HashSet<Str>,
    profiles: HashSet<Arc<Profile>>,
    /// Number of strings at which to look for unused ones.
    sweep_at: usize,
}

/// Below this many strings nothing is swept.
const FEW_STRINGS: usize = 4096;

impl Interner {
    /// The shared string equal to `text`.
    pub fn intern(&mut self, text: &str) -> Str {
        if let Some(known) = self.known.get(text) {
            return Str::clone(known);
        }
        let new = Str::from(text);
        self.known.insert(Str::clone(&new));
        new
    }

    /// The shared profile equal to `profile`.
    pub fn share(&mut self, profile: Profile) -> Arc<Profile> {
        if let Some(known) = self.profiles.get(&profile) {
            return Arc::clone(known);
        }
        let new = Arc::new(profile);
        self.profiles.insert(Arc::clone(&new));
        new
    }

    /// Forgets what nobody else holds, each time there is twice as much.
    pub(crate) fn sweep(&mut self) {
        if self.known.len() >= self.sweep_at.max(FEW_STRINGS) {
            // Before the strings, which they hold.
            self.profiles
                .retain(|profile| Arc::strong_count(profile) > 1);
            self.known.retain(|text| Str::strong_count(text) > 1);
            self.sweep_at = self.known.len() * 2;
        }
    }
}

/// A converted address resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A workload.
    Workload(Box<Workload>),
    /// A service.
    Service(Box<Service>),
}

/// Converts a resource; what is odd but harmless is told through `warnings`.
///
/// # Errors
/// When a field cannot be understood.
pub fn address(
    address: &istio::workload::Address,
    interner: &mut Interner,
    warnings: &mut Vec<String>,
) -> Result<Address, ConvertError> {
    use istio::workload::address::Type;
    match &address.r#type {
        Some(Type::Workload(w)) => Ok(Address::Workload(Box::new(workload(w, interner)?))),
        Some(Type::Service(s)) => Ok(Address::Service(Box::new(service(s, interner, warnings)?))),
        None => Err(ConvertError::Missing {
            field: "type".to_owned(),
        }),
    }
}

/// The resource name under which a server announces and removes this address; empty if the message
/// is empty.
#[must_use]
pub fn address_name(address: &istio::workload::Address) -> String {
    use istio::workload::address::Type;
    match &address.r#type {
        Some(Type::Workload(w)) => w.uid.clone(),
        Some(Type::Service(s)) => format!("{}/{}", s.namespace, s.hostname),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
