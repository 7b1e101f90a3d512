//! The authority in force, and how it is followed while the process runs.
//!
//! An intermediate of the user's is in files, which Kubernetes replaces when the secret they come from
//! changes. A root of our own is in a secret, where the replica that leads renews it when it is old.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use isobar_kubernetes::{Cluster, refresh_authority};
use isobar_runtime::Lifetime;
use isobar_tls::ca::Authority;
use tokio::sync::watch;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often the secret with a root of our own is looked at: whether it is there, is another one, or is
/// old. Who starts while it is gone waits for it (`PUT_BACK` of the surroundings), and longer than this.
const SECRET: Duration = Duration::from_secs(20);
/// Files that an authority is made of, in Istio's layout and in that of a TLS secret.
const FILES: [&str; 7] = [
    "ca-key.pem",
    "ca-cert.pem",
    "cert-chain.pem",
    "root-cert.pem",
    "tls.key",
    "tls.crt",
    "ca.crt",
];
/// Where clients look for the roots, below the state directory.
const ROOTS: &str = "root-cert.pem";

/// The authority in force.
#[derive(Debug)]
pub(crate) struct Authorities {
    current: watch::Sender<Arc<Authority>>,
    roots: watch::Sender<Arc<str>>,
}

impl Authorities {
    /// With the first one.
    pub(crate) fn new(first: Authority) -> Self {
        let roots: Arc<str> = first.roots().into();
        Self {
            current: watch::Sender::new(Arc::new(first)),
            roots: watch::Sender::new(roots),
        }
    }

    /// The one in force.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Authority>> {
        self.current.subscribe()
    }

    /// Its roots, PEM.
    pub(crate) fn roots(&self) -> watch::Receiver<Arc<str>> {
        self.roots.subscribe()
    }

    /// Follows the files of `dir` until `life` ends. What cannot be used changes nothing.
    pub(crate) async fn follow_files(
        self: Arc<Self>,
        dir: PathBuf,
        state: PathBuf,
        life: Lifetime,
    ) {
        let mut seen = fingerprint(&dir);
        loop {
            tokio::select! {
                () = life.draining() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = fingerprint(&dir);
            if now == seen {
                continue;
            }
            seen = now;
            match of_files(&dir, &state) {
                Ok(authority) => self.take(authority),
                Err(error) => tracing::error!(
                    dir = %dir.display(), error = format!("{error:#}"),
                    "the new authority cannot be used; the one before stays",
                ),
            }
        }
    }

    /// Follows the secret of `namespace` until `life` ends; renews the root when it is old, and puts back
    /// a secret that is gone, while `leads` is true.
    pub(crate) async fn follow_secret(
        self: Arc<Self>,
        cluster: Cluster,
        namespace: String,
        state: PathBuf,
        leads: watch::Receiver<bool>,
        life: Lifetime,
    ) {
        loop {
            // Replicas that started together do not ask together.
            let pause = SECRET.mul_f64(0.9 + rand::random::<f64>() * 0.2);
            tokio::select! {
                () = life.draining() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let is_leader = *leads.borrow();
            let renew = || -> Result<bool> {
                Ok(is_leader && Authority::renew_if_old(&state, SystemTime::now())?)
            };
            let done = refresh_authority(&cluster, &namespace, &state, is_leader, renew).await;
            match done.and_then(|()| Ok(Authority::load_or_create(&state)?)) {
                Ok(authority) if authority.roots() != self.current.borrow().roots() => {
                    self.take(authority);
                }
                Ok(_) => {}
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the authority could not be looked after",
                ),
            }
        }
    }

    fn take(&self, next: Authority) {
        let roots: Arc<str> = next.roots().into();
        let before = self.roots.borrow().clone();
        let (old, new) = (blocks(&before), blocks(&roots));
        if old.is_subset(&new) {
            tracing::info!(roots = new.len(), "another authority is in force");
        } else {
            tracing::warn!(
                roots = new.len(),
                "another authority is in force, and roots that were trusted are not among its own: who has \
                 a certificate of theirs is refused by everybody who has heard of it, for up to a day",
            );
        }
        // First what verifies, then what is verified.
        if before != roots {
            self.roots.send_replace(roots);
        }
        self.current.send_replace(Arc::new(next));
    }
}

/// The intermediate in the files of `dir`; its roots go into the state directory, for clients.
pub(crate) fn of_files(dir: &Path, state: &Path) -> Result<Authority> {
    let authority = Authority::from_intermediate(dir)?;
    let path = state.join(ROOTS);
    let temporary = state.join(".root-cert.pem.new");
    std::fs::write(&temporary, authority.roots())
        .and_then(|()| std::fs::rename(&temporary, &path))
        .with_context(|| path.display().to_string())?;
    Ok(authority)
}

fn fingerprint(dir: &Path) -> u64 {
    let mut hash = DefaultHasher::new();
    for name in FILES {
        let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
        hash.write_usize(bytes.len());
        hash.write(&bytes);
    }
    hash.finish()
}

/// The certificates of a PEM text, without blanks.
fn blocks(text: &str) -> BTreeSet<String> {
    text.split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .filter_map(|rest| rest.split_once("-----END"))
        .map(|(body, _)| body.split_whitespace().collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use isobar_runtime::Scope;

    use super::*;

    /// A root of its own can stand for an intermediate: it is its own issuer.
    fn put(dir: &Path, more_roots: &str) -> String {
        let made = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(made.path()).unwrap();
        let key = std::fs::read(made.path().join("ca-key.pem")).unwrap();
        std::fs::write(dir.join("ca-key.pem"), key).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), authority.roots()).unwrap();
        let roots = format!("{}{more_roots}", authority.roots());
        std::fs::write(dir.join("root-cert.pem"), &roots).unwrap();
        roots
    }

    #[tokio::test(start_paused = true)]
    async fn another_authority_is_taken_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        let first = put(dir.path(), "");
        let authorities = Authorities::new(of_files(dir.path(), state.path()).unwrap());
        let authorities = Arc::new(authorities);
        let mut roots = authorities.roots();
        assert_eq!(&**roots.borrow_and_update(), first);
        let scope = Scope::new("test");
        let (files, kept) = (dir.path().to_owned(), state.path().to_owned());
        let life = scope.lifetime();
        scope.spawn(
            "files",
            Arc::clone(&authorities).follow_files(files, kept, life),
        );
        tokio::task::yield_now().await;

        std::fs::write(dir.path().join("ca-key.pem"), "nonsense").unwrap();
        tokio::time::sleep(LOOK * 3).await;
        assert!(!roots.has_changed().unwrap());

        let second = put(dir.path(), &first);
        tokio::time::timeout(LOOK * 3, roots.changed())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&**roots.borrow_and_update(), second);
        assert_eq!(authorities.subscribe().borrow().roots(), second);
        let kept = std::fs::read_to_string(state.path().join(ROOTS)).unwrap();
        assert_eq!(kept, second);
        assert!(blocks(&first).is_subset(&blocks(&second)));
        assert_eq!(blocks(&second).len(), 2);
    }
}
