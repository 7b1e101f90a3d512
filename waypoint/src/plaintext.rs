//! Plain traffic from outside the mesh, as a gateway without TLS takes it: each port is for one service.
//! Callers have an address and no identity, which is what routes, policies and metrics see: a policy
//! that permits principals permits nobody here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use isobar_state::inbound::Authority;
use isobar_types::Reason;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::attribution::Peer;
use crate::listener::ACCEPT_PAUSE;
use crate::session::{Session, Worker};
use crate::target;

/// Plain connections that may be open on one port of one worker; further ones are closed.
const OPEN: usize = 10_000;

/// A port, and the service behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// Where connections come in.
    pub listen: SocketAddr,
    /// The service's host name or address, and its port.
    pub authority: String,
}

impl Door {
    /// Reads `PORT=HOST:PORT` or `ADDRESS:PORT=HOST:PORT`; a port alone is one of `any`.
    #[must_use]
    pub fn read(text: &str, any: IpAddr) -> Option<Self> {
        let (listen, authority) = text.split_once('=')?;
        let port = listen.parse().map(|port| SocketAddr::new(any, port));
        let listen = port.ok().or_else(|| listen.parse().ok())?;
        Authority::parse(authority).ok()?;
        Some(Self {
            listen,
            authority: authority.to_owned(),
        })
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.listen, self.authority)
    }
}

/// Accepts for the service `authority` until the worker drains; connections run on in its scope.
pub async fn accept(worker: Rc<Worker>, listener: TcpListener, authority: String) {
    let authority: Rc<str> = authority.into();
    let life = worker.scope.lifetime();
    let room = Arc::new(Semaphore::new(OPEN));
    loop {
        let accepted = tokio::select! {
            () = life.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            worker.metrics.refused(Reason::Overload);
            continue;
        };
        let connection = connection(worker.clone(), tcp, peer, authority.clone());
        worker.scope.spawn("plain connection", async move {
            connection.await;
            drop(place);
        });
    }
}

async fn connection(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr, authority: Rc<str>) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%address, %error, "TCP_NODELAY");
    }
    let peer = Peer {
        identity: None,
        address: SocketAddr::new(address.ip().to_canonical(), address.port()),
        foreign: false,
    };
    let found = target::resolve_in_time(&worker.world, &authority, peer.namespace()).await;
    match found {
        Ok(addressed) => Session::new(worker, peer, addressed).serve(tcp).await,
        Err(refusal) => {
            let (reason, detail) = (refusal.reason, refusal.detail);
            tracing::info!(%address, %authority, %reason, "a plain connection is closed: {detail}");
            worker.metrics.refused(reason);
        }
    }
}
