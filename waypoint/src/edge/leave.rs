//! Connections from outside that nobody could open any more: what their listener asks of callers has
//! become more, or it is gone. They take no further requests, and those on their way have a moment.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_route::Listener;
use isobar_types::{Reason, Str};
use tokio::time::Instant;

use super::{at, clear, now};
use crate::credentials::Credentials;
use crate::session::{STAY, Session, until};
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
    if !before.in_tls() {
        // In the clear, on a port where that is not spoken any more.
        return match clear(&at(view, before.port)) {
            Some(_) => Ok(()),
            None => refused(Reason::PolicyWithdrawn, "asks for TLS now"),
        };
    }
    if now.protocol != before.protocol || now.tls.is_some() != before.tls.is_some() {
        return refused(Reason::PolicyWithdrawn, "ends TLS in another way now");
    }
    match (&now.tls, &before.tls) {
        (None, _) => Ok(()),
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

/// Whoever had to have signed a caller's certificate when the caller came.
pub(super) struct Signer {
    name: Str,
    authority: Option<String>,
}

impl Signer {
    /// As credentials are now; nothing where callers need no certificate.
    pub(super) fn of(credentials: &Credentials, listener: &Listener) -> Option<Self> {
        let (name, _) = listener.tls.as_ref()?.clients.clone()?;
        let authority = credentials.authority(&name);
        Some(Self { name, authority })
    }

    fn is_trusted(&self, credentials: &Credentials) -> bool {
        self.authority.is_some() && credentials.authority(&self.name) == self.authority
    }
}

/// Serves a connection to its end, which comes when nobody could open it any more.
pub(super) async fn serve<S: Stream>(session: Rc<Session>, stream: S, signer: Option<Signer>) {
    let serving = session.clone().serve(stream);
    tokio::select! {
        () = serving => {}
        () = watch(&session, signer) => {}
    }
}

/// Ends a moment after the connection should have.
async fn watch(session: &Session, signer: Option<Signer>) {
    let world = &session.worker.world;
    // Marked before the first look.
    let (mut tables, mut credentials) = (world.feed.versions(), world.credentials.versions());
    let mut is_told = false;
    let mut distrusted = None;
    loop {
        let is_trusted = signer
            .as_ref()
            .is_none_or(|signer| signer.is_trusted(&world.credentials));
        if !is_trusted && *distrusted.get_or_insert_with(|| Instant::now() + STAY) <= Instant::now()
        {
            tracing::debug!(address = %session.peer.address, "a connection is closed: its caller's authority is another now");
            tokio::time::sleep(GRACE).await;
            return;
        }
        let end = match session.may_stay(&world.view()) {
            Ok(end) => end,
            Err(gone) => {
                tracing::debug!(address = %session.peer.address, "a connection is closed: {}", gone.detail);
                tokio::time::sleep(GRACE).await;
                return;
            }
        };
        let end = [end, distrusted].into_iter().flatten().min();
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
