//! Copies of requests for mirrors. Nobody waits for their answers.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ::http::header::{HOST, HeaderValue};
use ::http::uri::Authority;
use ::http::{Request, Uri};
use http_body_util::BodyExt;

use super::upload::RequestBody;
use crate::endpoint::{Endpoint, Wanted};
use crate::metrics::Mirrored;
use crate::session::Session;
use crate::upstream::{How, Version};

/// Copies of one worker that are under way; more are left out.
const MOST: usize = 1024;
/// A copy is given up after that.
const LIMIT: Duration = Duration::from_secs(15);
const SUFFIX: &str = "-shadow";

thread_local! {
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

struct UnderWay;

impl UnderWay {
    fn begin() -> Option<Self> {
        let count = UNDER_WAY.get();
        (count < MOST).then(|| {
            UNDER_WAY.set(count + 1);
            Self
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get() - 1);
    }
}

/// Sends one copy from a task of its own.
pub(super) fn send(
    session: &Rc<Session>,
    endpoint: Endpoint,
    version: Version,
    mut request: Request<RequestBody>,
    how: How,
) {
    let metrics = session.worker.metrics.clone();
    let Some(under_way) = UnderWay::begin() else {
        metrics.mirrored(Mirrored::LeftOut);
        return;
    };
    shadow(&mut request);
    let worker = session.worker.clone();
    let scope = session.worker.upstreams.clone();
    scope.spawn("mirror", async move {
        let _under_way = under_way;
        let exchange = async {
            let sent = worker
                .pool
                .send(&endpoint, version, Box::new(request), &how)
                .await;
            let sent = sent.map_err(|error| error.detail)?;
            let _stream = sent.stream;
            let mut body = sent.response.into_body();
            while let Some(frame) = body.frame().await {
                frame.map_err(|error| error.to_string())?;
            }
            Ok::<(), String>(())
        };
        match tokio::time::timeout(LIMIT, exchange).await {
            Ok(Ok(())) => metrics.mirrored(Mirrored::Sent),
            Ok(Err(why)) => {
                tracing::debug!(endpoint = %endpoint.address, "a copy was not answered: {why}");
                metrics.mirrored(Mirrored::Failed);
            }
            Err(_) => metrics.mirrored(Mirrored::Failed),
        }
    });
}

/// Chooses where a copy goes; `None` if it may go nowhere.
pub(super) fn endpoint(session: &Session, wanted: &Wanted<'_>) -> Option<Endpoint> {
    let view = session.worker.world.view();
    let chosen = session.worker.turns.choose_now(&view, wanted).ok()?;
    session.admitted(&view, &chosen).ok()?;
    Some(chosen)
}

/// Whoever gets a copy can see that it is one: `svc:80` becomes `svc-shadow:80`.
fn shadow(request: &mut Request<RequestBody>) {
    if let Some(host) = request.headers().get(HOST).and_then(|h| h.to_str().ok())
        && let Ok(host) = HeaderValue::from_str(&with_suffix(host))
    {
        request.headers_mut().insert(HOST, host);
    }
    let mut parts = request.uri().clone().into_parts();
    if let Some(authority) = &parts.authority
        && let Ok(authority) = Authority::try_from(with_suffix(authority.as_str()))
    {
        parts.authority = Some(authority);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

fn with_suffix(authority: &str) -> String {
    let (host, port) = isobar_route::path::split_port(authority);
    match port {
        Some(port) => format!("{host}{SUFFIX}:{port}"),
        None => format!("{host}{SUFFIX}"),
    }
}

#[cfg(test)]
mod tests {
    use super::with_suffix;

    #[test]
    fn the_suffix_comes_before_the_port() {
        assert_eq!(with_suffix("svc"), "svc-shadow");
        assert_eq!(with_suffix("svc:8080"), "svc-shadow:8080");
    }
}
