//! The mesh around a proxy that is measured: callers come to it through tunnels, and it reaches endpoints through
//! tunnels, as between node proxies. Load generator and application are the far ends themselves, without a relay:
//! on two cores what they use is not there for anybody else.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use isobar_hbone::{
    Certificates, Connect, ConnectHeaders, Pool, PoolOptions, ServerOptions, TunnelKey, serve,
};
use isobar_runtime::LocalScope;
use isobar_tests::envoy::OfMesh;
use isobar_tls::ca::Authority;
use isobar_tls::{ServerTls, WorkloadCertificate, csr, server_config};
use isobar_types::Identity;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::caller::connect;
use super::scene::{ACCOUNT, APP, CALLER, NAMESPACE};
use super::server::connection;

const LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a load's bytes go over.
pub(super) type Stream = Box<dyn Bytes>;

/// Bytes both ways.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Bytes for T {}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", NAMESPACE, account)
}

/// Whom both ends of all tunnels trust; goes with this value.
pub(super) struct Mesh {
    folder: TempDir,
    pub(super) authority: Arc<Authority>,
}

impl Mesh {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Arc::new(Authority::load_or_create(folder.path())?);
        Ok(Self { folder, authority })
    }

    /// Where other processes find the authority.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The way to `to` through a tunnel that ends at `through`.
    pub(super) fn door(&self, to: SocketAddr, through: SocketAddr) -> Door {
        Door {
            to,
            through: Some(through),
            mesh: Some(self.folder().to_owned()),
        }
    }

    /// What the waypoint shows: ours asks for it, Envoy is given it.
    pub(super) fn of_waypoint(&self) -> Result<Shown> {
        let identity = identity(ACCOUNT);
        let (request, key) = csr::generate(&identity)?;
        let mut chain = self.authority.sign(&request, &identity, LIFE)?;
        let roots = chain.pop().unwrap_or_default();
        Ok(Shown {
            chain: chain.concat(),
            key: key.to_pem()?,
            roots,
        })
    }
}

/// PEM of a certificate, its key, and who signs others.
pub(super) struct Shown {
    chain: String,
    key: String,
    roots: String,
}

impl Shown {
    pub(super) fn of_mesh(&self) -> OfMesh<'_> {
        OfMesh {
            chain: &self.chain,
            key: &self.key,
            roots: &self.roots,
        }
    }
}

/// How a load comes to a service.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Door {
    /// Where to.
    #[arg(long)]
    pub(super) to: SocketAddr,
    /// Through a tunnel that ends here.
    #[arg(long, requires = "mesh")]
    pub(super) through: Option<SocketAddr>,
    /// Folder of the authority that both ends of a tunnel trust.
    #[arg(long)]
    pub(super) mesh: Option<PathBuf>,
}

impl Door {
    pub(super) const fn plain(to: SocketAddr) -> Self {
        Self {
            to,
            through: None,
            mesh: None,
        }
    }

    /// What another process is told.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut words = vec!["--to".to_owned(), self.to.to_string()];
        if let Some(through) = self.through {
            words.extend(["--through".to_owned(), through.to_string()]);
        }
        if let Some(mesh) = &self.mesh {
            words.extend(["--mesh".to_owned(), mesh.display().to_string()]);
        }
        words
    }

    /// Opens nothing yet. To be used in a `LocalSet`.
    pub(super) fn entrance(&self) -> Result<Entrance> {
        let (Some(through), Some(mesh)) = (self.through, &self.mesh) else {
            return Ok(Entrance::Plain(self.to));
        };
        let own = identity(CALLER);
        let authority = Authority::load_or_create(mesh)?;
        let certificate = Arc::new(authority.issue_workload(&own, LIFE)?);
        let key = TunnelKey {
            source: own,
            // The proxy, or the application where there is none.
            expect: vec![identity(ACCOUNT), identity(APP)],
            to: through,
            from: IpAddr::V4(Ipv4Addr::LOCALHOST),
            workload: "".into(),
        };
        Ok(Entrance::Tunnel(Rc::new(Tunnel {
            pool: Pool::new(PoolOptions::default(), Rc::new(AtHand(certificate))),
            key,
            headers: ConnectHeaders::new(isobar_hbone::Authority::Address(self.to)),
        })))
    }
}

