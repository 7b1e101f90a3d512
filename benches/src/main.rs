//! `make bench`: what the mesh costs, side by side with no mesh, in one run.
//!
//! The same program plays three parts: it starts the lab, and inside pods it is the server and the
//! load generator, so that no other tool's cost is in the figures.

#![forbid(unsafe_code)]

mod client;
mod cores;
mod cost;
mod discovery;
mod floor;
mod l4;
mod l7;
mod report;
mod scenario;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Benchmarks of the mesh in a lab on this machine.
#[derive(Parser)]
#[command(name = "isobar-benches", version)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Folder the table (`table.txt`) and the figures (`results.json`) are written to.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Seconds each measurement takes.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

#[derive(Subcommand)]
enum Role {
    /// Serves small HTTP replies, and swallows bytes on the next port (run inside a pod).
    #[command(hide = true)]
    Server {
        /// Port of the HTTP server; the sink listens on the next one.
        #[arg(long)]
        port: u16,
    },
    /// Makes load and prints what it measured as JSON (run inside a pod).
    #[command(hide = true)]
    Client {
        /// Kind of load.
        #[arg(long)]
        kind: client::Kind,
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// Connections at once.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// For how long, in seconds.
        #[arg(long)]
        seconds: u64,
        /// Requests a second, for paced requests.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// Connect through the SOCKS5 proxy here.
        #[arg(long)]
        socks: Option<SocketAddr>,
    },
    /// Carries TCP in TLS and nothing else: the least any encrypted proxy costs (run inside a pod).
    #[command(hide = true)]
    Floor(floor::Floor),
    /// A control plane that knows as many workloads as asked for (run inside a pod).
    #[command(hide = true)]
    Discovery(discovery::Discovery),
    /// Serves HTTP/1.1, HTTP/2 and gRPC at two addresses, which it prints.
    #[command(hide = true)]
    HttpServer {
        /// Only through tunnels, on the mesh's port; the folder holds the authority that both ends trust.
        #[arg(long)]
        mesh: Option<PathBuf>,
    },
    /// Makes HTTP load and prints what it measured as JSON.
    #[command(hide = true)]
    HttpClient(l7::caller::Load),
    /// Compare the waypoint with Envoy.
    L7(l7::Options),
    /// Compare the node proxy with no mesh, with a plain TLS relay, and with a peer.
    L4(l4::Options),
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match options.role {
        Some(Role::Server { port }) => runtime.block_on(server::run(port)),
        Some(Role::Client {
            kind,
            to,
            connections,
            seconds,
            rate,
            socks,
        }) => {
            let load = client::Load {
                kind,
                to,
                connections,
                length: Duration::from_secs(seconds),
                rate,
                socks,
            };
            let measured = alone(&runtime, load.run())?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
        Some(Role::Floor(floor)) => runtime.block_on(floor.run()),
        Some(Role::Discovery(discovery)) => runtime.block_on(discovery.run()),
        Some(Role::HttpServer { mesh }) => alone(&runtime, l7::server::run(mesh.as_deref())),
        Some(Role::HttpClient(load)) => {
            let measured = alone(&runtime, load.run())?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
        Some(Role::L7(mut chosen)) => {
            chosen.out.get_or_insert(options.out);
            cores::leave()?;
            alone(&runtime, l7::run(&chosen))
        }
        Some(Role::L4(mut chosen)) => {
            chosen.out.get_or_insert(options.out);
            runtime.block_on(l4::run(&chosen))
        }
        None => {
            let results = runtime.block_on(scenario::all(options.seconds, options.rounds))?;
            report::write(&results, &options.out)
        }
    }
}

/// Runs what keeps to one thread.
fn alone<T>(
    runtime: &tokio::runtime::Runtime,
    what: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    runtime.block_on(tokio::task::LocalSet::new().run_until(what))
}
