//! The Helm charts of the mesh, as they are in `manifests/charts`, and what renders them without Helm.
//!
//! * [`Chart`]: one of the family, embedded in this crate.
//! * [`Values`]: what a user sets, from files and from assignments.
//! * [`Manifest`]: an object that a chart renders to, in the order in which Helm applies them.
//!
//! Templates keep to the part of Helm's language that both render alike: `if`, `with`, `range`,
//! `define` and `template`, and the functions of this crate (`quote`, `toYaml`, `nindent`) besides
//! those of Go's templates. The suites compare with the real Helm.

#![forbid(unsafe_code)]

mod chart;
mod embedded;
mod functions;
mod judge;
mod manifest;
mod values;
mod yaml;

pub use chart::{Chart, ChartError, Release};
pub use manifest::Manifest;
pub use values::{Values, ValuesError};
