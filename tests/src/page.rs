//! Pages of the documentation as tests: every command in them is run as it stands, in order, and what
//! a page shows as its output is compared.
//!
//! In a page, a comment in front of a fenced block says what is special about it:
//!
//! * `<!-- commands: PLACE -->`, once, near the top: where the page's commands are run;
//! * `<!-- anew -->`: from here on in a new place;
//! * `<!-- file: NAME -->`: the block is the text of a file;
//! * `<!-- waits -->`: the commands are repeated until they come out as shown;
//! * `<!-- exit: N -->`: the last command of the block ends with this code;
//! * `<!-- stays -->`: the command runs until its reader ends it: it is ended when it shows what the
//!   page does and, if it named an address, something has answered there;
//! * `<!-- run by: TEST -->`: the block is run by another test than the one that follows the page.
//!
//! In a `console` block lines that begin with `$ ` are commands and the others their output, in which
//! `...` stands for anything; without such lines each line is a command. A `\` at its end goes on in
//! the next line, and `<<EOF` up to a line `EOF`.
//!
//! Blocks that look like commands and would not be run are errors: [`Page::read`] takes those of the
//! languages `console`, `text`, `yaml` and `json` only, none in front of whose first command stands something else.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::wait::eventually;

/// What starts the test of the blocks about images: they take a container engine and half an hour.
pub const IMAGES: &str = "make test-images";
/// Languages of blocks that nobody types.
const PLAIN: [&str; 3] = ["text", "yaml", "json"];
/// Tests that run blocks of pages besides those that follow whole pages.
pub const OTHERS: [&str; 1] = [IMAGES];

/// A page.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Where its commands are run; empty if it has none.
    pub place: String,
    /// What is done, by the places that it is done in.
    pub parts: Vec<Vec<Step>>,
    /// Blocks that other tests run.
    pub elsewhere: Vec<Elsewhere>,
}

/// A block of a page that another test runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// What starts that test.
    pub by: String,
    /// What it does.
    pub steps: Vec<Step>,
}

/// What a page makes its reader do.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a file into the folder.
    File {
        /// Its name.
        name: String,
        /// Its text.
        text: String,
    },
    /// Type a command.
    Command {
        /// Line in the page, from 1.
        line: usize,
        /// The command.
        command: String,
        /// Its output, if the page shows it.
        output: Option<String>,
        /// What it ends with.
        exit: i32,
        /// What is special about running it.
        how: How,
    },
}

/// How a command of a page is run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Once.
    #[default]
    Once,
    /// Repeated until it comes out as shown.
    Waits,
    /// Until its reader ends it.
    Stays,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What stands before a block.
