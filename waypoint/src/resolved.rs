//! Endpoints that are told by a host name, as one endpoint for each of its addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use isobar_runtime::LocalScope;
use isobar_state::balance::Candidate;
use isobar_state::{Endpoint, TunnelProtocol, Workload};
use isobar_types::{NetworkAddress, Str};

use crate::attribution::Peer;
use crate::edge::network;
use crate::names::{Known, Names, behind};
use crate::world::View;

/// Stands between the uid of a workload and the address of one of its endpoints.
const MARK: char = '#';
/// Begins the host name of what stands for all of a domain.
const WILDCARD: &str = "*.";

/// Names as one worker looks at them.
#[derive(Debug)]
pub(crate) struct Resolver {
    names: Names,
    scope: Rc<LocalScope>,
}

/// A host that a caller names within a domain.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// As the caller writes it, without a port.
    pub host: &'a str,
    /// In whose turn it is asked for: see [`turn_of`].
    pub turn: &'a str,
}

/// A name that has to be asked for, among those that callers name or those of configuration.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    names: Names,
    name: Str,
    caller: Str,
}

/// What was answered for names that had to be asked for.
pub(crate) type Answers = HashMap<Str, Arc<[IpAddr]>>;

/// What host names came to.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// Endpoints with an address, and their ports.
    pub(crate) endpoints: Vec<(Endpoint, u16)>,
    /// Names that have to be asked for first.
    pub(crate) missing: Vec<Missing>,
}

impl Resolver {
    pub(crate) const fn new(names: Names, scope: Rc<LocalScope>) -> Self {
        Self { names, scope }
    }

    /// Takes out of `candidates` those without an address, and those that are told as something
    /// outside while their address is that of a pod of the mesh: what they are instead. `asked` is the
    /// host that the request is for: what stands for all of a domain is that host then.
    pub(crate) fn resolve(
        &self,
        view: &View,
        candidates: &mut Vec<Candidate<'_>>,
        asked: Option<Asked<'_>>,
        answers: &Answers,
    ) -> Resolved {
        let mut resolved = Resolved::default();
        // Pods are on a node; what is told by ServiceEntries and WorkloadEntries is not.
        let is_itself = |c: &Candidate<'_>| {
            let workload = &c.endpoint.workload;
            !workload.node.is_empty()
                || (workload.tunnel == TunnelProtocol::Hbone && !workload.addresses.is_empty())
        };
        if candidates.iter().all(is_itself) {
            return resolved;
        }
        let mut left = Vec::with_capacity(candidates.len());
        for candidate in candidates.drain(..) {
            let workload = &candidate.endpoint.workload;
            if is_itself(&candidate) {
                left.push(candidate);
                continue;
            }
            let addresses = match workload.addresses.first() {
                Some(ip) => match meshed(view, candidate.endpoint, *ip) {
                    Some(pod) => {
                        resolved.endpoints.push((pod, candidate.port));
                        continue;
                    }
                    None => {
                        left.push(candidate);
                        continue;
                    }
                },
                None if workload.hostname.starts_with(WILDCARD) => {
                    self.of_domain(view, &candidate, (asked, answers), &mut resolved);
                    continue;
                }
                None => self.addresses(
                    (&self.names, ""),
                    &workload.hostname,
                    answers,
                    &mut resolved.missing,
                ),
            };
            for ip in addresses.iter() {
                let one = at(candidate.endpoint, "", *ip);
                let one = meshed(view, &one, *ip).unwrap_or(one);
                resolved.endpoints.push((one, candidate.port));
            }
        }
        *candidates = left;
        resolved
    }

    /// The endpoints of one host of a domain. Hosts are named by callers here, and their addresses by
    /// whoever has the domain: neither reaches what is the mesh's own, or this machine's.
    fn of_domain(
        &self,
        view: &View,
        candidate: &Candidate<'_>,
        (asked, answers): (Option<Asked<'_>>, &Answers),
        resolved: &mut Resolved,
    ) {
        let workload = &candidate.endpoint.workload;
        let named =
            asked.and_then(|asked| Some((in_domain(asked.host, &workload.hostname)?, asked.turn)));
        let Some((name, turn)) = named else {
            return;
        };
        let named = (self.names.of_callers(), turn);
        let found = self.addresses(named, &name, answers, &mut resolved.missing);
        for ip in found.iter() {
            let of_mesh = [*ip, behind(*ip)].into_iter().any(|ip| {
                let place = NetworkAddress::new(workload.network.clone(), ip);
                view.snapshot.has_address(&place)
            });
            if of_mesh || !self.names.takes(*ip) {
                tracing::debug!(%name, %ip, "a host outside the mesh has an address that is not");
                continue;
            }
            // Two hosts of one address are two endpoints.
            let one = at(candidate.endpoint, &format!("{name}{MARK}"), *ip);
            resolved.endpoints.push((one, candidate.port));
        }
    }

    /// What is known of a name; asks for it where that is due.
    fn addresses(
        &self,
        (names, caller): (&Names, &str),
        name: &Str,
        answers: &Answers,
        missing: &mut Vec<Missing>,
    ) -> Arc<[IpAddr]> {
        if let Some(answer) = answers.get(name) {
            return Arc::clone(answer);
        }
        match names.now(name) {
            Known::Fresh(addresses) => addresses,
            Known::Due(addresses) => {
                self.ask((names, caller), name);
                addresses
            }
            Known::Not => {
                self.ask((names, caller), name);
                missing.push(Missing {
                    names: names.clone(),
                    name: name.clone(),
                    caller: caller.into(),
                });
                Arc::default()
            }
        }
    }

    fn ask(&self, (names, caller): (&Names, &str), name: &Str) {
        if !names.undertake(name, caller) {
            return;
        }
        let (names, name, caller) = (names.clone(), name.clone(), Str::from(caller));
        self.scope.spawn("host name", async move {
            names.ask_for(&name, &caller).await;
        });
    }

    /// Waits until these names have been asked for.
    pub(crate) async fn wait(&self, missing: Vec<Missing>) -> Answers {
        let all = missing.into_iter().map(async |one| {
            let addresses = one.names.ask_for(&one.name, &one.caller).await;
            (one.name, addresses)
        });
        let all = futures_util::future::join_all(all).await;
        all.into_iter().collect()
    }
}

