//! Podman with storage and settings of its own, so that commands are run as a page has them and nothing
//! of the machine's is touched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::store::MARK;

/// Until a program that was started answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two questions.
const LOOK: Duration = Duration::from_millis(100);

/// The program, and where it keeps its things.
#[derive(Debug)]
pub(crate) struct Podman {
    folder: PathBuf,
}

impl Podman {
    /// Keeps everything in `folder`, whose path has no links.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let own = folder.display();
        std::fs::write(
            folder.join("storage.conf"),
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{own}/store\"\nrunroot = \"{own}/run\"\n"
            ),
        )?;
        // Limits as low as any machine may set them; and the runtime that takes every kind of cgroups.
        let engine = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
                      [engine]\nevents_logger = \"none\"\nruntime = \"runc\"\n";
        std::fs::write(folder.join("containers.conf"), engine)?;
        let podman = Self::at(folder);
        let version = podman.command("podman").arg("--version").output();
        version.context("there is no podman: apt-get install podman runc debootstrap")?;
        Ok(podman)
    }

    /// As it was before in `folder`.
    pub(crate) fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Its folder, for what is made once.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes all containers away, running or not.
    pub(crate) fn clear(&self) -> Result<String> {
        // Said twice, as without its file podman would turn to the machine's own containers.
        let place = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let (store, run) = (place("store"), place("run"));
        let own = ["--root", &store, "--runroot", &run];
        self.ok(own
            .into_iter()
            .chain(["rm", "--all", "--force", "--time=0"]))
    }

    /// A program that works in the folder.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("CONTAINERS_STORAGE_CONF", self.folder.join("storage.conf"))
            .env("CONTAINERS_CONF", self.folder.join("containers.conf"))
            // What a build runs has the machine's network and name servers.
            .env("BUILDAH_ISOLATION", "chroot")
            // Gigabytes, for a while.
            .env("TMPDIR", self.folder.join("tmp"))
            .env(MARK, &self.folder)
            .stdin(Stdio::null());
        command
    }

    /// Runs podman; returns what it printed.
    pub(crate) fn ok<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let args: Vec<&str> = args.into_iter().collect();
        let output = self.command("podman").args(&args).output()?;
        said(&format!("podman {}", args.join(" ")), &output)
    }

    /// Types a line of a page into a shell; what it prints is in `build.log`.
    pub(crate) fn follow(&self, line: &str, folder: &Path) -> Result<()> {
        let path = self.folder.join("build.log");
        let log = std::fs::File::create(&path)?;
        let mut command = self.command("bash");
        command.args(["-c", line]).current_dir(folder);
        let status = command.stdout(log.try_clone()?).stderr(log).status()?;
        let text = std::fs::read_to_string(&path)?;
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(30)..].join("\n");
        ensure!(status.success(), "{line}: {status}\n{end}");
        Ok(())
    }

    /// Builds an image from a file, as [`Podman::follow`] does.
    pub(crate) fn build(&self, args: &[&str], context: &Path) -> Result<String> {
        let context = context.to_string_lossy();
        let all = ["build"].iter().chain(args).copied();
        self.ok(all.chain([&*context]))
    }

    /// True if there is an image of this name.
    pub(crate) fn has(&self, tag: &str) -> bool {
        self.ok(["image", "exists", tag]).is_ok()
    }

    /// All that is known of an image.
    pub(crate) fn inspect(&self, tag: &str) -> Result<Value> {
        let text = self.ok(["image", "inspect", tag])?;
        let mut all: Vec<Value> = serde_json::from_str(&text)?;
        all.pop().with_context(|| format!("nothing about {tag}"))
    }

    /// Does something with an image's root folder.
    fn mounted<T>(&self, tag: &str, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let folder = self.ok(["image", "mount", tag])?;
        let result = look(Path::new(folder.trim()));
        self.ok(["image", "umount", tag])?;
        result
    }

    /// The files of an image, without the first slash.
    pub(crate) fn files(&self, tag: &str) -> Result<BTreeSet<String>> {
        self.mounted(tag, |root| {
            let mut found = BTreeSet::new();
            let mut folders = vec![root.to_owned()];
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(folder)? {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        folders.push(entry.path());
                    } else {
                        let path = entry.path();
                        let path = path.strip_prefix(root)?.to_string_lossy();
                        found.insert(path.into_owned());
                    }
                }
            }
            Ok(found)
        })
    }

    /// A file of an image.
    pub(crate) fn read(&self, tag: &str, path: &str) -> Result<Vec<u8>> {
        self.mounted(tag, |root| Ok(std::fs::read(root.join(path))?))
    }

    /// Copies files of a folder of an image.
    pub(crate) fn copy(&self, tag: &str, from: &str, names: &[&str], to: &Path) -> Result<()> {
        self.mounted(tag, |root| {
            for name in names {
                std::fs::copy(root.join(from).join(name), to.join(name))?;
            }
            Ok(())
        })
    }

    /// What a container of no rights and no network has: a root that cannot be written to.
    const BARE: [&str; 4] = [
        "--network=none",
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
    ];

    /// Runs a container to its end; returns what it printed.
    pub(crate) fn run(&self, flags: &[&str], tag: &str, args: &[&str]) -> Result<String> {
        let begin = ["run", "--rm"].into_iter().chain(Self::BARE);
        let flags = begin.chain(flags.iter().copied()).chain([tag]);
        self.ok(flags.chain(args.iter().copied()))
    }

    /// Starts a container; returns its id.
    pub(crate) fn start(&self, flags: &[&str], tag: &str, args: &[&str]) -> Result<String> {
        let begin = ["run", "--detach"].into_iter().chain(Self::BARE);
        let flags = begin.chain(flags.iter().copied()).chain([tag]);
        let id = self.ok(flags.chain(args.iter().copied()))?;
        Ok(id.trim().to_owned())
    }

    /// Asks for a page from inside a container's network until it is answered well.
    pub(crate) fn ask(&self, id: &str, url: &str) -> Result<()> {
        let pid = self.ok(["inspect", "--format={{.State.Pid}}", id])?;
        let network = format!("--net=/proc/{}/ns/net", pid.trim());
        let began = Instant::now();
        loop {
            let mut curl = Command::new("nsenter");
            curl.args([&*network, "curl", "-sS", "--fail", "-o", "/dev/null", url]);
            let asked = said(url, &curl.output()?);
            if asked.is_ok() || began.elapsed() > PATIENCE {
                return asked.map(drop);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends a container and returns its log.
    pub(crate) fn end(&self, id: &str) -> String {
        let log = self.command("podman").args(["logs", id]).output();
        let log = log.map(|output| {
            let both = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&both).into_owned()
        });
        // It may have ended by itself.
        let _ = self.ok(["rm", "--force", "--time=0", id]);
        log.unwrap_or_default()
    }
}

/// What a command printed, if it ended well.
pub(crate) fn said(what: &str, output: &Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}
