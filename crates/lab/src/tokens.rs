//! Service account tokens of a lab: signed here and verified by the control plane with the public key,
//! or asked of the lab's API server as a kubelet does.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use isobar_kubernetes::Cluster;
use isobar_objects::uid_from;
use isobar_tls::token::{BoundObject, Claims, Issuer, KubernetesClaims};
use isobar_types::TOKEN_AUDIENCE;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::LabError;
use crate::stage::with_causes;

/// Issuer named in the tokens.
pub(crate) const ISSUER: &str = "https://isobar.lab";
/// Life of a token, in seconds.
const LIFE: i64 = 24 * 3600;
/// Pause after an API server did not issue one.
const AGAIN: Duration = Duration::from_millis(300);

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) pod: String,
    pub(crate) pod_uid: String,
    pub(crate) node: String,
}

/// Issues tokens into files, and again before they expire.
#[derive(Debug)]
pub(crate) struct Tokens {
    issuer: Signer,
    files: Mutex<BTreeMap<PathBuf, Subject>>,
    /// A file waits for its first token.
    wanted: Notify,
}

/// Who issues them.
#[derive(Debug)]
enum Signer {
    Lab(Box<Issuer>),
    Server(Cluster),
}

impl Tokens {
    /// A new key; its public half is written to `keys`.
    pub(crate) fn create(keys: &Path) -> Result<Self, LabError> {
        let issuer = Issuer::generate(ISSUER).map_err(|error| LabError::NoAnswer {
            why: format!("making the key of service account tokens: {error}"),
        })?;
        std::fs::write(keys, issuer.jwks())
            .map_err(LabError::io(format!("writing {}", keys.display())))?;
        Ok(Self::of(Signer::Lab(Box::new(issuer))))
    }

    /// Tokens of an API server.
    pub(crate) fn of_server(cluster: Cluster) -> Self {
        Self::of(Signer::Server(cluster))
    }

    fn of(issuer: Signer) -> Self {
        Self {
            issuer,
            files: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// Writes a token for `subject` to `path`, and keeps it fresh. One of an API server is there a
    /// moment later: who uses it reads the file again.
    pub(crate) fn write(&self, path: &Path, subject: Subject) -> Result<(), LabError> {
        match &self.issuer {
            Signer::Lab(issuer) => put(path, &sign(issuer, &subject)?)?,
            Signer::Server(_) => self.wanted.notify_one(),
        }
        self.files().insert(path.to_owned(), subject);
        Ok(())
    }

    /// Removes a token.
    pub(crate) fn remove(&self, path: &Path) {
        if self.files().remove(path).is_some() {
            // Gone is what is wanted.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Issues tokens again, every one after `every`, for ever.
    pub(crate) async fn keep_fresh(&self, every: Duration) {
        let mut begun = Instant::now();
        loop {
            let is_time = tokio::select! {
                () = tokio::time::sleep_until(begun + every) => true,
                () = self.wanted.notified() => false,
            };
            if is_time {
                begun = Instant::now();
            }
            let failed = match &self.issuer {
                Signer::Lab(issuer) => self.sign_all(issuer).err(),
                Signer::Server(cluster) => self.ask_all(cluster, is_time).await.err(),
            };
            if let Some(error) = failed {
                tracing::warn!("issuing tokens: {}", with_causes(&error));
                tokio::time::sleep(AGAIN).await;
                self.wanted.notify_one();
            }
        }
    }

    fn sign_all(&self, issuer: &Issuer) -> Result<(), LabError> {
        let files = self.files().clone();
        files
            .iter()
            .try_for_each(|(path, subject)| put(path, &sign(issuer, subject)?))
    }

    async fn ask_all(&self, cluster: &Cluster, also_there: bool) -> Result<(), LabError> {
        let files = self.files().clone();
        let mut failed = Ok(());
        for (path, subject) in files {
            if path.exists() && !also_there {
                continue;
            }
            match ask(cluster, &subject).await {
                Ok(token) => put(&path, &token)?,
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Subject>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sign(issuer: &Issuer, subject: &Subject) -> Result<String, LabError> {
    let claims = claims(subject, jiff::Timestamp::now().as_second());
    issuer.issue(&claims).map_err(|error| LabError::NoAnswer {
        why: format!("signing a token for {}: {error}", subject.account),
    })
}

async fn ask(cluster: &Cluster, subject: &Subject) -> Result<String, LabError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), &subject.namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![TOKEN_AUDIENCE.to_owned()],
            expiration_seconds: Some(LIFE),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(subject.pod.clone()),
                uid: None,
            }),
        },
        ..TokenRequest::default()
    };
    let params = PostParams::default();
    let asked = accounts.create_token_request(&subject.account, &params, &request);
    let answer = asked.await.map_err(|error| LabError::NoAnswer {
        why: format!("a token for pod {}: {error}", subject.pod),
    })?;
    let status = answer.status.ok_or_else(|| LabError::NoAnswer {
        why: format!("no token for pod {} in the answer", subject.pod),
    })?;
    Ok(status.token)
}

fn put(path: &Path, token: &str) -> Result<(), LabError> {
    let doing = || format!("writing {}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(LabError::io(doing()))?;
    }
    let draft = path.with_extension("new");
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| std::io::Write::write_all(&mut file, token.as_bytes()))
        .and_then(|()| std::fs::rename(&draft, path))
        .map_err(LabError::io(doing()))
}

fn claims(subject: &Subject, now: i64) -> Claims {
    let object = |kind: &str, namespace: &str, name: &str| BoundObject {
        name: name.to_owned(),
        uid: uid_from(&[kind, namespace, name]),
    };
    Claims {
        iss: ISSUER.to_owned(),
        sub: format!(
            "system:serviceaccount:{}:{}",
            subject.namespace, subject.account
        ),
        aud: vec![TOKEN_AUDIENCE.to_owned()],
        exp: now + LIFE,
        iat: Some(now),
        nbf: Some(now),
        kubernetes: Some(KubernetesClaims {
            namespace: subject.namespace.clone(),
            serviceaccount: object("ServiceAccount", &subject.namespace, &subject.account),
            pod: Some(BoundObject {
                name: subject.pod.clone(),
                uid: subject.pod_uid.clone(),
            }),
            node: Some(object("Node", "", &subject.node)),
        }),
    }
}
