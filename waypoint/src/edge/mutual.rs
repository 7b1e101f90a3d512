//! Callers of the mesh at ports where TLS is spoken: with its certificates and no tunnel, or in a tunnel,
//! with TLS in it or without.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isobar_route::{Listener, ListenerProtocol, ListenerTls};
use isobar_state::Snapshot;
use isobar_tls::edge::MESH_HTTP;
use isobar_tls::{Hello, ServerTls, VerifiedPeer, server_config};
use isobar_types::{Identity, Reason, Str};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

use super::{HANDSHAKE, at, for_name, leave, secured, session};
use crate::attribution::Peer;
use crate::session::Worker;
use crate::stream::{AnyStream, Rewound, Stream};

/// A caller whose certificate has ended so long ago may not go on, as in tunnels.
const PAST_EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// A caller that says nothing for so long waits for the server to speak first: it does not begin TLS.
const SILENCE: Duration = Duration::from_millis(100);

/// Ends TLS with the gateway's own certificate of the mesh, and serves who has one as well.
pub(super) async fn serve<S: Stream>(
    worker: &Rc<Worker>,
    peer: Peer,
    listener: &Arc<Listener>,
    stream: S,
) {
    let address = peer.address;
    let server = match server(worker, listener).await {
        Ok(server) => server,
        Err(why) => {
            tracing::warn!(%address, listener = &*listener.name, "a caller is turned away: {why}");
            worker.metrics.refused(Reason::NoCertificate);
            return;
        }
    };
    let (stream, caller) = match tokio::time::timeout(HANDSHAKE, server.accept(stream)).await {
        Ok(Ok(met)) => met,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "a handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "a handshake took too long");
            return;
        }
    };
    let peer = Peer {
        identity: Some(caller.identity().clone()),
        ..peer
    };
    if !may_come(worker, &peer, listener) {
        return;
    }
    let stream: AnyStream = Box::new(stream);
    tokio::select! {
        () = leave::serve(session(worker, peer, listener), stream, None) => {}
        reason = distrusted(&caller, PAST_EXPIRY) => {
            tracing::info!(%address, %reason, "a connection is closed: its caller's certificate is not good any more");
            worker.metrics.refused(reason);
        }
    }
}

/// Resolves when a caller that was known by its certificate is not any more.
async fn distrusted(caller: &VerifiedPeer, past_expiry: Duration) -> Reason {
    tokio::select! {
        () = caller.revoked() => Reason::CertificateRevoked,
        () = isobar_hbone::past(caller.not_after(), past_expiry) => Reason::IdentityExpired,
    }
}

async fn server(worker: &Worker, listener: &Listener) -> Result<ServerTls, String> {
    let world = &worker.world;
    let fetched = world.credentials.of_mesh(&world.own.identity);
    let certificate = tokio::time::timeout(HANDSHAKE, fetched).await;
    let certificate = certificate.map_err(|_| "still waiting for a certificate".to_owned())??;
    let protocols = match listener.protocol {
        ListenerProtocol::Https => &MESH_HTTP[..],
        _ => &[],
    };
    Ok(server_config(&certificate).without_tunnels(protocols))
}

/// Whether a caller has one of the names that the listener asks for, where it does.
fn may_come(worker: &Worker, peer: &Peer, listener: &Listener) -> bool {
    if admits(listener, peer, &worker.world.view().snapshot) {
        return true;
    }
    let (address, listener) = (peer.address, &*listener.name);
    tracing::info!(%address, listener, "a caller has none of the names that are asked for");
    worker.metrics.refused(Reason::PolicyDenied);
    false
}

fn admits(listener: &Listener, peer: &Peer, mesh: &Snapshot) -> bool {
    let caller = peer.identity.as_ref();
    let mut asked = listener.tls.iter();
    asked.all(|tls| is_named(tls, caller, mesh))
}

/// As policies do, a name means its account under any name of the mesh.
pub(super) fn is_named(tls: &ListenerTls, caller: Option<&Identity>, mesh: &Snapshot) -> bool {
    let is_it = |name: &Str, own| {
        let named = name.parse::<Identity>();
        named.is_ok_and(|named| mesh.mean_one(&named, own))
    };
    let mut wanted = tls.client_names.iter();
    tls.client_names.is_empty() || caller.is_some_and(|own| wanted.any(|name| is_it(name, own)))
}

/// Serves a tunnel to a port where TLS is spoken. TLS in it chooses its listener as it does outside; without, the tunnel
/// itself is as good where callers are to show a certificate of the mesh, and of no use elsewhere.
pub(crate) async fn in_tunnel<S: Stream>(
    worker: &Rc<Worker>,
    peer: Peer,
    mut stream: S,
    listener: &Listener,
) {
    let here = at(&worker.world.view(), listener.port);
    let of_mesh: Vec<_> = here.iter().filter(|one| one.of_mesh()).collect();
    let address = peer.address;
    let Some((hello, first)) = begin(&mut stream, of_mesh.is_empty()).await else {
        worker.metrics.refused(Reason::BadRequest);
        return;
    };
    let stream = Rewound::new(first, stream);
    if let Hello::Whole(name) = hello {
        let Some(listener) = for_name(&here, name.as_deref()) else {
            tracing::info!(%address, name, "no server of this gateway has that name");
            worker.metrics.refused(Reason::NoRoute);
            return;
        };
        return secured(worker, peer, listener, stream).await;
    }
    let mesh = worker.world.view().snapshot;
    let Some(listener) = without_name(&of_mesh, |one| admits(one, &peer, &mesh)) else {
        let port = listener.port;
        tracing::info!(%address, port, "a tunnel without TLS in it does not tell which server of the port it is for");
        worker.metrics.refused(Reason::NoRoute);
        return;
    };
    if may_come(worker, &peer, listener) {
        let stream: AnyStream = Box::new(stream);
        leave::serve(session(worker, peer, listener), stream, None).await;
    }
}

