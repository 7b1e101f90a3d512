//! The control socket: what clients of a running lab may ask.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use isobar_net::{DialOptions, SeqPacket, SeqPacketListener, dial};
use isobar_runtime::Scope;
use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::component::Component;
use crate::error::LabError;
use crate::paths::LabPaths;
use crate::place::{self, Place};
use crate::pod::{NodeHandle, PodOrder};
use crate::protocol::{Answer, LabStatus, NodeStatus, PodStatus, Request, Target};
use crate::reconcile::{PodHandle, View};

/// Longest request or answer, in bytes.
pub(crate) const PACKET: usize = 160 * 1024;

/// What the supervisor shows and lends to clients.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) name: String,
    pub(crate) mesh: bool,
    pub(crate) objects: Vec<PathBuf>,
    pub(crate) paths: LabPaths,
    /// `PATH` of commands.
    pub(crate) path: String,
    pub(crate) outer: Place,
    pub(crate) nodes: Vec<Arc<NodeHandle>>,
    pub(crate) components: Vec<Component>,
    pub(crate) view: watch::Receiver<Arc<View>>,
}

/// Listens for clients of the same user.
pub(crate) fn listen(path: &Path) -> Result<SeqPacketListener, LabError> {
    let doing = || format!("listening on {}", path.display());
    let listener = SeqPacketListener::bind(path).map_err(LabError::io(doing()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(LabError::io(doing()))?;
    Ok(listener)
}

/// Serves clients until the scope ends.
pub(crate) async fn serve(listener: SeqPacketListener, desk: Arc<Desk>, scope: Arc<Scope>) {
    let children = Arc::downgrade(&scope);
    drop(scope);
    loop {
        let Ok(client) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let desk = Arc::clone(&desk);
        let Some(scope) = children.upgrade() else {
            return;
        };
        scope.spawn("client", async move { desk.client(client).await });
    }
}

impl Desk {
    /// The lab for clients.
    pub(crate) fn status(&self) -> LabStatus {
        let view = self.view.borrow().clone();
        let components: Vec<_> = self.components.iter().map(Component::status).collect();
        LabStatus {
            name: self.name.clone(),
            ready: self.waits_for(&view).is_empty(),
            mesh: self.mesh,
            objects: self.objects.clone(),
            state_dir: self.paths.dir().to_owned(),
            nodes: self
                .nodes
                .iter()
                .map(|node| NodeStatus {
                    name: node.plan.name.clone(),
                    address: node.plan.address().into(),
                    pod_cidr: node.plan.pod_cidr(),
                })
                .collect(),
            components,
            pods: view.pods.iter().map(|pod| self.pod_status(pod)).collect(),
            services: view.services.clone(),
            findings: view.findings.clone(),
        }
    }

    /// A pod with what the agent says about it now: pods are enrolled and let go while they run.
    fn pod_status(&self, pod: &PodHandle) -> PodStatus {
        let mut status = pod.status.clone();
        let answer = self
            .paths
            .pods(&status.node)
            .join(format!("{}.ready", status.uid));
        if let Ok(text) = std::fs::read_to_string(answer) {
            text.trim().clone_into(&mut status.mesh);
        }
        status
    }

    /// What is not ready, in words.
    pub(crate) fn waits_for(&self, view: &View) -> Vec<String> {
        use crate::protocol::{ComponentState, PodPhase};
        let mut found = Vec::new();
        if !view.synced {
            found.push("the objects are not read yet".to_owned());
        }
        for component in self.components.iter().map(Component::status) {
            if component.state != ComponentState::Ready {
                found.push(with_note(
                    &format!("{} is {}", component.name, component.state),
                    &component.note,
                ));
            }
        }
        for name in &view.waiting_gateways {
            found.push(format!("Gateway {name} has no waypoint yet"));
        }
        for pod in &view.pods {
            let status = &pod.status;
            if !status.ready && status.phase != PodPhase::Succeeded {
                let name = format!("pod {}/{} is not ready", status.namespace, status.name);
                found.push(with_note(&name, &status.message));
            }
        }
        found
    }

    async fn client(&self, client: SeqPacket) {
        let mut buffer = vec![0; PACKET];
        let Ok(Some(packet)) = client.recv(&mut buffer).await else {
            return;
        };
        let fds = packet.fds;
        let (answer, fd) = match serde_json::from_slice(&buffer[..packet.len]) {
            Ok(request) => self
                .answer(request, fds, &client)
                .await
                .unwrap_or_else(|message| (Answer::Refused { message }, None)),
            Err(error) => {
                let message = format!("the request cannot be read: {error}");
                (Answer::Refused { message }, None)
            }
        };
        let text = serde_json::to_vec(&answer).expect("answers have string keys only");
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        if let Err(error) = client.send(&text, &fds).await {
            tracing::debug!("a client did not take its answer: {error}");
        }
    }

    async fn answer(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        client: &SeqPacket,
    ) -> Result<(Answer, Option<OwnedFd>), String> {
        let done = (Answer::Done, None);
        Ok(match request {
            Request::Status => {
                let status = Box::new(self.status());
                (Answer::Status { status }, None)
            }
            Request::Exec { target, argv, env } => {
                let code = self.exec(&target, argv, env, fds, client).await?;
                (Answer::Exited { code }, None)
            }
            Request::Dial {
                target,
                to,
                timeout_ms,
            } => {
                let fd = self.dial(&target, to, timeout_ms).await?;
                (Answer::Done, Some(fd))
            }
            Request::Netns { target } => {
                let place = self.place(&target)?;
                let fd = place.netns().as_fd().try_clone_to_owned();
                (Answer::Done, Some(fd.map_err(|error| error.to_string())?))
            }
            Request::LogPath { target } => {
                let path = self.log_path(&target)?;
                (Answer::Path { path }, None)
            }
            Request::Stop { component, gentle } => {
                self.component(&component)?.stop(gentle).await?;
                done
            }
            Request::Start { component } => {
                self.component(&component)?.restart().await?;
                done
            }
            Request::KillPod { pod } => {
                let pod = self.pod(&pod)?;
                let orders = pod.orders.ok_or("the pod does not run")?;
                // An order that waits already does the same.
                let _ = orders.try_send(PodOrder::Crash);
                done
            }
        })
    }

    async fn exec(
        &self,
        target: &Target,
        argv: Vec<String>,
        extra: Vec<(String, String)>,
        fds: Vec<OwnedFd>,
        client: &SeqPacket,
    ) -> Result<i32, String> {
        let (place, own) = match target {
            Target::Pod(name) => {
                let pod = self.pod(name)?;
                (running(name, &pod)?, pod.env)
            }
            _ => (self.place(target)?, Vec::new()),
        };
        let stdio: [OwnedFd; 3] = fds
            .try_into()
            .map_err(|_| "a command needs standard input, output and error".to_owned())?;
        let [stdin, stdout, stderr] = stdio.map(Stdio::from);
        let mut env: Vec<(String, String)> = ["HOME", "TERM", "LANG", "USER"]
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), std::env::var(key).ok()?)))
            .collect();
        env.push(("PATH".to_owned(), self.path.clone()));
        env.extend(own);
        env.extend(extra);
        let mut command = place.command(argv, env, None);
        let spawned = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn();
        // It holds copies of the descriptors: a reader of the output waits for its end.
        drop(command);
        let mut child = spawned.map_err(|error| format!("the command was not started: {error}"))?;
        let mut rest = [0; 16];
        let status = tokio::select! {
            status = child.wait() => status,
            // The client went away, or sent what makes no sense here.
            _ = client.recv(&mut rest) => {
                let inside = matches!(target, Target::Pod(_));
                place::signal(&child, if inside { Signal::SIGUSR1 } else { Signal::SIGKILL });
                child.wait().await
            }
        };
        status
            .map(|status| exit_code(&status))
            .map_err(|error| error.to_string())
    }

    async fn dial(&self, target: &Target, to: SocketAddr, ms: u64) -> Result<OwnedFd, String> {
        let options = DialOptions {
            netns: Some(self.place(target)?.netns().clone()),
            timeout: Duration::from_millis(ms),
            ..DialOptions::default()
        };
        let stream = dial(&options, to)
            .await
            .map_err(|error| crate::stage::with_causes(&error))?;
        let stream = stream.into_std().map_err(|error| error.to_string())?;
        stream
            .set_nonblocking(false)
            .map_err(|error| error.to_string())?;
        Ok(stream.into())
    }

    fn place(&self, target: &Target) -> Result<Place, String> {
        match target {
            Target::Outer => Ok(self.outer.clone()),
            Target::Node(name) => self
                .nodes
                .iter()
                .find(|node| node.plan.name == *name)
                .map(|node| node.place.clone())
                .ok_or_else(|| format!("there is no node {name:?}")),
            Target::Pod(name) => {
                let pod = self.pod(name)?;
                running(name, &pod)
            }
        }
    }

    /// A pod by its own name, else a pod of the Deployment of that name, else one with that label
    /// `app`; ready ones first.
    fn pod(&self, name: &str) -> Result<PodHandle, String> {
        let view = self.view.borrow().clone();
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, name),
        };
        let there = |pod: &&PodHandle| namespace.is_none_or(|n| pod.status.namespace == n);
        let named = |pod: &&PodHandle| pod.status.name == name;
        let made = |pod: &&PodHandle| pod.deployment.as_deref() == Some(name);
        let labelled = |pod: &&PodHandle| pod.app.as_deref() == Some(name);
        let mut found: Vec<&PodHandle> = view.pods.iter().filter(there).filter(named).collect();
        if found.is_empty() {
            found = view.pods.iter().filter(there).filter(made).collect();
        }
        if found.is_empty() {
            found = view.pods.iter().filter(there).filter(labelled).collect();
        }
        let first = found.first().map(|pod| pod.status.namespace.clone());
        if found
            .iter()
            .any(|pod| Some(&pod.status.namespace) != first.as_ref())
        {
            return Err(format!(
                "{name} is in several namespaces; write NAMESPACE/{name}"
            ));
        }
        found
            .iter()
            .max_by_key(|pod| (pod.status.ready, pod.place.is_some()))
            .map(|pod| (*pod).clone())
            .ok_or_else(|| no_pod(&self.name, namespace, name, &view.pods))
    }

    fn component(&self, name: &str) -> Result<&Component, String> {
        self.components
            .iter()
            .find(|component| component.status().name == name)
            .ok_or_else(|| {
                let names: Vec<String> = self.components.iter().map(|c| c.status().name).collect();
                format!("there is no component {name:?}, only {}", names.join(", "))
            })
    }

    fn log_path(&self, target: &str) -> Result<PathBuf, String> {
        if target == "supervisor" || self.component(target).is_ok() {
            return Ok(self.paths.component_log(target));
        }
        let pod = self.pod(target).map_err(|why| {
            let names = self.components.iter().map(|c| c.status().name);
            let names: Vec<String> = names.chain(["supervisor".to_owned()]).collect();
            format!("{why}; processes are {}", names.join(", "))
        })?;
        let pod = pod.status;
        Ok(self.paths.pod_log(&pod.namespace, &pod.name))
    }
}

