//! As much of curl as lessons use, for machines without it.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Response, Uri};
use tokio::time::timeout;

use crate::call::{self, Connection};

/// A small stand-in for curl: one HTTP/1.1 request for each URL.
#[derive(clap::Parser)]
#[command(name = "curl", disable_version_flag = true)]
pub(crate) struct Options {
    /// [http://]HOST[:PORT]/PATH
    #[arg(required = true)]
    urls: Vec<String>,
    /// No progress (there is none anyway).
    #[arg(short, long)]
    silent: bool,
    /// Show errors even when silent.
    #[arg(short = 'S', long)]
    show_error: bool,
    /// Print the head of the reply too.
    #[arg(short, long)]
    include: bool,
    /// Ask for the head only, and print it.
    #[arg(short = 'I', long)]
    head: bool,
    /// Print request and reply heads to standard error.
    #[arg(short, long)]
    verbose: bool,
    /// Exit with 22 when the status is 400 or more.
    #[arg(short, long)]
    fail: bool,
    /// Header field, as "NAME: VALUE"; may be repeated.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Method.
    #[arg(short = 'X', long)]
    request: Option<Method>,
    /// Body; makes the method POST.
    #[arg(short, long)]
    data: Option<String>,
    /// File for the body of the reply.
    #[arg(short, long)]
    output: Option<std::path::PathBuf>,
    /// Printed after the reply; %{http_code} and \\n are replaced.
    #[arg(short, long)]
    write_out: Option<String>,
    /// Longest time for all of it, in seconds.
    #[arg(short, long)]
    max_time: Option<f64>,
    /// Longest time for connecting, in seconds.
    #[arg(long)]
    connect_timeout: Option<f64>,
}

/// Does what is asked and ends the process with curl's exit code if it did not work.
pub(crate) async fn run(options: Options) -> Result<()> {
    let mut code = 0;
    for url in &options.urls {
        let whole = if url.contains("://") {
            url.clone()
        } else {
            format!("http://{url}")
        };
        let uri: Uri = whole.parse().with_context(|| format!("{url} is no URL"))?;
        let limit = options.max_time.map_or(Duration::from_secs(300), seconds);
        let failure = match timeout(limit, one(&options, &uri)).await {
            Ok(Ok(status)) if options.fail && status >= 400 => Some((22, format!("{status}"))),
            Ok(Ok(_)) => None,
            Ok(Err((number, error))) => Some((number, format!("{error:#}"))),
            Err(_) => Some((28, format!("no answer within {limit:?}"))),
        };
        if let Some((number, words)) = failure {
            if !options.silent || options.show_error {
                eprintln!("curl: ({number}) {words}");
            }
            if !options.fail || number != 22 {
                finish(&options, 0)?;
            }
            code = number;
        }
    }
    if code != 0 {
        std::process::exit(code);
    }
    Ok(())
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// The status of one reply, or curl's number for what went wrong.
async fn one(options: &Options, url: &Uri) -> Result<u16, (i32, anyhow::Error)> {
    let fields = call::fields(&options.headers).map_err(|error| (2, error))?;
    let limit = options.connect_timeout.map_or(call::LIMIT, seconds);
    let mut connection = timeout(limit, Connection::open(url))
        .await
        .map_err(|_| (28, anyhow::anyhow!("no connection within {limit:?}")))?
        .map_err(|error| (7, error))?;
    let method = match (&options.request, options.head, &options.data) {
        (Some(method), ..) => method.clone(),
        (None, true, _) => Method::HEAD,
        (None, false, Some(_)) => Method::POST,
        (None, false, None) => Method::GET,
    };
    let body = Bytes::from(options.data.clone().unwrap_or_default());
    if options.verbose {
        eprintln!("> {method} {url}");
    }
    let reply = connection
        .send(&method, url, &fields, body)
        .await
        .map_err(|error| (52, error))?;
    print(options, &reply).map_err(|error| (23, error))?;
    Ok(reply.status().as_u16())
}

fn print(options: &Options, reply: &Response<Bytes>) -> Result<()> {
    let mut head = format!("{:?} {}\r\n", reply.version(), reply.status());
    for (name, value) in reply.headers() {
        head.push_str(&format!(
            "{name}: {}\r\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    head.push_str("\r\n");
    if options.verbose {
        eprint!("{head}");
    }
    let mut out: Box<dyn Write> = match &options.output {
        Some(path) => Box::new(std::fs::File::create(path)?),
        None => Box::new(std::io::stdout()),
    };
    if options.include || options.head {
        out.write_all(head.as_bytes())?;
    }
    out.write_all(reply.body())?;
    out.flush()?;
    finish(options, reply.status().as_u16())
}

fn finish(options: &Options, status: u16) -> Result<()> {
    if let Some(text) = &options.write_out {
        let text = text
            .replace("%{http_code}", &format!("{status:03}"))
            .replace("%{response_code}", &format!("{status:03}"))
            .replace("\\n", "\n");
        print!("{text}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
