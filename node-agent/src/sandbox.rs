//! What the container runtime says about the pods it has made network namespaces for.
//!
//! One JSON file a pod, `UID.json`, before the pod's workload starts and until it is gone. The
//! agent answers with `UID.ready` once the pod may start: nothing of it runs unprotected.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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

fn read(path: &Path) -> Result<Option<Sandbox>, String> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| error.to_string())?,
    };
    let sandbox: Sandbox = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    // The uid becomes part of file names.
    if sandbox.uid.is_empty() || sandbox.uid.starts_with('.') || sandbox.uid.contains('/') {
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