/// Where connections of one load begin.
#[derive(Clone)]
pub(super) enum Entrance {
    Plain(SocketAddr),
    /// Connections are streams of as few tunnels as node proxies have for one caller.
    Tunnel(Rc<Tunnel>),
}

pub(super) struct Tunnel {
    pool: Pool,
    key: TunnelKey,
    headers: ConnectHeaders,
}

impl Entrance {
    /// A new connection.
    pub(super) async fn open(&self) -> Result<Stream> {
        Ok(match self {
            Self::Plain(to) => Box::new(connect(*to).await?),
            Self::Tunnel(way) => Box::new(way.pool.open(&way.key, &way.headers).await?),
        })
    }
}

/// The one certificate of a caller.
struct AtHand(Arc<WorkloadCertificate>);

impl Certificates for AtHand {
    fn fetch<'a>(
        &'a self,
        _: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<WorkloadCertificate>, String>> + 'a>> {
        Box::pin(std::future::ready(Ok(Arc::clone(&self.0))))
    }
}

/// What the application shows as the end of tunnels.
///
/// # Errors
/// When the authority in `folder` cannot be read.
pub(super) fn of_application(folder: &Path) -> Result<ServerTls> {
    let authority = Authority::load_or_create(folder)?;
    let certificate = authority.issue_workload(&identity(APP), LIFE)?;
    Ok(server_config(&certificate))
}

/// Takes tunnels, and answers on their streams as the application does on connections.
pub(super) async fn accept(
    scope: Rc<LocalScope>,
    listener: TcpListener,
    tls: ServerTls,
    size: Rc<Cell<usize>>,
) {
    let options = Rc::new(ServerOptions::default());
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, size) = (tls.clone(), Rc::clone(&size));
        let (options, life) = (Rc::clone(&options), scope.lifetime());
        scope.spawn("tunnel", async move {
            let answer = |connect: Connect| {
                let size = Rc::clone(&size);
                async move {
                    if let Ok(stream) = connect.accept(None) {
                        drop(connection(stream, size).await);
                    }
                }
            };
            // What breaks shows as a failure at the load generator.
            if tcp.set_nodelay(true).is_ok() {
                drop(serve(tcp, &tls, &options, &life, answer).await);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::caller::{Load, Protocol};

    async fn answered(protocol: Protocol, size: usize) -> (u64, u64, Option<String>) {
        let mesh = Mesh::new().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let through = listener.local_addr().unwrap();
        let tls = of_application(mesh.folder()).unwrap();
        let scope = Rc::new(LocalScope::new("test"));
        let size_told = Rc::new(Cell::new(size));
        scope.spawn("accept", accept(scope.clone(), listener, tls, size_told));
        let load = Load {
            protocol,
            door: mesh.door("10.96.0.1:80".parse().unwrap(), through),
            path: format!("/r1/{size}"),
            connections: 4,
            streams: 2,
            seconds: 0.1,
            rate: 0,
        };
        let measured = load.run().await.unwrap();
        (measured.requests, measured.failed, measured.first_failure)
    }

    #[tokio::test]
    async fn loads_go_through_tunnels() {
        let all = async {
            for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Grpc] {
                let (requests, failed, first) = answered(protocol, 65_536).await;
                assert_eq!((failed, first), (0, None), "{protocol:?}");
                assert!(requests > 0, "{protocol:?}");
            }
        };
        tokio::task::LocalSet::new().run_until(all).await;
    }

    #[test]
    fn what_envoy_shows_is_of_the_mesh() {
        let shown = Mesh::new().unwrap().of_waypoint().unwrap();
        let of_mesh = shown.of_mesh();
        for text in [of_mesh.chain, of_mesh.roots] {
            assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1, "{text}");
        }
        assert!(of_mesh.key.contains("PRIVATE KEY"));
        assert_ne!(of_mesh.chain, of_mesh.roots);
    }
}
