//! WebSocket: after both sides agree, bytes.

use std::rc::Rc;

use ::http::header::{CONNECTION, HeaderValue, UPGRADE};
use ::http::{HeaderMap, Response};
use isobar_hbone::{Plain, Progress, relay_counted};
use isobar_types::Reason;

use super::body::ReplyBody;
use super::exchange::Exchange;
use super::reply::{Local, SERVER_NAME};
use super::serve1::Upgrade;
use super::standing::Side;
use crate::stream::AnyStream;
use crate::upstream::Answer;

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
    mut response: Response<Answer>,
    downstream: Option<Upgrade>,
    mut exchange: Box<Exchange>,
) -> Response<ReplyBody> {
    let (Some(downstream), Some(upstream)) = (downstream, response.body_mut().switched()) else {
        let why = "the endpoint changed protocols unasked".to_owned();
        return Local::upstream(Reason::UpstreamProtocol, why, false).respond(exchange);
    };
    exchange.code = response.status().as_u16();
    exchange.detail = "via_upstream".into();
    exchange.upstream_time = Some(exchange.started.elapsed());
    let scope: Rc<_> = exchange.scope();
    scope.spawn("websocket", async move {
        match downstream.stream().await {
            Ok(downstream) => carry(downstream, upstream, &mut exchange).await,
            Err(_) => exchange.failed(Reason::DownstreamReset),
        }
    });
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(::http::header::SERVER, SERVER_NAME);
    Response::from_parts(parts, ReplyBody::bare())
}

/// Carries bytes until both sides are done, or a policy written meanwhile forbids it.
async fn carry(downstream: AnyStream, upstream: AnyStream, exchange: &mut Exchange) {
    let mut downstream = Plain::new(downstream);
    let mut upstream = Plain::new(upstream);
    let progress = Progress::default();
    let standing = exchange.standing.clone();
    let ending = async {
        match &standing {
            Some(standing) => standing.until_ending(Side::Reply).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        end = relay_counted(&mut downstream, &mut upstream, &progress) => match end {
            Ok(()) => exchange.complete(),
            Err(error) => exchange.failed(error.reason()),
        },
        // Dropping both ends them; whose frame was cut is not for a relay to mend.
        () = ending => {
            exchange.is_ending();
        }
    }
    exchange.progress.bytes.set(progress.sent());
    exchange.sent(usize::try_from(progress.received()).unwrap_or(usize::MAX));
}
