mod forward;

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::Duration;

use anstream::println;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use isobar_lab::{Exec, Lab, LabConfig, LabRoot, LabStatus, Progress, Target};
use serde_json::json;

use crate::args::{LabCommand, Output, Up};
use crate::render;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The lab that is meant: the one named, or the only one that runs.
pub(crate) fn connect(chosen: Option<&str>) -> Result<Lab> {
    let root = LabRoot::from_env();
    Ok(Lab::connect(&root, &choose(&root, chosen)?)?)
}

fn choose(root: &LabRoot, chosen: Option<&str>) -> Result<String> {
    if let Some(name) = chosen {
        return Ok(name.to_owned());
    }
    let running: Vec<_> = isobar_lab::list(root)?
        .into_iter()
        .filter(|l| l.running)
        .map(|l| l.name)
        .collect();
    match &running[..] {
        [] => bail!("no lab is running; `isobar lab up -f DIR` starts one"),
        [one] => Ok(one.clone()),
        several => bail!(
            "several labs run; choose one with --lab: {}",
            several.join(", ")
        ),
    }
}

/// Carries out a command about labs.
pub(crate) async fn run(
    command: LabCommand,
    chosen: Option<&str>,
    output: Output,
) -> Result<ExitCode> {
    let pod = |namespace: Option<String>, name: String| match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    };
    match command {
        LabCommand::Up(options) => up(options, output).await?,
        LabCommand::Down { name, all } => down(name.as_deref().or(chosen), all)?,
        LabCommand::Status => status(&connect(chosen)?.status().await?, output)?,
        LabCommand::List => list(output)?,
        LabCommand::Exec {
            namespace,
            pod: name,
            command,
        } => {
            let target = pod(namespace, name).parse().unwrap_or(Target::Outer);
            return exec(&connect(chosen)?, target, command).await;
        }
        LabCommand::Logs {
            namespace,
            of,
            follow,
        } => {
            logs(&connect(chosen)?, &pod(namespace, of), follow).await?;
        }
        LabCommand::Forward {
            namespace,
            target,
            ports,
        } => {
            forward::run(connect(chosen)?, &namespace, &target, &ports).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(options: Up, output: Output) -> Result<()> {
    for file in &options.files {
        if !file.exists() {
            bail!(
                "{} does not exist; -f takes a folder or file of YAML",
                file.display()
            );
        }
    }
    let name = options.name.clone();
    let mut config = LabConfig::new(options.name, options.files)?;
    config.nodes = options.nodes;
    config.binaries = options.bin;
    config.ready_timeout = Duration::from_secs(options.timeout);
    config.component_env = options
        .env
        .iter()
        .map(|pair| {
            pair.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .with_context(|| format!("--env {pair:?} is not of the form NAME=VALUE"))
        })
        .collect::<Result<BTreeMap<_, _>>>()?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let result = isobar_lab::up(config, |progress| match progress {
        Progress::Step { text } => bar.set_message(text.clone()),
        Progress::Warning { text } => bar.suspend(|| eprintln!("warning: {text}")),
        Progress::Pod { pod } => {
            bar.set_message(format!("pod {}/{}: {}", pod.namespace, pod.name, pod.phase))
        }
        Progress::Component { component } => {
            bar.set_message(format!("{}: {}", component.name, component.state));
        }
        Progress::Ready { .. } | Progress::Failed { .. } => {}
    })
    .await;
    bar.finish_and_clear();
    let up = result?;
    status(&up, output)?;
    if output == Output::Table {
        println!(
            "\nLab {name} is up. `isobar status` shows its proxies, `isobar lab down` removes it."
        );
    }
    Ok(())
}

fn down(chosen: Option<&str>, all: bool) -> Result<()> {
    let root = LabRoot::from_env();
    let names: Vec<_> = match chosen {
        Some(name) if !all => vec![name.to_owned()],
        // What a crash left behind is to be removed too, so running or not does not matter.
        _ => isobar_lab::list(&root)?
            .into_iter()
            .map(|l| l.name)
            .collect(),
    };
    if names.len() > 1 && !all {
        bail!(
            "there are several labs; name one (--name) or say --all: {}",
            names.join(", ")
        );
    }
    if names.is_empty() {
        println!("there is no lab");
    }
    for name in names {
        if isobar_lab::down(&root, &name)? {
            println!("lab {name} is removed");
        } else {
            bail!("there is no lab {name}; `isobar lab list` shows them");
        }
    }
    Ok(())
}

fn status(lab: &LabStatus, output: Output) -> Result<()> {
    if output != Output::Table {
        return render::value(output, &serde_json::to_value(lab)?);
    }
    let text = |value: &dyn std::fmt::Display| value.to_string();
    let rows = lab
        .nodes
        .iter()
        .map(|n| vec![n.name.clone(), text(&n.address), n.pod_cidr.clone()]);
    println!(
        "{}",
        render::table(&["NODE", "ADDRESS", "PODS"], rows.collect())
    );
    let rows = lab.components.iter().map(|c| {
        vec![
            c.name.clone(),
            text(&c.state),
            text(&c.restarts),
            c.note.clone(),
        ]
    });
    println!(
        "{}",
        render::table(&["PROGRAM", "STATE", "RESTARTS", "NOTE"], rows.collect())
    );
    let rows = lab.pods.iter().map(|p| {
        vec![
            p.namespace.clone(),
            p.name.clone(),
            if p.ready { "yes" } else { "no" }.to_owned(),
            text(&p.phase),
            text(&p.restarts),
            p.ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string()),
            p.node.clone(),
            p.mesh.clone(),
            p.message.clone(),
        ]
    });
    let header = [
        "NAMESPACE",
        "POD",
        "READY",
        "PHASE",
        "RESTARTS",
        "ADDRESS",
        "NODE",
        "MESH",
        "MESSAGE",
    ];
    println!("{}", render::table(&header, rows.collect()));
    let rows = lab.services.iter().map(|s| {
        vec![
            s.namespace.clone(),
            s.name.clone(),
            s.cluster_ip
                .map_or_else(|| "None".to_owned(), |ip| ip.to_string()),
            s.ports.join(","),
            s.endpoints
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(","),
        ]
    });
    let header = ["NAMESPACE", "SERVICE", "ADDRESS", "PORTS", "ENDPOINTS"];
    print!("{}", render::table(&header, rows.collect()));
    for finding in &lab.findings {
        println!("note: {finding}");
    }
    Ok(())
}

fn list(output: Output) -> Result<()> {
    let labs = isobar_lab::list(&LabRoot::from_env())?;
    let rows = labs.iter().map(|l| {
        vec![
            l.name.clone(),
            if l.running { "running" } else { "ended" }.to_owned(),
            l.pid.map_or_else(|| "-".to_owned(), |p| p.to_string()),
            l.state_dir.display().to_string(),
        ]
    });
    let value = labs
        .iter()
        .map(|l| json!({"name": l.name, "running": l.running, "pid": l.pid, "stateDir": l.state_dir}))
        .collect();
    render::rows(
        output,
        &["NAME", "STATE", "PROCESS", "FOLDER"],
        rows.collect(),
        &value,
    )
}

async fn exec(lab: &Lab, target: Target, command: Vec<String>) -> Result<ExitCode> {
    use std::os::fd::AsFd;
    let stdio = [
        std::io::stdin().as_fd().try_clone_to_owned()?,
        std::io::stdout().as_fd().try_clone_to_owned()?,
        std::io::stderr().as_fd().try_clone_to_owned()?,
    ];
    let exec = Exec {
        target,
        argv: command,
        env: Vec::new(),
        stdio,
    };
    let code = lab.exec(exec).await?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

async fn logs(lab: &Lab, of: &str, follow: bool) -> Result<()> {
    let path = lab.log_path(of).await?;
    let mut file = std::fs::File::open(&path).with_context(|| format!("{}", path.display()))?;
    let mut at = 0;
    loop {
        file.seek(SeekFrom::Start(at))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        at += u64::try_from(new.len())?;
        std::io::stdout().write_all(&new)?;
        if !follow {
            return Ok(());
        }
        std::io::stdout().flush()?;
        tokio::time::sleep(LOOK).await;
    }
}
