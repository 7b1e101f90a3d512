use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use isobar_runtime::Scope;
use tokio::net::TcpStream;

/// Longest time a call may take.
const LIMIT: Duration = Duration::from_secs(10);

/// One GET on a connection of its own.
pub(crate) async fn get(url: &Uri, fields: HeaderMap) -> Result<Response<Bytes>> {
    tokio::time::timeout(LIMIT, exchange(url, fields))
        .await
        .with_context(|| format!("{url} did not answer within {LIMIT:?}"))?
}

async fn exchange(url: &Uri, fields: HeaderMap) -> Result<Response<Bytes>> {
    ensure!(
        url.scheme_str() == Some("http"),
        "only http:// is spoken here, not {url}"
    );
    let host = url.host().with_context(|| format!("{url} names no host"))?;
    let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80)))
        .await
        .with_context(|| format!("connecting to {url}"))?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    let scope = Scope::new("call");
    scope.spawn("connection", async move {
        // How it ended shows in the request.
        let _ = driver.await;
    });
    let authority = url.authority().map_or(host, http::uri::Authority::as_str);
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::get(path)
        .header("host", authority)
        .body(Empty::<Bytes>::new())?;
    request.headers_mut().extend(fields);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}

/// Calls a URL `count` times and prints how often each answer came; one call prints its body.
pub(crate) async fn repeat(url: &Uri, count: u32, headers: &[String]) -> Result<()> {
    let mut fields = HeaderMap::new();
    for header in headers {
        let (name, value) = header
            .split_once(':')
            .with_context(|| format!("{header:?} is not of the form \"NAME: VALUE\""))?;
        let name = HeaderName::try_from(name.trim()).context("the header's name")?;
        fields.append(
            name,
            HeaderValue::from_str(value.trim()).context("the header's value")?,
        );
    }
    let (mut answers, mut failed) = (BTreeMap::<String, u32>::new(), 0);
    for _ in 0..count {
        let answer = match get(url, fields.clone()).await {
            Ok(reply) => {
                let body = String::from_utf8_lossy(reply.body()).trim_end().to_owned();
                let status = reply.status();
                if status.is_success() {
                    body
                } else {
                    format!("{status}: {body}")
                }
            }
            Err(error) => {
                failed += 1;
                format!("failed: {error:#}")
            }
        };
        *answers.entry(answer).or_default() += 1;
    }
    for (answer, times) in answers {
        if count == 1 {
            println!("{answer}")
        } else {
            println!("{times:>6}  {answer}")
        }
    }
    if failed > 0 {
        bail!("{failed} of {count} calls failed");
    }
    Ok(())
}
