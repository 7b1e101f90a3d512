//! Numbered lists that tests stand for: the node proxy's conformance checks (`check_NN_…`) and its
//! reliability bars (`r_NN_…`). A test may stand for several: `check_46_r_01_r_02_…`.
//!
//! `cargo run -p xtask -- checks` and `-- bars` (`[-o json] [--narrow] [--long]`) find them in the
//! sources, run them, and print one row for each number. A number without a test counts as a failure,
//! and so does a bar whose tests print no figure (a line that starts with `R-NN`). `--narrow` builds
//! only the packages that have such tests, where the rest is not needed anyway; `--long` asks those
//! that have a long form for it.

mod names;
mod titles;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;
use names::{numbers_of, tests_in};
use serde::Serialize;
use titles::{BARS, CHECKS};

/// Set for the tests when long forms are wanted.
const LONG: &str = "ISOBAR_TEST_LONG";

/// A numbered list.
pub(crate) struct List {
    /// Name of the command.
    command: &'static str,
    /// What the names of its tests start with, before the number.
    prefix: &'static str,
    rows: &'static [(usize, &'static str)],
    /// What the figures of a row start with, before the number; every row must have one.
    figures: Option<&'static str>,
}

/// The conformance checks.
pub(crate) const CONFORMANCE: List = List {
    command: "checks",
    prefix: "check_",
    rows: &CHECKS,
    figures: None,
};

/// The reliability bars.
pub(crate) const RELIABILITY: List = List {
    command: "bars",
    prefix: "r_",
    rows: &BARS,
    figures: Some("R-"),
};

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Fail,
    Missing,
}

/// One row of the list.
#[derive(Debug, Serialize)]
struct Row {
    number: usize,
    title: &'static str,
    verdict: Verdict,
    /// Names of the tests, those that failed or did not run with their fate.
    tests: Vec<String>,
    /// What they measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    figures: Vec<String>,
}

/// What was asked for.
#[derive(Debug, Default, Clone, Copy)]
struct Wanted {
    json: bool,
    narrow: bool,
    long: bool,
}

/// What the test programs told.
#[derive(Debug, Default)]
struct Told {
    fates: BTreeMap<String, Fate>,
    lines: Vec<String>,
}

/// What became of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passed,
    Failed,
    /// Ignored, or never mentioned by the test program.
    NotRun,
}

/// Runs every test of the list and prints it.
pub(crate) fn run(root: &Path, list: &List, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let mut wanted = Wanted::default();
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-o" if words.next() == Some("json") => wanted.json = true,
            "--narrow" => wanted.narrow = true,
            "--long" if list.figures.is_some() => wanted.long = true,
            _ => {
                let long = if list.figures.is_some() {
                    " [--long]"
                } else {
                    ""
                };
                eprintln!("usage: xtask {} [-o json] [--narrow]{long}", list.command);
                return Ok(ExitCode::from(2));
            }
        }
    }
    let found = find(root, list)?;
    let told = execute(root, &found, wanted)?;
    let rows = rows(list, &found, &told);
    let failed = rows.iter().any(|row| row.verdict != Verdict::Pass);
    if wanted.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", table(list, &rows));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Test names by package, as the sources have them.
type Found = BTreeMap<String, BTreeSet<String>>;

fn find(root: &Path, list: &List) -> anyhow::Result<Found> {
    let mut found = Found::new();
    for file in crate::tracked(root, "*.rs")? {
        if file.starts_with("xtask") {
            continue;
        }
        let text = std::fs::read_to_string(root.join(&file))?;
        let names: BTreeSet<_> = tests_in(&text, list.prefix).map(str::to_owned).collect();
        if !names.is_empty() {
            let package = package_of(root, &file)?;
            found.entry(package).or_default().extend(names);
        }
    }
    Ok(found)
}

