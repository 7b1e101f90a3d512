//! The CNI plugin: run by the container runtime for every pod of a node.
//!
//! Installed by the node agent as `isobar-cni`, behind the plugin that makes the pod's interface.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use isobar_node_agent::cni::config::{CONFIG_MAX, NetworkConfig};
use isobar_node_agent::cni::environment::Environment;
use isobar_node_agent::cni::{CniError, Code, plugin};
use isobar_node_agent::faults::crash_point;

fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        return typed();
    }
    let mut input = Vec::new();
    let read = std::io::stdin().take(CONFIG_MAX).read_to_end(&mut input);
    let environment = Environment::read(|name| std::env::var(name).ok());
    let known = environment.as_ref().ok().cloned();
    let done = read
        .map_err(|error| CniError::new(Code::Io, "standard input cannot be read", &error))
        .and(environment)
        .and_then(|environment| plugin::run(&environment, &input));
    let (text, code) = match done {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("{}", plugin::log_line(known.as_ref(), &error));
            let version = NetworkConfig::version_of(&input);
            (Some(error.to_json(&version)), ExitCode::FAILURE)
        }
    };
    crash_point("before", "print");
    match text.map(|text| std::io::stdout().write_all(text.as_bytes())) {
        // The runtime would take silence for success.
        Some(Err(_)) => ExitCode::FAILURE,
        _ => code,
    }
}

/// Answers somebody who types its name, as no container runtime does.
fn typed() -> ExitCode {
    let version = concat!("isobar-cni-plugin ", env!("CARGO_PKG_VERSION"));
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == "--version")
    {
        let said = writeln!(std::io::stdout(), "{version}");
        return said.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    eprintln!(
        "{version}: a CNI plugin, run by the container runtime with CNI_COMMAND; \
         `isobar-cni` installs it"
    );
    ExitCode::from(2)
}
