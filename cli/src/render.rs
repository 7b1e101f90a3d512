use anyhow::Result;
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::args::Output;

/// Prints rows below a header, or the value they were made of.
pub(crate) fn rows(
    output: Output,
    header: &[&str],
    rows: Vec<Vec<String>>,
    value: &Value,
) -> Result<()> {
    match output {
        Output::Table => {
            print!("{}", table(header, rows));
            Ok(())
        }
        Output::Json | Output::Yaml => self::value(output, value),
    }
}

/// Aligned columns, two blanks apart, no trailing blanks; ends with a line break.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints a value as it is; a table has no form for it, so JSON it is.
pub(crate) fn value(output: Output, value: &Value) -> Result<()> {
    match output {
        Output::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        Output::Table | Output::Json => println!("{value:#}"),
    }
    Ok(())
}

/// The text at a key, `-` where there is none.
pub(crate) fn text(value: &Value, key: &str) -> String {
    plain(&value[key])
}

/// A value as one word: strings without quotes, lists joined by commas.
pub(crate) fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Object(entries) => entries
            .iter()
            .map(|(k, v)| format!("{k}={}", plain(v)))
            .collect::<Vec<_>>()
            .join(","),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// The items of a list, or nothing.
pub(crate) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_align_and_lines_end_cleanly() {
        let text = table(
            &["NAME", "X"],
            vec![
                vec!["a".into(), "1".into()],
                vec!["long".into(), "2".into()],
            ],
        );
        assert_eq!(text, "NAME  X\na     1\nlong  2\n");
    }

    #[test]
    fn values_become_words() {
        assert_eq!(plain(&json!(["a", 1, null])), "a,1,-");
        assert_eq!(plain(&json!({"a": "b"})), "a=b");
        assert_eq!(text(&json!({}), "none"), "-");
    }
}
