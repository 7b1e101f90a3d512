//! Entries of the snapshot's maps that hold their own keys: what a mesh of ten thousand pods takes is
//! mostly the tables it is found by.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use isobar_types::{NamespacedHostname, NamespacedName, NetworkAddress, Str};

use crate::policy::Authorization;
use crate::service::Service;
use crate::sharded::{Found, Slot};
use crate::snapshot::Group;
use crate::workload::Workload;

/// An object under a key that is a field of it.
macro_rules! keyed {
    ($object:ty, $key:ty, $field:ident) => {
        impl Slot for Arc<$object> {
            fn hash_key<H: Hasher>(&self, state: &mut H) {
                let key: &$key = &self.$field;
                key.hash(state);
            }

            fn is_same(&self, other: &Self) -> bool {
                self.$field == other.$field
            }
        }

        impl Found<$key> for Arc<$object> {
            fn is(&self, key: &$key) -> bool {
                let own: &$key = &self.$field;
                own == key
            }
        }
    };
}

keyed!(Workload, str, uid);
keyed!(Service, NamespacedHostname, key);
keyed!(Authorization, NamespacedName, key);

/// What has addresses.
pub(crate) trait Addressed {
    /// Network and address at a place in its list.
    fn address(&self, at: u32) -> Option<(&Str, IpAddr)>;
    /// The place of an address in its list.
    fn place(&self, key: &NetworkAddress) -> Option<u32>;
}

impl Addressed for Workload {
    fn address(&self, at: u32) -> Option<(&Str, IpAddr)> {
        let ip = self.addresses.get(at as usize)?;
        Some((&self.network, *ip))
    }

    fn place(&self, key: &NetworkAddress) -> Option<u32> {
        let at = self.addresses.iter().position(|ip| *ip == key.ip)?;
        u32::try_from(at).ok()
    }
}

impl Addressed for Service {
    fn address(&self, at: u32) -> Option<(&Str, IpAddr)> {
        let vip = self.vips.get(at as usize)?;
        Some((&vip.network, vip.ip))
    }

    fn place(&self, key: &NetworkAddress) -> Option<u32> {
        u32::try_from(self.vips.iter().position(|vip| vip == key)?).ok()
    }
}

/// Objects at one address: that of the first of them, at this place in its list.
#[derive(Debug)]
pub(crate) struct At<T> {
    group: Group<T>,
    place: u32,
}

impl<T> Clone for At<T> {
    fn clone(&self) -> Self {
        Self {
            group: self.group.clone(),
            place: self.place,
        }
    }
}

impl<T: Addressed> At<T> {
    /// `None` for a group whose first object has not got that address.
    pub(crate) fn new(group: Group<T>, key: &NetworkAddress) -> Option<Self> {
        let place = group.first()?.place(key)?;
        Some(Self { group, place })
    }

    pub(crate) const fn group(&self) -> &Group<T> {
        &self.group
    }

    /// Where they are.
    pub(crate) fn address(&self) -> Option<(&Str, IpAddr)> {
        self.group.first()?.address(self.place)
    }
}

impl<T: Addressed> Slot for At<T> {
    fn hash_key<H: Hasher>(&self, state: &mut H) {
        if let Some((network, ip)) = self.address() {
            // As `NetworkAddress` hashes.
            network.hash(state);
            ip.hash(state);
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl<T: Addressed> Found<NetworkAddress> for At<T> {
    fn is(&self, key: &NetworkAddress) -> bool {
        self.address() == Some((&key.network, key.ip))
    }
}

/// Services of one host name, which is the first one's.
#[derive(Debug, Clone)]
pub(crate) struct OfHost(pub(crate) Group<Service>);

impl OfHost {
    pub(crate) fn hostname(&self) -> &str {
        self.0.first().map_or("", |service| &service.key.hostname)
    }
}

impl Slot for OfHost {
    fn hash_key<H: Hasher>(&self, state: &mut H) {
        self.hostname().hash(state);
    }

    fn is_same(&self, other: &Self) -> bool {
        self.hostname() == other.hostname()
    }
}

impl Found<str> for OfHost {
    fn is(&self, key: &str) -> bool {
        self.hostname() == key
    }
}
