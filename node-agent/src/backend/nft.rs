use super::tool::{ToolError, run as tool};
use crate::plan::{RuleSet, TABLE, table_text};

pub(super) fn write(rules: &RuleSet) -> Result<(), ToolError> {
    run(&table_text(rules))
}

pub(super) fn run(text: &str) -> Result<(), ToolError> {
    tool("nft", &["-f", "-"], text).map(drop)
}

pub(super) fn list() -> Result<Option<String>, ToolError> {
    absent(tool(
        "nft",
        &["-n", "-s", "list", "table", "inet", TABLE],
        "",
    ))
}

pub(super) fn remove() -> Result<(), ToolError> {
    absent(tool("nft", &["delete", "table", "inet", TABLE], "")).map(drop)
}

/// Nothing there is an answer, not a failure.
fn absent(result: Result<String, ToolError>) -> Result<Option<String>, ToolError> {
    match result {
        Ok(text) => Ok(Some(text)),
        Err(ToolError::Failed { said, .. }) if said.contains("No such file") => Ok(None),
        Err(error) => Err(error),
    }
}
