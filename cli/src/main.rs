//! The `isobar` command.

mod arguments;
mod commands;
mod control_plane;
mod lab_access;
mod mesh_access;
mod node_agent;
mod object_access;
mod output;
mod plugin;
mod port_forward;

use std::process::ExitCode;

use anyhow::bail;
use clap::{CommandFactory, FromArgMatches};

use crate::arguments::{Command, Isobar};
use crate::output::Format;

fn main() -> ExitCode {
    // The supervisor of a lab is this program started again.
    if let Some(code) = isobar_lab::supervisor_main() {
        return code;
    }
    match run(parse()) {
        Ok(code) => code,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// The command line; help speaks of this program as it was called.
fn parse() -> Isobar {
    let words: Vec<_> = std::env::args_os().collect();
    let is_plugin = plugin::is_plugin(words.first().map(|word| &**word));
    let command = match is_plugin {
        true => plugin::as_plugin(Isobar::command()),
        false => Isobar::command(),
    };
    let matches = command.get_matches_from(words);
    match Isobar::from_arg_matches(&matches) {
        Ok(mut isobar) => {
            isobar.global.is_plugin = is_plugin;
            isobar
        }
        Err(error) => error.exit(),
    }
}

fn run(isobar: Isobar) -> anyhow::Result<ExitCode> {
    let Isobar { global, command } = isobar;
    if let Some(name) = command
        .prints_only_text()
        .filter(|_| global.output != Format::Table)
    {
        bail!("isobar {name} prints text only; leave -o out");
    }
    if let Some(name) = command.needs_lab().filter(|_| global.names_cluster()) {
        bail!("isobar {name} is about labs; leave --kubeconfig and --context out");
    }
    match command {
        Command::Version => commands::version(&global),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Isobar::command(), "isobar", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Validate { paths } => commands::validate(&paths, &global),
        Command::Manifest(what) => commands::manifest::run(&what, &global),
        other => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let code = runtime.block_on(in_lab(other, global));
            // A read of standard input may be stuck in a thread of its own.
            runtime.shutdown_background();
            code
        }
    }
}

async fn in_lab(command: Command, global: arguments::Global) -> anyhow::Result<ExitCode> {
    match command {
        Command::Lab(lab) => commands::lab::run(lab, &global).await,
        Command::Status { verbose } => commands::status::run(verbose, &global).await,
        Command::ProxyConfig(what) => commands::proxy_config::run(what, &global).await,
        Command::ZtunnelConfig(what) => commands::proxy_config::of_nodes(&what, &global).await,
        Command::Waypoint(arguments::Waypoint::Generate(what)) => {
            commands::waypoint::generate(&what, &global)
        }
        Command::Waypoint(what) => commands::waypoint::run(what, &global).await,
        Command::Netpol(what) => commands::netpol::run(what, &global).await,
        Command::Explain(what) => commands::explain::run(what, &global).await,
        Command::Analyze(what) => commands::analyze::run(what, &global).await,
        Command::BugReport(what) => commands::bug_report::run(what, &global).await,
        Command::Dashboard(what) => commands::dashboard::run(what, &global).await,
        Command::Install(what) => commands::install::install(&what, &global).await,
        Command::Upgrade(what) => commands::install::upgrade(&what, &global).await,
        Command::Uninstall(what) => commands::install::uninstall(&what, &global).await,
        Command::Version
        | Command::Completion { .. }
        | Command::Manifest(_)
        | Command::Validate { .. } => unreachable!("handled without a runtime"),
    }
}
