//! Where everything is made: one folder, of which nothing stays, however the test ends. A compiler's
//! files, layers and mounts of a run that was cut off are gigabytes that nobody looks for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::podman::{Podman, said};

/// What must be free, in bytes: a little more than a run takes at most.
const NEEDED: u64 = 10_000_000_000;
/// In the environment of all that is started to work in the folder, whose path it has.
pub(crate) const MARK: &str = "ISOBAR_IMAGES_WORK_IN";
/// Until what was killed has let go of its files.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// The folder. Dropped, it goes away with all that runs and is mounted in it.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    keep: bool,
    /// Locked until the folder is gone, so that no second run works in it.
    _lock: File,
}

impl Store {
    /// Makes the folder. What an earlier run left there, because it was killed, goes away first; not
    /// with `keep`, when all of it is used again.
    ///
    /// # Errors
    /// When another run has it, or too little of the disk is free.
    pub(crate) fn open(folder: &Path, keep: bool) -> Result<Self> {
        let store = Self::locked(folder, keep)?;
        let free = enough(free_bytes(store.folder())?, NEEDED);
        free.with_context(|| store.folder().display().to_string())?;
        Ok(store)
    }

    fn locked(folder: &Path, keep: bool) -> Result<Self> {
        let parent = folder.parent().context("a folder in another one")?;
        std::fs::create_dir_all(parent)?;
        let parent = std::fs::canonicalize(parent)?;
        let folder = parent.join(folder.file_name().context("a folder with a name")?);
        let lock = File::open(&parent)?;
        let free = lock.try_lock();
        free.with_context(|| format!("another run makes images in {}", parent.display()))?;
        let leave = if keep { end } else { clean };
        leave(&folder).with_context(|| folder.display().to_string())?;
        std::fs::create_dir_all(folder.join("tmp"))?;
        Ok(Self {
            folder,
            keep,
            _lock: lock,
        })
    }

    /// Where it is, without links.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let leave = if self.keep { end } else { clean };
        if let Err(error) = leave(&self.folder) {
            eprintln!("{} stays: {error:#}", self.folder.display());
        }
    }
}

fn enough(free: u64, needed: u64) -> Result<()> {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    ensure!(
        free >= needed,
        "{:.1} GB are free, and images take {:.0} GB until they are done: make room, \
         or let ISOBAR_IMAGES_KEEP=FOLDER name a folder on another disk",
        gigabytes(free),
        gigabytes(needed)
    );
    Ok(())
}

/// What is free on the disk of a folder.
fn free_bytes(folder: &Path) -> Result<u64> {
    let mut df = Command::new("df");
    let asked = df.args(["-B1", "--output=avail"]).arg(folder).output()?;
    let said = said("df", &asked)?;
    let number = said.split_whitespace().last().unwrap_or_default();
    number.parse().with_context(|| said.clone())
}

/// Takes a folder away with all that runs and is mounted in it.
fn clean(folder: &Path) -> Result<()> {
    let began = Instant::now();
    while folder.exists() {
        // Who was killed may still have written a file after the folder around it was read.
        let gone = end(folder).and_then(|()| {
            let mut rm = Command::new("rm");
            // It keeps out of what is mounted there, should that not be known here.
            rm.args(["-rf", "--one-file-system"]).arg(folder);
            said("rm", &rm.output()?)
        });
        if began.elapsed() > PATIENCE {
            gone?;
            bail!("it comes back");
        }
        if folder.exists() {
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Ends what runs in a folder, and takes off what is mounted there.
fn end(folder: &Path) -> Result<()> {
    kill(folder)?;
    if folder.join("store").is_dir() {
        // Containers have an overseer that is not known by its root. With a store that is half made it
        // may fail; what counts is that nothing is mounted there after it.
        let _ = Podman::at(folder).clear();
    }
    let mounted = mounted_in(&std::fs::read_to_string("/proc/self/mountinfo")?, folder);
    for path in mounted.iter().rev() {
        let mut umount = Command::new("umount");
        said("umount", &umount.arg("--lazy").arg(path).output()?)?;
    }
    Ok(())
}

/// Kills all whose root is in a folder, and all that were started to work in it.
fn kill(folder: &Path) -> Result<()> {
    let mark = format!("{MARK}={}", folder.display());
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(id) = name.and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let root = std::fs::read_link(path.join("root")).unwrap_or_default();
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        let mut words = environment.split(|byte| *byte == 0);
        if id != std::process::id()
            && (root.starts_with(folder) || words.any(|word| word == mark.as_bytes()))
        {
            let mut kill = Command::new("kill");
            let _ = kill.args(["-KILL", &id.to_string()]).output()?;
        }
    }
    Ok(())
}

/// What is mounted in a folder or on it, in the order in which it was.
fn mounted_in(info: &str, folder: &Path) -> Vec<PathBuf> {
    let points = info.lines().filter_map(|line| line.split(' ').nth(4));
    let paths = points.map(|point| PathBuf::from(point.replace("\\040", " ")));
    paths.filter(|path| path.starts_with(folder)).collect()
}

#[test]
fn too_little_room_is_told() {
    assert!(enough(10, 10).is_ok());
    let error = enough(1_500_000_000, NEEDED).unwrap_err().to_string();
    assert!(error.starts_with("1.5 GB are free"), "{error}");
    assert!(error.contains("ISOBAR_IMAGES_KEEP"), "{error}");
}

#[test]
fn nothing_stays_of_a_run_that_was_cut_off() -> Result<()> {
    let parent = tempfile::tempdir()?;
    let folder = std::fs::canonicalize(parent.path())?.join("images");
    // As a run leaves it that was killed: a mount in another one, and who works there.
    for inner in ["store", "store/a b", "tmp"] {
        std::fs::create_dir_all(folder.join(inner))?;
    }
    for inner in ["store", "store/a b"] {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "tmpfs"]).arg(folder.join(inner));
        said("mount (as root)", &mount.output()?)?;
        std::fs::create_dir_all(folder.join("store/a b"))?;
    }
    let mut works = Command::new("sleep");
    let mut works = works.arg("1000").env(MARK, &folder).spawn()?;
    let kept = Store::locked(&folder, true)?;
    let second = Store::locked(&folder, false).unwrap_err();
    assert!(format!("{second:#}").contains("another run"), "{second:#}");
    drop(kept);
    assert!(!works.wait()?.success());
    assert!(folder.join("tmp").is_dir());
    drop(Store::locked(&folder, false)?);
    assert!(!folder.exists());
    let mounted = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(mounted_in(&mounted, &folder).is_empty());
    Ok(())
}
