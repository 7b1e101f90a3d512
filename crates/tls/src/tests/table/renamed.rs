//! A mesh with two names: what peers of either may show.

use super::*;
use crate::TrustDomains;

impl Mesh {
    /// As [`Mesh::new`], whose trust domain has another name beside it.
    fn also_called(other: &'static str) -> Self {
        let mut mesh = Self::new();
        let leaf = Forged::leaf(vec![San::Uri(b"spiffe://cluster.local/ns/shop/sa/cart")]);
        let leaf = leaf.sign(Some(&mesh.root));
        let parts = [text(&leaf), text(&mesh.root)];
        let peers = PeerTrust {
            domains: TrustDomains::told_by(move |a, b| {
                [a, b]
                    .iter()
                    .all(|one| ["cluster.local", other].contains(one))
            }),
            ..PeerTrust::default()
        };
        let cart = WorkloadCertificate::trusting(&id("cart"), &parts, &key_of(&leaf), &peers);
        mesh.cart = cart.unwrap();
        mesh
    }
}

#[tokio::test]
async fn a_peer_may_show_any_name_of_the_mesh_and_no_other() {
    let renamed = Mesh::also_called("old.example");
    for (uri, taken) in [
        (
            &b"spiffe://cluster.local/ns/shop/sa/front"[..],
            [true, true],
        ),
        (b"spiffe://old.example/ns/shop/sa/front", [true, true]),
        (b"spiffe://other.example/ns/shop/sa/front", [false, false]),
        // Another account is expected of a server, whatever the name.
        (b"spiffe://old.example/ns/shop/sa/thief", [true, false]),
    ] {
        let leaf = Forged::leaf(vec![San::Uri(uri)]).sign(Some(&renamed.root));
        let told = renamed.shows(&[&leaf]).await;
        let told = told.map(|one| one.is_ok());
        assert_eq!(told, taken, "{}", String::from_utf8_lossy(uri));
        let plain = Mesh::new();
        let leaf = Forged::leaf(vec![San::Uri(uri)]).sign(Some(&plain.root));
        let is_own = uri.starts_with(b"spiffe://cluster.local/");
        let told = plain.shows(&[&leaf]).await.map(|one| one.is_ok());
        assert_eq!(told, taken.map(|one| one && is_own));
    }
}
