//! `isobar explain`.

use std::process::ExitCode;

use anyhow::bail;
use isobar_explain::{Asked, Explanation, Outcome, Question, Way, World, explain};
use serde_json::Value;

use crate::arguments::{Explain, Global};
use crate::mesh_access::Mesh;
use crate::object_access::Subject;
use crate::output::{Format, Table, print, print_value};

pub(crate) async fn run(arguments: Explain, global: &Global) -> anyhow::Result<ExitCode> {
    let question = question(&arguments)?;
    let subject = match &arguments.files[..] {
        [] => {
            let mesh = Mesh::of(global, arguments.revision.as_deref()).await?;
            Subject::of_mesh(mesh).await?
        }
        files => Subject::read(files, global).await?,
    };
    let world = World::by(&subject.started, subject.objects);
    let explanation = explain(&world, &question)?;
    if global.output == Format::Table {
        print(&render(&explanation))?;
    } else {
        let mut value = serde_json::to_value(&explanation)?;
        value["allowed"] = explanation.allowed().map_or(Value::Null, Value::Bool);
        print_value(&value, global.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn question(arguments: &Explain) -> anyhow::Result<Question> {
    let Explain {
        source,
        destination,
        method,
        path,
        headers,
        namespace,
        ..
    } = arguments;
    let mut question = Question::new(namespace, source, destination)?;
    let from_url = question.request.take();
    question.request = match (method, path, from_url) {
        (Some(_), Some(_), Some(_)) => {
            bail!("the path is given twice: in the URL and after METHOD")
        }
        (method, path, asked) => {
            let url = asked.as_ref().map(|asked| asked.path.as_str());
            let method = method.as_deref();
            let wants = method.is_some() || url.is_some() || !headers.is_empty();
            let path = path.as_deref().or(url).unwrap_or("/");
            wants
                .then(|| Asked::new(method.unwrap_or("GET"), path, headers))
                .transpose()?
        }
    };
    Ok(question)
}

fn render(explanation: &Explanation) -> String {
    let Explanation {
        source,
        identity,
        enrolment,
        destination,
        address,
        request,
        ways,
        left_out,
    } = explanation;
    let identity = identity
        .as_ref()
        .map_or(String::new(), |id| format!(" as {id}"));
    let request = request.as_ref().map_or(String::new(), |r| format!(": {r}"));
    let at = address.map_or(String::new(), |address| format!(" at {address}"));
    let mut text = format!("{source}{identity} ({enrolment})\ncalls {destination}{at}{request}\n");
    for way in ways {
        text.push('\n');
        text.push_str(&heading(way));
        let mut table = Table::new(["WHERE", "DECISION", "BECAUSE"]);
        for step in &way.steps {
            table.row([
                step.place.clone(),
                step.decision.clone(),
                step.because.clone(),
            ]);
        }
        if !table.is_empty() {
            text.push_str(&table.render());
        }
    }
    let notes = left_out
        .iter()
        .map(|one| format!("note: {} does not count: {}\n", one.policy, one.because));
    if !left_out.is_empty() {
        text.push('\n');
    }
    text.extend(notes);
    text
}

fn heading(way: &Way) -> String {
    let share = match way.share {
        share if share >= 0.9995 => "always".to_owned(),
        share => format!("{:.1} % of calls", share * 100.0),
    };
    let outcome = match &way.outcome {
        Outcome::Reaches { pods, port } => match &pods[..] {
            [pod] => format!("reaches {pod} port {port}"),
            pods => format!("reaches port {port} of one of {}", pods.join(", ")),
        },
        Outcome::Leaves { to } => format!("leaves the mesh for {to}"),
        Outcome::Named { host, port } => format!(
            "goes to port {port} of what {host} resolves to, if it does: nothing here knows that"
        ),
        Outcome::Answered { status, detail } => format!("is answered {status}: {detail}"),
        Outcome::Refused {
            reason,
            status,
            detail,
        } => {
            let how = match status {
                Some(status) => format!("refused with {status}"),
                None => "refused, the connection is closed".to_owned(),
            };
            format!(
                "is {how}: {detail} ({}, {})",
                reason.as_str(),
                reason.flag()
            )
        }
        Outcome::Unknown { waypoint } => format!(
            "goes to waypoint {waypoint}, which somebody else runs: what it does is not known here"
        ),
    };
    format!("{share}: {outcome}\n")
}
