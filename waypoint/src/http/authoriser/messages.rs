//! What authorisers are sent, and how their answers are read.

use std::collections::BTreeMap;

use ::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TE};
use ::http::{HeaderMap, HeaderValue, Method, Request, Version as HttpVersion};
use bytes::{BufMut, Bytes, BytesMut};
use isobar_proto::envoy::service::auth::v3 as proto;
use isobar_route::{AuthProtocol, ExternalAuth};
use prost::Message;
use proto::attribute_context::{HttpRequest, Peer, Request as Attributes};

use crate::http::sanitise::REQUEST_ID;
use crate::http::standing::Asked;
use crate::session::Session;
use crate::upstream::Version;

/// The method of Envoy's authorisation service.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Says whether the body that is shown is a part only (Envoy's name); here it never is.
const PARTIAL: &str = "x-envoy-auth-partial-body";
/// Before each message: not compressed, and its length.
const FRAME: usize = 5;

/// The request that an authoriser is asked over HTTP: its own method, host and credentials.
pub(super) fn probe(
    (asked, rule): (&Asked, &ExternalAuth),
    prefix: &str,
    body: &Bytes,
    version: Version,
) -> Result<Request<Bytes>, ::http::Error> {
    let path = format!("{prefix}{}", target(asked));
    let authority = &asked.clean.authority;
    let (uri, host) = match version {
        Version::H1 => (path, Some(HeaderValue::from_str(authority)?)),
        Version::H2 => (format!("http://{authority}{path}"), None),
    };
    let mut request = Request::builder()
        .method(asked.method.clone())
        .uri(uri)
        .version(on_the_wire(version))
        .body(body.clone())?;
    let headers = request.headers_mut();
    *headers = rule.shown(&asked.headers);
    headers.remove(HOST);
    if let Some(host) = host {
        headers.insert(HOST, host);
    }
    // In HTTP/1.1 it is for one hop.
    headers.remove(TE);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    if !body.is_empty() {
        headers.insert(PARTIAL, HeaderValue::from_static("false"));
    }
    Ok(request)
}

/// The request that an authoriser is asked over gRPC, at the host `authority`.
pub(super) fn check(
    session: &Session,
    asked: &Asked,
    rule: &ExternalAuth,
    body: &Bytes,
    authority: &str,
) -> Result<Request<Bytes>, ::http::Error> {
    let own = &session.worker.world.own;
    let peer = |address: std::net::SocketAddr, principal: Option<String>| Peer {
        address: Some(proto::Address {
            socket_address: Some(proto::SocketAddress {
                address: address.ip().to_string(),
                port_value: address.port().into(),
            }),
        }),
        principal: principal.unwrap_or_default(),
    };
    let caller = session.peer.identity.as_ref().map(ToString::to_string);
    let now = jiff::Timestamp::now();
    let question = proto::CheckRequest {
        attributes: Some(proto::AttributeContext {
            source: Some(peer(session.peer.address, caller)),
            destination: Some(peer(
                session.addressed.destination,
                Some(own.identity.to_string()),
            )),
            request: Some(Attributes {
                time: Some(prost_types::Timestamp {
                    seconds: now.as_second(),
                    nanos: now.subsec_nanosecond(),
                }),
                http: Some(described(asked, rule, body)),
            }),
        }),
    };
    let mut framed = BytesMut::new();
    let length = question.encoded_len();
    framed.put_u8(0);
    // A head and a body have limits far below this.
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    framed.put_slice(&question.encode_to_vec());
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}{CHECK}"))
        .version(HttpVersion::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(framed.freeze())
}

fn described(asked: &Asked, rule: &ExternalAuth, body: &Bytes) -> HttpRequest {
    let clean = &asked.clean;
    let path = target(asked);
    let shown = rule.shown(&asked.headers);
    let mut headers = joined(&shown);
    let everything = matches!(&rule.protocol, AuthProtocol::Grpc { headers } if headers.is_empty());
    if everything {
        headers.remove(HOST.as_str());
        for (name, value) in [
            (":authority", clean.authority.as_str()),
            (":method", asked.method.as_str()),
            (":path", path.as_str()),
            (":scheme", clean.scheme),
        ] {
            headers.insert(name.to_owned(), value.to_owned());
        }
    }
    if !body.is_empty() {
        headers.insert(PARTIAL.to_owned(), "false".to_owned());
    }
    let size = i64::try_from(body.len()).unwrap_or(-1);
    let (body, raw_body) = match std::str::from_utf8(body) {
        Ok(text) => (text.to_owned(), Vec::new()),
        Err(_) => (String::new(), body.to_vec()),
    };
    let id = asked
        .headers
        .get(&REQUEST_ID)
        .and_then(|id| id.to_str().ok());
    HttpRequest {
        id: id.unwrap_or_default().to_owned(),
        method: asked.method.to_string(),
        headers,
        path,
        host: clean.authority.clone(),
        scheme: clean.scheme.to_owned(),
        size,
        protocol: match asked.version {
            HttpVersion::HTTP_2 => "HTTP/2".to_owned(),
            other => format!("{other:?}"),
        },
        body,
        raw_body,
    }
}

/// Path and query, as the rule's match saw them.
fn target(asked: &Asked) -> String {
    match &asked.clean.query {
        Some(query) => format!("{}?{query}", asked.clean.path),
        None => asked.clean.path.clone(),
    }
}

fn joined(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for name in headers.keys() {
        let lines = headers.get_all(name).iter();
        let lines = lines.map(|line| String::from_utf8_lossy(line.as_bytes()));
        let lines: Vec<_> = lines.collect();
        all.insert(name.to_string(), lines.join(","));
    }
    all
}

const fn on_the_wire(version: Version) -> HttpVersion {
    match version {
        Version::H1 => HttpVersion::HTTP_11,
        Version::H2 => HttpVersion::HTTP_2,
    }
}

/// Reads the one message of an answer.
///
/// # Errors
/// What is wrong with it.
pub(super) fn response(body: &[u8]) -> Result<proto::CheckResponse, String> {
    let Some((frame, message)) = body.split_at_checked(FRAME) else {
        return Err("an answer without a message".to_owned());
    };
    let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]);
    if frame[0] != 0 || usize::try_from(length) != Ok(message.len()) {
        return Err("an answer that is not one plain message".to_owned());
    }
    proto::CheckResponse::decode(message).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_whole_plain_message_is_an_answer() {
        let empty = proto::CheckResponse::default();
        assert_eq!(response(&[0, 0, 0, 0, 0]), Ok(empty));
        for wrong in [
            &b""[..],
            b"\0\0\0\0",
            b"\0\0\0\0\x01",
            b"\x01\0\0\0\0",
            b"\0\0\0\0\0\0",
            b"\0\0\0\0\x01\xff",
        ] {
            assert!(response(wrong).is_err(), "{wrong:?}");
        }
    }
}
