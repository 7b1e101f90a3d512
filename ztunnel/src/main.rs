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

Environment variables besides Istio's:
  ISOBAR_STATE_DIR         folder (mode 0700) that keeps the known mesh, so that a restart while the
                           control plane is away serves it at once; on tmpfs it keeps certificates
                           and their keys too, on a disk never (default: nothing is kept)
  ISOBAR_REQUIRE_WAYPOINT  whether a workload bound to a waypoint refuses what did not come through
                           it: true (default) or false, as Istio's ztunnel
";

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Proxy,
    Version,
    Help,
    Wrong(String),
}

/// What the arguments ask for. Istio's pods say `proxy ztunnel`; help is given wherever it is asked.
fn command(arguments: &[String]) -> Command {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words
        .iter()
        .any(|word| ["help", "--help", "-h"].contains(word))
    {
        return Command::Help;
    }
    match words[..] {
        [] | ["proxy"] | ["proxy", "ztunnel"] => Command::Proxy,
        ["version" | "--version" | "-V"] => Command::Version,
        ["proxy", "ztunnel", other, ..] | ["proxy" | "version", other, ..] => {
            Command::Wrong(format!("unexpected argument: {other}"))
        }
        [other, ..] => Command::Wrong(format!("unknown command: {other}")),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match command(&arguments) {
        Command::Proxy => run(),
        Command::Version => {
            println!("{}", ztunnel::admin::version());
            ExitCode::SUCCESS
        }
        Command::Help => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Command::Wrong(why) => {
            eprintln!("{why}\n\n{HELP}");
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
    control.limit(config.logging.lines_per_second);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_given_anywhere_and_nothing_unknown_starts_the_proxy() {
        let command = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            command(&words)
        };
        for line in ["", "proxy", "proxy ztunnel"] {
            assert_eq!(command(line), Command::Proxy, "{line}");
        }
        for line in [
            "help",
            "--help",
            "proxy --help",
            "proxy ztunnel -h",
            "version --help",
        ] {
            assert_eq!(command(line), Command::Help, "{line}");
        }
        assert_eq!(command("version"), Command::Version);
        for line in [
            "prox",
            "proxy --port 1",
            "proxy other",
            "proxy ztunnel x",
            "version x",
        ] {
            assert!(matches!(command(line), Command::Wrong(_)), "{line}");
        }
    }
}
