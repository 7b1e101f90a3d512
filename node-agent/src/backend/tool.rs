use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Why a command-line tool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started or fed.
    #[error("{program} cannot be run: {error}")]
    Start {
        /// The program.
        program: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// It failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// What it said, on one line.
        said: String,
    },
}

/// Runs a program in the namespace of this thread with `input` on its standard input; returns what
/// it printed. Blocks.
pub(super) fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, ToolError> {
    let start = |error| ToolError::Start { program, error };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    // Rule sets are far smaller than a pipe holds, so writing first cannot block for ever.
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It did not want to read to the end; its exit code tells why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(start(error)),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(start)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        return Err(ToolError::Failed { program, said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
