use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::Api;

use crate::cluster::Cluster;

/// Longest time for an answer: whoever asks is about to end.
const LIMIT: Duration = Duration::from_secs(2);

/// What the API server says about a DaemonSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// It is there.
    Present,
    /// It is not there, or is being deleted.
    Gone,
    /// We may not ask: the rights or the account are not there (any more).
    Refused,
    /// Nobody answered.
    Unknown(String),
}

impl Cluster {
    /// Whether a DaemonSet is there and meant to stay: its pods then end because others take their
    /// place, not because nothing shall.
    pub async fn daemon_set(&self, namespace: &str, name: &str) -> Presence {
        let sets: Api<DaemonSet> = Api::namespaced(self.client(), namespace);
        match tokio::time::timeout(LIMIT, sets.get_opt(name)).await {
            Err(_) => Presence::Unknown(format!("no answer within {LIMIT:?}")),
            Ok(Ok(None)) => Presence::Gone,
            Ok(Ok(Some(set))) if set.metadata.deletion_timestamp.is_some() => Presence::Gone,
            Ok(Ok(Some(_))) => Presence::Present,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                Presence::Refused
            }
            Ok(Err(error)) => Presence::Unknown(error.to_string()),
        }
    }
}
