use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use isobar_net::NetNs;
use isobar_runtime::Scope;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Limit of one connect or request: far above anything honest.
const LIMIT: Duration = Duration::from_secs(10);

/// Opens sockets inside a network namespace, as an application there would.
#[derive(Debug, Clone)]
pub struct Caller {
    netns: NetNs,
}

/// An HTTP/1.1 reply, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body as text.
    pub body: String,
}

/// A kept-alive HTTP/1.1 connection.
#[derive(Debug)]
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    // Owns the task that drives the connection.
    _scope: Scope,
}

impl Caller {
    /// A caller inside the namespace.
    ///
    /// # Errors
    /// When the descriptor is not a network namespace.
    pub fn inside(netns: OwnedFd) -> Result<Self> {
        Ok(Self {
            netns: NetNs::from_fd(netns)?,
        })
    }

    /// A plain TCP connection.
    ///
    /// # Errors
    /// As `connect(2)`; also after 10 s.
    pub async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = self.netns.enter(|| {
            if to.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }
        })??;
        socket.set_nodelay(true)?;
        tokio::time::timeout(LIMIT, socket.connect(to))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
    }

    /// A UDP socket whose peer is `to`.
    ///
    /// # Errors
    /// As `bind(2)` and `connect(2)`.
    pub async fn datagrams(&self, to: SocketAddr) -> std::io::Result<UdpSocket> {
        let socket = self.netns.enter(|| {
            let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(socket)
        })??;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(to).await?;
        Ok(socket)
    }

    /// A listener of the test's own at every address of the pod: an application whose replies the test
    /// decides.
    ///
    /// # Errors
    /// As `bind(2)` and `listen(2)`.
    pub fn listen(&self, port: u16) -> std::io::Result<TcpListener> {
        let socket = self.netns.enter(TcpSocket::new_v4)??;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([0, 0, 0, 0], port)))?;
        socket.listen(16)
    }

    /// A connection for several HTTP requests.
    ///
    /// # Errors
    /// When the connection is refused or closed at once.
    pub async fn http(&self, to: SocketAddr) -> Result<Connection> {
        let stream = self.connect(to).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let scope = Scope::new("test-caller");
        scope.spawn("http", async move {
            // How it ended shows in the request that was under way.
            let _ = driver.await;
        });
        Ok(Connection {
            sender,
            _scope: scope,
        })
    }

    /// One GET on a connection of its own, `host` taken from the address.
    ///
    /// # Errors
    /// When there is no complete reply.
    pub async fn get(&self, to: SocketAddr, path: &str) -> Result<Reply> {
        self.http(to).await?.get(&to.to_string(), path).await
    }

    /// One request with header fields, on a connection of its own.
    ///
    /// # Errors
    /// When there is no complete reply.
    pub async fn request(
        &self,
        to: SocketAddr,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Reply> {
        self.http(to)
            .await?
            .request(method, host, path, headers)
            .await
    }
}

impl Connection {
    /// One GET.
    ///
    /// # Errors
    /// When there is no complete reply.
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Reply> {
        self.request("GET", host, path, &[]).await
    }

    /// One request.
    ///
    /// # Errors
    /// When there is no complete reply.
    pub async fn request(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Reply> {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes())?)
            .uri(path)
            .header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::new()))?;
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>((head, body))
        };
        let (head, body) = tokio::time::timeout(LIMIT, exchange)
            .await
            .context("no reply within 10 s")??;
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}
