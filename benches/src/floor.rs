//! The floor: TCP in mutual TLS between two processes, one TLS connection for each TCP connection,
//! no HTTP/2, no policy, no redirection, no telemetry.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_tls::{client_config, server_config};
use isobar_types::Identity;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};

/// Bytes read at once: what a plain copy does best with.
const BUFFER: usize = 64 * 1024;
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// One side of the pair.
#[derive(Debug, clap::Args)]
pub(crate) struct Floor {
    /// True for the side that takes TLS and gives TCP.
    #[arg(long)]
    far: bool,
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where to connect to.
    #[arg(long)]
    to: SocketAddr,
    /// Folder of the authority both sides trust.
    #[arg(long)]
    authority: PathBuf,
}

impl Floor {
    /// Relays until it is killed.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let identity = Identity::new("cluster.local", "bench", "floor");
        let authority = Authority::load_or_create(&self.authority)?;
        let certificate = authority.issue_workload(&identity, LIFE)?;
        let (server, client) = (
            server_config(&certificate),
            client_config(&certificate, &[identity])?,
        );
        let scope = Scope::new("floor");
        let listener = TcpListener::bind(self.listen).await?;
        println!("open");
        loop {
            let (tcp, _) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            let (server, client, to) = (server.clone(), client.clone(), self.to);
            let far = self.far;
            scope.spawn("relay", async move {
                // A connection that breaks shows as a failure at the load generator.
                let _ = async {
                    let onward = TcpStream::connect(to).await?;
                    onward.set_nodelay(true)?;
                    if far {
                        let (tls, _) = server.accept(tcp).await?;
                        copy(tls, onward).await
                    } else {
                        let (tls, _) = client.connect(onward).await?;
                        copy(tcp, tls).await
                    }
                }
                .await;
            });
        }
    }
}

async fn copy(
    mut a: impl AsyncRead + AsyncWrite + Unpin,
    mut b: impl AsyncRead + AsyncWrite + Unpin,
) -> anyhow::Result<()> {
    copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER).await?;
    Ok(())
}
