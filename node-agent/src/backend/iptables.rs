use std::net::SocketAddr;
use std::path::Path;

use super::tool::{ToolError, run};
use crate::plan::{
    Found, Held, IptablesFamily, PROBE_CHAIN, RuleSet, Table, probe_text, removal_text,
    restore_text, table_name,
};

const FAMILIES: [IptablesFamily; 2] = [IptablesFamily::V4, IptablesFamily::V6];
const TABLES: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];

pub(super) fn write(rules: &RuleSet) -> Result<(), ToolError> {
    for family in families() {
        let found = found(family)?;
        let wanted = |table| rules.chains.iter().any(|chain| chain.table == table);
        let mut text = restore_text(rules, family, &found);
        text.push_str(&removal_text(&found, |table| !wanted(table)));
        restore(family, &text)?;
    }
    Ok(())
}

/// Also what others put before ours: a rule that ends the chain there takes traffic from it.
pub(super) fn list() -> Result<Option<String>, ToolError> {
    let mut text = String::new();
    for family in families() {
        for (table, held) in found(family)? {
            if !held.listing.is_empty() {
                text.push_str(&format!("{family:?} {}\n", table_name(table)));
                text.push_str(&held.listing);
            }
        }
    }
    Ok((!text.is_empty()).then_some(text))
}

pub(super) fn remove() -> Result<(), ToolError> {
    for family in families() {
        let text = removal_text(&found(family)?, |_| true);
        if !text.is_empty() {
            restore(family, &text)?;
        }
    }
    Ok(())
}

pub(super) fn write_probes(probed: &[SocketAddr]) -> Result<(), ToolError> {
    for family in families() {
        let jump = !leads_to_probes(family)?;
        restore(family, &probe_text(probed, family, jump))?;
    }
    Ok(())
}

pub(super) fn remove_probes() -> Result<(), ToolError> {
    for family in families() {
        if leads_to_probes(family)? {
            let text = format!(
                "*nat\n-D POSTROUTING -j {PROBE_CHAIN}\n-F {PROBE_CHAIN}\n-X {PROBE_CHAIN}\nCOMMIT\n"
            );
            restore(family, &text)?;
        }
    }
    Ok(())
}

fn leads_to_probes(family: IptablesFamily) -> Result<bool, ToolError> {
    let jump = format!("-A POSTROUTING -j {PROBE_CHAIN}");
    Ok(held(family, Table::Nat)?.jumps.contains(&jump))
}

fn found(family: IptablesFamily) -> Result<Found, ToolError> {
    let each = TABLES.into_iter();
    each.map(|table| Ok((table, held(family, table)?)))
        .collect()
}

fn held(family: IptablesFamily, table: Table) -> Result<Held, ToolError> {
    let program = match family {
        IptablesFamily::V4 => "iptables-save",
        IptablesFamily::V6 => "ip6tables-save",
    };
    let saved = run(program, &["-t", table_name(table)], "")?;
    Ok(Held::read(&saved))
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
