//! An authoriser over HTTP and gRPC that does as the header `x-say` asks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use isobar_proto::envoy::service::auth::v3 as proto;
use isobar_proto::google::rpc::Status;
use isobar_proto::isobar::v1::ServiceRef;
use prost::Message;
use proto::check_response::HttpResponse;
use proto::header_value_option::AppendAction;
use tokio::net::{TcpListener, TcpStream};

use crate::bed::{Bed, Local};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A question over HTTP.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

#[derive(Default)]
struct Seen {
    questions: RefCell<Vec<Question>>,
    checks: RefCell<Vec<proto::AttributeContext>>,
}

/// The authoriser, and the service that it is in the mesh.
pub(super) struct Judge {
    pub(super) service: ServiceRef,
    seen: Rc<Seen>,
}

impl Judge {
    pub(super) async fn start(bed: &Bed) -> Self {
        let listener = TcpListener::bind("127.0.1.8:0").await.unwrap();
        let service = bed.other_service(listener.local_addr().unwrap());
        let seen = Rc::new(Seen::default());
        let (scope, told) = (bed.scope.clone(), seen.clone());
        bed.scope.spawn("judge", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                scope.spawn("judge's connection", connection(tcp, told.clone()));
            }
        });
        Self { service, seen }
    }

    pub(super) fn seen(&self) -> Vec<Question> {
        self.seen.questions.borrow().clone()
    }

    pub(super) fn checks(&self) -> Vec<proto::AttributeContext> {
        self.seen.checks.borrow().clone()
    }
}

async fn connection(tcp: TcpStream, seen: Rc<Seen>) {
    let mut first = [0; 3];
    while tcp.peek(&mut first).await.unwrap_or(3) < 3 {
        tokio::task::yield_now().await;
    }
    let service = hyper::service::service_fn(move |request| answer(seen.clone(), request));
    let io = TokioIo::new(tcp);
    // Ends with its peer, or because it is to.
    if &first == b"PRI" {
        let builder = hyper::server::conn::http2::Builder::new(Local);
        let _ = builder.serve_connection(io, service).await;
    } else {
        let builder = hyper::server::conn::http1::Builder::new();
        let _ = builder.serve_connection(io, service).await;
    }
}

async fn answer(seen: Rc<Seen>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if head.uri.path() == "/envoy.service.auth.v3.Authorization/Check" {
        let question = proto::CheckRequest::decode(&body[5..]).unwrap();
        let context = question.attributes.unwrap();
        let http = context.request.clone().unwrap().http.unwrap();
        seen.checks.borrow_mut().push(context);
        let say = http.headers.get("x-say").cloned().unwrap_or_default();
        return over_grpc(&say);
    }
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let headers = head.headers.iter();
    let headers: BTreeMap<_, _> = headers.map(|(n, v)| (n.to_string(), text(v))).collect();
    let say = headers.get("x-say").cloned().unwrap_or_default();
    seen.questions.borrow_mut().push(Question {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    over_http(&say).await
}

async fn over_http(say: &str) -> io::Result<Response<Body>> {
    let response = Response::builder().header("x-why", "no");
    let (response, body) = match say {
        "yes" => {
            let granted = response.header("x-user", "ann").header("x-other", "1");
            (granted, "let on")
        }
        "no" => (response.status(401), "who?"),
        "wrong" => (response.status(503), "what is wrong with it"),
        "wait" => std::future::pending().await,
        _ => return Err(io::Error::other("as asked")),
    };
    let body = Full::from(body)
        .map_err(|never| match never {})
        .boxed_unsync();
    Ok(response.body(body).unwrap())
}

fn over_grpc(say: &str) -> io::Result<Response<Body>> {
    let option = |name: &str, value: &str| proto::HeaderValueOption {
        header: Some(proto::HeaderValue {
            key: name.into(),
            value: value.into(),
            raw_value: Vec::new(),
        }),
        append: None,
        append_action: AppendAction::OverwriteIfExistsOrAdd.into(),
    };
    let (code, told) = match say {
        "yes" => {
            let ok = proto::OkHttpResponse {
                headers: vec![option("x-user", "ann")],
                headers_to_remove: vec!["x-secret".into()],
                response_headers_to_add: vec![option("x-seen", "1")],
                query_parameters_to_remove: vec!["token".into()],
                ..Default::default()
            };
            (0, HttpResponse::OkResponse(ok))
        }
        "no" | "garbage" => {
            let denied = proto::DeniedHttpResponse {
                status: Some(proto::HttpStatus { code: 401 }),
                headers: vec![option("x-why", "no")],
                body: "who?".into(),
            };
            (16, HttpResponse::DeniedResponse(denied))
        }
        "wrong" => return Ok(framed(&[0, 0, 0, 0, 0], "13")),
        _ => return Err(io::Error::other("as asked")),
    };
    let answer = proto::CheckResponse {
        status: Some(Status {
            code,
            ..Default::default()
        }),
        http_response: Some(told),
    };
    let message = answer.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    if say == "garbage" {
        frame.truncate(9);
    }
    Ok(framed(&frame, "0"))
}

fn framed(frame: &[u8], status: &'static str) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let data = Frame::data(Bytes::copy_from_slice(frame));
    let frames = futures_util::stream::iter([Ok(data), Ok(Frame::trailers(trailers))]);
    Response::builder()
        .header("content-type", "application/grpc")
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap()
}
