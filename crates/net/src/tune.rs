use std::io;
use std::time::Duration;

use socket2::{SockRef, Socket, TcpKeepalive};

use crate::NetNs;

/// TCP keepalive of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection is given up.
    pub retries: u32,
    /// Also give up sent data that is not acknowledged within `time + interval × retries`.
    pub user_timeout: bool,
}

impl Default for Keepalive {
    /// 180 s, 180 s, 9 (as Istio's ztunnel does).
    fn default() -> Self {
        let step = Duration::from_secs(180);
        Self {
            time: step,
            interval: step,
            retries: 9,
            user_timeout: false,
        }
    }
}

impl Keepalive {
    pub(crate) fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        let keepalive = TcpKeepalive::new()
            .with_time(self.time)
            .with_interval(self.interval)
            .with_retries(self.retries);
        socket.set_tcp_keepalive(&keepalive)?;
        if self.user_timeout {
            socket.set_tcp_user_timeout(Some(self.time + self.interval * self.retries))?;
        }
        Ok(())
    }
}

/// How much an option of a socket matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Want {
    /// Leave it off.
    #[default]
    Never,
    /// Go on without it if the system refuses.
    Try,
    /// Fail if the system refuses.
    Require,
}

impl Want {
    /// Runs `set` if wanted; its failure counts only if required.
    pub(crate) fn apply(
        self,
        what: &'static str,
        set: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        match (self, set) {
            (Self::Never, _) => Ok(()),
            (Self::Require, set) => set(),
            (Self::Try, set) => {
                if let Err(error) = set() {
                    tracing::debug!(%error, what, "a socket option is refused; going on without");
                }
                Ok(())
            }
        }
    }
}

/// Lets sockets carry traffic for addresses that are not ours. One flag per socket covers both
/// families, set at the IPv4 level (as Istio's ztunnel does).
pub(crate) fn transparent(socket: &Socket) -> io::Result<()> {
    socket.set_ip_transparent_v4(true)
}

/// Switches `net.ipv4.tcp_migrate_req` on in a namespace, so that connections waiting at a
/// `SO_REUSEPORT` listener that closes move to its siblings.
///
/// # Errors
/// When the namespace cannot be entered or its settings cannot be written.
pub fn set_tcp_migrate_req(netns: &NetNs) -> io::Result<()> {
    netns.enter(|| std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1"))?
}

/// Makes the close of a connection a reset (RST) instead of an end (FIN), dropping what is unsent.
pub fn reset_on_close(stream: &tokio::net::TcpStream) {
    // Fails only on a socket that is closed already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
