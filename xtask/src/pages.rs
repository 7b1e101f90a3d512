//! Every command of the documentation is run: by the test that follows its page, or by one that the
//! page names. Nothing may look like a command to readers and not to that test.

use std::path::Path;

use crate::{Complaint, tracked};

/// Pages outside `docs/` that a test follows.
const FOLLOWED: [&str; 1] = ["README.md"];
/// Where old texts stay as they were.
const HISTORY: &str = "CHANGELOG.md";
/// Languages of blocks.
const LANGUAGES: [&str; 4] = ["console", "text", "yaml", "json"];
/// What a reader types.
const TYPED: [&str; 8] = [
    "isobar", "kubectl", "helm", "podman", "docker", "cargo", "make", "curl",
];

/// Runs the check.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let doors = std::fs::read_to_string(root.join("Makefile"))?;
    let mut pages = Vec::new();
    for path in tracked(root, "*.md")? {
        let name = path.to_string_lossy().into_owned();
        if name != HISTORY {
            let text = std::fs::read_to_string(root.join(&path))?;
            pages.push((name, text));
        }
    }
    let run: Vec<Vec<&str>> = pages.iter().flat_map(|(_, text)| run(text)).collect();
    let mut complaints = Vec::new();
    for (name, text) in &pages {
        for (line, wrong) in wrong(name, text, &doors, &run) {
            complaints.push(Complaint(format!("{name}:{line}: {wrong}")));
        }
    }
    Ok(complaints)
}

/// Lines of a page with their numbers from 1, and the language of the block around them; those that
/// begin and end blocks are left out.
fn lines(page: &str) -> impl Iterator<Item = (usize, &str, Option<&str>)> {
    let mut language = None;
    page.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().strip_prefix("```");
        match (language, fence) {
            (None, Some(begins)) => language = Some(begins),
            (Some(_), Some("")) => language = None,
            _ => return Some((at + 1, line, language)),
        }
        None
    })
}

/// Words of a command; a plugin is called as the program itself.
fn words(command: &str) -> Vec<&str> {
    let command = command.trim_start_matches("$ ");
    let plugin = command.strip_prefix("kubectl ");
    let plugin = plugin.filter(|rest| rest.starts_with("isobar "));
    plugin.unwrap_or(command).split_whitespace().collect()
}

/// Commands of a page that a test types.
fn run(page: &str) -> Vec<Vec<&str>> {
    let blocks = lines(page).filter(|(_, _, language)| *language == Some("console"));
    blocks
        .map(|(_, line, _)| words(line.trim_start()))
        .collect()
}

/// Lines, from 1, with what is wrong there.
fn wrong(name: &str, page: &str, doors: &str, run: &[Vec<&str>]) -> Vec<(usize, String)> {
    let has_place = page.lines().any(|line| line.starts_with("<!-- commands:"));
    let in_folder = name.strip_prefix("docs/");
    let has_test = FOLLOWED.contains(&name) || in_folder.is_some_and(|name| !name.contains('/'));
    let is_followed = has_place && has_test;
    let mut wrong = Vec::new();
    let mut say = |line: usize, what: String| wrong.push((line, what));
    for (at, line) in page.lines().enumerate() {
        let language = line.trim_start().strip_prefix("```");
        if language == Some("console") && !is_followed {
            say(at + 1, "no test follows this page".to_owned());
        }
        if let Some(language) = language.filter(|language| !language.is_empty())
            && !LANGUAGES.contains(&language)
        {
            say(
                at + 1,
                format!("{language:?}: commands are console, others {LANGUAGES:?}"),
            );
        }
    }
    let mut before = "";
    for (at, line, language) in lines(page) {
        let text = line.trim_start();
        let is_typed = text.starts_with("$ ")
            || text
                .split(' ')
                .next()
                .is_some_and(|word| TYPED.contains(&word));
        match language {
            Some("") => say(at, "a block without a language".to_owned()),
            Some(_) => {}
            None => {
                if text.starts_with("~~~") || text.starts_with("<pre") {
                    say(at, "write ```console, so that it is run".to_owned());
                }
                let is_block = before.trim().is_empty() && line.len() - text.len() >= 4;
                if is_block && is_typed {
                    say(
                        at,
                        "write it into a block of console, so that it is run".to_owned(),
                    );
                }
                for inline in text.split('`').skip(1).step_by(2) {
                    if let Some(what) = inline_wrong(inline, is_followed, doors, run) {
                        say(at, what);
                    }
                }
                if let Some(what) = note_wrong(line, doors) {
                    say(at, what);
                }
            }
        }
        before = line;
    }
    wrong
}

