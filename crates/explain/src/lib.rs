//! What would happen to a call: which proxies see it, which policies, routes and subsets decide, and
//! why.
//!
//! Nothing is sent. The objects go through the control plane's own model, and what proxies would be
//! told goes through the very functions they decide with ([`isobar_state`], [`isobar_route`]); only
//! the order of the questions is repeated here. So an answer is about the objects as they are, not
//! about a proxy that has not heard of them yet.
//!
//! * [`World`]: the objects as proxies see them.
//! * [`Question`]: who calls whom, with which request.
//! * [`diagnose`]: everything there is to say about the objects themselves.
//! * [`explain`]: the answer, an [`Explanation`] of [`Way`]s, each with its [`Step`]s and [`Outcome`].

#![forbid(unsafe_code)]

mod answer;
mod caller;
mod destination;
mod diagnosis;
mod left_out;
mod names;
mod node;
mod plain;
mod question;
mod request;
mod waypoint;
mod world;

use crate::caller::Caller;
use crate::destination::{Destinations, End};

pub use answer::{Explanation, Outcome, Step, Way};
pub use diagnosis::{Diagnosis, Gravity, Lives, diagnose};
pub use isobar_control_plane::{
    Missing, Remedy, ShutDoor, Started, Verdict, guards, imagined, shut_doors_by, verdicts_by,
};
pub use left_out::LeftOut;
pub use question::{Asked, Question, QuestionError};
pub use world::World;

/// Answers a question.
///
/// # Errors
/// [`QuestionError`] when there is no such caller or destination, or the request is none.
pub fn explain(world: &World, question: &Question) -> Result<Explanation, QuestionError> {
    let caller = Caller::find(world, question)?;
    let found = Destinations::find(world, question, &caller)?;
    let mut explanation = Explanation::begin(&caller, &found, question);
    let share = 1.0 / found.ends.len() as f64;
    let mut ways = Vec::new();
    for end in &found.ends {
        let after = match end {
            End::At(address) => {
                let to = found.at(*address);
                if caller.enrolled {
                    node::through_the_mesh(world, &caller, &to, question)?
                } else {
                    plain::outside_the_mesh(world, &caller, &to)
                }
            }
            End::Named { host, port } => {
                let (host, port) = (host.clone(), *port);
                vec![Way::new(1.0, Vec::new(), Outcome::Named { host, port })]
            }
        };
        ways.extend(after.into_iter().map(|way| way.after(share, &found.steps)));
    }
    explanation.ways = answer::merge(ways);
    let addresses = found.addresses();
    explanation.left_out = world.left_out_for(&caller, &addresses, &explanation.ways);
    Ok(explanation)
}

#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod invalid_tests;
#[cfg(test)]
mod left_out_tests;
#[cfg(test)]
mod names_tests;
#[cfg(test)]
mod tests;
