//! The DNS proxy of each pod: service names from the mesh, everything else from the resolver of
//! this process (as Istio's ztunnel does).
//!
//! Runs on the control runtime; sockets live in the pod and carry the mark, so the pod's own rules
//! apply to what is forwarded.

mod forward;
mod message;
mod metrics;
mod server;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use isobar_net::{ListenOptions, UdpOptions, listen, udp};
use isobar_runtime::Lifetime;
use isobar_telemetry::Registry;
use isobar_xds::Store;
use tokio::net::{TcpListener, UdpSocket};

use crate::config::{Dns, Mode};
use crate::proxy::{Pod, World};

pub use forward::Upstreams;
use metrics::DnsMetrics;
use server::Server;

/// Makes the DNS proxies of pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Resolver {
    config: Arc<Dns>,
    upstreams: Upstreams,
    metrics: DnsMetrics,
}

impl Resolver {
    /// Forwards to `upstreams`.
    #[must_use]
    pub fn new(config: Dns, upstreams: Upstreams, registry: &Registry) -> Self {
        Self {
            config: Arc::new(config),
            upstreams,
            metrics: DnsMetrics::new(registry),
        }
    }

    /// As [`Resolver::new`], with the name servers of this process's `/etc/resolv.conf`.
    #[must_use]
    pub fn of_process(config: Dns, registry: &Registry) -> Self {
        let upstreams = Upstreams::read(Path::new("/etc/resolv.conf"));
        Self::new(config, upstreams, registry)
    }

    /// Forgets what was counted for services that are gone, until `life` is stopped.
    pub fn tidy(&self, store: Store, life: Lifetime) -> impl Future<Output = ()> + Send + use<> {
        self.metrics.clone().tidy(store, life)
    }

    /// Binds the sockets of a pod; the future serves them until the pod drains.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub fn serve(
        &self,
        world: &Arc<World>,
        pod: &Arc<Pod>,
    ) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let mut sockets = Vec::new();
        for address in self.addresses(pod) {
            match bind(world, pod, address) {
                Ok(pair) => sockets.push(pair),
                // A pod without IPv6 has no such loopback; IPv4 is served.
                Err(error) if address.is_ipv6() && !sockets.is_empty() => {
                    tracing::debug!(%address, %error, "no DNS proxy on this address");
                }
                Err(error) => {
                    let text = format!("binding {address}: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        Ok(self.server(world, pod).run(sockets))
    }

    /// An address of a name, as the application of `pod` would be told it; of the other family where it has
    /// none of the one preferred.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn resolve(
        &self,
        world: &Arc<World>,
        pod: &Arc<Pod>,
        name: &str,
        prefer_v6: bool,
    ) -> Result<IpAddr, String> {
        let nothing = || format!("{name} has no address");
        let server = self.server(world, pod);
        for v6 in [prefer_v6, !prefer_v6] {
            let query = message::question(name, v6).ok_or_else(|| format!("{name} is no name"))?;
            for stream in [false, true] {
                let answer = server.answer(&query, stream).await.ok_or_else(nothing)?;
                // None is one that was cut: once more over TCP.
                if let Some(all) = message::addresses(&answer) {
                    if let Some(ip) = all.into_iter().next() {
                        return Ok(ip);
                    }
                    break;
                }
            }
        }
        Err(nothing())
    }

    fn server(&self, world: &Arc<World>, pod: &Arc<Pod>) -> Server {
        let search = match world.config.mode {
            Mode::Shared => None,
            Mode::Dedicated { .. } => Some(self.upstreams.search().to_vec()),
        };
        Server {
            world: world.clone(),
            pod: pod.clone(),
            config: self.config.clone(),
            upstreams: self.upstreams.clone(),
            metrics: self.metrics.clone(),
            search,
        }
    }

    fn addresses(&self, _pod: &Pod) -> Vec<SocketAddr> {
        let listen = self.config.listen;
        if listen.ip() == Ipv4Addr::LOCALHOST {
            let port = listen.port();
            return vec![listen, (Ipv6Addr::LOCALHOST, port).into()];
        }
        vec![listen]
    }
}

/// Whether a packet is a query that is looked up; what is not is answered at once, or dropped.
#[must_use]
pub fn is_query(packet: &[u8]) -> bool {
    matches!(message::read(packet), message::Read::Query(_))
}

fn bind(world: &World, pod: &Pod, address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mark = world.config.packet_mark.filter(|_| pod.netns.is_some());
    let reuse_port = world.config.port_reuse;
    let datagrams = udp(&UdpOptions {
        address,
        netns: pod.netns.clone(),
        mark,
        reuse_port,
    })?;
    let streams = listen(&ListenOptions {
        netns: pod.netns.clone(),
        mark,
        reuse_port,
        ..ListenOptions::new(address)
    })?;
    Ok((datagrams, streams))
}
