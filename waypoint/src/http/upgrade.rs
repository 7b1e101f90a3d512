//! WebSocket: after both sides agree, bytes.

use std::rc::Rc;

use ::http::header::{CONNECTION, HeaderValue, UPGRADE};
use ::http::{HeaderMap, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use isobar_types::Reason;

use super::body::ReplyBody;
use super::exchange::Exchange;
use super::reply::{Local, SERVER_NAME};

/// The only protocol a connection may change to, as at Envoy's waypoint.
pub(super) fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// Asks the endpoint to change protocols.
pub(super) fn ask(headers: &mut HeaderMap, protocol: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
}

/// Passes the endpoint's agreement on and joins both sides.
pub(super) fn join(
    mut response: Response<Incoming>,
    downstream: Option<OnUpgrade>,
    mut exchange: Exchange,
) -> Response<ReplyBody> {
    let Some(downstream) = downstream else {
        let why = "the endpoint changed protocols unasked".to_owned();
        return Local::upstream(Reason::UpstreamProtocol, why).respond(exchange);
    };
    let upstream = hyper::upgrade::on(&mut response);
    exchange.code = response.status().as_u16();
    exchange.detail = "via_upstream".to_owned();
    exchange.upstream_time = Some(exchange.started.elapsed());
    let scope: Rc<_> = exchange.scope();
    scope.spawn("websocket", async move {
        let (Ok(upstream), Ok(downstream)) = tokio::join!(upstream, downstream) else {
            exchange.failed(Reason::DownstreamReset);
            return;
        };
        let mut upstream = TokioIo::new(upstream);
        let mut downstream = TokioIo::new(downstream);
        match tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await {
            Ok((up, down)) => {
                exchange.progress.bytes.set(up);
                exchange.sent(usize::try_from(down).unwrap_or(usize::MAX));
                exchange.complete();
            }
            Err(_) => exchange.failed(Reason::UpstreamReset),
        }
    });
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(::http::header::SERVER, SERVER_NAME);
    Response::from_parts(parts, ReplyBody::bare())
}
