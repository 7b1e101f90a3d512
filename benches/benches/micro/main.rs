//! `make bench-micro`: what one decision costs, and how that grows with the mesh.
//!
//! Each figure is one call on data of the size shown, on one thread, without sockets. What counts is
//! how a column grows with the size, not the nanoseconds of one machine.

#![forbid(unsafe_code)]

mod decide;
mod decode;
mod mesh;
mod policy;
mod routes;

fn main() {
    divan::main();
}
