use std::io;

use isobar_types::ports;
use nix::sys::socket::SockProtocol;

use super::{ACK, AF_INET, AF_INET6, DUMP, REQUEST, answers, ask, attribute, open, push_u32};
use crate::plan::{ROUTE_TABLE, RULE_PRIORITY};

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

const RULE_PRIORITY_ATTRIBUTE: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
const RULE_TO_TABLE: u8 = 1;

const ROUTE_DEVICE: u16 = 4;
const ROUTE_TABLE_ATTRIBUTE: u16 = 15;
const ROUTE_LOCAL: u8 = 2;
const ROUTE_STATIC: u8 = 4;
const SCOPE_HOST: u8 = 254;
/// `lo` is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// Adds what leads marked packets to the loopback interface: one policy rule and one route for each
/// address family that the namespace uses. What is there already stays.
///
/// # Errors
/// When the kernel refuses.
pub fn add_routes() -> io::Result<()> {
    for family in families() {
        let flags = REQUEST | ACK | CREATE | EXCLUSIVE;
        change(NEW_ROUTE, flags, &route(family), nix::libc::EEXIST)?;
        change(NEW_RULE, flags, &rule(family), nix::libc::EEXIST)?;
    }
    Ok(())
}

/// Removes what [`add_routes`] added. What is gone already is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_routes() -> io::Result<()> {
    for family in families() {
        let flags = REQUEST | ACK;
        change(DELETE_RULE, flags, &rule(family), nix::libc::ENOENT)?;
        change(DELETE_ROUTE, flags, &route(family), nix::libc::ESRCH)?;
    }
    Ok(())
}

/// True if everything that [`add_routes`] adds is there.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn has_routes() -> io::Result<bool> {
    for family in families() {
        let mut request = vec![0; 12];
        request[0] = family;
        let (mut rule, mut route) = (false, false);
        let socket = open(SockProtocol::NetlinkRoute)?;
        ask(&socket, GET_RULE, REQUEST | DUMP, &request)?;
        answers(&socket, |kind, body| {
            rule |= kind == NEW_RULE && is_our_rule(body);
            true
        })?;
        ask(&socket, GET_ROUTE, REQUEST | DUMP, &request)?;
        answers(&socket, |kind, body| {
            route |= kind == NEW_ROUTE && is_our_route(body);
            true
        })?;
        if !(rule && route) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// IPv4, and IPv6 unless the kernel or the namespace has it off.
fn families() -> impl Iterator<Item = u8> {
    let off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .map_or(true, |text| text.trim() == "1");
    [Some(AF_INET), (!off).then_some(AF_INET6)]
        .into_iter()
        .flatten()
}

fn change(kind: u16, flags: u16, body: &[u8], harmless: i32) -> io::Result<()> {
    let socket = open(SockProtocol::NetlinkRoute)?;
    ask(&socket, kind, flags, body)?;
    match answers(&socket, |_, _| false) {
        Err(error) if error.raw_os_error() == Some(harmless) => Ok(()),
        other => other,
    }
}

fn rule(family: u8) -> Vec<u8> {
    let mut message = vec![family, 0, 0, 0, 0, 0, 0, RULE_TO_TABLE, 0, 0, 0, 0];
    push_u32(&mut message, RULE_PRIORITY_ATTRIBUTE, RULE_PRIORITY);
    push_u32(&mut message, RULE_MARK, ports::CONNECTION_MARK);
    push_u32(&mut message, RULE_MASK, ports::MARK_MASK);
    push_u32(&mut message, RULE_TABLE, ROUTE_TABLE);
    message
}

fn route(family: u8) -> Vec<u8> {
    // IPv6 knows no scopes.
    let scope = if family == AF_INET { SCOPE_HOST } else { 0 };
    let mut message = vec![
        family,
        0,
        0,
        0,
        0,
        ROUTE_STATIC,
        scope,
        ROUTE_LOCAL,
        0,
        0,
        0,
        0,
    ];
    push_u32(&mut message, ROUTE_DEVICE, LOOPBACK);
    push_u32(&mut message, ROUTE_TABLE_ATTRIBUTE, ROUTE_TABLE);
    message
}

fn is_our_rule(body: &[u8]) -> bool {
    let number = |kind| number(body, kind);
    number(RULE_PRIORITY_ATTRIBUTE) == Some(RULE_PRIORITY)
        && number(RULE_MARK) == Some(ports::CONNECTION_MARK)
        && number(RULE_MASK) == Some(ports::MARK_MASK)
        && number(RULE_TABLE) == Some(ROUTE_TABLE)
}

fn is_our_route(body: &[u8]) -> bool {
    body.get(1) == Some(&0)
        && body.get(7) == Some(&ROUTE_LOCAL)
        && number(body, ROUTE_TABLE_ATTRIBUTE) == Some(ROUTE_TABLE)
        && number(body, ROUTE_DEVICE) == Some(LOOPBACK)
}

fn number(body: &[u8], kind: u16) -> Option<u32> {
    let value = attribute(body.get(12..)?, kind)?;
    value.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b))
}
