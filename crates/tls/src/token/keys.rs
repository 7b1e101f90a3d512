use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use boring::bn::BigNum;
use boring::ec::{EcGroup, EcKey};
use boring::ecdsa::EcdsaSig;
use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{PKey, Public};
use boring::rsa::Rsa;
use boring::sha::sha256;
use boring::sign::Verifier;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Claims, TokenError};

/// Longest token looked at, in bytes.
const TOKEN_MAX: usize = 32 * 1024;
/// A token may start this many seconds in our future: clocks differ between nodes.
const SKEW: i64 = 10;
/// How much later another clock may take a token to expire.
const LOOSE: Duration = Duration::from_secs(60);

/// Public keys that verify tokens: a JSON Web Key Set. Keys of kinds unknown here are left out.
#[derive(Debug, Default)]
pub struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    verifier: Algorithm,
}

#[derive(Debug)]
enum Algorithm {
    Es256(EcKey<Public>),
    Rs256(PKey<Public>),
}

/// Why a key set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a JSON Web Key Set.
    #[error("not a JSON Web Key Set: {0}")]
    NotASet(String),
    /// A key of a known kind is broken.
    #[error("key {position} of the set: {detail}")]
    Key {
        /// Position in the set, from 0.
        position: usize,
        /// What is wrong.
        detail: &'static str,
    },
}

/// What a token must say beside a right signature and valid dates.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expect<'a> {
    /// Issuer that must match, if any.
    pub issuer: Option<&'a str>,
    /// Audiences of which one must match; empty accepts every audience.
    pub audiences: &'a [&'a str],
}

/// Verifies a token against `keys` for one audience at `now`.
///
/// # Errors
/// As [`Keys::verify`].
pub fn verify(
    keys: &Keys,
    token: &str,
    expect: &Expect<'_>,
    now: SystemTime,
) -> Result<Claims, TokenError> {
    keys.verify(token, expect, now)
}

/// Looks whether `token`, of which nothing is verified, is one that could be accepted: three parts, a
/// header, and claims for `audience` that have not expired. Nothing that it says may be taken for true;
/// what fails here is not worth asking anybody about. Dates are taken loosely, as other clocks decide.
///
/// # Errors
/// What is wrong with it.
pub fn plausible(token: &str, audience: &str, now: SystemTime) -> Result<(), TokenError> {
    let parts = Parts::of(token)?;
    parts.header()?;
    let claims: Claims = serde_json::from_slice(&decode(parts.payload)?)
        .map_err(|_| TokenError::Malformed("the claims are not those of a service account"))?;
    let lately = now.checked_sub(LOOSE).unwrap_or(now);
    let claims = Claims {
        nbf: None,
        ..claims
    };
    let expect = Expect {
        issuer: None,
        audiences: &[audience],
    };
    check_claims(&claims, &expect, lately)
}

/// The parts of a token as they are written.
struct Parts<'a> {
    /// Header and payload with their dot: what is signed.
    signed: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::Malformed("longer than 32 KiB"));
        }
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, payload) = signed.split_once('.')?;
            Some(Self {
                signed,
                header,
                payload,
                signature,
            })
        });
        let parts = parts.filter(|parts| !parts.payload.contains('.'));
        parts.ok_or(TokenError::Malformed("not three parts"))
    }

    fn header(&self) -> Result<Header, TokenError> {
        let header: Header = serde_json::from_slice(&decode(self.header)?)
            .map_err(|_| TokenError::Malformed("the header is not what it should be"))?;
        match header.crit {
            Some(_) => Err(TokenError::Malformed("it asks for an extension")),
            None => Ok(header),
        }
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    let decoded = URL_SAFE_NO_PAD.decode(part);
    decoded.map_err(|_| TokenError::Malformed("not base64url"))
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

impl Keys {
    /// Reads a JSON Web Key Set.
    ///
    /// # Errors
    /// When the text is none, or a key of a kind known here (EC P-256, RSA of at least 2048 bits)
    /// is broken.
    pub fn from_jwks(text: &str) -> Result<Self, KeyError> {
        let set: Set = serde_json::from_str(text).map_err(|e| KeyError::NotASet(e.to_string()))?;
        let mut keys = Vec::new();
        for (position, jwk) in set.keys.iter().enumerate() {
            if let Some(key) = jwk
                .read()
                .map_err(|detail| KeyError::Key { position, detail })?
            {
                keys.push(key);
            }
        }
        Ok(Self(keys))
    }

    /// Number of usable keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when no key is usable: nothing verifies.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks signature, dates, issuer and audience at `now`.
    ///
    /// # Errors
    /// The first thing that is wrong, the signature before everything it protects.
    pub fn verify(
        &self,
        token: &str,
        expect: &Expect<'_>,
        now: SystemTime,
    ) -> Result<Claims, TokenError> {
        self.verify_raw(token, expect, now)
            .map(|(claims, _)| claims)
    }

    /// As [`Self::verify`], with every claim as it stands in the token.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_raw(
        &self,
        token: &str,
        expect: &Expect<'_>,
        now: SystemTime,
    ) -> Result<(Claims, Map<String, Value>), TokenError> {
        let payload = self.verified_payload(token)?;
        let raw: Map<String, Value> = serde_json::from_slice(&payload)
            .map_err(|_| TokenError::Malformed("the claims are not a JSON object"))?;
        let claims: Claims = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|_| TokenError::Malformed("a registered claim has the wrong type"))?;
        check_claims(&claims, expect, now)?;
        Ok((claims, raw))
    }

    fn verified_payload(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        let parts = Parts::of(token)?;
        let header = parts.header()?;
        let signature = decode(parts.signature)?;
        let signed = parts.signed.as_bytes();
        let mut candidates = self.0.iter().filter(|key| key.fits(&header)).peekable();
        if candidates.peek().is_none() {
            return Err(TokenError::UnknownKey {
                key_id: header.kid.unwrap_or_default(),
                algorithm: header.alg,
            });
        }
        if !candidates.any(|key| key.verifier.verifies(signed, &signature)) {
            return Err(TokenError::Signature);
        }
        decode(parts.payload)
    }
}

