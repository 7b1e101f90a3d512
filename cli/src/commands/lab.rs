//! `isobar lab`.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use isobar_lab::{Exec, LabConfig, LabRoot, LabStatus, PodPhase, Progress, Target};

use super::forward;
use crate::arguments::{Global, Lab, Up};
use crate::lab_access::{chosen, name, qualified};
use crate::output::{Format, Table, print, print_value};

/// Name of a lab that is given none.
const NAME: &str = "lab";
/// How often a log that is followed is looked at.
const FOLLOW: Duration = Duration::from_millis(200);

pub(crate) async fn run(lab: Lab, global: &Global) -> anyhow::Result<ExitCode> {
    let named = global.lab.as_deref();
    match lab {
        Lab::Up(up) => return start(up, global).await,
        Lab::Down { name: own, all } => end(own.as_deref().or(named), all)?,
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
    let name = up.name.or_else(|| global.lab.clone());
    let mut config = LabConfig::new(name.unwrap_or_else(|| NAME.to_owned()), up.files)?;
    config.nodes = up.nodes;
    config.mesh = !up.no_mesh;
    config.binaries = up.bin;
    config.component_env = up.env.into_iter().collect();
    config.ready_timeout = up.timeout;
    let status = tokio::select! {
        status = isobar_lab::up(config, tell) => status?,
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
    let pod = status.pods.first();
    let example = pod.map_or_else(String::new, |pod| {
        format!(
            "  isobar lab exec -n {} {} -- sh\n",
            pod.namespace, pod.name
        )
    });
    print(&format!(
        "lab {} is ready: {} nodes, {} pods\n\ntry:\n  isobar lab status\n  isobar status\n{example}  isobar lab down\n",
        status.name,
        status.nodes.len(),
        status.pods.len(),
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

/// Progress goes to standard error: standard output is for the result.
fn tell(progress: &Progress) {
    match progress {
        Progress::Step { text } => anstream::eprintln!("· {text}"),
        Progress::Warning { text } => anstream::eprintln!("warning: {text}"),
        Progress::Pod { pod } if pod.ready => {
            anstream::eprintln!("· pod {}/{} is ready", pod.namespace, pod.name);
        }
        Progress::Component { component } => {
            anstream::eprintln!("· {} is {}", component.name, component.state);
        }
        Progress::Pod { .. } | Progress::Ready { .. } | Progress::Failed { .. } => {}
    }
}

fn end(named: Option<&str>, all: bool) -> anyhow::Result<()> {
    let root = LabRoot::from_env();
    let names = if all {
        let labs = isobar_lab::list(&root)?;
        labs.into_iter().map(|lab| lab.name).collect()
    } else {
        // What a crash left behind shall go too, so running or not does not matter.
        vec![name(&root, named, false)?]
    };
    for name in names {
        if !isobar_lab::down(&root, &name)? {
            bail!("there is no lab named {name:?}; `isobar lab list` shows those there are");
        }
        print(&format!("lab {name} is removed\n"))?;
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
    use serde_json::json;

    #[test]
    fn the_page_shows_everything_that_runs() {
        let status: LabStatus = serde_json::from_value(json!({
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
        .unwrap();
        let text = anstream::adapter::strip_str(&page(&status)).to_string();
        insta::assert_snapshot!(text);
    }
}
