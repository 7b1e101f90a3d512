use std::net::SocketAddr;
use std::path::Path;

use super::tool::{ToolError, run};
use crate::plan::{
    Hook, IptablesFamily, Jumps, PROBE_CHAIN, RuleSet, Table, jump_target, probe_text,
    restore_text, table_name,
};

/// Chains of ours begin like this.
const OURS: &str = "ISOBAR_";
const FAMILIES: [IptablesFamily; 2] = [IptablesFamily::V4, IptablesFamily::V6];
const TABLES: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];
const HOOKS: [Hook; 2] = [Hook::Prerouting, Hook::Output];

pub(super) fn write(rules: &RuleSet) -> Result<(), ToolError> {
    for family in families() {
        let present = present(family)?;
        let wanted = |table| rules.chains.iter().any(|chain| chain.table == table);
        let mut text = restore_text(rules, family, &present);
        text.push_str(&removal(&present, |table| !wanted(table)));
        restore(family, &text)?;
    }
    Ok(())
}

pub(super) fn list() -> Result<Option<String>, ToolError> {
    let mut text = String::new();
    for family in families() {
        for table in TABLES {
            let ours = ours(family, table)?;
            if !ours.is_empty() {
                text.push_str(&format!("{family:?} {}\n", table_name(table)));
                text.push_str(&ours);
            }
        }
    }
    Ok((!text.is_empty()).then_some(text))
}

pub(super) fn remove() -> Result<(), ToolError> {
    for family in families() {
        let text = removal(&present(family)?, |_| true);
        if !text.is_empty() {
            restore(family, &text)?;
        }
    }
    Ok(())
}

pub(super) fn write_probes(probed: &[SocketAddr]) -> Result<(), ToolError> {
    for family in families() {
        let jump = !ours(family, Table::Nat)?.contains(&probe_jump());
        restore(family, &probe_text(probed, family, jump))?;
    }
    Ok(())
}

pub(super) fn remove_probes() -> Result<(), ToolError> {
    for family in families() {
        if ours(family, Table::Nat)?.contains(&probe_jump()) {
            let text = format!(
                "*nat\n-D POSTROUTING -j {PROBE_CHAIN}\n-F {PROBE_CHAIN}\n-X {PROBE_CHAIN}\nCOMMIT\n"
            );
            restore(family, &text)?;
        }
    }
    Ok(())
}

fn probe_jump() -> String {
    format!("-A POSTROUTING -j {PROBE_CHAIN}\n")
}

/// Removes our chains, and the jumps to them, from the tables that `which` names.
fn removal(present: &Jumps, which: impl Fn(Table) -> bool) -> String {
    let mut text = String::new();
    for table in TABLES.into_iter().filter(|table| which(*table)) {
        let hooks: Vec<Hook> = HOOKS
            .into_iter()
            .filter(|hook| present.0.contains(&(table, *hook)))
            .collect();
        if hooks.is_empty() {
            continue;
        }
        text.push_str(&format!("*{}\n", table_name(table)));
        for hook in hooks {
            let (built_in, ours) = jump_target(hook);
            text.push_str(&format!("-D {built_in} -j {ours}\n-F {ours}\n-X {ours}\n"));
        }
        text.push_str("COMMIT\n");
    }
    text
}

fn present(family: IptablesFamily) -> Result<Jumps, ToolError> {
    let mut jumps = Vec::new();
    for table in TABLES {
        let ours = ours(family, table)?;
        for hook in HOOKS {
            let (built_in, chain) = jump_target(hook);
            if ours.contains(&format!("-A {built_in} -j {chain}\n")) {
                jumps.push((table, hook));
            }
        }
    }
    Ok(Jumps(jumps))
}

/// The lines of a table that are about our chains, without counters.
fn ours(family: IptablesFamily, table: Table) -> Result<String, ToolError> {
    let program = match family {
        IptablesFamily::V4 => "iptables-save",
        IptablesFamily::V6 => "ip6tables-save",
    };
    let text = run(program, &["-t", table_name(table)], "")?;
    Ok(text
        .lines()
        .filter(|line| line.contains(OURS))
        .map(|line| format!("{}\n", line.split(" [").next().unwrap_or(line)))
        .collect())
}

fn restore(family: IptablesFamily, text: &str) -> Result<(), ToolError> {
    let program = match family {
        IptablesFamily::V4 => "iptables-restore",
        IptablesFamily::V6 => "ip6tables-restore",
    };
    run(program, &["--noflush", "--wait", "5"], text).map(drop)
}

/// IPv6 only where the kernel has it.
fn families() -> impl Iterator<Item = IptablesFamily> {
    let v6 = Path::new("/proc/net/if_inet6").exists();
    FAMILIES
        .into_iter()
        .filter(move |family| v6 || *family == IptablesFamily::V4)
}