fn check_claims(claims: &Claims, expect: &Expect<'_>, now: SystemTime) -> Result<(), TokenError> {
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if claims.exp <= now {
        return Err(TokenError::Expired {
            expired: claims.exp,
            now,
        });
    }
    if let Some(from) = claims.nbf.filter(|from| *from > now + SKEW) {
        return Err(TokenError::NotYetValid { from, now });
    }
    if let Some(expected) = expect.issuer.filter(|expected| *expected != claims.iss) {
        return Err(TokenError::WrongIssuer {
            found: claims.iss.clone(),
            expected: expected.to_owned(),
        });
    }
    let fits = |found: &String| expect.audiences.contains(&found.as_str());
    if !expect.audiences.is_empty() && !claims.aud.iter().any(fits) {
        return Err(TokenError::WrongAudience {
            found: claims.aud.clone(),
            expected: expect.audiences.iter().map(|a| (*a).to_owned()).collect(),
        });
    }
    Ok(())
}

impl Key {
    /// A token that names a key is checked with that key only; the algorithm must be the key's.
    fn fits(&self, header: &Header) -> bool {
        let algorithm = match self.verifier {
            Algorithm::Es256(_) => "ES256",
            Algorithm::Rs256(_) => "RS256",
        };
        let named = match (&header.kid, &self.id) {
            (Some(asked), Some(id)) => asked == id,
            _ => true,
        };
        named && header.alg == algorithm
    }
}

impl Algorithm {
    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Es256(key) => es256(key, signed, signature).unwrap_or(false),
            Self::Rs256(key) => Verifier::new(MessageDigest::sha256(), key)
                .and_then(|mut verifier| verifier.verify_oneshot(signature, signed))
                .unwrap_or(false),
        }
    }
}

fn es256(key: &EcKey<Public>, signed: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
    // The two numbers of the signature, 32 bytes each (RFC 7518 §3.4).
    if signature.len() != 64 {
        return Ok(false);
    }
    let (r, s) = signature.split_at(32);
    let signature =
        EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?;
    signature.verify(&sha256(signed), key)
}

impl Jwk {
    fn read(&self) -> Result<Option<Key>, &'static str> {
        if self
            .purpose
            .as_deref()
            .is_some_and(|purpose| purpose != "sig")
        {
            return Ok(None);
        }
        let algorithm = |name: &str| self.alg.as_deref().is_none_or(|alg| alg == name);
        let verifier = match self.kty.as_str() {
            "EC" if self.crv == "P-256" && algorithm("ES256") => Algorithm::Es256(self.ec()?),
            "RSA" if algorithm("RS256") => Algorithm::Rs256(self.rsa()?),
            _ => return Ok(None),
        };
        Ok(Some(Key {
            id: self.kid.clone(),
            verifier,
        }))
    }

    fn ec(&self) -> Result<EcKey<Public>, &'static str> {
        let (x, y) = (number(&self.x)?, number(&self.y)?);
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1);
        group
            .and_then(|group| EcKey::from_public_key_affine_coordinates(&group, &x, &y))
            .map_err(|_| "its point is not on the curve P-256")
    }

    fn rsa(&self) -> Result<PKey<Public>, &'static str> {
        let (n, e) = (number(&self.n)?, number(&self.e)?);
        let key = Rsa::from_public_components(n, e)
            .and_then(PKey::from_rsa)
            .map_err(|_| "it is not an RSA key")?;
        if (2048..=8192).contains(&key.bits()) {
            Ok(key)
        } else {
            Err("its size is refused")
        }
    }
}

fn number(text: &str) -> Result<BigNum, &'static str> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|_| "not base64url")?;
    if bytes.is_empty() {
        return Err("a number is missing");
    }
    BigNum::from_slice(&bytes).map_err(|_| "a number cannot be read")
}
