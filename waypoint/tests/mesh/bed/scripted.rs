//! A back end that answers as a test says, and remembers what it was asked.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Bed;

/// What a scripted back end does with one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    /// A status with these header lines (each ends with CR LF) and no body.
    Status(u16, &'static str),
    /// The same at once, and the body is never read.
    Early(u16),
    /// Closes the connection.
    Close,
    /// Says nothing.
    Silence,
}

/// Requests a scripted back end has had: head and size of the body.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    requests: Rc<RefCell<Vec<(String, usize)>>>,
    connections: Rc<RefCell<usize>>,
}

impl Asked {
    pub(crate) fn count(&self) -> usize {
        self.requests.borrow().len()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    pub(crate) fn all(&self) -> Vec<(String, usize)> {
        self.requests.borrow().clone()
    }
}

impl Bed {
    /// A back end at `address` (port 0 is fine) that answers each request with `reply`, which is told
    /// how many came before.
    pub(crate) async fn scripted(
        &self,
        name: &'static str,
        version: &'static str,
        address: &str,
        reply: impl Fn(usize) -> Reply + Clone + 'static,
    ) -> Asked {
        let listener = TcpListener::bind(address).await.unwrap();
        let at: SocketAddr = listener.local_addr().unwrap();
        let asked = Asked::default();
        let (scope, told) = (self.scope.clone(), asked.clone());
        self.scope.spawn("scripted", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                *told.connections.borrow_mut() += 1;
                scope.spawn("scripted", connection(tcp, told.clone(), reply.clone()));
            }
        });
        self.known_backend(name, version, at);
        asked
    }
}

async fn connection(mut tcp: TcpStream, asked: Asked, reply: impl Fn(usize) -> Reply) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match tcp.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let before = asked.count();
        let reply = reply(before);
        if let Reply::Early(code) = reply {
            asked.requests.borrow_mut().push((head, 0));
            let text = format!("HTTP/1.1 {code} Said\r\ncontent-length: 0\r\n\r\n");
            // The waypoint may have given up; then nobody reads this.
            let _ = tcp.write_all(text.as_bytes()).await;
            return std::future::pending().await;
        }
        let mut body = vec![0; length];
        if tcp.read_exact(&mut body).await.is_err() {
            return;
        }
        asked.requests.borrow_mut().push((head, length));
        match reply {
            Reply::Early(_) => return,
            Reply::Status(code, headers) => {
                let text = format!("HTTP/1.1 {code} Said\r\n{headers}content-length: 0\r\n\r\n");
                if tcp.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Reply::Close => return,
            Reply::Silence => std::future::pending().await,
        }
    }
}
