//! Tells what audits and dry runs of policies say.

use std::fmt::Display;

use isobar_route::Observed;

use crate::attribution::Attributed;
use crate::session::Session;

/// Counts and logs each; `call` names what was asked.
pub(crate) fn tell(
    session: &Session,
    caller: &Attributed,
    call: impl Display,
    observed: Vec<Observed>,
) {
    for one in observed {
        session.worker.metrics.observed(&one);
        let identity = caller.caller.identity.as_ref();
        tracing::info!(
            policy = %one.policy,
            rule = one.rule,
            outcome = one.outcome.as_str(),
            caller = identity.map(ToString::to_string),
            destination = %session.addressed.destination,
            %call,
            "a policy that is not enforced"
        );
    }
}
