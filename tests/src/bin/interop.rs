//! `make interop`: another vendor's ztunnel on some nodes of a mesh of ours.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use isobar_tests::interop::{Options, Peer};

/// Starts a mesh whose nodes have our node proxy or another's, lets their pods call each other, and
/// writes what was expected and seen as a matrix. Exits with 1 if a cell fails.
#[derive(Parser)]
#[command(name = "isobar-interop", version)]
struct Arguments {
    /// The other node proxy: a program that takes ztunnel's environment.
    #[arg(long, env = "PEER")]
    peer: PathBuf,
    /// Its name in the matrix.
    #[arg(long, env = "PEER_NAME", default_value = "Istio's ztunnel")]
    peer_name: String,
    /// The commit it was built from, if its `version` does not tell.
    #[arg(long, env = "PEER_COMMIT")]
    peer_commit: Option<String>,
    /// Folder that `istio-ztunnel.json` and `istio-ztunnel.md` are written to.
    #[arg(long, default_value = "docs/interop")]
    out: PathBuf,
    /// Name of the two files.
    #[arg(long, default_value = "istio-ztunnel")]
    name: String,
    /// Only these groups of scenarios, by the first word of their identifiers.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let peer = Peer::of(
        &arguments.peer,
        &arguments.peer_name,
        arguments.peer_commit.as_deref(),
    )?;
    let options = Options {
        peer,
        out: arguments.out,
        name: arguments.name,
        only: arguments.only,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let good = runtime.block_on(isobar_tests::interop::run(&options))?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
