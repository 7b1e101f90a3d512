//! As much of curl as lessons use, for machines without it.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri};
use tokio::time::timeout;

use crate::call::{self, Connection};

/// Most redirects that are followed, as in curl.
const REDIRECTS: u32 = 50;
/// curl's number for a status of 400 or more with `--fail`.
const BAD_STATUS: i32 = 22;

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
    /// Body, or @FILE; makes the method POST. Several are joined with &.
    #[arg(short, long)]
    data: Vec<String>,
    /// Go where a redirect leads.
    #[arg(short = 'L', long)]
    location: bool,
    /// Accepted and without effect: there is no TLS here.
    #[arg(short = 'k', long)]
    insecure: bool,
    /// File for the body of the reply.
    #[arg(short, long)]
    output: Option<std::path::PathBuf>,
    /// Printed after the reply; %{http_code}, %{time_total} and \\n are replaced.
    #[arg(short, long)]
    write_out: Option<String>,
    /// Longest time for all of it, in seconds.
    #[arg(short, long)]
    max_time: Option<f64>,
    /// Longest time for connecting, in seconds.
    #[arg(long)]
    connect_timeout: Option<f64>,
}

/// What goes wrong, as curl numbers it.
#[derive(Debug)]
struct Failure(i32, anyhow::Error);