#[derive(Debug, Default)]
struct Notes {
    file: Option<String>,
    run_by: Option<String>,
    how: How,
    exit: i32,
}

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// When a note is unknown, a block does not end, is in a language that is not known here, or has
    /// lines that are neither commands nor the output of one.
    pub fn read(text: &str) -> Result<Self> {
        let mut page = Self {
            parts: vec![Vec::new()],
            ..Self::default()
        };
        let mut notes = Notes::default();
        let mut lines = text.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            if let Some(note) = comment(line) {
                page.note(note, &mut notes)
                    .with_context(|| format!("line {}", at + 1))?;
                continue;
            }
            let Some(language) = line.trim_start().strip_prefix("```") else {
                if !line.trim().is_empty() {
                    notes = Notes::default();
                }
                continue;
            };
            ensure!(
                !language.starts_with('`'),
                "line {}: three of ` begin a block",
                at + 1
            );
            let indent = line.len() - line.trim_start().len();
            let mut block = Vec::new();
            loop {
                let (_, inner) = lines
                    .next()
                    .with_context(|| format!("line {}: no end", at + 1))?;
                if inner.trim() == "```" {
                    break;
                }
                block.push(inner.get(indent..).unwrap_or_default());
            }
            let notes = std::mem::take(&mut notes);
            page.block(language, at + 2, &block, notes)
                .with_context(|| format!("line {}", at + 1))?;
        }
        Ok(page)
    }

    fn note(&mut self, note: &str, notes: &mut Notes) -> Result<()> {
        let (word, rest) = note.split_once(':').unwrap_or((note, ""));
        let rest = rest.trim().to_owned();
        match word.trim() {
            "commands" => self.place = rest,
            "anew" => self.parts.push(Vec::new()),
            "file" => notes.file = Some(rest),
            "waits" => notes.how = How::Waits,
            "stays" => notes.how = How::Stays,
            "exit" => notes.exit = rest.parse()?,
            "run by" => {
                ensure!(!rest.is_empty(), "name the test");
                notes.run_by = Some(rest);
            }
            other => bail!("there is no note {other:?}"),
        }
        Ok(())
    }

    fn block(&mut self, language: &str, line: usize, block: &[&str], notes: Notes) -> Result<()> {
        if let Some(first) = block.first() {
            let prompts = block.iter().any(|line| line.starts_with("$ "));
            ensure!(
                language != "console" || !prompts || first.starts_with("$ "),
                "{first:?} is in front of the first command: begin it with $ too"
            );
        }
        if let Some(by) = notes.run_by {
            ensure!(language == "console", "there is nothing to run");
            let steps = commands(line, block);
            self.elsewhere.push(Elsewhere { by, steps });
            return Ok(());
        }
        let part = self.parts.last_mut().context("there is always a part")?;
        if let Some(name) = notes.file {
            ensure!(language != "console", "a file of commands is run by nobody");
            let text = block.join("\n") + "\n";
            part.push(Step::File { name, text });
            return Ok(());
        }
        if language != "console" {
            let is_typed = block.iter().any(|line| line.trim_start().starts_with("$ "));
            ensure!(
                PLAIN.contains(&language) && !is_typed,
                "write console, so that it is run"
            );
        }
        if language == "console" {
            let mut steps = commands(line, block);
            for step in &mut steps {
                if let Step::Command { how, .. } = step {
                    *how = notes.how;
                }
            }
            if let Some(Step::Command { exit, .. }) = steps.last_mut() {
                *exit = notes.exit;
            }
            part.extend(steps);
        }
        Ok(())
    }

    /// Number of its commands.
    #[must_use]
    pub fn commands(&self) -> usize {
        let steps = self.parts.iter().flatten();
        steps
            .filter(|step| matches!(step, Step::Command { .. }))
            .count()
    }
}

