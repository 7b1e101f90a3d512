mod entry;
mod open;
mod tunnel;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;
use isobar_net::DialOptions;
use isobar_runtime::{LocalScope, Phase};
use isobar_tls::WorkloadCertificate;
use isobar_types::{Identity, Str};
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use entry::Slot;

use crate::{ConnectHeaders, Http2, Timeouts, TunnelError, TunnelStream};
use entry::{Entry, Turn};

/// A request that was not processed is sent no oftener.
const MOST_SENT: u32 = 4;

/// What makes two connections share a tunnel (as Istio's ztunnel does).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Who opens the tunnel: the source workload.
    pub source: Identity,
    /// Who may be at the other end, in order; nobody else is talked to.
    pub expect: Vec<Identity>,
    /// The peer proxy's address.
    pub to: SocketAddr,
    /// The source address of the application's connection.
    pub from: IpAddr,
    /// Uid of the workload at that address, empty where it is not known: the next one there, which may run
    /// as the same account, gets tunnels of its own.
    pub workload: Str,
}

/// Where a pool gets certificates from.
pub trait Certificates {
    /// The certificate of `identity` as it is now; the error is told as it stands.
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<WorkloadCertificate>, String>> + 'a>>;
}

/// How a pool opens tunnels.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Network namespace, mark and time limit of the TCP connections. Keepalive is set to none:
    /// tunnels have PING.
    pub dial: DialOptions,
    /// HTTP/2 parameters.
    pub http2: Http2,
    /// Time limits.
    pub timeouts: Timeouts,
}

impl Default for PoolOptions {
    fn default() -> Self {
        let dial = DialOptions {
            keepalive: None,
            ..DialOptions::default()
        };
        Self {
            dial,
            http2: Http2::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// Tunnels of one workload (or of one proxy's own), on one thread. Cheap to clone; when the last
/// clone is dropped its tunnels end, with the streams on them.
#[derive(Clone)]
pub struct Pool(Rc<Shared>);

pub(crate) struct Shared {
    options: PoolOptions,
    certificates: Rc<dyn Certificates>,
    entries: RefCell<HashMap<TunnelKey, Rc<Entry>, RandomState>>,
    scope: LocalScope,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(mut options: PoolOptions, certificates: Rc<dyn Certificates>) -> Self {
        options.dial.keepalive = None;
        let scope = LocalScope::new("hbone-pool");
        Self(Rc::new(Shared {
            options,
            certificates,
            entries: RefCell::default(),
            scope,
        }))
    }

    /// Opens a stream for `headers` on a tunnel of `key`, dialling one if there is none with room.
    /// A request that the peer certainly did not process, because it was going away, is sent again on
    /// another, a few times; one on a reused tunnel that had died unnoticed, once more.
    ///
    /// # Errors
    /// As [`TunnelError`] says. A failed dial is told to all who wait for it.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream, if one was opened; a dial goes on for others.
    pub async fn open(
        &self,
        key: &TunnelKey,
        headers: &ConnectHeaders,
    ) -> Result<TunnelStream, TunnelError> {
        let mut sent = 0;
        loop {
            let slot = self.slot(key).await?;
            let reused = slot.is_reused();
            match open::connect(slot, key.to, headers, &self.0.options.timeouts).await {
                Ok(stream) => return Ok(stream),
                Err(open::Failure { error, unprocessed }) => {
                    sent += 1;
                    let died = reused && sent == 1 && matches!(error, TunnelError::Lost { .. });
                    if !(died || unprocessed && sent < MOST_SENT) {
                        return Err(error);
                    }
                    tracing::debug!(to = %key.to, %error, "the tunnel ended under a request; once more");
                }
            }
        }
    }

    /// Opens a tunnel of its own through `io`, for one stream: the inner tunnel of a cross-network
    /// call, which is not pooled (as Istio's ztunnel does). `key.to` is only named in errors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_over<IO>(
        &self,
        io: IO,
        key: &TunnelKey,
        headers: &ConnectHeaders,
    ) -> Result<TunnelStream, TunnelError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let entry = Entry::new();
        let tunnel = tunnel::establish(&self.0, key, &entry, io).await?;
        let slot = entry.add_first(&tunnel);
        // The entry forgets the tunnel, so that it ends with its stream.
        entry.remove(&tunnel);
        drop(tunnel);
        open::connect(slot, key.to, headers, &self.0.options.timeouts)
            .await
            .map_err(|failure| failure.error)
    }

    /// Opens a stream across networks: a pooled tunnel to `gateway`, and through it a tunnel of its
    /// own to one of `expect`, so that the gateway may send each connection elsewhere (as Istio's
    /// ztunnel does). Both requests carry `headers`, but only the inner one `forwarded_network`.
    ///
    /// # Errors
    /// As [`Self::open`]; an empty `expect` can never succeed.
    ///
    /// # Cancel safety
    /// As [`Self::open`].
    pub async fn open_through(
        &self,
        gateway: &TunnelKey,
        expect: &[Identity],
        headers: &ConnectHeaders,
    ) -> Result<TunnelStream, TunnelError> {
        let outside = ConnectHeaders {
            forwarded_network: None,
            ..headers.clone()
        };
        let through = self.open(gateway, &outside).await?;
        let inside = TunnelKey {
            expect: expect.to_vec(),
            ..gateway.clone()
        };
        self.open_over(through, &inside, headers).await
    }

    /// Tunnels open now.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.0
            .entries
            .borrow()
            .values()
            .map(|entry| entry.len())
            .sum()
    }

