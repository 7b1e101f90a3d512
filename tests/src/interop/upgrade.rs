//! A node proxy and its successor side by side on the same pods: ours after ours, ours after the
//! peer, and the peer again after ours.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::{ComponentState, Target};
use isobar_net::NetNs;
use tokio::process::{Child, Command};

use super::matrix::{Matrix, Scenario};
use super::scenery::{BASE, PORTS, ROUTES, Route, Scene, environments, idle};
use crate::yaml::documents;
use crate::{Load, LoadKind, binaries, eventually};

const OURS: Scenario = Scenario {
    id: "upgrade_ours",
    what: "our node proxy is followed by another process of ours beside it, under calls on new connections and on an open one: none fails",
};
const TO_OURS: Scenario = Scenario {
    id: "upgrade_to_ours",
    what: "the peer is followed by our node proxy beside it, under calls on new connections and on an open one: none fails",
};
const BACK: Scenario = Scenario {
    id: "upgrade_back",
    what: "our node proxy is followed by the peer beside it, under calls on new connections and on an open one: none fails",
};

/// Calls a second, on a new connection each; and on the one that stays open.
const NEW: u32 = 20;
const KEPT: u32 = 10;
/// Calls that a replacement must see of each kind while the old process drains: they take less than
/// the 5 s for which both programs let connections go on.
const SEEN: u64 = 20;
/// For a process to end once it was asked to.
const LIMIT: Duration = Duration::from_secs(20);
const ADMIN: u16 = 15000;
const READINESS: u16 = 15021;

/// Where successors of a node's proxy run: both programs take the same ports for their own pages.
fn place(node: &str) -> String {
    format!("outside/beside-{node}")
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    let nodes = ["node-1", "node-2"];
    let places = nodes.map(|node| idle("outside", &format!("beside-{node}"), node));
    scene.mesh.apply("beside.yaml", &documents(places))?;
    for node in nodes {
        scene.mesh.settled(&place(node), "plain").await?;
    }
    let ours = binaries()?.join("ztunnel");
    for (node, scenario, back) in [("node-1", OURS, None), ("node-2", TO_OURS, Some(BACK))] {
        scene.open(BASE).await?;
        let component = format!("ztunnel-{node}");
        let traffic = Traffic::start(scene, node).await?;
        let successor = Successor::start(scene, &ours, node).await?;
        let stop = async { Ok(scene.mesh.lab().stop_component(&component).await?) };
        traffic.judge(matrix, scenario, stop).await?;
        // And back to the process that the lab keeps.
        let traffic = Traffic::start(scene, node).await?;
        scene.mesh.lab().start_component(&component).await?;
        ready(scene, &component).await?;
        match back {
            Some(scenario) => {
                traffic
                    .judge(matrix, scenario, successor.end(scene))
                    .await?;
            }
            None => successor.end(scene).await?,
        }
    }
    scene.mesh.delete("beside.yaml")
}

async fn ready(scene: &Scene, component: &str) -> Result<()> {
    eventually(&format!("{component} is ready"), async || {
        let status = scene.mesh.status().await?;
        let found = status.components.iter().find(|c| c.name == component);
        let state = found.map(|component| component.state);
        ensure!(state == Some(ComponentState::Ready), "{state:?}");
        Ok(())
    })
    .await
}

/// Calls on every way through one node's proxy.
struct Traffic {
    flows: Vec<Flow>,
}

struct Flow {
    route: Route,
    new: Load,
    kept: Load,
}

impl Traffic {
    async fn start(scene: &Scene, node: &str) -> Result<Self> {
        let mut flows = Vec::new();
        for route in ROUTES.iter().filter(|route| route.passes(node)) {
            let caller = scene.client(route).await?;
            let to = scene.by_service(BASE, route, PORTS[0]).await?;
            let load = |kind, rate| Load::start(caller.clone(), to, "server", "/ip", kind, rate);
            flows.push(Flow {
                route: *route,
                new: load(LoadKind::NewConnections, NEW),
                kept: load(LoadKind::KeepAlive, KEPT),
            });
        }
        for flow in &flows {
            flow.kept.progress(2).await?;
        }
        Ok(Self { flows })
    }

