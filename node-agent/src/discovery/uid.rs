//! Pod uids in what `/proc` says of a process.

/// Hexadecimal digits of a uid.
const DIGITS: usize = 32;

/// A uid as all its spellings have it: its hexadecimal digits, in lower case.
#[must_use]
pub fn key(uid: &str) -> String {
    let plain = uid.chars().filter(char::is_ascii_alphanumeric);
    plain.map(|c| c.to_ascii_lowercase()).collect()
}

/// The pod of a control group, as runtimes name them: `…pod1234abcd-….slice`, with dashes,
/// underscores or nothing between the groups of digits. The last in a line counts: a pod that runs
/// a kubelet has pods below its own group.
#[must_use]
pub fn uid_in_cgroup(cgroup: &str) -> Option<String> {
    cgroup.lines().find_map(|line| {
        // The path may hold colons too.
        let path = line.splitn(3, ':').nth(2)?;
        let starts = path
            .match_indices("pod")
            .map(|(at, word)| (at, at + word.len()));
        let uids = starts.filter_map(|(at, behind)| {
            let before = path[..at].chars().next_back();
            let is_word = before.is_none_or(|c| !c.is_ascii_alphanumeric());
            is_word.then(|| leading_uid(&path[behind..])).flatten()
        });
        uids.last()
    })
}

/// The one pod whose files are mounted for a process: `…/pods/UID/…`. The kubelet keeps them so on
/// every runtime. A process that sees files of several pods says nothing about itself.
#[must_use]
pub fn uid_in_mounts(mountinfo: &str) -> Option<String> {
    let mut only = None;
    for line in mountinfo.lines() {
        // Field 4 is the part of the file system that is mounted.
        let root = line.split(' ').nth(3).unwrap_or_default();
        for (at, word) in root.match_indices("/pods/") {
            let Some(uid) = leading_uid(&root[at + word.len()..]) else {
                continue;
            };
            if only.as_ref().is_some_and(|known| *known != uid) {
                return None;
            }
            only = Some(uid);
        }
    }
    only
}

/// A uid at the start of `text`, with nothing alphanumeric behind it.
fn leading_uid(text: &str) -> Option<String> {
    let mut digits = String::with_capacity(DIGITS);
    for c in text.chars() {
        if digits.len() == DIGITS {
            return (!c.is_ascii_alphanumeric()).then_some(digits);
        }
        match c {
            _ if c.is_ascii_hexdigit() => digits.push(c.to_ascii_lowercase()),
            // Groups of 8, 4, 4, 4 and 12.
            '-' | '_' if matches!(digits.len(), 8 | 12 | 16 | 20) => {}
            _ => return None,
        }
    }
    (digits.len() == DIGITS).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "27b0e5f1-9a3c-4c56-8d1e-0123456789ab";

    #[test]
    fn control_groups_of_every_runtime() {
        let underscored = UID.replace('-', "_");
        for path in [
            format!("0::/kubepods/burstable/pod{UID}/4f3e"),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underscored}.slice/cri-containerd-4f3e.scope"
            ),
            format!("12:memory:/kubepods.slice/kubepods-pod{underscored}.slice/crio-4f3e.scope"),
            format!("0::/../pod{UID}/4f3e"),
            format!("0::/kubelet/kubepods/pod{UID}"),
            format!(
                "0::/system.slice/containerd.service/kubepods-burstable-pod{underscored}.slice:cri-containerd:4f3e"
            ),
        ] {
            assert_eq!(uid_in_cgroup(&path), Some(key(UID)), "{path}");
        }
    }

    #[test]
    fn the_innermost_pod_counts_and_other_words_do_not() {
        let other = "ffffffff-ffff-ffff-ffff-ffffffffffff";
        let nested = format!("0::/kubepods/pod{other}/x/kubelet/kubepods/pod{UID}/y");
        assert_eq!(uid_in_cgroup(&nested), Some(key(UID)));
        for path in [
            "0::/".to_owned(),
            "0::/user.slice/podman-1234.scope".to_owned(),
            format!("0::/tripod{UID}"),
            format!("0::/kubepods/pod{UID}0"),
            "0::/kubepods/pod27b0e5f1-9a3c".to_owned(),
            "no colon".to_owned(),
        ] {
            assert_eq!(uid_in_cgroup(&path), None, "{path}");
        }
        // The kubelet's own files have hashes for uids.
        let hash = "0123456789abcdef0123456789abcdef";
        let found = uid_in_cgroup(&format!("0::/kubepods/pod{hash}/x"));
        assert_eq!(found.as_deref(), Some(hash));
    }

    #[test]
    fn mounts_tell_where_groups_do_not_unless_they_are_of_several_pods() {
        let line = |uid: &str| {
            format!(
                "700 690 8:1 /var/lib/kubelet/pods/{uid}/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw\n"
            )
        };
        let one = format!(
            "600 599 0:60 / / rw - overlay overlay rw\n{}{}",
            line(UID),
            line(UID)
        );
        assert_eq!(uid_in_mounts(&one), Some(key(UID)));
        let two = format!("{one}{}", line("ffffffff-ffff-ffff-ffff-ffffffffffff"));
        assert_eq!(uid_in_mounts(&two), None);
        assert_eq!(
            uid_in_mounts("600 599 0:60 / / rw - overlay overlay rw"),
            None
        );
    }
}
