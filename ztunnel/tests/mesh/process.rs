//! Real ztunnel processes, each in a network namespace of its own, with a certificate authority
//! and a mesh told locally.

use std::io::{BufRead as _, BufReader};
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use isobar_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use isobar_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_tls::{ServerStream, control};
use isobar_types::Identity;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, Server};
use tonic::{Request, Response, Status};

use crate::agent::Agent;
use crate::http;
use crate::rig::{LIMIT, Place, VIP, network};

const AUTHORITY: &str = "10.0.0.1:15012";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A node of two pods whose proxies are real processes.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) client: Place,
    pub(crate) server: Place,
    pub(crate) outsider: Place,
    pub(crate) authority: Arc<Authority>,
    /// Its key and certificate.
    pub(crate) ca: TempDir,
    pub(crate) apps: Scope,
}

/// A running ztunnel.
pub(crate) struct Process {
    child: Child,
    pub(crate) place: Place,
    lines: Arc<Mutex<Vec<String>>>,
    /// Ends once everything the process wrote is in `lines`.
    reader: std::thread::JoinHandle<()>,
}

impl Node {
    pub(crate) async fn new() -> Self {
        network();
        let ca = tempfile::tempdir().unwrap();
        let node = Self {
            agent: Agent::new(),
            client: Place::new("client", "10.0.0.2"),
            server: Place::new("server", "10.0.0.3"),
            outsider: Place::new("outsider", "10.0.0.4"),
            authority: Arc::new(Authority::load_or_create(ca.path()).unwrap()),
            ca,
            apps: Scope::new("apps"),
        };
        node.server.echo(&node.apps, 8080);
        for pod in [&node.client, &node.server] {
            pod.redirect();
        }
        serve_authority(&node.apps, node.authority.clone()).await;
        node
    }

    /// Starts a ztunnel that knows both pods and the service `web`.
    pub(crate) fn start(&self, place: Place, settings: &[(&str, &str)]) -> Process {
        self.start_under(place, settings, &[])
    }

    /// As [`Node::start`], through a command that runs another one.
    pub(crate) fn start_under(
        &self,
        place: Place,
        settings: &[(&str, &str)],
        wrapper: &[&str],
    ) -> Process {
        let program = env!("CARGO_BIN_EXE_ztunnel");
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", place.path))
            .args(wrapper)
            .arg(program)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("XDS_ADDRESS", "")
            .env("CA_ADDRESS", AUTHORITY)
            .env("CA_ROOT_CA", self.authority.roots())
            .env("AUTH_TOKEN", "token")
            .env("NODE_NAME", "node")
            .env("INPOD_UDS", &self.agent.path)
            .env("LOCAL_XDS", mesh())
            .envs(settings.iter().copied())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (output, read) = (child.stdout.take().unwrap(), lines.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                println!("{line}");
                read.lock().unwrap().push(line);
            }
        });
        Process {
            child,
            place,
            lines,
            reader,
        }
    }

    /// A ztunnel that serves both pods and is ready.
    pub(crate) async fn serving(&self, place: Place, settings: &[(&str, &str)]) -> Process {
        let process = self.start(place, settings);
        self.announce().await;
        process.becomes_ready().await;
        process
    }

    /// Tells the next proxy that connects about both pods. The connection stays, in the background.
    pub(crate) async fn announce(&self) {
        let proxy = self.agent.accept().await;
        proxy.add("u-client", &self.client).await.unwrap();
        proxy.add("u-server", &self.server).await.unwrap();
        proxy.snapshot().await;
        self.apps.spawn("agent", async move {
            let _held = proxy;
            std::future::pending::<()>().await;
        });
    }
}

/// What `LOCAL_XDS` says.
pub(crate) fn mesh() -> String {
    let workload = |name: &str, ip: &str, services: serde_json::Value| {
        serde_json::json!({
            "uid": format!("Kubernetes//Pod/ns/{name}"), "name": name, "namespace": "ns",
            "serviceAccount": name, "node": "node", "workloadIps": [ip], "protocol": "HBONE",
            "workloadName": name, "canonicalName": name, "canonicalRevision": "v1",
            "services": services,
        })
    };
    let web = serde_json::json!({ "ns/web.ns.svc.cluster.local": { "80": 8080 } });
    serde_json::json!({
        "workloads": [
            workload("client", "10.0.0.2", serde_json::json!({})),
            workload("server", "10.0.0.3", web),
            workload("ztunnel", "10.0.0.11", serde_json::json!({})),
        ],
        "services": [{
            "name": "web", "namespace": "ns", "hostname": "web.ns.svc.cluster.local",
            "vips": [format!("/{VIP}")], "ports": { "80": 8080 },
            "loadBalancer": { "routingPreferences": ["Network"], "mode": "Failover" },
        }],
        "policies": [{
            "name": "nobody", "namespace": "elsewhere", "scope": "Namespace", "action": "Deny",
            "rules": [[[{ "notPrincipals": [{ "Presence": [] }], "destinationPorts": [9] }]]],
        }],
    })
    .to_string()
}

impl Process {
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    pub(crate) async fn becomes_ready(&self) {
        let address = format!("{}:15021", self.place.ip);
        let give_up = Instant::now() + 3 * LIMIT;
        loop {
            let reply = http::get(&self.place, &address, "/healthz/ready").await;
            if reply.as_ref().is_some_and(|r| r.status == 200) {
                return;
            }
            assert!(Instant::now() < give_up, "{reply:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How it ended, within `limit`.
    pub(crate) async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let give_up = Instant::now() + limit;
        loop {
            if self.reader.is_finished()
                && let Some(status) = self.child.try_wait().unwrap()
            {
                return status;
            }
            assert!(Instant::now() < give_up, "still running after {limit:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Lines it has written so far that contain `text`.
    pub(crate) fn lines_with(&self, text: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let with = lines.iter().filter(|line| line.contains(text));
        with.cloned().collect()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, or no longer wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Signs whatever identity is asked for.
async fn serve_authority(scope: &Scope, authority: Arc<Authority>) {
    let names = ["10.0.0.1".to_owned()];
    let server = authority.issue_server(&names, DAY).unwrap();
    let tls = control::server_config(&server).unwrap();
    let listener = TcpListener::bind(AUTHORITY).await.unwrap();
    let (accepted, incoming) = mpsc::channel(8);
    scope.spawn("accept", async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(tls) = tls.accept(tcp).await
                && accepted
                    .send(Ok::<_, std::io::Error>(Tls(tls)))
                    .await
                    .is_err()
            {
                return;
            }
        }
    });
    scope.spawn("authority", async move {
        Server::builder()
            .add_service(IstioCertificateServiceServer::new(Ca(authority)))
            .serve_with_incoming(ReceiverStream::new(incoming))
            .await
            .unwrap();
    });
}

struct Ca(Arc<Authority>);

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        // Without impersonation it is the dedicated mode's one workload that asks.
        let identity = request
            .metadata
            .and_then(|m| m.fields.get("ImpersonatedIdentity").cloned())
            .and_then(|value| match value.kind {
                Some(prost_types::value::Kind::StringValue(text)) => text.parse().ok(),
                _ => None,
            })
            .unwrap_or_else(|| Identity::new("cluster.local", "ns", "client"));
        let cert_chain = self.0.sign(&request.csr, &identity, DAY).unwrap();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// The accepted stream, with the trait the server wants.
struct Tls(ServerStream<TcpStream>);

impl Connected for Tls {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
