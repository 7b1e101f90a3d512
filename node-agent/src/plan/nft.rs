use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use isobar_types::ports;

use super::{Chain, Hook, Match, Rule, RuleSet, Table, Verdict};

/// Name of the table of the family `inet`, in a pod and on the node.
pub const TABLE: &str = "isobar";

/// A transaction for `nft -f -` that makes the pod's table exactly this, whatever it was before.
///
/// The table is declared, deleted and made again in one transaction: the new hooks are in place
/// before the old ones go, so captured connections keep their translation.
#[must_use]
pub fn table_text(rules: &RuleSet) -> String {
    let mut text =
        format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for chain in &rules.chains {
        write_chain(&mut text, chain);
    }
    text.push_str("}\n");
    text
}

fn write_chain(text: &mut String, chain: &Chain) {
    let (table, kind, priority) = match (chain.table, chain.hook) {
        (Table::Raw, _) => ("raw", "filter", -300),
        (Table::Mangle, Hook::Prerouting) => ("mangle", "filter", -150),
        // A chain of the type `route` looks the route up again when it changed the mark.
        (Table::Mangle, Hook::Output) => ("mangle", "route", -150),
        (Table::Nat, _) => ("nat", "nat", -100),
    };
    let hook = match chain.hook {
        Hook::Prerouting => "prerouting",
        Hook::Output => "output",
    };
    push(text, format_args!("\tchain {table}-{hook} {{\n"));
    push(
        text,
        format_args!("\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n"),
    );
    for rule in &chain.rules {
        write_rule(text, rule);
    }
    text.push_str("\t}\n");
}

fn write_rule(text: &mut String, rule: &Rule) {
    text.push_str("\t\t");
    for part in &rule.matches {
        write_match(text, part);
        text.push(' ');
    }
    text.push_str("counter ");
    match rule.verdict {
        Verdict::Accept => text.push_str("accept"),
        Verdict::Drop => text.push_str("drop"),
        Verdict::Redirect(port) => {
            // The protocol must be known for a port; a redirect without a TCP or UDP match is none
            // that the plan makes.
            push(text, format_args!("redirect to :{port}"));
        }
        Verdict::SetConnectionMark(mark) => push(
            text,
            format_args!(
                "ct mark set ct mark & {:#010x} | {mark:#x}",
                !ports::MARK_MASK
            ),
        ),
        Verdict::RestoreMark => text.push_str("meta mark set ct mark"),
        Verdict::Zone(zone) => push(text, format_args!("ct zone set {zone}")),
    }
    push(text, format_args!(" comment \"{}\"\n", rule.why));
}

fn write_match(text: &mut String, part: &Match) {
    let mask = ports::MARK_MASK;
    match part {
        Match::Tcp => text.push_str("meta l4proto tcp"),
        Match::TcpNotSyn => text.push_str("tcp flags & (fin|syn|rst|ack) != syn"),
        Match::UntrackedSyn => {
            text.push_str("tcp flags & (fin|syn|rst|ack) == syn ct state untracked");
        }
        Match::In(interface) => push(text, format_args!("iifname \"{interface}\"")),
        Match::Out(interface) => push(text, format_args!("oifname \"{interface}\"")),
        Match::From(IpAddr::V4(ip)) => push(text, format_args!("ip saddr {ip}")),
        Match::From(IpAddr::V6(ip)) => push(text, format_args!("ip6 saddr {ip}")),
        Match::To(IpAddr::V4(ip)) => push(text, format_args!("ip daddr {ip}")),
        Match::To(IpAddr::V6(ip)) => push(text, format_args!("ip6 daddr {ip}")),
        Match::TcpTo(port) => push(text, format_args!("tcp dport {port}")),
        Match::UdpTo(port) => push(text, format_args!("udp dport {port}")),
        Match::UdpFrom(port) => push(text, format_args!("udp sport {port}")),
        Match::Mark(mark) => push(text, format_args!("meta mark & {mask:#x} == {mark:#x}")),
        Match::NotMark(mark) => push(text, format_args!("meta mark & {mask:#x} != {mark:#x}")),
        Match::ConnectionMark(mark) => push(text, format_args!("ct mark & {mask:#x} == {mark:#x}")),
        Match::New => text.push_str("ct state new"),
    }
}

/// A transaction that makes the node's table: what root on the node opens to a probed port of an
/// enrolled pod gets the source address by which the pod's rules know probes.
#[must_use]
pub fn probe_table(probed: &[SocketAddr]) -> String {
    let mut text =
        format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for (family, kind) in [("v4", "ipv4_addr"), ("v6", "ipv6_addr")] {
        push(
            &mut text,
            format_args!("\tset probed-{family} {{\n\t\ttype {kind} . inet_service\n\t}}\n"),
        );
    }
    text.push_str("\tchain probes {\n");
    // Before any masquerading of the node (100): the first translation of a connection stays.
    text.push_str("\t\ttype nat hook postrouting priority 90; policy accept;\n");
    text.push_str("\t\ttcp flags & (fin|syn|rst|ack) != syn accept\n");
    text.push_str("\t\tfib saddr type != local accept comment \"forwarded, not the node's own\"\n");
    text.push_str("\t\tmeta skuid != 0 accept comment \"not the kubelet's\"\n");
    for (family, ip, source) in [
        ("v4", "ip", IpAddr::V4(ports::PROBE_SOURCE_V4)),
        ("v6", "ip6", IpAddr::V6(ports::PROBE_SOURCE_V6)),
    ] {
        push(
            &mut text,
            format_args!(
                "\t\t{ip} daddr . tcp dport @probed-{family} counter snat {ip} to {source}\n"
            ),
        );
    }
    text.push_str("\t}\n}\n");
    for (family, v4) in [("v4", true), ("v6", false)] {
        let members: Vec<String> = probed
            .iter()
            .filter(|to| to.is_ipv4() == v4)
            .map(|to| format!("{} . {}", to.ip(), to.port()))
            .collect();
        if !members.is_empty() {
            push(
                &mut text,
                format_args!(
                    "add element inet {TABLE} probed-{family} {{ {} }}\n",
                    members.join(", ")
                ),
            );
        }
    }
    text
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
}
