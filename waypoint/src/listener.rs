//! Taking tunnels in: TCP, TLS and CONNECT, on each worker for itself.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use isobar_hbone::{Connect, ServeError, ServerOptions, serve};
use isobar_net::{Keepalive, ListenOptions};
use isobar_runtime::Lifetime;
use isobar_tls::{HandshakeError, server_config};
use isobar_types::Reason;
use isobar_xds::CertSource;
use tokio::net::{TcpListener, TcpStream};

use crate::attribution::Peer;
use crate::edge;
use crate::session::{Session, Worker};
use crate::target::{self, Target, TargetRefusal};

/// For a certificate to come, at the start or after an outage.
const CERTIFICATE: Duration = Duration::from_secs(10);
/// Pause after a failed accept: without descriptors the next try fails too.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How callers that are gone without a word are noticed. One that is there and reads nothing is not cut by
/// this: it may have paused.
const KEEPALIVE: Keepalive = Keepalive {
    time: Duration::from_secs(60),
    interval: Duration::from_secs(10),
    retries: 6,
    user_timeout: false,
};

/// Opens a listener; with `shared` several workers listen on one port.
///
/// # Errors
/// When the system refuses.
pub fn listen(address: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let mut options = ListenOptions::new(address);
    options.reuse_port = shared;
    options.keepalive = Some(KEEPALIVE);
    isobar_net::listen(&options)
}

/// Accepts until the worker drains; connections run on in its scope.
pub async fn accept(worker: Rc<Worker>, listener: TcpListener, certificates: Arc<dyn CertSource>) {
    let life = worker.scope.lifetime();
    loop {
        let accepted = tokio::select! {
            () = life.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let connection = connection(
                    worker.clone(),
                    tcp,
                    peer,
                    certificates.clone(),
                    life.clone(),
                );
                worker.scope.spawn("tunnel", connection);
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    worker: Rc<Worker>,
    tcp: TcpStream,
    peer: SocketAddr,
    certificates: Arc<dyn CertSource>,
    life: Lifetime,
) {
    let own = &worker.world.own.identity;
    let certificate = match tokio::time::timeout(CERTIFICATE, certificates.fetch(own)).await {
        Ok(Ok(certificate)) => certificate,
        Ok(Err(error)) => {
            tracing::warn!(%peer, %error, "no certificate to serve a caller with");
            worker.metrics.refused(Reason::NoCertificate);
            return;
        }
        Err(_) => {
            tracing::warn!(%peer, "no certificate to serve a caller with: still waiting for one");
            worker.metrics.refused(Reason::NoCertificate);
            return;
        }
    };
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY");
    }
    let handler = worker.clone();
    let tls = server_config(&certificate);
    let options = ServerOptions {
        admission: worker.world.admission.clone(),
        source: Some(peer.ip()),
        ..ServerOptions::default()
    };
    let served = serve(tcp, &tls, &options, &life, move |connect| {
        handle(handler.clone(), peer, connect)
    });
    match served.await {
        Ok(()) | Err(ServeError::Stopped) => {}
        Err(error @ (ServeError::Turned(_) | ServeError::Abuse(_))) => {
            tracing::debug!(%peer, %error, "a caller is turned away");
            worker.metrics.refused(error.reason());
        }
        Err(error @ (ServeError::Revoked | ServeError::Tls(HandshakeError::Revoked))) => {
            tracing::info!(%peer, "a caller is cut off: {error}");
            worker.metrics.refused(error.reason());
        }
        Err(error) => {
            tracing::debug!(%peer, "tunnel connection: {}", crate::upstream::chain(&error))
        }
    }
}

async fn handle(worker: Rc<Worker>, address: SocketAddr, connect: Connect) {
    let identity = connect.peer().identity().clone();
    let authority = connect.headers().authority.to_string();
    let found = target::resolve_in_time(&worker.world, &authority, &identity.namespace).await;
    let addressed = match found {
        Ok(addressed) => addressed,
        Err(refusal) => return refuse(&worker, connect, &authority, &refusal),
    };
    let network = connect.headers().forwarded_network.as_deref();
    let peer = Peer {
        identity: Some(identity),
        address,
        foreign: network.is_some_and(|n| *n != *worker.world.own.network),
    };
    let stream = match connect.accept(None) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "the caller went away");
            return;
        }
    };
    match &addressed.target {
        Target::Listener(listener) if listener.in_tls() => {
            edge::in_tunnel(&worker, peer, stream, listener).await;
        }
        _ => Session::new(worker, peer, addressed).serve(stream).await,
    }
}

fn refuse(worker: &Worker, connect: Connect, authority: &str, refusal: &TargetRefusal) {
    let TargetRefusal {
        status,
        reason,
        detail,
    } = refusal;
    let peer = connect.peer().identity();
    tracing::info!(%peer, authority, status, %reason, "tunnel refused: {detail}");
    worker.metrics.refused(*reason);
    connect.refuse(StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
}
