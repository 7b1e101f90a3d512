//! The plugin's place on the node: its program, and its entry in the network configuration that the
//! container runtime reads.
//!
//! The program is replaced in one step, and so is each configuration: a runtime that reads meanwhile
//! finds the old one or the new one. The program comes first and goes last. What another writer does
//! to either is seen and mended; what was not ours is left, or put back, as it was.

pub mod chain;
mod news;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use isobar_runtime::Lifetime;
use isobar_telemetry::Gate;
use serde_json::Value;

use crate::cni::PLUGIN;
use crate::cni::config::Settings;
use crate::faults::crash_point;
use crate::metrics::Metrics;
use chain::{ChainError, is_network, with_plugin, without_plugin};
use news::News;

/// Between two looks at the node's folders, should the system not tell of a change.
const LOOK: Duration = Duration::from_millis(250);
/// Endings of files that runtimes take for configurations.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// Ending of a single configuration that a list took the place of.
const SAVED: &str = "isobar-saved";

/// Whose configuration the plugin's entry goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Into the primary network's own.
    Chained,
    /// Into a copy of it that is read before it: the primary network's program may write its own
    /// as it likes, also while the agent is away.
    Owned,
}

/// What goes where.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The plugin's program, where this process has it.
    pub program: PathBuf,
    /// The runtime's folder of programs, usually `/opt/cni/bin`.
    pub programs: PathBuf,
    /// The runtime's folder of configurations, usually `/etc/cni/net.d`.
    pub configurations: PathBuf,
    /// Name of the primary network's file; the first that is a configuration if none.
    pub primary: Option<String>,
    /// Whose configuration.
    pub mode: Mode,
    /// Name of the own file, in the mode [`Mode::Owned`]; it must be the first in order, and is
    /// nobody else's.
    pub owned: String,
    /// What the plugin is told.
    pub settings: Settings,
}

/// Why the plugin is not in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There is no network yet that the plugin could be added to.
    #[error("{} has no network configuration yet", folder.display())]
    NoNetwork {
        /// The folder.
        folder: PathBuf,
    },
    /// The own file is not the one that the runtime reads.
    #[error(
        "{other} comes before {owned} and would be read in its place; name the own file so that it is the first, or choose the mode chained"
    )]
    NotFirst {
        /// The own file.
        owned: String,
        /// The one before it.
        other: String,
    },
    /// A configuration cannot be added to.
    #[error("{}: {error}", file.display())]
    Chain {
        /// The file.
        file: PathBuf,
        /// Why.
        error: ChainError,
    },
}

/// Puts the plugin where it belongs, and keeps it there.
#[derive(Debug)]
pub struct Installer {
    placement: Placement,
    /// The installed program as it was left.
    program: Option<(u64, i64, i64, u64)>,
    /// Between two looks.
    look: Duration,
}

impl Installer {
    /// Nothing is done yet.
    #[must_use]
    pub const fn new(placement: Placement) -> Self {
        Self {
            placement,
            program: None,
            look: LOOK,
        }
    }

    /// Makes program and configuration what they should be; tells what had to be written. Blocks.
    ///
    /// # Errors
    /// When something cannot be read or written, or there is no network yet.
    pub fn ensure(&mut self) -> Result<Vec<PathBuf>, InstallError> {
        let mut written = Vec::new();
        self.ensure_program(&mut written)?;
        match self.placement.mode {
            Mode::Chained => self.ensure_chained(&mut written)?,
            Mode::Owned => self.ensure_owned(&mut written)?,
        }
        Ok(written)
    }

    fn ensure_program(&mut self, written: &mut Vec<PathBuf>) -> Result<(), InstallError> {
        let to = self.placement.programs.join(PLUGIN);
        let state = |file: &Path| {
            let found = fs::metadata(file).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
        };
        if self.program.is_some() && state(&to) == self.program {
            return Ok(());
        }
        let ours = read(&self.placement.program)?;
        if fs::read(&to).ok().as_ref() != Some(&ours) {
            crash_point("before", "program");
            replace(&to, &ours, 0o755)?;
            crash_point("after", "program");
            written.push(to.clone());
        }
        self.program = state(&to);
        Ok(())
    }