    /// Streams open now.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0
            .entries
            .borrow()
            .values()
            .map(|entry| entry.streams())
            .sum()
    }

    /// Opens nothing any more; streams that are open go on, and tunnels end with their last.
    pub fn drain(&self) {
        self.0.scope.drain();
        self.0.entries.borrow_mut().clear();
    }

    async fn slot(&self, key: &TunnelKey) -> Result<Slot, TunnelError> {
        let entry = self.entry(key)?;
        let mut joined = None;
        loop {
            // Registered before looking, so that no change is missed.
            let changed = entry.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match entry.turn(&mut joined, self.0.options.http2.streams_per_tunnel)? {
                Turn::Slot(slot) => return Ok(slot),
                Turn::Dial(attempt) => self.dial(key.clone(), Rc::clone(&entry), attempt),
                Turn::Wait => {}
                Turn::None => {
                    return Err(TunnelError::Lost {
                        to: key.to,
                        detail: "the peer allows no streams".to_owned(),
                    });
                }
            }
            changed.await;
        }
    }

    fn entry(&self, key: &TunnelKey) -> Result<Rc<Entry>, TunnelError> {
        if self.0.scope.lifetime().phase() != Phase::Running {
            return Err(TunnelError::Drained);
        }
        let mut entries = self.0.entries.borrow_mut();
        if let Some(entry) = entries.get(key) {
            return Ok(Rc::clone(entry));
        }
        let entry = Entry::new();
        entries.insert(key.clone(), Rc::clone(&entry));
        Ok(entry)
    }

    /// Dials in a task of its own: a caller that goes away must not take the dial with it.
    fn dial(&self, key: TunnelKey, entry: Rc<Entry>, attempt: u64) {
        let pool = Rc::downgrade(&self.0);
        let guard = entry::AttemptGuard::new(Rc::clone(&entry), attempt);
        self.0.scope.spawn("dial", async move {
            let result = tunnel::dial(&pool, &key, &entry).await;
            let failed = result.is_err();
            guard.finish(result);
            if failed && let Some(pool) = pool.upgrade() {
                pool.forget_if_empty(&key, &entry);
            }
        });
    }
}

impl Shared {
    /// Drops the entry of a key that has neither tunnels nor a dial.
    fn forget_if_empty(&self, key: &TunnelKey, entry: &Rc<Entry>) {
        let mut entries = self.entries.borrow_mut();
        if entry.is_empty() && entries.get(key).is_some_and(|held| Rc::ptr_eq(held, entry)) {
            entries.remove(key);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("tunnels", &self.tunnels())
            .finish_non_exhaustive()
    }
}
