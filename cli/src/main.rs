//! The isobar command.

mod args;
mod findings;
mod lab;
mod page;
mod proxy_config;
mod render;
mod status;
mod waypoint;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};

use crate::args::{Command, Options};

fn main() -> ExitCode {
    // The supervisor of a lab is this program started again.
    if let Some(code) = isobar_lab::supervisor_main() {
        return code;
    }
    let options = Options::parse();
    match start(options) {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("isobar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(run(options));
    // A read of standard input may be stuck in a thread of its own.
    runtime.shutdown_background();
    code
}

async fn run(options: Options) -> Result<ExitCode> {
    let (chosen, output) = (options.lab.as_deref(), options.output);
    match options.command {
        Command::Lab(command) => return lab::run(command, chosen, output).await,
        Command::Status { verbose } => {
            status::show(&lab::connect(chosen)?, output, verbose).await?;
        }
        Command::ProxyConfig(command) => {
            proxy_config::show(&lab::connect(chosen)?, command, output).await?;
        }
        Command::Waypoint(command) => {
            waypoint::run(&lab::connect(chosen)?, command, output).await?;
        }
        Command::Validate { paths } => return findings::validate(&paths, output),
        Command::Version => anstream::println!("isobar {}", env!("CARGO_PKG_VERSION")),
        Command::Completion { shell } => clap_complete::generate(
            shell,
            &mut Options::command(),
            "isobar",
            &mut std::io::stdout(),
        ),
    }
    Ok(ExitCode::SUCCESS)
}
