//! Sockets and network namespaces; the only crate with unsafe code.
//!
//! Sockets for a pod are created while the calling thread stands inside the pod's network
//! namespace ([`NetNs::enter`]); they live there afterwards, while the code runs here.

#![deny(unsafe_op_in_unsafe_fn)]

mod dial;
mod limits;
mod listen;
mod netns;
mod original;
mod seqpacket;
mod share;
mod splice;
#[cfg(test)]
mod tests;
mod tune;

pub use dial::{DialError, DialOptions, Source, dial};
pub use limits::{next_descriptor, open_files_limit, raise_open_files};
pub use listen::{ListenOptions, UdpOptions, listen, udp};
pub use netns::{NetNs, NetNsId};
pub use original::{local_addr, original_dst, peer_addr};
pub use seqpacket::{Packet, PacketError, PeerCredentials, SeqPacket, SeqPacketListener};
pub use share::Share;
pub use splice::Pipe;
pub use tune::{Keepalive, Want, reset_on_close, set_tcp_migrate_req};
