use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, LogParams};

use crate::cluster::Cluster;

/// Why the API server did not tell.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub struct PageError {
    what: String,
    error: Box<kube::Error>,
}

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunningPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: String,
}

fn failed(what: impl Into<String>) -> impl FnOnce(kube::Error) -> PageError {
    let what = what.into();
    |error| PageError {
        what,
        error: Box::new(error),
    }
}

impl Cluster {
    /// Asks the server for its version, to learn whether it answers at all.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), PageError> {
        let what = format!("API server {}", self.address());
        let version = self.client().apiserver_version().await;
        version.map(drop).map_err(failed(what))
    }

    /// Names of the running pods of a namespace that a label selector selects, in order.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn running_pods(
        &self,
        namespace: &str,
        selector: &str,
    ) -> Result<Vec<String>, PageError> {
        let found = self.find_pods(Some(namespace), selector, "").await?;
        Ok(found.into_iter().map(|pod| pod.name).collect())
    }

    /// The same, of one node only.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn running_pods_on(
        &self,
        namespace: &str,
        selector: &str,
        node: &str,
    ) -> Result<Vec<String>, PageError> {
        let fields = format!("spec.nodeName={node}");
        let found = self.find_pods(Some(namespace), selector, &fields).await?;
        Ok(found.into_iter().map(|pod| pod.name).collect())
    }

    /// Running pods that a label and a field selector select, of one namespace or of all, in order.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn find_pods(
        &self,
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Vec<RunningPod>, PageError> {
        let (pods, what): (Api<Pod>, _) = match namespace {
            Some(one) => (
                Api::namespaced(self.client(), one),
                format!("pods of namespace {one}"),
            ),
            None => (Api::all(self.client()), "pods of all namespaces".to_owned()),
        };
        let selected = ListParams::default().labels(labels).fields(fields);
        let list = pods.list(&selected).await.map_err(failed(what))?;
        let runs = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_ref());
            phase.is_some_and(|phase| phase == "Running")
                && pod.metadata.deletion_timestamp.is_none()
        };
        let running = list.items.into_iter().filter(runs);
        let mut found: Vec<RunningPod> = running
            .map(|pod| RunningPod {
                namespace: pod.metadata.namespace.unwrap_or_default(),
                name: pod.metadata.name.unwrap_or_default(),
                node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// The server's own version, as `v1.34.0`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn version(&self) -> Result<String, PageError> {
        let what = format!("API server {}", self.address());
        let version = self.client().apiserver_version().await;
        version.map(|info| info.git_version).map_err(failed(what))
    }

    /// The last lines of a pod's log; of its container, which has to be its only one or the default.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn log(&self, namespace: &str, pod: &str, lines: u32) -> Result<String, PageError> {
        let what = format!("log of pod {namespace}/{pod}");
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        let wanted = LogParams {
            tail_lines: Some(lines.into()),
            ..LogParams::default()
        };
        pods.logs(pod, &wanted).await.map_err(failed(what))
    }

    /// A page that a pod serves over plain HTTP, through the API server; it takes the right to get
    /// `pods/proxy`.
    ///
    /// # Errors
    /// When the server or the pod does not answer with it.
    pub async fn page(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Result<String, PageError> {
        let what = format!("{path} of pod {namespace}/{pod}");
        let uri = format!("/api/v1/namespaces/{namespace}/pods/http:{pod}:{port}/proxy{path}");
        let request = http::Request::get(uri).body(Vec::new());
        let request = match request.map_err(kube::Error::HttpError) {
            Ok(request) => request,
            Err(error) => return Err(failed(what)(error)),
        };
        let answer = self.client().request_text(request).await;
        answer.map_err(failed(what))
    }
}
