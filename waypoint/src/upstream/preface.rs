use std::net::SocketAddr;

use isobar_hbone::ProxyHeader;
use isobar_route::ProxyVersion;
use isobar_types::Reason;
use tokio::io::AsyncWriteExt;

use crate::stream::AnyStream;
use crate::upstream::DialFailure;

/// Who called, told to an endpoint before any other byte (PROXY protocol). A connection with one is for
/// that caller's connection alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Preface {
    /// As text or binary.
    pub version: ProxyVersion,
    /// The caller.
    pub source: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
}

impl Preface {
    /// Writes it.
    ///
    /// # Errors
    /// When the endpoint is gone.
    pub(super) async fn send(&self, stream: &mut AnyStream) -> Result<(), DialFailure> {
        let bytes = self.bytes().map_err(|why| failure(&why))?;
        let written = async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        written.await.map_err(|error| failure(&error.to_string()))
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        let header = ProxyHeader {
            source: self.source,
            destination: self.destination,
            identity: None,
        };
        match self.version {
            ProxyVersion::V1 => Ok(header.line().into_bytes()),
            ProxyVersion::V2 => header.encode().map_err(|error| error.to_string()),
        }
    }
}

fn failure(detail: &str) -> DialFailure {
    DialFailure {
        reason: Reason::UpstreamReset,
        detail: format!("the endpoint was not told who called: {detail}"),
    }
}