impl Failure {
    fn of(number: i32) -> impl Fn(anyhow::Error) -> Self {
        move |error| Self(number, error)
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    method: Method,
    url: Uri,
    body: Bytes,
}

/// Does what is asked and ends the process with curl's exit code if it did not work.
pub(crate) async fn run(options: Options) -> Result<()> {
    let mut code = 0;
    for url in &options.urls {
        let limit = options.max_time.map_or(Duration::from_secs(300), seconds);
        let begun = Instant::now();
        let failure = match timeout(limit, one(&options, url, begun)).await {
            Ok(Ok(status)) if options.fail && status >= 400 => {
                Some((BAD_STATUS, format!("the server said {status}")))
            }
            Ok(Ok(_)) => None,
            Ok(Err(Failure(number, error))) => Some((number, format!("{error:#}"))),
            Err(_) => Some((28, format!("no answer within {limit:?}"))),
        };
        if let Some((number, words)) = failure {
            if !options.silent || options.show_error {
                eprintln!("curl: ({number}) {words}");
            }
            if number != BAD_STATUS {
                finish(&options, 0, begun)?;
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

/// The URL as curl reads it: without a scheme it is http.
fn read_url(text: &str) -> Result<Uri, Failure> {
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url: Uri = whole
        .parse()
        .with_context(|| format!("{text} is no URL"))
        .map_err(Failure::of(3))?;
    if url.scheme_str() != Some("http") {
        let scheme = url.scheme_str().unwrap_or_default();
        return Err(Failure(1, anyhow!("protocol {scheme:?} is not supported")));
    }
    if url.host().is_none_or(str::is_empty) {
        return Err(Failure(3, anyhow!("{text} names no host")));
    }
    Ok(url)
}

/// The status of the last reply.
async fn one(options: &Options, url: &str, begun: Instant) -> Result<u16, Failure> {
    let fields = fields(options)?;
    let mut call = Call {
        method: match (&options.request, options.head, options.data.is_empty()) {
            (Some(method), ..) => method.clone(),
            (None, true, _) => Method::HEAD,
            (None, false, false) => Method::POST,
            (None, false, true) => Method::GET,
        },
        url: read_url(url)?,
        body: body(&options.data)?,
    };
    for _ in 0..=REDIRECTS {
        let reply = exchange(options, &fields, &call).await?;
        match next(&call, &reply).filter(|_| options.location) {
            Some(following) => call = following?,
            None => {
                print(options, &reply, begun).map_err(Failure::of(23))?;
                return Ok(reply.status().as_u16());
            }
        }
    }
    Err(Failure(47, anyhow!("more than {REDIRECTS} redirects")))
}

fn fields(options: &Options) -> Result<HeaderMap, Failure> {
    let mut fields = call::fields(&options.headers).map_err(Failure::of(2))?;
    if !options.data.is_empty() {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        fields.entry(CONTENT_TYPE).or_insert(form);
    }
    Ok(fields)
}

/// The texts of `-d` and the files of `-d @FILE`, these without line ends, as curl does.
fn body(data: &[String]) -> Result<Bytes, Failure> {
    let mut whole: Vec<u8> = Vec::new();
    for (at, one) in data.iter().enumerate() {
        if at > 0 {
            whole.push(b'&');
        }
        let Some(file) = one.strip_prefix('@') else {
            whole.extend(one.as_bytes());
            continue;
        };
        let bytes = std::fs::read(file)
            .with_context(|| format!("reading {file}"))
            .map_err(Failure::of(26))?;
        whole.extend(
            bytes
                .into_iter()
                .filter(|b| !matches!(b, b'\r' | b'\n' | 0)),
        );
    }
    Ok(whole.into())
}

async fn exchange(
    options: &Options,
    fields: &HeaderMap,
    call: &Call,
) -> Result<Response<Bytes>, Failure> {
    let (host, port) = (call.url.host().unwrap_or_default(), call.url.port_u16());
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((bare, port.unwrap_or(80))).await;
    if let Err(error) = found {
        let error = anyhow!(error).context(format!("could not resolve host {host}"));
        return Err(Failure(6, error));
    }
    let limit = options.connect_timeout.map_or(call::LIMIT, seconds);
    let mut connection = timeout(limit, Connection::open(&call.url))
        .await
        .map_err(|_| Failure(28, anyhow!("no connection within {limit:?}")))?
        .map_err(Failure::of(7))?;
    if options.verbose {
        eprint!("{}", request_head(call, fields));
    }
    let reply = connection
        .send(&call.method, &call.url, fields, call.body.clone())
        .await
        .map_err(Failure::of(52))?;
    if options.verbose {
        eprint!("{}", marked("< ", &reply_head(&reply)));
    }
    Ok(reply)
}

/// The request that a redirect asks for.
fn next(call: &Call, reply: &Response<Bytes>) -> Option<Result<Call, Failure>> {
    let status = reply.status().as_u16();
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = reply.headers().get(LOCATION)?.to_str().ok()?;
    let url = if location.contains("://") {
        location.to_owned()
    } else {
        let authority = call.url.authority().map_or("", |a| a.as_str());
        let folder = call
            .url
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        match location.strip_prefix("//") {
            Some(other) => format!("http://{other}"),
            None if location.starts_with('/') => format!("http://{authority}{location}"),
            None => format!("http://{authority}{folder}/{location}"),
        }
    };
    // As browsers and curl do, a POST becomes a GET unless the status forbids it.
    let keeps = matches!(status, 307 | 308) || call.method != Method::POST;
    Some(read_url(&url).map(|url| Call {
        method: if keeps {
            call.method.clone()
        } else {
            Method::GET
        },
        url,
        body: if keeps {
            call.body.clone()
        } else {
            Bytes::new()
        },
    }))
}

fn request_head(call: &Call, fields: &HeaderMap) -> String {
    let path = call.url.path_and_query().map_or("/", |p| p.as_str());
    let mut head = format!("{} {path} HTTP/1.1\r\n", call.method);
    if !fields.contains_key(HOST) {
        let authority = call.url.authority().map_or("", |a| a.as_str());
        head.push_str(&format!("host: {authority}\r\n"));
    }
    head.push_str(&lines(fields));
    marked("> ", &head)
}

fn reply_head(reply: &Response<Bytes>) -> String {
    let status = format!("{:?} {}\r\n", reply.version(), reply.status());
    status + &lines(reply.headers())
}

/// Header fields as lines, and the empty line after them.
fn lines(fields: &HeaderMap) -> String {
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()))
    };
    fields.iter().map(line).collect::<String>() + "\r\n"
}

fn marked(mark: &str, head: &str) -> String {
    head.lines().map(|line| format!("{mark}{line}\n")).collect()
}

fn print(options: &Options, reply: &Response<Bytes>, begun: Instant) -> Result<()> {
    let status = reply.status().as_u16();
    let mut out: Box<dyn Write> = match &options.output {
        Some(path) => Box::new(std::fs::File::create(path)?),
        None => Box::new(std::io::stdout()),
    };
    if options.include || options.head {
        out.write_all(reply_head(reply).as_bytes())?;
    }
    if !options.fail || status < 400 {
        out.write_all(reply.body())?;
    }
    out.flush()?;
    finish(options, status, begun)
}

fn finish(options: &Options, status: u16, begun: Instant) -> Result<()> {
    if let Some(text) = &options.write_out {
        print!("{}", written_out(text, status, begun.elapsed()));
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn written_out(text: &str, status: u16, took: Duration) -> String {
    text.replace("%{http_code}", &format!("{status:03}"))
        .replace("%{response_code}", &format!("{status:03}"))
        .replace("%{time_total}", &format!("{:.6}", took.as_secs_f64()))
        .replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(url: &str) -> Option<i32> {
        read_url(url).err().map(|Failure(number, _)| number)
    }

    #[test]
    fn urls_that_are_none_have_curls_numbers() {
        assert_eq!(number("svc:8080/x"), None);
        assert_eq!(number("http://[::1]:80/"), None);
        assert_eq!(number("https://svc/"), Some(1));
        for bad in ["http://a b/", "", "http://"] {
            assert_eq!(number(bad), Some(3), "{bad:?}");
        }
    }

    #[test]
    fn redirects_lead_on() {
        let call = Call {
            method: Method::POST,
            url: Uri::from_static("http://a:81/x/y?q"),
            body: Bytes::from_static(b"b"),
        };
        let to = |status: u16, location: &str| {
            let reply = Response::builder()
                .status(status)
                .header(LOCATION, location);
            next(&call, &reply.body(Bytes::new()).unwrap()).map(|next| next.unwrap())
        };
        let url = |status, location: &str| to(status, location).unwrap().url.to_string();
        assert_eq!(url(302, "/z"), "http://a:81/z");
        assert_eq!(url(302, "z"), "http://a:81/x/z");
        assert_eq!(url(301, "http://b/"), "http://b/");
        assert_eq!(to(303, "/").unwrap().method, Method::GET);
        assert_eq!(to(307, "/").unwrap().body, call.body);
        assert_eq!(to(200, "/"), None);
    }

    #[test]
    fn bodies_come_from_words_and_files() {
        let text = |data: &[&str]| body(&data.iter().map(|&d| d.to_owned()).collect::<Vec<_>>());
        assert_eq!(text(&["a=1", "b=2"]).unwrap(), "a=1&b=2");
        let Err(Failure(number, _)) = text(&["@/nonexistent/file"]) else {
            panic!("a file that is not there");
        };
        assert_eq!(number, 26);
        let manifest = format!("@{}/Cargo.toml", env!("CARGO_MANIFEST_DIR"));
        assert!(text(&[&manifest]).unwrap().starts_with(b"[package]name"));
    }

    #[test]
    fn heads_and_written_out_values() {
        let call = Call {
            method: Method::GET,
            url: Uri::from_static("http://a/x?q"),
            body: Bytes::new(),
        };
        let mut fields = HeaderMap::new();
        fields.insert("end-user", HeaderValue::from_static("jason"));
        let head = "> GET /x?q HTTP/1.1\n> host: a\n> end-user: jason\n> \n";
        assert_eq!(request_head(&call, &fields), head);
        let text = written_out(
            "%{http_code} %{time_total}\\n",
            7,
            Duration::from_millis(1500),
        );
        assert_eq!(text, "007 1.500000\n");
    }
}
