use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// The other node proxy.
#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    /// Where it is; nothing of this is in what is written.
    #[serde(skip)]
    pub path: PathBuf,
    /// What it is called.
    pub name: String,
    /// The commit it was built from.
    pub commit: Option<String>,
    /// Who says so.
    pub commit_told_by: &'static str,
    /// What it says of itself.
    pub version: String,
}

impl Peer {
    /// Asks the program at `path` for its version; `commit` counts where that does not tell.
    ///
    /// # Errors
    /// When it is no program, or when it tells another commit than `commit`.
    pub fn of(path: &Path, name: &str, commit: Option<&str>) -> Result<Self> {
        let path = std::fs::canonicalize(path)
            .with_context(|| format!("PEER={}: pass a ztunnel's path", path.display()))?;
        let output = Command::new(&path)
            .arg("version")
            .output()
            .with_context(|| format!("running {} version", path.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let told = revision(&version);
        let given = commit.filter(|c| !c.is_empty());
        if let (Some(told), Some(given)) = (told, given) {
            ensure!(
                told.starts_with(given) || given.starts_with(told),
                "PEER_COMMIT={given}, but the program says {told}"
            );
        }
        Ok(Self {
            path,
            name: name.to_owned(),
            commit: told.or(given).map(str::to_owned),
            commit_told_by: match (told, given) {
                (Some(_), _) => "the program",
                (None, Some(_)) => "PEER_COMMIT",
                (None, None) => "nobody",
            },
            version,
        })
    }
}

/// The commit in `GitRevision:"…"`, as Istio's programs print it; they say `unknown` when they were
/// not built from a checkout.
fn revision(version: &str) -> Option<&str> {
    let (_, rest) = version.split_once("GitRevision:\"")?;
    let (revision, _) = rest.split_once('"')?;
    let hex = revision.bytes().all(|b| b.is_ascii_hexdigit());
    (hex && revision.len() >= 7).then_some(revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_read_from_the_version() {
        let text = |revision: &str| {
            format!("version.BuildInfo{{Version:\"1\", GitRevision:\"{revision}\", X:\"y\"}}")
        };
        assert_eq!(revision(&text("62d82659")), Some("62d82659"));
        for none in ["unknown", "", "62d", "not-a-commit"] {
            assert_eq!(revision(&text(none)), None, "{none}");
        }
        assert_eq!(revision("1.2.3"), None);
    }
}
