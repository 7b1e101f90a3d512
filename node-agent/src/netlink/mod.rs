//! The few kernel questions that are asked often, and the policy route, as plain netlink messages.
//!
//! A socket belongs to the namespace of the thread that makes it: call these inside
//! [`isobar_net::NetNs::enter`]. Every call blocks, two seconds at most.

mod routing;
mod sockets;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub use routing::{add_routes, has_routes, remove_routes};
pub use sockets::{Connection, connections};

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Large enough for what the kernel packs into one datagram of a dump.
const BUFFER: usize = 64 * 1024;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// nftables subsystem, message "get generation".
const GET_GENERATION: u16 = (10 << 8) | 16;
const GENERATION_ID: u16 = 1;

/// The number that changes with every transaction on the namespace's nftables rules.
///
/// # Errors
/// Without nftables in the kernel, or without the right to ask.
pub fn rules_generation() -> io::Result<u32> {
    let socket = open(SockProtocol::NetlinkNetFilter)?;
    // Family unspecified, version 0, no resource.
    ask(&socket, GET_GENERATION, REQUEST, &[0; 4])?;
    let mut generation = None;
    answers(&socket, |kind, body| {
        if kind != ERROR {
            generation = attribute(body.get(4..).unwrap_or_default(), GENERATION_ID)
                .and_then(|value| value.first_chunk::<4>())
                .map(|bytes| u32::from_be_bytes(*bytes));
        }
        false
    })?;
    generation.ok_or_else(|| io::Error::other("the kernel did not tell its rule generation"))
}

fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

fn ask(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    Ok(())
}

/// Hands each message to `take` until it says false or the kernel says it is done.
fn answers(socket: &OwnedFd, mut take: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = message(rest) {
            if kind == DONE {
                return Ok(());
            }
            if kind == ERROR {
                let code = body
                    .first_chunk::<4>()
                    .map_or(0, |b| i32::from_ne_bytes(*b));
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
            }
            if !take(kind, body) {
                return Ok(());
            }
            rest = next;
        }
    }
}

/// Type, body and what follows of the first message in a datagram.
fn message(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header = datagram.first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let body = datagram.get(HEADER..length)?;
    let next = datagram.get(align(length)..).unwrap_or_default();
    Some((u16::from_ne_bytes([header[4], header[5]]), body, next))
}

/// Value of the first attribute of this type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(header) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(align(length)..)?;
    }
    None
}

/// Appends an attribute with a four-byte value.
fn push_u32(message: &mut Vec<u8>, kind: u16, value: u32) {
    message.extend_from_slice(&8u16.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&value.to_ne_bytes());
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_and_broken_ones_end_the_search() {
        let bytes = [5u16.to_ne_bytes(), 1u16.to_ne_bytes()].concat();
        let mut list = bytes;
        list.extend_from_slice(&[7, 0, 0, 0]);
        list.extend_from_slice(&8u16.to_ne_bytes());
        list.extend_from_slice(&2u16.to_ne_bytes());
        list.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(attribute(&list, 2), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&list, 3), None);
        assert_eq!(attribute(&[0, 0, 0, 0], 1), None);
        assert_eq!(attribute(&[9, 0, 1, 0, 1], 1), None);
    }
}
