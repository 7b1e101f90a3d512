//! Lists of revoked certificates, and answers that are not what was asked.

use super::*;

impl Mesh {
    /// As [`Mesh::new`], with lists switched on.
    fn watching(revocations: &Revocations) -> Self {
        let mut mesh = Self::new();
        let leaf = Forged::leaf(vec![San::Uri(b"spiffe://cluster.local/ns/shop/sa/cart")]);
        let leaf = leaf.sign(Some(&mesh.root));
        let parts = [text(&leaf), text(&mesh.root)];
        let peers = PeerTrust {
            revocations: revocations.clone(),
            ..PeerTrust::default()
        };
        let cart = WorkloadCertificate::trusting(&id("cart"), &parts, &key_of(&leaf), &peers);
        mesh.cart = cart.unwrap();
        mesh
    }
}

#[tokio::test]
async fn r_17_12_the_revoked_are_refused_and_open_connections_hear_of_it() {
    let revocations = Revocations::new(RevocationLists::default());
    let mesh = Mesh::watching(&revocations);
    let leaf = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&mesh.root));
    let other = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&mesh.root));
    let (a, b) = pipe();
    let name = ServerName::try_from("some.name").unwrap();
    let connector = TlsConnector::from(Arc::new(caller(&[&leaf], |_| {})));
    let server = server_config(&mesh.cart);
    let (_client, told) = tokio::join!(connector.connect(name, a), server.accept(b));
    let (_stream, peer) = told.unwrap();
    // A list that has run out revokes all the same; unrelated lists change nothing.
    for list in [
        mesh.root.list(&[&other], HOUR),
        mesh.root.list(&[&leaf], -HOUR),
    ] {
        let still = tokio::time::timeout(Duration::from_millis(20), peer.revoked()).await;
        assert!(still.is_err());
        revocations.replace(RevocationLists::parse(&list).unwrap());
    }
    tokio::time::timeout(Duration::from_secs(5), peer.revoked())
        .await
        .unwrap();
    for told in mesh.shows(&[&leaf]).await {
        assert!(
            matches!(
                told,
                Err(HandshakeError::Revoked | HandshakeError::Alert(_))
            ),
            "{told:?}"
        );
    }
    for told in mesh.shows(&[&other]).await {
        told.unwrap();
    }
    revocations.replace(RevocationLists::parse(b" \n").unwrap());
    for told in mesh.shows(&[&leaf]).await {
        told.unwrap();
    }
    // An authority in the middle of the chain.
    let middle = Forged::intermediate("middle").sign(Some(&mesh.root));
    let below = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&middle));
    let list = mesh.root.list(&[&middle], HOUR);
    revocations.replace(RevocationLists::parse(&list).unwrap());
    for told in mesh.shows(&[&below, &middle]).await {
        assert!(told.is_err());
    }
}

#[tokio::test]
async fn r_17_13_lists_that_are_no_good() {
    let revocations = Revocations::new(RevocationLists::default());
    let mesh = Mesh::watching(&revocations);
    let leaf = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&mesh.root));
    let list = mesh.root.list(&[&leaf], HOUR);
    for end in 1..list.len() {
        assert!(RevocationLists::parse(&list[..end]).is_err(), "{end}");
    }
    let huge = vec![b'x'; 17 << 20];
    assert!(matches!(
        RevocationLists::parse(&huge),
        Err(RevocationError::Size(_))
    ));
    assert!(
        RevocationLists::parse(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
            .is_err()
    );
    assert!(RevocationLists::parse(b"hello").is_err());
    // Somebody else's signature under our issuer's name: it revokes nobody, and cuts off nobody.
    let impostor = Signer {
        certificate: mesh.root.certificate.clone(),
        key: leaf.key.clone(),
    };
    let forged = impostor.list(&[&leaf], HOUR);
    revocations.replace(RevocationLists::parse(&forged).unwrap());
    for told in mesh.shows(&[&leaf]).await {
        told.unwrap();
    }
    let stranger = Forged::intermediate("stranger").sign(None);
    let foreign = stranger.list(&[&leaf], HOUR);
    revocations.replace(RevocationLists::parse(&foreign).unwrap());
    for told in mesh.shows(&[&leaf]).await {
        told.unwrap();
    }
}

