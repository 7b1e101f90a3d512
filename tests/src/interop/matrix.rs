use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::peer::Peer;

/// How long what is seen may differ from what is expected: policies and names take a moment.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(100);

/// Who calls whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Direction {
    /// From a pod of the peer's to one of ours, on another node.
    PeerToOurs,
    /// From a pod of ours to one of the peer's, on another node.
    OursToPeer,
    /// Between two pods of the peer's on one node.
    PeerSameNode,
    /// Between two pods of the peer's on two nodes.
    PeerAcross,
    /// From outside the mesh to a pod of the peer's.
    OutsideToPeer,
    /// From outside the mesh to a pod of ours.
    OutsideToOurs,
    /// No call: the scenario could not be set up.
    None,
}

impl Direction {
    const fn name(self) -> &'static str {
        match self {
            Self::PeerToOurs => "peer → ours",
            Self::OursToPeer => "ours → peer",
            Self::PeerSameNode => "peer → peer, same node",
            Self::PeerAcross => "peer → peer, across",
            Self::OutsideToPeer => "outside → peer",
            Self::OutsideToOurs => "outside → ours",
            Self::None => "–",
        }
    }
}

/// One thing that is tried in several directions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    /// Identifier; its first word is the group.
    pub(super) id: &'static str,
    /// What is done.
    pub(super) what: &'static str,
}

/// One thing that was seen.
#[derive(Debug, Clone, Serialize)]
struct Cell {
    scenario: &'static str,
    what: String,
    direction: Direction,
    expected: String,
    observed: String,
    pass: bool,
}

/// Everything that was seen.
#[derive(Debug, Serialize)]
pub(super) struct Matrix {
    peer: Peer,
    isobar: Isobar,
    kernel: String,
    passed: usize,
    failed: usize,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Isobar {
    version: &'static str,
    commit: Option<String>,
}

impl Matrix {
    pub(super) fn new(peer: &Peer) -> Self {
        Self {
            peer: peer.clone(),
            isobar: Isobar {
                version: env!("CARGO_PKG_VERSION"),
                commit: own_commit(),
            },
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map(|text| text.trim().to_owned())
                .unwrap_or_default(),
            passed: 0,
            failed: 0,
            cells: Vec::new(),
        }
    }

    /// Looks until what is seen is what is expected, or for 20 s, and notes the last look.
    pub(super) async fn cell(
        &mut self,
        scenario: Scenario,
        direction: Direction,
        expected: &str,
        observe: impl AsyncFnMut() -> Result<String>,
    ) {
        self.judge(scenario, direction, expected, observe, |seen| {
            seen == expected
        })
        .await;
    }

    /// As [`Matrix::cell`], where `expected` is words and `fits` decides.
    pub(super) async fn judge(
        &mut self,
        scenario: Scenario,
        direction: Direction,
        expected: &str,
        mut observe: impl AsyncFnMut() -> Result<String>,
        fits: impl Fn(&str) -> bool,
    ) {
        let start = Instant::now();
        let (observed, pass) = loop {
            let (seen, good) = match observe().await {
                Ok(seen) => {
                    let good = fits(&seen);
                    (seen, good)
                }
                Err(error) => (format!("{error:#}"), false),
            };
            if good || start.elapsed() > PATIENCE {
                break (seen, good);
            }
            tokio::time::sleep(POLL).await;
        };
        self.note(Cell {
            scenario: scenario.id,
            what: scenario.what.to_owned(),
            direction,
            expected: expected.to_owned(),
            observed,
            pass,
        });
    }

    /// Notes what was seen once and cannot be looked at again.
    pub(super) fn seen(
        &mut self,
        scenario: Scenario,
        direction: Direction,
        expected: &str,
        observed: String,
    ) {
        self.note(Cell {
            scenario: scenario.id,
            what: scenario.what.to_owned(),
            direction,
            expected: expected.to_owned(),
            pass: observed == expected,
            observed,
        });
    }

