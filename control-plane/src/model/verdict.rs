use isobar_objects::ObjectRef;
use serde::Serialize;

/// How much a verdict matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As wished.
    Info,
    /// In force, but not in every detail as written.
    Warning,
    /// Not in force as written; its target refuses.
    Error,
}

/// One thing to say about one object; becomes a status condition and a line for the user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict {
    /// About what.
    pub object: ObjectRef,
    /// Condition type, as Istio names it where it has one.
    pub condition: &'static str,
    /// Condition status.
    pub holds: bool,
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// How much it matters.
    pub severity: Severity,
}

impl Verdict {
    /// The condition holds.
    pub(crate) fn holds(
        object: ObjectRef,
        condition: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            object,
            condition,
            holds: true,
            reason,
            message: message.into(),
            severity: Severity::Info,
        }
    }

    /// The condition does not hold.
    pub(crate) fn fails(
        object: ObjectRef,
        condition: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            object,
            condition,
            holds: false,
            reason,
            message: message.into(),
            severity: Severity::Error,
        }
    }

    /// Sets how much it matters.
    pub(crate) fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}
