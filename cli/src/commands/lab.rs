//! `isobar lab`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use isobar_lab::{Exec, LabConfig, LabRoot, LabStatus, PodPhase, Progress, Target};
use isobar_objects::{DirectoryOptions, DirectorySource, Finding, ObjectSource as _};

use super::forward;
use serde_json::json;

use crate::arguments::{Global, Lab, Up};
use crate::lab_access::{chosen, flag, name, qualified};
use crate::output::{Format, Table, count, print, print_value, say};

/// Name of a lab that is given none.
const NAME: &str = "lab";
/// How often a log that is followed is looked at.
const FOLLOW: Duration = Duration::from_millis(200);

pub(crate) async fn run(lab: Lab, global: &Global) -> anyhow::Result<ExitCode> {
    let named = global.lab.as_deref();
    match lab {
        Lab::Up(up) => return start(up, global).await,
        Lab::Down { name: own, all } => end(own.as_deref().or(named), all, global)?,
        Lab::Status => {
            let status = chosen(named)?.status().await?;
            show(&status, global)?;
        }
        Lab::List => list(global)?,
        Lab::Exec {
            pod,
            namespace,
            command,
        } => return exec(named, &qualified(namespace.as_deref(), &pod), command).await,
        Lab::Logs {
            name,
            namespace,
            follow,
        } => {
            let lab = chosen(named)?;
            let path = lab
                .log_path(&qualified(namespace.as_deref(), &name))
                .await?;
            log(&path, follow).await?;
        }
        Lab::Forward {
            target,
            ports,
            namespace,
        } => forward::run(chosen(named)?, &target, ports, namespace.as_deref()).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn start(up: Up, global: &Global) -> anyhow::Result<ExitCode> {
    for file in &up.files {
        if !file.exists() {
            bail!(
                "{} does not exist; -f takes a folder or file of YAML",
                file.display()
            );
        }
    }
    check_objects(&up.files)?;
    let given = up.name.or_else(|| global.lab.clone());
    let name = given.clone().unwrap_or_else(|| NAME.to_owned());
    let mut config = LabConfig::new(name, up.files)?;
    config.nodes = up.nodes;
    config.dual_stack = up.dual_stack;
    config.mesh = !up.no_mesh;
    config.binaries = up.bin;
    config.component_env = up.env.into_iter().collect();
    config.ready_timeout = up.timeout;
    let root = config.root.clone();
    let mut teller = Teller::default();
    let status = tokio::select! {
        status = isobar_lab::up(config, |event| teller.tell(event)) => status?,
        // What was begun is taken away when the future is dropped.
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted; nothing of the lab is left");
        }
    };
    let code = cannot_start(&status);
    if global.output != Format::Table {
        print_value(&serde_json::to_value(&status)?, global.output)?;
        return Ok(code);
    }
    print(&welcome(
        &status,
        &flag(&root, &status.name, given.is_some()),
    ))?;
    Ok(code)
}

/// A lab that is up may still have pods that cannot start as they are written, such as those with
/// an image nothing is known to stand for. Whoever asked for them is told, and by the exit code too.
fn cannot_start(status: &LabStatus) -> ExitCode {
    let stuck = status
        .pods
        .iter()
        .filter(|pod| !pod.ready && pod.phase != PodPhase::Succeeded);
    let mut code = ExitCode::SUCCESS;
    for pod in stuck {
        anstream::eprintln!(
            "error: pod {}/{} cannot start: {}",
            pod.namespace,
            pod.name,
            pod.message
        );
        code = ExitCode::FAILURE;
    }
    code
}

/// Says what is wrong with the objects before they are believed. What is usable is used.
fn check_objects(files: &[PathBuf]) -> anyhow::Result<()> {
    let options = DirectoryOptions::new(files.to_vec(), None);
    let source = DirectorySource::open(options).context("reading the objects")?;
    let published = source.subscribe().borrow().clone();
    for finding in published.findings.iter() {
        anstream::eprintln!("{finding}");
    }
    let errors = published.findings.iter().any(Finding::is_error);
    if errors && published.objects.is_empty() {
        bail!("there is no usable object in it; `isobar validate` checks a folder without a lab");
    }
    Ok(())
}

/// What to try in a lab; `flag` chooses it where that is needed.
fn welcome(status: &LabStatus, flag: &str) -> String {
    let mut text = format!(
        "lab {} is {}: {}, {}\n\ntry:\n  isobar lab status{flag}\n",
        status.name,
        if status.ready { "ready" } else { "up" },
        count(status.nodes.len(), "node"),
        count(status.pods.len(), "pod"),
    );
    if status.mesh {
        text.push_str(&format!("  isobar status{flag}\n"));
    }
    if let Some(pod) = status.pods.first() {
        text.push_str(&format!(
            "  isobar lab exec{flag} -n {} {} -- sh\n",
            pod.namespace, pod.name
        ));
    }
    text.push_str(&format!("  isobar lab down{flag}\n"));
    text
}

/// Tells on standard error how a start goes: standard output is for the result. What has not
/// changed is not told again.
#[derive(Default)]
struct Teller {
    last: BTreeMap<String, String>,
}

impl Teller {
    fn tell(&mut self, event: &Progress) {
        if let Some(line) = self.line(event) {
            anstream::eprintln!("{line}");
        }
    }

    fn line(&mut self, event: &Progress) -> Option<String> {
        let (what, state) = match event {
            Progress::Step { text } => return Some(format!("· {text}")),
            Progress::Warning { text } => return Some(format!("warning: {text}")),
            Progress::Pod { pod } => {
                let state = if pod.ready { "is ready" } else { "" };
                (
                    format!("pod {}/{}", pod.namespace, pod.name),
                    state.to_owned(),
                )
            }
            Progress::Component { component } => {
                (component.name.clone(), format!("is {}", component.state))
            }
            Progress::Ready { .. } | Progress::Failed { .. } => return None,
        };
        let before = self.last.insert(what.clone(), state.clone());
        let is_news = before.as_ref() != Some(&state) && !state.is_empty();
        is_news.then(|| format!("· {what} {state}"))
    }
}

fn end(named: Option<&str>, all: bool, global: &Global) -> anyhow::Result<()> {
    let root = LabRoot::from_env();
    let names = if all {
        let labs = isobar_lab::list(&root)?;
        labs.into_iter().map(|lab| lab.name).collect()
    } else {
        // What a crash left behind shall go too, so running or not does not matter.
        vec![name(&root, named, false)?]
    };
    for name in &names {
        if !isobar_lab::down(&root, name)? {
            bail!("there is no lab named {name:?}; `isobar lab list` shows those there are");
        }
        say(&format!("lab {name} is removed\n"), global.output)?;
    }
    if global.output != Format::Table {
        return print_value(&json!({ "removed": names }), global.output);
    }
    if names.is_empty() {
        print("no lab is there to remove\n")?;
    }
    Ok(())
}

fn list(global: &Global) -> anyhow::Result<()> {
    let labs = isobar_lab::list(&LabRoot::from_env())?;
    if global.output != Format::Table {
        return print_value(&serde_json::to_value(&labs)?, global.output);
    }
    let mut table = Table::new(["NAME", "STATE", "PID", "STATE FOLDER"]);
    for lab in labs {
        let state = if lab.running { "running" } else { "left over" };
        table.row([
            lab.name,
            state.to_owned(),
            lab.pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            lab.state_dir.display().to_string(),
        ]);
    }
    if table.is_empty() {
        return print("no lab; `isobar lab up -f DIR` starts one\n");
    }
    print(&table.render())
}

fn show(status: &LabStatus, global: &Global) -> anyhow::Result<()> {
    if global.output != Format::Table {
        return print_value(&serde_json::to_value(status)?, global.output);
    }
    print(&page(status))
}

fn page(status: &LabStatus) -> String {
    let mut text = format!(
        "lab {}: {}\n",
        status.name,
        if status.ready { "ready" } else { "not ready" }
    );
    for table in [
        machines(status),
        processes(status),
        pods(status),
        services(status),
    ] {
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table.render());
        }
    }
    for finding in &status.findings {
        text.push_str(&format!("\nwarning: {finding}"));
    }
    if !status.findings.is_empty() {
        text.push('\n');
    }
    text
}

