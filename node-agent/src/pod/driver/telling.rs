//! What a pod's task says to others: annotation, condition, events, status page.

use std::time::Duration;

use isobar_kubernetes::Note;
use isobar_objects::WriteError;
use isobar_types::labels;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Driver, StepError};
use crate::board::{PodView, Standing};
use crate::desire::Desire;
use crate::plan::Wishes;
use crate::pod::machine::{Goal, Rules};
use crate::report::{Condition, Truth};
use crate::zds::AnnounceError;

/// Annotation that says why a pod that should be redirected is not.
const PROBLEM: &str = "isobar.dev/redirection-problem";

impl Driver {
    pub(super) async fn annotate(&mut self) -> Result<(), StepError> {
        let patch = json!({"metadata": {"annotations": {
            labels::REDIRECTION: "enabled",
            PROBLEM: null,
        }}});
        self.patch(&patch).await?;
        self.annotated = true;
        self.foreign = false;
        self.retracted = None;
        self.drift.wrote();
        Ok(())
    }

    /// Takes back the annotation and with it everything that was said, the condition too.
    pub(super) async fn retract(&mut self) -> Result<(), StepError> {
        self.take_back().await?;
        if self.foreign {
            // What others wrote is not taken back with ours.
            let patch = json!({"metadata": {"annotations": {labels::REDIRECTION: null}}});
            self.patch(&patch).await?;
            self.foreign = false;
        }
        self.annotated = false;
        self.drift.wrote();
        self.retracted = Some(Instant::now());
        self.left.forget();
        self.condition = None;
        Ok(())
    }

    async fn patch(&self, patch: &Value) -> Result<(), WriteError> {
        let writer = &self.services.writer;
        let (object, uid) = (&self.reference, &self.object);
        writer.patch_exactly(object, uid, patch).await
    }

    /// Takes back all that was written on the pod's object.
    pub(super) async fn take_back(&self) -> Result<(), WriteError> {
        let writer = &self.services.writer;
        writer.delete_exactly(&self.reference, &self.object).await
    }

    /// Compares what the pod's object says with what was written there. What somebody else changed
    /// is taken for what is so, and the next look mends it: at once if nothing is left to wait for.
    /// `None` if all is as written.
    pub(super) fn drifted(&mut self, desire: &Desire) -> Option<Duration> {
        let said = &desire.advertised;
        let annotation = said.annotated != self.annotated;
        // Elsewhere there is none to keep.
        let keeps = self.services.reports.conditions && desire.goal == Goal::Enrolled;
        let condition = keeps && said.condition != self.condition;
        let left = self.drift.since(annotation || condition)?;
        if left.is_zero() {
            tracing::warn!(pod = %self.reference, annotation, condition,
                "its object does not say what was written: writing it again");
            self.annotated = said.annotated;
            self.foreign = said.annotated && annotation;
            if condition {
                self.condition.clone_from(&said.condition);
            }
        }
        Some(left)
    }

    /// Writes the condition unless it is there. If that fails, the next look tries again: nothing
    /// depends on it.
    pub(super) async fn say(&mut self, truth: Truth, reason: &str, message: &str) {
        if !self.services.reports.conditions {
            return;
        }
        let next = Condition::after(self.condition.as_ref(), truth, reason, message);
        if self.condition.as_ref() == Some(&next) {
            return;
        }
        let patch = json!({ "status": { "conditions": [next.value()] } });
        match self.patch(&patch).await {
            Ok(()) => {
                self.condition = Some(next);
                self.drift.wrote();
            }
            Err(error) => {
                tracing::warn!(pod = %self.reference, %error, "the pod's condition cannot be written");
            }
        }
    }

    /// Says that the pod is as wished.
    pub(super) async fn say_rested(&mut self, desire: &Desire) {
        match desire.goal {
            Goal::Enrolled => {
                let (reason, message) = redirected(&desire.wishes);
                self.say(Truth::True, reason, message).await;
            }
            // What went wrong on the way in does not matter any more.
            Goal::Plain if self.condition.is_some() => {
                if let Err(error) = self.retract().await {
                    tracing::warn!(pod = %self.reference, %error, "the pod's condition stays");
                }
            }
            Goal::Plain => {}
        }
    }

    /// Tells the owner of the pod.
    pub(super) fn tell(&self, reason: &'static str, message: &str) {
        self.services.reports.events.tell(Note {
            about: self.reference.clone(),
            uid: self.sandbox.uid.clone(),
            reason,
            message: message.to_owned(),
        });
    }

