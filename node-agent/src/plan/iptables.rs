use std::collections::BTreeMap;
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

/// What tables hold of ours; those that are not in it hold nothing.
pub type Found = BTreeMap<Table, Held>;

const TABLES: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];
const HOOKS: [Hook; 2] = [Hook::Prerouting, Hook::Output];

/// Input for `iptables-restore --noflush` that makes our chains exactly this, led to before any
/// rule of others, which are left alone. Jumps that are in place already are not touched.
#[must_use]
pub fn restore_text(rules: &RuleSet, family: IptablesFamily, found: &Found) -> String {
    let mut text = String::new();
    for table in TABLES {
        let chains: Vec<&Chain> = rules.chains.iter().filter(|c| c.table == table).collect();
        if chains.is_empty() {
            continue;
        }
        let held = found.get(&table);
        let hooks: Vec<Hook> = chains.iter().map(|chain| chain.hook).collect();
        let is_led = held.is_some_and(|held| held.leads_to(&hooks));
        push(&mut text, format_args!("*{}\n", table_name(table)));
        for chain in &chains {
            push(
                &mut text,
                format_args!(":{} - [0:0]\n", our_chain(chain.hook)),
            );
        }
        if !is_led {
            text.push_str(&held.map(Held::without_jumps).unwrap_or_default());
        }
        for chain in &chains {
            if !is_led {
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

/// Input that removes our chains, and what leads to them, from the tables that `which` names.
#[must_use]
pub fn removal_text(found: &Found, which: impl Fn(Table) -> bool) -> String {
    let mut text = String::new();
    for (table, held) in found.iter().filter(|(table, _)| which(**table)) {
        if *held == Held::default() {
            continue;
        }
        push(&mut text, format_args!("*{}\n", table_name(*table)));
        text.push_str(&held.without_jumps());
        for hook in &held.chains {
            let ours = our_chain(*hook);
            push(&mut text, format_args!("-F {ours}\n-X {ours}\n"));
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// What one table holds of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Our chains.
    pub chains: Vec<Hook>,
    /// Rules in chains of others that lead to ours, as the tool lists them.
    pub jumps: Vec<String>,
    /// Rules of others that a packet meets before it is led to ours.
    pub before: usize,
    /// All of that as text: two tables in which packets fare alike have the same.
    pub listing: String,
}

impl Held {
    /// Reads what `iptables-save` says of one table. A rule of others before the jump to ours counts
    /// too: it may end the chain, and nothing would be captured.
    #[must_use]
    pub fn read(saved: &str) -> Self {
        let mut held = Self::default();
        let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in saved.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().unwrap_or(chain);
                held.chains.extend(hook_of(chain));
                if is_ours(chain) {
                    push(&mut held.listing, format_args!(":{chain}\n"));
                }
                continue;
            }
            let Some(rule) = line.strip_prefix("-A ") else {
                continue;
            };
            let chain = rule.split(' ').next().unwrap_or(rule);
            if is_ours(chain) {
                push(&mut held.listing, format_args!("{line}\n"));
            } else if !leads_to_ours(rule) {
                others.entry(chain).or_default().push(line);
            } else {
                let before = others.remove(chain).unwrap_or_default();
                // The node's rules about probes stand among those of others.
                if HOOKS.iter().any(|hook| jump_target(*hook).0 == chain) {
                    held.before += before.len();
                    for line in before {
                        push(&mut held.listing, format_args!("{line}\n"));
                    }
                }
                push(&mut held.listing, format_args!("{line}\n"));
                held.jumps.push(line.to_owned());
            }
        }
        held
    }

    /// True if these hooks, each once and before anything else, lead to our chains, and no other
    /// rule does.
    fn leads_to(&self, hooks: &[Hook]) -> bool {
        let wanted = |hook: &Hook| {
            let (built_in, ours) = jump_target(*hook);
            self.jumps.contains(&format!("-A {built_in} -j {ours}"))
        };
        self.before == 0 && self.jumps.len() == hooks.len() && hooks.iter().all(wanted)
    }

    /// Lines that remove every rule of others' chains that leads to ours.
    fn without_jumps(&self) -> String {
        let mut text = String::new();
        for jump in &self.jumps {
            let rule = jump.strip_prefix("-A").unwrap_or(jump);
            push(&mut text, format_args!("-D{rule}\n"));
        }
        text
    }
}

/// True for the names of our chains, in a pod and on the node.
fn is_ours(chain: &str) -> bool {
    chain == PROBE_CHAIN || hook_of(chain).is_some()
}

fn hook_of(chain: &str) -> Option<Hook> {
    HOOKS.into_iter().find(|hook| our_chain(*hook) == chain)
}

fn leads_to_ours(rule: &str) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let leads = |pair: &[&str]| ["-j", "-g"].contains(&pair[0]) && is_ours(pair[1]);
    words.windows(2).any(leads)
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
const fn jump_target(hook: Hook) -> (&'static str, &'static str) {
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
        Verdict::Drop => text.push_str("DROP"),
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
        Match::UntrackedSyn => text.push_str(
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate UNTRACKED",
        ),
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