/// In whose turn a caller's hosts are asked for: its account's, or without an identity that of its place.
pub(crate) fn turn_of(caller: &Peer) -> Str {
    let turn = match &caller.identity {
        Some(own) => format!("{}/{}", own.namespace, own.service_account),
        None => network(caller.address.ip().to_canonical()).to_string(),
    };
    turn.into()
}

/// A host as it is asked for by DNS, if it is one of the domain that `pattern` stands for.
fn in_domain(asked: &str, pattern: &str) -> Option<Str> {
    let asked = asked.trim_end_matches('.').to_ascii_lowercase();
    let own = asked.strip_suffix(pattern.strip_prefix('*')?)?;
    let good = |label: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(fits)
    };
    (asked.len() <= 253 && own.split('.').all(good)).then(|| asked.into())
}

fn at(endpoint: &Endpoint, name: &str, ip: IpAddr) -> Endpoint {
    let workload = &endpoint.workload;
    Endpoint {
        workload: Arc::new(Workload {
            uid: format!("{}{MARK}{name}{ip}", workload.uid).into(),
            addresses: vec![ip].into(),
            ..Workload::clone(workload)
        }),
        ports: endpoint.ports.clone(),
    }
}

/// The pod of the mesh at this address, in place of an endpoint that is told without one.
fn meshed(view: &View, endpoint: &Endpoint, ip: IpAddr) -> Option<Endpoint> {
    let told = &endpoint.workload;
    if told.tunnel == TunnelProtocol::Hbone {
        return None;
    }
    let here = NetworkAddress::new(told.network.clone(), ip);
    let mut there = view.snapshot.workloads_at(&here).iter();
    let pod = there.find(|w| w.tunnel == TunnelProtocol::Hbone)?;
    Some(Endpoint {
        workload: Arc::clone(pod),
        ports: endpoint.ports.clone(),
    })
}

/// True for endpoints of a host that a caller has named: there are as many as callers think of.
pub(crate) fn is_named_by_caller(workload: &Workload) -> bool {
    workload.hostname.starts_with(WILDCARD) && workload.uid.contains(MARK)
}

/// The uid that the mesh knows a workload by.
pub(crate) fn told(uid: &str) -> &str {
    uid.split_once(MARK).map_or(uid, |(told, _)| told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_have_turns_by_account_and_without_one_by_place() {
        let turn = |account: Option<&str>, ip: &str| {
            let of = |account| isobar_types::Identity::new("cluster.local", "shop", account);
            turn_of(&Peer {
                identity: account.map(of),
                address: (ip.parse::<IpAddr>().unwrap(), 4000).into(),
                foreign: false,
            })
        };
        assert_eq!(turn(Some("a"), "10.0.0.1"), turn(Some("a"), "10.0.0.2"));
        assert_ne!(turn(Some("a"), "10.0.0.1"), turn(Some("b"), "10.0.0.1"));
        assert_ne!(turn(None, "192.0.2.1"), turn(None, "192.0.2.2"));
        assert_eq!(turn(None, "192.0.2.1"), turn(None, "::ffff:192.0.2.1"));
        // Who has one address of a network may have all of them.
        assert_eq!(turn(None, "2001:db8::1"), turn(None, "2001:db8::2"));
        assert_ne!(turn(None, "2001:db8::1"), turn(None, "2001:db8:0:1::1"));
    }

    #[test]
    fn only_hosts_of_the_domain_are_asked_for() {
        let within = |asked| in_domain(asked, "*.example.com").map(|name| name.to_string());
        for (asked, name) in [
            ("a.example.com", Some("a.example.com")),
            ("A.b.Example.com.", Some("a.b.example.com")),
            ("_x.example.com", Some("_x.example.com")),
            ("example.com", None),
            (".example.com", None),
            ("a..example.com", None),
            ("aexample.com", None),
            ("a.example.com.evil", None),
            ("a/b.example.com", None),
            ("a b.example.com", None),
            ("", None),
        ] {
            assert_eq!(within(asked).as_deref(), name, "{asked}");
        }
        let long = format!("{}.example.com", "a".repeat(64));
        assert_eq!(within(&long), None);
    }
}
