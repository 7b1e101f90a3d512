use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::{Exec, Target};
use isobar_runtime::Scope;
use isobar_tests::{Mesh, MeshOptions, eventually};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;

use super::Contender;
use crate::client::{Kind, Measured};
use crate::cost::{Usage, usage_of_marked};

/// Environment variable that marks what is measured.
pub(super) const MARK: &str = "ISOBAR_BENCH";
/// For a helper process to say that it is ready.
const START: Duration = Duration::from_secs(120);

/// Which pair of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// On two nodes.
    Across,
    /// On one node.
    SameNode,
}

/// One lab with one kind of node proxy.
pub(super) struct Rig {
    pub(super) contender: Contender,
    mesh: Mesh,
    authority: TempDir,
}

/// CPU and memory of both ends.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BothEnds {
    pub(super) near: Usage,
    pub(super) far: Usage,
}

fn objects(program: &str) -> String {
    let mut documents = Vec::new();
    for (namespace, labels) in [
        ("bench-plain", ""),
        (
            "bench-mesh",
            "  labels:\n    istio.io/dataplane-mode: ambient\n",
        ),
    ] {
        documents.push(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n{labels}"
        ));
        for (pod, node, command) in [
            ("client", "node-1", "sleep infinity".to_owned()),
            ("near", "node-1", format!("{program} server --port 8080")),
            ("far", "node-2", format!("{program} server --port 8080")),
        ] {
            documents.push(format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {pod}\n  namespace: {namespace}\n  labels:\n    app: {pod}\n  annotations:\n    lab.isobar.dev/command: {command}\nspec:\n  nodeName: {node}\n  containers:\n  - name: main\n    image: local\n"
            ));
            documents.push(format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {pod}\n  namespace: {namespace}\nspec:\n  selector:\n    app: {pod}\n  ports:\n  - name: tcp-http\n    port: 8080\n  - name: tcp-sink\n    port: 8081\n"
            ));
        }
    }
    documents.join("---\n")
}

pub(super) fn own_path() -> Result<String> {
    let path = std::env::current_exe()?;
    let path = path.to_str().context("this program's path is not text")?;
    Ok(path.to_owned())
}

impl Rig {
    /// Starts a lab whose node proxies are `program`, or ours, with `env` on top, and waits until
    /// its traffic takes the way it should.
    pub(super) async fn start(
        contender: Contender,
        program: Option<&Path>,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        eprintln!("starting a lab: {}", contender.name());
        let mut own: BTreeMap<String, String> = env
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        own.insert(MARK.to_owned(), contender.name().to_owned());
        let options = MeshOptions {
            programs: program
                .map(|path| ("ztunnel".to_owned(), path.to_owned()))
                .into_iter()
                .collect(),
            program_env: [("ztunnel".to_owned(), own)].into(),
            ..MeshOptions::default()
        };
        let objects = objects(&own_path()?);
        let mesh = Mesh::start_with(options, &[("bench.yaml", &objects)]).await?;
        for pod in ["client", "near", "far"] {
            mesh.settled(&format!("bench-mesh/{pod}"), "enrolled")
                .await?;
            mesh.settled(&format!("bench-plain/{pod}"), "plain").await?;
        }
        let rig = Self {
            contender,
            mesh,
            authority: isobar_tests::scratch()?,
        };
        rig.open().await?;
        Ok(rig)
    }

    /// Ends the node proxies as their operator would, since one that was built to tell how often it ran
    /// each of its functions (`make profile`) writes that as it ends; then the lab.
    pub(super) async fn down(self) -> Result<()> {
        for node in ["node-1", "node-2"] {
            let component = format!("ztunnel-{node}");
            self.mesh.lab().stop_component(&component).await?;
        }
        self.mesh.down()
    }

    pub(super) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Folder of an authority for what runs beside the mesh.
    pub(super) fn authority(&self) -> &Path {
        self.authority.path()
    }