/// Does what one part of a page says; files go into `folder`. A command that stays is ended by `run` when
/// its standard output is as the function that it gets says.
///
/// # Errors
/// When a command ends otherwise than the page shows.
pub async fn follow(
    part: &[Step],
    folder: &Path,
    run: impl AsyncFn(&str, Option<&dyn Fn(&str) -> bool>) -> Result<Ended>,
) -> Result<()> {
    for step in part {
        match step {
            Step::File { name, text } => std::fs::write(folder.join(name), text)?,
            Step::Command {
                line,
                command,
                output,
                exit,
                how,
            } => {
                let once = async || -> Result<()> {
                    let ended = run(command, None).await?;
                    is_as_shown(&ended, *exit, output.as_deref())
                };
                let what = format!("line {line}: {command}");
                match how {
                    How::Waits => eventually(&what, once).await?,
                    How::Once => once().await.with_context(|| what.clone())?,
                    How::Stays => {
                        let shown = lines_of(output.as_deref().unwrap_or("..."));
                        let is_shown = |said: &str| fits(&lines_of(said), &shown);
                        let ended = run(command, Some(&is_shown)).await;
                        let ended = ended.with_context(|| what.clone())?;
                        is_as_shown(&ended, ended.code, output.as_deref()).context(what)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn is_as_shown(ended: &Ended, exit: i32, output: Option<&str>) -> Result<()> {
    let said = || format!("{}{}", ended.stdout, ended.stderr);
    ensure!(
        ended.code == exit,
        "exit code {}, not {exit}:\n{}",
        ended.code,
        said()
    );
    if let Some(output) = output {
        let (is, shown) = (lines_of(&ended.stdout), lines_of(output));
        ensure!(
            fits(&is, &shown),
            "the page shows\n{output}\nbut it is\n{}",
            said()
        );
    }
    Ok(())
}

/// Without blanks at ends, and with one where there are several: columns are as wide as their cells.
fn lines_of(text: &str) -> Vec<String> {
    let tidy = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.trim_end().lines().map(tidy).collect()
}

/// True if lines are as shown; a line `...` stands for any lines, `...` inside for anything.
fn fits(is: &[String], shown: &[String]) -> bool {
    match (is.split_first(), shown.split_first()) {
        (None, None) => true,
        (_, Some((dots, rest))) if dots == "..." => {
            fits(is, rest) || is.split_first().is_some_and(|(_, is)| fits(is, shown))
        }
        (Some((line, is)), Some((wanted, shown))) => line_fits(line, wanted) && fits(is, shown),
        _ => false,
    }
}

fn line_fits(line: &str, shown: &str) -> bool {
    let Some((begin, rest)) = shown.split_once("...") else {
        return line == shown;
    };
    let Some(line) = line.strip_prefix(begin) else {
        return false;
    };
    (0..=line.len())
        .filter(|at| line.is_char_boundary(*at))
        .any(|at| line_fits(&line[at..], rest))
}

fn comment(line: &str) -> Option<&str> {
    let inner = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    Some(inner.trim())
}

fn commands(first: usize, block: &[&str]) -> Vec<Step> {
    let prompts = block.iter().any(|line| line.starts_with("$ "));
    let mut found: Vec<Step> = Vec::new();
    let mut lines = block.iter().enumerate();
    while let Some((at, line)) = lines.next() {
        let typed = match line.strip_prefix("$ ") {
            Some(typed) => typed,
            None if prompts => {
                if let Some(Step::Command { output, .. }) = found.last_mut() {
                    let output = output.get_or_insert_default();
                    output.push_str(line);
                    output.push('\n');
                }
                continue;
            }
            None if line.trim().is_empty() => continue,
            None => line,
        };
        let mut command = typed.to_owned();
        while command.ends_with('\\')
            && let Some((_, more)) = lines.next()
        {
            command.push('\n');
            command.push_str(more);
        }
        if command.contains("<<EOF") || command.contains("<<'EOF'") {
            for (_, more) in lines.by_ref() {
                command.push('\n');
                command.push_str(more);
                if *more == "EOF" {
                    break;
                }
            }
        }
        found.push(Step::Command {
            line: first + at,
            command,
            output: None,
            exit: 0,
            how: How::Once,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_its_reader_would() {
        let text = "# T\n<!-- commands: lab -->\n\n<!-- file: a.yaml -->\n```yaml\na: 1\n```\n\
                    <!-- waits -->\n<!-- exit: 1 -->\n```console\n$ one \\\n  more\nout\n$ two <<EOF\nx\nEOF\n```\n\
                    <!-- anew -->\n```console\nthree\n\nfour\n```\n<!-- run by: make x -->\n```console\nfive\n```\n<!-- stays -->\n```console\nsix\n```\n";
        let page = Page::read(text).unwrap();
        assert_eq!((&*page.place, page.commands()), ("lab", 5));
        assert_eq!(page.elsewhere.len(), 1);
        assert_eq!(page.elsewhere[0].by, "make x");
        assert!(
            matches!(&page.elsewhere[0].steps[..], [Step::Command { command, .. }] if command == "five")
        );
        assert!(matches!(
            page.parts[1].last(),
            Some(Step::Command {
                how: How::Stays,
                ..
            })
        ));
        assert_eq!(page.parts.len(), 2);
        let Step::Command {
            line,
            command,
            output,
            exit,
            how,
        } = &page.parts[0][1]
        else {
            panic!("{page:?}");
        };
        assert_eq!(
            (*line, &**command, *exit, *how),
            (11, "one \\\n  more", 0, How::Waits)
        );
        assert_eq!(output.as_deref(), Some("out\n"));
        let Step::Command { command, exit, .. } = &page.parts[0][2] else {
            panic!("{page:?}");
        };
        assert_eq!((&**command, *exit), ("two <<EOF\nx\nEOF", 1));
        for bad in [
            "```sh\nx\n```\n",
            "```console\nx\n",
            "```\nx\n```\n",
            "```text\n$ x\n```\n",
            "```console \nx\n```\n",
            "````console\nx\n````\n",
            "```console\none\n$ two\n```\n",
            "<!-- file: a -->\n```console\nx\n```\n",
            "<!-- nonsense -->\n",
            "<!-- not run: no engine -->\n",
            "<!-- run by: -->\n",
            "<!-- run by: make x -->\n```yaml\nx\n```\n",
        ] {
            assert!(Page::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn outputs_fit_with_dots() {
        let fit = |is: &str, shown: &str| fits(&lines_of(is), &lines_of(shown));
        assert!(fit("a  b\nc\n", "a b\nc"));
        assert!(fit("NAME   AGE\nx      3s\n", "NAME AGE\nx ..."));
        assert!(fit("a\nb\nc\n", "...\nc") && fit("c\n", "...\nc\n..."));
        assert!(!fit("a\nb\n", "a") && !fit("a\n", "a\nb") && !fit("ab", "a...c"));
        assert!(fit("abc", "a...c") && fit("a", "a..."));
    }
}
