use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use boring::hash::MessageDigest;
use boring::pkey::PKey;
use boring::rsa::Rsa;
use boring::sign::Signer;

use super::*;

const ISSUER: &str = "https://isobar.lab";

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn claims() -> Claims {
    Claims {
        iss: String::new(),
        sub: "system:serviceaccount:shop:cart".into(),
        aud: vec!["istio-ca".into()],
        exp: 2000,
        iat: Some(1000),
        nbf: Some(1000),
        kubernetes: Some(KubernetesClaims {
            namespace: "shop".into(),
            serviceaccount: BoundObject {
                name: "cart".into(),
                uid: "1".into(),
            },
            pod: Some(BoundObject {
                name: "cart-1".into(),
                uid: "2".into(),
            }),
            node: None,
        }),
    }
}

fn expect() -> Expect<'static> {
    Expect {
        issuer: Some(ISSUER),
        audiences: &["istio-ca"],
    }
}

#[test]
fn a_token_round_trips() {
    let issuer = Issuer::generate(ISSUER).unwrap();
    let keys = Keys::from_jwks(&issuer.jwks()).unwrap();
    let token = issuer.issue(&claims()).unwrap();
    let found = verify(&keys, &token, &expect(), at(1500)).unwrap();
    assert_eq!(found.kubernetes, claims().kubernetes);
    assert_eq!(found.iss, ISSUER);
    // The same key elsewhere has the same id.
    let again = Issuer::new(ISSUER, issuer.key().clone()).unwrap();
    assert_eq!(again.jwks(), issuer.jwks());
}

#[test]
fn every_claim_is_checked() {
    let issuer = Issuer::generate(ISSUER).unwrap();
    let keys = Keys::from_jwks(&issuer.jwks()).unwrap();
    let token = issuer.issue(&claims()).unwrap();
    let check = |expect: Expect<'_>, now| keys.verify(&token, &expect, at(now)).unwrap_err();
    assert!(matches!(check(expect(), 2000), TokenError::Expired { .. }));
    assert!(matches!(
        check(expect(), 900),
        TokenError::NotYetValid { .. }
    ));
    assert!(matches!(
        check(
            Expect {
                audiences: &["other"],
                ..expect()
            },
            1500
        ),
        TokenError::WrongAudience { .. }
    ));
    assert!(matches!(
        check(
            Expect {
                issuer: Some("https://other"),
                ..expect()
            },
            1500
        ),
        TokenError::WrongIssuer { .. }
    ));
    assert!(
        keys.verify(&token, &Expect::default(), at(995)).is_ok(),
        "within the skew"
    );
}

#[test]
fn what_is_plausible_may_be_accepted_and_the_rest_not() {
    let issuer = Issuer::generate(ISSUER).unwrap();
    let token = issuer.issue(&claims()).unwrap();
    // Whoever signed it, a minute after its end by our clock, and before its start.
    for now in [500, 1500, 2059] {
        plausible(&token, "istio-ca", at(now)).unwrap();
    }
    let late = plausible(&token, "istio-ca", at(2060)).unwrap_err();
    assert!(matches!(late, TokenError::Expired { .. }), "{late}");
    let other = plausible(&token, "api", at(1500)).unwrap_err();
    assert!(matches!(other, TokenError::WrongAudience { .. }), "{other}");
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let long = format!("{signed}.{}", "A".repeat(40_000));
    for wrong in [
        "",
        "nonsense",
        signed,
        &format!("{signed}.{signature}.x"),
        "a.b.c",
        &long,
    ] {
        let wrong = plausible(wrong, "istio-ca", at(1500)).unwrap_err();
        assert!(matches!(wrong, TokenError::Malformed(_)), "{wrong}");
    }
}

#[test]
fn forgeries_fail() {
    let issuer = Issuer::generate(ISSUER).unwrap();
    let keys = Keys::from_jwks(&issuer.jwks()).unwrap();
    let token = issuer.issue(&claims()).unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let check = |token: &str| keys.verify(token, &expect(), at(1500)).unwrap_err();

    let other = serde_json::json!({ "iss": ISSUER, "aud": "istio-ca", "exp": 9_999_999_999_u64 });
    let other = URL_SAFE_NO_PAD.encode(other.to_string());
    assert_eq!(
        check(&format!("{}.{other}.{}", parts[0], parts[2])),
        TokenError::Signature
    );
    assert_eq!(
        check(&format!("{}.{}.", parts[0], parts[1])),
        TokenError::Signature
    );
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"HS256"}"#,
        r#"{"alg":"ES256","kid":"x"}"#,
    ] {
        let header = URL_SAFE_NO_PAD.encode(header);
        assert!(matches!(
            check(&format!("{header}.{}.{}", parts[1], parts[2])),
            TokenError::UnknownKey { .. }
        ));
    }
    for bad in ["", "a.b", "a.b.c", "a.b.c.d", "..", &"x".repeat(40_000)] {
        assert!(matches!(check(bad), TokenError::Malformed(_)), "{bad:.20}");
    }
    let stranger = Issuer::generate(ISSUER).unwrap();
    assert!(matches!(
        check(&stranger.issue(&claims()).unwrap()),
        TokenError::UnknownKey { .. }
    ));
}

#[test]
fn rs256_is_verified_and_not_confused() {
    let rsa = Rsa::generate(2048).unwrap();
    let jwks = serde_json::json!({ "keys": [{
        "kty": "RSA", "kid": "r",
        "n": URL_SAFE_NO_PAD.encode(rsa.n().to_vec()),
        "e": URL_SAFE_NO_PAD.encode(rsa.e().to_vec()),
    }, { "kty": "OKP", "crv": "Ed25519", "x": "AA" }] });
    let keys = Keys::from_jwks(&jwks.to_string()).unwrap();
    assert_eq!(keys.len(), 1);
    let key = PKey::from_rsa(rsa).unwrap();
    let signed = |alg: &str| {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","kid":"r"}}"#));
        let body = URL_SAFE_NO_PAD.encode(
            serde_json::json!({ "iss": ISSUER, "aud": "istio-ca", "exp": 2000.5, "group": "a" })
                .to_string(),
        );
        let text = format!("{header}.{body}");
        let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
        let signature = signer.sign_oneshot_to_vec(text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let (claims, raw) = keys
        .verify_raw(&signed("RS256"), &expect(), at(1500))
        .unwrap();
    assert_eq!((claims.exp, raw["group"].as_str()), (2000, Some("a")));
    assert!(matches!(
        keys.verify(&signed("ES256"), &expect(), at(1500)),
        Err(TokenError::UnknownKey { .. })
    ));
}

#[test]
fn broken_key_sets_are_refused() {
    assert!(matches!(Keys::from_jwks("{}"), Err(KeyError::NotASet(_))));
    for key in [
        r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
        r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#,
        r#"{"kty":"RSA"}"#,
    ] {
        let set = format!(r#"{{"keys":[{key}]}}"#);
        assert!(
            matches!(
                Keys::from_jwks(&set),
                Err(KeyError::Key { position: 0, .. })
            ),
            "{key}"
        );
    }
}
