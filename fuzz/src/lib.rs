//! What each fuzz target does with its input. Besides not crashing, each holds what it reads against
//! something: what is printed reads back, what is accepted is as it should be.

pub mod credentials;
pub mod kept;
pub mod local;
pub mod peer;
pub mod pods;
pub mod told;
