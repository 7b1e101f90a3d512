use std::io;
use std::path::PathBuf;
use std::time::Duration;

use isobar_net::{Packet, PacketError, SeqPacket};
use isobar_runtime::{Backoff, Lifetime};
use isobar_telemetry::Gate;

use super::message::{PACKET, ProtocolError, Request, answer, hello};
use super::session::{Fatal, PodHost, Session};
use crate::pods::PendingPods;

/// How often pods that could not be started are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// First wait after a failed connect (Istio's ztunnel: 20 ms).
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// Longest wait after a failed connect. The agent on the same node may restart at any time, and
/// until we are back it cannot start pods.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Keeps a connection to the node agent and does what it says.
#[derive(Debug)]
pub struct Client<H> {
    path: PathBuf,
    host: H,
    gate: Gate,
    pending: PendingPods,
}

enum Ended {
    Lost(io::Error),
    Protocol(String),
    Fatal(String),
}

impl<H: PodHost> Client<H> {
    /// A client that tells `gate` whether every announced pod is served.
    pub const fn new(path: PathBuf, host: H, gate: Gate, pending: PendingPods) -> Self {
        Self {
            path,
            host,
            gate,
            pending,
        }
    }

    /// Runs until `life` drains. Pods served go on while the agent is away.
    ///
    /// # Errors
    /// When the agent contradicts itself: the process must start over.
    pub async fn run(self, life: Lifetime) -> Result<(), Fatality> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut away = false;
        loop {
            let mut connected = false;
            let ended = tokio::select! {
                () = life.draining() => return Ok(()),
                ended = self.connection(&mut backoff, &mut connected) => ended,
            };
            away &= !connected;
            self.gate.close();
            match ended {
                Ended::Lost(error) if away => tracing::debug!(%error, "node agent is still away"),
                Ended::Lost(error) => {
                    tracing::info!(%error, "node agent is away; pods go on as they are");
                }
                Ended::Protocol(error) => {
                    tracing::warn!(%error, "the node agent broke the protocol; connecting anew");
                }
                Ended::Fatal(text) => return Err(Fatality(text)),
            }
            away = true;
            let wait = backoff.step(rand::random());
            tokio::select! {
                () = life.draining() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn connection(&self, backoff: &mut Backoff, connected: &mut bool) -> Ended {
        let packets = match SeqPacket::connect(&self.path) {
            Ok(packets) => packets,
            Err(error) => return Ended::Lost(error),
        };
        if let Err(error) = packets.send(&hello(), &[]).await {
            return Ended::Lost(error);
        }
        backoff.reset();
        *connected = true;
        tracing::info!("connected to the node agent");
        let mut session = Session::new();
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut buffer = [0; PACKET];
        loop {
            tokio::select! {
                packet = packets.recv(&mut buffer) => match self.answer(&mut session, &packets, packet, &buffer).await {
                    Ok(()) => {}
                    Err(ended) => return ended,
                },
                _ = retry.tick(), if session.pending() > 0 => session.retry(&self.host).await,
            }
            self.pending.set(session.pending_pods());
            if session.is_settled() {
                self.gate.pass();
            } else {
                self.gate.close();
            }
        }
    }

    async fn answer(
        &self,
        session: &mut Session,
        packets: &SeqPacket,
        packet: Result<Option<Packet>, PacketError>,
        buffer: &[u8],
    ) -> Result<(), Ended> {
        let packet = match packet {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err(Ended::Lost(io::ErrorKind::UnexpectedEof.into())),
            Err(PacketError::Io(error)) => return Err(Ended::Lost(error)),
            Err(error) => {
                // The connection is given up either way.
                let _ = packets.send(&answer(&Err(error.to_string())), &[]).await;
                return Err(Ended::Protocol(error.to_string()));
            }
        };
        let bytes = buffer.get(..packet.len).unwrap_or_default();
        let request = match Request::decode(bytes, packet.fds) {
            Ok(request) => request,
            Err(error @ ProtocolError::NoInfo { .. }) => {
                return Err(Ended::Fatal(error.to_string()));
            }
            Err(error) => {
                // The connection is given up either way.
                let _ = packets.send(&answer(&Err(error.to_string())), &[]).await;
                return Err(Ended::Protocol(error.to_string()));
            }
        };
        let reply = session
            .handle(request, &self.host)
            .await
            .map_err(|fatal: Fatal| Ended::Fatal(fatal.to_string()))?;
        packets
            .send(&answer(&reply), &[])
            .await
            .map_err(Ended::Lost)
    }
}

/// The node agent contradicted itself; nobody knows which pods should be served.
#[derive(Debug, thiserror::Error)]
#[error("node agent: {0}")]
pub struct Fatality(String);
