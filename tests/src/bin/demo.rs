//! `make demo`: a tour of the mesh that checks what it shows.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

/// Starts a mesh of two nodes in a lab on this machine and tours routing, encryption and policy.
/// Exits with 1 if anything is not as it should be.
#[derive(Parser)]
#[command(name = "isobar-demo", version)]
struct Options {
    /// Leave the lab up afterwards and say what to try next.
    #[arg(long)]
    keep: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let good = runtime.block_on(isobar_tests::tour::run(options.keep, None))?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
