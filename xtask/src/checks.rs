//! The conformance checks of the node proxy: tests called `check_NN_…`, anywhere in the workspace.
//!
//! `cargo run -p xtask -- checks [-o json] [--narrow]` finds them in the sources, runs them, and prints
//! one row for each number; a number without a test counts as a failure. `--narrow` builds only the
//! packages that have such tests, where the rest is not needed anyway.

mod titles;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;
use serde::Serialize;
use titles::TITLES;

/// How a check stands.
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
}

/// What became of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passed,
    Failed,
    /// Ignored, or never mentioned by the test program.
    NotRun,
}

/// Runs every check and prints the list.
pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let (mut json, mut narrow) = (false, false);
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-o" if words.next() == Some("json") => json = true,
            "--narrow" => narrow = true,
            _ => anyhow::bail!("usage: xtask checks [-o json] [--narrow]"),
        }
    }
    let found = find(root)?;
    let fates = execute(root, &found, narrow)?;
    let rows = rows(&found, &fates);
    let failed = rows.iter().any(|row| row.verdict != Verdict::Pass);
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", table(&rows));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Test names by package, as the sources have them.
type Found = BTreeMap<String, BTreeSet<String>>;

fn find(root: &Path) -> anyhow::Result<Found> {
    let mut found = Found::new();
    for file in crate::tracked(root, "*.rs")? {
        if file.starts_with("xtask") {
            continue;
        }
        let text = std::fs::read_to_string(root.join(&file))?;
        let names: BTreeSet<_> = names_in(&text).map(str::to_owned).collect();
        if !names.is_empty() {
            let package = package_of(root, &file)?;
            found.entry(package).or_default().extend(names);
        }
    }
    Ok(found)
}

/// Functions called `check_NN_…` in a source text.
fn names_in(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (before, name) = line.split_once("fn check_")?;
        let before = before.trim();
        if !matches!(before, "" | "async" | "pub" | "pub(crate)") {
            return None;
        }
        let name = name.split(['(', '<']).next()?;
        let start = line.len() - line.split_once("fn ")?.1.len();
        let name = line.get(start..start + "check_".len() + name.len())?;
        number_of(name).map(|_| name)
    })
}

/// The number of a test by its name, whatever module it is in.
fn number_of(name: &str) -> Option<usize> {
    let rest = name.rsplit("::").next()?.strip_prefix("check_")?;
    let (digits, _) = rest.split_once('_')?;
    let number = digits.parse().ok()?;
    (digits.len() == 2 && (1..=TITLES.len()).contains(&number)).then_some(number)
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

fn execute(root: &Path, found: &Found, narrow: bool) -> anyhow::Result<BTreeMap<String, Fate>> {
    let mut fates = BTreeMap::new();
    if found.is_empty() {
        return Ok(fates);
    }
    let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    let mut command = Command::new(cargo);
    command.current_dir(root);
    command.args(["test", "--profile", "quick", "--no-fail-fast"]);
    if narrow {
        for package in found.keys() {
            command.args(["-p", package]);
        }
    } else {
        // The selection of every other test command, so that nothing is compiled twice.
        command.arg("--workspace");
    }
    command.args(["--", "check_"]);
    // What the build says goes to the terminal; the tests' own output is read.
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for (name, fate) in fates_in(&text) {
        let name = name.rsplit("::").next().unwrap_or(name).to_owned();
        let worst = fates.entry(name).or_insert(fate);
        if fate != Fate::Passed {
            *worst = fate;
        }
    }
    if !output.status.success() {
        eprint!("{text}");
    }
    Ok(fates)
}

/// Lines `test NAME ... ok`, as the test programs print them.
fn fates_in(text: &str) -> impl Iterator<Item = (&str, Fate)> {
    text.lines().filter_map(|line| {
        let (name, fate) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        // `#[should_panic]` tests have a note behind their name.
        let name = name.split(' ').next()?;
        number_of(name)?;
        let fate = match fate {
            "ok" => Fate::Passed,
            "FAILED" => Fate::Failed,
            _ => Fate::NotRun,
        };
        Some((name, fate))
    })
}

fn rows(found: &Found, fates: &BTreeMap<String, Fate>) -> Vec<Row> {
    let names: BTreeSet<&String> = found.values().flatten().collect();
    let numbered = TITLES.iter().zip(1..);
    numbered
        .map(|(title, number)| {
            let mine = names.iter().filter(|name| number_of(name) == Some(number));
            let mut verdict = Verdict::Missing;
            let mut tests = Vec::new();
            for name in mine {
                let fate = fates.get(*name).copied().unwrap_or(Fate::NotRun);
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
            Row {
                number,
                title,
                verdict,
                tests,
            }
        })
        .collect()
}

fn table(rows: &[Row]) -> String {
    let width = TITLES.iter().map(|t| t.chars().count()).max().unwrap_or(0);
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
        let line = format!("{:2}  {:width$}  {verdict:7}{tests}", row.number, row.title);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let passed = rows.iter().filter(|r| r.verdict == Verdict::Pass).count();
    text.push_str(&format!("\n{passed} of {} pass\n", rows.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_tests_by_name_and_their_fate_by_line() {
        let source = "    async fn check_07_tries_again() {\nfn check_99_no() {\nfn check_7_no() {\n\
                      // fn check_08_comment()\nfn check_50_all<T>() {";
        let names: Vec<_> = names_in(source).collect();
        assert_eq!(names, ["check_07_tries_again", "check_50_all"]);
        let output = "test zds::check_07_tries_again ... ok\ntest check_50_all - should panic ... FAILED\n\
                      test other ... ok\ntest check_08_x ... ignored, why\n";
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

    #[test]
    fn a_number_without_a_test_or_with_one_that_did_not_run_is_no_pass() {
        let names = ["check_01_a", "check_01_b", "check_02_c", "check_03_d"];
        let names = names.map(str::to_owned).into_iter().collect();
        let found = Found::from([("p".to_owned(), names)]);
        let fates = BTreeMap::from([
            ("check_01_a".to_owned(), Fate::Passed),
            ("check_01_b".to_owned(), Fate::Failed),
            ("check_02_c".to_owned(), Fate::Passed),
        ]);
        let rows = rows(&found, &fates);
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
        assert!(table(&rows).contains("did not run"), "{}", table(&rows));
        assert!(table(&rows).ends_with("1 of 50 pass\n"));
    }
}
