use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use isobar_runtime::{Lifetime, Scope};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Time open requests get when the application is dropped by its test.
const GRACE: Duration = Duration::from_secs(5);

/// A request as it arrived at an [`App`].
#[derive(Debug, Clone)]
pub struct Arrived {
    /// Its place among all the application was asked, from 0.
    pub number: usize,
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Header fields, `host` among them.
    pub headers: HeaderMap,
}

impl Arrived {
    /// Value of a header field; nothing where it is absent.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default()
    }
}

/// What an [`App`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This status with the application's name as the body.
    Status(u16),
    /// The same with 200, once [`App::release`] was called.
    Held,
}

/// An HTTP/1.1 application of the test's own, inside a pod.
#[derive(Debug)]
pub struct App {
    scope: Scope,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    released: watch::Sender<bool>,
}

impl App {
    /// Serves on the listener; `answer` decides on each request.
    pub fn serve<F>(name: &str, listener: TcpListener, answer: F) -> Self
    where
        F: Fn(&Arrived) -> Answer + Send + Sync + 'static,
    {
        let scope = Scope::new("test-app");
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let (released, held) = watch::channel(false);
        let serving = Serving {
            name: Bytes::from(name.to_owned()),
            answer: Arc::new(answer),
            arrived: Arc::clone(&arrived),
            held,
        };
        scope.spawn("accept", accept(listener, scope.lifetime(), serving));
        Self {
            scope,
            arrived,
            released,
        }
    }

    /// What has arrived so far.
    #[must_use]
    pub fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().expect("no holder panics").clone()
    }

    /// Number of requests so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.arrived.lock().expect("no holder panics").len()
    }

    /// Lets all requests go that are held, now and later.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Ends the application: its listener is closed, its connections end.
    pub async fn stop(self) {
        self.release();
        self.scope.shutdown(GRACE).await;
    }
}

struct Serving<F> {
    name: Bytes,
    answer: Arc<F>,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    held: watch::Receiver<bool>,
}

impl<F> Clone for Serving<F> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            answer: Arc::clone(&self.answer),
            arrived: Arc::clone(&self.arrived),
            held: self.held.clone(),
        }
    }
}

async fn accept<F>(listener: TcpListener, told: Lifetime, serving: Serving<F>)
where
    F: Fn(&Arrived) -> Answer + Send + Sync + 'static,
{
    let connections = Scope::new("test-app-connections");
    loop {
        let accepted = tokio::select! {
            () = told.draining() => break,
            accepted = listener.accept() => accepted,
        };
        // An aborted connection is no reason to end.
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let (serving, life) = (serving.clone(), connections.lifetime());
        connections.spawn("connection", async move {
            let service = service_fn(move |request| serving.clone().respond(request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                // How a caller ends a connection is its own affair.
                _ = connection.as_mut() => return,
                () = life.draining() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    drop(listener);
    connections.shutdown(GRACE).await;
}

impl<F: Fn(&Arrived) -> Answer> Serving<F> {
    async fn respond(
        mut self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        // A body that breaks off is the caller's affair; the request has arrived all the same.
        let _ = body.collect().await;
        let arrived = {
            let mut all = self.arrived.lock().expect("no holder panics");
            let arrived = Arrived {
                number: all.len(),
                method: head.method.to_string(),
                path: head.uri.to_string(),
                headers: head.headers,
            };
            all.push(arrived.clone());
            arrived
        };
        let status = match (self.answer)(&arrived) {
            Answer::Status(status) => StatusCode::from_u16(status).expect("a status of a test"),
            Answer::Held => {
                // The sender lives as long as the test looks at the application.
                let _ = self.held.wait_for(|released| *released).await;
                StatusCode::OK
            }
        };
        let mut response = Response::new(Full::new(self.name));
        *response.status_mut() = status;
        Ok(response)
    }
}
