//! Sends one request over a fresh connection and tells what came back.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::backends::Local;
use crate::observed::{Got, KEY, normalised};
use crate::scenario::{Case, Protocol};

/// Far more than anything takes; whoever needs it hangs.
const PATIENCE: Duration = Duration::from_secs(15);

/// Any stream to a proxy.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Stream for S {}

/// Sends the request of a case under a key.
pub(crate) async fn call(stream: Box<dyn Stream>, case: &Case, key: &str) -> Got {
    let done = async {
        match (&case.raw, case.protocol) {
            (Some(raw), _) => raw_call(stream, raw, key).await,
            (None, Protocol::Http1) => http1(stream, case, key).await,
            (None, Protocol::Http2) => http2(stream, case, key).await,
        }
    };
    let timed = tokio::time::timeout(PATIENCE, done).await;
    timed.unwrap_or_else(|_| Got::nothing("no answer in time"))
}

fn request(case: &Case, key: &str, uri: Uri) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(case.method.as_str())
        .uri(uri)
        .header(KEY, key);
    for (name, value) in &case.headers {
        request = request.header(name, value);
    }
    if case.protocol == Protocol::Http1 {
        request = request.header("host", &case.host);
    }
    let body = Full::new(Bytes::from(case.body.clone()));
    let made = request.body(body);
    made.unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

async fn http1(stream: Box<dyn Stream>, case: &Case, key: &str) -> Got {
    let io = TokioIo::new(stream);
    let made = hyper::client::conn::http1::handshake(io).await;
    let (mut sender, connection) = match made {
        Ok(made) => made,
        Err(error) => return Got::nothing(format!("no connection: {error}")),
    };
    // Its request sees how it ends.
    drop(tokio::task::spawn_local(async move {
        let _ = connection.await;
    }));
    let uri = case.target.parse::<Uri>();
    let uri = uri.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    got(sender.send_request(request(case, key, uri)).await).await
}

async fn http2(stream: Box<dyn Stream>, case: &Case, key: &str) -> Got {
    let io = TokioIo::new(stream);
    let made = hyper::client::conn::http2::handshake(Local, io).await;
    let (mut sender, connection) = match made {
        Ok(made) => made,
        Err(error) => return Got::nothing(format!("no connection: {error}")),
    };
    // Its request sees how it ends.
    drop(tokio::task::spawn_local(async move {
        let _ = connection.await;
    }));
    let uri = format!("http://{}{}", case.host, case.target);
    let uri = uri.parse::<Uri>();
    let uri = uri.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    got(sender.send_request(request(case, key, uri)).await).await
}

async fn got(answer: hyper::Result<Response<Incoming>>) -> Got {
    let response = match answer {
        Ok(response) => response,
        Err(_) => return Got::nothing("no response"),
    };
    let (parts, mut body) = response.into_parts();
    let mut got = Got {
        status: Some(parts.status.as_u16()),
        headers: normalised(&parts.headers),
        ..Got::nothing("complete")
    };
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers())) {
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            Ok(Err(Ok(trailers))) => got.trailers = normalised(&trailers),
            Ok(Err(Err(_))) => {}
            Err(_) => {
                "broken off".clone_into(&mut got.end);
                break;
            }
        }
    }
    got.body = String::from_utf8_lossy(&bytes).into_owned();
    got
}

/// Sends bytes as they are; `KEY` in them becomes the key's header line.
async fn raw_call(mut stream: Box<dyn Stream>, raw: &str, key: &str) -> Got {
    let bytes = raw.replace("KEY", &format!("{KEY}: {key}"));
    if stream.write_all(bytes.as_bytes()).await.is_err() || stream.flush().await.is_err() {
        return Got::nothing("not sent");
    }
    let mut read = Vec::new();
    loop {
        if let Some(got) = parsed(&read) {
            return got;
        }
        match stream.read_buf(&mut read).await {
            Ok(0) | Err(_) if read.is_empty() => return Got::nothing("no response"),
            Ok(0) | Err(_) => {
                let text = String::from_utf8_lossy(&read).into_owned();
                return Got::nothing(format!("broken off after {text:?}"));
            }
            Ok(_) => {}
        }
    }
}

/// A whole response with a length, or none.
fn parsed(read: &[u8]) -> Option<Got> {
    let text = std::str::from_utf8(read).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut headers = http::HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let name = http::HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.append(name, value.trim().parse().ok()?);
    }
    let length = headers.get("content-length");
    let length: usize = length
        .and_then(|l| l.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    (body.len() >= length).then(|| Got {
        status: Some(status),
        headers: normalised(&headers),
        body: body[..length].to_owned(),
        ..Got::nothing("complete")
    })
}
