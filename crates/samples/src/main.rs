//! Small applications to try a mesh with: a greeter, an httpbin, Bookinfo, an echo, a caller.
//!
//! They behave like the well-known samples of the same names as far as a lesson needs it.

#![forbid(unsafe_code)]

mod bookinfo;
mod call;
mod curl;
mod httpbin;
mod serve;
mod simple;

use clap::{Parser, Subcommand};

/// Sample applications for a service mesh.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    application: Application,
}

#[derive(Subcommand)]
enum Application {
    /// Answers "Hello server - VERSION" to every request.
    HelloServer {
        /// Version it answers with.
        #[arg(long, default_value = "v1")]
        version: String,
        /// Port it listens on.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Tells about requests: /get, /headers, /ip, /anything, /status/CODE, /delay/SECONDS, /bytes/N.
    Httpbin {
        /// Port it listens on.
        #[arg(long, default_value_t = 80)]
        port: u16,
    },
    /// A static welcome page.
    Nginx {
        /// Port it listens on.
        #[arg(long, default_value_t = 80)]
        port: u16,
    },
    /// Bookinfo's page, which calls details and reviews.
    Productpage {
        /// Port it listens on; the services it calls listen on the same one.
        #[arg(long, default_value_t = 9080)]
        port: u16,
    },
    /// Bookinfo's facts about a book.
    Details {
        /// Port it listens on.
        #[arg(long, default_value_t = 9080)]
        port: u16,
    },
    /// Bookinfo's reviews; v2 and v3 call ratings.
    Reviews {
        /// v1 has no stars, v2 black ones, v3 red ones.
        #[arg(long, default_value = "v1")]
        version: String,
        /// Port it listens on; ratings listens on the same one.
        #[arg(long, default_value_t = 9080)]
        port: u16,
    },
    /// Bookinfo's ratings.
    Ratings {
        /// Port it listens on.
        #[arg(long, default_value_t = 9080)]
        port: u16,
    },
    /// Sends back every byte of a TCP connection.
    TcpEcho {
        /// Port it listens on.
        #[arg(long, default_value_t = 9000)]
        port: u16,
    },
    /// Does nothing until it is told to end: a container to run commands in.
    Client,
    /// Calls a URL several times and counts the different answers.
    Get {
        /// http://HOST[:PORT]/PATH
        url: http::Uri,
        /// How often.
        #[arg(short = 'n', long, default_value_t = 1)]
        count: u32,
        /// Header field, as "NAME: VALUE"; may be repeated.
        #[arg(short = 'H', long = "header")]
        headers: Vec<String>,
        /// Calls a second; without it as fast as they are answered.
        #[arg(long = "rate", value_name = "RATE", value_parser = call::pace, allow_hyphen_values = true)]
        pace: Option<std::time::Duration>,
        /// One connection for all calls instead of one each.
        #[arg(long)]
        keep_alive: bool,
        /// Print the counts as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Understands the usual options of curl; also when this program is called `curl`.
    Curl(curl::Options),
}

fn main() -> anyhow::Result<()> {
    let called = std::env::args_os().next().unwrap_or_default();
    let application = if std::path::Path::new(&called).ends_with("curl") {
        Application::Curl(curl::Options::parse())
    } else {
        Options::parse().application
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match application {
            Application::HelloServer { version, port } => {
                serve::http(port, simple::Hello { version }).await
            }
            Application::Httpbin { port } => serve::http(port, httpbin::Httpbin).await,
            Application::Nginx { port } => serve::http(port, simple::Welcome).await,
            Application::Productpage { port } => {
                serve::http(port, bookinfo::ProductPage { port }).await
            }
            Application::Details { port } => serve::http(port, bookinfo::Details).await,
            Application::Reviews { version, port } => {
                serve::http(port, bookinfo::Reviews { version, port }).await
            }
            Application::Ratings { port } => serve::http(port, bookinfo::Ratings).await,
            Application::TcpEcho { port } => serve::tcp_echo(port).await,
            Application::Client => serve::until_told_to_end().await,
            Application::Get {
                url,
                count,
                headers,
                pace,
                keep_alive,
                json,
            } => {
                let options = call::Repeat {
                    url,
                    count,
                    headers,
                    pace,
                    keep_alive,
                    json,
                };
                call::repeat(options).await
            }
            Application::Curl(options) => curl::run(options).await,
        }
    })
}
