//! Endpoints: they answer as the request's script says and remember what they got.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use isobar_hbone::ProxyHeader;
use isobar_runtime::LocalScope;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::judge;
use crate::objects::Running;
use crate::observed::{KEY, Seen, normalised};
use crate::scenario::{Answer, Backend, Configuration};

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Scripts and records of all requests, by their key.
#[derive(Clone, Default)]
pub(crate) struct Book(Rc<RefCell<HashMap<String, Page>>>);

#[derive(Default)]
struct Page {
    answers: Vec<Answer>,
    seen: Vec<Seen>,
}

impl Book {
    /// Says what is answered to the request of that key.
    pub(crate) fn open(&self, key: &str, answers: &[Answer]) {
        let page = Page {
            answers: answers.to_vec(),
            seen: Vec::new(),
        };
        self.0.borrow_mut().insert(key.to_owned(), page);
    }

    /// How often it was seen so far.
    pub(crate) fn count(&self, key: &str) -> usize {
        self.0.borrow().get(key).map_or(0, |page| page.seen.len())
    }

    /// What was seen of it, in order.
    pub(crate) fn close(&self, key: &str) -> Vec<Seen> {
        let page = self.0.borrow_mut().remove(key);
        page.map(|page| page.seen).unwrap_or_default()
    }

    /// Remembers what came, and says what is answered to it.
    pub(crate) fn note(&self, key: &str, seen: Seen) -> Option<Answer> {
        let mut book = self.0.borrow_mut();
        let page = book.entry(key.to_owned()).or_default();
        let at = page.seen.len();
        page.seen.push(seen);
        let scripted = page.answers.get(at).or(page.answers.last());
        scripted.cloned()
    }
}

/// Gives every endpoint of every configuration a loopback address of its own.
pub(crate) struct Backends {
    pub(crate) book: Book,
    scope: Rc<LocalScope>,
    next: Cell<u32>,
}

/// Header of a request that says what was said of the caller before it.
const TOLD: HeaderName = HeaderName::from_static("x-told-first");
/// Between the first part of a body and where it breaks off.
const BEFORE_CUT: Duration = Duration::from_millis(100);
/// Endpoints have addresses above this one.
const FIRST: u32 = u32::from_be_bytes([127, 64, 0, 0]);

impl Backends {
    pub(crate) fn new(scope: Rc<LocalScope>) -> Self {
        Self {
            book: Book::default(),
            scope,
            next: Cell::new(FIRST),
        }
    }

    /// Starts the endpoints of one configuration.
    pub(crate) async fn start(&self, configuration: &Configuration) -> Vec<Running> {
        let mut running = Vec::new();
        for backend in &configuration.backends {
            for at in 0..backend.count {
                self.next.set(self.next.get() + 1);
                let ip = Ipv4Addr::from(self.next.get());
                let listener = TcpListener::bind(SocketAddr::from((ip, 0))).await.unwrap();
                let address = listener.local_addr().unwrap();
                let pod = format!("{}-{at}", backend.name);
                if !backend.refuses {
                    let serve = serve(
                        backend.clone(),
                        listener,
                        self.scope.clone(),
                        self.book.clone(),
                    );
                    self.scope.spawn("back end", serve);
                }
                running.push(Running {
                    pod,
                    backend: backend.clone(),
                    address,
                });
            }
        }
        running
    }
}

async fn serve(backend: Backend, listener: TcpListener, scope: Rc<LocalScope>, book: Book) {
    while let Ok((tcp, _)) = listener.accept().await {
        scope.spawn("connection", connection(backend.clone(), tcp, book.clone()));
    }
}

