//! A back end that is asked over gRPC whether a request may go on.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use isobar_proto::envoy::service::auth::v3 as proto;
use isobar_proto::google::rpc::Status;
use prost::Message;
use proto::check_response::HttpResponse;
use proto::header_value_option::AppendAction;

use crate::backends::{Body, Book};
use crate::observed::{KEY, Seen};
use crate::scenario::Answer;

/// Path of the questions.
pub(crate) const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Header of a scripted answer by which its other headers are joined to what is there.
const APPEND: &str = "x-append";
const PERMISSION_DENIED: i32 = 7;

/// Notes the request that the question is about as if it had come here; 200 lets it on.
pub(crate) fn answer(
    backend: &str,
    book: &Book,
    body: &[u8],
) -> Result<Response<Body>, std::io::Error> {
    let question = body.get(5..).map(proto::CheckRequest::decode);
    let question = question.and_then(Result::ok).unwrap_or_default();
    let context = question.attributes.unwrap_or_default();
    let request = context.request.unwrap_or_default();
    let http = request.http.unwrap_or_default();
    let key = http.headers.get(KEY).cloned().unwrap_or_default();
    let mut headers = http.headers;
    headers.retain(|name, _| name != KEY);
    for name in ["x-request-id", "x-envoy-expected-rq-timeout-ms"] {
        headers.remove(name);
    }
    for (name, value) in [
        ("asked:host", http.host),
        ("asked:scheme", http.scheme),
        ("asked:size", http.size.to_string()),
        ("asked:protocol", http.protocol),
    ] {
        headers.insert(name.to_owned(), value);
    }
    let seen = Seen {
        backend: backend.to_owned(),
        method: http.method,
        target: http.path,
        version: "a question".to_owned(),
        headers,
        body: http.body,
    };
    let answer = book.note(&key, seen).unwrap_or_default();
    if answer.reset {
        return Err(std::io::Error::other("as scripted"));
    }
    Ok(framed(&said(answer).encode_to_vec()))
}

fn said(answer: Answer) -> proto::CheckResponse {
    let append = answer.headers.contains_key(APPEND);
    let headers = answer.headers.iter().filter(|(name, _)| *name != APPEND);
    let headers = headers.map(|(name, value)| proto::HeaderValueOption {
        header: Some(proto::HeaderValue {
            key: name.clone(),
            value: value.clone(),
            raw_value: Vec::new(),
        }),
        append: append.then_some(true),
        append_action: AppendAction::OverwriteIfExistsOrAdd.into(),
    });
    let headers: Vec<_> = headers.collect();
    let (code, told) = if answer.status == 200 {
        let ok = proto::OkHttpResponse {
            headers_to_remove: vec!["x-secret".to_owned()],
            response_headers_to_add: headers.clone(),
            headers,
            ..Default::default()
        };
        (0, HttpResponse::OkResponse(ok))
    } else {
        let denied = proto::DeniedHttpResponse {
            status: Some(proto::HttpStatus {
                code: answer.status.into(),
            }),
            headers,
            body: answer.body.unwrap_or_default(),
        };
        (PERMISSION_DENIED, HttpResponse::DeniedResponse(denied))
    };
    proto::CheckResponse {
        status: Some(Status {
            code,
            ..Default::default()
        }),
        http_response: Some(told),
    }
}

fn framed(message: &[u8]) -> Response<Body> {
    let mut frame = vec![0];
    let length = u32::try_from(message.len()).unwrap_or_default();
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data(Bytes::from(frame))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(body.boxed_unsync())
        .unwrap()
}