fn package_of(root: &Path, file: &Path) -> anyhow::Result<String> {
    let mut folder = file.to_owned();
    while folder.pop() {
        let manifest = root.join(&folder).join("Cargo.toml");
        let Ok(text) = std::fs::read_to_string(&manifest) else {
            continue;
        };
        let name = text.lines().find_map(|line| {
            let value = line.strip_prefix("name = \"")?;
            value.strip_suffix('"')
        });
        if let Some(name) = name {
            return Ok(name.to_owned());
        }
    }
    anyhow::bail!("{} belongs to no package", file.display())
}

fn execute(root: &Path, found: &Found, wanted: Wanted) -> anyhow::Result<Told> {
    let mut told = Told::default();
    if found.is_empty() {
        return Ok(told);
    }
    let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    let mut command = Command::new(cargo);
    command.current_dir(root);
    command.args(["test", "--profile", "quick", "--no-fail-fast"]);
    if wanted.narrow {
        for package in found.keys() {
            command.args(["-p", package]);
        }
    } else {
        // The selection of every other test command, so that nothing is compiled twice.
        command.arg("--workspace");
    }
    if wanted.long {
        command.env(LONG, "1");
    }
    command.args(["--", "--show-output"]);
    command.args(found.values().flatten());
    // What the build and the progress of long tests say goes to the terminal; the tests' own output
    // is read.
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for (name, fate) in fates_in(&text) {
        let name = name.rsplit("::").next().unwrap_or(name).to_owned();
        let worst = told.fates.entry(name).or_insert(fate);
        if fate != Fate::Passed {
            *worst = fate;
        }
    }
    if !output.status.success() {
        eprint!("{text}");
    }
    told.lines = text.lines().map(str::to_owned).collect();
    Ok(told)
}

/// Lines `test NAME ... ok`, as the test programs print them.
fn fates_in(text: &str) -> impl Iterator<Item = (&str, Fate)> {
    text.lines().filter_map(|line| {
        let (name, fate) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        // `#[should_panic]` tests have a note behind their name.
        let name = name.split(' ').next()?;
        let fate = match fate {
            "ok" => Fate::Passed,
            "FAILED" => Fate::Failed,
            _ => Fate::NotRun,
        };
        Some((name, fate))
    })
}

fn rows(list: &List, found: &Found, told: &Told) -> Vec<Row> {
    let names: BTreeSet<&String> = found.values().flatten().collect();
    let row = |(number, title): &(usize, &'static str)| {
        let mine = names
            .iter()
            .filter(|name| numbers_of(name, list.prefix).contains(number));
        let mut verdict = Verdict::Missing;
        let mut tests = Vec::new();
        for name in mine {
            let fate = told.fates.get(*name).copied().unwrap_or(Fate::NotRun);
            verdict = match (verdict, fate) {
                (Verdict::Missing | Verdict::Pass, Fate::Passed) => Verdict::Pass,
                _ => Verdict::Fail,
            };
            tests.push(match fate {
                Fate::Passed => (*name).clone(),
                Fate::Failed => format!("{name}: failed"),
                Fate::NotRun => format!("{name}: did not run"),
            });
        }
        let figures = figures(list, *number, &told.lines);
        if list.figures.is_some() && figures.is_empty() && verdict == Verdict::Pass {
            verdict = Verdict::Fail;
            tests.push("no figure printed".to_owned());
        }
        Row {
            number: *number,
            title,
            verdict,
            tests,
            figures,
        }
    };
    list.rows.iter().map(row).collect()
}

/// What was printed for one row: `R-07: …`, or `R-01, R-02: …` for several.
fn figures(list: &List, number: usize, lines: &[String]) -> Vec<String> {
    let Some(prefix) = list.figures else {
        return Vec::new();
    };
    let label = format!("{prefix}{number:02}");
    let of_row = lines.iter().filter_map(|line| {
        let (labels, text) = line.trim().split_once(": ")?;
        let mine = labels.starts_with(prefix) && labels.split([',', ' ']).any(|l| l == label);
        mine.then(|| text.to_owned())
    });
    of_row.collect()
}

