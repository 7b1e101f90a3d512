//! Which rules a pod gets: a pure function of its wishes and of how far its enrolment has come.
//!
//! The rules say what to leave alone first and capture what is left, so that reading a chain from
//! the top answers "is this captured?". Three differences from Istio's tables, all on purpose:
//! a connection that was open before the rules is never captured (its packets are no SYN);
//! everything on the loopback interface is left alone, whatever its address; and a stage
//! [`Capture::Off`] keeps address translation of captured connections alive without capturing
//! more, which is what lets a pod leave the mesh without a cut.
//!
//! What somebody exempts from connection tracking never comes to a rule that captures. New
//! connections of that sort are dropped: they would be plain, and nobody would know.

mod iptables;
mod nft;

use std::collections::BTreeSet;
use std::net::IpAddr;

use isobar_types::ports;

pub use iptables::{
    Found, Held, IptablesFamily, PROBE_CHAIN, probe_text, removal_text, restore_text, table_name,
};
pub use nft::{TABLE, probe_table, table_text};

/// Routing table that delivers everything locally.
pub const ROUTE_TABLE: u32 = 100;
/// Priority of the policy rule that leads marked packets to [`ROUTE_TABLE`].
pub const RULE_PRIORITY: u32 = 32764;
/// Conntrack zone of the proxy's own DNS queries.
pub const DNS_ZONE: u16 = 1;

/// What the user wants of a pod's redirection, from its annotations and the node's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wishes {
    /// Capture DNS (`ambient.istio.io/dns-capture`).
    pub dns: bool,
    /// Capture inbound plaintext (not `ambient.istio.io/bypass-inbound-capture`).
    pub inbound: bool,
    /// Interfaces whose arriving TCP counts as outbound (`istio.io/reroute-virtual-interfaces`).
    pub reroute: Vec<String>,
    /// Ports that the node probes; it is let through to no other.
    pub probes: BTreeSet<u16>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            dns: true,
            inbound: true,
            reroute: Vec::new(),
            probes: BTreeSet::new(),
        }
    }
}

/// Whether new connections are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capture {
    /// New connections go to the node proxy.
    On,
    /// New connections go their own way; captured ones keep their translation and their replies.
    Off,
}

/// All rules of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// Chains, in the order in which a packet meets the tables.
    pub chains: Vec<Chain>,
}

/// The rules at one hook of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Table.
    pub table: Table,
    /// Hook.
    pub hook: Hook,
    /// Rules; the first that matches and ends the chain wins.
    pub rules: Vec<Rule>,
}

/// The classic tables; with nftables they are hook types and priorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Before connection tracking.
    Raw,
    /// Marks.
    Mangle,
    /// Address translation, first packet of a connection only.
    Nat,
}

/// Where in the packet's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Arriving packets.
    Prerouting,
    /// Packets of local sockets.
    Output,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub verdict: Verdict,
    /// Why, for whoever lists the rules.
    pub why: &'static str,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Any TCP.
    Tcp,
    /// TCP that does not open a connection.
    TcpNotSyn,
    /// TCP that opens a connection which is not tracked.
    UntrackedSyn,
    /// Arriving on this interface.
    In(String),
    /// Leaving by this interface.
    Out(String),
    /// Source address.
    From(IpAddr),
    /// Destination address.
    To(IpAddr),
    /// TCP to this port.
    TcpTo(u16),
    /// UDP to this port.
    UdpTo(u16),
    /// UDP from this port.
    UdpFrom(u16),
    /// Packet mark under the mask.
    Mark(u32),
    /// Packet mark under the mask is another one.
    NotMark(u32),
    /// Connection mark under the mask.
    ConnectionMark(u32),
    /// First packet of a connection.
    New,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leave alone: ends this chain.
    Accept,
    /// It goes nowhere.
    Drop,
    /// To this local port.
    Redirect(u16),
    /// Write the connection mark, under the mask.
    SetConnectionMark(u32),
    /// Copy the connection mark to the packet.
    RestoreMark,
    /// Track in this conntrack zone.
    Zone(u16),
}

/// The rules of a pod with these wishes at this stage.
#[must_use]
pub fn plan_rules(wishes: &Wishes, capture: Capture) -> RuleSet {
    let mut chains = Vec::with_capacity(6);
    if wishes.dns {
        chains.push(chain(Table::Raw, Hook::Prerouting, raw_prerouting()));
        chains.push(chain(Table::Raw, Hook::Output, raw_output()));
    }
    let (prerouting, output) = (mangle_prerouting(wishes, capture), mangle_output(capture));
    chains.push(chain(Table::Mangle, Hook::Prerouting, prerouting));
    chains.push(chain(Table::Mangle, Hook::Output, output));
    let (prerouting, output) = match capture {
        Capture::On => (nat_prerouting(wishes), nat_output(wishes)),
        Capture::Off => (vec![keep_tracking()], vec![keep_tracking()]),
    };
    chains.push(chain(Table::Nat, Hook::Prerouting, prerouting));
    chains.push(chain(Table::Nat, Hook::Output, output));
    RuleSet { chains }
}

const fn chain(table: Table, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain { table, hook, rules }
}

fn rule<const N: usize>(matches: [Match; N], verdict: Verdict, why: &'static str) -> Rule {
    Rule {
        matches: matches.into(),
        verdict,
        why,
    }
}

