mod patience;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isobar_runtime::{Lifetime, Scope};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use patience::{Patient, Shares};

/// A client that has not sent its request head by then is dropped (Istio's admin: 2 s).
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections served at once; more wait in the backlog.
const CONNECTIONS: usize = 128;
/// Connections of one address, of those: the ports for probes and scrapers are open to everybody.
const SHARE: usize = CONNECTIONS / 2;
/// Pause after a failed accept: without descriptors the next try fails too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// At most one log line about failed accepts in this time.
const TELL: Duration = Duration::from_secs(10);
/// How long open requests may run on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(1);

/// What a handler gets to see of a request. Bodies are not read.
#[derive(Debug, Clone)]
pub struct Call {
    /// Request method.
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// Query without `?`; empty if there is none.
    pub query: String,
    /// Request headers.
    pub headers: HeaderMap,
    /// Address of the client.
    pub peer: SocketAddr,
}

impl Call {
    /// True for what a script or form of a web page sends: a browser on an operator's machine reaches
    /// forwarded ports, whoever wrote the page.
    #[must_use]
    pub fn is_from_a_page(&self) -> bool {
        self.headers.contains_key("origin") || self.headers.contains_key("sec-fetch-site")
    }

    /// The first value of the query parameter `key`; a key without `=` has the empty value.
    /// Percent-encoding of `%XX` form is undone.
    #[must_use]
    pub fn query_value(&self, key: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == key).then(|| percent_decode(value))
        })
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// Plain text.
    #[must_use]
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: Bytes::from(body.into()),
        }
    }

    /// 200 with pretty JSON; 500 with the cause if `value` cannot be written as JSON.
    #[must_use]
    pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(body) => Self {
                status: StatusCode::OK,
                content_type: "application/json",
                body: Bytes::from(body),
            },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Handler = Arc<dyn Fn(Call) -> Answer + Send + Sync>;

/// Which path is served by what. Unknown path: 404; known path, other method: 405.
#[derive(Default, Clone)]
pub struct Routes {
    exact: HashMap<String, Vec<(Option<Method>, Handler)>>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.exact.keys()).finish()
    }
}

impl Routes {
    /// No route.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves GET (and HEAD) of `path`.
    #[must_use]
    pub fn get<H, F>(self, path: &str, handler: H) -> Self
    where
        H: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        self.add(Some(Method::GET), path, handler)
    }

    /// Serves POST of `path`.
    #[must_use]
    pub fn post<H, F>(self, path: &str, handler: H) -> Self
    where
        H: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        self.add(Some(Method::POST), path, handler)
    }

    /// Serves every method of `path`.
    #[must_use]
    pub fn any<H, F>(self, path: &str, handler: H) -> Self
    where
        H: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        self.add(None, path, handler)
    }

    /// Adds the routes of `other`.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (path, handlers) in other.exact {
            self.exact.entry(path).or_default().extend(handlers);
        }
        self
    }

    /// The served paths, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<_> = self.exact.keys().cloned().collect();
        paths.sort_unstable();
        paths
    }

    fn add<H, F>(mut self, method: Option<Method>, path: &str, handler: H) -> Self
    where
        H: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
        self.exact
            .entry(path.to_owned())
            .or_default()
            .push((method, handler));
        self
    }

    async fn answer(&self, call: Call) -> Response<Full<Bytes>> {
        let Some(methods) = self.exact.get(&call.path) else {
            return response(Reply::text(StatusCode::NOT_FOUND, "not found\n"));
        };
        let asked = if call.method == Method::HEAD {
            &Method::GET
        } else {
            &call.method
        };
        let handler = methods
            .iter()
            .find(|(method, _)| method.as_ref().is_none_or(|m| m == asked));
        if let Some((_, handler)) = handler {
            return response(handler(call).await);
        }
        let allowed: Vec<_> = methods
            .iter()
            .filter_map(|(method, _)| method.as_ref().map(Method::as_str))
            .collect();
        let mut reply = response(Reply::text(
            StatusCode::METHOD_NOT_ALLOWED,
            "Invalid HTTP method\n",
        ));
        if let Ok(value) = HeaderValue::from_str(&allowed.join(", ")) {
            reply.headers_mut().insert(ALLOW, value);
        }
        reply
    }
}

/// A small HTTP/1.1 server on one or more sockets; for operators and probes, not for traffic.
#[derive(Debug)]
pub struct HttpServer {
    name: &'static str,
    listeners: Vec<TcpListener>,
    routes: Arc<Routes>,
}

impl HttpServer {
    /// Binds `addresses`; with several, those of a family the host lacks are left out as long as
    /// one remains.
    ///
    /// # Errors
    /// The error of the last address if none could be bound, or of any that is not about a
    /// missing family.
    pub fn bind(
        name: &'static str,
        addresses: &[SocketAddr],
        routes: Routes,
    ) -> std::io::Result<Self> {
        let mut listeners = Vec::new();
        let mut failed = None;
        for address in addresses {
            match std::net::TcpListener::bind(address) {
                Ok(listener) => {
                    listener.set_nonblocking(true)?;
                    listeners.push(TcpListener::from_std(listener)?);
                }
                Err(error) if address.is_ipv6() && addresses.len() > 1 => failed = Some(error),
                Err(error) => {
                    let text = format!("binding {address} for {name}: {error}");
                    return Err(std::io::Error::new(error.kind(), text));
                }
            }
        }
        match failed {
            Some(error) if listeners.is_empty() => Err(error),
            _ => Ok(Self {
                name,
                listeners,
                routes: Arc::new(routes),
            }),
        }
    }

