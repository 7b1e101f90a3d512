//! JSON Web Tokens over BoringSSL: bound service account tokens of the mesh (ES256), and
//! verification of users' tokens (ES256, RS256). The algorithm is fixed by the key, never by the
//! token.

mod claims;
mod issuer;
mod keys;
#[cfg(test)]
mod tests;

pub use claims::{BoundObject, Claims, KubernetesClaims};
pub use issuer::Issuer;
pub use keys::{Expect, KeyError, Keys, plausible, verify};

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, or one with parts that cannot be read.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// No key verifies it: unknown key id or algorithm.
    #[error("no known key fits the token (key id {key_id:?}, algorithm {algorithm:?})")]
    UnknownKey {
        /// The `kid` shown.
        key_id: String,
        /// The `alg` shown.
        algorithm: String,
    },
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Past its end.
    #[error("the token expired at {expired} (seconds since 1970), now {now}")]
    Expired {
        /// Its `exp`.
        expired: i64,
        /// The time of the check.
        now: i64,
    },
    /// Before its start.
    #[error("the token is valid from {from} (seconds since 1970), now {now}")]
    NotYetValid {
        /// Its `nbf`.
        from: i64,
        /// The time of the check.
        now: i64,
    },
    /// For somebody else.
    #[error("the token is for {found:?}, not for {expected:?}")]
    WrongAudience {
        /// Its `aud`.
        found: Vec<String>,
        /// Audiences accepted.
        expected: Vec<String>,
    },
    /// Issued by somebody else.
    #[error("the token is issued by {found:?}, not by {expected:?}")]
    WrongIssuer {
        /// Its `iss`.
        found: String,
        /// The issuer expected.
        expected: String,
    },
}
