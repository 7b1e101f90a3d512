//! Requests: from a tunnel, through one ordered function, to an endpoint and back.

mod authoriser;
mod body;
mod date;
mod exchange;
mod facts;
mod forward;
mod heads;
mod limit;
mod mirror;
mod pipeline;
mod place;
mod rate;
mod received;
mod reply;
mod sanitise;
mod serve1;
mod serve2;
mod standing;
mod stay;
mod trace;
mod tries;
mod upgrade;
mod upload;

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use ::http::{Request, Response};
use futures_util::future::{FutureExt as _, LocalBoxFuture};
use futures_util::stream::FuturesUnordered;
use isobar_runtime::Lifetime;
use tokio::time::sleep;

pub use body::ReplyBody;
pub use exchange::Exchange;
pub(crate) use exchange::{ClusterName, RequestFacts, RouteName};
pub(crate) use heads::Heads;
pub use received::ReceiveError;
use received::Received;
pub(crate) use sanitise::{REQUEST_ID, is_for_one_hop};
pub use serve1::serve1;
pub use serve2::serve2;
pub use standing::Live;
pub use upload::{RequestBody, RequestError};

use crate::message::{FIELDS, PIECE};
use crate::session::{STAY, Session};

/// A connection without a request for so long is closed (Envoy's default). A head that is on its way
/// has less time: see [`Heads`].
const IDLE: Duration = Duration::from_secs(3600);
/// Request head: 60 KiB and 100 fields, as Envoy; more is answered with 431.
const HEAD: usize = 60 * 1024;
const STREAMS: u32 = 1000;
/// The same for callers from outside, whom nothing else holds to account (as Envoy advises at an edge).
const STREAMS_OUTSIDE: u32 = 100;
/// Bytes of one answer that wait for a caller who does not read, beyond which no more of it is taken. With
/// what is on its way before that, 200 such answers stay within 30 MiB.
const SEND_BUFFER: usize = 2 * PIECE;
/// A caller from outside that says nothing over HTTP/2 is asked after that whether it is still there,
const PING: Duration = Duration::from_secs(30);
/// and has so long to answer: the question waits behind what a slow one has not received yet.
const PONG: Duration = Duration::from_secs(30);
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// What may happen to a connection besides what it carries.
enum Aside {
    /// It should take no further requests.
    Leave,
    /// It must end at once.
    Cut,
    /// A head takes too long.
    Late,
}

type Asides<'a> = FuturesUnordered<LocalBoxFuture<'a, Aside>>;

/// Each is looked at when it has something to say, and not whenever a byte comes.
fn asides<'a>(session: &'a Session, life: &'a Lifetime) -> Asides<'a> {
    let all: [LocalBoxFuture<'a, Aside>; 4] = [
        Box::pin(forgotten(session)),
        Box::pin(leave(session, life).map(|()| Aside::Leave)),
        Box::pin(session.cut.notified().map(|()| Aside::Cut)),
        Box::pin(session.heads.late().map(|()| Aside::Late)),
    ];
    all.into_iter().collect()
}

/// Says goodbye on a connection that had no request for long, and ends it.
async fn forgotten(session: &Session) -> Aside {
    session.heads.idle(IDLE).await;
    session.leave.notify_one();
    sleep(STAY).await;
    Aside::Cut
}

/// One request, apart from the task that serves it: tasks are moved as a whole, several times.
fn answer(session: Rc<Session>, request: Request<Received>) -> Answered {
    Box::pin(pipeline::handle(session, request))
}

type Answered = Pin<Box<dyn Future<Output = Result<Response<ReplyBody>, Infallible>>>>;

/// Ends when the connection should take no further requests.
async fn leave(session: &Session, life: &Lifetime) {
    tokio::select! {
        () = life.draining() => {}
        () = session.leave.notified() => {}
    }
}
