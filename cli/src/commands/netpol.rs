//! `isobar netpol`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use isobar_explain::{Missing, Remedy, ShutDoor, Started, Verdict, shut_doors_by, verdicts_by};
use isobar_objects::{
    NetworkPolicy, Object, ObjectHead as _, ObjectRef, ObjectSet, ObjectWriter, Origin, WriteError,
};
use isobar_types::ports;
use serde_json::{Value, json};
use similar::TextDiff;

use crate::arguments::{Global, Netpol};
use crate::object_access::Subject;
use crate::output::{Format, Table, count, print, print_value};

/// Reasons of the control plane for callers in the mesh not being held to a policy: to egress rules by
/// nobody, to ingress rules where that is off or only watched.
const OUTWARDS: &str = "EgressOpen";
const OFF: &str = "NotEnforced";
const AUDITED: &str = "Audited";

pub(crate) async fn run(what: Netpol, global: &Global) -> anyhow::Result<ExitCode> {
    match what {
        Netpol::Check { files } => check(&files, global).await,
        Netpol::Fix {
            policy,
            apply,
            accept_wider,
            files,
        } => {
            let apply = apply.then_some(Apply { accept_wider });
            fix(policy.as_deref(), apply, &files, global).await
        }
    }
}

async fn check(files: &[PathBuf], global: &Global) -> anyhow::Result<ExitCode> {
    let subject = Subject::read(files, global).await?;
    let remedies = shut_doors_by(&subject.started, &subject.objects);
    let wider = wider(&subject.started, &subject.objects, &remedies);
    match global.output {
        Format::Table => {
            print(&table(&remedies, subject.objects.network_policies.len()))?;
            let standing = standing(&subject.started, &subject.objects);
            print(&standing.iter().map(note).collect::<String>())?;
            print(&unread(subject.errors))?;
        }
        format => print_value(&values(&remedies, &wider), format)?,
    }
    Ok(match remedies.is_empty() && subject.errors == 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// That files have errors: of what could not be read nothing is known.
fn unread(errors: usize) -> String {
    match errors {
        0 => String::new(),
        n => format!(
            "{} in the files: what is wrong there is not looked at\n",
            count(n, "error")
        ),
    }
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

fn values(remedies: &[Remedy], wider: &Wider) -> Value {
    remedies.iter().map(|remedy| value(remedy, wider)).collect()
}

fn value(remedy: &Remedy, wider: &Wider) -> Value {
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
        "wider": wider.get(&remedy.after.reference()),
        "fixed": remedy.after,
    })
}

/// What the control plane says of policies, once they are changed, that open more than they say.
type Wider = BTreeMap<ObjectRef, Vec<String>>;

/// Of policies as they are: where callers in the mesh are not held to them.
fn standing(started: &Started, objects: &ObjectSet) -> Vec<Verdict> {
    let mut all = verdicts_by(started, objects);
    all.retain(|said| [OUTWARDS, OFF, AUDITED].contains(&said.reason));
    all.sort();
    all.dedup();
    all
}

/// The same after the change, of those that it is due to: what opens the tunnel one way.
fn wider(started: &Started, objects: &ObjectSet, remedies: &[Remedy]) -> Wider {
    let mut after = objects.clone();
    for remedy in remedies {
        after.insert(Object::from(remedy.after.clone()), Origin::nowhere());
    }
    let mut wider = Wider::new();
    for said in standing(started, &after) {
        let field = match said.reason {
            OUTWARDS => "spec.egress",
            _ => "spec.ingress",
        };
        let opens = |door: &ShutDoor| {
            door.field.starts_with(field) && door.missing == Missing::Port(ports::HBONE)
        };
        let mut due = remedies
            .iter()
            .filter(|remedy| remedy.after.reference() == said.object);
        if due.any(|remedy| remedy.before.is_some() && remedy.doors.iter().any(opens)) {
            wider.entry(said.object).or_default().push(said.message);
        }
    }
    for remedy in remedies {
        let told = remedy.doors.iter().filter_map(|door| door.wider.clone());
        let told: Vec<String> = told.collect();
        if !told.is_empty() {
            wider
                .entry(remedy.after.reference())
                .or_default()
                .extend(told);
        }
    }
    wider
}

fn note(said: &Verdict) -> String {
    format!(
        "note: {}/{}: {}\n",
        said.object.namespace, said.object.name, said.message
    )
}

/// That changes are made.
#[derive(Clone, Copy)]
struct Apply {
    /// Those too that open more than their policies say.
    accept_wider: bool,
}

async fn fix(
    policy: Option<&str>,
    apply: Option<Apply>,
    files: &[PathBuf],
    global: &Global,
) -> anyhow::Result<ExitCode> {
    let subject = Subject::read(files, global).await?;
    let mut remedies = shut_doors_by(&subject.started, &subject.objects);
    if let Some(policy) = policy {
        let (namespace, name) = policy.split_once('/').unwrap_or(("default", policy));
        let is = |r: &Remedy| r.after.namespace() == namespace && r.after.name() == name;
        let policies = &subject.objects.network_policies;
        if policies.get(namespace, name).is_none() && !remedies.iter().any(is) {
            bail!("there is no NetworkPolicy {namespace}/{name}");
        }
        remedies.retain(is);
    }
    let wider = wider(&subject.started, &subject.objects, &remedies);
    match global.output {
        Format::Table => print(&(diffs(&remedies, &wider)? + &unread(subject.errors)))?,
        format => print_value(&values(&remedies, &wider), format)?,
    }
    if subject.errors > 0 {
        return Ok(ExitCode::FAILURE);
    }
    let mesh = subject.mesh.filter(|_| !remedies.is_empty());
    if let Some((mesh, apply)) = mesh.zip(apply) {
        if !wider.is_empty() && !apply.accept_wider {
            let names: Vec<String> = wider.keys().map(ToString::to_string).collect();
            bail!(
                "nothing is changed: {} would open more than the policy says; see the lines \
                 \"# wider\", then repeat with --accept-wider, or name another policy",
                names.join(", ")
            );
        }
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
        return writer.create(&Object::from(remedy.after.clone())).await;
    };
    let patch = json!({ "spec": remedy.after.spec });
    writer.patch(&before.reference(), &patch).await
}

/// What a person would change in the file.
fn diffs(remedies: &[Remedy], wider: &Wider) -> anyhow::Result<String> {
    if remedies.is_empty() {
        return Ok("nothing to fix\n".to_owned());
    }
    let mut text = String::new();
    for remedy in remedies {
        for door in &remedy.doors {
            text.push_str(&format!("# {door}\n"));
        }
        let more = wider.get(&remedy.after.reference());
        for said in more.into_iter().flatten() {
            text.push_str(&format!("# wider: {said}\n"));
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use isobar_objects::enrolment::EnrolmentRules;

    use super::*;

    fn objects(port_rules: &str) -> ObjectSet {
        let policy = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: {name}, namespace: shop}}\nspec: {{podSelector: {{}}, {spec}}}\n"
            )
        };
        let yaml = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: \
             {{istio.io/dataplane-mode: ambient, isobar.dev/port-rules: '{port_rules}'}}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: cart-1, namespace: shop, uid: u}}\n\
             spec: {{nodeName: node-1, containers: [{{name: c, image: i}}]}}\n\
             status: {{phase: Running, podIP: 10.244.1.7}}\n{}{}",
            policy("in", "ingress: [{ports: [{port: 8080}]}]"),
            policy(
                "out",
                "policyTypes: [Egress], egress: [{ports: [{port: 8080}, {port: 53, protocol: UDP}]}]"
            ),
        );
        let read = isobar_objects::read_text(Path::new("test.yaml"), &yaml);
        assert_eq!(read.objects.len(), 4, "{:?}", read.findings);
        ObjectSet::of(read.objects.into_iter().map(|read| read.object))
    }

    fn told(port_rules: &str) -> Vec<String> {
        let objects = objects(port_rules);
        let remedies = shut_doors_by(&Started::default(), &objects);
        assert_eq!(remedies.len(), 2);
        let wider = wider(&Started::default(), &objects, &remedies);
        let text = diffs(&remedies, &wider).unwrap();
        assert_eq!(text.matches("# wider: ").count(), wider.len(), "{text}");
        wider.keys().map(|one| one.name.to_string()).collect()
    }

    #[test]
    fn changes_that_open_more_than_a_policy_says_are_marked() {
        assert_eq!(told("enforce"), ["out"]);
        assert_eq!(told("audit"), ["in", "out"]);
        assert_eq!(told("off"), ["in", "out"]);
    }

    #[test]
    fn what_stands_is_told_without_a_change() {
        let (started, mut objects) = (Started::default(), objects("off"));
        for remedy in shut_doors_by(&started, &objects) {
            objects.insert(Object::from(remedy.after), Origin::nowhere());
        }
        assert!(shut_doors_by(&started, &objects).is_empty());
        let said = standing(&started, &objects);
        let said: Vec<&str> = said.iter().map(|one| one.reason).collect();
        assert_eq!(said, ["NotEnforced", "EgressOpen"]);
    }

    #[test]
    fn namespaces_that_agents_leave_out_have_no_doors() {
        let rules = EnrolmentRules {
            excluded_namespaces: ["shop".to_owned()].into(),
            ..EnrolmentRules::default()
        };
        let started = Started::default().enrolling(rules);
        assert!(shut_doors_by(&started, &objects("enforce")).is_empty());
    }
}
