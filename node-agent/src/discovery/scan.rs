use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use isobar_net::NetNs;

use super::uid::{uid_in_cgroup, uid_in_mounts};

/// A network namespace that processes of a pod stand in.
#[derive(Debug, Clone)]
pub struct Found {
    /// The pod's uid, as [`super::key`] writes it.
    pub uid: String,
    /// The namespace, held open: it stays when its processes end.
    pub netns: NetNs,
    /// Where it was found.
    pub path: PathBuf,
    /// When the process started, in ticks since the host did.
    started: u64,
}

#[cfg(test)]
impl Found {
    /// As if a process of the pod were there.
    pub(super) fn of(uid: &str, netns: NetNs) -> Self {
        Self {
            uid: super::key(uid),
            netns,
            path: "/proc/42/ns/net".into(),
            started: 0,
        }
    }
}

/// Every pair of a pod and a namespace other than the host's among the processes below `proc`. One
/// process stands for each pair, the oldest: that is the one that holds the namespace, not one that
/// joined it. Blocks.
///
/// # Errors
/// When `proc` cannot be read, or does not show the host's first process.
pub fn scan(proc: &Path) -> io::Result<Vec<Found>> {
    let host = identity(&proc.join("1/ns/net"))?;
    let mut best: BTreeMap<(String, (u64, u64)), (u64, PathBuf)> = BTreeMap::new();
    for entry in std::fs::read_dir(proc)? {
        let process = entry?.path();
        let is_process = process
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if !is_process {
            continue;
        }
        // A process that ends meanwhile is none.
        let Some((uid, netns, started)) = read(&process, host) else {
            continue;
        };
        let known = best.get(&(uid.clone(), netns));
        if known.is_none_or(|(oldest, _)| started < *oldest) {
            best.insert((uid, netns), (started, process.join("ns/net")));
        }
    }
    let mut found: Vec<Found> = best
        .into_iter()
        .filter_map(|((uid, seen), (started, path))| {
            let netns = NetNs::open(&path).ok()?;
            // The process may have ended, and its number may be another's by now.
            (netns.inode() == seen.1).then_some(Found {
                uid,
                netns,
                path,
                started,
            })
        })
        .collect();
    found.sort_by_key(|found| found.started);
    Ok(found)
}

fn read(process: &Path, host: (u64, u64)) -> Option<(String, (u64, u64), u64)> {
    let netns = identity(&process.join("ns/net")).ok()?;
    if netns == host {
        return None;
    }
    let text = |name: &str| std::fs::read_to_string(process.join(name)).ok();
    let uid = uid_in_cgroup(&text("cgroup")?).or_else(|| uid_in_mounts(&text("mountinfo")?))?;
    Some((uid, netns, started(&text("stat")?)?))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Field 22; the name in field 2 may hold anything, parentheses and blanks too.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_read_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 10";
        assert_eq!(started(stat), Some(4711));
        assert_eq!(started("7 (a"), None);
    }

    #[test]
    fn processes_of_the_node_and_such_that_ended_are_none() {
        let proc = tempfile::tempdir().unwrap();
        assert!(scan(proc.path()).is_err(), "it shows no first process");
        for (pid, is_whole) in [("1", true), ("7", true), ("8", false)] {
            let dir = proc.path().join(pid);
            std::fs::create_dir_all(dir.join("ns")).unwrap();
            if is_whole {
                std::os::unix::fs::symlink("/proc/self/ns/net", dir.join("ns/net")).unwrap();
            }
            let uid = "27b0e5f1-9a3c-4c56-8d1e-0123456789ab";
            std::fs::write(dir.join("cgroup"), format!("0::/pod{uid}/x\n")).unwrap();
        }
        std::fs::create_dir(proc.path().join("sys")).unwrap();
        assert!(scan(proc.path()).unwrap().is_empty());
    }
}
