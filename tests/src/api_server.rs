use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use isobar_kubernetes::Cluster;
use isobar_lab::ApiServerPlan;
use tempfile::TempDir;

use crate::traces::scratch;

/// Far more than a start takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Starts that may fail.
const TRIES: u32 = 3;
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(50);

/// A real API server with a store of its own, on loopback. Dropping it ends both and removes
/// everything.
#[derive(Debug)]
pub struct ApiServer {
    folder: Arc<TempDir>,
    plan: ApiServerPlan,
    cluster: Cluster,
    store: Option<Program>,
    server: Option<Program>,
}

/// A child that dies with us; dropping it ends it.
#[derive(Debug)]
pub struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program that is etcd, API server and kubectl: `ISOBAR_KUBE_TOOLS`, or what `make setup-kube`
/// built.
///
/// # Errors
/// When there is none.
pub fn kube_tools() -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kube/kube-tools");
    let path = std::env::var_os("ISOBAR_KUBE_TOOLS").map_or(built, PathBuf::from);
    ensure!(
        path.is_file(),
        "{} is not there: run `make setup-kube`",
        path.display()
    );
    Ok(path)
}

impl ApiServer {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When its program is not built or it does not become ready; the error holds its log's end.
    pub async fn start() -> Result<Self> {
        let mut failures = Vec::new();
        for _ in 0..TRIES {
            // Somebody else may take a port between our looking and its listening.
            match Self::once().await {
                Ok(server) => return Ok(server),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("{}", failures.join("\n"))
    }

    async fn once() -> Result<Self> {
        let folder = Arc::new(scratch()?);
        let [port, store, peers] = free()?;
        let plan = ApiServerPlan {
            tools: kube_tools()?,
            folder: folder.path().to_owned(),
            ip: Ipv4Addr::LOCALHOST.into(),
            port,
            store,
            peers,
        };
        plan.write_keys(&[plan.ip])?;
        let mut server = Self::over(folder, plan).await?;
        server.store = Some(server.run("etcd", &server.plan.store_argv())?);
        server.resume().await?;
        Ok(server)
    }

    /// Another API server over the same store, at another address.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub async fn second(&self) -> Result<Self> {
        let [port, ..] = free()?;
        let plan = ApiServerPlan {
            port,
            ..self.plan.clone()
        };
        let mut server = Self::over(Arc::clone(&self.folder), plan).await?;
        server.resume().await?;
        Ok(server)
    }

    async fn over(folder: Arc<TempDir>, plan: ApiServerPlan) -> Result<Self> {
        Ok(Self {
            cluster: Cluster::from_kubeconfig(&plan.admin()?).await?,
            folder,
            plan,
            store: None,
            server: None,
        })
    }

    /// Starts the API server itself, again after [`ApiServer::pause`].
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub async fn resume(&mut self) -> Result<()> {
        self.server = Some(self.run("apiserver", &self.plan.server_argv())?);
        let started = Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let Err(error) = self.cluster.client().request_text(request).await else {
                return Ok(());
            };
            let mut programs = self.server.iter_mut().chain(&mut self.store);
            let has_ended = programs.any(|one| !matches!(one.0.try_wait(), Ok(None)));
            if has_ended || started.elapsed() > PATIENCE {
                let log = self.log("apiserver");
                bail!("the API server is not ready (ended: {has_ended}): {error:#}\n{log}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the API server and leaves its store.
    pub fn pause(&mut self) {
        self.server = None;
    }

    /// As the user who may do everything.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        self.cluster.clone()
    }

    /// A kubeconfig with a bearer token.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        Ok(self.plan.kubeconfig(name, token)?)
    }

    /// The kubeconfig of the user who may do everything.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn admin(&self) -> Result<PathBuf> {
        Ok(self.plan.admin()?)
    }

    /// A folder for files of the test, removed with the server.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = tokio::process::Command::new(kube_tools()?)
            .arg("kubectl")
            .args(args)
            .env("KUBECONFIG", self.plan.admin()?)
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .output()
            .await?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            output.status.success(),
            "kubectl {}: {}\n{out}{err}",
            args.join(" "),
            output.status
        );
        Ok(out.into_owned())
    }

    /// Applies YAML text with kubectl.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let file = self.folder.path().join("apply.yaml");
        std::fs::write(&file, yaml)?;
        let file = file.to_string_lossy();
        self.kubectl(&["apply", "-f", &*file]).await.map(drop)
    }

    /// Nodes, and a kubelet for all of them: it takes who forwards a port of one of these pods
    /// (`NAMESPACE/NAME`) to the address beside it, whatever port is asked for.
    ///
    /// # Errors
    /// When it does not start or the server refuses the nodes.
    pub async fn kubelet(&self, nodes: &[&str], pods: &[(String, SocketAddr)]) -> Result<Program> {
        let places = pods.iter().map(|(pod, at)| (pod.clone(), at.to_string()));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let argv = self
            .plan
            .kubelet_argv(any, None, &places.collect::<Vec<_>>());
        let mut child = self.command("kubelet", &argv)?;
        let mut child = child.stdout(Stdio::piped()).spawn();
        let out = child.as_mut().map(|child| child.stdout.take());
        let out = out.ok().flatten().context("the kubelet's output")?;
        let program = Program(child?);
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let at = line.trim().strip_prefix("listening on ");
        let at = at.with_context(|| format!("{line}{}", self.log("kubelet")))?;
        let at: SocketAddr = at.parse()?;
        for node in nodes {
            let object = format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}");
            self.apply(&object).await?;
            let status = serde_json::json!({"status": {
                "addresses": [{"type": "InternalIP", "address": at.ip()}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": at.port()}},
            }});
            let status = ["--subresource=status", "-p", &status.to_string()].map(str::to_owned);
            let patch = ["patch", "node", node].into_iter();
            let patch: Vec<&str> = patch.chain(status.iter().map(String::as_str)).collect();
            self.kubectl(&patch).await?;
        }
        Ok(program)
    }

    /// Makes a namespace with its default account, which a controller would.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name]).await?;
        self.kubectl(&["create", "serviceaccount", "default", "-n", name])
            .await
            .map(drop)
    }

    /// The end of a program's log.
    #[must_use]
    pub fn log(&self, program: &str) -> String {
        let path = self.folder.path().join(format!("{program}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn run(&self, program: &str, argv: &[String]) -> Result<Program> {
        let child = self.command(program, argv)?.spawn();
        child
            .map(Program)
            .with_context(|| format!("starting {program}"))
    }

    /// A program that writes a log and ends with us.
    fn command(&self, program: &str, argv: &[String]) -> Result<Command> {
        let log = self.folder.path().join(format!("{program}.log"));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        // Without this a test that is killed leaves its servers running.
        let mut command = Command::new("setpriv");
        command
            .arg("--pdeathsig=KILL")
            .args(argv)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

/// Ports that nobody listens on now, all different.
fn free() -> Result<[u16; 3]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let held = [listen()?, listen()?, listen()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