fn table(list: &List, rows: &[Row]) -> String {
    let titles = rows.iter().map(|row| row.title.chars().count());
    let width = titles.max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let verdict = match row.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Missing => "MISSING",
        };
        let tests = match row.tests.as_slice() {
            [] => String::new(),
            tests if row.verdict == Verdict::Fail => format!("  {}", tests.join(", ")),
            [_] => "  1 test".to_owned(),
            tests => format!("  {} tests", tests.len()),
        };
        let label = list.figures.unwrap_or_default();
        let number = if label.is_empty() {
            format!("{:2}", row.number)
        } else {
            format!("{label}{:02}", row.number)
        };
        let line = format!("{number}  {:width$}  {verdict:7}{tests}", row.title);
        text.push_str(line.trim_end());
        text.push('\n');
        for figure in &row.figures {
            text.push_str(&format!("      {figure}\n"));
        }
    }
    let passed = rows.iter().filter(|r| r.verdict == Verdict::Pass).count();
    text.push_str(&format!("\n{passed} of {} pass\n", rows.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fate_of_a_test_is_in_its_line() {
        let output = "test zds::check_07_tries_again ... ok\ntest check_50_all - should panic ... FAILED\n\
                      test check_08_x ... ignored, why\n";
        let fates: Vec<_> = fates_in(output).collect();
        assert_eq!(
            fates,
            [
                ("zds::check_07_tries_again", Fate::Passed),
                ("check_50_all", Fate::Failed),
                ("check_08_x", Fate::NotRun),
            ]
        );
    }

    fn told(fates: &[(&str, Fate)], lines: &[&str]) -> Told {
        Told {
            fates: fates.iter().map(|(n, f)| ((*n).to_owned(), *f)).collect(),
            lines: lines.iter().map(|l| (*l).to_owned()).collect(),
        }
    }

    fn found(names: &[&str]) -> Found {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        Found::from([("p".to_owned(), names)])
    }

    #[test]
    fn a_number_without_a_test_or_with_one_that_did_not_run_is_no_pass() {
        let found = found(&["check_01_a", "check_01_b", "check_02_c", "check_03_d"]);
        let told = told(
            &[
                ("check_01_a", Fate::Passed),
                ("check_01_b", Fate::Failed),
                ("check_02_c", Fate::Passed),
            ],
            &[],
        );
        let rows = rows(&CONFORMANCE, &found, &told);
        let verdicts: Vec<_> = rows.iter().take(4).map(|r| r.verdict).collect();
        assert_eq!(
            verdicts,
            [
                Verdict::Fail,
                Verdict::Pass,
                Verdict::Fail,
                Verdict::Missing
            ]
        );
        let table = table(&CONFORMANCE, &rows);
        assert!(table.contains("did not run"), "{table}");
        assert!(table.ends_with("1 of 50 pass\n"));
    }

    #[test]
    fn a_bar_needs_a_figure() {
        let names = ["check_46_r_01_r_02_all", "r_07_memory"];
        let fates = names.map(|name| (name, Fate::Passed));
        let told = told(&fates, &["  R-01, R-02: 3 lost", "R-0: x", "R-070: y"]);
        let rows = rows(&RELIABILITY, &found(&names), &told);
        let of = |number| rows.iter().find(|r| r.number == number).unwrap();
        assert_eq!(of(1).figures, ["3 lost"]);
        assert_eq!(of(2).verdict, Verdict::Pass);
        assert_eq!(of(7).verdict, Verdict::Fail);
        assert_eq!(of(8).verdict, Verdict::Missing);
        let table = table(&RELIABILITY, &rows);
        assert!(
            table.contains("R-01  ") && table.contains("      3 lost\n"),
            "{table}"
        );
    }
}
