//! Attacks on port 15008 over HTTP/2, each named by its row in the catalogue, with frames written by
//! hand, against a server in a process of its own.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod bed;
mod client;
mod conduct;
mod floods;
mod headers;
mod limits;
mod matrix;
mod memory;
mod paired;
mod windows;
mod wire;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
