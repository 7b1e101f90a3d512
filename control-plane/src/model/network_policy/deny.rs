//! The DENY itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use isobar_proto::isobar::v1 as isobar;
use isobar_proto::istio::security as wire;
use isobar_proto::istio::security::string_match::MatchType;
use isobar_proto::istio::workload::Extension;
use isobar_proto::type_url;
use prost::Message;

use super::ports::{Others, Ports};
use super::sources::{Listed, Neighbours, Sources};
use crate::model::services::octets;
use crate::model::settings::PortRules;

/// Name of the extension; only its type counts.
const EXTENSION: &str = "isobar.dev/audited-rules";

/// What ingress rules open.
pub(super) struct Opening<'a> {
    /// To whom.
    pub(super) sources: &'a Sources,
    /// What [`Neighbours::bytes`] says of them.
    pub(super) bytes: usize,
    /// Which ports.
    pub(super) ports: &'a Ports,
    /// Who they are.
    pub(super) neighbours: &'a Neighbours<'a>,
}

/// What would take more bytes than there are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwritable;

impl Opening<'_> {
    /// Clauses that hold for whoever the rules do not let in, and the bytes that they take, of which there
    /// are `room`. All clauses have to hold; none if nobody is let in.
    pub(super) fn clauses(&self, room: usize) -> Result<(Vec<wire::Clause>, usize), Unwritable> {
        let port = match self.ports.others() {
            // Ports that take so many numbers open nothing: their rule was told of.
            Others::TooMany(_) | Others::All => return Ok((Vec::new(), 0)),
            Others::None => None,
            Others::Not(list) => Some(wire::Match {
                not_destination_ports: list,
                ..wire::Match::default()
            }),
            Others::Only(list) => Some(wire::Match {
                destination_ports: list,
                ..wire::Match::default()
            }),
        };
        let ports = port.as_ref().map_or(0, Message::encoded_len);
        let bytes = self.bytes + ports * self.repeats();
        if bytes > room {
            return Err(Unwritable);
        }
        let clauses = match self.sources {
            Sources::Everyone => port.map(|port| clause(vec![port])).into_iter().collect(),
            Sources::Listed(listed) => strangers(listed, port.as_ref(), self.neighbours),
        };
        Ok((clauses, bytes))
    }

    /// How often the ports are written.
    fn repeats(&self) -> usize {
        match self.sources {
            Sources::Everyone => 1,
            Sources::Listed(listed) => {
                let own = listed
                    .blocks
                    .iter()
                    .filter(|(_, except)| !except.is_empty());
                1 + own.count()
            }
        }
    }
}

/// Whoever is not listed, or goes to another port. A block with exceptions takes a clause of its
/// own: "outside of it, or inside an exception" are two alternatives.
fn strangers(
    listed: &Listed,
    port: Option<&wire::Match>,
    neighbours: &Neighbours<'_>,
) -> Vec<wire::Clause> {
    let with_port = |mut matches: Vec<wire::Match>| {
        matches.extend(port.cloned());
        clause(matches)
    };
    let whole = listed.blocks.iter().filter(|(_, except)| except.is_empty());
    let hosts = neighbours.addresses(listed).into_iter().map(IpNet::from);
    let plain = wire::Match {
        not_namespaces: neighbours.namespaces(listed).map(exact).collect(),
        not_source_ips: hosts
            .chain(whole.map(|(network, _)| *network))
            .map(network)
            .collect(),
        ..wire::Match::default()
    };
    let mut clauses = Vec::new();
    if plain != wire::Match::default() {
        clauses.push(with_port(vec![plain]));
    }
    for (outer, except) in listed
        .blocks
        .iter()
        .filter(|(_, except)| !except.is_empty())
    {
        let outside = wire::Match {
            not_source_ips: vec![network(*outer)],
            ..wire::Match::default()
        };
        let taken_out = wire::Match {
            source_ips: except.iter().copied().map(network).collect(),
            ..wire::Match::default()
        };
        clauses.push(with_port(vec![outside, taken_out]));
    }
    clauses
}

/// One policy: callers with an identity, none of the `passing` ones, for whom every clause holds. To
/// be audited only, it carries its rules where just our own node proxies look; without rules a DENY
/// does nothing, whatever a node proxy knows about dry runs.
pub(super) fn policy(
    namespace: &str,
    name: &str,
    passing: &BTreeSet<String>,
    clauses: Vec<wire::Clause>,
    mode: PortRules,
) -> wire::Authorization {
    let identified = wire::Match {
        principals: vec![wire::StringMatch {
            match_type: Some(MatchType::Presence(())),
        }],
        not_principals: passing.iter().map(|name| exact(name)).collect(),
        ..wire::Match::default()
    };
    let all = std::iter::once(clause(vec![identified])).chain(clauses);
    let rules = vec![wire::Rule {
        clauses: all.collect(),
    }];
    let mut policy = wire::Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: wire::Scope::WorkloadSelector.into(),
        action: wire::Action::Deny.into(),
        ..wire::Authorization::default()
    };
    if mode == PortRules::Audit {
        policy.dry_run = true;
        policy.extensions = vec![Extension {
            name: EXTENSION.to_owned(),
            config: Some(prost_types::Any {
                type_url: type_url::AUDITED_RULES.to_owned(),
                value: isobar::AuditedRules { rules }.encode_to_vec(),
            }),
        }];
    } else {
        policy.rules = rules;
    }
    policy
}

fn clause(matches: Vec<wire::Match>) -> wire::Clause {
    wire::Clause { matches }
}

fn exact(text: &str) -> wire::StringMatch {
    wire::StringMatch {
        match_type: Some(MatchType::Exact(text.to_owned())),
    }
}

fn network(network: IpNet) -> wire::Address {
    let address: IpAddr = network.addr();
    wire::Address {
        address: octets(address),
        length: u32::from(network.prefix_len()),
    }
}
