use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use isobar_types::ports;

use super::{Chain, Hook, Match, Rule, RuleSet, Table, Verdict};

/// Which of the two parallel rule sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IptablesFamily {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

/// Which built-in chains already lead to ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jumps(pub Vec<(Table, Hook)>);

const TABLES: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];

/// Input for `iptables-restore --noflush` that makes our chains exactly this and leaves those of
/// others alone. A jump that is there already is not added again.
#[must_use]
pub fn restore_text(rules: &RuleSet, family: IptablesFamily, present: &Jumps) -> String {
    let mut text = String::new();
    for table in TABLES {
        let chains: Vec<&Chain> = rules.chains.iter().filter(|c| c.table == table).collect();
        if chains.is_empty() {
            continue;
        }
        push(&mut text, format_args!("*{}\n", table_name(table)));
        for chain in &chains {
            push(
                &mut text,
                format_args!(":{} - [0:0]\n", our_chain(chain.hook)),
            );
        }
        for chain in &chains {
            if !present.0.contains(&(table, chain.hook)) {
                push(&mut text, format_args!("{}\n", jump_text(chain.hook)));
            }
            for line in chain_text(chain, family) {
                push(&mut text, format_args!("{line}\n"));
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// Chain of the node's rules about probes, in the table `nat`.
pub const PROBE_CHAIN: &str = "ISOBAR_PROBES";

/// Input for `iptables-restore --noflush` that makes the node's rules about probes exactly these.
#[must_use]
pub fn probe_text(probed: &[SocketAddr], family: IptablesFamily, jump: bool) -> String {
    let mut text = format!("*nat\n:{PROBE_CHAIN} - [0:0]\n");
    if jump {
        push(
            &mut text,
            format_args!("-I POSTROUTING 1 -j {PROBE_CHAIN}\n"),
        );
    }
    let source = match family {
        IptablesFamily::V4 => IpAddr::V4(ports::PROBE_SOURCE_V4),
        IptablesFamily::V6 => IpAddr::V6(ports::PROBE_SOURCE_V6),
    };
    for to in probed.iter().filter(|to| to.is_ipv4() == source.is_ipv4()) {
        push(
            &mut text,
            format_args!(
                "-A {PROBE_CHAIN} -d {} -p tcp -m tcp --dport {} --tcp-flags FIN,SYN,RST,ACK SYN \
                 -m owner --uid-owner 0 -m addrtype --src-type LOCAL -j SNAT --to-source {source}\n",
                host(to.ip()),
                to.port()
            ),
        );
    }
    text.push_str("COMMIT\n");
    text
}

/// The rules of one chain; those of the other family are left out.
fn chain_text(chain: &Chain, family: IptablesFamily) -> Vec<String> {
    chain
        .rules
        .iter()
        .filter(|rule| applies(rule, family))
        .map(|rule| rule_text(chain.hook, rule))
        .collect()
}

/// Name of a table, as the tools know it.
#[must_use]
pub const fn table_name(table: Table) -> &'static str {
    match table {
        Table::Raw => "raw",
        Table::Mangle => "mangle",
        Table::Nat => "nat",
    }
}

/// Built-in chain of a hook, and our chain that it leads to.
#[must_use]
pub const fn jump_target(hook: Hook) -> (&'static str, &'static str) {
    match hook {
        Hook::Prerouting => ("PREROUTING", "ISOBAR_PREROUTING"),
        Hook::Output => ("OUTPUT", "ISOBAR_OUTPUT"),
    }
}

const fn our_chain(hook: Hook) -> &'static str {
    jump_target(hook).1
}

/// The rule that leads from the built-in chain to ours, first in its chain.
fn jump_text(hook: Hook) -> String {
    let (built_in, ours) = jump_target(hook);
    format!("-I {built_in} 1 -j {ours}")
}

fn applies(rule: &Rule, family: IptablesFamily) -> bool {
    rule.matches.iter().all(|part| match part {
        Match::From(ip) | Match::To(ip) => ip.is_ipv4() == (family == IptablesFamily::V4),
        _ => true,
    })
}

fn rule_text(hook: Hook, rule: &Rule) -> String {
    let mut text = format!("-A {}", our_chain(hook));
    for part in &rule.matches {
        text.push(' ');
        write_match(&mut text, part);
    }
    push(
        &mut text,
        format_args!(" -m comment --comment \"{}\" -j ", rule.why),
    );
    let mask = ports::MARK_MASK;
    match rule.verdict {
        Verdict::Accept => text.push_str("ACCEPT"),
        Verdict::Redirect(port) => push(&mut text, format_args!("REDIRECT --to-ports {port}")),
        Verdict::SetConnectionMark(mark) => push(
            &mut text,
            format_args!("CONNMARK --set-xmark {mark:#x}/{mask:#x}"),
        ),
        Verdict::RestoreMark => text.push_str("CONNMARK --restore-mark"),
        Verdict::Zone(zone) => push(&mut text, format_args!("CT --zone {zone}")),
    }
    text
}

fn write_match(text: &mut String, part: &Match) {
    let mask = ports::MARK_MASK;
    match part {
        Match::Tcp => text.push_str("-p tcp"),
        Match::TcpNotSyn => text.push_str("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"),
        Match::In(interface) => push(text, format_args!("-i {interface}")),
        Match::Out(interface) => push(text, format_args!("-o {interface}")),
        Match::From(ip) => push(text, format_args!("-s {}", host(*ip))),
        Match::To(ip) => push(text, format_args!("-d {}", host(*ip))),
        Match::TcpTo(port) => push(text, format_args!("-p tcp -m tcp --dport {port}")),
        Match::UdpTo(port) => push(text, format_args!("-p udp -m udp --dport {port}")),
        Match::UdpFrom(port) => push(text, format_args!("-p udp -m udp --sport {port}")),
        Match::Mark(mark) => push(text, format_args!("-m mark --mark {mark:#x}/{mask:#x}")),
        Match::NotMark(mark) => push(text, format_args!("-m mark ! --mark {mark:#x}/{mask:#x}")),
        Match::ConnectionMark(mark) => {
            push(text, format_args!("-m connmark --mark {mark:#x}/{mask:#x}"));
        }
        Match::New => text.push_str("-m conntrack --ctstate NEW"),
    }
}

fn host(ip: IpAddr) -> String {
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    format!("{ip}/{bits}")
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
}
