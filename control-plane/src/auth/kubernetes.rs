use std::net::IpAddr;
use std::time::SystemTime;

use async_trait::async_trait;
use isobar_kubernetes::{Cluster, ReviewError, TokenReviews};
use isobar_tls::token::plausible;
use isobar_types::{Identity, Str, TOKEN_AUDIENCE};

use super::gate::Gate;
use super::{BoundPod, Caller, TokenRefused, TokenReviewer};

/// Reviews tokens by asking the API server, which also knows whether the pod still lives.
pub(crate) struct ClusterReviewer {
    reviews: TokenReviews,
    trust_domain: Str,
    gate: Gate,
}

impl ClusterReviewer {
    /// Tokens of the accounts of this cluster.
    pub(crate) fn new(cluster: Cluster, trust_domain: Str) -> Self {
        Self {
            reviews: TokenReviews::new(cluster, TOKEN_AUDIENCE),
            trust_domain,
            gate: Gate::default(),
        }
    }

    async fn ask(&self, token: &str) -> Result<Caller, TokenRefused> {
        let reviewed = self.reviews.review(token).await;
        let reviewed = reviewed.map_err(|error| match error {
            ReviewError::Invalid(text) => TokenRefused::Invalid(text),
            ReviewError::Unavailable(text) => TokenRefused::Unavailable(text),
        })?;
        Ok(Caller {
            identity: Identity::new(
                self.trust_domain.clone(),
                reviewed.namespace,
                reviewed.account,
            ),
            pod: reviewed.pod.map(|pod| BoundPod {
                name: pod.name,
                uid: pod.uid,
            }),
            node: reviewed.node,
        })
    }
}

#[async_trait]
impl TokenReviewer for ClusterReviewer {
    async fn review(&self, token: &str, from: Option<IpAddr>) -> Result<Caller, TokenRefused> {
        // Its signature is the server's to verify; what could not be accepted is not asked about.
        plausible(token, TOKEN_AUDIENCE, SystemTime::now())
            .map_err(|error| TokenRefused::Invalid(error.to_string()))?;
        self.gate.pass(token, from, self.ask(token)).await
    }
}

#[cfg(test)]
mod tests {
    use isobar_tls::token::{Claims, Issuer};

    use super::*;

    /// Nobody answers there: a token that is asked about cannot be reviewed.
    const NOWHERE: &str = "
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {}}]
current-context: a
";

    #[tokio::test]
    async fn nobody_is_asked_about_what_is_no_token_for_the_mesh() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubeconfig");
        std::fs::write(&file, NOWHERE).unwrap();
        let cluster = Cluster::from_kubeconfig(&file).await.unwrap();
        let reviewer = ClusterReviewer::new(cluster, "cluster.local".into());
        let issuer = Issuer::generate("https://test").unwrap();
        let token = |audience: &str, exp: i64| {
            let claims = Claims {
                iss: String::new(),
                sub: String::new(),
                aud: vec![audience.to_owned()],
                exp,
                iat: None,
                nbf: None,
                kubernetes: None,
            };
            issuer.issue(&claims).unwrap()
        };
        let late = 9_999_999_999;
        for (token, say) in [
            ("nonsense".to_owned(), "malformed"),
            (token("api", late), "not for"),
            (token(TOKEN_AUDIENCE, 1000), "expired"),
        ] {
            let refused = reviewer.review(&token, None).await.unwrap_err();
            assert!(matches!(refused, TokenRefused::Invalid(_)), "{refused}");
            assert!(refused.to_string().contains(say), "{refused}");
        }
        let asked = token(TOKEN_AUDIENCE, late);
        let refused = reviewer.review(&asked, None).await.unwrap_err();
        assert!(matches!(refused, TokenRefused::Unavailable(_)), "{refused}");
    }
}
