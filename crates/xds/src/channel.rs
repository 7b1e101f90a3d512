//! The connection to the control plane: TCP, TLS without a client certificate, HTTP/2, a token.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use isobar_tls::{ClientStream, control};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::config::{Roots, Server, Token};

/// For TCP, and again for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(300))
    .with_interval(Duration::from_secs(75))
    .with_retries(9);

/// Why there is no connection to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not `https://HOST:PORT`.
    #[error("{0:?} is not of the form https://HOST:PORT")]
    Address(String),
    /// A file that is needed cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The roots, a header or the token cannot be used.
    #[error("{what}: {detail}")]
    Unusable {
        /// What.
        what: String,
        /// Why.
        detail: String,
    },
    /// Nobody answers there, or not to us.
    #[error("{address}: {detail}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        detail: String,
    },
}

/// Host and port of the server, and the URI calls are made under.
struct Target {
    host: String,
    port: u16,
    origin: Uri,
}

fn target(address: &str) -> Result<Target, ConnectError> {
    let wrong = || ConnectError::Address(address.to_owned());
    let full = if address.contains("://") {
        address.to_owned()
    } else {
        format!("https://{address}")
    };
    let uri: Uri = full.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong());
    }
    let host = uri.host().ok_or_else(wrong)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let authority = uri.authority().ok_or_else(wrong)?;
    let port = match uri.port_u16() {
        Some(port) => port,
        None if authority.as_str() == host => 443,
        None => return Err(wrong()),
    };
    Ok(Target {
        host: bare.to_owned(),
        port,
        origin: format!("https://{authority}")
            .parse()
            .map_err(|_| wrong())?,
    })
}

/// The roots' PEM text, read now.
pub(crate) async fn read_roots(roots: &Roots) -> Result<String, ConnectError> {
    match roots {
        Roots::Pem(pem) => Ok(pem.clone()),
        Roots::File(path) => read(path.clone()).await,
        Roots::System => {
            let unusable = |detail: String| ConnectError::Unusable {
                what: "the system's roots".to_owned(),
                detail,
            };
            let read = tokio::task::spawn_blocking(isobar_tls::system_roots).await;
            let read = read.map_err(|error| unusable(error.to_string()))?;
            read.map_err(|error| unusable(error.to_string()))
        }
    }
}

async fn read(path: PathBuf) -> Result<String, ConnectError> {
    tokio::fs::read_to_string(&path)
        .await
        .map_err(|source| ConnectError::File { path, source })
}

/// Connects with the roots given. The channel does not reconnect by itself to something it was not
/// told to trust: a new connection uses the same roots.
pub(crate) async fn connect(server: &Server, roots_pem: &str) -> Result<Channel, ConnectError> {
    let target = target(&server.address)?;
    let tls = control::client_config(roots_pem, server.alt_hostname.as_deref()).map_err(|e| {
        ConnectError::Unusable {
            what: "roots of the control plane".to_owned(),
            detail: e.to_string(),
        }
    })?;
    let (host, port) = (target.host, target.port);
    let connector = service_fn(move |_: Uri| {
        let tls = tls.clone();
        let host = host.clone();
        async move { dial(&tls, &host, port).await.map(TokioIo::new) }
    });
    // The connector does TLS itself, so the endpoint must not: hence http below https.
    let plain = format!("http://{}", server_authority(&target.origin));
    Endpoint::from_shared(plain)
        .map_err(|_| ConnectError::Address(server.address.clone()))?
        .origin(target.origin)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Unreachable {
            address: server.address.clone(),
            detail: chain(&error),
        })
}

fn server_authority(origin: &Uri) -> &str {
    origin.authority().map_or("", |a| a.as_str())
}

async fn dial(
    tls: &control::ControlClient,
    host: &str,
    port: u16,
) -> Result<ClientStream<TcpStream>, std::io::Error> {
    let late = |what: &str| {
        let text = format!("no {what} within {CONNECT_TIMEOUT:?}");
        std::io::Error::new(std::io::ErrorKind::TimedOut, text)
    };
    let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port)))
        .await
        .map_err(|_| late("connection"))??;
    tcp.set_nodelay(true)?;
    SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE)?;
    tokio::time::timeout(CONNECT_TIMEOUT, tls.connect(tcp, host))
        .await
        .map_err(|_| late("TLS handshake"))?
        .map_err(std::io::Error::other)
}

/// The headers of a call: token (read now), cluster id beside it, and the configured ones.
pub(crate) async fn headers(server: &Server, into: &mut MetadataMap) -> Result<(), ConnectError> {
    let unusable = |what: &str, detail: &str| ConnectError::Unusable {
        what: what.to_owned(),
        detail: detail.to_owned(),
    };
    if let Some(token) = &server.token {
        let token = match token {
            Token::Literal(token) => token.clone(),
            Token::File(path) => read(path.clone()).await?,
        };
        // Not the parse error: it could show the token.
        let mut bearer: AsciiMetadataValue = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| unusable("token", "it holds characters no header may have"))?;
        bearer.set_sensitive(true);
        into.insert("authorization", bearer);
        let cluster = server
            .cluster_id
            .parse()
            .map_err(|_| unusable("cluster id", "it holds characters no header may have"))?;
        into.insert("clusterid", cluster);
    }
    for (name, value) in &server.headers {
        let key: AsciiMetadataKey = name
            .to_ascii_lowercase()
            .parse()
            .map_err(|_| unusable(name, "no header can have that name"))?;
        let value: AsciiMetadataValue = value
            .parse()
            .map_err(|_| unusable(name, "no header can have that value"))?;
        into.insert(key, value);
    }
    Ok(())
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_host_and_a_port() {
        for (text, host, port) in [
            (
                "https://istiod.istio-system.svc:15012",
                "istiod.istio-system.svc",
                15012,
            ),
            ("10.0.0.1:15012", "10.0.0.1", 15012),
            ("https://[fd00::1]:15012", "fd00::1", 15012),
            ("https://a.b", "a.b", 443),
        ] {
            let target = target(text).unwrap();
            assert_eq!((&*target.host, target.port), (host, port), "{text}");
            assert_eq!(target.origin.scheme_str(), Some("https"), "{text}");
        }
        for bad in [
            "",
            "http://a:1",
            "https://",
            "ftp://a:1",
            "https://a:notaport",
        ] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
