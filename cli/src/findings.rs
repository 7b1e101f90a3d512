use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use isobar_objects::{Finding, validate_dir};
use serde_json::{Value, json};

use crate::args::Output;
use crate::render;

/// Reads objects offline and prints what is wrong; exit code 1 if anything is.
pub(crate) fn validate(paths: &[PathBuf], output: Output) -> Result<ExitCode> {
    for path in paths {
        ensure!(path.exists(), "{} does not exist", path.display());
    }
    let findings = validate_dir(paths);
    let wrong = findings.iter().filter(|f| f.is_error()).count();
    match output {
        Output::Table => {
            for finding in &findings {
                println!("{finding}");
            }
            match (wrong, findings.len()) {
                (0, 0) => println!("no findings"),
                (wrong, all) => println!("{wrong} errors, {} other findings", all - wrong),
            }
        }
        Output::Json | Output::Yaml => {
            render::value(output, &findings.iter().map(as_value).collect())?;
        }
    }
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn as_value(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "file": finding.file.as_ref().map(|f| f.display().to_string()),
        "line": finding.line,
        "object": finding.object.as_ref().map(ToString::to_string),
        "field": finding.field,
        "message": finding.message,
        "hint": finding.hint,
    })
}