    /// A group whose scenery failed: that is a failure too.
    pub(super) fn broken(&mut self, group: &'static str, error: &anyhow::Error) {
        self.note(Cell {
            scenario: group,
            what: "setting the scene".to_owned(),
            direction: Direction::None,
            expected: "no error".to_owned(),
            observed: format!("{error:#}"),
            pass: false,
        });
    }

    fn note(&mut self, cell: Cell) {
        let mark = if cell.pass { "ok  " } else { "FAIL" };
        let direction = cell.direction.name();
        eprintln!("{mark} {} {direction}: {}", cell.scenario, cell.observed);
        if cell.pass {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        self.cells.push(cell);
    }

    /// True if something was seen and none of it is wrong.
    pub(super) fn good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        let line = &mut text;
        let commit = self.peer.commit.as_deref().unwrap_or("unknown");
        let ours = self.isobar.commit.as_deref().unwrap_or("unknown");
        // Writing to a text does not fail.
        let _ = writeln!(
            line,
            "# {} beside ours\n\nWritten by `make interop`. The peer's commit is {commit} (told by {}), ours {ours}; kernel {}. {} cells pass, {} fail.\n",
            self.peer.name, self.peer.commit_told_by, self.kernel, self.passed, self.failed
        );
        let _ = writeln!(
            line,
            "One mesh of three nodes of both address families: ours has the node proxy of node 1, the peer those of nodes 2 and 3. Control plane, authority, node agents and waypoints are ours. `n×` counts calls, each on a connection of its own."
        );
        let mut scenarios: Vec<&Cell> = Vec::new();
        for cell in &self.cells {
            if !scenarios.iter().any(|one| one.scenario == cell.scenario) {
                scenarios.push(cell);
            }
        }
        for first in scenarios {
            let _ = writeln!(
                line,
                "\n## {}\n\n{}\n\n| direction | expected | observed | |\n| --- | --- | --- | --- |",
                first.scenario,
                sentence(&first.what),
            );
            for cell in self.cells.iter().filter(|c| c.scenario == first.scenario) {
                let _ = writeln!(
                    line,
                    "| {} | {} | {} | {} |",
                    cell.direction.name(),
                    escaped(&cell.expected),
                    escaped(&cell.observed),
                    if cell.pass { "pass" } else { "**FAIL**" }
                );
            }
        }
        text
    }

    /// Writes the matrix for programs and for readers.
    pub(super) fn write(&self, folder: &Path, name: &str) -> Result<()> {
        ensure!(!self.cells.is_empty(), "nothing was tried");
        std::fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(folder.join(format!("{name}.json")), json)?;
        std::fs::write(folder.join(format!("{name}.md")), self.markdown())?;
        Ok(())
    }
}

fn sentence(what: &str) -> String {
    let mut letters = what.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The commit of this checkout, marked when it has changes that are not committed.
fn own_commit() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIO: Scenario = Scenario {
        id: "l4_test",
        what: "a | b",
    };

    fn matrix() -> Matrix {
        Matrix::new(&Peer {
            path: "/secret/place".into(),
            name: "a peer".into(),
            commit: Some("0123456".into()),
            commit_told_by: "PEER_COMMIT",
            version: "v".into(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_cell_that_is_not_as_expected_fails_the_matrix() {
        let mut all = matrix();
        assert!(!all.good(), "nothing was seen");
        let direction = Direction::PeerToOurs;
        let mut looks = 0;
        all.cell(SCENARIO, direction, "3", async || {
            looks += 1;
            Ok(looks.to_string())
        })
        .await;
        assert!(all.good() && all.cells[0].observed == "3");
        all.broken("l4", &anyhow::anyhow!("no waypoint"));
        assert!(!all.good());
        let (json, text) = (serde_json::to_string(&all).unwrap(), all.markdown());
        for written in [&json, &text] {
            assert!(!written.contains("/secret"), "{written}");
            assert!(written.contains("0123456"), "{written}");
        }
        assert!(
            text.contains("| – | no error | no waypoint | **FAIL** |"),
            "{text}"
        );
    }
}
