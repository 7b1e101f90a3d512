use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use isobar_tls::token::{Claims, Expect, Keys, TokenError, verify};
use isobar_types::{Identity, Str, TOKEN_AUDIENCE};

use super::{BoundPod, Caller, TokenRefused, TokenReviewer};

/// Reviews tokens with a JSON Web Key Set in a file, read again when the file changes.
pub(crate) struct JwksReviewer {
    file: PathBuf,
    issuer: Option<String>,
    trust_domain: Str,
    cached: Mutex<Option<Cached>>,
}

struct Cached {
    modified: SystemTime,
    length: u64,
    keys: std::sync::Arc<Keys>,
}

impl JwksReviewer {
    /// Keys in `file`; tokens must be issued by `issuer`, if one is given.
    pub(crate) fn new(file: PathBuf, issuer: Option<String>, trust_domain: Str) -> Self {
        Self {
            file,
            issuer,
            trust_domain,
            cached: Mutex::new(None),
        }
    }

    fn keys(&self) -> Result<std::sync::Arc<Keys>, TokenRefused> {
        let unavailable =
            |error: String| TokenRefused::Unavailable(format!("{}: {error}", self.file.display()));
        let metadata =
            std::fs::metadata(&self.file).map_err(|error| unavailable(error.to_string()))?;
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = &*cached
            && now.modified == modified
            && now.length == metadata.len()
        {
            return Ok(now.keys.clone());
        }
        let text =
            std::fs::read_to_string(&self.file).map_err(|error| unavailable(error.to_string()))?;
        let keys = Keys::from_jwks(&text).map_err(|error| unavailable(error.to_string()))?;
        let keys = std::sync::Arc::new(keys);
        *cached = Some(Cached {
            modified,
            length: metadata.len(),
            keys: keys.clone(),
        });
        Ok(keys)
    }

    fn check(&self, token: &str, now: SystemTime) -> Result<Caller, TokenRefused> {
        let expect = Expect {
            issuer: self.issuer.as_deref(),
            audiences: &[TOKEN_AUDIENCE],
        };
        let claims = verify(&*self.keys()?, token, &expect, now)
            .map_err(|error: TokenError| TokenRefused::Invalid(error.to_string()))?;
        caller(&claims, &self.trust_domain)
    }
}

#[async_trait]
impl TokenReviewer for JwksReviewer {
    async fn review(&self, token: &str, _: Option<IpAddr>) -> Result<Caller, TokenRefused> {
        self.check(token, SystemTime::now())
    }
}

/// The account must be named twice and alike: as the subject, and in Kubernetes' own claim.
fn caller(claims: &Claims, trust_domain: &Str) -> Result<Caller, TokenRefused> {
    let invalid = |text: &str| TokenRefused::Invalid(text.to_owned());
    let bound = claims
        .kubernetes
        .as_ref()
        .ok_or_else(|| invalid("the token is not bound to a service account"))?;
    let (namespace, account) = (&bound.namespace, &bound.serviceaccount.name);
    let plain = |text: &str| !text.is_empty() && !text.contains('/');
    if !plain(namespace) || !plain(account) {
        return Err(invalid("the token names no usable service account"));
    }
    if claims.sub != format!("system:serviceaccount:{namespace}:{account}") {
        return Err(invalid("the token's subject is not its service account"));
    }
    Ok(Caller {
        identity: Identity::new(trust_domain.clone(), namespace.as_str(), account.as_str()),
        pod: bound.pod.as_ref().map(|pod| BoundPod {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        }),
        node: bound.node.as_ref().map(|node| node.name.clone()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isobar_tls::token::{BoundObject, Issuer, KubernetesClaims};

    use super::*;

    fn claims(now: SystemTime) -> Claims {
        let exp = (now + Duration::from_secs(600))
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let object = |name: &str, uid: &str| BoundObject {
            name: name.into(),
            uid: uid.into(),
        };
        Claims {
            iss: String::new(),
            sub: "system:serviceaccount:istio-system:ztunnel".into(),
            aud: vec!["istio-ca".into()],
            exp: i64::try_from(exp).unwrap(),
            iat: None,
            nbf: None,
            kubernetes: Some(KubernetesClaims {
                namespace: "istio-system".into(),
                serviceaccount: object("ztunnel", "a"),
                pod: Some(object("zt-1", "b")),
                node: Some(object("node-1", "c")),
            }),
        }
    }

    #[test]
    fn good_tokens_pass_and_bad_ones_say_why() {
        let now = SystemTime::now();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        let issuer = Issuer::generate("https://isobar.lab").unwrap();
        std::fs::write(&file, issuer.jwks()).unwrap();
        let url = Some("https://isobar.lab".to_owned());
        let reviewer = JwksReviewer::new(file.clone(), url, "cluster.local".into());
        let sign = |claims: &Claims| issuer.issue(claims).unwrap();

        let good = reviewer.check(&sign(&claims(now)), now).unwrap();
        assert_eq!(
            good.identity.to_string(),
            "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
        );
        assert_eq!(good.node.as_deref(), Some("node-1"));
        assert_eq!(good.pod.unwrap().uid, "b");

        let mut wrong_audience = claims(now);
        wrong_audience.aud = vec!["api".into()];
        let mut wrong_subject = claims(now);
        wrong_subject.sub = "system:serviceaccount:istio-system:other".into();
        let mut unbound = claims(now);
        unbound.kubernetes = None;
        for (token, when, say) in [
            (sign(&wrong_audience), now, "not for"),
            (
                sign(&claims(now)),
                now + Duration::from_secs(700),
                "expired",
            ),
            (sign(&wrong_subject), now, "subject"),
            (sign(&unbound), now, "not bound"),
            ("nonsense".to_owned(), now, "malformed"),
            (
                Issuer::generate("https://isobar.lab")
                    .unwrap()
                    .issue(&claims(now))
                    .unwrap(),
                now,
                "key",
            ),
            (
                Issuer::new("https://other", clone_key(&issuer))
                    .unwrap()
                    .issue(&claims(now))
                    .unwrap(),
                now,
                "issued by",
            ),
        ] {
            let refused = reviewer.check(&token, when).unwrap_err().to_string();
            assert!(refused.contains(say), "{refused:?} should say {say:?}");
        }
        std::fs::remove_file(&file).unwrap();
        let gone = reviewer.check(&sign(&claims(now)), now).unwrap_err();
        assert!(matches!(gone, TokenRefused::Unavailable(_)));
    }

    fn clone_key(issuer: &Issuer) -> isobar_tls::PrivateKey {
        isobar_tls::PrivateKey::from_pem(&issuer.key().to_pem().unwrap()).unwrap()
    }
}
