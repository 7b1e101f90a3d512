//! `isobar netpol`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use isobar_explain::{Missing, Remedy, ShutDoor, shut_doors};
use isobar_objects::{NetworkPolicy, Object, ObjectHead as _, ObjectWriter, WriteError};
use serde_json::{Value, json};
use similar::TextDiff;

use crate::arguments::{Global, Netpol};
use crate::object_access::Subject;
use crate::output::{Format, Table, count, print, print_value};

pub(crate) async fn run(what: Netpol, global: &Global) -> anyhow::Result<ExitCode> {
    match what {
        Netpol::Check { files } => check(&files, global).await,
        Netpol::Fix {
            policy,
            apply,
            files,
        } => fix(policy.as_deref(), apply, &files, global).await,
    }
}

async fn check(files: &[PathBuf], global: &Global) -> anyhow::Result<ExitCode> {
    let subject = Subject::read(files, global).await?;
    let remedies = shut_doors(&subject.objects);
    match global.output {
        Format::Table => print(&table(&remedies, subject.objects.network_policies.len()))?,
        format => print_value(&remedies.iter().map(value).collect(), format)?,
    }
    Ok(match remedies.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn table(remedies: &[Remedy], policies: usize) -> String {
    if remedies.is_empty() {
        let policies = match policies {
            1 => "1 NetworkPolicy leaves".to_owned(),
            n => format!("{n} NetworkPolicies leave"),
        };
        return format!("{policies} open what the mesh needs\n");
    }
    let mut table = Table::new(["POLICY", "FIELD", "MISSING", "CONSEQUENCE", "PODS"]);
    for remedy in remedies {
        for door in &remedy.doors {
            table.row([
                name(remedy),
                door.field.clone(),
                door.missing.to_string(),
                door.consequence.clone(),
                some_pods(door),
            ]);
        }
    }
    let doors = remedies.iter().map(|remedy| remedy.doors.len()).sum();
    format!(
        "{}\n{}; `isobar netpol fix` shows the change\n",
        table.render(),
        count(doors, "shut door")
    )
}

fn some_pods(door: &ShutDoor) -> String {
    const MOST: usize = 2;
    let mut names: Vec<&str> = door.pods.iter().map(String::as_str).take(MOST).collect();
    let more = door.pods.len().saturating_sub(MOST);
    let more = format!("and {more} more");
    if door.pods.len() > MOST {
        names.push(&more);
    }
    names.join(", ")
}

/// `NAMESPACE/NAME`; a policy that is to be made says so.
fn name(remedy: &Remedy) -> String {
    let policy = &remedy.after;
    let new = if remedy.before.is_none() {
        " (new)"
    } else {
        ""
    };
    format!("{}/{}{new}", policy.namespace(), policy.name())
}

fn value(remedy: &Remedy) -> Value {
    let doors = remedy.doors.iter().map(|door| {
        let mut value = json!({
            "field": door.field,
            "consequence": door.consequence,
            "pods": door.pods,
        });
        match door.missing {
            Missing::Port(port) => value["missingPort"] = json!(port),
            Missing::Source(_) => value["missingSource"] = json!(door.missing.to_string()),
        }
        value
    });
    json!({
        "policy": format!("{}/{}", remedy.after.namespace(), remedy.after.name()),
        "exists": remedy.before.is_some(),
        "shut": doors.collect::<Vec<_>>(),
        "fixed": remedy.after,
    })
}

async fn fix(
    policy: Option<&str>,
    apply: bool,
    files: &[PathBuf],
    global: &Global,
) -> anyhow::Result<ExitCode> {
    let subject = Subject::read(files, global).await?;
    let mut remedies = shut_doors(&subject.objects);
    if let Some(policy) = policy {
        let (namespace, name) = policy.split_once('/').unwrap_or(("default", policy));
        if subject
            .objects
            .network_policies
            .get(namespace, name)
            .is_none()
        {
            bail!("there is no NetworkPolicy {namespace}/{name}");
        }
        let is = |r: &Remedy| r.after.namespace() == namespace && r.after.name() == name;
        remedies.retain(is);
    }
    match global.output {
        Format::Table => print(&diffs(&remedies)?)?,
        format => print_value(&remedies.iter().map(value).collect(), format)?,
    }
    if let Some(mesh) = subject.mesh.filter(|_| apply && !remedies.is_empty()) {
        let writer = mesh.writer()?;
        for remedy in &remedies {
            let written = write(&*writer, remedy).await;
            written.with_context(|| format!("changing {}", name(remedy)))?;
        }
        if global.output == Format::Table {
            print(&format!("\n{} applied\n", count(remedies.len(), "change")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn write(writer: &dyn ObjectWriter, remedy: &Remedy) -> Result<(), WriteError> {
    let Some(before) = &remedy.before else {
        return writer.apply(&Object::from(remedy.after.clone())).await;
    };
    let patch = json!({ "spec": remedy.after.spec });
    writer.patch(&before.reference(), &patch).await
}

/// What a person would change in the file.
fn diffs(remedies: &[Remedy]) -> anyhow::Result<String> {
    if remedies.is_empty() {
        return Ok("nothing to fix\n".to_owned());
    }
    let mut text = String::new();
    for remedy in remedies {
        for door in &remedy.doors {
            text.push_str(&format!("# {door}\n"));
        }
        let before = remedy.before.as_ref().map(yaml).transpose()?;
        let before = before.unwrap_or_default();
        let after = yaml(&remedy.after)?;
        let name = name(remedy);
        let diff = TextDiff::from_lines(&before, &after);
        let unified = diff
            .unified_diff()
            .context_radius(3)
            .header(&name, &format!("{name}, fixed"))
            .to_string();
        text.push_str(&unified);
    }
    Ok(text)
}

/// As its author would write it: without what others keep on the object.
fn yaml(policy: &NetworkPolicy) -> anyhow::Result<String> {
    let head = &policy.metadata;
    let mut metadata = json!({ "name": head.name, "namespace": head.namespace });
    if let Some(labels) = &head.labels {
        metadata["labels"] = json!(labels);
    }
    let value = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": policy.spec,
    });
    let mut text = serde_saphyr::to_string(&value)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}
