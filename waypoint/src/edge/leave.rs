//! Connections from outside that nobody could open any more: what their listener asks of callers has
//! become more, or it is gone. They take no further requests, and those on their way have a moment.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_route::{Listener, ListenerProtocol};
use isobar_types::Reason;

use super::{at, clear, in_tls, now};
use crate::credentials::Credentials;
use crate::session::{Session, until};
use crate::stream::Stream;
use crate::target::TargetRefusal;
use crate::world::View;

/// What is told to end may do so itself within that; then its connection is closed.
const GRACE: Duration = Duration::from_millis(500);

/// Whether somebody who came in by this listener, as it was then, would come in now.
///
/// # Errors
/// Why not.
pub(crate) fn again(
    view: &View,
    credentials: &Credentials,
    before: &Arc<Listener>,
) -> Result<(), TargetRefusal> {
    let now = now(view, before)?;
    let refused = |reason, what: &str| {
        Err(TargetRefusal {
            status: 403,
            reason,
            detail: format!("listener {} {what}", before.name),
        })
    };
    if !in_tls(before) {
        // In the clear, on a port where that is not spoken any more.
        return match clear(&at(view, before.port)) {
            Some(_) => Ok(()),
            None => refused(Reason::PolicyWithdrawn, "asks for TLS now"),
        };
    }
    if now.protocol != before.protocol {
        return refused(Reason::PolicyWithdrawn, "ends TLS in another way now");
    }
    if now.protocol != ListenerProtocol::Https {
        return Ok(());
    }
    match (&now.tls, &before.tls) {
        (Some(tls), _) if !credentials.any_for(tls) => {
            refused(Reason::NoCertificate, "has no certificate to show any more")
        }
        (Some(tls), Some(then)) if tls.admits_all_of(then) => Ok(()),
        _ => refused(
            Reason::PolicyWithdrawn,
            "asks its callers for another certificate now",
        ),
    }
}

/// Serves a connection to its end, which comes when nobody could open it any more.
pub(super) async fn serve<S: Stream>(session: Rc<Session>, stream: S) {
    let serving = session.clone().serve(stream);
    tokio::select! {
        () = serving => {}
        () = watch(&session) => {}
    }
}

/// Ends a moment after the connection should have.
async fn watch(session: &Session) {
    let world = &session.worker.world;
    // Marked before the first look.
    let (mut tables, mut credentials) = (world.feed.versions(), world.credentials.versions());
    let mut is_told = false;
    loop {
        let end = match session.may_stay(&world.view()) {
            Ok(end) => end,
            Err(gone) => {
                tracing::debug!(address = %session.peer.address, "a connection is closed: {}", gone.detail);
                tokio::time::sleep(GRACE).await;
                return;
            }
        };
        if end.is_some() && !std::mem::replace(&mut is_told, true) {
            session.leave.notify_one();
        }
        let changed = async {
            tokio::select! {
                changed = tables.changed() => changed.is_ok(),
                changed = credentials.changed() => changed.is_ok(),
            }
        };
        tokio::select! {
            is_alive = changed => if !is_alive {
                // The senders live in this very world.
                return std::future::pending().await;
            },
            () = until(end) => {}
        }
    }
}
