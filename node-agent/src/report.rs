//! What the API server is told of a pod's redirection beside the annotation: a condition that says
//! what was observed, and events about what went wrong.

use isobar_kubernetes::Events;
use isobar_objects::Pod;
use serde_json::{Value, json};

/// Type of the condition on a pod.
pub const CONDITION: &str = "isobar.dev/Redirected";

/// Where reports go.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    /// Pods have conditions: in an API server each writer has its own, in files they are one list.
    pub conditions: bool,
    /// Where events go.
    pub events: Events,
}

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It was seen to be so.
    True,
    /// It was seen not to be so.
    False,
    /// It was seen to be so, and cannot be seen now.
    Unknown,
}

impl Truth {
    const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];

    const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The condition as it is on a pod, or as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    truth: Truth,
    reason: String,
    message: String,
    /// When `truth` became what it is.
    since: jiff::Timestamp,
}

impl Condition {
    /// The condition that a pod's object has.
    #[must_use]
    pub fn on(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let all = status.conditions.iter().flatten();
        let found = all.into_iter().find(|one| one.type_ == CONDITION)?;
        let truth = Truth::ALL.into_iter();
        Some(Self {
            truth: truth.into_iter().find(|one| one.as_str() == found.status)?,
            reason: found.reason.clone().unwrap_or_default(),
            message: found.message.clone().unwrap_or_default(),
            since: found.last_transition_time.as_ref()?.0,
        })
    }

    /// The condition that follows `before`.
    #[must_use]
    pub fn after(before: Option<&Self>, truth: Truth, reason: &str, message: &str) -> Self {
        let same = before.filter(|before| before.truth == truth);
        Self {
            truth,
            reason: reason.to_owned(),
            message: message.to_owned(),
            // The server knows whole seconds only.
            since: same.map_or_else(
                || {
                    let now = jiff::Timestamp::now().as_second();
                    jiff::Timestamp::from_second(now).unwrap_or_default()
                },
                |before| before.since,
            ),
        }
    }

    /// As it is written.
    #[must_use]
    pub fn value(&self) -> Value {
        json!({
            "type": CONDITION,
            "status": self.truth.as_str(),
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": self.since.to_string(),
        })
    }
}

/// What a pod's object says of its redirection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advertised {
    /// Which object it is; empty if it has no uid. That of a static pod has another one than the pod.
    pub uid: String,
    /// The annotation says that callers may use HBONE.
    pub annotated: bool,
    /// The condition, if there is one.
    pub condition: Option<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_the_last_change_and_survives_the_server() {
        let old: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut first = Condition::after(None, Truth::True, "A", "a");
        first.since = old;
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "cart"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, first.value()]}}))
        .unwrap();
        assert_eq!(Condition::on(&pod), Some(first.clone()));
        let other = Condition::after(Some(&first), Truth::True, "B", "b");
        assert_eq!((other.since, other == first), (old, false));
        let blind = Condition::after(Some(&first), Truth::Unknown, "A", "a");
        assert!(blind.since > old);
        assert_eq!(Condition::after(Some(&first), Truth::True, "A", "a"), first);
    }
}
