//! What is found out, for people and programs.

use std::net::SocketAddr;

use isobar_state::Refusal;
use isobar_types::Reason;
use serde::{Serialize, Serializer};

use crate::caller::Caller;
use crate::destination::Destinations;
use crate::left_out::LeftOut;
use crate::question::Question;

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `NAMESPACE/NAME` of the calling pod.
    pub source: String,
    /// Its identity, where it is enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Why it is enrolled or not.
    pub enrolment: String,
    /// What it calls, in full.
    pub destination: String,
    /// The address that stands for it, the first where there are several; none where only a name server
    /// outside knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// The request, if one was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What may happen, the most likely first.
    pub ways: Vec<Way>,
    /// Policies that might be about the call and do not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// One of the things that may happen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// Share of calls, 0 to 1.
    pub share: f64,
    /// Who decided what, in order.
    pub steps: Vec<Step>,
    /// How it ends.
    pub outcome: Outcome,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Who decides: `ztunnel node-1`, `waypoint shop/reviews`.
    pub place: String,
    /// What.
    pub decision: String,
    /// By which object, or rule of the mesh.
    pub because: String,
}

/// How a call ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Outcome {
    /// An application gets it.
    #[serde(rename_all = "camelCase")]
    Reaches {
        /// One of these: `NAMESPACE/NAME`.
        pods: Vec<String>,
        /// Port there.
        port: u16,
    },
    /// It leaves the mesh.
    #[serde(rename_all = "camelCase")]
    Leaves {
        /// For this address, unchanged.
        to: SocketAddr,
    },
    /// It goes, unchanged, where a name server says that a host is. Nothing here knows where that is, nor
    /// whether there is such a host.
    #[serde(rename_all = "camelCase")]
    Named {
        /// The host.
        host: String,
        /// Port there.
        port: u16,
    },
    /// A waypoint answers by itself, as it was told.
    #[serde(rename_all = "camelCase")]
    Answered {
        /// HTTP status.
        status: u16,
        /// What it is.
        detail: String,
    },
    /// It is refused.
    #[serde(rename_all = "camelCase")]
    Refused {
        /// As in logs and metrics.
        #[serde(serialize_with = "as_word")]
        reason: Reason,
        /// HTTP status, where a waypoint answers; otherwise the connection is closed.
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// Names what is wrong.
        detail: String,
    },
    /// It is handed over to somebody else, and what becomes of it is not known here.
    #[serde(rename_all = "camelCase")]
    Unknown {
        /// The waypoint that takes it: `NAMESPACE/NAME` of its Gateway.
        waypoint: String,
    },
}

fn as_word<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.as_str())
}

impl Step {
    pub(crate) fn new(
        place: impl Into<String>,
        decision: impl Into<String>,
        because: impl Into<String>,
    ) -> Self {
        Self {
            place: place.into(),
            decision: decision.into(),
            because: because.into(),
        }
    }
}

impl Outcome {
    /// True if an application, or what lies outside the mesh, gets the call; `None` if nobody here knows.
    #[must_use]
    pub const fn is_allowed(&self) -> Option<bool> {
        match self {
            Self::Refused { .. } => Some(false),
            Self::Unknown { .. } | Self::Named { .. } => None,
            Self::Reaches { .. } | Self::Leaves { .. } | Self::Answered { .. } => Some(true),
        }
    }

    /// A connection that is closed.
    pub(crate) fn closed(reason: Reason, detail: impl Into<String>) -> Self {
        Self::Refused {
            reason,
            status: None,
            detail: detail.into(),
        }
    }

    /// A request that is answered with an error.
    pub(crate) fn status(status: u16, reason: Reason, detail: impl Into<String>) -> Self {
        Self::Refused {
            reason,
            status: Some(status),
            detail: detail.into(),
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::closed(refusal.reason, refusal.detail)
    }
}

impl Way {
    pub(crate) const fn new(share: f64, steps: Vec<Step>, outcome: Outcome) -> Self {
        Self {
            share,
            steps,
            outcome,
        }
    }

    /// Puts what happened before in front.
    pub(crate) fn after(mut self, share: f64, before: &[Step]) -> Self {
        self.share *= share;
        self.steps.splice(0..0, before.iter().cloned());
        self
    }
}

impl Explanation {
    pub(crate) fn begin(caller: &Caller, to: &Destinations, question: &Question) -> Self {
        let request = question.request.as_ref();
        Self {
            source: caller.name(),
            identity: caller.identity().map(|identity| identity.to_string()),
            enrolment: caller.enrolment.clone(),
            destination: to.name.clone(),
            address: to.addresses().first().copied(),
            request: request.map(|asked| format!("{} {}", asked.method, asked.path)),
            ways: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// True if every way ends well, false if none does; `None` if it depends, or is not known.
    #[must_use]
    pub fn allowed(&self) -> Option<bool> {
        let mut all = self.ways.iter().map(|way| way.outcome.is_allowed());
        let first = all.next()?;
        all.all(|way| way == first).then_some(first).flatten()
    }
}

/// Ways that differ only in the pod they end at become one; the most likely comes first.
pub(crate) fn merge(ways: Vec<Way>) -> Vec<Way> {
    let mut merged: Vec<Way> = Vec::new();
    for way in ways {
        match merged.iter_mut().find(|have| is_same(have, &way)) {
            Some(have) => {
                have.share += way.share;
                join(&mut have.outcome, way.outcome);
            }
            None => merged.push(way),
        }
    }
    for way in &mut merged {
        way.share = (way.share * 1000.0).round() / 1000.0;
    }
    merged.sort_by(|a, b| b.share.total_cmp(&a.share));
    merged
}

fn is_same(a: &Way, b: &Way) -> bool {
    a.steps == b.steps
        && match (&a.outcome, &b.outcome) {
            (Outcome::Reaches { port: a, .. }, Outcome::Reaches { port: b, .. }) => a == b,
            (a, b) => a == b,
        }
}

fn join(into: &mut Outcome, from: Outcome) {
    if let (Outcome::Reaches { pods, .. }, Outcome::Reaches { pods: more, .. }) = (into, from) {
        for pod in more {
            if !pods.contains(&pod) {
                pods.push(pod);
            }
        }
        pods.sort();
    }
}
