//! What proves who somebody is: tokens, keys, certificates, lists of the revoked, requests.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use isobar_tls::ca::Authority;
use isobar_tls::token::{Expect, Keys};
use isobar_tls::{PrivateKey, RevocationLists, WorkloadCertificate};
use isobar_types::Identity;

fn front() -> Identity {
    Identity::new("cluster.local", "shop", "front")
}

/// A token, against keys that signed none of them.
///
/// # Panics
/// When it is accepted.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(keys) = Keys::from_jwks(JWKS) else {
        unreachable!("the set above is a good one");
    };
    let expect = Expect {
        issuer: Some("https://isobar.lab"),
        audiences: &["istio-ca"],
    };
    assert!(keys.verify(text, &expect, SystemTime::now()).is_err());
}

/// A P-256 key whose private half nobody has.
const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","alg":"ES256",
"x":"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY","y":"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"}]}"#;

/// A set of keys.
pub fn keys(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(keys) = Keys::from_jwks(text)
    {
        let _ = keys.len();
    }
}

/// The answer of an authority: parts are separated by a NUL.
///
/// # Panics
/// When it is accepted for a key that is ours alone.
pub fn certificate(data: &[u8]) {
    static KEY: OnceLock<Option<PrivateKey>> = OnceLock::new();
    let Some(key) = KEY.get_or_init(|| PrivateKey::generate().ok()) else {
        return;
    };
    let parts: Vec<String> = data
        .split(|b| *b == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    assert!(WorkloadCertificate::new(&front(), &parts, key).is_err());
}

/// A file of revocation lists.
pub fn revocation(data: &[u8]) {
    if let Ok(lists) = RevocationLists::parse(data) {
        let _ = lists.len();
    }
}

/// A certificate request; whatever is signed is for whom the caller decided.
///
/// # Panics
/// When a signed request does not give a certificate.
pub fn request(data: &[u8]) {
    static AUTHORITY: OnceLock<Option<Authority>> = OnceLock::new();
    let Some(authority) = AUTHORITY.get_or_init(|| Authority::generate("fuzz").ok()) else {
        return;
    };
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(parts) = authority.sign(text, &front(), Duration::from_secs(60)) {
        assert!(parts.len() == 2 && parts[0].starts_with("-----BEGIN CERTIFICATE"));
    }
}
