use std::time::Duration;

/// Payload that fills a TLS record. [`TOGETHER`] of them, with what is around, fit one packet of the
/// kernel's: 64 KiB less its headers, in whole segments of 1398 to 1460 bytes. A rest beyond that would
/// take a way through the network of its own, which costs as much as the whole.
pub(crate) const DATA_MAX: usize = 16_000;
/// Records that are written at once.
pub(crate) const TOGETHER: usize = 4;
/// Longest payload of a DATA frame sent, if the peer takes it: what is written at once. So the peer has
/// as much of one stream in hand when it passes it on.
pub(crate) const FRAME_MAX: usize = TOGETHER * DATA_MAX;
/// What HTTP/2 and TLS 1.3 put around the payload of a record, at most.
pub(crate) const AROUND: usize = FRAME_HEAD + RECORD;
/// What HTTP/2 puts before a frame.
pub(crate) const FRAME_HEAD: usize = 9;
/// What TLS 1.3 puts around a record.
pub(crate) const RECORD: usize = 22;
/// Longest header list taken from a client, in bytes (as Istio's ztunnel does).
pub(crate) const SERVER_HEADERS: u32 = 64 * 1024;
/// Longest header list taken from a server, in bytes.
pub(crate) const CLIENT_HEADERS: u32 = 16 * 1024;
/// Streams of one connection a client may have open.
pub(crate) const SERVER_STREAMS: u32 = 200;
/// Bytes of one stream that wait for the connection before a writer has to wait. With many streams
/// what they may have together counts first (`unsent`).
pub(crate) const SEND_BUFFER: usize = 2 * FRAME_MAX;
/// Streams reset by the peer before we took them, beyond which the connection ends.
pub(crate) const PENDING_RESETS: usize = 50;
/// Streams reset by us for the peer's errors, beyond which the connection ends.
pub(crate) const ERROR_RESETS: usize = 128;
/// Overhead of small DATA frames that nobody has read yet, in bytes (each counts as what it lacks
/// to 256), beyond which the connection ends. Tunnels carry other people's single bytes. Relays take
/// them out at once, also when they cannot pass them on; this is what may arrive in between.
pub(crate) const DATA_FRAME_BUDGET: usize = 6 * 1024 * 1024;

/// HTTP/2 parameters of both ends (as Istio's ztunnel does).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2 {
    /// Receive window of a stream, in bytes.
    pub stream_window: u32,
    /// Receive window of a connection, in bytes.
    pub connection_window: u32,
    /// Largest frame the peer may send, in bytes.
    pub frame_size: u32,
    /// Streams a pool puts on one tunnel, if the peer allows as many.
    pub streams_per_tunnel: usize,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            stream_window: 4 * 1024 * 1024,
            connection_window: 16 * 1024 * 1024,
            frame_size: 1024 * 1024,
            streams_per_tunnel: 100,
        }
    }
}

/// Time limits of both ends. (TCP has its own in [`isobar_net::DialOptions`].)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub tls: Duration,
    /// For the peer's preface and SETTINGS.
    pub settings: Duration,
    /// For the answer to CONNECT. Longer than the peer's own limits (10 s to reach the
    /// application, 5 s to learn of it), so that its answer arrives before ours is made up.
    pub connect: Duration,
    /// Between PINGs.
    pub ping_interval: Duration,
    /// For the answer to a PING.
    pub ping_timeout: Duration,
    /// A tunnel without streams closes after this.
    pub idle: Duration,
    /// How long a tunnel may outlive the peer's certificate.
    pub past_expiry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tls: Duration::from_secs(10),
            settings: Duration::from_secs(10),
            connect: Duration::from_secs(20),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(15),
            idle: Duration::from_secs(300),
            past_expiry: Duration::from_secs(24 * 3600),
        }
    }
}