fn machines(status: &LabStatus) -> Table {
    let mut nodes = Table::new(["NODE", "ADDRESS", "PODS"]);
    for node in &status.nodes {
        nodes.row([
            node.name.clone(),
            node.address.to_string(),
            node.pod_cidr.clone(),
        ]);
    }
    nodes
}

fn processes(status: &LabStatus) -> Table {
    let mut components = Table::new(["PROCESS", "STATE", "RESTARTS", "NOTE"]);
    for component in &status.components {
        components.row([
            component.name.clone(),
            component.state.to_string(),
            component.restarts.to_string(),
            component.note.clone(),
        ]);
    }
    components
}

fn pods(status: &LabStatus) -> Table {
    let mut pods = Table::new([
        "NAMESPACE",
        "POD",
        "READY",
        "STATUS",
        "RESTARTS",
        "IP",
        "NODE",
        "MESH",
        "NOTE",
    ]);
    for pod in &status.pods {
        pods.row([
            pod.namespace.clone(),
            pod.name.clone(),
            if pod.ready { "yes" } else { "no" }.to_owned(),
            pod.phase.to_string(),
            pod.restarts.to_string(),
            pod.ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string()),
            pod.node.clone(),
            if pod.mesh.is_empty() { "-" } else { &pod.mesh }.to_owned(),
            pod.message.clone(),
        ]);
    }
    pods
}

