//! Every command of the documentation is run: by the test that follows its page, or by one that the
//! page names.

use std::path::Path;

use crate::{Complaint, tracked};

/// Runs the check.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let doors = std::fs::read_to_string(root.join("Makefile"))?;
    let mut complaints = Vec::new();
    for path in tracked(root, "docs/*.md")? {
        let text = std::fs::read_to_string(root.join(&path))?;
        for (line, wrong) in wrong(&text, &doors) {
            complaints.push(Complaint(format!("{}:{line}: {wrong}", path.display())));
        }
    }
    Ok(complaints)
}

/// Lines, from 1, with what is wrong there.
fn wrong(page: &str, doors: &str) -> Vec<(usize, String)> {
    let mut wrong = Vec::new();
    for (at, line) in page.lines().enumerate() {
        let inner = line.trim().strip_prefix("<!--");
        let Some(note) = inner.and_then(|rest| rest.strip_suffix("-->")) else {
            continue;
        };
        let (word, rest) = note.split_once(':').unwrap_or((note, ""));
        let complaint = match word.trim() {
            "not run" => "a command that nobody runs: let the test of its page run it".to_owned(),
            "run by" if !is_door(rest.trim(), doors) => {
                format!("the Makefile has no {:?}", rest.trim())
            }
            _ => continue,
        };
        wrong.push((at + 1, complaint));
    }
    wrong
}

/// True for `make TARGET` of a target that the Makefile has.
fn is_door(test: &str, doors: &str) -> bool {
    let target = test.strip_prefix("make ").map(|name| format!("{name}:"));
    target.is_some_and(|start| doors.lines().any(|line| line.starts_with(&start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_nobody_runs_are_found() {
        let doors = "test: build\n\tcargo test\n";
        let lines = |page: &str| -> Vec<usize> {
            wrong(page, doors)
                .into_iter()
                .map(|(line, _)| line)
                .collect()
        };
        assert!(lines("<!-- waits -->\n<!-- run by: make test -->\n").is_empty());
        assert_eq!(lines("a\n<!-- not run: no engine -->\n"), [2]);
        assert_eq!(lines("<!-- run by: make tests -->\n"), [1]);
        assert_eq!(lines("<!-- run by: somebody -->\n"), [1]);
    }
}
