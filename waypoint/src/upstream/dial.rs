use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use isobar_hbone::{Authority, Certificates, ConnectHeaders, Http2, PoolOptions, TunnelKey};
use isobar_net::{DialError, DialOptions};
use isobar_route::Keepalive;
use isobar_state::TunnelProtocol;
use isobar_types::{Reason, ports};

use crate::endpoint::Endpoint;
use crate::stream::AnyStream;
use crate::world::Own;

/// Receive window of one stream in a tunnel to an endpoint, in bytes.
const TUNNEL_STREAM: u32 = 1 << 20;
/// The same of all streams of a tunnel: what of answers nobody reads waits there, and takes our memory.
const TUNNEL: u32 = 4 << 20;

/// Opens a stream to the application of an endpoint. Injected, so that tests need no mesh.
pub trait Dial {
    /// Opens one stream; `keepalive` is for sockets of its own, not for tunnels.
    fn dial<'a>(
        &'a self,
        to: &'a Endpoint,
        keepalive: Option<Keepalive>,
    ) -> LocalBoxFuture<'a, Result<AnyStream, DialFailure>>;
}

/// Why no stream stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct DialFailure {
    /// For log, metric and reply.
    pub reason: Reason,
    /// Names what went wrong.
    pub detail: String,
}

/// Plain TCP, for endpoints outside the mesh.
#[derive(Debug, Clone, Default)]
pub struct PlainDialer {
    /// Socket options.
    pub options: DialOptions,
}

impl Dial for PlainDialer {
    fn dial<'a>(
        &'a self,
        to: &'a Endpoint,
        keepalive: Option<Keepalive>,
    ) -> LocalBoxFuture<'a, Result<AnyStream, DialFailure>> {
        Box::pin(async move {
            let mut options = self.options.clone();
            if let Some(asked) = keepalive {
                options.keepalive = Some(probes(asked));
            }
            match isobar_net::dial(&options, to.address).await {
                Ok(tcp) => Ok(Box::new(tcp) as AnyStream),
                Err(error) => Err(DialFailure {
                    reason: match &error {
                        DialError::Timeout { .. } => Reason::UpstreamConnectTimeout,
                        _ => Reason::UpstreamRefused,
                    },
                    detail: error.to_string(),
                }),
            }
        })
    }
}

/// What a rule does not say stays as it is by default.
fn probes(asked: Keepalive) -> isobar_net::Keepalive {
    let plain = isobar_net::Keepalive::default();
    isobar_net::Keepalive {
        time: asked.time.unwrap_or(plain.time),
        interval: asked.interval.unwrap_or(plain.interval),
        retries: asked.probes.unwrap_or(plain.retries),
        ..plain
    }
}

/// HBONE as this waypoint's own identity where the endpoint speaks it, plain TCP elsewhere.
pub struct HboneDialer {
    own: Arc<Own>,
    tunnels: isobar_hbone::Pool,
    plain: PlainDialer,
    port: u16,
}

impl HboneDialer {
    /// A dialer over one worker's tunnels.
    #[must_use]
    pub fn new(own: Arc<Own>, tunnels: isobar_hbone::Pool) -> Self {
        Self {
            own,
            tunnels,
            plain: PlainDialer::default(),
            port: ports::HBONE,
        }
    }

    /// Tunnels as a waypoint opens them: with smaller windows than a node proxy's, as here what callers do not
    /// read comes together.
    #[must_use]
    pub fn tunnels(certificates: Rc<dyn Certificates>) -> isobar_hbone::Pool {
        let http2 = Http2 {
            stream_window: TUNNEL_STREAM,
            connection_window: TUNNEL,
            ..Http2::default()
        };
        let options = PoolOptions {
            http2,
            ..PoolOptions::default()
        };
        isobar_hbone::Pool::new(options, certificates)
    }

    /// The same, for peers that take tunnels on another port than 15008.
    #[must_use]
    pub const fn on_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    async fn tunnel(&self, to: &Endpoint) -> Result<AnyStream, DialFailure> {
        let key = TunnelKey {
            source: self.own.identity.clone(),
            expect: vec![to.workload.identity()],
            to: SocketAddr::new(to.tunnel_ip(), self.port),
            from: self.own.ip,
            workload: to.workload.uid.clone(),
        };
        let headers = ConnectHeaders::new(Authority::Address(to.address));
        match self.tunnels.open(&key, &headers).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(DialFailure {
                reason: error.reason(),
                detail: crate::upstream::chain(&error),
            }),
        }
    }
}

impl Dial for HboneDialer {
    fn dial<'a>(
        &'a self,
        to: &'a Endpoint,
        keepalive: Option<Keepalive>,
    ) -> LocalBoxFuture<'a, Result<AnyStream, DialFailure>> {
        match to.workload.tunnel {
            TunnelProtocol::Hbone => Box::pin(self.tunnel(to)),
            TunnelProtocol::None => self.plain.dial(to, keepalive),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rule_says_how_sockets_are_probed_and_the_rest_stays() {
        let plain = isobar_net::Keepalive::default();
        let asked = probes(Keepalive {
            probes: Some(2),
            time: Some(Duration::from_secs(7)),
            interval: None,
        });
        assert_eq!((asked.retries, asked.time), (2, Duration::from_secs(7)));
        assert_eq!(asked.interval, plain.interval);
    }
}
