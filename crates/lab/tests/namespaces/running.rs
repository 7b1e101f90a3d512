//! A lab for one test, and what a test leaves on the host.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use isobar_lab::{Lab, LabConfig, LabRoot, LabStatus, Progress, Target};

pub(crate) fn own_path() -> Result<String> {
    Ok(std::env::current_exe()?.display().to_string())
}

/// A lab that is taken down with everything in it, whatever the test does.
pub(crate) struct Running {
    pub(crate) lab: Lab,
    pub(crate) root: LabRoot,
    _state: tempfile::TempDir,
    pub(crate) objects: tempfile::TempDir,
    pub(crate) status: LabStatus,
}

impl Running {
    pub(crate) async fn start(name: &str, files: &[(&str, &str)]) -> Result<Self> {
        let state = tempfile::tempdir()?;
        let objects = tempfile::tempdir()?;
        for (file, text) in files {
            std::fs::write(objects.path().join(file), text)?;
        }
        let root = LabRoot::at(state.path().join("lab"));
        let mut config = LabConfig::new(name, vec![objects.path().to_owned()])?;
        config.mesh = false;
        config.root = root.clone();
        config.ready_timeout = Duration::from_secs(20);
        let status = isobar_lab::up(config, |event| {
            if let Progress::Warning { text } = event {
                println!("warning: {text}");
            }
        })
        .await?;
        Ok(Self {
            lab: Lab::connect(&root, name)?,
            root,
            _state: state,
            objects,
            status,
        })
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        let draft = self.objects.path().join(format!(".{file}"));
        std::fs::write(&draft, text)?;
        std::fs::rename(draft, self.objects.path().join(file))?;
        Ok(())
    }

    pub(crate) fn remove(&self, file: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.objects.path().join(file))?)
    }

    pub(crate) async fn call(&self, from: &str, words: &[&str]) -> Result<String> {
        let program = own_path()?;
        let argv: Vec<&str> = std::iter::once(program.as_str())
            .chain(words.iter().copied())
            .collect();
        let output = self.lab.output(Target::pod(from), &argv).await?;
        ensure!(output.code == 0, "{words:?} from {from}: {}", output.stderr);
        Ok(output.stdout)
    }

    pub(crate) fn ip(&self, name: &str) -> Result<String> {
        let pod = self.status.pods.iter().find(|pod| pod.name == name);
        let ip = pod.and_then(|pod| pod.ip).context("no such pod")?;
        Ok(ip.to_string())
    }

    pub(crate) fn service(&self, name: &str) -> Result<String> {
        let service = self.status.services.iter().find(|s| s.name == name);
        let ip = service.and_then(|s| s.cluster_ip).context("no address")?;
        Ok(ip.to_string())
    }

    pub(crate) fn end(self) -> Result<()> {
        ensure!(
            isobar_lab::down(&self.root, self.lab.name())?,
            "it was there"
        );
        ensure!(!self.lab.paths().dir().exists(), "the state folder is left");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = isobar_lab::down(&self.root, self.lab.name()) {
            println!("taking the lab down: {error}");
        }
    }
}

/// Waits until `probe` says yes; the last no is the error.
pub(crate) async fn eventually<F: Future<Output = Result<()>>>(
    mut probe: impl FnMut() -> F,
) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        match probe().await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > limit => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

pub(crate) fn host_traces() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for line in std::fs::read_to_string("/proc/self/mounts")?.lines() {
        found.insert(format!("mount {line}"));
    }
    for entry in std::fs::read_dir("/sys/class/net")? {
        found.insert(format!("device {}", entry?.file_name().display()));
    }
    let own = own_path()?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let argv = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let argv = String::from_utf8_lossy(&argv).replace('\0', " ");
        if argv.contains(&own) && argv.contains("__lab-part") {
            found.insert(format!("process {argv}"));
        }
    }
    Ok(found)
}

pub(crate) fn descriptors() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}