    fn ensure_chained(&self, written: &mut Vec<PathBuf>) -> Result<(), InstallError> {
        let (owned, folder) = (&self.placement.owned, &self.placement.configurations);
        let copy = folder.join(owned);
        // An agent in the other mode left it: no network of its own, unless somebody says so.
        let is_copy = self.placement.primary.as_ref() != Some(owned) && copy.exists();
        let primary = match self.primary(is_copy.then_some(owned)) {
            // The primary network's program is being replaced: what was copied stays in force.
            Err(InstallError::NoNetwork { .. }) if is_copy => return Ok(()),
            other => other?,
        };
        self.chain(primary, written)?;
        if is_copy {
            // It is read first, and nobody would follow the primary network with it any more.
            unlink(&copy)?;
            tracing::info!(file = %copy.display(), "the copy of an agent in the mode owned is gone");
        }
        Ok(())
    }

    /// Puts the entry into a configuration, given by its name and text.
    fn chain(
        &self,
        (name, text): (String, String),
        written: &mut Vec<PathBuf>,
    ) -> Result<(), InstallError> {
        let file = self.placement.configurations.join(name);
        let chained = with_plugin(&text, &self.entry()).map_err(|error| InstallError::Chain {
            file: file.clone(),
            error,
        })?;
        let is_list = chained.was_list;
        let to = if is_list {
            file.clone()
        } else {
            file.with_extension("conflist")
        };
        if is_list && !chained.changed {
            return Ok(());
        }
        crash_point("before", "configuration");
        replace(&to, chained.text.as_bytes(), mode_of(&file))?;
        crash_point("after", "configuration");
        if !is_list {
            // The single one comes first in order, and would go on being read.
            rename(&file, &saved(&file))?;
            crash_point("after", "saving");
        }
        written.push(to);
        Ok(())
    }

    fn ensure_owned(&self, written: &mut Vec<PathBuf>) -> Result<(), InstallError> {
        let (owned, folder) = (&self.placement.owned, &self.placement.configurations);
        let file = folder.join(owned);
        let (name, text) = match self.primary(Some(owned)) {
            // The primary network's program is being replaced: what was copied stays in force.
            Err(InstallError::NoNetwork { .. }) if file.exists() => return Ok(()),
            other => other?,
        };
        if name < *owned {
            return Err(InstallError::NotFirst {
                owned: owned.clone(),
                other: name,
            });
        }
        let chained = with_plugin(&text, &self.entry()).map_err(|error| InstallError::Chain {
            file: folder.join(&name),
            error,
        })?;
        if fs::read_to_string(&file).ok().as_ref() == Some(&chained.text) {
            return Ok(());
        }
        crash_point("before", "configuration");
        replace(&file, chained.text.as_bytes(), mode_of(&folder.join(&name)))?;
        crash_point("after", "configuration");
        written.push(file);
        Ok(())
    }

    fn entry(&self) -> Value {
        let mut entry = serde_json::json!({ "type": PLUGIN });
        // Settings are a plain structure: they can be written.
        if let Ok(Value::Object(settings)) = serde_json::to_value(&self.placement.settings)
            && let Some(fields) = entry.as_object_mut()
        {
            fields.extend(settings);
        }
        entry
    }

    /// The primary network's file name and text.
    fn primary(&self, but: Option<&String>) -> Result<(String, String), InstallError> {
        let folder = &self.placement.configurations;
        let names = match &self.placement.primary {
            Some(name) => BTreeSet::from([name.clone()]),
            None => configurations(folder)?,
        };
        for name in names {
            if Some(&name) == but {
                continue;
            }
            // One that went meanwhile, or that is being written by others, is none.
            let Ok(text) = fs::read_to_string(folder.join(&name)) else {
                continue;
            };
            if is_network(&text) {
                return Ok((name, text));
            }
        }
        Err(InstallError::NoNetwork {
            folder: folder.clone(),
        })
    }

