use async_trait::async_trait;
use isobar_kubernetes::{Cluster, ReviewError, TokenReviews};
use isobar_types::{Identity, Str, TOKEN_AUDIENCE};

use super::{BoundPod, Caller, TokenRefused, TokenReviewer};

/// Reviews tokens by asking the API server, which also knows whether the pod still lives.
pub(crate) struct ClusterReviewer {
    reviews: TokenReviews,
    trust_domain: Str,
}

impl ClusterReviewer {
    /// Tokens of the accounts of this cluster.
    pub(crate) fn new(cluster: Cluster, trust_domain: Str) -> Self {
        Self {
            reviews: TokenReviews::new(cluster, TOKEN_AUDIENCE),
            trust_domain,
        }
    }
}

#[async_trait]
impl TokenReviewer for ClusterReviewer {
    async fn review(&self, token: &str) -> Result<Caller, TokenRefused> {
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
