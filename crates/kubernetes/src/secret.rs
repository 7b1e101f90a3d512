use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::election::{Timing, is_held};

/// Name of the secret that Istio keeps its own authority in; taken over as it is.
const NAME: &str = "istio-ca-secret";
/// Its type.
const TYPE: &str = "istio.io/ca-root";
/// Keys of the secret, which are Istio's, and the files of the authority.
const CERTIFICATE: (&str, &str) = ("ca-cert.pem", "root-cert.pem");
const KEY: (&str, &str) = ("ca-key.pem", "ca-key.pem");

/// Why the authority cannot be kept in a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server refused, or cannot be reached.
    #[error("secret {namespace}/{NAME}: {error}")]
    Server {
        /// Namespace of the secret.
        namespace: String,
        /// What the server said.
        error: Box<kube::Error>,
    },
    /// The secret has no certificate or no key.
    #[error("secret {namespace}/{NAME} has no {key}")]
    Incomplete {
        /// Namespace of the secret.
        namespace: String,
        /// What is missing.
        key: &'static str,
    },
    /// The secret is gone, and who leads did not put it back.
    #[error(
        "secret {namespace}/{NAME} is gone, and the replica that holds lease {namespace}/{lease} signs with an \
         authority that only it has: no second one is made beside it. It puts the secret back by itself \
         if it may; see its log"
    )]
    Withheld {
        /// Namespace of the secret.
        namespace: String,
        /// Name of the lease.
        lease: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Makes the authority whose files are in `dir` the one of the cluster: replicas and later lives of
/// the control plane sign with the same key. The secret of `namespace` wins if there is one; else
/// `make` is called to put files into `dir`, and they become the secret.
///
/// # Errors
/// When the secret cannot be read or written, or is not complete, or files cannot be.
pub async fn keep_authority<E>(
    cluster: &Cluster,
    namespace: &str,
    dir: &Path,
    make: impl Fn() -> Result<(), E>,
) -> Result<(), E>
where
    E: From<SecretError>,
{
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), namespace);
    let server = refused(namespace);
    if let Some(secret) = secrets.get_opt(NAME).await.map_err(&server)? {
        return Ok(lay_out(&secret, namespace, dir)?);
    }
    make()?;
    let made = pick_up(namespace, dir)?;
    match secrets.create(&PostParams::default(), &made).await {
        Ok(_) => Ok(()),
        // Another replica was faster: its authority counts.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let secret = secrets.get(NAME).await.map_err(&server)?;
            Ok(lay_out(&secret, namespace, dir)?)
        }
        Err(error) => Err(server(error).into()),
    }
}

/// Waits until the secret is there or nobody leads who has it: a replica that starts while the secret
/// is gone would make a second root beside the one that the leader signs with, which puts its own
/// back ([`refresh_authority`]). The lease is that of [`crate::Candidate`].
///
/// # Errors
/// When the API server refuses, and when somebody leads and the secret is still not there after
/// `limit`.
pub async fn await_authority(
    cluster: &Cluster,
    (namespace, lease): (&str, &str),
    timing: Timing,
    limit: Duration,
) -> Result<(), SecretError> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), namespace);
    let server = refused(namespace);
    let begun = Instant::now();
    loop {
        if secrets.get_opt(NAME).await.map_err(&server)?.is_some() {
            return Ok(());
        }
        let held = is_held(cluster, namespace, lease, timing).await;
        if !held.map_err(&server)? {
            return Ok(());
        }
        if begun.elapsed() >= limit {
            return Err(SecretError::Withheld {
                namespace: namespace.to_owned(),
                lease: lease.to_owned(),
            });
        }
        tokio::time::sleep(timing.retry).await;
    }
}

/// Takes the cluster's authority over into `dir` again, as another replica may have renewed it; then
/// `renew` may put newer files there, and says so: they become the secret, unless another replica was
/// faster. A secret that is gone is made again from `dir` if `restore` says so, which is the leader's
/// to do, and changes nothing for others.
///
/// # Errors
/// As [`keep_authority`].
pub async fn refresh_authority<E>(
    cluster: &Cluster,
    namespace: &str,
    dir: &Path,
    restore: bool,
    renew: impl FnOnce() -> Result<bool, E>,
) -> Result<(), E>
where
    E: From<SecretError>,
{
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), namespace);
    let server = refused(namespace);
    let Some(found) = secrets.get_opt(NAME).await.map_err(&server)? else {
        if restore {
            put_back(&secrets, namespace, dir).await?;
        }
        return Ok(());
    };
    lay_out(&found, namespace, dir)?;
    if !renew()? {
        return Ok(());
    }
    let newer = pick_up(namespace, dir)?;
    let replaced = Secret {
        data: found.data.clone().map(|mut data| {
            data.extend(newer.data.unwrap_or_default());
            data
        }),
        ..found
    };
    // The version read goes with it: of two that renew it at once, one is refused.
    match secrets
        .replace(NAME, &PostParams::default(), &replaced)
        .await
    {
        Ok(_) => Ok(()),
        Err(error) => {
            // What is not stored may not be signed with.
            let now = secrets.get(NAME).await.map_err(&server)?;
            lay_out(&now, namespace, dir)?;
            match error {
                kube::Error::Api(status) if status.code == 409 => Ok(()),
                error => Err(server(error).into()),
            }
        }
    }
}

/// Makes the secret from what is signed with now.
async fn put_back(secrets: &Api<Secret>, namespace: &str, dir: &Path) -> Result<(), SecretError> {
    let kept = pick_up(namespace, dir)?;
    match secrets.create(&PostParams::default(), &kept).await {
        Ok(_) => tracing::warn!(namespace, "secret {NAME} was gone and has been put back"),
        // Somebody else was faster: what that is shows the next look.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(refused(namespace)(error)),
    }
    Ok(())
}

fn refused(namespace: &str) -> impl Fn(kube::Error) -> SecretError {
    let namespace = namespace.to_owned();
    move |error| SecretError::Server {
        namespace: namespace.clone(),
        error: Box::new(error),
    }
}

fn lay_out(secret: &Secret, namespace: &str, dir: &Path) -> Result<(), SecretError> {
    let data = secret.data.as_ref();
    let bytes = |key| {
        data.and_then(|data| data.get(key))
            .map(|bytes| &*bytes.0)
            .filter(|bytes| !bytes.is_empty())
            .ok_or_else(|| SecretError::Incomplete {
                namespace: namespace.to_owned(),
                key,
            })
    };
    // Both or none: half a secret would leave a key of one authority with the certificate of another.
    let (key, certificate) = (bytes(KEY.0)?, bytes(CERTIFICATE.0)?);
    // The key first: a certificate without its key would be taken for an authority.
    write(&dir.join(KEY.1), key)?;
    write(&dir.join(CERTIFICATE.1), certificate)
}

fn pick_up(namespace: &str, dir: &Path) -> Result<Secret, SecretError> {
    let mut data = BTreeMap::new();
    for (key, file) in [KEY, CERTIFICATE] {
        let path = dir.join(file);
        let bytes = std::fs::read(&path).map_err(|error| SecretError::File { path, error })?;
        data.insert(key.to_owned(), ByteString(bytes));
    }
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some(TYPE.to_owned()),
        ..Secret::default()
    })
}

/// Mode 0600: one of them is a private key.
fn write(path: &Path, bytes: &[u8]) -> Result<(), SecretError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let failed = |error| SecretError::File {
        path: path.to_owned(),
        error,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(failed)
}
