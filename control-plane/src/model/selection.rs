//! Which waypoint an object uses for which kind of traffic, and what is published about it.

use std::collections::BTreeMap;

use isobar_objects::{ObjectHead, ObjectRef, ObjectSet};
use isobar_proto::istio::workload::GatewayAddress;
use isobar_types::{NamespacedName, Str, labels};

use super::bindings::{AccountBinding, BOUND, Bindings};
use super::foreign;
use super::gateways::{Gateways, TrafficKind, address, denied_address};
use super::settings::Settings;
use super::verdict::Verdict;

/// Where a reference to a waypoint was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// On the object itself.
    Object,
    /// On the account its workloads run as.
    Account,
    /// On its namespace.
    Namespace,
}

/// A waypoint that something names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Gateway key; it may not exist.
    pub(crate) waypoint: NamespacedName,
    /// Where it was found.
    pub(crate) source: Source,
    /// The account through which it was found.
    pub(crate) account: Option<Str>,
    /// Traffic passes while the waypoint is away.
    pub(crate) fail_open: bool,
}

/// What becomes of a reference.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selected {
    /// Published as the object's waypoint.
    pub(crate) address: Option<GatewayAddress>,
    /// The waypoint that has to know the object, if it exists and may be used.
    pub(crate) serves: Option<NamespacedName>,
    /// To tell the user.
    pub(crate) verdict: Option<Verdict>,
}

/// Whether an object can use the waypoint that it names.
pub(super) enum Use {
    /// It can.
    Good,
    /// Its namespace names one that is not for this kind of traffic: as if it named none.
    Inherited,
    /// It may not: the reason and a sentence.
    Refused(&'static str, String),
    /// Nobody is there to take traffic.
    Away {
        /// The waypoint is there, without a ready pod.
        exists: bool,
        /// A sentence.
        why: String,
    },
}

/// Everything selection looks at.
pub(crate) struct Selection<'a> {
    /// All objects.
    pub(crate) set: &'a ObjectSet,
    /// Settings of the mesh.
    pub(crate) settings: &'a Settings,
    /// Waypoints.
    pub(crate) gateways: &'a Gateways<'a>,
    /// Account bindings.
    pub(crate) bindings: &'a Bindings,
}

/// What a set of labels says: nothing, no waypoint, or a name.
pub(crate) enum Named {
    /// Nothing.
    Absent,
    /// Opted out.
    None,
    /// A waypoint.
    Waypoint(NamespacedName),
}

/// True if the labels ask for traffic to pass while a waypoint is away.
pub(crate) fn fails_open(all: &BTreeMap<String, String>) -> bool {
    all.get(labels::WAYPOINT_FAILURE).map(String::as_str) == Some(labels::FAIL_OPEN)
}

/// Reads the waypoint labels of an object in `namespace`.
pub(crate) fn named(all: &BTreeMap<String, String>, namespace: &str) -> Named {
    match all.get(labels::USE_WAYPOINT).map(String::as_str) {
        None | Some("") => Named::Absent,
        Some("none") => Named::None,
        Some(name) => Named::Waypoint(NamespacedName {
            namespace: all
                .get(labels::USE_WAYPOINT_NAMESPACE)
                .map_or(namespace, String::as_str)
                .into(),
            name: name.into(),
        }),
    }
}