fn raw_prerouting() -> Vec<Rule> {
    vec![rule(
        [Match::UdpFrom(53), Match::NotMark(ports::PACKET_MARK)],
        Verdict::Zone(DNS_ZONE),
        "answers to the proxy's own DNS queries",
    )]
}

fn raw_output() -> Vec<Rule> {
    vec![rule(
        [Match::UdpTo(53), Match::Mark(ports::PACKET_MARK)],
        Verdict::Zone(DNS_ZONE),
        "the proxy's own DNS queries do not collide with captured ones",
    )]
}

fn mangle_prerouting(wishes: &Wishes, capture: Capture) -> Vec<Rule> {
    let mut rules = vec![rule(
        [Match::Mark(ports::PACKET_MARK)],
        Verdict::SetConnectionMark(ports::CONNECTION_MARK),
        "the proxy calls the application",
    )];
    if capture == Capture::On && wishes.inbound {
        rules.extend([arrives_by_loopback(), untracked()]);
    } else if capture == Capture::On {
        rules.extend(wishes.reroute.iter().map(|interface| {
            let mut rule = untracked();
            rule.matches.push(Match::In(interface.clone()));
            rule
        }));
    }
    rules
}

fn mangle_output(capture: Capture) -> Vec<Rule> {
    let mut rules = vec![rule(
        [Match::ConnectionMark(ports::CONNECTION_MARK)],
        Verdict::RestoreMark,
        "the application's answers go back to the proxy",
    )];
    if capture == Capture::On {
        rules.extend([leaves_by_loopback(), untracked()]);
    }
    rules
}

fn nat_prerouting(wishes: &Wishes) -> Vec<Rule> {
    let mut rules = vec![open_before(), arrives_by_loopback()];
    rules.extend(wishes.reroute.iter().map(|interface| {
        rule(
            [Match::Tcp, Match::In(interface.clone())],
            Verdict::Redirect(ports::OUTBOUND),
            "a guest behind this interface calls out",
        )
    }));
    if !wishes.inbound {
        // One rule must be left, or connection tracking would end with the chain.
        return rules;
    }
    for port in &wishes.probes {
        rules.extend(probe_sources().map(|source| {
            rule(
                [Match::From(source), Match::TcpTo(*port)],
                Verdict::Accept,
                "probes from the node",
            )
        }));
    }
    rules.push(proxy_itself());
    rules.push(rule(
        [Match::TcpTo(ports::HBONE)],
        Verdict::Accept,
        "the mesh, already encrypted",
    ));
    rules.push(rule(
        [Match::Tcp],
        Verdict::Redirect(ports::INBOUND_PLAINTEXT),
        "plaintext from outside the mesh",
    ));
    rules
}

fn nat_output(wishes: &Wishes) -> Vec<Rule> {
    let mut rules = vec![open_before(), leaves_by_loopback()];
    rules.extend(probe_sources().map(|source| {
        rule(
            [Match::To(source), Match::Tcp],
            Verdict::Accept,
            "answers to probes",
        )
    }));
    rules.push(proxy_itself());
    rules.push(rule(
        [Match::Mark(ports::CONNECTION_MARK)],
        Verdict::Accept,
        "between the proxy and the application",
    ));
    if wishes.dns {
        rules.push(rule(
            [Match::UdpTo(53)],
            Verdict::Redirect(ports::DNS),
            "names",
        ));
        rules.push(rule(
            [Match::TcpTo(53)],
            Verdict::Redirect(ports::DNS),
            "names",
        ));
    }
    rules.push(rule(
        [Match::Tcp],
        Verdict::Redirect(ports::OUTBOUND),
        "the application calls out",
    ));
    rules
}

/// A fresh table sees packets of open connections as the first ones of new connections.
fn open_before() -> Rule {
    rule(
        [Match::TcpNotSyn],
        Verdict::Accept,
        "open before the pod joined",
    )
}

fn arrives_by_loopback() -> Rule {
    rule(
        [Match::In("lo".to_owned())],
        Verdict::Accept,
        "loopback is never captured",
    )
}

fn leaves_by_loopback() -> Rule {
    rule(
        [Match::Out("lo".to_owned())],
        Verdict::Accept,
        "loopback is never captured",
    )
}

/// Comes after connection tracking and before address translation, which takes tracked connections
/// only.
fn untracked() -> Rule {
    rule(
        [Match::UntrackedSyn, Match::NotMark(ports::PACKET_MARK)],
        Verdict::Drop,
        "exempt from tracking, so nothing would capture it",
    )
}

fn proxy_itself() -> Rule {
    rule(
        [Match::Mark(ports::PACKET_MARK)],
        Verdict::Accept,
        "the proxy itself",
    )
}

/// Does nothing to packets; its presence keeps tracking and translation of captured connections.
fn keep_tracking() -> Rule {
    rule(
        [Match::New],
        Verdict::Accept,
        "captured connections live on, no new ones",
    )
}

fn probe_sources() -> impl Iterator<Item = IpAddr> {
    [
        IpAddr::V4(ports::PROBE_SOURCE_V4),
        IpAddr::V6(ports::PROBE_SOURCE_V6),
    ]
    .into_iter()
}

#[cfg(test)]
mod tests;
