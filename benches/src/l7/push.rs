use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use super::caller::read_reply;
use super::hbone::{Entrance, Stream};
use super::rig::{Application, Rig, measured};
use super::rounds::Plan;
use super::scene::Scene;
use super::{Contender, Options, PROXIES};

/// Requests a second that go on meanwhile: far below what a proxy can do, so that what is seen is not
/// the wait for a turn.
const RATE: u32 = 4_000;
/// Between two changes.
const PERIOD: Duration = Duration::from_millis(60);
/// For a change to be seen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Routes of the table, of which one changes.
const ROUTES: [u32; 2] = [10, 1_000];

/// Changes of one route under load.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(super) contender: Contender,
    pub(super) routes: u32,
    /// Milliseconds from each change to the first reply that shows it.
    pub(super) effect_ms: Vec<f64>,
    /// Requests meanwhile, and those that failed.
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) p99_us: u64,
    /// CPU seconds of the proxy.
    pub(super) proxy_cpu: f64,
}

pub(super) async fn all(
    application: &Application,
    options: &Options,
    into: &mut Vec<Sample>,
) -> Result<()> {
    for routes in ROUTES {
        let scene = Scene {
            name: format!("push-{routes}"),
            ..Scene::routes(routes)
        };
        for contender in PROXIES {
            eprintln!(
                "{} changes of one of {routes} routes: {}",
                options.pushes,
                contender.name()
            );
            let rig = Rig::start(contender, &scene, application).await?;
            into.push(changes(&rig, routes, options).await?);
        }
    }
    Ok(())
}

async fn changes(rig: &Rig, routes: u32, options: &Options) -> Result<Sample> {
    let seconds = PERIOD.as_secs_f64() * f64::from(options.pushes);
    let plan = Plan::usual("changes").paced(RATE, seconds);
    let before = rig.used();
    let load = rig.start_load(&plan.load(rig, options)?)?;
    let called = rig.scene.service("web").context("no service to call")?;
    let mut probe = Probe::connect(&rig.door("web")?.entrance()?, &called.path(1)).await?;
    let mut effect_ms = Vec::new();
    let mut next = tokio::time::interval(PERIOD);
    for version in 1..=options.pushes {
        next.tick().await;
        let pushed = rig.push(version).await?;
        let seen = tokio::time::timeout(PATIENCE, probe.until(version));
        seen.await
            .with_context(|| format!("change {version} is not seen"))??;
        effect_ms.push(pushed.elapsed().as_secs_f64() * 1000.0);
    }
    let measured = measured(load).await?;
    if let Some(failure) = &measured.first_failure {
        eprintln!("{} failed; first: {failure}", measured.failed);
    }
    Ok(Sample {
        contender: rig.contender,
        routes,
        effect_ms,
        requests: measured.requests,
        failed: measured.failed,
        p99_us: measured.p99_us,
        proxy_cpu: rig.used().cpu_seconds - before.cpu_seconds,
    })
}

/// One connection that asks again and again.
struct Probe {
    tcp: Stream,
    request: String,
    buffer: Vec<u8>,
}

impl Probe {
    async fn connect(to: &Entrance, path: &str) -> Result<Self> {
        Ok(Self {
            tcp: to.open().await?,
            request: format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n"),
            buffer: vec![0; 16 * 1024],
        })
    }

    /// Asks until the reply is of that version, or of a later one.
    async fn until(&mut self, version: u32) -> Result<Instant> {
        loop {
            self.tcp.write_all(self.request.as_bytes()).await?;
            self.buffer.fill(0);
            read_reply(&mut self.tcp, &mut self.buffer).await?;
            let seen = shown(&self.buffer).context("a reply shows no version")?;
            ensure!(seen <= version, "a reply shows version {seen}");
            if seen == version {
                return Ok(Instant::now());
            }
        }
    }
}

/// The version that a reply's head shows.
fn shown(reply: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(reply);
    let mut lines = text.split("\r\n").take_while(|line| !line.is_empty());
    let value = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-version")
            .then(|| value.trim().to_owned())
    });
    value?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn replies_show_their_version() {
        let reply = b"HTTP/1.1 200 OK\r\na: b\r\nX-Version: 12\r\n\r\nx-version: 13\r\n";
        assert_eq!(shown(reply), Some(12));
        assert_eq!(shown(b"HTTP/1.1 200 OK\r\n\r\nx-version: 13"), None);
    }
}
