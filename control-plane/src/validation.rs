use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use isobar_objects::{DirectoryOptions, DirectorySource, Finding, ObjectSource as _, validate_dir};

/// Checks objects offline and writes what is wrong to `out`: exit code 1 if there is an error.
pub fn validate(paths: &[PathBuf], out: &mut impl Write) -> ExitCode {
    let findings = validate_dir(paths);
    let options = DirectoryOptions::new(paths.to_vec(), None);
    let objects = DirectorySource::open(options)
        .map_or(0, |source| source.subscribe().borrow().objects.len());
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    if report(&findings, errors, objects, out).is_err() || errors > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn report(
    findings: &[Finding],
    errors: usize,
    objects: usize,
    out: &mut impl Write,
) -> std::io::Result<()> {
    for finding in findings {
        writeln!(out, "{finding}")?;
    }
    if errors == 0 {
        writeln!(out, "{objects} objects valid")
    } else {
        writeln!(out, "{errors} error{}", if errors == 1 { "" } else { "s" })
    }
}
