//! The admission webhook on 15017: the API server asks it before it stores an object.
//!
//! Nobody proves who asks, so everything is bounded: the size of a question, its time, how many are
//! judged at once, and how long a connection lives.

mod judge;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isobar_kubernetes::{Webhook, WebhookAddress, WebhookOptions};
use isobar_runtime::{Lifetime, Scope};
use isobar_tls::ca::Authority;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_stream::StreamExt as _;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::process;
use crate::server::{self, Connection, ServerCertificates, Speaks};
use crate::surroundings::{MANAGER, Surroundings};

pub(crate) use judge::Judge;

/// Longest question: two versions of an object of the largest size that a server stores.
const LONGEST: usize = 4 << 20;
/// Limit of a request's head, and of everything else until its answer.
const HEAD: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(8);
/// Objects that are judged at once.
const AT_ONCE: usize = 2;
/// Connections that are served at once; more wait.
const CONNECTIONS: usize = 128;
/// A connection is told to end after this long, and ends after that.
const AGE: Duration = Duration::from_secs(120);
const LEAVING: Duration = Duration::from_secs(10);

/// Answers questions.
struct Desk {
    judge: Judge,
    metrics: Metrics,
    places: Arc<Semaphore>,
}

/// Serves the webhook and registers it, if the configuration asks for it.
///
/// # Errors
/// When its address cannot be used.
pub(crate) async fn start(
    scope: &Scope,
    serving: &Scope,
    config: &Config,
    around: &Surroundings,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    let (Some(address), Some(cluster)) = (config.webhook, &around.cluster) else {
        return Ok(());
    };
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    let judge = Judge {
        objects: around.objects.clone(),
        waypoint_classes: config.waypoint_class.clone(),
        refuses: !config.waypoints_only,
    };
    let own = config.own_namespace();
    let service = format!("isobard.{own}.svc");
    let names = process::server_names(config).into_iter().chain([service]);
    let authorities = around.authorities.subscribe();
    serve(
        serving,
        listener,
        names.collect(),
        authorities,
        judge,
        metrics.clone(),
    )?;
    let address = config.webhook_url.clone().map_or_else(
        || WebhookAddress::Service {
            namespace: own.to_owned(),
            name: "isobard".to_owned(),
        },
        WebhookAddress::Url,
    );
    let options = WebhookOptions {
        configuration: config.webhook_configuration.clone(),
        manager: MANAGER.to_owned(),
        address,
        kinds: Judge::kinds().collect(),
        revision: config.revision.clone(),
        is_needed: config.webhook_failure_policy == "Fail" && !config.waypoints_only,
        namespace: own.to_owned(),
    };
    let webhook = Webhook::new(cluster.clone(), options, around.authorities.roots());
    let (leads, life) = (around.leads.clone(), scope.lifetime());
    scope.spawn("webhook registration", webhook.run(leads, life));
    Ok(())
}

/// Serves the webhook on `listener`, with a certificate for `names`.
///
/// # Errors
/// When the certificate cannot be made.
pub(crate) fn serve(
    scope: &Scope,
    listener: TcpListener,
    names: Vec<String>,
    authority: watch::Receiver<Arc<Authority>>,
    judge: Judge,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let certificates = ServerCertificates::issue(authority, names, Speaks::Http1)?;
    let mut connections = server::connections(scope, listener, certificates.current());
    scope.spawn("webhook certificate", certificates.renew(scope.lifetime()));
    let desk = Arc::new(Desk {
        judge,
        metrics,
        places: Arc::new(Semaphore::new(AT_ONCE)),
    });
    let life = scope.lifetime();
    scope.spawn("webhook", async move {
        let open = Scope::new("webhook connections");
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let next = tokio::select! {
                next = connections.next() => next,
                () = life.draining() => return,
            };
            let Some(Ok(connection)) = next else { return };
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let (desk, life) = (Arc::clone(&desk), life.clone());
            open.spawn("connection", async move {
                converse(connection, desk, life).await;
                drop(place);
            });
        }
    });
    Ok(())
}

/// Answers an API server on `listener`, as a control plane that knows of no object does; for tests.
///
/// # Errors
/// When a certificate for `names` cannot be made.
pub fn answer_reviews(
    scope: &Scope,
    listener: TcpListener,
    names: Vec<String>,
    authority: Authority,
) -> anyhow::Result<()> {
    let judge = Judge {
        objects: watch::channel(Arc::default()).1,
        waypoint_classes: vec![isobar_types::labels::WAYPOINT_CLASS.to_owned()],
        refuses: true,
    };
    let authority = watch::channel(Arc::new(authority)).1;
    let metrics = Metrics::new(&isobar_telemetry::Registry::new());
    serve(scope, listener, names, authority, judge, metrics)
}

async fn converse(connection: Connection, desk: Arc<Desk>, life: Lifetime) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(connection), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        () = tokio::time::sleep(AGE) => {}
        () = life.draining() => {}
    }
    served.as_mut().graceful_shutdown();
    // It ends with its last answer, or without it.
    let _ = tokio::time::timeout(LEAVING, served).await;
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/validate" {
            return reply(StatusCode::NOT_FOUND, "text/plain", "not found\n");
        }
        if request.method() != Method::POST {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only POST\n");
        }
        let answer = tokio::time::timeout(PATIENCE, self.consider(request.into_body())).await;
        answer.unwrap_or_else(|_| {
            let text = "the object could not be judged in time\n";
            reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
        })
    }

    async fn consider(&self, body: Incoming) -> Response<Full<Bytes>> {
        let refused = |status, text: String| reply(status, "text/plain", text);
        let body = match Limited::new(body, LONGEST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                let text = format!("longer than {LONGEST} bytes\n");
                return refused(StatusCode::PAYLOAD_TOO_LARGE, text);
            }
            Err(error) => return refused(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "ending\n".to_owned());
        };
        let judge = self.judge.clone();
        // Off the threads that serve discovery; the place is taken until it is done, waited for or not.
        let judged = tokio::task::spawn_blocking(move || {
            let answer = judge.answer(&body);
            drop(place);
            answer
        });
        match judged.await {
            Ok(Ok((answer, is_allowed))) => {
                self.metrics.validated(is_allowed);
                reply(StatusCode::OK, "application/json", answer.to_string())
            }
            Ok(Err(error)) => refused(StatusCode::BAD_REQUEST, format!("{error}\n")),
            Err(error) => {
                tracing::error!(%error, "judging an object failed");
                refused(StatusCode::INTERNAL_SERVER_ERROR, "failed\n".to_owned())
            }
        }
    }
}

fn reply(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
