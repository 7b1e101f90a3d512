use std::io;
use std::os::fd::AsRawFd;

use isobar_net::NetNs;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UnixDatagram;

/// nftables changes.
const RULES_GROUP: u32 = 1 << (7 - 1);
/// IPv4 and IPv6 routes and policy rules.
const ROUTES_GROUPS: u32 = (1 << (7 - 1)) | (1 << (8 - 1)) | (1 << (11 - 1)) | (1 << (19 - 1));

/// Tells when somebody changes rules or routes of a pod's namespace.
#[derive(Debug)]
pub(super) struct KernelEvents {
    rules: UnixDatagram,
    routes: UnixDatagram,
}

impl KernelEvents {
    /// Listens in `netns`.
    pub(super) fn open(netns: &NetNs) -> io::Result<Self> {
        Ok(Self {
            rules: listen(netns, SockProtocol::NetlinkNetFilter, RULES_GROUP)?,
            routes: listen(netns, SockProtocol::NetlinkRoute, ROUTES_GROUPS)?,
        })
    }

    /// Resolves when something was changed. Dropping it loses nothing but the news itself, which
    /// the next look at the namespace finds anyway.
    pub(super) async fn changed(&self) {
        tokio::select! {
            () = news(&self.rules) => {}
            () = news(&self.routes) => {}
        }
    }
}

/// Waits for one message and takes all that are queued: what they say is looked up, not read.
async fn news(socket: &UnixDatagram) {
    let mut buffer = [0; 4096];
    // An error means that messages were lost: something was changed.
    let _ = socket.recv(&mut buffer).await;
    while socket.try_recv(&mut buffer).is_ok() {}
}

fn listen(netns: &NetNs, protocol: SockProtocol, groups: u32) -> io::Result<UnixDatagram> {
    let fd = netns.enter(|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok::<_, io::Error>(fd)
    })??;
    // For receiving, a datagram socket is a datagram socket; this type brings the runtime's poller.
    UnixDatagram::from_std(fd.into())
}
