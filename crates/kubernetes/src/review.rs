use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::{Api, PostParams};

use crate::cluster::Cluster;

/// Asks an API server whom bearer tokens speak for.
#[derive(Debug, Clone)]
pub struct TokenReviews {
    cluster: Cluster,
    audience: String,
}

/// An accepted token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewedToken {
    /// Namespace of its service account.
    pub namespace: String,
    /// Its service account.
    pub account: String,
    /// The pod it is bound to.
    pub pod: Option<ReviewedPod>,
    /// The node that pod runs on, where the server tells it.
    pub node: Option<String>,
}

/// The pod a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewedPod {
    /// Pod name.
    pub name: String,
    /// Kubernetes UID.
    pub uid: String,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The server says that the token is wrong, or it is no service account's.
    #[error("{0}")]
    Invalid(String),
    /// The server could not be asked.
    #[error("the API server does not review tokens: {0}")]
    Unavailable(String),
}

impl TokenReviews {
    /// Accepts tokens for `audience` only.
    #[must_use]
    pub fn new(cluster: Cluster, audience: &str) -> Self {
        Self {
            cluster,
            audience: audience.to_owned(),
        }
    }

    /// Reviews one token.
    ///
    /// # Errors
    /// When the server does not accept it or cannot be asked.
    pub async fn review(&self, token: &str) -> Result<ReviewedToken, ReviewError> {
        let reviews: Api<TokenReview> = Api::all(self.cluster.client());
        let asked = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = reviews
            .create(&PostParams::default(), &asked)
            .await
            .map_err(|error| ReviewError::Unavailable(error.to_string()))?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let said = status.error.filter(|error| !error.is_empty());
            let said = said.unwrap_or_else(|| "the API server does not accept it".to_owned());
            return Err(ReviewError::Invalid(format!(
                "the token is refused: {said}"
            )));
        }
        // A server that does not know audiences accepts a token for anybody.
        if !status
            .audiences
            .unwrap_or_default()
            .contains(&self.audience)
        {
            let text = format!("the token is not for {:?}", self.audience);
            return Err(ReviewError::Invalid(text));
        }
        account(&status.user.unwrap_or_default())
    }
}

/// Only service accounts are somebody in the mesh.
fn account(user: &UserInfo) -> Result<ReviewedToken, ReviewError> {
    let invalid = |text: &str| ReviewError::Invalid(text.to_owned());
    let in_group = user
        .groups
        .iter()
        .flatten()
        .any(|group| group == "system:serviceaccounts");
    let name = user.username.as_deref().unwrap_or_default();
    let named = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .filter(|(namespace, account)| {
            let plain = |text: &str| !text.is_empty() && !text.contains(['/', ':']);
            plain(namespace) && plain(account)
        });
    let Some((namespace, account)) = named.filter(|_| in_group) else {
        return Err(invalid("the token is not a service account's"));
    };
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(key)?;
        values.first().filter(|value| !value.is_empty()).cloned()
    };
    let pod = extra("authentication.kubernetes.io/pod-name")
        .zip(extra("authentication.kubernetes.io/pod-uid"))
        .map(|(name, uid)| ReviewedPod { name, uid });
    Ok(ReviewedToken {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        pod,
        node: extra("authentication.kubernetes.io/node-name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_service_accounts_are_somebody() {
        let user = |name: &str, group: &str| UserInfo {
            username: Some(name.to_owned()),
            groups: Some(vec![group.to_owned()]),
            ..UserInfo::default()
        };
        let all = "system:serviceaccounts";
        let good = account(&user("system:serviceaccount:shop:cart", all)).unwrap();
        assert_eq!((&*good.namespace, &*good.account), ("shop", "cart"));
        for wrong in [
            user("system:serviceaccount:shop:cart", "system:masters"),
            user("admin", all),
            user("system:serviceaccount:shop", all),
            user("system:serviceaccount::cart", all),
            user("system:serviceaccount:shop:a:b", all),
            user("system:serviceaccount:shop:a/b", all),
        ] {
            assert!(account(&wrong).is_err(), "{wrong:?}");
        }
    }
}
