//! L4 node proxy of the mesh.

use std::process::ExitCode;

use isobar_telemetry::logging::{self, LogConfig};
use ztunnel::config::{Config, Environment};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const HELP: &str = "\
ztunnel: carries the TCP of this node's pods through the mesh

Commands:
  proxy (default)  run the proxy; configured by environment variables, as Istio's ztunnel
  version          print version information
  help             print this text
";

fn main() -> ExitCode {
    let command = std::env::args().nth(1);
    match command.as_deref() {
        None | Some("proxy") => run(),
        Some("version" | "--version" | "-V") => {
            println!("{}", ztunnel::admin::version());
            ExitCode::SUCCESS
        }
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("unknown command: {other}\n\n{HELP}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> ExitCode {
    let config = match Environment::of_process().parse() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("configuration: {error}");
            return ExitCode::FAILURE;
        }
    };
    let control = match logging::init(&LogConfig {
        format: config.logging.format(),
        filter: config.logging.filter.clone(),
    }) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("RUST_LOG: {error}");
            return ExitCode::FAILURE;
        }
    };
    tell(&config);
    let result = ztunnel::app::run(config, control.clone());
    if let Err(error) = &result {
        tracing::error!("{error}");
    }
    control.flush();
    if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The start log: version and the whole effective configuration.
fn tell(config: &Config) {
    tracing::info!("version: {}", ztunnel::admin::version());
    match serde_json::to_string(config) {
        Ok(text) => tracing::info!("running with config: {text}"),
        Err(error) => tracing::warn!(%error, "the configuration cannot be shown"),
    }
}
