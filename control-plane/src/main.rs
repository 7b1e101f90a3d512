//! The control plane of the mesh, as a process.

use std::process::ExitCode;

use clap::Parser;
use isobar_control_plane::{Config, run, validate};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let config = Config::parse();
    if !config.validate.is_empty() {
        return validate(&config.validate, &mut std::io::stdout());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isobard: {error:#}");
            ExitCode::FAILURE
        }
    }
}
