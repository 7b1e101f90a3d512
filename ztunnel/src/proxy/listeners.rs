//! The sockets of one pod on one worker: each worker has its own, sharing the ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use isobar_net::{Keepalive, ListenOptions, Want, listen};
use tokio::net::TcpListener;

use super::{Pod, World};

/// Listening sockets inside a pod; all but HBONE are absent for the pod of this process itself.
#[derive(Debug)]
pub struct PodListeners {
    /// Captured outbound.
    pub outbound: Option<TcpListener>,
    /// Captured inbound plaintext.
    pub plaintext: Option<TcpListener>,
    /// HBONE.
    pub hbone: TcpListener,
    /// SOCKS5, if switched on.
    pub socks5: Option<TcpListener>,
}

impl PodListeners {
    /// Binds all of them on the calling worker.
    ///
    /// # Errors
    /// When one cannot be bound; the text names it.
    pub fn bind(world: &World, pod: &Pod) -> io::Result<Self> {
        let ports = &world.config.ports;
        let keepalive = world.keepalive();
        let everywhere = |port, keepalive| bind(world, pod, world.config.wildcard(port), keepalive);
        let captured = |port| {
            let bound = (!pod.own).then(|| everywhere(port, keepalive));
            bound.transpose()
        };
        let loopback = |port| bind(world, pod, (Ipv4Addr::LOCALHOST, port).into(), keepalive);
        let socks5 = ports.socks5.filter(|_| !pod.own);
        Ok(Self {
            outbound: captured(ports.outbound)?,
            plaintext: captured(ports.inbound_plaintext)?,
            // Tunnels have PING.
            hbone: everywhere(ports.inbound, None)?,
            socks5: socks5.map(loopback).transpose()?,
        })
    }
}

fn bind(
    world: &World,
    pod: &Pod,
    address: SocketAddr,
    keepalive: Option<Keepalive>,
) -> io::Result<TcpListener> {
    let config = &world.config;
    // Dedicated mode leaves marks to whoever redirects; its listeners stay unmarked.
    let mark = config.packet_mark.filter(|_| pod.netns.is_some());
    let mut options = ListenOptions {
        netns: pod.netns.clone(),
        mark,
        reuse_port: config.port_reuse,
        transparent: match config.original_source {
            _ if pod.own || address.ip().is_loopback() => Want::Never,
            None => Want::Try,
            Some(true) => Want::Require,
            Some(false) => Want::Never,
        },
        nodelay: true,
        keepalive,
        ..ListenOptions::new(address)
    };
    let bound = listen(&options).or_else(|error| {
        // A kernel without IPv6 at all refuses the family.
        if options.address.is_ipv6() && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) {
            options.address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            return listen(&options);
        }
        Err(error)
    });
    bound.map_err(|error| {
        let text = format!(
            "listening on {} of {}: {error}",
            options.address,
            pod.display_name()
        );
        io::Error::new(error.kind(), text)
    })
}
