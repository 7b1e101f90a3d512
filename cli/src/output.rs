//! Tables for people, JSON and YAML for programs.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde_json::Value;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[value(alias = "short")]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Rows under headings, columns as wide as needed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self::with_header(header.map(str::to_owned).into())
    }

    pub(crate) const fn with_header(header: Vec<String>) -> Self {
        Self {
            header,
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, with colour codes; the stream takes them out where they do not belong.
    pub(crate) fn render(&self) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        let bold = Style::new().bold();
        line(&mut text, &self.header, &widths, |_| bold);
        for row in &self.rows {
            line(&mut text, row, &widths, style_of);
        }
        text
    }
}

fn line(text: &mut String, cells: &[String], widths: &[usize], style: impl Fn(&str) -> Style) {
    // What is empty to the end of the line needs no blanks.
    let last = cells.iter().rposition(|cell| !cell.is_empty());
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if Some(at) > last {
            break;
        }
        let style = style(cell);
        // Writing to a String cannot fail.
        let _ = write!(text, "{style}{cell}{style:#}");
        if Some(at) < last {
            let gap = width - cell.chars().count() + 3;
            text.extend(std::iter::repeat_n(' ', gap));
        }
    }
    text.push('\n');
}

/// Words that mean good or bad wherever they stand.
fn style_of(cell: &str) -> Style {
    let colour = match cell.split(' ').next().unwrap_or_default() {
        "SYNCED" | "ready" | "Running" | "True" | "Available" | "Healthy" => AnsiColor::Green,
        "ERROR" | "crashed" | "Failed" | "False" | "Unhealthy" | "error" => AnsiColor::Red,
        "STALE" | "Pending" | "starting" | "stopped" | "warning" | "unsupported" => {
            AnsiColor::Yellow
        }
        _ => return Style::new(),
    };
    colour.on_default()
}

/// Prints text on standard output; colours only on a terminal. That nobody reads is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match anstream::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Tells how a command goes: on standard output, but where that is for a value on standard error.
pub(crate) fn say(text: &str, format: Format) -> anyhow::Result<()> {
    if format == Format::Table {
        return print(text);
    }
    anstream::eprint!("{text}");
    Ok(())
}

/// Says on standard error what did not work, with all causes.
pub(crate) fn complain(error: &anyhow::Error) {
    let style = AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{style}error:{style:#} {error:#}");
}

/// Prints `value` in a form for programs.
pub(crate) fn print_value(value: &Value, format: Format) -> anyhow::Result<()> {
    let mut text = match format {
        Format::Yaml => serde_saphyr::to_string(value)?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value)?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    print(&text)
}

/// Text of a JSON value as a cell: strings bare, lists joined, nothing as `-`.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(map) if map.is_empty() => "-".to_owned(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| format!("{key}={}", cell(value)))
            .collect::<Vec<_>>()
            .join(","),
        other => other.to_string(),
    }
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {what}{end}")
}

/// `3s`, `4m`, `5h`, `6d`.
pub(crate) fn age(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

/// A table without colour codes, for tests.
#[cfg(test)]
pub(crate) fn plain(table: &Table) -> String {
    anstream::adapter::strip_str(&table.render()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_aligned_and_lines_end_clean() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a-long-name".to_owned(), "ready".to_owned()]);
        table.row(["b".to_owned(), "crashed".to_owned()]);
        assert_eq!(
            plain(&table),
            "NAME          STATE\na-long-name   ready\nb             crashed\n"
        );
        assert!(table.render().contains('\u{1b}'));
    }

    #[test]
    fn cells_are_words() {
        assert_eq!(cell(&json!(null)), "-");
        assert_eq!(cell(&json!(["a", 1])), "a,1");
        assert_eq!(cell(&json!({"a": "b"})), "a=b");
        assert_eq!(age(3.2), "3s");
        assert_eq!(age(600.0), "10m");
    }
}
