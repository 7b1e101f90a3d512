use anyhow::Result;
use isobar_lab::Lab;
use serde_json::{Value, json};

use crate::args::Output;
use crate::page;
use crate::render::{self, items, text};

/// Columns of resource types: what the control plane calls them, and their heading.
const TYPES: [(&str, &str); 7] = [
    ("address", "ADDRESS"),
    ("authorization", "AUTHZ"),
    ("waypoint", "WAYPOINT"),
    ("virtualservice", "VS"),
    ("destinationrule", "DR"),
    ("waypointauthorization", "L7 AUTHZ"),
    ("workloadlabels", "LABELS"),
];

/// One line for each connected proxy: is it in step, type by type?
pub(crate) async fn show(lab: &Lab, output: Output, verbose: bool) -> Result<()> {
    let sync = page::control_plane(lab, "/debug/syncz").await?;
    let findings = page::control_plane(lab, "/debug/findings").await?;
    if output != Output::Table {
        return render::value(
            output,
            &json!({ "proxies": sync["clients"], "objects": findings }),
        );
    }
    let present: Vec<_> = TYPES
        .iter()
        .filter(|(key, _)| items(&sync["clients"]).any(|c| find(&c["types"], key).is_some()))
        .collect();
    let mut header = vec!["NAME", "TYPE", "NODE"];
    header.extend(present.iter().map(|(_, heading)| *heading));
    header.extend(["ACK AGE", "REVISION"]);
    let mut rows: Vec<Vec<String>> = items(&sync["clients"])
        .map(|client| {
            let mut row = vec![name(client), text(client, "kind"), text(client, "node")];
            row.extend(present.iter().map(|(key, _)| {
                find(&client["types"], key).map_or_else(|| "-".to_owned(), |t| text(t, "status"))
            }));
            row.extend([ack_age(client), text(&sync, "revision")]);
            row
        })
        .collect();
    rows.sort();
    print!("{}", render::table(&header, rows));
    for client in items(&sync["clients"]) {
        for (kind, state) in client["types"].as_object().into_iter().flatten() {
            if let Some(error) = state["error"].as_str() {
                println!("\n{} refused {kind}: {error}", name(client));
            }
        }
    }
    objects(&findings, verbose);
    Ok(())
}

/// A waypoint goes by its Gateway, everything else by its pod.
fn name(client: &Value) -> String {
    match client["gateway"].as_str().filter(|g| !g.is_empty()) {
        Some(gateway) => gateway.to_owned(),
        None => format!("{}/{}", text(client, "namespace"), text(client, "pod")),
    }
}

/// Keys are compared without case and punctuation, so that a heading never hides a type.
fn find<'a>(types: &'a Value, key: &str) -> Option<&'a Value> {
    let fold = |text: &str| -> String {
        text.chars()
            .filter(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_lowercase()
    };
    types
        .as_object()?
        .iter()
        .find(|(name, _)| fold(name) == key)
        .map(|(_, value)| value)
}

fn ack_age(client: &Value) -> String {
    client["types"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, state)| state["ackAgeSeconds"].as_f64())
        .min_by(f64::total_cmp)
        .map_or_else(|| "-".to_owned(), |age| format!("{age:.0}s"))
}

/// What is to be said about objects: errors always, the rest when asked.
fn objects(findings: &Value, verbose: bool) {
    let all: Vec<_> = items(&findings["findings"])
        .chain(items(&findings["conditions"]))
        .collect();
    let shown: Vec<_> = all
        .iter()
        .filter(|f| verbose && f["severity"] != "info" || f["severity"] == "error")
        .collect();
    if !shown.is_empty() {
        println!("\nObjects:");
    }
    for finding in &shown {
        let object = match &finding["object"] {
            Value::String(text) => text.clone(),
            object => format!(
                "{} {}/{}",
                text(object, "kind"),
                text(object, "namespace"),
                text(object, "name")
            ),
        };
        println!(
            "  {}: {object}: {}",
            text(finding, "severity"),
            text(finding, "message")
        );
    }
    let hidden = all.iter().filter(|f| f["severity"] == "warning").count();
    if !verbose && hidden > 0 {
        println!("\n{hidden} warnings about objects; `isobar status -v` shows them");
    }
}
