//! Second waypoints: a share of the calls to a Service or ServiceEntry passes another one.
//!
//! They are there to be tried, so what is wrong with one costs nothing: the first waypoint takes all
//! calls then. Both know what they serve, whatever the share, so that a share may move at any time.

use std::collections::BTreeMap;

use isobar_objects::{ObjectHead, ObjectRef};
use isobar_proto::istio::workload as wire;
use isobar_types::{NamespacedName, labels};

use super::bindings::BOUND;
use super::gateways::{TrafficKind, address};
use super::selection::{Named, Reference, Selection, Source, Use};
use super::verdict::{Severity, Verdict};

/// A share of everything.
const ALL: u32 = 100;

/// The waypoints in front of an object.
#[derive(Debug, Default)]
pub(crate) struct Front {
    /// Published as the object's waypoint.
    pub(crate) address: Option<wire::GatewayAddress>,
    /// Shares of its calls, where there are two.
    pub(crate) weighted: Vec<wire::WeightedWaypoint>,
    /// Waypoints that have to know the object.
    pub(crate) serves: Vec<NamespacedName>,
    /// That of these which takes a share at most.
    pub(crate) second: Option<NamespacedName>,
    /// To tell the user.
    pub(crate) verdict: Option<Verdict>,
}

/// A second waypoint that an object, or its namespace, names.
struct Canary {
    reference: Reference,
    /// Percentage of calls, or what is written instead of one.
    weight: Result<u32, String>,
}

/// Why a second waypoint takes no calls.
struct Unused {
    /// One word, where the object itself is wrong.
    reason: Option<&'static str>,
    why: String,
}

impl Selection<'_> {
    /// The waypoints that calls to `object` pass: that of `first`, and a second one that takes a
    /// share of them.
    pub(crate) fn in_front(&self, first: &Reference, object: &impl ObjectHead) -> Front {
        let (namespace, told) = (object.namespace(), object.reference());
        let selected = self.resolve(first, TrafficKind::Service, namespace, told.clone());
        let mut front = Front {
            address: selected.address,
            serves: selected.serves.into_iter().collect(),
            verdict: selected.verdict,
            ..Front::default()
        };
        let Some(canary) = self.canary(first, object) else {
            return front;
        };
        let of_first = self.gateways.get(&first.waypoint);
        let usable = of_first.is_some_and(|one| one.programmed) && front.address.is_some();
        if front.serves.is_empty() || !usable {
            return front;
        }
        let second = canary.reference.waypoint.clone();
        match self.share(&first.waypoint, &canary, namespace, &mut front.serves) {
            Ok(weight) => {
                let part = |waypoint, weight| wire::WeightedWaypoint {
                    destination: Some(address(waypoint, self.gateways, self.settings)),
                    weight,
                };
                front.weighted = vec![part(&first.waypoint, ALL - weight), part(&second, weight)];
                front.verdict = Some(shared(
                    told,
                    &first.waypoint,
                    front.verdict,
                    &second,
                    weight,
                ));
            }
            Err(unused) => {
                front.verdict = Some(alone(told, &first.waypoint, front.verdict, &unused));
            }
        }
        front.second = front.serves.get(1).cloned();
        front
    }

    /// The second waypoint that counts: the object's own; its namespace's for an object that has its
    /// first one from there. `none` is none.
    fn canary(&self, first: &Reference, object: &impl ObjectHead) -> Option<Canary> {
        let namespace = object.namespace();
        let weight = object.annotation(labels::USE_WAYPOINT_CANARY_WEIGHT);
        let of = |waypoint, source, weight: Option<&str>| Canary {
            reference: Reference {
                waypoint,
                source,
                account: None,
                fail_open: false,
            },
            weight: percentage(weight),
        };
        match named(object.labels(), namespace) {
            Named::None => return None,
            Named::Waypoint(waypoint) => return Some(of(waypoint, Source::Object, weight)),
            Named::Absent if first.source != Source::Namespace => return None,
            Named::Absent => {}
        }
        let home = self.set.namespaces.get("", namespace)?;
        let Named::Waypoint(waypoint) = named(home.labels(), namespace) else {
            return None;
        };
        let weight = weight.or_else(|| home.annotation(labels::USE_WAYPOINT_CANARY_WEIGHT));
        Some(of(waypoint, Source::Namespace, weight))
    }

    /// The second waypoint's share; it is added to those that know the object if it may be used.
    fn share(
        &self,
        first: &NamespacedName,
        canary: &Canary,
        namespace: &str,
        serves: &mut Vec<NamespacedName>,
    ) -> Result<u32, Unused> {
        let second = &canary.reference.waypoint;
        let mistake = |reason, why| Unused {
            reason: Some(reason),
            why,
        };
        if second == first {
            let why = format!(
                "label {} names the same waypoint: name another one, or remove it",
                labels::USE_WAYPOINT_CANARY
            );
            return Err(mistake("CanarySameAsPrimary", why));
        }
        let used = self.examine(&canary.reference, TrafficKind::Service, namespace);
        if matches!(used, Use::Good | Use::Away { exists: true, .. }) {
            serves.push(second.clone());
        }
        let weight = canary.weight.clone().map_err(|text| {
            let why = format!(
                "annotation {} is {text:?}: write a whole number from 0 to 100",
                labels::USE_WAYPOINT_CANARY_WEIGHT
            );
            mistake("CanaryInvalidWeight", why)
        })?;
        match used {
            Use::Good => Ok(weight),
            // Not for the traffic of Services: only pods have a namespace's label passed over.
            Use::Inherited => Err(Unused {
                reason: None,
                why: format!("canary waypoint {second} does not take service traffic"),
            }),
            Use::Refused(_, why) | Use::Away { why, .. } => Err(Unused {
                reason: None,
                why: format!("canary {why}"),
            }),
        }
    }
}