    /// Takes the plugin's entry out of every configuration, then the program away. What is gone
    /// already is no error. Blocks.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn remove(&mut self) -> Result<(), InstallError> {
        let folder = self.placement.configurations.clone();
        for name in configurations(&folder)? {
            let file = folder.join(&name);
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let Some(rest) = without_plugin(&text) else {
                continue;
            };
            let mut singles = ["conf", "json"]
                .map(|ending| file.with_extension(ending))
                .into_iter();
            if let Some(single) = singles.find(|single| saved(single).exists()) {
                rename(&saved(&single), &single)?;
                unlink(&file)?;
            } else if name == self.placement.owned {
                unlink(&file)?;
            } else {
                replace(&file, rest.as_bytes(), mode_of(&file))?;
            }
        }
        self.program = None;
        unlink(&self.placement.programs.join(PLUGIN))
    }

    /// Keeps the plugin in place until `life` ends. `installed` is passed once it is.
    pub async fn keep(mut self, installed: Gate, metrics: Metrics, life: Lifetime) {
        let (mut gate, mut problem, mut first) = (Some(installed), String::new(), true);
        // Before the first look: what changes after it is then heard of.
        let folders = [&self.placement.programs, &self.placement.configurations];
        let news = News::of(&folders.map(PathBuf::as_path));
        loop {
            let done = tokio::task::spawn_blocking(move || {
                let done = self.ensure();
                (self, done)
            });
            let Ok((back, done)) = done.await else { return };
            self = back;
            match done {
                Ok(written) => {
                    for file in &written {
                        let file = file.display();
                        if first {
                            tracing::info!(%file, "CNI plugin installed");
                        } else {
                            metrics.reinstalled();
                            tracing::warn!(%file, "somebody changed the CNI plugin's file; written again");
                        }
                    }
                    first = false;
                    problem.clear();
                    if let Some(gate) = gate.take() {
                        gate.pass();
                    }
                }
                Err(error) => {
                    let now = error.to_string();
                    if now != problem {
                        tracing::warn!(%error, "the CNI plugin is not in place");
                        problem = now;
                    }
                }
            }
            tokio::select! {
                () = life.draining() => return,
                () = news.heard() => {}
                () = tokio::time::sleep(self.look) => {}
            }
        }
    }
}

/// Names of the files that the runtime would read, in its order.
fn configurations(folder: &Path) -> Result<BTreeSet<String>, InstallError> {
    let entries = fs::read_dir(folder).map_err(at(folder))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(at(folder))?.file_name();
        let ending = Path::new(&name)
            .extension()
            .and_then(|ending| ending.to_str());
        if let Some(name) = name.to_str()
            && ending.is_some_and(|ending| ENDINGS.contains(&ending))
            && !name.starts_with('.')
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

fn saved(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(format!(".{SAVED}"));
    name.into()
}

fn mode_of(file: &Path) -> u32 {
    fs::metadata(file).map_or(0o600, |found| found.permissions().mode() & 0o777)
}

/// Writes beside the file, to the disk, and then over it.
fn replace(file: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or(PLUGIN);
    // Without an ending that a runtime takes for a configuration.
    let draft = file.with_file_name(format!(".{name}.{}.{PLUGIN}", std::process::id()));
    let write = || {
        let mut open = fs::File::create(&draft)?;
        open.write_all(content)?;
        open.set_permissions(fs::Permissions::from_mode(mode))?;
        open.sync_all()?;
        fs::rename(&draft, file)
    };
    write().map_err(|error| {
        // The draft may never have been made.
        let _ = fs::remove_file(&draft);
        at(file)(error)
    })
}

/// Removes drafts of earlier lives that ended in the middle of writing.
pub fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let old = SystemTime::now() - Duration::from_secs(60);
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_draft = name.starts_with('.') && name.ends_with(&format!(".{PLUGIN}"));
        let is_old = entry
            .metadata()
            .and_then(|found| found.modified())
            .is_ok_and(|at| at < old);
        if is_draft && is_old {
            // Nothing reads it; the next start tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, InstallError> {
    fs::read(file).map_err(at(file))
}

fn rename(from: &Path, to: &Path) -> Result<(), InstallError> {
    fs::rename(from, to).map_err(at(from))
}

fn unlink(file: &Path) -> Result<(), InstallError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(file)(error)),
        _ => Ok(()),
    }
}

fn at(file: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let file = file.to_owned();
    move |error| InstallError::File { file, error }
}

#[cfg(test)]
mod tests;
