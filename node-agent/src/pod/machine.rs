//! The order of enrolling and leaving: a pure function from what is wished and what is so to the
//! next step. It is asked again after every step, so that nothing done is taken on trust.

/// What is wished of a pod's redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// In the mesh.
    Enrolled,
    /// Not in the mesh.
    Plain,
}

/// What the rules in the pod's namespace are, as observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// None of ours.
    Absent,
    /// Those that carry captured connections and capture no new ones.
    Off,
    /// Those that capture new connections.
    On,
    /// Some of ours, but not as planned.
    Damaged,
}

/// What is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Rules and routes, observed now.
    pub rules: Rules,
    /// The pod is among those told to every node proxy that connects.
    pub announced: bool,
    /// The newest node proxy has said that it listens inside the pod.
    pub accepted: bool,
    /// The annotation says "enabled".
    pub annotated: bool,
    /// Since the annotation went, long enough has passed for callers to know.
    pub published: bool,
    /// No connection is left that the rules carry, or the time to wait is over.
    pub drained: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Everything is as wished: look again later.
    Rest,
    /// Write the rules and routes that carry, without capturing.
    CaptureOff,
    /// Write the rules that capture new connections.
    CaptureOn,
    /// Tell the node proxy and wait until it listens.
    Announce,
    /// Write the annotation: callers may send HBONE.
    Annotate,
    /// Take the annotation back: callers shall send plain TCP.
    Retract,
    /// Give callers time to learn: the node proxy still takes their tunnels.
    AwaitPublished,
    /// Let the connections that the rules carry end.
    AwaitDrained,
    /// Remove rules and routes.
    Remove,
    /// Tell every node proxy to forget the pod.
    Withdraw,
}

/// The next step towards `goal`.
#[must_use]
pub const fn next(goal: Goal, facts: &Facts) -> Step {
    match goal {
        Goal::Enrolled => towards_enrolled(facts),
        Goal::Plain => towards_plain(facts),
    }
}

const fn towards_enrolled(facts: &Facts) -> Step {
    if !facts.accepted {
        // Rules that capture already stay: refusing is better than plaintext.
        return match facts.rules {
            Rules::Absent => Step::CaptureOff,
            Rules::Off | Rules::On | Rules::Damaged => Step::Announce,
        };
    }
    match facts.rules {
        Rules::Absent | Rules::Off | Rules::Damaged => Step::CaptureOn,
        Rules::On if !facts.annotated => Step::Annotate,
        Rules::On => Step::Rest,
    }
}

const fn towards_plain(facts: &Facts) -> Step {
    if facts.annotated {
        return Step::Retract;
    }
    match facts.rules {
        // At once: what is captured no more is plain, and tunnels of callers that have not heard
        // of it yet are carried as before.
        Rules::On | Rules::Damaged => Step::CaptureOff,
        Rules::Off if !facts.published => Step::AwaitPublished,
        Rules::Off if !facts.drained => Step::AwaitDrained,
        Rules::Off => Step::Remove,
        Rules::Absent if facts.announced => Step::Withdraw,
        Rules::Absent => Step::Rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Facts = Facts {
        rules: Rules::Absent,
        announced: false,
        accepted: false,
        annotated: false,
        published: false,
        drained: false,
    };

    /// Does what `next` says in a world where everything succeeds.
    fn walk(goal: Goal, facts: &mut Facts) -> Vec<Step> {
        let mut steps = Vec::new();
        loop {
            let step = next(goal, facts);
            steps.push(step);
            match step {
                Step::Rest => return steps,
                Step::CaptureOff => facts.rules = Rules::Off,
                Step::CaptureOn => facts.rules = Rules::On,
                Step::Announce => (facts.announced, facts.accepted) = (true, true),
                Step::Annotate => facts.annotated = true,
                Step::Retract => facts.annotated = false,
                Step::AwaitPublished => facts.published = true,
                Step::AwaitDrained => facts.drained = true,
                Step::Remove => facts.rules = Rules::Absent,
                Step::Withdraw => (facts.announced, facts.accepted) = (false, false),
            }
            assert!(steps.len() < 20, "no end: {steps:?}");
        }
    }

    #[test]
    fn joining_captures_only_once_the_proxy_listens_and_publishes_last() {
        let mut facts = FRESH;
        assert_eq!(
            walk(Goal::Enrolled, &mut facts),
            [
                Step::CaptureOff,
                Step::Announce,
                Step::CaptureOn,
                Step::Annotate,
                Step::Rest
            ]
        );
    }

    #[test]
    fn leaving_unpublishes_first_and_tells_the_proxy_last() {
        let mut facts = FRESH;
        walk(Goal::Enrolled, &mut facts);
        assert_eq!(
            walk(Goal::Plain, &mut facts),
            [
                Step::Retract,
                Step::CaptureOff,
                Step::AwaitPublished,
                Step::AwaitDrained,
                Step::Remove,
                Step::Withdraw,
                Step::Rest
            ]
        );
    }

    #[test]
    fn a_pod_that_comes_back_while_it_drains_is_captured_again_at_once() {
        let facts = Facts {
            rules: Rules::Off,
            announced: true,
            accepted: true,
            published: true,
            ..FRESH
        };
        assert_eq!(next(Goal::Enrolled, &facts), Step::CaptureOn);
    }

    #[test]
    fn damage_is_repaired_without_asking_the_proxy_again() {
        for rules in [Rules::Absent, Rules::Damaged, Rules::Off] {
            let facts = Facts {
                rules,
                announced: true,
                accepted: true,
                annotated: true,
                ..FRESH
            };
            assert_eq!(next(Goal::Enrolled, &facts), Step::CaptureOn);
        }
    }

    #[test]
    fn without_a_proxy_capturing_rules_stay() {
        let facts = Facts {
            rules: Rules::On,
            announced: true,
            annotated: true,
            ..FRESH
        };
        assert_eq!(next(Goal::Enrolled, &facts), Step::Announce);
    }

    #[test]
    fn from_anywhere_both_goals_are_reached() {
        for rules in [Rules::Absent, Rules::Off, Rules::On, Rules::Damaged] {
            for bits in 0..32 {
                let bit = |n: u32| bits & (1 << n) != 0;
                for goal in [Goal::Enrolled, Goal::Plain] {
                    let mut facts = Facts {
                        rules,
                        announced: bit(0),
                        accepted: bit(1),
                        annotated: bit(2),
                        published: bit(3),
                        drained: bit(4),
                    };
                    walk(goal, &mut facts);
                    let enrolled = goal == Goal::Enrolled;
                    assert_eq!(facts.annotated, enrolled);
                    assert_eq!(facts.rules == Rules::On, enrolled);
                    assert_eq!(facts.rules == Rules::Absent, !enrolled);
                }
            }
        }
    }
}
