//! Service account tokens of a lab: signed here, verified by the control plane with the public key.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use isobar_objects::uid_from;
use isobar_tls::token::{BoundObject, Claims, Issuer, KubernetesClaims};
use isobar_types::TOKEN_AUDIENCE;

use crate::error::LabError;

/// Issuer named in the tokens.
pub(crate) const ISSUER: &str = "https://isobar.lab";
/// Life of a token, in seconds.
const LIFE: i64 = 24 * 3600;

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
    issuer: Issuer,
    files: Mutex<BTreeMap<PathBuf, Subject>>,
}

impl Tokens {
    /// A new key; its public half is written to `keys`.
    pub(crate) fn create(keys: &Path) -> Result<Self, LabError> {
        let issuer = Issuer::generate(ISSUER).map_err(|error| LabError::NoAnswer {
            why: format!("making the key of service account tokens: {error}"),
        })?;
        std::fs::write(keys, issuer.jwks())
            .map_err(LabError::io(format!("writing {}", keys.display())))?;
        Ok(Self {
            issuer,
            files: Mutex::default(),
        })
    }

    /// Writes a token for `subject` to `path`, and keeps it fresh.
    pub(crate) fn write(&self, path: &Path, subject: Subject) -> Result<(), LabError> {
        self.issue(path, &subject)?;
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

    /// Issues every token again.
    pub(crate) fn refresh(&self) -> Result<(), LabError> {
        let files = self.files().clone();
        files
            .iter()
            .try_for_each(|(path, subject)| self.issue(path, subject))
    }

    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Subject>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issue(&self, path: &Path, subject: &Subject) -> Result<(), LabError> {
        let now = jiff::Timestamp::now().as_second();
        let claims = claims(subject, now);
        let token = self
            .issuer
            .issue(&claims)
            .map_err(|error| LabError::NoAnswer {
                why: format!("signing a token for {}: {error}", subject.account),
            })?;
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