/// How a stream begins, and what was read of it; `None` if it fails, or does not begin TLS though it must.
async fn begin(stream: &mut (impl AsyncRead + Unpin), must: bool) -> Option<(Hello, Bytes)> {
    let mut seen = BytesMut::new();
    let limit = if must { HANDSHAKE } else { SILENCE };
    let mut end = Instant::now() + limit;
    loop {
        match Hello::read(&seen) {
            Hello::Part => {}
            Hello::Other if must => return None,
            told => return Some((told, seen.freeze())),
        }
        match tokio::time::timeout_at(end, stream.read_buf(&mut seen)).await {
            Ok(Ok(0)) | Err(_) if must => return None,
            Ok(Ok(0)) | Err(_) => return Some((Hello::Other, seen.freeze())),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
        }
        if seen.starts_with(&[22]) && !must {
            // It begins TLS: the rest of its hello has the time that hellos have.
            end = end.max(Instant::now() + HANDSHAKE);
        }
    }
}

/// The listener for those who name none: of HTTP any that admits the caller, as requests name their hosts and
/// are judged by those; else the only one, or the one for every name.
fn without_name<'a>(
    of_mesh: &[&'a Arc<Listener>],
    admits: impl Fn(&Listener) -> bool,
) -> Option<&'a Arc<Listener>> {
    let is_http = |one: &&&Arc<Listener>| one.protocol == ListenerProtocol::Https;
    match of_mesh {
        [only] => Some(only),
        all if all.iter().all(|one| is_http(&one)) => {
            let admitting = all.iter().find(|one| admits(one));
            admitting.or(all.first()).copied()
        }
        all => all.iter().find(|one| one.takes(None).is_some()).copied(),
    }
}

#[cfg(test)]
mod tests {
    use isobar_proto::isobar::v1 as proto;
    use isobar_tls::{ca, client_config};
    use proto::outbound_policy::Kind;

    use super::*;

    #[tokio::test]
    async fn a_caller_is_known_as_long_as_its_certificate_is_good() {
        let authority = ca::Authority::generate("test").unwrap();
        let identity = |account| Identity::new("cluster.local", "a", account);
        let of = |account, life| authority.issue_workload(&identity(account), life).unwrap();
        let (short, long) = (Duration::from_secs(2), Duration::from_secs(3600));
        let server = server_config(&of("gateway", long));
        let meet = async |life| {
            let client = client_config(&of("client", life), &[identity("gateway")]).unwrap();
            let (one, other) = tokio::io::duplex(64 * 1024);
            let (_, met) = tokio::join!(client.connect(one), server.accept(other));
            met.unwrap().1
        };
        let now = Duration::ZERO;
        let lasting = meet(long).await;
        let still = distrusted(&lasting, now);
        assert!(tokio::time::timeout(short, still).await.is_err());
        let caller = meet(short).await;
        assert_eq!(distrusted(&caller, now).await, Reason::IdentityExpired);
        assert!(std::time::SystemTime::now() >= caller.not_after());
    }

    #[test]
    fn a_caller_has_its_name_under_any_name_of_the_mesh() {
        let mut draft = Snapshot::default().draft();
        let domains = vec!["new.example".into(), "old.example".into()];
        let kind = Some(Kind::Trust(proto::Trust { domains }));
        let told = proto::OutboundPolicy { kind };
        draft.upsert_outbound_policy(&told).unwrap();
        let (renamed, plain) = (draft.finish(), Snapshot::default());
        let any = ListenerTls {
            credentials: Vec::new(),
            clients: None,
            client_names: Vec::new(),
            tls13: true,
            tls12: false,
            mesh: true,
        };
        let tls = ListenerTls {
            client_names: vec![
                "client".into(),
                "spiffe://old.example/ns/a/sa/client".into(),
            ],
            ..any.clone()
        };
        for (domain, account, before, after) in [
            ("old.example", "client", true, true),
            ("new.example", "client", false, true),
            ("other.example", "client", false, false),
            ("new.example", "other", false, false),
        ] {
            let caller = Identity::new(domain, "a", account);
            assert_eq!(is_named(&tls, Some(&caller), &plain), before, "{caller}");
            assert_eq!(is_named(&tls, Some(&caller), &renamed), after, "{caller}");
        }
        assert!(!is_named(&tls, None, &renamed));
        assert!(is_named(&any, None, &renamed));
    }
}
