//! The commands of the documentation, as they stand there.
//!
//! Pages for `api-server` are followed at a real API server on which nothing runs: what waits for pods
//! does not wait. Pages for `cluster` are followed in a lab whose objects are in a real API server: its
//! pods run, and what kubectl wants in them goes through a kubelet.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use isobar_lab::Target;
use isobar_tests::page::{Ended, OTHERS, Page, Step, follow};
use isobar_tests::{ApiServer, Mesh, MeshOptions, binaries, kube_tools};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::alone;
use crate::charts::helm_tool;
use crate::definitions::established;

/// Pages that are followed here, with their places.
const PAGES: [(&str, &str); 7] = [
    ("install", API_SERVER),
    ("upgrade", API_SERVER),
    ("beside-istio", API_SERVER),
    ("getting-started", CLUSTER),
    ("waypoints", CLUSTER),
    ("network-policy", CLUSTER),
    ("troubleshooting", CLUSTER),
];
const API_SERVER: &str = "api-server";
const CLUSTER: &str = "cluster";
/// A command that stays shows something, and ends when it is told to, far sooner.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often Ctrl-C is pressed, and after how long again.
const PRESSES: u32 = 6;
const AGAIN: Duration = Duration::from_secs(10);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> Result<Page> {
    let path = root().join(format!("docs/{name}.md"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Page::read(&text).with_context(|| path.display().to_string())
}

/// A folder with what the page's reader has: the sources' manifests, and the programs by their names.
struct Desk {
    folder: PathBuf,
    programs: PathBuf,
}

impl Desk {
    fn new(folder: &Path) -> Result<Self> {
        let desk = Self {
            folder: folder.join("user"),
            programs: folder.join("programs"),
        };
        std::fs::create_dir(&desk.folder)?;
        std::fs::create_dir(&desk.programs)?;
        let manifests = std::fs::canonicalize(root().join("manifests"))?;
        std::os::unix::fs::symlink(manifests, desk.folder.join("manifests"))?;
        Ok(desk)
    }

    fn program(&self, name: &str, path: &Path) -> Result<()> {
        Ok(std::os::unix::fs::symlink(path, self.programs.join(name))?)
    }

    fn script(&self, name: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.programs.join(name);
        std::fs::write(&path, text)?;
        let executable = std::fs::Permissions::from_mode(0o755);
        Ok(std::fs::set_permissions(path, executable)?)
    }

    /// A shell into which a line is typed.
    fn shell(&self, line: &str, env: &[(&str, &Path)]) -> Result<Command> {
        let path = std::env::var("PATH")?;
        let mut command = Command::new("env");
        command
            // Who tests in the background has told a shell to ignore Ctrl-C for all below; who types has not.
            .args(["--default-signal=INT", "bash", "-c", line])
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .env("HOME", &self.folder)
            .env_remove("ISOBAR_LAB")
            .envs(env.iter().copied())
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Types a line into a shell.
    async fn run(&self, line: &str, env: &[(&str, &Path)]) -> Result<Ended> {
        let output = self.shell(line, env)?.output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// Types a line into a shell, waits until what it prints `is_shown`, opens the address in it, and
    /// presses Ctrl-C.
    async fn interrupt(
        &self,
        line: &str,
        is_shown: &dyn Fn(&str) -> bool,
        open: impl AsyncFn(&str) -> Result<()>,
    ) -> Result<Ended> {
        let mut child = self
            .shell(line, &[])?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Who types presses Ctrl-C for all that the line has started.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().context("it has ended")?;
        let mut out = BufReader::new(child.stdout.take().context("its output")?);
        let mut stdout = String::new();
        let shown = async {
            while !is_shown(&stdout) {
                if out.read_line(&mut stdout).await? == 0 {
                    break;
                }
            }
            let address = stdout.split_whitespace().find(|w| w.starts_with("http://"));
            match address {
                Some(address) => open(address).await,
                None => Ok(()),
            }
        };
        let shown = tokio::time::timeout(PATIENCE, shown).await;
        let status = pressed(&mut child, group).await?;
        let mut stderr = String::new();
        if let Some(mut err) = child.stderr.take() {
            err.read_to_string(&mut stderr).await?;
        }
        shown
            .context("it shows something else")
            .and_then(|shown| shown)
            .with_context(|| format!("{stdout}{stderr}"))?;
        Ok(Ended {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr,
        })
    }
}

/// Presses Ctrl-C for all of a group until its leader has ended; as who types does, again when nothing
/// comes of it.
async fn pressed(child: &mut Child, group: u32) -> Result<ExitStatus> {
    let kill = ["-INT", "--", &format!("-{group}")].map(str::to_owned);
    for _ in 0..PRESSES {
        Command::new("kill").args(&kill).status().await?;
        if let Ok(status) = tokio::time::timeout(AGAIN, child.wait()).await {
            return Ok(status?);
        }
        let look = ["-o", "pid,ppid,pgid,stat,ignored,caught,wchan,args", "-g"].map(str::to_owned);
        let group = Command::new("ps")
            .args(look)
            .arg(group.to_string())
            .output()
            .await?;
        eprintln!(
            "it goes on after Ctrl-C:\n{}",
            String::from_utf8_lossy(&group.stdout)
        );
    }
    bail!("it goes on after Ctrl-C, {PRESSES} times")
}

/// The client, which is one of several programs in one file.
fn kubectl() -> Result<String> {
    let tools = kube_tools()?;
    Ok(format!(
        "#!/bin/sh\nexec {} kubectl \"$@\"\n",
        tools.display()
    ))
}

/// Follows a part at an API server of its own.
async fn at_api_server(part: &[Step]) -> Result<()> {
    let server = ApiServer::start().await?;
    server.namespace("shop").await?;
    let desk = Desk::new(server.folder())?;
    // Nobody runs the pods, so nobody waits for them.
    let isobar = binaries()?.join("isobar");
    let isobar = isobar.display();
    desk.script(
        "isobar",
        &format!(
            "#!/bin/sh\ncase $1 in install|upgrade) exec {isobar} \"$@\" --no-wait;; esac\nexec {isobar} \"$@\"\n"
        ),
    )?;
    desk.program("kubectl-isobar", &desk.programs.join("isobar"))?;
    desk.script("kubectl", &kubectl()?)?;
    desk.program("helm", &helm_tool())?;
    // What the pages say that a cluster needs.
    let needed = desk
        .folder
        .join("manifests/charts/crds/files/gateway-api.yaml");
    let needed = needed.to_string_lossy();
    server.kubectl(&["apply", "-f", &needed]).await?;
    established(&server, &["-f", &needed]).await?;
    let config = server.admin()?;
    let run = async |line: &str, stays: Option<&dyn Fn(&str) -> bool>| {
        ensure!(stays.is_none(), "nothing runs here that could stay");
        desk.run(line, &[("KUBECONFIG", config.as_path())]).await
    };
    follow(part, &desk.folder, run).await
}

/// Follows a part in a lab whose objects are in an API server.
async fn in_cluster(part: &[Step]) -> Result<()> {
    let options = MeshOptions {
        api_server: Some(kube_tools()?),
        ..MeshOptions::default()
    };
    let empty = "apiVersion: v1\nkind: Namespace\nmetadata: {name: empty}\n";
    let mesh = Mesh::start_with(options, &[("empty.yaml", empty)]).await?;
    let desk = Desk::new(mesh.objects())?;
    let folder = mesh.lab().paths().kubernetes();
    let config = folder.join("admin-6443.kubeconfig");
    let inner = desk.programs.join("inner");
    std::fs::create_dir(&inner)?;
    desk.script("inner/kubectl", &kubectl()?)?;
    let isobar = binaries()?.join("isobar");
    std::os::unix::fs::symlink(&isobar, inner.join("kubectl-isobar"))?;
    let (isobar, lab) = (isobar.display(), mesh.name());
    desk.script(
        "kubectl",
        &format!(
            "#!/bin/sh\n\
             exec {isobar} lab exec --lab {lab} outer -- /bin/sh -c 'cd \"$0\" && exec \"$@\"' \"$PWD\" \
             env PATH={inner}:\"$PATH\" HOME=\"$HOME\" KUBECONFIG={config} kubectl \"$@\"\n",
            inner = inner.display(),
            config = config.display(),
        ),
    )?;
    let open = async |address: &str| {
        let curl = ["curl", "-sS", "-o", "/dev/null", address];
        let output = mesh.lab().output(Target::Outer, &curl).await?;
        ensure!(output.code == 0, "{address}: {}", output.stderr);
        Ok(())
    };
    let run = async |line: &str, stays: Option<&dyn Fn(&str) -> bool>| match stays {
        None => desk.run(line, &[]).await,
        Some(is_shown) => desk.interrupt(line, is_shown, open).await,
    };
    let result = follow(part, &desk.folder, run).await;
    if result.is_err() {
        for part in ["isobard", "ztunnel-node-1"] {
            let log = mesh.lab().log_path(part).await?;
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(15)..];
            eprintln!("the log of {part} ends with:\n{}", end.join("\n"));
        }
    }
    result?;
    mesh.down()
}

/// Follows a page, in each place that it asks for.
fn all_of(name: &'static str) {
    alone(async {
        let page = page(name)?;
        for (number, part) in page.parts.iter().enumerate() {
            let followed = match &*page.place {
                API_SERVER => at_api_server(part).await,
                CLUSTER => in_cluster(part).await,
                other => anyhow::bail!("{name} is for {other:?}"),
            };
            followed.with_context(|| format!("docs/{name}.md, place {number}"))?;
        }
        println!("docs/{name}.md: {} commands", page.commands());
        for block in &page.elsewhere {
            println!("docs/{name}.md: a block is run by {}", block.by);
        }
        Ok(())
    });
}

#[test]
fn install() {
    all_of("install");
}

#[test]
fn upgrade() {
    all_of("upgrade");
}

#[test]
fn beside_istio() {
    all_of("beside-istio");
}

#[test]
fn getting_started() {
    all_of("getting-started");
}

#[test]
fn waypoints() {
    all_of("waypoints");
}

#[test]
fn network_policy() {
    all_of("network-policy");
}

#[test]
fn troubleshooting() {
    all_of("troubleshooting");
}

#[test]
fn every_page_with_commands_is_followed() -> Result<()> {
    for entry in std::fs::read_dir(root().join("docs"))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let Some(name) = name.strip_suffix(".md") else {
            continue;
        };
        let page = page(name)?;
        let place = PAGES.iter().find(|(have, _)| *have == name);
        let place = place.map_or("", |(_, place)| *place);
        ensure!(
            page.place == place,
            "docs/{name}.md is for {:?}, not {place:?}",
            page.place
        );
        ensure!(
            page.commands() == 0 || !place.is_empty(),
            "nobody follows docs/{name}.md"
        );
        for block in &page.elsewhere {
            if !OTHERS.contains(&&*block.by) {
                bail!("docs/{name}.md: {:?} runs no blocks of pages", block.by);
            }
        }
    }
    Ok(())
}
