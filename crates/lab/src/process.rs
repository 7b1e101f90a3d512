//! Processes as `/proc` shows them.

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// Start time of a process in clock ticks since boot; `None` if there is no such process, or only
/// what is left of it until its parent looks.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&text)
}

/// As [`start_time`], looked up below an open `/proc`, whatever is mounted over it by now.
pub(crate) fn start_time_in(processes: &std::fs::File, pid: i32) -> Option<u64> {
    let path = format!("{pid}/stat");
    let file = openat(
        processes,
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    let text = std::io::read_to_string(std::fs::File::from(file.ok()?)).ok()?;
    parse_start_time(&text)
}

/// True if a program is in `PATH`, or where administrators' programs usually are.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .any(|dir| std::path::Path::new(dir).join(program).is_file())
}

/// The name of the program, in parentheses, may hold blanks and parentheses itself.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 22 of the file; `state` was field 3.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_start_time_behind_an_odd_name() {
        let tail = "1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 9876 0 0";
        assert_eq!(
            parse_start_time(&format!("12 (a) b (c) S {tail}")),
            Some(9876)
        );
        assert_eq!(parse_start_time(&format!("12 (a) Z {tail}")), None);
        assert_eq!(parse_start_time("12"), None);
    }

    #[test]
    fn this_process_has_one() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some());
        let processes = std::fs::File::open("/proc").unwrap();
        assert_eq!(start_time_in(&processes, own), start_time(own));
    }
}
