use std::fs;
use std::path::Path;

use serde::Serialize;

/// Kernel clock ticks a second, as `/proc` counts CPU time (the value of every Linux build).
const TICKS: f64 = 100.0;

/// What the processes of one program have used.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Usage {
    /// CPU seconds, user and system, all processes together.
    pub(crate) cpu_seconds: f64,
    /// Resident memory in KiB of the largest process.
    pub(crate) rss_kib: u64,
}

impl Usage {
    fn add(&mut self, process: &Path) {
        self.cpu_seconds += fs::read_to_string(process.join("stat"))
            .ok()
            .and_then(|stat| cpu_ticks(&stat))
            .map_or(0.0, |ticks| ticks / TICKS);
        let rss = fs::read_to_string(process.join("status"))
            .ok()
            .and_then(|s| rss_kib(&s));
        self.rss_kib = self.rss_kib.max(rss.unwrap_or_default());
    }
}

/// Usage of the processes called `program` whose environment holds `mark`. Other labs may run on
/// the machine; the path of a lab's state folder tells its processes from theirs.
pub(crate) fn usage(program: &str, mark: &str) -> Usage {
    let named = |process: &Path| {
        fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim() == program)
    };
    sum(|process| named(process) && is_marked(process, mark))
}

/// Usage of the processes whose environment holds all of `marks`, whatever they are called.
pub(crate) fn usage_of_marked(marks: &[&str]) -> Usage {
    sum(|process| marks.iter().all(|mark| is_marked(process, mark)))
}

/// Usage of one process.
pub(crate) fn usage_of_process(id: u32) -> Usage {
    let mut usage = Usage::default();
    usage.add(&Path::new("/proc").join(id.to_string()));
    usage
}

fn sum(chosen: impl Fn(&Path) -> bool) -> Usage {
    let mut total = Usage::default();
    let Ok(entries) = fs::read_dir("/proc") else {
        return total;
    };
    for path in entries.flatten().map(|e| e.path()).filter(|p| chosen(p)) {
        total.add(&path);
    }
    total
}

fn is_marked(process: &Path, mark: &str) -> bool {
    // A process may end while it is looked at.
    let bytes = fs::read(process.join("environ")).unwrap_or_default();
    bytes
        .windows(mark.len())
        .any(|window| window == mark.as_bytes())
}

/// Fields 14 and 15 of `/proc/PID/stat`, counted after the parenthesised name.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_the_marked() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let path = std::env::var("PATH").unwrap();
        assert!(usage(own.trim(), &path).rss_kib > 0);
        assert!(usage_of_marked(&["PATH=", &path]).rss_kib > 0);
        assert_eq!(usage(own.trim(), "no such word").rss_kib, 0);
        assert!(usage_of_process(std::process::id()).rss_kib > 0);
        assert_eq!(usage_of_marked(&["PATH=", "no such word"]).rss_kib, 0);
    }

    #[test]
    fn reads_what_proc_says() {
        let stat = "7 (a b) S 1 1 1 0 -1 0 1 2 3 4 250 50 0 0 20";
        assert_eq!(cpu_ticks(stat), Some(300.0));
        assert_eq!(rss_kib("Name:\tx\nVmRSS:\t  5120 kB\n"), Some(5120));
    }
}
