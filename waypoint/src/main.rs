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
READINESS_PORT.
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None | Some("proxy") => run(),
        Some("version" | "--version" | "-V") => {
            println!("waypoint {}", env!("CARGO_PKG_VERSION"));
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
