//! What the container runtime says about the pods it has made network namespaces for.
//!
//! One JSON file a pod, `UID.json`, before the pod's workload starts and until it is gone. In a lab
//! its runtime writes it, on Kubernetes the CNI plugin. The agent answers with `UID.ready` once the
//! pod may start: nothing of it runs unprotected.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Kubernetes uid.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    #[serde(default)]
    pub service_account: String,
    /// File of its network namespace.
    pub netns: PathBuf,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Container that holds the namespace, as the CNI names it; empty where no plugin was asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Name of the CNI network it was attached to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
}

impl Sandbox {
    /// Where its network namespace is for a process that sees the host's `/proc` at `proc`.
    #[must_use]
    pub fn netns_under(&self, proc: &Path) -> PathBuf {
        match self.netns.strip_prefix("/proc") {
            Ok(rest) => proc.join(rest),
            Err(_) => self.netns.clone(),
        }
    }
}

/// What a pod may start as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Redirected.
    Enrolled,
    /// Known not to belong to the mesh.
    Plain,
}

impl Answer {
    /// The file's content.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Plain => "plain",
        }
    }
}

/// All records of a folder. A record that cannot be read is named in the second list: the others
/// are as good as before.
///
/// # Errors
/// When the folder itself cannot be read.
pub fn read_all(dir: &Path) -> io::Result<(Vec<Sandbox>, Vec<String>)> {
    let (mut sandboxes, mut problems) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| name.ends_with(".json") && !name.starts_with('.')) {
            continue;
        }
        match read(&path) {
            Ok(Some(sandbox)) => sandboxes.push(sandbox),
            // Removed while the folder was read.
            Ok(None) => {}
            Err(problem) => problems.push(format!("{}: {problem}", path.display())),
        }
    }
    Ok((sandboxes, problems))
}

/// The record of one pod; none if there is none.
///
/// # Errors
/// In words, when it cannot be read.
pub fn find(dir: &Path, uid: &str) -> Result<Option<Sandbox>, String> {
    if !is_uid(uid) {
        return Err(format!("{uid:?} is no uid"));
    }
    read(&dir.join(format!("{uid}.json")))
}

/// Writes a pod's record; one that is there is replaced in one step.
///
/// # Errors
/// When it cannot be written, or its uid cannot be a file's name.
pub fn record(dir: &Path, sandbox: &Sandbox) -> io::Result<()> {
    if !is_uid(&sandbox.uid) {
        let error = format!("{:?} is no uid", sandbox.uid);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let text = serde_json::to_vec(sandbox)?;
    let draft = dir.join(format!(".{}.{}.json", sandbox.uid, std::process::id()));
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, dir.join(format!("{}.json", sandbox.uid)))
}

/// Removes the records that `gone` names; true if there was one. A record that is removed meanwhile
/// by somebody else is as good as removed.
///
/// # Errors
/// When the folder cannot be read or a record cannot be removed.
pub fn erase(dir: &Path, gone: impl Fn(&Sandbox) -> bool) -> io::Result<bool> {
    let mut erased = false;
    let (sandboxes, _) = match read_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    for sandbox in sandboxes.iter().filter(|sandbox| gone(sandbox)) {
        match std::fs::remove_file(dir.join(format!("{}.json", sandbox.uid))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => erased = true,
        }
    }
    Ok(erased)
}

/// The uid becomes part of file names.
fn is_uid(uid: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=128).contains(&uid.len()) && !uid.starts_with('.') && uid.chars().all(plain)
}

fn read(path: &Path) -> Result<Option<Sandbox>, String> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| error.to_string())?,
    };
    let sandbox: Sandbox = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if !is_uid(&sandbox.uid) {
        return Err(format!("{:?} is no uid", sandbox.uid));
    }
    Ok(Some(sandbox))
}

/// Tells the runtime what the pod may start as; later changes replace the file.
///
/// # Errors
/// When the file cannot be written.
pub fn answer(dir: &Path, uid: &str, answer: Answer) -> io::Result<()> {
    let draft = dir.join(format!(".{uid}.ready"));
    std::fs::write(&draft, answer.as_str())?;
    std::fs::rename(draft, dir.join(format!("{uid}.ready")))
}

/// Takes the answer back.
pub fn forget(dir: &Path, uid: &str) {
    // It may never have been given.
    let _ = std::fs::remove_file(dir.join(format!("{uid}.ready")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_broken_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "a.json",
            r#"{"uid":"a","namespace":"shop","name":"cart","serviceAccount":"cart",
                "netns":"/proc/1/ns/net","ips":["10.244.1.2"],"future":1}"#,
        );
        write("b.json", "{");
        write(".c.json", "{}");
        write(
            "d.json",
            r#"{"uid":"../d","namespace":"s","name":"n","netns":"/x"}"#,
        );
        write("a.ready", "plain");
        let (sandboxes, problems) = read_all(dir.path()).unwrap();
        assert_eq!(sandboxes.len(), 1);
        assert_eq!(sandboxes[0].service_account, "cart");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn the_answer_is_replaced_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("u.ready");
        for given in [Answer::Plain, Answer::Enrolled] {
            answer(dir.path(), "u", given).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), given.as_str());
        }
        forget(dir.path(), "u");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
