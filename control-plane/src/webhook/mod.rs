//! The admission webhook on 15017: the API server asks it before it stores an object.
//!
//! Nobody proves who asks, so everything is bounded: the size of a question, its time, how many are
//! judged at once, how long a connection lives, and what one address may have of all that.

mod budget;
mod judge;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isobar_kubernetes::{Webhook, WebhookAddress, WebhookOptions};
use isobar_runtime::{Lifetime, Scope};
use isobar_tls::ca::Authority;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_stream::StreamExt as _;

use self::budget::{Budget, Piece};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::process;
use crate::revision::Revision;
use crate::server::{self, Connection, ServerCertificates, Speaks};
use crate::surroundings::{MANAGER, Surroundings};

pub(crate) use judge::Judge;

/// Longest question: two versions of an object of the largest size that a server stores.
const LONGEST: usize = 4 << 20;
/// Limit of a request's head, and of everything else until its answer.
const HEAD: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes of questions that are held at once, read or not: of small ones, and of all others. Who sends
/// large ones only does not keep the usual ones out.
const SMALL: usize = 256 << 10;
const OF_SMALL: u32 = 8 << 20;
const OF_LARGE: u32 = 24 << 20;
/// Of each the part that one address may have: of large ones two of the longest.
const PART: u32 = 3;
/// What is waited for a place among them, and then for the question, which its asker has whole.
const WAITING: Duration = Duration::from_secs(2);
const READING: Duration = Duration::from_secs(3);
/// Objects that are judged at once.
const AT_ONCE: usize = 2;
/// Connections that are served at once, and those of one address; who asks for more waits a moment. API
/// servers ask one question at a time on each.
const CONNECTIONS: u32 = 384;
const OF_ONE: u32 = 128;
/// A connection is told to end after this long, and ends after that.
const AGE: Duration = Duration::from_secs(120);
const LEAVING: Duration = Duration::from_secs(10);