    /// Ends the old process by `end` and says of each way what became of its calls.
    async fn judge(
        self,
        matrix: &mut Matrix,
        scenario: Scenario,
        end: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let calls = async {
            // All of them at once: together they have as long as the old process drains.
            let goals: Vec<u64> = self
                .flows
                .iter()
                .map(|flow| flow.kept.answered() + SEEN)
                .collect();
            for (flow, goal) in self.flows.iter().zip(goals) {
                let left = goal.saturating_sub(flow.kept.answered());
                flow.kept.progress(left).await?;
            }
            let mut all = Vec::new();
            for flow in self.flows {
                all.push((flow.route, flow.kept.stop().await, flow.new));
            }
            anyhow::Ok(all)
        };
        let (ended, calls) = tokio::join!(end, calls);
        ended.context("the old process did not end")?;
        let expected = "no call on a new connection failed; none on the open one";
        for (route, kept, new) in calls? {
            // The old one is gone: these are the successor's alone.
            new.progress(SEEN).await?;
            let new = new.stop().await;
            let said = |bad: &[String]| match bad {
                [] => None,
                [first, ..] => Some(format!("{} failed ({first})", bad.len())),
            };
            let observed = format!(
                "{} on a new connection{}; {} on the open one",
                said(&new.bad).unwrap_or_else(|| "no call".to_owned()),
                if new.bad.is_empty() { " failed" } else { "" },
                said(&kept.bad).unwrap_or_else(|| "none".to_owned()),
            );
            matrix.seen(scenario, route.direction, expected, observed);
        }
        Ok(())
    }
}

/// A second node proxy on a node, beside the one that the lab keeps: a child of this program.
struct Successor {
    place: String,
    process: Child,
}

impl Successor {
    /// Starts `program` with the environment of the node's own proxy, and waits until it is ready.
    async fn start(scene: &Scene, program: &Path, node: &str) -> Result<Self> {
        let lab = scene.mesh.lab();
        let folder = lab.paths().dir().to_string_lossy().into_owned();
        let marks = [&*folder, &format!("NODE_NAME={node}"), "PROXY_MODE=shared"];
        let all = environments(|_| true)?;
        let own = all
            .into_iter()
            .find(|environ| marks.iter().all(|mark| environ.contains(mark)))
            .with_context(|| format!("{node} has no node proxy"))?;
        let pairs = own.split('\0').filter_map(|pair| pair.split_once('='));
        let place = place(node);
        let log = lab.paths().component_log(&format!("beside-{node}"));
        let mut command = Command::new(program);
        command
            .args(["proxy", "ztunnel"])
            .env_clear()
            .envs(pairs)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log)?)
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        // A child stands in the network namespace of the thread that starts it.
        let inside = NetNs::from_fd(lab.netns(Target::pod(&*place)).await?)?;
        let process = inside.enter(|| command.spawn())??;
        let successor = Self { place, process };
        eventually("the successor is ready", async || {
            let at = Target::pod(&*successor.place);
            let page = scene.mesh.page(at, READINESS, "/healthz/ready").await;
            page.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())
        })
        .await?;
        Ok(successor)
    }

    /// Asks it to drain, and waits until it has ended.
    async fn end(mut self, scene: &Scene) -> Result<()> {
        let caller = scene.mesh.caller(&self.place).await?;
        let admin = ([127, 0, 0, 1], ADMIN).into();
        let path = "/quitquitquit";
        let reply = caller
            .request(admin, "POST", "localhost", path, &[])
            .await?;
        ensure!(reply.status == 200, "{reply:?}");
        let status = tokio::time::timeout(LIMIT, self.process.wait())
            .await
            .context("the successor does not end")??;
        ensure!(status.success(), "the successor ended with {status}");
        Ok(())
    }
}
