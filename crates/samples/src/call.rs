use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use isobar_runtime::Scope;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Longest time a call may take unless the caller says otherwise.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// An HTTP/1.1 connection.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    // Owns the task that drives the connection.
    _scope: Scope,
}

impl Connection {
    /// Connects to the host of `url`.
    pub(crate) async fn open(url: &Uri) -> Result<Self> {
        ensure!(
            url.scheme_str().is_none_or(|scheme| scheme == "http"),
            "only http:// is spoken here, not {url}"
        );
        let host = url.host().with_context(|| format!("{url} names no host"))?;
        let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80)))
            .await
            .with_context(|| format!("connecting to {url}"))?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let scope = Scope::new("call");
        scope.spawn("connection", async move {
            // How it ended shows in the request.
            let _ = driver.await;
        });
        Ok(Self {
            sender,
            _scope: scope,
        })
    }

    /// One exchange; the reply is read to its end.
    pub(crate) async fn send(
        &mut self,
        method: &Method,
        url: &Uri,
        fields: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Bytes>> {
        let authority = url.authority().map_or("", http::uri::Authority::as_str);
        let path = url.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(Full::new(body))?;
        request.headers_mut().extend(fields.clone());
        if !fields.contains_key("host") {
            let host = HeaderValue::from_str(authority).context("the URL's host")?;
            request.headers_mut().insert("host", host);
        }
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

/// One GET on a connection of its own.
pub(crate) async fn get(url: &Uri, fields: &HeaderMap) -> Result<Response<Bytes>> {
    let call = async {
        let mut connection = Connection::open(url).await?;
        connection
            .send(&Method::GET, url, fields, Bytes::new())
            .await
    };
    timeout(LIMIT, call)
        .await
        .with_context(|| format!("{url} did not answer within {LIMIT:?}"))?
}

/// Reads "NAME: VALUE" texts.
pub(crate) fn fields(headers: &[String]) -> Result<HeaderMap> {
    let mut fields = HeaderMap::new();
    for header in headers {
        let (name, value) = header
            .split_once(':')
            .with_context(|| format!("{header:?} is not of the form \"NAME: VALUE\""))?;
        let name = HeaderName::try_from(name.trim()).context("the header's name")?;
        let value = HeaderValue::from_str(value.trim()).context("the header's value")?;
        fields.append(name, value);
    }
    Ok(fields)
}

/// Reads calls a second: the time from one call to the next, from a microsecond to a day.
pub(crate) fn pace(text: &str) -> Result<Duration, String> {
    let range = Duration::from_micros(1)..=Duration::from_hours(24);
    let rate: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of calls a second"))?;
    Duration::try_from_secs_f64(1.0 / rate)
        .ok()
        .filter(|pace| range.contains(pace))
        .ok_or_else(|| "a rate is at least one call a day and at most a million a second".into())
}

/// How to call a URL several times.
pub(crate) struct Repeat {
    pub(crate) url: Uri,
    pub(crate) count: u32,
    pub(crate) headers: Vec<String>,
    /// Time from one call to the next; as fast as they are answered if none.
    pub(crate) pace: Option<Duration>,
    /// One connection for all calls, opened again when it was closed.
    pub(crate) keep_alive: bool,
    pub(crate) json: bool,
}

/// Calls a URL and prints how often each answer came; one call prints its body.
pub(crate) async fn repeat(options: Repeat) -> Result<()> {
    let fields = fields(&options.headers)?;
    let mut pace = options.pace.map(interval);
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let (mut answers, mut failed) = (BTreeMap::<String, u32>::new(), 0);
    let mut kept = None;
    for _ in 0..options.count {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let answer = match timeout(LIMIT, once(&options, &fields, &mut kept)).await {
            Ok(Ok(answer)) => answer,
            ended => {
                failed += 1;
                kept = None;
                match ended {
                    Ok(Err(error)) => format!("failed: {error:#}"),
                    _ => format!("failed: no answer within {LIMIT:?}"),
                }
            }
        };
        *answers.entry(answer).or_default() += 1;
    }
    show(&options, &answers, failed);
    if failed > 0 {
        bail!("{failed} of {} calls failed", options.count);
    }
    Ok(())
}

async fn once(
    options: &Repeat,
    fields: &HeaderMap,
    kept: &mut Option<Connection>,
) -> Result<String> {
    let mut connection = match kept.take() {
        Some(connection) if !connection.sender.is_closed() => connection,
        _ => Connection::open(&options.url).await?,
    };
    let reply = connection
        .send(&Method::GET, &options.url, fields, Bytes::new())
        .await?;
    if options.keep_alive {
        *kept = Some(connection);
    }
    let body = String::from_utf8_lossy(reply.body()).trim_end().to_owned();
    let status = reply.status();
    Ok(if status.is_success() {
        body
    } else {
        format!("{status}: {body}")
    })
}

fn show(options: &Repeat, answers: &BTreeMap<String, u32>, failed: u32) {
    if options.json {
        let all = json!({"calls": options.count, "failed": failed, "answers": answers});
        println!("{all:#}");
        return;
    }
    for (answer, times) in answers {
        if options.count == 1 {
            println!("{answer}");
        } else {
            println!("{times:>6}  {answer}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers_that_make_sense() {
        assert_eq!(pace("4"), Ok(Duration::from_millis(250)));
        assert_eq!(pace("1e6"), Ok(Duration::from_micros(1)));
        for bad in ["1e-30", "0", "-0", "-1", "nan", "inf", "1e300", "x", ""] {
            assert!(pace(bad).is_err(), "{bad}");
        }
    }
}
