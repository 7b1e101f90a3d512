use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use isobar_lab::{Lab, LabConfig, LabRoot, LabStatus, Launcher, Output, PodStatus, Target};
use tempfile::TempDir;

use crate::caller::Caller;
use crate::traces::{prefix, scratch};
use crate::wait::eventually;

static NEXT: AtomicU32 = AtomicU32::new(0);
/// The API server of meshes that do not name one, if there is to be one.
static API_SERVER: OnceLock<PathBuf> = OnceLock::new();

/// From now on the objects of every mesh of this process are in a real API server: `tools` is the
/// program that is etcd, kube-apiserver and kubectl.
pub fn over_api_server(tools: PathBuf) {
    // The first one stays; there is only one.
    let _ = API_SERVER.set(tools);
}

/// A mesh in a lab of its own. Dropping it ends the lab and removes everything.
#[derive(Debug)]
pub struct Mesh {
    name: String,
    root: LabRoot,
    objects: TempDir,
    lab: Lab,
    /// Program of the API server that holds the objects, if it is not a folder.
    api_server: Option<PathBuf>,
    keep: bool,
}

/// How a mesh is started.
#[derive(Debug, Default, Clone)]
pub struct MeshOptions {
    /// Name of the lab; one that no other test uses if none is given.
    pub name: Option<String>,
    /// Folder whose files (not its subfolders) are the first objects.
    pub sample: Option<PathBuf>,
    /// Programs from elsewhere, by component (`ztunnel-node-2`) or program name.
    pub programs: BTreeMap<String, PathBuf>,
    /// Further environment of one program, by program name.
    pub program_env: BTreeMap<String, BTreeMap<String, String>>,
    /// Number of nodes; what a lab has by itself if none is given.
    pub nodes: Option<u8>,
    /// Further arguments by program name.
    pub program_args: BTreeMap<String, Vec<String>>,
    /// Nodes and pods have IPv6 addresses too.
    pub dual_stack: bool,
    /// Program that is etcd, kube-apiserver and kubectl: the objects are in a real API server then,
    /// and applied and deleted with kubectl.
    pub api_server: Option<PathBuf>,
}

/// Folder of the programs under test: where cargo puts them beside this one.
///
/// # Errors
/// When they are not built.
pub fn binaries() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder = here
        .ancestors()
        .find(|dir| dir.join("isobar").is_file() && dir.join("isobard").is_file())
        .context("the programs are not built: run `make build`")?;
    Ok(folder.to_owned())
}

/// The project's samples.
#[must_use]
pub fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/samples")
}

impl Mesh {
    /// Starts a mesh over the given files (name, YAML text) and waits until all of it is ready.
    ///
    /// # Errors
    /// When the lab does not become ready; the error holds the reason and the log's tail.
    pub async fn start(files: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(MeshOptions::default(), files).await
    }

