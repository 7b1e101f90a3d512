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

    pub(super) fn next_steps(&mut self, lab: &str, objects: &Path) {
        let objects = objects.display();
        println!("\nThe lab {TITLE}{lab}{TITLE:#} is up. Its objects are in {objects}; try:");
        for (command, what) in [
            ("isobar status".to_owned(), "which proxies are in step"),
            ("isobar lab status".to_owned(), "nodes, pods, services"),
            (
                "isobar lab exec -n hello httpbin -- curl -s http://svc-hello:8080".to_owned(),
                "call the service",
            ),
            (
                format!("rm {objects}/deny.yaml"),
                "lift the last denial (editing a file applies it)",
            ),
            (
                "isobar waypoint apply -n hello --enroll-namespace --wait".to_owned(),
                "a waypoint",
            ),
            (
                "isobar lab logs ztunnel-node-1".to_owned(),
                "one line for each connection",
            ),
            (format!("isobar lab down --name {lab}"), "remove everything"),
        ] {
            println!("  {command:<72} {DIM}# {what}{DIM:#}");
        }
    }
}
