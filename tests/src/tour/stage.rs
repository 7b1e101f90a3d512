use std::path::Path;
use std::time::Duration;

use anstream::println;
use anstyle::{AnsiColor, Style};

const TITLE: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Prints the tour and counts what was not as expected.
#[derive(Debug)]
pub(super) struct Stage {
    checks: u32,
    wrong: u32,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self {
            checks: 0,
            wrong: 0,
        }
    }

    pub(super) fn title(&mut self, text: &str) {
        println!("\n{TITLE}{text}{TITLE:#}");
    }

    /// What a user would type to do the same.
    pub(super) fn command(&mut self, text: &str) {
        println!("  {DIM}$ {text}{DIM:#}");
    }

    /// What the commands after it take for granted.
    pub(super) fn note(&mut self, text: &str) {
        println!("  {DIM}# {text}{DIM:#}");
    }

    pub(super) fn check(&mut self, what: &str, expected: &str, observed: &str, good: bool) {
        self.checks += 1;
        let (style, mark) = if good {
            (GOOD, "ok   ")
        } else {
            (BAD, "WRONG")
        };
        println!("  {style}{mark}{style:#} {what:<44} expected {expected:<28} saw {observed}");
        if !good {
            self.wrong += 1;
        }
    }

    pub(super) fn failed(&mut self, why: &str) {
        self.wrong += 1;
        println!("  {BAD}WRONG{BAD:#} the tour had to stop: {why}");
    }

    pub(super) fn good(&self) -> bool {
        self.wrong == 0
    }

    pub(super) fn summary(&mut self, took: Duration) {
        let style = if self.good() { GOOD } else { BAD };
        println!(
            "\n{style}{} of {} checks as expected{style:#}, {:.1} s",
            self.checks.saturating_sub(self.wrong),
            self.checks,
            took.as_secs_f32()
        );
    }

    pub(super) fn next_steps(&mut self, lab: &str, objects: &Path, programs: &Path) {
        println!(
            "\nThe lab {TITLE}{lab}{TITLE:#} is up. Its objects are in {}; try:",
            objects.display()
        );
        for step in next_steps(lab, objects, programs) {
            println!("  {DIM}# {}{DIM:#}\n  {}", step.what, step.command);
        }
    }
}

/// Something to try in a lab that was left up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What a user types.
    pub command: String,
    /// What it shows.
    pub what: &'static str,
}

/// What to try, in this order and in one shell, after the tour. `programs` is the folder of the
/// programs; each command names the lab, because others may run.
#[must_use]
pub fn next_steps(lab: &str, objects: &Path, programs: &Path) -> Vec<Step> {
    let (objects, programs) = (objects.display(), programs.display());
    [
        (
            format!("export PATH={programs}:$PATH"),
            "for this shell to find the programs",
        ),
        (
            format!("isobar status --lab {lab}"),
            "which proxies are in step",
        ),
        (
            format!("isobar lab status --lab {lab}"),
            "nodes, pods, services",
        ),
        (
            format!("rm {objects}/deny.yaml && sleep 1"),
            "lift the last denial (what changes in a file is in force within a second)",
        ),
        (
            format!(
                "isobar lab exec --lab {lab} -n hello httpbin -- curl -sS http://svc-hello:8080"
            ),
            "call the service",
        ),
        (
            format!("isobar waypoint apply --lab {lab} -n hello --enroll-namespace --wait"),
            "a waypoint",
        ),
        (
            format!("isobar lab logs --lab {lab} ztunnel-node-1"),
            "one line for each connection",
        ),
        (
            format!("isobar lab down --lab {lab} && rm -r {objects}"),
            "remove everything",
        ),
    ]
    .map(|(command, what)| Step { command, what })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_names_the_lab_and_the_denial_goes_first() {
        let steps = next_steps("demo", Path::new("/o"), Path::new("/p"));
        let place = |word: &str| steps.iter().position(|s| s.command.contains(word)).unwrap();
        assert_eq!(place("export PATH=/p:"), 0);
        assert!(place("deny.yaml") < place("curl"));
        for step in steps.iter().filter(|s| s.command.starts_with("isobar ")) {
            assert!(step.command.contains("--lab demo"), "{step:?}");
        }
        assert!(steps.last().unwrap().command.ends_with("rm -r /o"));
    }
}