/// What is wrong with a command in the middle of a text: on a page that is followed it is the name of a
/// program with its verbs, or some block has all of it.
fn inline_wrong(inline: &str, is_followed: bool, doors: &str, run: &[Vec<&str>]) -> Option<String> {
    let words = words(inline);
    let (program, rest) = words.split_first()?;
    if *program == "make" {
        let target = format!("make {}", rest.first()?);
        return (!is_door(&target, doors)).then(|| format!("the Makefile has no {target:?}"));
    }
    let is_verb = |word: &&str| {
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
        *word == "--help" || !word.starts_with('-') && word.bytes().all(letters)
    };
    if !is_followed || !TYPED.contains(program) || rest.iter().all(is_verb) {
        return None;
    }
    let is_run = run.iter().any(|line| {
        let mut line = line.iter();
        words.iter().all(|word| line.any(|other| other == word))
    });
    (!is_run).then(|| format!("no block has {inline:?}: put it into one, so that it is run"))
}

/// What is wrong with a note in front of a block.
fn note_wrong(line: &str, doors: &str) -> Option<String> {
    let note = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    let (word, rest) = note.split_once(':').unwrap_or((note, ""));
    match word.trim() {
        "not run" => Some("a command that nobody runs: let the test of its page run it".to_owned()),
        "run by" if !is_door(rest.trim(), doors) => {
            Some(format!("the Makefile has no {:?}", rest.trim()))
        }
        _ => None,
    }
}

/// True for `make TARGET` of a target that the Makefile has.
fn is_door(test: &str, doors: &str) -> bool {
    let target = test.strip_prefix("make ").map(|name| format!("{name}:"));
    target.is_some_and(|start| doors.lines().any(|line| line.starts_with(&start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_lines(name: &str, page: &str) -> Vec<usize> {
        let doors = "test: build\n\tcargo test\n";
        let wrong = wrong(name, page, doors, &run(page));
        wrong.into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn notes_that_say_who_runs_nothing_are_found() {
        let lines = |page| wrong_lines("docs/a.md", page);
        assert!(lines("<!-- waits -->\n<!-- run by: make test -->\n").is_empty());
        assert_eq!(lines("a\n<!-- not run: no engine -->\n"), [2]);
        assert_eq!(lines("<!-- run by: make tests -->\n"), [1]);
        assert_eq!(lines("<!-- run by: somebody -->\n"), [1]);
    }

    #[test]
    fn commands_that_nobody_runs_are_found() {
        let page = |text: &str| format!("<!-- commands: lab -->\n{text}\n");
        let lines = |text: &str| wrong_lines("docs/a.md", &page(text));
        let block = "```console\n$ kubectl isobar lab up -f x\nkubectl is its output\n```";
        assert!(lines(block).is_empty());
        assert!(
            lines(&format!(
                "{block}\n`isobar lab up` and `isobar lab up -f x`"
            ))
            .is_empty()
        );
        assert!(
            lines("- of a list\n    helm goes on\n\n`isobar status` and `isobar.dev/a b c`")
                .is_empty()
        );
        assert_eq!(lines("`isobar lab down --all`"), [2]);
        assert_eq!(lines(&format!("{block}\n`isobar lab -f up`")), [6]);
        assert!(lines("`isobar lab down` is a name").is_empty());
        assert_eq!(lines("a\n\n    helm install it\n\n    $ x"), [4, 6]);
        assert_eq!(lines("~~~\nkubectl get pods\n~~~"), [2, 4]);
        for language in ["", "sh", "console ", "shell-session"] {
            assert_eq!(
                lines(&format!("```{language}\nx\n```")).len(),
                1,
                "{language:?}"
            );
        }
        assert_eq!(lines("`make test` and `make tests ONLY=a`"), [2]);
        // Pages that no test follows name commands, and have no blocks of them.
        assert!(wrong_lines("docs/a.md", "`isobar lab down --all`\n").is_empty());
        assert_eq!(wrong_lines("benches/a.md", "```console\nx\n```\n"), [1]);
        assert_eq!(wrong_lines("docs/adr/a.md", "```console\nx\n```\n"), [1]);
    }
}