/// Where was looked, where else the name is, and what lists everything.
fn no_pod(lab: &str, namespace: Option<&str>, name: &str, pods: &[PodHandle]) -> String {
    let place = namespace.map_or_else(String::new, |n| format!(" in namespace {n}"));
    let is_it = |pod: &&PodHandle| {
        let names = [pod.deployment.as_deref(), pod.app.as_deref()];
        pod.status.name == name || names.contains(&Some(name))
    };
    let elsewhere: std::collections::BTreeSet<&str> = pods
        .iter()
        .filter(is_it)
        .map(|pod| &*pod.status.namespace)
        .collect();
    let elsewhere = if elsewhere.is_empty() {
        String::new()
    } else {
        let names: Vec<&str> = elsewhere.into_iter().collect();
        format!(", but in {}", names.join(", "))
    };
    format!(
        "there is no pod or Deployment {name:?}{place}{elsewhere}; `isobar lab status --lab {lab}` \
         lists those there are"
    )
}

fn running(name: &str, pod: &PodHandle) -> Result<Place, String> {
    pod.place
        .clone()
        .ok_or_else(|| with_note(&format!("pod {name} does not run"), &pod.status.message))
}

fn with_note(text: &str, note: &str) -> String {
    if note.is_empty() {
        text.to_owned()
    } else {
        format!("{text}: {note}")
    }
}

fn exit_code(status: &std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).unwrap_or(1)
}