    /// The addresses really bound.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|l| l.local_addr().ok())
            .collect()
    }

    /// Serves until `life` is stopped; draining does not end it, so that probes and operators can
    /// watch a drain.
    pub async fn run(self, life: Lifetime) {
        let scope = Scope::new(self.name);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let shares = Shares::new(SHARE);
        for listener in self.listeners {
            let inner = scope.lifetime();
            scope.spawn(
                "accept",
                accept(
                    self.name,
                    listener,
                    self.routes.clone(),
                    (slots.clone(), shares.clone()),
                    inner,
                ),
            );
        }
        life.stopped().await;
        scope.shutdown(DRAIN).await;
    }
}

async fn accept(
    name: &'static str,
    listener: TcpListener,
    routes: Arc<Routes>,
    (slots, shares): (Arc<Semaphore>, Shares),
    life: Lifetime,
) {
    let connections = Scope::new(name);
    let mut told: Option<std::time::Instant> = None;
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = life.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let Some(share) = shares.take(peer.ip()) else {
                    tracing::debug!(server = name, %peer, "the address has its share of connections");
                    continue;
                };
                let routes = routes.clone();
                let life = connections.lifetime();
                connections.spawn("connection", async move {
                    serve(name, tcp, peer, routes, life).await;
                    drop((slot, share));
                });
            }
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() > TELL) {
                    tracing::warn!(server = name, %error, "accept failed");
                    told = Some(std::time::Instant::now());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.shutdown(DRAIN).await;
}

async fn serve(
    name: &'static str,
    tcp: TcpStream,
    peer: SocketAddr,
    routes: Arc<Routes>,
    life: Lifetime,
) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let routes = routes.clone();
        async move {
            let call = Call {
                method: request.method().clone(),
                path: request.uri().path().to_owned(),
                query: request.uri().query().unwrap_or_default().to_owned(),
                headers: request.headers().clone(),
                peer,
            };
            Ok::<_, Infallible>(routes.answer(call).await)
        }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(Patient::new(tcp)), service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = life.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(server = name, %peer, %error, "connection ended");
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = reply.status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    response
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let pair = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let decoded = pair
            .and_then(|p| std::str::from_utf8(p).ok())
            .and_then(|p| u8::from_str_radix(p, 16).ok());
        match decoded {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(if *byte == b'+' { b' ' } else { *byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_runtime::LifetimeOwner;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(to: SocketAddr, request: &str) -> String {
        let mut tcp = TcpStream::connect(to).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        text
    }

    /// A server of these, until the owner stops it.
    fn serving(routes: Routes) -> (SocketAddr, LifetimeOwner, Scope) {
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = HttpServer::bind("test", &[local], routes).unwrap();
        let at = server.addresses()[0];
        let owner = LifetimeOwner::new();
        let scope = Scope::new("test");
        scope.spawn("server", server.run(owner.lifetime()));
        (at, owner, scope)
    }

    #[tokio::test]
    async fn routes_by_path_and_method() {
        let routes = Routes::new()
            .get("/a", |call: Call| async move {
                Reply::text(StatusCode::OK, call.query_value("k").unwrap_or_default())
            })
            .post("/b", |_| async { Reply::json(&[1, 2]) });
        let (at, owner, scope) = serving(routes);

        let got = ask(at, "GET /a?x=1&k=a%2Cb").await;
        assert!(
            got.starts_with("HTTP/1.1 200") && got.ends_with("a,b"),
            "{got}"
        );
        assert!(ask(at, "GET /b").await.starts_with("HTTP/1.1 405"));
        assert!(ask(at, "POST /b").await.contains("application/json"));
        assert!(ask(at, "GET /c").await.starts_with("HTTP/1.1 404"));
        owner.stop();
        assert!(scope.shutdown(Duration::from_secs(5)).await);
        assert!(TcpStream::connect(at).await.is_err());
    }

    /// Connects from an address of the loopback, asks for much, and reads nothing.
    async fn deaf(from: &str, to: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::new(from.parse().unwrap(), 0))
            .unwrap();
        let mut tcp = socket.connect(to).await.unwrap();
        let request = "GET /much HTTP/1.1\r\nhost: x\r\n\r\n".repeat(8);
        // Who has no share is cut off meanwhile.
        let _ = tcp.write_all(request.as_bytes()).await;
        tcp
    }

    #[tokio::test]
    async fn who_does_not_read_holds_no_place_that_others_need() {
        let body = Bytes::from(vec![b'x'; 4 << 20]);
        let much = Reply {
            body,
            ..Reply::text(StatusCode::OK, "")
        };
        let routes = Routes::new()
            .get("/much", move |_| std::future::ready(much.clone()))
            .get("/few", |_| async { Reply::text(StatusCode::OK, "few") });
        let (at, owner, scope) = serving(routes);

        let mut held = Vec::new();
        for _ in 0..CONNECTIONS + 8 {
            held.push(deaf("127.0.0.3", at).await);
        }
        let asked = tokio::time::timeout(Duration::from_secs(20), ask(at, "GET /few"));
        assert!(asked.await.unwrap().ends_with("few"));

        // Cut off however long the answer is that waits for it.
        let mut one = held.swap_remove(0);
        let gone = async {
            while one
                .write_all(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .is_ok()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
        assert!(gone.is_ok(), "it is still served");
        owner.stop();
        assert!(scope.shutdown(Duration::from_secs(5)).await);
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(percent_decode("%zz%4"), "%zz%4");
        assert_eq!(percent_decode("a%3Db+c"), "a=b c");
    }
}
