//! Who has a port, and a host on it, where several want it: whoever comes first.

use std::collections::BTreeMap;

use isobar_proto::isobar::v1 as wire;
use wire::listener::Protocol;

use super::hosts::{exactness, meet};
use super::servers::{Flaw, Server};

/// Ports of one gateway's pods, and the hosts that are taken there.
#[derive(Debug, Default)]
pub(in super::super) struct Claims {
    /// Servers of several owners share a host in the clear where they say the same of it.
    sharing: bool,
    ports: BTreeMap<u16, Vec<Claim>>,
}

#[derive(Debug)]
struct Claim {
    host: String,
    only: Option<String>,
    protocol: Protocol,
    https_redirect: bool,
    of: String,
}

/// What cannot be spoken side by side on a port.
const fn class(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Https | Protocol::Tls => "TLS",
        Protocol::Tcp => "TCP",
    }
}

impl Claims {
    pub(super) const fn new(sharing: bool) -> Self {
        Self {
            sharing,
            ports: BTreeMap::new(),
        }
    }

    /// Takes what is free of what a server wants and leaves the rest out of it; what it does not get.
    /// A server that gets nothing is `None`.
    pub(super) fn settle(
        &mut self,
        mut server: Server,
        of: &str,
    ) -> (Option<Server>, Option<Flaw>) {
        let sharing = self.sharing && server.protocol == Protocol::Http;
        let port = self.ports.entry(server.bind).or_default();
        if let Some(first) = port.first()
            && class(first.protocol) != class(server.protocol)
        {
            let word = class(first.protocol);
            let text = format!("port {} speaks {word} for {}", server.bind, first.of);
            return (None, Some(("ProtocolConflict", text)));
        }
        let taken = |host: &str, only: Option<&str>| {
            // Without TLS and HTTP nothing tells hosts apart.
            let opaque = server.protocol == Protocol::Tcp;
            let mut have = port.iter().filter(|one| opaque || one.host == host);
            let first = have.clone().next()?;
            let shares = |one: &Claim| {
                let same = one.only.is_none() || one.only.as_deref() == only;
                sharing && same && one.https_redirect == server.https_redirect
            };
            (!have.any(shares)).then(|| format!("{host} of port {} is {}'s", server.bind, first.of))
        };
        let mut lost = Vec::new();
        let mut free = Vec::new();
        for shown in &server.hosts {
            match taken(&shown.host, shown.only.as_deref()) {
                Some(text) => lost.push(text),
                None => free.push(shown.clone()),
            }
        }
        port.extend(free.iter().map(|shown| Claim {
            host: shown.host.clone(),
            only: shown.only.clone(),
            protocol: server.protocol,
            https_redirect: server.https_redirect,
            of: of.to_owned(),
        }));
        server.hosts = free;
        let flaw = (!lost.is_empty()).then(|| ("HostnameConflict", lost.join("; ")));
        ((!server.hosts.is_empty()).then_some(server), flaw)
    }

    /// True if this host, as it is written somewhere, is the most exact one of the port for `host`:
    /// elsewhere `host` does not count, whoever is let in there.
    pub(in super::super) fn is_for(&self, port: u16, written: &str, host: &str) -> bool {
        let takes = self
            .hosts(port)
            .filter(|one| meet(one, host).as_deref() == Some(host));
        takes.max_by_key(|one| exactness(one)) == Some(written)
    }

    /// Every host that is taken on a port.
    pub(super) fn hosts(&self, port: u16) -> impl Iterator<Item = &str> {
        let all = self.ports.get(&port).into_iter().flatten();
        all.map(|one| one.host.as_str())
    }
}
