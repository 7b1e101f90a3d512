//! L7 proxy of the mesh, per namespace or per service account.

use std::process::ExitCode;

use isobar_telemetry::logging::{self, LogConfig, LogFormat};
use isobar_waypoint::config::Config;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const HELP: &str = "\
waypoint: applies routes and policies to requests in the mesh

Commands:
  proxy (default)  run the proxy; configured by environment variables
  version          print version information
  help             print this text

Variables: XDS_ADDRESS, XDS_ROOT_CA, CA_ADDRESS, CA_ROOT_CA, AUTH_TOKEN, POD_NAME,
POD_NAMESPACE, SERVICE_ACCOUNT, INSTANCE_IP, NODE_NAME, GATEWAY_NAME, CLUSTER_ID,
NETWORK, TRUST_DOMAIN, TERMINATION_GRACE_PERIOD, WORKER_THREADS, RUST_LOG,
LOG_FORMAT (json), ACCESS_LOG (off), HBONE_PORT, ADMIN_PORT, STATS_PORT,
READINESS_PORT, ISOBAR_PLAINTEXT (PORT=HOST:PORT,...: plain traffic from outside the mesh).
";

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Proxy,
    Version,
    Help,
    Wrong(String),
}

/// What the arguments ask for. Istio's pods say `proxy waypoint`; help is given wherever it is asked.
fn command(arguments: &[String]) -> Command {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words
        .iter()
        .any(|word| ["help", "--help", "-h"].contains(word))
    {
        return Command::Help;
    }
    match words[..] {
        [] | ["proxy"] | ["proxy", "waypoint"] => Command::Proxy,
        ["version" | "--version" | "-V"] => Command::Version,
        ["proxy", "waypoint", other, ..] | ["proxy" | "version", other, ..] => {
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
            println!("waypoint {}", env!("CARGO_PKG_VERSION"));
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
    let config = match Config::from_process() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("configuration: {error}");
            return ExitCode::FAILURE;
        }
    };
    let format = if config.log_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let filter = config.log_filter.clone();
    let control = match logging::init(&LogConfig { format, filter }) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("RUST_LOG: {error}");
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(
        pod = config.pod_name,
        namespace = config.namespace,
        account = config.service_account,
        "waypoint {}",
        env!("CARGO_PKG_VERSION")
    );
    let result = isobar_waypoint::run::run(config, control.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_given_anywhere_and_nothing_unknown_starts_the_proxy() {
        let command = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            command(&words)
        };
        for line in ["", "proxy", "proxy waypoint"] {
            assert_eq!(command(line), Command::Proxy, "{line}");
        }
        for line in [
            "help",
            "--help",
            "proxy --help",
            "proxy waypoint -h",
            "version --help",
        ] {
            assert_eq!(command(line), Command::Help, "{line}");
        }
        assert_eq!(command("version"), Command::Version);
        for line in [
            "prox",
            "proxy --port 1",
            "proxy other",
            "proxy waypoint x",
            "version x",
        ] {
            assert!(matches!(command(line), Command::Wrong(_)), "{line}");
        }
    }
}