/// Answers questions.
struct Desk {
    judge: Judge,
    metrics: Metrics,
    places: Arc<Semaphore>,
    small: Arc<Budget>,
    large: Arc<Budget>,
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
    let revision = Revision::of(config);
    let name = revision.suffixed(process::NAME);
    let service = format!("{name}.{own}.svc");
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
            name,
        },
        WebhookAddress::Url,
    );
    let options = WebhookOptions {
        configuration: config.webhook_configuration.clone(),
        manager: MANAGER.to_owned(),
        address,
        kinds: Judge::kinds().collect(),
        refuses: !config.waypoints_only,
        warns: !config.waypoints_only,
        revision: revision.name().to_owned(),
        is_default: revision.is_default(),
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
    let desk = Arc::new(Desk::new(judge, metrics));
    let life = scope.lifetime();
    scope.spawn("webhook", async move {
        let open = Scope::new("webhook connections");
        let places = Budget::new(CONNECTIONS, OF_ONE);
        loop {
            let next = tokio::select! {
                next = connections.next() => next,
                () = life.draining() => return,
            };
            let Some(Ok(connection)) = next else { return };
            let (desk, places, life) = (Arc::clone(&desk), Arc::clone(&places), life.clone());
            open.spawn("connection", async move {
                let address = connection.peer().ip();
                let Some(place) = places.take(address, 1, WAITING).await else {
                    tracing::debug!(%address, "too many connections of one address");
                    return;
                };
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
    let address = connection.peer().ip();
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(address, request).await) }
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
    fn new(judge: Judge, metrics: Metrics) -> Self {
        Self {
            judge,
            metrics,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            small: Budget::new(OF_SMALL, OF_SMALL / PART),
            large: Budget::new(OF_LARGE, OF_LARGE / PART),
        }
    }

    async fn answer(&self, from: IpAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/validate" {
            return reply(StatusCode::NOT_FOUND, "text/plain", "not found\n");
        }
        if request.method() != Method::POST {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only POST\n");
        }
        let answer = tokio::time::timeout(PATIENCE, self.consider(from, request.into_body())).await;
        answer.unwrap_or_else(|_| {
            let text = "the object could not be judged in time\n";
            reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
        })
    }

    /// The bytes of a question and their part of the budget, or why there are none.
    async fn read<B>(&self, from: IpAddr, body: B) -> Result<(Bytes, Piece), (StatusCode, String)>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let too_long = || {
            let text = format!("longer than {LONGEST} bytes\n");
            (StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        // Who does not say how long it is counts as the longest.
        let length = body.size_hint().upper().unwrap_or(LONGEST as u64);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(too_long());
        }
        let of = if length <= SMALL {
            &self.small
        } else {
            &self.large
        };
        let part = u32::try_from(length.max(1)).unwrap_or(u32::MAX);
        let Some(part) = of.take(from, part, WAITING).await else {
            let text = "too many questions at once\n".to_owned();
            return Err((StatusCode::SERVICE_UNAVAILABLE, text));
        };
        let body = Limited::new(body, length).collect();
        match tokio::time::timeout(READING, body).await {
            Ok(Ok(body)) => Ok((body.to_bytes(), part)),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_long()),
            Ok(Err(error)) => Err((StatusCode::BAD_REQUEST, format!("{error}\n"))),
            Err(_) => {
                let text = "the question does not arrive\n".to_owned();
                Err((StatusCode::REQUEST_TIMEOUT, text))
            }
        }
    }

    async fn consider<B>(&self, from: IpAddr, body: B) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let refused = |status, text: String| reply(status, "text/plain", text);
        let (body, part) = match self.read(from, body).await {
            Ok(read) => read,
            Err((status, text)) => return refused(status, text),
        };
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "ending\n".to_owned());
        };
        let judge = self.judge.clone();
        // Off the threads that serve discovery; the place is taken until it is done, waited for or not.
        let judged = tokio::task::spawn_blocking(move || {
            let answer = judge.answer(&body);
            drop((body, part, place));
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

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    fn desk() -> Desk {
        let judge = Judge {
            objects: watch::channel(Arc::default()).1,
            waypoint_classes: Vec::new(),
            refuses: true,
        };
        Desk::new(judge, Metrics::new(&isobar_telemetry::Registry::new()))
    }

    /// A question of no known length that never ends.
    fn endless() -> impl Body<Data = Bytes, Error = Infallible> {
        StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>())
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn large() -> Full<Bytes> {
        Full::new(Bytes::from(vec![b' '; SMALL + 1]))
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_bounded_before_they_are_read() {
        let desk = desk();
        let many = u8::try_from(OF_LARGE as usize / LONGEST).unwrap();
        let hogs = (0..many).map(|n| desk.consider(address(n), endless()));
        let late = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(desk.large.left(), 0);
            let late = desk.consider(address(100), large()).await;
            assert_eq!(late.status(), StatusCode::SERVICE_UNAVAILABLE);
            // A usual one is answered all the same.
            let usual = Full::new(Bytes::from("{}"));
            let usual = desk.consider(address(0), usual).await;
            assert_eq!(usual.status(), StatusCode::BAD_REQUEST);
        };
        let (hogs, ()) =
            futures_util::future::join(futures_util::future::join_all(hogs), late).await;
        for hog in hogs {
            assert_eq!(hog.status(), StatusCode::REQUEST_TIMEOUT);
        }
        assert_eq!(desk.large.left(), OF_LARGE as usize);
        assert_eq!(desk.small.left(), OF_SMALL as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_who_asks_slowly_keeps_the_api_server_not_waiting() {
        let desk = desk();
        let (stranger, server) = (address(1), address(2));
        let hogs = (0..50).map(|_| desk.consider(stranger, endless()));
        let asked = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let begun = tokio::time::Instant::now();
            for _ in 0..10 {
                let answer = desk.consider(server, large()).await;
                assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
            }
            assert!(
                begun.elapsed() < Duration::from_secs(1),
                "{:?}",
                begun.elapsed()
            );
        };
        futures_util::future::join(futures_util::future::join_all(hogs), asked).await;
        assert_eq!(desk.large.left(), OF_LARGE as usize);
    }

    #[tokio::test]
    async fn a_question_that_is_too_long_is_not_read() {
        let long = Full::new(Bytes::from(vec![b' '; LONGEST + 1]));
        let answer = desk().consider(address(1), long).await;
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
