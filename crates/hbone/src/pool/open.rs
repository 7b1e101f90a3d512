use std::future::poll_fn;
use std::net::SocketAddr;

use h2::Reason as H2Reason;
use http::StatusCode;
use tokio::time::timeout;

use super::entry::Slot;
use super::tunnel::Ending;
use crate::stream::Place;
use crate::{ConnectHeaders, Stage, Timeouts, TunnelError, TunnelStream};

/// A request that came to nothing.
pub(super) struct Failure {
    pub(super) error: TunnelError,
    /// The peer has certainly not acted on it.
    pub(super) unprocessed: bool,
}

impl From<TunnelError> for Failure {
    fn from(error: TunnelError) -> Self {
        Self {
            error,
            unprocessed: false,
        }
    }
}

/// Sends CONNECT on the slot's tunnel and waits for 200.
pub(super) async fn connect(
    slot: Slot,
    to: SocketAddr,
    headers: &ConnectHeaders,
    timeouts: &Timeouts,
) -> Result<TunnelStream, Failure> {
    let request = headers.to_request().map_err(TunnelError::from)?;
    let answer = timeout(timeouts.connect, async {
        let mut requests = slot.tunnel().requests();
        poll_fn(|cx| requests.poll_ready(cx))
            .await
            .map_err(|error| (error, true))?;
        let (response, send) = requests
            .send_request(request, false)
            .map_err(|error| (error, true))?;
        slot.tunnel().guard().stream_opened();
        let response = response.await.map_err(|error| (error, false))?;
        Ok((response, send))
    });
    let (response, send) = match answer.await {
        Ok(Ok(answer)) => answer,
        Ok(Err((error, unsent))) => return Err(failed(&slot, to, &error, unsent, timeouts).await),
        Err(_) => {
            // Silent to this request only; liveness decides about the tunnel.
            let (stage, after) = (Stage::Connect, timeouts.connect);
            return Err(TunnelError::Timeout { to, stage, after }.into());
        }
    };
    if response.status() != StatusCode::OK {
        let status = response.status().as_u16();
        return Err(TunnelError::Refused { to, status }.into());
    }
    let (parts, recv) = response.into_parts();
    let peer = slot.tunnel().peer().clone();
    Ok(TunnelStream::new(
        send,
        recv,
        peer,
        Some(parts.headers),
        Place::Pooled(slot),
    ))
}

async fn failed(
    slot: &Slot,
    to: SocketAddr,
    error: &h2::Error,
    unsent: bool,
    timeouts: &Timeouts,
) -> Failure {
    let refused = error.is_reset() && error.reason() == Some(H2Reason::REFUSED_STREAM);
    // A polite GOAWAY names the last stream it will process; ours was beyond.
    let going_away = error.is_go_away() && error.reason() == Some(H2Reason::NO_ERROR);
    let detail = error.to_string();
    if error.is_reset() {
        return Failure {
            error: TunnelError::Lost { to, detail },
            unprocessed: refused,
        };
    }
    slot.condemn();
    // With a polite goodbye the connection lives on for other streams; otherwise it is over, and
    // its driver knows best why.
    let mut left = false;
    let error = if !error.is_io() {
        TunnelError::Lost { to, detail }
    } else {
        let ending = slot.tunnel().ending().await;
        // A process that ends may have the connection but not what comes on it. A server begins with
        // its SETTINGS (RFC 9113 section 3.4), so one that left without has begun nothing.
        left = matches!(ending, Ending::Closed) && !slot.tunnel().is_settled();
        ending.error(to, timeouts)
    };
    let is_lost = matches!(error, TunnelError::Lost { .. });
    let unprocessed = (unsent || going_away || left) && is_lost;
    Failure { error, unprocessed }
}
