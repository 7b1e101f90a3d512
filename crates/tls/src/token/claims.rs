use serde::{Deserialize, Deserializer, Serialize};

/// Registered claims and those of Kubernetes. Other claims are in the raw form of
/// [`super::Keys::verify_raw`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    #[serde(default)]
    pub iss: String,
    /// Whom it names, for service accounts `system:serviceaccount:NAMESPACE:NAME`.
    #[serde(default)]
    pub sub: String,
    /// Whom it is meant for; one text or a list on the wire.
    #[serde(default, deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// End, in seconds since 1970.
    #[serde(deserialize_with = "seconds")]
    pub exp: i64,
    /// Time of issue, in seconds since 1970.
    #[serde(
        default,
        deserialize_with = "maybe_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub iat: Option<i64>,
    /// Start, in seconds since 1970.
    #[serde(
        default,
        deserialize_with = "maybe_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub nbf: Option<i64>,
    /// What the token is bound to.
    #[serde(
        rename = "kubernetes.io",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub kubernetes: Option<KubernetesClaims>,
}

/// The claim `kubernetes.io` of a bound service account token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub serviceaccount: BoundObject,
    /// The pod the token lives in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<BoundObject>,
    /// The node that pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<BoundObject>,
}

/// An object a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundObject {
    /// Its name.
    pub name: String,
    /// Its uid; empty if unknown.
    #[serde(default)]
    pub uid: String,
}

fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(from)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// Dates may have fractions (RFC 7519 §2); whole seconds are enough here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Date {
    Whole(i64),
    Fraction(f64),
}

impl Date {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "float to int casts saturate"
    )]
    const fn seconds(&self) -> i64 {
        match *self {
            Self::Whole(seconds) => seconds,
            Self::Fraction(seconds) => seconds as i64,
        }
    }
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    Date::deserialize(from).map(|date| date.seconds())
}

fn maybe_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    Ok(Option::<Date>::deserialize(from)?.map(|date| date.seconds()))
}
