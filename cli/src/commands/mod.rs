//! What each command does.

pub(crate) mod analyze;
pub(crate) mod bug_report;
pub(crate) mod dashboard;
pub(crate) mod explain;
pub(crate) mod forward;
pub(crate) mod install;
pub(crate) mod lab;
pub(crate) mod manifest;
pub(crate) mod netpol;
pub(crate) mod proxy_config;
pub(crate) mod status;
pub(crate) mod waypoint;

use std::path::PathBuf;
use std::process::ExitCode;

use isobar_objects::{DirectoryOptions, DirectorySource, Finding, ObjectSource as _};
use serde_json::{Value, json};

use crate::arguments::Global;
use crate::output::{Format, count, print, print_value};

/// `isobar version`.
pub(crate) fn version(global: &Global) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    match global.output {
        Format::Table => print(&format!("isobar {version}\n"))?,
        format => print_value(&json!({ "version": version }), format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `isobar validate`: what `isobard --validate` does.
pub(crate) fn validate(paths: &[PathBuf], global: &Global) -> anyhow::Result<ExitCode> {
    let source = DirectorySource::open(DirectoryOptions::new(paths.to_vec(), None))?;
    let published = source.subscribe().borrow().clone();
    let findings = &published.findings;
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    if global.output == Format::Table {
        let lines: String = findings.iter().map(|f| format!("{f}\n")).collect();
        let last = if errors == 0 {
            format!("{} valid\n", count(published.objects.len(), "object"))
        } else {
            format!("{}\n", count(errors, "error"))
        };
        print(&(lines + &last))?;
    } else {
        let list: Vec<Value> = findings.iter().map(finding).collect();
        print_value(&list.into(), global.output)?;
    }
    Ok(if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn finding(finding: &Finding) -> Value {
    json!({
        "code": finding.code.to_string(),
        "severity": finding.severity.as_str(),
        "file": finding.file.as_ref().map(|file| file.display().to_string()),
        "line": finding.line,
        "object": finding.object.as_ref().map(ToString::to_string),
        "field": finding.field,
        "message": finding.message,
        "hint": finding.hint,
    })
}