    /// Waits until every pod answers through the mesh.
    async fn open(&self) -> Result<()> {
        let caller = self.mesh.caller("bench-mesh/client").await?;
        for place in [Where::SameNode, Where::Across] {
            let to = self.service(Contender::Ours, place, 8080).await?;
            eventually("the way is open", async || {
                let reply = caller.get(to, "/").await?;
                ensure!(reply.status == 200, "{reply:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn service(&self, contender: Contender, place: Where, port: u16) -> Result<SocketAddr> {
        let namespace = match contender {
            Contender::NoMesh | Contender::Floor => "bench-plain",
            Contender::Ours | Contender::ShortCut | Contender::Peer => "bench-mesh",
        };
        let pod = match place {
            Where::SameNode => "near",
            Where::Across => "far",
        };
        let ip = self.mesh.service_ip(&format!("{namespace}/{pod}")).await?;
        Ok((ip, port).into())
    }

    /// Starts the pairs of relays that are the floor.
    pub(super) async fn start_floor(&self) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        let program = own_path()?;
        let far = self.mesh.pod_ip("bench-plain/far").await?;
        let authority = self.authority().to_string_lossy().into_owned();
        for (http, relay) in [(8080_u16, 9080_u16), (8081, 9081)] {
            let far_listen = format!("0.0.0.0:{relay}");
            let near_to = format!("{far}:{relay}");
            let near_listen = format!("127.0.0.1:{relay}");
            let far_to = format!("127.0.0.1:{http}");
            let sides = [
                ("far", "bench-plain/far", far_listen, far_to),
                ("near", "bench-plain/client", near_listen, near_to),
            ];
            for (side, pod, listen, to) in sides {
                let mut argv = vec![
                    &*program,
                    "floor",
                    "--listen",
                    &listen,
                    "--to",
                    &to,
                    "--authority",
                    &authority,
                ];
                if side == "far" {
                    argv.push("--far");
                }
                let mark = format!("floor-{side}");
                running.push(self.start_process(pod, &argv, &[(MARK, &mark)]).await?);
            }
        }
        Ok(running)
    }

    /// Starts a process in a pod and waits until it has written a line.
    pub(super) async fn start_process(
        &self,
        pod: &str,
        argv: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Running> {
        let (read, write) = std::io::pipe()?;
        let exec = Exec {
            target: Target::pod(pod),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: env
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            stdio: [
                std::fs::File::open("/dev/null")?.into(),
                write.into(),
                std::io::stderr().as_fd().try_clone_to_owned()?,
            ],
        };
        let (lab, life) = (self.mesh.lab().clone(), Scope::new("process"));
        life.spawn("process", async move {
            // Killed at the end, which is no failure.
            let _ = lab.exec(exec).await;
        });
        let mut lines = BufReader::new(pipe::Receiver::from_owned_fd(read.into())?);
        let mut line = String::new();
        tokio::time::timeout(START, lines.read_line(&mut line))
            .await
            .with_context(|| format!("{} did not start", argv.join(" ")))??;
        ensure!(!line.is_empty(), "{} has ended", argv.join(" "));
        Ok(Running {
            _life: life,
            _output: lines,
        })
    }

    /// What the proxies, or relays, of `contender` have used so far.
    pub(super) fn used(&self, contender: Contender) -> BothEnds {
        let lab = self.mesh.lab().paths().dir().to_string_lossy().into_owned();
        let node = |name: &str| usage_of_marked(&[MARK, &lab, &format!("NODE_NAME={name}")]);
        match contender {
            Contender::NoMesh => BothEnds::default(),
            Contender::Floor => BothEnds {
                near: usage_of_marked(&[&format!("{MARK}=floor-near")]),
                far: usage_of_marked(&[&format!("{MARK}=floor-far")]),
            },
            Contender::Ours | Contender::ShortCut | Contender::Peer => BothEnds {
                near: node("node-1"),
                far: node("node-2"),
            },
        }
    }

    /// Runs one load and says what it measured and cost.
    pub(super) async fn load(
        &self,
        contender: Contender,
        place: Where,
        load: &ClientLoad,
    ) -> Result<(Measured, BothEnds, BothEnds)> {
        let port = if load.kind == Kind::Bulk { 8081 } else { 8080 };
        let (namespace, to) = match contender {
            Contender::Floor => (
                "bench-plain",
                SocketAddr::from(([127, 0, 0, 1], port + 1000)),
            ),
            Contender::NoMesh => ("bench-plain", self.service(contender, place, port).await?),
            Contender::Ours | Contender::ShortCut | Contender::Peer => {
                ("bench-mesh", self.service(contender, place, port).await?)
            }
        };
        let argv = load.argv(to)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let before = self.used(contender);
        let pod = Target::pod(format!("{namespace}/client"));
        let output = self.mesh.lab().output(pod, &argv).await?;
        let after = self.used(contender);
        ensure!(output.code == 0, "{}: {}", contender.name(), output.stderr);
        Ok((serde_json::from_str(output.stdout.trim())?, before, after))
    }

    /// Address of the server on the other node, through the mesh.
    pub(super) async fn far(&self) -> Result<SocketAddr> {
        self.service(Contender::Ours, Where::Across, 8080).await
    }
}

/// A process in a pod; killed when dropped.
pub(super) struct Running {
    _life: Scope,
    /// Open, so that it may go on writing.
    _output: BufReader<pipe::Receiver>,
}

/// What the load generator is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientLoad {
    pub(super) kind: Kind,
    pub(super) connections: usize,
    pub(super) seconds: u64,
    pub(super) rate: u32,
}

impl ClientLoad {
    pub(super) fn argv(&self, to: SocketAddr) -> Result<Vec<String>> {
        let words = [
            ("--kind", self.kind.name().to_owned()),
            ("--to", to.to_string()),
            ("--connections", self.connections.to_string()),
            ("--seconds", self.seconds.to_string()),
            ("--rate", self.rate.to_string()),
        ];
        let mut argv = vec![own_path()?, "client".to_owned()];
        for (flag, value) in words {
            argv.extend([flag.to_owned(), value]);
        }
        Ok(argv)
    }
}