    /// Tells everybody. A pod whose rules cannot be written must not be advertised as redirected;
    /// one whose rules cannot be looked at, not for long. One that no node proxy serves stays
    /// advertised, or callers would send it plain text; its condition says what is so.
    pub(super) async fn failed(&mut self, desire: &Desire, step: &'static str, error: &StepError) {
        let problem = format!("{step}: {error}");
        let waiting = matches!(error, StepError::Announce(AnnounceError::NoProxy));
        let is_new = problem != self.problem;
        self.services.metrics.failure(step);
        if is_new {
            if waiting {
                tracing::info!(pod = %self.reference, "waiting for a node proxy");
            } else {
                tracing::error!(pod = %self.reference, step, %error, "a step failed, trying again");
            }
        }
        let unseen = matches!(error, StepError::Backend(_)) && desire.goal == Goal::Enrolled;
        if unseen && self.is_blind(step) {
            self.say(Truth::Unknown, "CannotBeSeen", &problem).await;
            self.tell("RulesCannotBeSeen", &problem);
        } else if unseen && (is_new || self.annotated) {
            self.advertise_problem(&problem).await;
        }
        if desire.goal == Goal::Enrolled && !self.is_blind(step) && self.fails_for_long() {
            self.tell("RedirectionFailed", &problem);
            if let Some((reason, message)) = unserved(error, self.seen.rules) {
                self.say(Truth::False, reason, &message).await;
            }
        }
        self.problem = problem;
        let standing = if waiting {
            Standing::Enrolling
        } else {
            Standing::Failing
        };
        self.show(standing, &desire.why);
    }

    /// True if the rules were in force when they were last seen, and that is not long ago: a tool
    /// that fails once changes nothing about them.
    pub(super) fn is_blind(&self, step: &'static str) -> bool {
        let limit = self.services.timing.blind;
        let in_force = self.annotated && self.in_force.is_some_and(|at| at.elapsed() < limit);
        step == super::LOOK && in_force
    }

    /// True if the pod has not been as wished for a while: what passes by itself is no news.
    fn fails_for_long(&mut self) -> bool {
        let since = self.failing.get_or_insert_with(Instant::now);
        since.elapsed() >= super::PASSING
    }

    async fn advertise_problem(&mut self, problem: &str) {
        let patch = json!({"metadata": {"annotations": {PROBLEM: problem}}});
        let retracted = self.retract().await;
        let told = self.patch(&patch).await;
        if let Err(error) = retracted.and(told.map_err(StepError::Write)) {
            tracing::error!(pod = %self.reference, %error, "the pod's annotation cannot be written");
        }
        self.say(Truth::False, "NotRedirected", problem).await;
        self.tell("RedirectionFailed", problem);
    }

    pub(super) fn show(&self, standing: Standing, why: &str) {
        self.services.board.show(PodView {
            uid: self.sandbox.uid.clone(),
            namespace: self.sandbox.namespace.clone(),
            name: self.sandbox.name.clone(),
            ips: self.sandbox.ips.clone(),
            netns: self.netns.inode(),
            standing,
            why: why.to_owned(),
            rules: match self.seen.rules {
                Rules::Absent => "absent",
                Rules::Off => "off",
                Rules::On => "on",
                Rules::Damaged => "damaged",
            },
            accepted: self.services.zds.is_accepted(&self.sandbox.uid),
            published: self.annotated,
            connections: self.seen.carried,
            repairs: self.repairs,
            problem: self.problem.clone(),
            observed: jiff::Timestamp::now().to_string(),
        });
    }
}

/// Which connections of an enrolled pod its rules lead: reason and message of its condition.
const fn redirected(wishes: &Wishes) -> (&'static str, &'static str) {
    match wishes.inbound {
        true => (
            "Redirected",
            "new connections are led through the node proxy",
        ),
        false => (
            "OutboundRedirected",
            "new connections of the pod's own are led through the node proxy; plain ones to it are not, \
             as its annotation ambient.istio.io/bypass-inbound-capture asks, and no policy of the mesh \
             holds for them",
        ),
    }
}

/// Why an enrolled pod's connections go nowhere though its rules can be written, and what that means:
/// reason and message of its condition.
fn unserved(error: &StepError, rules: Rules) -> Option<(&'static str, String)> {
    let StepError::Announce(error) = error else {
        return None;
    };
    let reason = match error {
        AnnounceError::NoProxy | AnnounceError::Gone => "NoNodeProxy",
        AnnounceError::Refused(_) => "NodeProxyRefused",
    };
    let meaning = match rules {
        Rules::On => "the pod's rules lead its connections there, where nobody takes them",
        _ => "the pod is not redirected",
    };
    Some((reason, format!("{error}: {meaning}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_callers_pass_by_is_not_told_to_be_redirected_altogether() {
        assert_eq!(redirected(&Wishes::default()).0, "Redirected");
        let bypassed = Wishes {
            inbound: false,
            ..Wishes::default()
        };
        let (reason, message) = redirected(&bypassed);
        assert_eq!(reason, "OutboundRedirected");
        assert!(message.contains(labels::BYPASS_INBOUND));
    }

    #[test]
    fn a_pod_that_no_node_proxy_serves_is_not_redirected_whatever_its_rules() {
        let said = |error: AnnounceError, rules| unserved(&error.into(), rules).unwrap();
        let (reason, message) = said(AnnounceError::NoProxy, Rules::On);
        assert_eq!(reason, "NoNodeProxy");
        assert!(message.starts_with("no node proxy is connected: the pod's rules lead"));
        let (reason, message) = said(AnnounceError::Gone, Rules::Off);
        assert_eq!(reason, "NoNodeProxy");
        assert!(message.ends_with("the pod is not redirected"));
        let (reason, _) = said(AnnounceError::Refused("no".to_owned()), Rules::On);
        assert_eq!(reason, "NodeProxyRefused");
        let other = StepError::Answer(std::io::Error::other("full"));
        assert_eq!(unserved(&other, Rules::On), None);
    }
}
