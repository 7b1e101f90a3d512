//! `isobar status`.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::arguments::Global;
use crate::mesh_access::Mesh;
use crate::output::{Format, Table, age, cell, print, print_value};

/// Order of the columns; types that are not known here come after these.
const TYPES: [&str; 8] = [
    "Address",
    "Authorization",
    "Waypoint",
    "WorkloadLabels",
    "VirtualService",
    "DestinationRule",
    "WaypointAuthorization",
    "RateLimitPolicy",
];

pub(crate) async fn run(verbose: bool, global: &Global) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::chosen(global).await?;
    let sync = joined(mesh.control_plane("/debug/syncz").await?);
    // Every replica reads the same objects.
    let mut findings = mesh.control_plane("/debug/findings").await?;
    let findings = findings.swap_remove(0);
    if global.output == Format::Table {
        print(&render(&mesh.look(), &sync, &findings, verbose))?;
    } else {
        let value = json!({ "sync": sync, "objects": findings });
        print_value(&value, global.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One page of those of all replicas: each proxy is connected to one of them.
fn joined(pages: Vec<Value>) -> Value {
    let mut pages = pages.into_iter();
    let mut first = pages.next().unwrap_or_default();
    for mut page in pages {
        let more = page["clients"].as_array_mut().map(std::mem::take);
        if let Some(clients) = first["clients"].as_array_mut() {
            clients.extend(more.unwrap_or_default());
        }
    }
    first
}

fn render(look: &str, sync: &Value, findings: &Value, verbose: bool) -> String {
    let clients = list(&sync["clients"]);
    let mut text = if clients.is_empty() {
        format!("no proxy is connected to the control plane; {look} shows what runs\n")
    } else {
        table(clients).render()
    };
    for client in clients {
        for (kind, state) in client["types"].as_object().into_iter().flatten() {
            if let Some(error) = state["error"].as_str() {
                text.push_str(&format!("\n{} refused {kind}: {error}\n", name(client)));
            }
        }
    }
    text.push_str(&problems(findings, verbose));
    text
}

fn table(clients: &[Value]) -> Table {
    let types = types(clients);
    let versions = clients.iter().any(|client| client["version"].is_string());
    let mut header = vec!["NAME".to_owned(), "NODE".to_owned(), "TYPE".to_owned()];
    header.extend(types.iter().map(|kind| kind.to_uppercase()));
    header.push("REVISION".to_owned());
    if versions {
        header.push("VERSION".to_owned());
    }
    let mut table = Table::with_header(header);
    let mut rows: Vec<Vec<String>> = clients
        .iter()
        .map(|client| {
            let mut row = vec![name(client), cell(&client["node"]), cell(&client["kind"])];
            row.extend(types.iter().map(|kind| state(&client["types"][kind])));
            row.push(revision(client));
            if versions {
                row.push(cell(&client["version"]));
            }
            row
        })
        .collect();
    rows.sort();
    for row in rows {
        table.row(row);
    }
    table
}

fn types(clients: &[Value]) -> Vec<String> {
    let has = |kind: &str| {
        clients
            .iter()
            .any(|client| client["types"][kind].is_object())
    };
    let mut types: Vec<String> = TYPES
        .into_iter()
        .filter(|kind| has(kind))
        .map(str::to_owned)
        .collect();
    for client in clients {
        for kind in client["types"].as_object().into_iter().flatten() {
            if !types.contains(kind.0) {
                types.push(kind.0.clone());
            }
        }
    }
    types
}

/// How a proxy is called.
pub(crate) fn name(client: &Value) -> String {
    let text = |key: &str| client[key].as_str().unwrap_or_default();
    match (text("pod"), text("namespace")) {
        ("", _) => cell(&client["identity"]),
        (pod, "") => pod.to_owned(),
        (pod, namespace) => format!("{pod}.{namespace}"),
    }
}

fn state(state: &Value) -> String {
    let Some(status) = state["status"].as_str() else {
        return "-".to_owned();
    };
    let since = match status {
        "STALE" => state["waitingSeconds"].as_f64(),
        _ => state["ackAgeSeconds"].as_f64(),
    };
    match since {
        Some(seconds) if status != "NOT SENT" => format!("{status} ({})", age(seconds)),
        _ => status.to_owned(),
    }
}

/// The newest revision that the proxy has acknowledged.
fn revision(client: &Value) -> String {
    let types = client["types"].as_object().into_iter().flatten();
    let newest = types
        .filter_map(|(_, state)| state["version"].as_u64())
        .max();
    newest.map_or_else(|| "-".to_owned(), |revision| revision.to_string())
}

/// What is wrong with the objects: all with `verbose`, otherwise what became of them and, when
/// there is an error, what is wrong in their files.
fn problems(findings: &Value, verbose: bool) -> String {
    let is_error = |finding: &&Value| finding["severity"] == "error";
    let (texts, conditions) = (list(&findings["findings"]), list(&findings["conditions"]));
    let bad: Vec<&Value> = conditions
        .iter()
        .filter(|condition| condition["severity"] != "info")
        .collect();
    let errors =
        texts.iter().filter(is_error).count() + bad.iter().copied().filter(is_error).count();
    if !verbose && errors == 0 && bad.is_empty() {
        return String::new();
    }
    let texts = if verbose || errors > 0 { texts } else { &[] };
    let mut table = Table::new(["SEVERITY", "OBJECT", "WHERE", "MESSAGE"]);
    for finding in texts {
        let place = match (finding["file"].as_str(), finding["line"].as_u64()) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            (Some(file), None) => file.to_owned(),
            (None, _) => "-".to_owned(),
        };
        let mut message = cell(&finding["message"]);
        if let Some(field) = finding["field"].as_str().filter(|f| !f.is_empty()) {
            message = format!("{field}: {message}");
        }
        if let Some(hint) = finding["hint"].as_str() {
            message = format!("{message} ({hint})");
        }
        table.row([
            cell(&finding["severity"]),
            object(&finding["object"]),
            place,
            message,
        ]);
    }
    for condition in bad {
        table.row([
            cell(&condition["severity"]),
            object(&condition["object"]),
            format!(
                "{}={}",
                cell(&condition["type"]),
                cell(&condition["status"])
            ),
            cell(&condition["message"]),
        ]);
    }
    if table.is_empty() {
        return "\nno findings\n".to_owned();
    }
    format!("\n{}", table.render())
}

fn object(object: &Value) -> String {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    match (text("kind"), text("namespace"), text("name")) {
        ("", ..) => "-".to_owned(),
        (kind, "", name) => format!("{kind} {name}"),
        (kind, namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync() -> Value {
        let synced = json!({"status": "SYNCED", "version": 12, "ackAgeSeconds": 3.4,
            "resources": 9, "error": null, "waitingSeconds": null});
        let error = json!({"status": "ERROR", "version": 11, "ackAgeSeconds": 200.0,
            "resources": 1, "error": "regex too large", "waitingSeconds": null});
        json!({"revision": 12, "clients": [
            {"identity": "spiffe://x", "kind": "waypoint", "node": "node-2", "namespace": "hello",
             "pod": "waypoint-6d", "types": {"Address": synced, "VirtualService": error,
             "Waypoint": {"status": "STALE", "version": 11, "waitingSeconds": 1.0}}},
            {"identity": "spiffe://y", "kind": "ztunnel", "node": "node-1",
             "namespace": "istio-system", "pod": "ztunnel-node-1", "types": {"Address": synced,
             "Authorization": {"status": "NOT SENT", "version": 0}}},
        ]})
    }

    #[test]
    fn one_line_a_proxy_and_refusals_in_words() {
        let nothing = json!({"findings": [], "conditions": []});
        let text = render("`isobar lab status --lab demo`", &sync(), &nothing, false);
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn findings_come_with_errors_or_when_asked() {
        let finding = |severity: &str| {
            json!({"severity": severity, "file": "a.yaml", "line": 3, "field": "spec.x",
                "object": {"kind": "Service", "namespace": "hello", "name": "s"},
                "message": "is wrong", "hint": "write y"})
        };
        let warning = json!({"findings": [finding("warning")], "conditions": []});
        assert_eq!(problems(&warning, false), "");
        let shown = problems(&warning, true);
        assert!(shown.contains("spec.x: is wrong (write y)"), "{shown}");
        let error = json!({"findings": [finding("error")], "conditions": []});
        assert!(problems(&error, false).contains("a.yaml:3"));
        let condition = json!({"severity": "warning", "type": "ZtunnelAccepted", "status": "True",
            "object": {"kind": "AuthorizationPolicy", "namespace": "hello", "name": "p"},
            "message": "is stricter"});
        let model = json!({"findings": [finding("warning")], "conditions": [condition]});
        let shown = problems(&model, false);
        assert!(
            shown.contains("is stricter") && !shown.contains("a.yaml"),
            "{shown}"
        );
    }
}
