use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::serve::{Application, json, text, typed};

/// Longest delay of /delay, in seconds.
const MOST_SECONDS: f64 = 10.0;
/// Largest reply of /bytes.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// Tells a caller what arrived.
pub(crate) struct Httpbin;

impl Application for Httpbin {
    async fn answer(&self, request: Request<Bytes>, peer: SocketAddr) -> Response<Bytes> {
        let path = request.uri().path().to_owned();
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (page, rest) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        match page {
            "" => text(
                StatusCode::OK,
                "httpbin: try /get, /headers, /ip or /status/418\n",
            ),
            "get" | "post" | "put" | "delete" | "patch" | "anything" => json(&all(&request, peer)),
            "headers" => json(&json!({ "headers": headers(request.headers()) })),
            "ip" => json(&json!({ "origin": peer.ip().to_string() })),
            "user-agent" => json(&json!({ "user-agent": field(request.headers(), "user-agent") })),
            "status" => status(rest),
            "delay" => delay(rest, &request, peer).await,
            "bytes" => bytes(rest),
            "health" | "healthz" => text(StatusCode::OK, "ok\n"),
            _ => text(StatusCode::NOT_FOUND, format!("no page {path}\n")),
        }
    }
}

fn all(request: &Request<Bytes>, peer: SocketAddr) -> Value {
    let uri = request.uri();
    json!({
        "method": request.method().as_str(),
        "path": uri.path(),
        "args": uri.query().unwrap_or_default(),
        "headers": headers(request.headers()),
        "version": format!("{:?}", request.version()),
        "origin": peer.ip().to_string(),
        "data": String::from_utf8_lossy(request.body()),
    })
}

fn headers(fields: &HeaderMap) -> Value {
    let mut all = Map::new();
    for name in fields.keys() {
        let values: Vec<_> = fields
            .get_all(name)
            .iter()
            .map(|v| String::from_utf8_lossy(v.as_bytes()))
            .collect();
        all.insert(name.to_string(), Value::String(values.join(", ")));
    }
    Value::Object(all)
}

fn field(fields: &HeaderMap, name: &str) -> String {
    fields
        .get(name)
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        .unwrap_or_default()
}

fn status(code: &str) -> Response<Bytes> {
    let code = code
        .parse()
        .ok()
        .and_then(|code: u16| StatusCode::from_u16(code).ok());
    match code {
        Some(code) => text(code, Bytes::new()),
        None => text(
            StatusCode::BAD_REQUEST,
            "the status is a number from 100 to 999\n",
        ),
    }
}

async fn delay(seconds: &str, request: &Request<Bytes>, peer: SocketAddr) -> Response<Bytes> {
    match seconds.parse::<f64>() {
        Ok(seconds) if (0.0..=MOST_SECONDS).contains(&seconds) => {
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            json(&all(request, peer))
        }
        _ => text(StatusCode::BAD_REQUEST, "the delay is 0 to 10 seconds\n"),
    }
}

fn bytes(count: &str) -> Response<Bytes> {
    match count.parse::<usize>() {
        Ok(count) if count <= MOST_BYTES => typed(
            StatusCode::OK,
            "application/octet-stream",
            vec![b'x'; count],
        ),
        _ => text(StatusCode::BAD_REQUEST, "at most 16 MiB\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(path: &str) -> Response<Bytes> {
        let request = Request::get(path)
            .header("x-a", "1")
            .body(Bytes::new())
            .unwrap();
        Httpbin
            .answer(request, "192.0.2.7:1".parse().unwrap())
            .await
    }

    #[tokio::test]
    async fn pages_tell_what_arrived() {
        let reply = get("/ip").await;
        assert!(String::from_utf8_lossy(reply.body()).contains("192.0.2.7"));
        let reply = get("/anything/else?q=1").await;
        let value: Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(
            (&value["args"], &value["headers"]["x-a"]),
            (&json!("q=1"), &json!("1"))
        );
        for (path, status) in [
            ("/status/418", 418),
            ("/status/x", 400),
            ("/delay/-1", 400),
            ("/delay/nan", 400),
            ("/bytes/99999999999", 400),
            ("/none", 404),
        ] {
            assert_eq!(get(path).await.status().as_u16(), status, "{path}");
        }
    }
}