impl Selection<'_> {
    /// The reference that holds for a workload: its own, its account's, its namespace's.
    pub(crate) fn for_workload(
        &self,
        own: &BTreeMap<String, String>,
        namespace: &str,
        account: &str,
    ) -> Option<Reference> {
        match named(own, namespace) {
            Named::None => return None,
            Named::Waypoint(waypoint) => return Some(object_reference(waypoint, own)),
            Named::Absent => {}
        }
        match self.bindings.of(namespace, account) {
            Some(AccountBinding::OptedOut) => None,
            Some(AccountBinding::Bound {
                waypoint,
                fail_open,
            }) => Some(Reference {
                waypoint: waypoint.clone(),
                source: Source::Account,
                account: Some(account.into()),
                fail_open: *fail_open || fails_open(own),
            }),
            None => self.for_namespace(namespace, own),
        }
    }

    /// The reference an object inherits from its namespace.
    pub(crate) fn for_namespace(
        &self,
        namespace: &str,
        own: &BTreeMap<String, String>,
    ) -> Option<Reference> {
        let object = self.set.namespaces.get("", namespace)?;
        match named(object.labels(), namespace) {
            Named::Waypoint(waypoint) => Some(Reference {
                waypoint,
                source: Source::Namespace,
                account: None,
                fail_open: fails_open(object.labels()) || fails_open(own),
            }),
            Named::None | Named::Absent => None,
        }
    }

    /// What to publish for `object`, which lives in `namespace` and names `reference`.
    pub(crate) fn resolve(
        &self,
        reference: &Reference,
        kind: TrafficKind,
        namespace: &str,
        object: ObjectRef,
    ) -> Selected {
        let key = &reference.waypoint;
        match self.examine(reference, kind, namespace) {
            Use::Good => Selected {
                address: Some(address(key, self.gateways, self.settings)),
                serves: Some(key.clone()),
                verdict: Some(Verdict::holds(
                    object,
                    BOUND,
                    "WaypointAccepted",
                    format!("bound to waypoint {key}"),
                )),
            },
            Use::Inherited => Selected::default(),
            Use::Refused(reason, why) => Selected {
                address: Some(denied_address(namespace)),
                serves: None,
                verdict: Some(Verdict::fails(object, BOUND, reason, why)),
            },
            Use::Away { exists, why } => {
                let open = reference.fail_open;
                let effect = if open {
                    "traffic passes it, as asked"
                } else {
                    "its traffic is refused"
                };
                Selected {
                    address: (!open).then(|| address(key, self.gateways, self.settings)),
                    serves: exists.then(|| key.clone()),
                    verdict: Some(Verdict::fails(
                        object,
                        BOUND,
                        "WaypointIsNotReady",
                        format!("{why}; {effect}"),
                    )),
                }
            }
        }
    }

    /// Whether objects of `namespace` can use the waypoint they name.
    pub(super) fn examine(&self, reference: &Reference, kind: TrafficKind, namespace: &str) -> Use {
        let key = &reference.waypoint;
        let Some(waypoint) = self.gateways.get(key) else {
            return Use::Away {
                exists: false,
                why: match self.set.gateways.get(&key.namespace, &key.name) {
                    Some(gateway) => format!(
                        "Gateway {key} of class {} is no waypoint yet: it {}",
                        gateway.spec.gateway_class_name,
                        foreign::lacks(&gateway.object, self.set)
                    ),
                    None => format!("waypoint {key} does not exist"),
                },
            };
        };
        let admitted = match reference.source {
            Source::Account => {
                reference.account.is_some() && waypoint.for_account == reference.account
            }
            Source::Object | Source::Namespace => waypoint.admits(namespace, self.set),
        };
        if !admitted {
            let why = format!("waypoint {key} does not allow objects of namespace {namespace}");
            return Use::Refused("AttachmentDenied", why);
        }
        if !waypoint.takes(kind) {
            if reference.source == Source::Namespace && kind == TrafficKind::Workload {
                return Use::Inherited;
            }
            let why = format!("waypoint {key} does not take {} traffic", word(kind));
            return Use::Refused("UnsupportedTrafficType", why);
        }
        if !waypoint.ready {
            return Use::Away {
                exists: true,
                why: format!("waypoint {key} has no ready pod"),
            };
        }
        Use::Good
    }
}

/// A reference found on the object itself.
pub(crate) fn object_reference(
    waypoint: NamespacedName,
    own: &BTreeMap<String, String>,
) -> Reference {
    Reference {
        waypoint,
        source: Source::Object,
        account: None,
        fail_open: fails_open(own),
    }
}

const fn word(kind: TrafficKind) -> &'static str {
    match kind {
        TrafficKind::Service => "service",
        TrafficKind::Workload => "workload",
    }
}