#[tokio::test]
async fn r_17_14_weak_keys_and_digests_are_refused() {
    let mesh = Mesh::new();
    let short = Forged {
        key: rsa(1536),
        ..Forged::leaf(vec![San::Uri(GOOD)])
    };
    mesh.refused("RSA of 1536 bits", &short).await;
    let old = Forged {
        digest: MessageDigest::sha1(),
        ..Forged::leaf(vec![San::Uri(GOOD)])
    };
    mesh.refused("SHA-1", &old).await;
    // A short key further up is no better.
    let middle = Forged {
        key: rsa(1024),
        ..Forged::intermediate("short")
    };
    let middle = middle.sign(Some(&mesh.root));
    let leaf = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&middle));
    for told in mesh.shows(&[&leaf, &middle]).await {
        assert!(told.is_err());
    }
}

#[tokio::test]
async fn r_17_15_and_16_versions_protocols_names_and_resumption() {
    let mesh = Mesh::new();
    let leaf = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&mesh.root));
    let server = server_config(&mesh.cart);
    assert!(matches!(
        old_hello(&server).await,
        HandshakeError::Protocol(_)
    ));
    for protocols in [vec![], vec![b"http/1.1".to_vec()], vec![b"h2c".to_vec()]] {
        let other = caller(&[&leaf], |config| {
            config.alpn_protocols.clone_from(&protocols)
        });
        assert!(called(&server, other).await.is_err(), "{protocols:?}");
    }
    // A server name is sent by every one of these callers and makes no difference.
    let mut early = caller(&[&leaf], |config| config.enable_early_data = true);
    early.enable_sni = true;
    let connector = TlsConnector::from(Arc::new(early));
    for _ in 0..3 {
        let (a, b) = pipe();
        let name = ServerName::try_from("some.name").unwrap();
        let (client, told) = tokio::join!(connector.connect(name, a), server.accept(b));
        told.unwrap();
        let (_, client) = client.unwrap().into_inner();
        assert_ne!(client.handshake_kind(), Some(HandshakeKind::Resumed));
        assert!(!client.is_early_data_accepted());
    }
}

#[tokio::test]
async fn r_17_18_another_server_than_expected_is_named_with_the_expected() {
    let mesh = Mesh::new();
    let leaf = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&mesh.root));
    let told = calls(&mesh.cart, &[id("billing")], &[&leaf])
        .await
        .unwrap_err();
    let text = told.to_string();
    assert!(
        text.contains("sa/front") && text.contains("sa/billing"),
        "{text}"
    );
}

#[test]
fn r_17_19_answers_to_requests_that_are_not_what_was_asked() {
    let authority = Authority::generate("test").unwrap();
    let day = Duration::from_secs(24 * 3600);
    let front = id("front");
    let (request, key) = csr::generate(&front).unwrap();
    let good = authority.sign(&request, &front, day).unwrap();
    WorkloadCertificate::new(&front, &good, &key).unwrap();
    let (_, other_key) = csr::generate(&front).unwrap();
    let new = |parts: &[String], key: &PrivateKey| WorkloadCertificate::new(&front, parts, key);
    assert!(matches!(
        new(&good, &other_key),
        Err(CertificateError::WrongKey)
    ));
    let other = authority.sign(&request, &id("admin"), day).unwrap();
    assert!(matches!(
        new(&other, &key),
        Err(CertificateError::WrongIdentity { .. })
    ));
    assert!(
        new(&[good[1].clone(), good[0].clone()], &key).is_err(),
        "the wrong way round"
    );
    assert!(new(&good[..1], &key).is_err(), "no root");

    let root = Forged::intermediate("root").sign(None);
    let middle = Forged::intermediate("middle").sign(Some(&root));
    let leaf = Forged::leaf(vec![San::Uri(GOOD)]).sign(Some(&middle));
    let key = key_of(&leaf);
    new(&[text(&leaf), text(&middle), text(&root)], &key).unwrap();
    let missing = new(&[text(&leaf), text(&root)], &key);
    assert!(
        matches!(missing, Err(CertificateError::Chain(_))),
        "{missing:?}"
    );
    let extra = Forged {
        key: leaf.key,
        ..Forged::leaf(vec![
            San::Uri(GOOD),
            San::Uri(b"spiffe://cluster.local/ns/shop/sa/admin"),
        ])
    };
    let extra = extra.sign(Some(&middle));
    assert!(new(&[text(&extra), text(&middle), text(&root)], &key).is_err());
}
