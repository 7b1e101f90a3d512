use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use boring::bn::{BigNum, BigNumContext};
use boring::ecdsa::EcdsaSig;
use boring::error::ErrorStack;
use boring::sha::sha256;

use super::Claims;
use crate::{CryptoFailure, PrivateKey};

/// Signs tokens with one P-256 key (ES256).
pub struct Issuer {
    url: String,
    key: PrivateKey,
    key_id: String,
    jwk: serde_json::Value,
}

impl Issuer {
    /// An issuer named `url` (the `iss` of its tokens) with a new key.
    ///
    /// # Errors
    /// When BoringSSL fails.
    pub fn generate(url: &str) -> Result<Self, CryptoFailure> {
        Self::new(url, PrivateKey::generate()?)
    }

    /// An issuer named `url` with a key kept elsewhere.
    ///
    /// # Errors
    /// When the key is not P-256.
    pub fn new(url: &str, key: PrivateKey) -> Result<Self, CryptoFailure> {
        let (x, y) = coordinates(&key).map_err(CryptoFailure::of("use a P-256 key"))?;
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        // The key's thumbprint (RFC 7638) names it: same key, same id.
        let thumbprint =
            sha256(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#).as_bytes());
        let key_id = URL_SAFE_NO_PAD.encode(thumbprint);
        let jwk = serde_json::json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
            "kid": key_id, "x": x, "y": y,
        });
        Ok(Self {
            url: url.to_owned(),
            key,
            key_id,
            jwk,
        })
    }

    /// The `iss` of its tokens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The key that signs, for keeping.
    #[must_use]
    pub const fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The public key as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> String {
        serde_json::json!({ "keys": [self.jwk] }).to_string()
    }

    /// Signs `claims`; `iss` becomes this issuer's.
    ///
    /// # Errors
    /// When BoringSSL fails.
    pub fn issue(&self, claims: &Claims) -> Result<String, CryptoFailure> {
        let what = "sign a token";
        let mut claims = serde_json::to_value(claims).map_err(CryptoFailure::of(what))?;
        claims["iss"] = self.url.clone().into();
        let header = serde_json::json!({ "alg": "ES256", "kid": self.key_id, "typ": "JWT" });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let sign = || -> Result<Vec<u8>, ErrorStack> {
            let key = self.key.pkey().ec_key()?;
            let signature = EcdsaSig::sign(&sha256(signed.as_bytes()), &key)?;
            let mut raw = signature.r().to_vec_padded(32)?;
            raw.extend(signature.s().to_vec_padded(32)?);
            Ok(raw)
        };
        let signature = sign().map_err(CryptoFailure::of(what))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

fn coordinates(key: &PrivateKey) -> Result<(Vec<u8>, Vec<u8>), ErrorStack> {
    let key = key.pkey().ec_key()?;
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    let mut context = BigNumContext::new()?;
    key.public_key()
        .affine_coordinates_gfp(key.group(), &mut x, &mut y, &mut context)?;
    Ok((x.to_vec_padded(32)?, y.to_vec_padded(32)?))
}