async fn connection(backend: Backend, mut tcp: TcpStream, book: Book) {
    let Some(mut preface) = first(&tcp).await else {
        return;
    };
    let caller = match &preface {
        b"PRO" | b"\r\n\r" => match who_calls(&preface, &mut tcp).await {
            Ok(caller) => Some(caller),
            Err(_) => return,
        },
        _ => None,
    };
    if caller.is_some() {
        match first(&tcp).await {
            Some(next) => preface = next,
            None => return,
        }
    }
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        if let Some(caller) = &caller {
            let told = HeaderValue::from_str(caller).unwrap();
            request.headers_mut().insert(TOLD, told);
        }
        answer(backend.clone(), book.clone(), request)
    });
    let io = TokioIo::new(tcp);
    // Ends with its peer, or when an answer says so.
    if &preface == b"PRI" {
        let builder = hyper::server::conn::http2::Builder::new(Local);
        let _ = builder.serve_connection(io, service).await;
    } else {
        let builder = hyper::server::conn::http1::Builder::new();
        let _ = builder.serve_connection(io, service).await;
    }
}

/// The first bytes that are sent; `None` if nothing is.
async fn first(tcp: &TcpStream) -> Option<[u8; 3]> {
    let mut preface = [0; 3];
    while let Ok(count) = tcp.peek(&mut preface).await {
        let may_follow = [&b"PRI"[..], b"PRO", b"\r\n\r"];
        let mut may_follow = may_follow.iter();
        let waits = may_follow.any(|all| all.starts_with(&preface[..count]));
        if count == 0 {
            return None;
        }
        if count == preface.len() || !waits {
            return Some(preface);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// The version of the PROXY protocol that comes first, and the caller's address without its port.
async fn who_calls(preface: &[u8; 3], tcp: &mut TcpStream) -> std::io::Result<String> {
    let mut all = Vec::new();
    if preface == b"PRO" {
        while !all.ends_with(b"\r\n") {
            all.push(tcp.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&all).into_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        return Ok(format!("V1 {} {}", words[1], words[2]));
    }
    // The length stands at the end of what is always there.
    all.resize(16, 0);
    tcp.read_exact(&mut all).await?;
    let length = u16::from_be_bytes([all[14], all[15]]);
    all.resize(16 + usize::from(length), 0);
    tcp.read_exact(&mut all[16..]).await?;
    let (header, _) = ProxyHeader::parse(&all).map_err(std::io::Error::other)?;
    Ok(format!("V2 {}", header.source.ip()))
}

async fn answer(
    backend: Backend,
    book: Book,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes());
    let body = body.unwrap_or_default();
    if parts.uri.path() == judge::CHECK {
        return judge::answer(&backend.name, &book, &body);
    }
    let mut headers = normalised(&parts.headers);
    if let Some(authority) = parts.uri.authority() {
        headers.insert("host".to_owned(), authority.to_string());
    }
    let key = parts.headers.get(KEY).and_then(|k| k.to_str().ok());
    let seen = Seen {
        backend: backend.name.clone(),
        method: parts.method.to_string(),
        target: parts
            .uri
            .path_and_query()
            .map_or("", |p| p.as_str())
            .to_owned(),
        version: format!("{:?}", parts.version),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let scripted = book.note(key.unwrap_or(""), seen);
    let answer = scripted.or(backend.answer).unwrap_or_default();
    if answer.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(answer.delay_ms)).await;
    }
    if answer.reset {
        return Err(std::io::Error::other("as scripted"));
    }
    Ok(respond(&backend.name, &answer))
}

fn respond(name: &str, answer: &Answer) -> Response<Body> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    let text = answer.body.clone().unwrap_or_else(|| name.to_owned());
    let whole = Bytes::from(text);
    if !answer.cut && answer.trailers.is_empty() {
        let body = Full::new(whole).map_err(|never: Infallible| match never {});
        return response.body(body.boxed_unsync()).unwrap();
    }
    let pairs = answer.trailers.iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        (name, HeaderValue::from_str(value).unwrap())
    });
    let trailers = pairs.collect::<HeaderMap>();
    let cut = answer.cut;
    let end = stream::once(async move {
        if !cut {
            return Ok(Frame::trailers(trailers));
        }
        // What breaks off at once takes the head with it: it was not written yet.
        tokio::time::sleep(BEFORE_CUT).await;
        Err(std::io::Error::other("as scripted"))
    });
    let frames = stream::iter([Ok(Frame::data(whole))]).chain(end);
    response
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap()
}

/// Runs hyper's tasks on this thread.
#[derive(Clone, Copy)]
pub(crate) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}
