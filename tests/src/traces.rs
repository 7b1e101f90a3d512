use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Prefix of everything this process makes: labs, and folders of temporary files. Another run of
/// the tests on the same machine has another one.
#[must_use]
pub fn prefix() -> String {
    format!("isobar-test-{}-", std::process::id())
}

/// A folder for temporary files that [`Traces`] would notice if it stayed.
///
/// # Errors
/// When it cannot be made.
pub fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(&prefix())
        .tempdir()
        .context("making a folder for temporary files")
}

/// What this process and its labs have on the machine: equal before and after a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Processes that name one of our labs in their arguments or environment. All others of a lab
    /// live in its PID namespace and cannot outlive the first of these.
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    /// Named network namespaces.
    namespaces: BTreeSet<String>,
    links: String,
    rules: String,
    sockets: BTreeSet<String>,
    files: BTreeSet<String>,
    /// Open descriptors of this process.
    descriptors: usize,
}

impl Traces {
    /// Looks at the machine as it is now.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn now() -> Result<Self> {
        let ours = prefix();
        Ok(Self {
            processes: processes(&ours)?,
            mounts: lines("/proc/self/mounts", &ours)?,
            namespaces: entries(Path::new("/run/netns"), ""),
            links: output("ip", &["-o", "link"])?,
            rules: output("nft", &["list", "ruleset"])?,
            sockets: lines("/proc/net/unix", &ours)?,
            files: [
                std::env::temp_dir(),
                isobar_lab::LabRoot::from_env().path().to_owned(),
            ]
            .iter()
            .flat_map(|folder| entries(folder, &ours))
            .collect(),
            descriptors: entries(Path::new("/proc/self/fd"), "").len(),
        })
    }

    /// Compares with what was there before.
    ///
    /// # Errors
    /// With both, when they differ.
    pub fn same_as(&self, before: &Self) -> Result<()> {
        ensure!(self == before, "before: {before:#?}\nafter: {self:#?}");
        Ok(())
    }
}

fn processes(needle: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // A process may end while it is looked at.
        let text = |file: &str| std::fs::read(path.join(file)).unwrap_or_default();
        let all = [text("cmdline"), text("environ")].concat();
        let all = String::from_utf8_lossy(&all).replace('\0', " ");
        if all.contains(needle) {
            found.insert(format!("{pid} {all}"));
        }
    }
    Ok(found)
}

fn lines(file: &str, needle: &str) -> Result<BTreeSet<String>> {
    let text = std::fs::read(file).with_context(|| file.to_owned())?;
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .filter(|line| line.contains(needle))
        .map(ToOwned::to_owned)
        .collect())
}

fn entries(folder: &Path, prefix: &str) -> BTreeSet<String> {
    // A folder that is not there holds nothing.
    std::fs::read_dir(folder)
        .map(|entries| {
            entries
                .flatten()
                .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
                .map(|e| e.path().display().to_string())
                .collect()
        })
        .unwrap_or_default()
}

/// What a program prints, also when it fails: without root some of them do, before and after alike.
fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = std::process::Command::new(program)
        .args(args)
        .output()
        .with_context(|| program.to_owned())?;
    let all = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&all).into_owned())
}
