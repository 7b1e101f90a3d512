//! A real Kubernetes API server over a store of its own: its keys, its arguments, its users. One
//! program is all of it (`tests/apiserver`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isobar_tls::ca::Authority;

use crate::error::LabError;
use crate::plan::SERVICE_CIDR;

/// Token of the user who may do everything.
const ADMIN: &str = "admin-token";
/// Who issues the accounts' tokens.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Life of the servers' certificates.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Tells drafts of files apart.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// Where an API server and its store listen and keep their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiServerPlan {
    /// The program.
    pub tools: PathBuf,
    /// Folder of keys, kubeconfigs and the store.
    pub folder: PathBuf,
    /// Address of the API server.
    pub ip: IpAddr,
    /// Port of the API server.
    pub port: u16,
    /// Port of the store, on loopback.
    pub store: u16,
    /// Port of the store for others of its kind, on loopback.
    pub peers: u16,
}

impl ApiServerPlan {
    /// Makes the server's certificate and its authority, that of the kubelets at `nodes`, the accounts'
    /// key and the users' tokens.
    ///
    /// # Errors
    /// When a key cannot be made or a file not written.
    pub fn write_keys(&self, nodes: &[IpAddr]) -> Result<(), LabError> {
        let failed = |error: String| LabError::Refused {
            message: format!("making the API server's keys: {error}"),
        };
        std::fs::create_dir_all(&self.folder).map_err(LabError::io("making a folder for keys"))?;
        let authority = Authority::generate("Isobar lab").map_err(|e| failed(e.to_string()))?;
        let ip = self.ip.to_string();
        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc", &ip].map(str::to_owned);
        let certificate = authority.issue_server(&names, LIFE);
        let certificate = certificate.map_err(|e| failed(e.to_string()))?;
        let key = certificate.key.to_pem();
        let nodes: Vec<String> = nodes.iter().map(IpAddr::to_string).collect();
        let kubelets = authority.issue_server(&nodes, LIFE);
        let kubelets = kubelets.map_err(|e| failed(e.to_string()))?;
        let kubelets_key = kubelets.key.to_pem();
        // A key of its own, and the certificate of it: the server reads public keys from those.
        let accounts = authority.issue_server(&["accounts".to_owned()], LIFE);
        let accounts = accounts.map_err(|e| failed(e.to_string()))?;
        let signing = accounts.key.to_pem();
        let tokens = format!("{ADMIN},admin,admin,\"system:masters\"\n");
        for (file, text) in [
            ("ca.crt", authority.roots()),
            ("server.crt", &certificate.chain),
            ("server.key", &key.map_err(|e| failed(e.to_string()))?),
            ("kubelet.crt", &kubelets.chain),
            (
                "kubelet.key",
                &kubelets_key.map_err(|e| failed(e.to_string()))?,
            ),
            ("accounts.crt", &accounts.chain),
            ("accounts.key", &signing.map_err(|e| failed(e.to_string()))?),
            ("tokens.csv", &tokens),
        ] {
            let path = self.folder.join(file);
            let written = std::fs::write(&path, text);
            written.map_err(LabError::io(format!("writing {}", path.display())))?;
        }
        Ok(())
    }

    /// A kubeconfig of the user who may do everything; written anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn admin(&self) -> Result<PathBuf, LabError> {
        self.kubeconfig(&format!("admin-{}", self.port), ADMIN)
    }

    /// A kubeconfig with a bearer token.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf, LabError> {
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": "cluster", "cluster": {
                "server": format!("https://{}", SocketAddr::new(self.ip, self.port)),
                "certificate-authority": self.folder.join("ca.crt"),
            }}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": "cluster", "user": name}}],
        });
        let path = self.folder.join(format!("{name}.kubeconfig"));
        let text = text.to_string();
        // Who reads the file meanwhile finds the whole of it.
        if std::fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(path);
        }
        let draft = format!("{name}.{}", DRAFTS.fetch_add(1, Ordering::Relaxed));
        let draft = self.folder.join(draft);
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(LabError::io(format!("writing {}", path.display())))?;
        Ok(path)
    }

    /// Program and arguments of the store.
    #[must_use]
    pub fn store_argv(&self) -> Vec<String> {
        let clients = format!("http://{}:{}", Ipv4Addr::LOCALHOST, self.store);
        let peers = format!("http://{}:{}", Ipv4Addr::LOCALHOST, self.peers);
        vec![
            text(&self.tools),
            "etcd".to_owned(),
            format!("--data-dir={}", self.folder.join("etcd").display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ]
    }

    /// Program and arguments of the API server.
    #[must_use]
    pub fn server_argv(&self) -> Vec<String> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        vec![
            text(&self.tools),
            "apiserver".to_owned(),
            format!("--etcd-servers=http://127.0.0.1:{}", self.store),
            format!("--secure-port={}", self.port),
            format!("--bind-address={}", self.ip),
            format!("--advertise-address={}", self.ip),
            // No pod speaks to the API server by its service.
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            format!("--cert-dir={}", file("made")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            // Who it is to kubelets, and who they are to it.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--kubelet-certificate-authority={}", file("ca.crt")),
            format!("--kubelet-client-certificate={}", file("server.crt")),
            format!("--kubelet-client-key={}", file("server.key")),
            "--authorization-mode=RBAC".to_owned(),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", file("accounts.crt")),
            format!(
                "--service-account-signing-key-file={}",
                file("accounts.key")
            ),
            "--enable-priority-and-fairness=false".to_owned(),
            "--profiling=false".to_owned(),
        ]
    }

    /// The program that is a node's kubelet to the API server; it is built beside the other.
    #[must_use]
    pub fn kubelet(&self) -> PathBuf {
        self.tools.with_file_name("kubelet")
    }

    /// Program and arguments of a kubelet for the pods of the lab with this control socket, and for
    /// others: `(NAMESPACE/NAME, place)`, see its source (`tests/apiserver/kubelet`). It prints the
    /// address where it listens.
    #[must_use]
    pub fn kubelet_argv(
        &self,
        listen: SocketAddr,
        lab: Option<&Path>,
        places: &[(String, String)],
    ) -> Vec<String> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut argv = vec![
            text(&self.kubelet()),
            format!("--listen={listen}"),
            format!("--certificate={}", file("kubelet.crt")),
            format!("--key={}", file("kubelet.key")),
            format!("--client-authority={}", file("ca.crt")),
        ];
        argv.extend(lab.map(|socket| format!("--lab={}", socket.display())));
        let reach = |(pod, place): &(String, String)| format!("--reach={pod}={place}");
        argv.extend(places.iter().map(reach));
        argv
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