fn services(status: &LabStatus) -> Table {
    let mut services = Table::new(["NAMESPACE", "SERVICE", "CLUSTER-IP", "PORTS", "ENDPOINTS"]);
    for service in &status.services {
        services.row([
            service.namespace.clone(),
            service.name.clone(),
            service
                .cluster_ip
                .map_or_else(|| "None".to_owned(), |ip| ip.to_string()),
            service.ports.join(","),
            service.endpoints.len().to_string(),
        ]);
    }
    services
}

async fn exec(named: Option<&str>, place: &str, argv: Vec<String>) -> anyhow::Result<ExitCode> {
    let lab = chosen(named)?;
    let stdio = [
        std::io::stdin().as_fd().try_clone_to_owned()?,
        std::io::stdout().as_fd().try_clone_to_owned()?,
        std::io::stderr().as_fd().try_clone_to_owned()?,
    ];
    let target: Target = place.parse().unwrap_or_else(|never| match never {});
    let code = lab
        .exec(Exec {
            target,
            argv,
            env: Vec::new(),
            stdio,
        })
        .await?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

async fn log(path: &Path, follow: bool) -> anyhow::Result<()> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            if !follow {
                return Ok(());
            }
            tokio::time::sleep(FOLLOW).await;
            continue;
        }
        let mut out = std::io::stdout().lock();
        if out
            .write_all(&buffer[..length])
            .and_then(|()| out.flush())
            .is_err()
        {
            // Nobody reads any more.
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use isobar_lab::PodStatus;

    fn demo() -> LabStatus {
        serde_json::from_value(json!({
            "name": "demo", "ready": true, "mesh": true, "objects": ["/tmp/hello"],
            "state_dir": "/run/isobar/lab/demo",
            "nodes": [{"name": "node-1", "address": "172.30.0.11", "pod_cidr": "10.244.1.0/24"}],
            "components": [{"name": "isobard", "state": "ready", "pid": 3, "restarts": 0,
                "note": ""}],
            "pods": [{"namespace": "hello", "name": "httpbin", "uid": "u", "node": "node-1",
                "ip": "10.244.1.2", "phase": "Running", "ready": true, "restarts": 0,
                "images": ["x"], "mesh": "enrolled", "message": ""}],
            "services": [{"namespace": "hello", "name": "svc-hello", "cluster_ip": null,
                "ports": ["8080/TCP"], "endpoints": ["10.244.1.2"]}],
            "findings": ["no such image"],
        }))
        .unwrap()
    }

    #[test]
    fn a_start_ends_with_commands_that_work() {
        let mut status = demo();
        let text = welcome(&status, "");
        assert!(
            text.starts_with("lab demo is ready: 1 node, 1 pod\n"),
            "{text}"
        );
        assert!(text.contains("  isobar status\n"), "{text}");
        let text = welcome(&status, " --lab demo");
        for line in text.lines().filter(|line| line.starts_with("  isobar")) {
            assert!(line.contains(" --lab demo"), "{line}");
            let parsed = crate::arguments::Isobar::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}");
        }
        status.mesh = false;
        assert!(!welcome(&status, "").contains("isobar status"));
    }

    #[test]
    fn progress_is_told_once() {
        let mut teller = Teller::default();
        let mut pod = demo().pods.remove(0);
        let line = "· pod hello/httpbin is ready";
        let event = |pod: &PodStatus| Progress::Pod { pod: pod.clone() };
        assert_eq!(teller.line(&event(&pod)).as_deref(), Some(line));
        pod.mesh = "plain".to_owned();
        assert_eq!(teller.line(&event(&pod)), None);
        pod.ready = false;
        assert_eq!(teller.line(&event(&pod)), None);
        pod.ready = true;
        assert_eq!(teller.line(&event(&pod)).as_deref(), Some(line));
    }

    #[test]
    fn the_page_shows_everything_that_runs() {
        let status = demo();
        let text = anstream::adapter::strip_str(&page(&status)).to_string();
        insta::assert_snapshot!(text);
    }
}
