//! What pods of these tests run: this same program.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result};

/// A server of one line, with the caller's address.
pub(crate) fn serve(port: &str, text: &str) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse()?))?;
    loop {
        let (mut stream, peer) = listener.accept()?;
        let body = format!("{text} saw {}\n", peer.ip());
        // A silent caller must not keep others waiting.
        std::thread::spawn(move || {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let reply = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(reply.as_bytes());
        });
    }
}

pub(crate) fn get(to: &str) -> Result<String> {
    let address = to.to_socket_addrs()?.next().context("no address")?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no reply")?;
    Ok(body.to_owned())
}

pub(crate) fn resolve(name: &str) -> Result<()> {
    let found: BTreeSet<String> = (name, 80)
        .to_socket_addrs()?
        .map(|a| a.ip().to_string())
        .collect();
    for ip in found {
        println!("{ip}");
    }
    Ok(())
}
