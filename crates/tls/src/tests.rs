//! Handshakes between both halves, over in-memory pipes.

mod forge;
mod table;

use std::time::Duration;

use isobar_types::Identity;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::ca::Authority;
use crate::https::ClientIdentity;
use crate::outwards::{self, Within};
use crate::{
    HandshakeError, PeerError, ServerTls, WorkloadCertificate, client_config, control,
    server_config,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn id(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

fn pipe() -> (DuplexStream, DuplexStream) {
    duplex(64 * 1024)
}

/// Both halves to their ends: what the client got (its first read included), what the server got.
async fn shake(
    client: &WorkloadCertificate,
    expect: &[Identity],
    server: &ServerTls,
) -> (
    Result<Identity, HandshakeError>,
    Result<Identity, HandshakeError>,
) {
    let (a, b) = pipe();
    let config = client_config(client, expect).unwrap();
    let client = async {
        let (mut stream, peer) = config.connect(a).await?;
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .await
            .map_err(HandshakeError::from_io)?;
        Ok(peer.identity().clone())
    };
    let server = async {
        let (mut stream, peer) = server.accept(b).await?;
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        Ok(peer.identity().clone())
    };
    tokio::join!(client, server)
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let authority = Authority::generate("test").unwrap();
    let front = authority.issue_workload(&id("front"), DAY).unwrap();
    let cart = authority.issue_workload(&id("cart"), DAY).unwrap();
    let expect = [id("other"), id("cart")];
    let (client, server) = shake(&front, &expect, &server_config(&cart)).await;
    assert_eq!(
        (client.unwrap(), server.unwrap()),
        (id("cart"), id("front"))
    );
}

#[tokio::test]
async fn callers_of_the_mesh_may_come_without_a_tunnel() {
    let authority = Authority::generate("test").unwrap();
    let edge = authority.issue_workload(&id("edge"), DAY).unwrap();
    let server = server_config(&edge).without_tunnels(&crate::edge::MESH_HTTP);
    let meet = async |caller: Option<&WorkloadCertificate>, expect: &str, server: &ServerTls| {
        let shown = caller.map(|caller| {
            let chain = caller.chain().iter().map(|one| one.pem.as_str());
            (
                chain.collect::<String>(),
                caller.private_key().to_pem().unwrap(),
            )
        });
        let identity = shown
            .as_ref()
            .map(|(chain, key)| ClientIdentity { chain, key });
        let client = outwards::client_config(authority.roots(), &[expect], identity).unwrap();
        let (a, b) = pipe();
        let (opened, served) = tokio::join!(
            client.connect(a, "page.example", Within::Http1),
            server.accept(b)
        );
        let agreed = opened.ok().map(|stream| {
            let (_, connection) = stream.get_ref();
            connection.alpn_protocol().map(<[u8]>::to_vec)
        });
        (agreed, served.map(|(_, peer)| peer.identity().clone()))
    };
    let uri = id("edge").to_string();
    let front = authority.issue_workload(&id("front"), DAY).unwrap();
    let (agreed, peer) = meet(Some(&front), &uri, &server).await;
    assert_eq!(agreed.unwrap().as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(peer.unwrap(), id("front"));
    let opaque = server_config(&edge).without_tunnels(&[]);
    let (agreed, peer) = meet(Some(&front), &uri, &opaque).await;
    assert_eq!((agreed, peer.unwrap()), (Some(None), id("front")));

    let (agreed, _) = meet(Some(&front), &id("other").to_string(), &server).await;
    assert!(agreed.is_none(), "the gateway is another");
    let (_, peer) = meet(None, &uri, &server).await;
    assert!(
        matches!(peer, Err(HandshakeError::Certificate(_))),
        "{peer:?}"
    );
    let foreign = Authority::generate("foreign").unwrap();
    let foreign = foreign.issue_workload(&id("front"), DAY).unwrap();
    assert!(meet(Some(&foreign), &uri, &server).await.1.is_err());
    let elsewhere = Identity::new("other.example", "shop", "front");
    let elsewhere = authority.issue_workload(&elsewhere, DAY).unwrap();
    let (_, peer) = meet(Some(&elsewhere), &uri, &server).await;
    assert!(matches!(
        peer,
        Err(HandshakeError::Peer(PeerError::TrustDomain { .. }))
    ));
}

#[tokio::test]
async fn a_server_that_is_not_expected_is_refused() {
    let authority = Authority::generate("test").unwrap();
    let front = authority.issue_workload(&id("front"), DAY).unwrap();
    let cart = authority.issue_workload(&id("cart"), DAY).unwrap();
    for expect in [&[id("other")][..], &[]] {
        let (client, server) = shake(&front, expect, &server_config(&cart)).await;
        assert!(matches!(
            client.unwrap_err(),
            HandshakeError::Peer(PeerError::Unexpected { .. })
        ));
        assert!(matches!(server.unwrap_err(), HandshakeError::Alert(_)));
    }
}

#[tokio::test]
async fn another_trust_domain_is_refused() {
    let authority = Authority::generate("test").unwrap();
    let foreign = Identity::new("other.example", "shop", "front");
    let front = authority.issue_workload(&foreign, DAY).unwrap();
    let cart = authority.issue_workload(&id("cart"), DAY).unwrap();
    let (client, server) = shake(&front, &[id("cart")], &server_config(&cart)).await;
    assert!(matches!(client.unwrap_err(), HandshakeError::Alert(_)));
    assert!(matches!(
        server.unwrap_err(),
        HandshakeError::Peer(PeerError::TrustDomain { .. })
    ));
}

#[tokio::test]
async fn other_roots_are_refused() {
    let ours = Authority::generate("ours").unwrap();
    let theirs = Authority::generate("theirs").unwrap();
    let front = theirs.issue_workload(&id("front"), DAY).unwrap();
    let cart = ours.issue_workload(&id("cart"), DAY).unwrap();
    let (client, _) = shake(&front, &[id("cart")], &server_config(&cart)).await;
    assert!(matches!(
        client.unwrap_err(),
        HandshakeError::Certificate(_)
    ));
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let authority = Authority::generate("test").unwrap();
    let front = authority.issue_workload(&id("front"), DAY).unwrap();
    let (csr, key) = crate::csr::generate(&id("cart")).unwrap();
    let long_ago = std::time::SystemTime::now() - 2 * DAY;
    let parts = authority.sign_at(&csr, &id("cart"), DAY, long_ago).unwrap();
    let cart = WorkloadCertificate::new(&id("cart"), &parts, &key).unwrap();
    let (client, _) = shake(&front, &[id("cart")], &server_config(&cart)).await;
    assert!(matches!(
        client.unwrap_err(),
        HandshakeError::Certificate(_)
    ));
}

#[tokio::test]
async fn callers_without_certificate_or_tls_are_refused() {
    let authority = Authority::generate("test").unwrap();
    let cart = authority.issue_workload(&id("cart"), DAY).unwrap();
    let server = server_config(&cart);
    // The control plane's client shows no certificate.
    let config = control::client_config(authority.roots(), None).unwrap();
    let (a, b) = pipe();
    let (_, refused) = tokio::join!(config.connect(a, "cart.shop"), server.accept(b));
    assert!(refused.is_err());

    let (mut a, b) = pipe();
    a.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(matches!(
        server.accept(b).await.unwrap_err(),
        HandshakeError::Protocol(_)
    ));
}

#[tokio::test]
async fn the_control_plane_is_known_by_name_or_address() {
    let authority = Authority::generate("test").unwrap();
    let names = [
        "istiod.istio-system.svc".to_owned(),
        "172.30.0.1".to_owned(),
        "fd00::1".to_owned(),
    ];
    let certificate = authority.issue_server(&names, DAY).unwrap();
    let server = control::server_config(&certificate).unwrap();
    for (host, alternative, fine) in [
        ("istiod.istio-system.svc", None, true),
        ("172.30.0.1", None, true),
        ("[fd00::1]", None, true),
        ("10.0.0.1", None, false),
        ("10.0.0.1", Some("istiod.istio-system.svc"), true),
        ("other.svc", Some("another.svc"), false),
    ] {
        let client = control::client_config(authority.roots(), alternative).unwrap();
        let (a, b) = pipe();
        let (client, _) = tokio::join!(client.connect(a, host), server.accept(b));
        assert_eq!(client.is_ok(), fine, "{host} {alternative:?}");
    }
    for bad in ["", "a b", "a,b", "-", "*"] {
        let issued = authority.issue_server(&[bad.to_owned()], DAY);
        assert_eq!(issued.is_err(), bad != "-", "{bad:?}");
    }
}

#[test]
fn the_post_quantum_group_comes_first() {
    let groups: Vec<_> = crate::provider()
        .kx_groups
        .iter()
        .map(|group| group.name())
        .collect();
    assert_eq!(groups[0], rustls::NamedGroup::X25519MLKEM768);
    assert!(groups.contains(&rustls::NamedGroup::X25519));
}