/// The second waypoint in the labels of an object in `namespace`.
fn named(all: &BTreeMap<String, String>, namespace: &str) -> Named {
    match all.get(labels::USE_WAYPOINT_CANARY).map(String::as_str) {
        None | Some("") => Named::Absent,
        Some("none") => Named::None,
        Some(name) => Named::Waypoint(NamespacedName {
            namespace: all
                .get(labels::USE_WAYPOINT_CANARY_NAMESPACE)
                .map_or(namespace, String::as_str)
                .into(),
            name: name.into(),
        }),
    }
}

fn percentage(text: Option<&str>) -> Result<u32, String> {
    let Some(text) = text else {
        return Ok(0);
    };
    let number = text.parse().ok().filter(|number| *number <= ALL);
    number.ok_or_else(|| text.chars().take(40).collect())
}

/// What to tell where both take calls. A first waypoint that is away matters as long as it has a share.
fn shared(
    object: ObjectRef,
    first: &NamespacedName,
    of_first: Option<Verdict>,
    second: &NamespacedName,
    weight: u32,
) -> Verdict {
    let text = format!("{weight} % of its calls pass canary waypoint {second}");
    match of_first {
        Some(away) if !away.holds && weight < ALL => {
            let text =
                format!("waypoint {first} has no ready pod; calls to it are refused; {text}");
            Verdict::fails(object, BOUND, away.reason, text)
        }
        Some(away) if !away.holds => {
            let text = format!("bound to waypoint {first}, which has no ready pod; {text}");
            Verdict::holds(object, BOUND, "WaypointAccepted", text)
        }
        _ => {
            let text = format!("bound to waypoint {first}; {text}");
            Verdict::holds(object, BOUND, "WaypointAccepted", text)
        }
    }
}

/// What to tell where the second waypoint takes no calls.
fn alone(
    object: ObjectRef,
    first: &NamespacedName,
    of_first: Option<Verdict>,
    unused: &Unused,
) -> Verdict {
    let why = &unused.why;
    if let Some(mut away) = of_first.filter(|verdict| !verdict.holds) {
        away.message = format!("{}; {why}", away.message);
        return away;
    }
    let text = format!("bound to waypoint {first}, which takes all calls: {why}");
    let verdict = match unused.reason {
        Some(reason) => Verdict::fails(object, BOUND, reason, text),
        None => Verdict::holds(object, BOUND, "WaypointAccepted", text),
    };
    verdict.severity(Severity::Warning)
}
