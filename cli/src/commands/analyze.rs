//! `isobar analyze`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use isobar_explain::{Diagnosis, Gravity, Lives, Started, diagnose};
use isobar_objects::{Code, Finding, ObjectSource as _, Published, Severity, codes};
use serde_json::{Value, json};

use super::status::name;
use crate::arguments::{Analyze, Global, Suppressed, Threshold};
use crate::mesh_access::{Mesh, folders};
use crate::output::{Format, Table, complain, count, print, print_value};

/// A proxy that has not confirmed for so long is behind; before, it is just being told.
const BEHIND: f64 = 10.0;

/// Nothing could be looked at.
const NOT_LOOKED: u8 = 2;

pub(crate) async fn run(what: Analyze, global: &Global) -> anyhow::Result<ExitCode> {
    if what.list {
        list(global.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let looked = match look(&what, global).await {
        Ok(looked) => looked,
        Err(error) => {
            complain(&error);
            return Ok(ExitCode::from(NOT_LOOKED));
        }
    };
    let (objects, mut found) = looked;
    found.retain(|one| is_meant(one, &what));
    let all = found.len();
    found.retain(|one| what.verbose || !one.kept_back);
    let kept_back = all - found.len();
    match global.output {
        Format::Table => print(&render(&found, objects, kept_back))?,
        format => print_value(&found.iter().map(value).collect(), format)?,
    }
    let fails = |one: &Diagnosis| match what.failure_threshold {
        _ if one.kept_back => false,
        Threshold::Error => one.gravity == Gravity::Error,
        Threshold::Warning => true,
    };
    Ok(match found.iter().any(fails) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Number of objects, and what there is to say.
async fn look(what: &Analyze, global: &Global) -> anyhow::Result<(usize, Vec<Diagnosis>)> {
    let root = &*global.mesh_namespace;
    if what.paths.is_empty() {
        let mesh = Mesh::of(global, what.revision.as_deref()).await?;
        return of_mesh(&mesh, root).await;
    }
    if let Some(missing) = what.paths.iter().find(|path| !path.exists()) {
        bail!("{} does not exist", missing.display());
    }
    for path in &what.paths {
        let held = folders(std::slice::from_ref(path), None)?.subscribe();
        if is_nothing(&held.borrow()) {
            bail!("{} holds no objects that can be read", path.display());
        }
    }
    let published = folders(&what.paths, None)?.subscribe().borrow().clone();
    let found = diagnose(&published, Lives::No, root, &Started::default());
    Ok((published.objects.len(), found))
}

/// True if there is neither an object nor anything to say about one.
fn is_nothing(published: &Published) -> bool {
    // Text that is not even a map is no attempt at an object.
    let is_prose = |one: &Finding| one.code == Code::NO_IDENTITY && one.field.is_empty();
    let is_meant = |one: &Finding| one.severity == Severity::Error && !is_prose(one);
    let mut findings = published.findings.iter();
    published.objects.is_empty() && !findings.any(|one| one.object.is_some() || is_meant(one))
}

/// Number of objects of a mesh, and what there is to say about them and its proxies.
pub(super) async fn of_mesh(mesh: &Mesh, root: &str) -> anyhow::Result<(usize, Vec<Diagnosis>)> {
    let following = mesh.follow().await?;
    let published = following.published.borrow().clone();
    let mut found = diagnose(&published, Lives::Yes, root, &following.started);
    match mesh.control_plane("/debug/syncz").await {
        Ok(pages) => found.extend(pages.iter().flat_map(behind)),
        Err(error) => found.push(Diagnosis::new(
            Gravity::Warning,
            Code::NO_CONTROL_PLANE,
            None,
            format!("{error:#}"),
        )),
    }
    found.sort();
    Ok((published.objects.len(), found))
}

/// Proxies that are not in step, by one replica's page.
fn behind(page: &Value) -> Vec<Diagnosis> {
    let clients = page["clients"].as_array().into_iter().flatten();
    let mut found = Vec::new();
    for client in clients {
        for (kind, state) in client["types"].as_object().into_iter().flatten() {
            let message = match state["status"].as_str() {
                Some("ERROR") => {
                    let error = state["error"].as_str().unwrap_or("no reason given");
                    format!("{} refused {kind}: {error}", name(client))
                }
                Some("STALE") if state["waitingSeconds"].as_f64() > Some(BEHIND) => {
                    format!("{} has not confirmed {kind}", name(client))
                }
                _ => continue,
            };
            let gravity = match state["status"] == "ERROR" {
                true => Gravity::Error,
                false => Gravity::Warning,
            };
            found.push(Diagnosis::new(gravity, Code::PROXY_BEHIND, None, message));
        }
    }
    found
}

fn is_meant(one: &Diagnosis, what: &Analyze) -> bool {
    let here = what.namespace.as_deref().is_none_or(|namespace| {
        let object = one.object.as_ref();
        object.is_none_or(|object| {
            *object.namespace == *namespace
                || (&*object.kind, &*object.name) == ("Namespace", namespace)
        })
    });
    here && !what.suppress.iter().any(|not| covers(not, one))
}

fn covers(not: &Suppressed, one: &Diagnosis) -> bool {
    let Some(wanted) = &not.object else {
        return not.code == one.code;
    };
    let object = one.object.as_ref().map(ToString::to_string);
    let object = object.unwrap_or_default();
    not.code == one.code
        && match wanted.strip_suffix('*') {
            Some(begin) => object.starts_with(begin),
            None => object == *wanted,
        }
}

fn place((file, line): &(impl AsRef<Path>, Option<u32>)) -> String {
    let file = file.as_ref().display();
    line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
}

fn render(found: &[Diagnosis], objects: usize, kept_back: usize) -> String {
    let mut text = String::new();
    for one in found {
        let style = match one.gravity {
            Gravity::Error => anstyle::AnsiColor::Red,
            Gravity::Warning => anstyle::AnsiColor::Yellow,
        };
        let style = style.on_default().bold();
        text.push_str(&format!(
            "{style}{}{style:#} {}",
            one.gravity.as_str(),
            one.code
        ));
        if let Some(at) = &one.place {
            text.push_str(&format!(" {}", place(at)));
        }
        if let Some(object) = &one.object {
            text.push_str(&format!(" {object}"));
        }
        if !one.field.is_empty() {
            text.push_str(&format!(" {}", one.field));
        }
        if one.kept_back {
            text.push_str(" (kept back)");
        }
        let (message, fix, page) = (&one.message, &one.fix, one.code.page());
        text.push_str(&format!(": {message}\n    {fix}; {page}\n"));
    }
    let errors = found
        .iter()
        .filter(|one| one.gravity == Gravity::Error)
        .count();
    let mut looked = count(objects, "object");
    if kept_back > 0 {
        let kept_back = count(kept_back, "finding");
        looked.push_str(&format!(" ({kept_back} kept back: -v shows them)"));
    }
    text.push_str(&match (errors, found.len() - errors) {
        (0, 0) => format!("{looked}, no findings\n"),
        (errors, rest) => {
            let (errors, rest) = (count(errors, "error"), count(rest, "warning"));
            format!("{looked}: {errors}, {rest}\n")
        }
    });
    text
}

/// A finding for programs.
pub(super) fn value(one: &Diagnosis) -> Value {
    let object = one.object.as_ref().map(|object| {
        json!({
            "group": &*object.group,
            "kind": &*object.kind,
            "namespace": &*object.namespace,
            "name": &*object.name,
        })
    });
    json!({
        "code": one.code.to_string(),
        "name": one.code.entry().name,
        "severity": one.gravity.as_str(),
        "object": object,
        "field": one.field,
        "message": one.message,
        "fix": one.fix,
        "page": one.code.page(),
        "file": one.place.as_ref().map(|(file, _)| file.display().to_string()),
        "line": one.place.as_ref().and_then(|(_, line)| *line),
        "keptBack": one.kept_back,
    })
}

fn list(format: Format) -> anyhow::Result<()> {
    if format != Format::Table {
        let all = codes().iter().map(|entry| {
            json!({
                "code": entry.code.to_string(),
                "name": entry.name,
                "field": entry.field,
                "means": entry.means,
                "fix": entry.mend,
                "page": entry.code.page(),
            })
        });
        return print_value(&all.collect(), format);
    }
    let mut table = Table::new(["CODE", "NAME", "MEANING"]);
    for entry in codes() {
        table.row([
            entry.code.to_string(),
            entry.name.to_owned(),
            entry.means.to_owned(),
        ]);
    }
    print(&table.render())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_objects::{Kind, ObjectRef};

    fn finding() -> Diagnosis {
        let object = ObjectRef::new(Kind::Pod, "shop", "batch-1");
        let text = "not redirected".to_owned();
        Diagnosis::new(Gravity::Warning, Code::NOT_REDIRECTED, Some(object), text)
    }

    #[test]
    fn suppression_is_by_code_and_object() {
        let not = |code, object: Option<&str>| Suppressed {
            code,
            object: object.map(str::to_owned),
        };
        for (object, hidden) in [
            (None, true),
            (Some("Pod shop/batch-*"), true),
            (Some("Pod shop/batch-1"), true),
            (Some("Pod shop/batch"), false),
        ] {
            let covered = covers(&not(Code::NOT_REDIRECTED, object), &finding());
            assert_eq!(covered, hidden, "{object:?}");
        }
        assert!(!covers(&not(Code::BYPASS, None), &finding()));
    }

    #[test]
    fn a_proxy_that_refuses_or_waits_is_behind() {
        let client = |state: Value| {
            let client = json!({"pod": "ztunnel-a", "namespace": "istio-system",
                "types": {"Address": state}});
            behind(&json!({ "clients": [client] }))
        };
        assert!(client(json!({"status": "SYNCED"})).is_empty());
        assert!(client(json!({"status": "STALE", "waitingSeconds": 1.0})).is_empty());
        let late = client(json!({"status": "STALE", "waitingSeconds": 60.0}));
        assert_eq!(late[0].gravity, Gravity::Warning);
        let error = client(json!({"status": "ERROR", "error": "too large"}));
        assert!(
            error[0]
                .message
                .contains("ztunnel-a.istio-system refused Address: too large")
        );
        assert_eq!(error[0].gravity, Gravity::Error);
    }

    #[test]
    fn findings_in_words() {
        let text = render(&[finding()], 3, 0);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(
            text.starts_with("warning ISO0401 Pod shop/batch-1 metadata.annotations["),
            "{text}"
        );
        assert!(
            text.contains("docs/findings.md#iso0401\n3 objects: 0 errors, 1 warning\n"),
            "{text}"
        );
        assert_eq!(render(&[], 1, 0), "1 object, no findings\n");
        let kept = render(&[], 1, 2);
        assert_eq!(
            kept,
            "1 object (2 findings kept back: -v shows them), no findings\n"
        );
    }
}