    /// As [`Mesh::start`], with options.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub async fn start_with(options: MeshOptions, files: &[(&str, &str)]) -> Result<Self> {
        let objects = scratch()?;
        if let Some(sample) = &options.sample {
            for entry in std::fs::read_dir(sample)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    std::fs::copy(entry.path(), objects.path().join(entry.file_name()))?;
                }
            }
        }
        for (file, text) in files {
            std::fs::write(objects.path().join(file), text)?;
        }
        let name = options.name.clone().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            format!("{}{number}", prefix())
        });
        let folder = binaries()?;
        let mut config = LabConfig::new(&*name, vec![objects.path().to_owned()])?;
        config.launcher = Launcher {
            program: folder.join("isobar"),
        };
        config.binaries = Some(folder);
        config.programs = options.programs;
        config.program_env = options.program_env;
        config.program_args = options.program_args;
        config.dual_stack = options.dual_stack;
        config.nodes = options.nodes.unwrap_or(config.nodes);
        let api_server = options.api_server.or_else(|| API_SERVER.get().cloned());
        config.api_server.clone_from(&api_server);
        let root = config.root.clone();
        isobar_lab::up(config, |_| {})
            .await
            .with_context(|| format!("starting lab {name}"))?;
        let lab = Lab::connect(&root, &name)?;
        let mesh = Self {
            name,
            root,
            objects,
            lab,
            api_server,
            keep: false,
        };
        if mesh.api_server.is_some() {
            mesh.define().await?;
            // Files come in the order of their names, and a namespace has no account at first.
            let folder = mesh.objects().to_string_lossy();
            eventually("every object is applied", async || {
                mesh.kubectl(&["apply", "-f", &folder])
            })
            .await?;
        }
        Ok(mesh)
    }

    /// Applies the definitions of the mesh's kinds and waits until the server has them.
    async fn define(&self) -> Result<()> {
        let definitions = samples().join("../charts/crds/files");
        let definitions = definitions.to_string_lossy();
        self.kubectl(&["apply", "-f", &definitions])?;
        // It gives up at once on one that has no conditions at all, as in its first moment.
        let wait = ["wait", "--for=condition=Established", "-f", &definitions];
        eventually("definitions are served", async || {
            self.kubectl(&wait).map(drop)
        })
        .await
    }

    /// True if the objects are in a real API server.
    #[must_use]
    pub fn has_api_server(&self) -> bool {
        self.api_server.is_some()
    }

    /// Runs kubectl in the lab's network and returns what it printed.
    ///
    /// # Errors
    /// When the lab has no API server, or kubectl fails; the error holds what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let tools = self.api_server.as_ref().context("no API server")?;
        let folder = self.lab.paths().kubernetes();
        let output = std::process::Command::new(binaries()?.join("isobar"))
            .args(["lab", "exec", "outer", "--"])
            .arg(tools)
            .arg("kubectl")
            .arg("--kubeconfig")
            .arg(folder.join("admin-6443.kubeconfig"))
            .arg("--cache-dir")
            .arg(folder.join("cache"))
            .args(args)
            .env("ISOBAR_LAB", &self.name)
            .stdin(std::process::Stdio::null())
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        ensure!(
            output.status.success(),
            "kubectl {}: {}\n{out}{err}",
            args.join(" "),
            output.status
        );
        Ok(out)
    }

    /// Leaves the lab up when this value is dropped; returns the folder of its objects.
    #[must_use]
    pub fn keep(mut self) -> PathBuf {
        self.keep = true;
        let placeholder = self.objects.path().to_owned();
        // The folder is the lab's API from now on, so it must outlive this value.
        match scratch() {
            Ok(empty) => std::mem::replace(&mut self.objects, empty).keep(),
            Err(_) => placeholder,
        }
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of the lab's objects.
    #[must_use]
    pub fn objects(&self) -> &Path {
        self.objects.path()
    }

    /// Writes an object file the way careful programs do: beside, then renamed. `kubectl apply`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        let temporary = self.objects.path().join(format!(".{file}.new"));
        std::fs::write(&temporary, text)?;
        let path = self.objects.path().join(file);
        std::fs::rename(temporary, &path)?;
        if self.api_server.is_some() {
            self.kubectl(&["apply", "-f", &path.to_string_lossy()])?;
        }
        Ok(())
    }

    /// Copies a file into the objects. `kubectl apply`.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn apply_file(&self, from: &Path, file: &str) -> Result<()> {
        let text = std::fs::read_to_string(from).with_context(|| format!("{}", from.display()))?;
        self.apply(file, &text)
    }

    /// Removes an object file. `kubectl delete`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&self, file: &str) -> Result<()> {
        let path = self.objects.path().join(file);
        if self.api_server.is_some() {
            self.kubectl(&["delete", "-f", &path.to_string_lossy()])?;
        }
        Ok(std::fs::remove_file(path)?)
    }

    /// The lab's state.
    ///
    /// # Errors
    /// When the supervisor does not answer.
    pub async fn status(&self) -> Result<LabStatus> {
        Ok(self.lab.status().await?)
    }

    /// A pod by `namespace/name`, or by `namespace/deployment` (its first pod).
    ///
    /// # Errors
    /// When there is none.
    pub async fn pod(&self, pod: &str) -> Result<PodStatus> {
        let (namespace, name) = pod.split_once('/').context("write namespace/name")?;
        self.status()
            .await?
            .pods
            .into_iter()
            .find(|p| {
                p.namespace == namespace
                    && (p.name == name || p.name.starts_with(&format!("{name}-")))
            })
            .ok_or_else(|| anyhow!("no pod {pod}"))
    }

    /// Address of a pod.
    ///
    /// # Errors
    /// When there is no such pod or it has no address yet.
    pub async fn pod_ip(&self, pod: &str) -> Result<IpAddr> {
        self.pod(pod)
            .await?
            .ip
            .with_context(|| format!("{pod} has no address"))
    }

    /// Address of a Service by `namespace/name`.
    ///
    /// # Errors
    /// When there is none or it has no address.
    pub async fn service_ip(&self, service: &str) -> Result<IpAddr> {
        let (namespace, name) = service.split_once('/').context("write namespace/name")?;
        self.status()
            .await?
            .services
            .into_iter()
            .find(|s| s.namespace == namespace && s.name == name)
            .and_then(|s| s.cluster_ip)
            .with_context(|| format!("service {service} has no address"))
    }

    /// Waits until a pod is ready and is enrolled, or not, as asked.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub async fn settled(&self, pod: &str, mesh: &str) -> Result<()> {
        eventually(&format!("{pod} is ready and {mesh}"), async || {
            let status = self.pod(pod).await?;
            ensure!(status.ready && status.mesh == mesh, "{status:?}");
            Ok(())
        })
        .await
    }

    /// Waits until twenty calls in a row, on a connection each, are answered with 200: what was
    /// just started is known to every proxy then.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub async fn answers(
        &self,
        caller: &Caller,
        to: SocketAddr,
        host: &str,
        path: &str,
    ) -> Result<()> {
        eventually(&format!("{host} at {to} answers"), async || {
            for _ in 0..20 {
                let reply = caller.request(to, "GET", host, path, &[]).await?;
                ensure!(reply.status == 200, "{reply:?}");
            }
            Ok(())
        })
        .await
    }

    /// A caller whose sockets are those of an application inside the pod.
    ///
    /// # Errors
    /// When there is no such pod.
    pub async fn caller(&self, pod: &str) -> Result<Caller> {
        let pod = self.pod(pod).await?;
        let target = Target::pod(format!("{}/{}", pod.namespace, pod.name));
        Caller::inside(self.lab.netns(target).await?)
    }

    /// Runs a command in a pod.
    ///
    /// # Errors
    /// When it cannot be run; its own failure is in the output.
    pub async fn exec(&self, pod: &str, argv: &[&str]) -> Result<Output> {
        Ok(self.lab.output(Target::pod(pod), argv).await?)
    }

    /// Runs the `isobar` command against this lab and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub async fn isobar(&self, args: &[&str]) -> Result<String> {
        let output = self.isobar_output(args).await?;
        if !output.status.success() {
            bail!(
                "isobar {}: {}\n{}{}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs the `isobar` command against this lab, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn isobar_output(&self, args: &[&str]) -> Result<std::process::Output> {
        Ok(tokio::process::Command::new(binaries()?.join("isobar"))
            .args(args)
            .env("ISOBAR_LAB", &self.name)
            .stdin(std::process::Stdio::null())
            .output()
            .await?)
    }

    /// The text of a log so far: of a pod (`namespace/name`) or a component.
    ///
    /// # Errors
    /// When there is none.
    pub async fn log(&self, of: &str) -> Result<String> {
        let path = self.lab.log_path(of).await?;
        Ok(std::fs::read_to_string(path)?)
    }

    /// GET from the loopback or own address of a node, the network, or a pod: for admin pages.
    ///
    /// # Errors
    /// When the page does not answer with 200.
    pub async fn page(&self, at: Target, port: u16, path: &str) -> Result<String> {
        let address = match at {
            Target::Outer => IpAddr::from([172, 30, 0, 1]),
            Target::Pod(_) | Target::Node(_) => IpAddr::from([127, 0, 0, 1]),
        };
        let caller = Caller::inside(self.lab.netns(at).await?)?;
        let reply = caller.get((address, port).into(), path).await?;
        ensure!(
            reply.status == 200,
            "{path}: {} {}",
            reply.status,
            reply.body
        );
        Ok(reply.body)
    }

    /// Ends the lab now and tells whether that went well.
    ///
    /// # Errors
    /// When something of it could not be removed.
    pub fn down(self) -> Result<()> {
        ensure!(
            isobar_lab::down(&self.root, &self.name)?,
            "lab {} was not there",
            self.name
        );
        Ok(())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::thread::panicking() || std::env::var_os("ISOBAR_TEST_LOGS").is_some() {
            save_logs(self.lab.paths().dir(), &self.name);
        }
        if let Err(error) = isobar_lab::down(&self.root, &self.name) {
            eprintln!("lab {}: {:#}", self.name, anyhow::Error::from(error));
        }
    }
}

/// Keeps the logs of a failed test where a person can read them.
fn save_logs(lab: &Path, name: &str) {
    let Ok(folder) = binaries().map(|b| b.join("test-logs").join(name)) else {
        return;
    };
    let _ = std::fs::create_dir_all(&folder);
    if let Ok(entries) = std::fs::read_dir(lab.join("logs")) {
        for entry in entries.flatten() {
            let _ = std::fs::copy(entry.path(), folder.join(entry.file_name()));
        }
    }
    eprintln!("logs of lab {name}: {}", folder.display());
}
