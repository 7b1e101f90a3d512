use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::eventually_within;
use serde::Serialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::rig::{ClientLoad, MARK, Rig, Running, own_path};
use super::{Contender, Options};
use crate::client::{Kind, Measured};
use crate::cost::usage_of_marked;

/// The pod the proxy runs in, alone: nothing is redirected to it.
const POD: &str = "bench-plain/near";
const DISCOVERY: &str = "127.0.0.1:16012";
const CHANGES: &str = "127.0.0.1:16013";
const READINESS: &str = "127.0.0.1:15021";
const SOCKS: &str = "127.0.0.1:15080";
/// Port of the pod's own server.
const SERVER: u16 = 8080;
/// Connections through the proxy that are asked on all the while: several, so that each data worker
/// has one.
const OPEN: usize = 8;
/// Requests a second of all of them together.
const RATE: u32 = 2_000;
/// Seconds of such requests; during changes there are [`TIMES`] in as many.
const SECONDS: u64 = 3;
/// Changes measured; the report shows medians.
const TIMES: u32 = 5;
/// For a proxy to learn of everything.
const PATIENCE: Duration = Duration::from_secs(120);

/// What so many workloads cost.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(super) contender: Contender,
    pub(super) workloads: u32,
    /// Seconds from the start of the process until it says that it is ready.
    pub(super) ready_seconds: f64,
    /// CPU seconds until then.
    pub(super) ready_cpu: f64,
    pub(super) rss_kib: u64,
    /// Milliseconds until a change of 1 % of the workloads is acknowledged.
    pub(super) churn_ms: Vec<f64>,
    /// CPU seconds of all those changes together.
    pub(super) churn_cpu: f64,
    /// Memory after them.
    pub(super) churned_rss_kib: u64,
    /// Milliseconds of the longest request on connections through the proxy while nothing changes.
    pub(super) quiet_wait_ms: f64,
    /// The same during the changes: what a data worker stalls, and what the machine does.
    pub(super) churn_wait_ms: f64,
}

/// Every size for every contender, in turn.
pub(super) async fn all(rigs: &[Rig], options: &Options, into: &mut Vec<Sample>) -> Result<()> {
    let rig = &rigs[0];
    let ours = isobar_tests::binaries()?.join("ztunnel");
    for workloads in &options.workloads {
        for (contender, program) in options.contenders() {
            eprintln!("{workloads} workloads: {}", contender.name());
            let program = program.unwrap_or(&ours);
            into.push(one(rig, contender, program, *workloads).await?);
        }
    }
    Ok(())
}

async fn one(rig: &Rig, contender: Contender, program: &Path, workloads: u32) -> Result<Sample> {
    let folder = rig.authority().join("discovery");
    std::fs::create_dir_all(&folder)?;
    let caller = rig.mesh().caller(POD).await?;
    let control_plane: SocketAddr = DISCOVERY.parse()?;
    eventually_within("the control plane before has ended", PATIENCE, async || {
        ensure!(caller.connect(control_plane).await.is_err(), "it listens");
        Ok(())
    })
    .await?;
    let _discovery = discovery(rig, &folder, workloads).await?;
    let mark = format!("scale-{}-{workloads}", contender.name().replace(' ', "-"));
    let used = || usage_of_marked(&[&format!("{MARK}={mark}"), "PROXY_WORKLOAD_INFO"]);
    let readiness: SocketAddr = READINESS.parse()?;
    eventually_within("the proxy before has ended", PATIENCE, async || {
        ensure!(caller.get(readiness, "/").await.is_err(), "it answers");
        Ok(())
    })
    .await?;
    let start = Instant::now();
    let _proxy = proxy(rig, &folder, program, &mark).await?;
    eventually_within("the proxy is ready", PATIENCE, async || {
        let reply = caller.get(readiness, "/healthz/ready").await?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .await?;
    let ready_seconds = start.elapsed().as_secs_f64();
    let ready = used();
    let mut churn_ms = Vec::new();
    for _ in 0..TIMES {
        churn_ms.push(change(rig).await?);
    }
    // The last change is acknowledged, but perhaps not yet in use everywhere.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = used();
    let quiet_wait_ms = longest_wait(rig).await?;
    let changes = async {
        // Connections stand by then, and the last change is long over at the end.
        let mut pace = tokio::time::interval(Duration::from_secs(SECONDS) / (TIMES + 2));
        pace.tick().await;
        for _ in 0..TIMES {
            pace.tick().await;
            change(rig).await?;
        }
        anyhow::Ok(())
    };
    let (churn_wait_ms, ()) = tokio::try_join!(longest_wait(rig), changes)?;
    Ok(Sample {
        contender,
        workloads,
        ready_seconds,
        ready_cpu: ready.cpu_seconds,
        rss_kib: ready.rss_kib,
        churn_ms,
        churn_cpu: after.cpu_seconds - ready.cpu_seconds,
        churned_rss_kib: after.rss_kib,
        quiet_wait_ms,
        churn_wait_ms,
    })
}

/// Asks on connections through the proxy at a fixed rate; milliseconds that the longest took.
async fn longest_wait(rig: &Rig) -> Result<f64> {
    let server = rig.mesh().pod_ip(POD).await?;
    let load = ClientLoad {
        kind: Kind::Paced,
        connections: OPEN,
        seconds: SECONDS,
        rate: RATE,
    };
    let mut argv = load.argv((server, SERVER).into())?;
    argv.extend(["--socks", SOCKS].map(str::to_owned));
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let output = rig.mesh().lab().output(Target::pod(POD), &argv).await?;
    ensure!(output.code == 0, "{}", output.stderr);
    let measured: Measured = serde_json::from_str(output.stdout.trim())?;
    let asked = measured.failed == 0 && measured.units > 0;
    ensure!(asked, "requests through the proxy fail: {measured:?}");
    Ok(measured.max_us as f64 / 1000.0)
}

async fn discovery(rig: &Rig, folder: &Path, workloads: u32) -> Result<Running> {
    let program = own_path()?;
    let argv = [
        &*program,
        "discovery",
        "--workloads",
        &workloads.to_string(),
        "--listen",
        DISCOVERY,
        "--authority",
        &folder.to_string_lossy(),
    ];
    rig.start_process(POD, &argv, &[]).await
}

async fn proxy(rig: &Rig, folder: &Path, program: &Path, mark: &str) -> Result<Running> {
    let token = folder.join("token");
    std::fs::write(&token, "bench")?;
    let (roots, token) = (folder.join("root-cert.pem"), token);
    let (roots, token) = (roots.to_string_lossy(), token.to_string_lossy());
    let server = format!("https://{DISCOVERY}");
    let env = [
        (MARK, mark),
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "bench/bench/bench"),
        ("NODE_NAME", "bench"),
        ("XDS_ADDRESS", &*server),
        ("CA_ADDRESS", &*server),
        ("XDS_ROOT_CA", &*roots),
        ("CA_ROOT_CA", &*roots),
        ("AUTH_TOKEN", &*token),
        ("CLUSTER_ID", "Kubernetes"),
        ("POD_NAME", "bench"),
        ("POD_NAMESPACE", "bench"),
        ("SERVICE_ACCOUNT", "bench"),
        ("INSTANCE_IP", "127.0.0.1"),
        ("RUST_LOG", "info"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
    ];
    let program = program.to_string_lossy();
    rig.start_process(POD, &[&*program, "proxy", "ztunnel"], &env)
        .await
}

/// Changes one in a hundred workloads; milliseconds until that is acknowledged.
async fn change(rig: &Rig) -> Result<f64> {
    let lab = rig.mesh().lab();
    let tcp = lab
        .dial(Target::pod(POD), CHANGES.parse()?, Duration::from_secs(5))
        .await?;
    tcp.set_nonblocking(true)?;
    let mut text = String::new();
    let mut tcp = TcpStream::from_std(tcp)?;
    tokio::time::timeout(PATIENCE, tcp.read_to_string(&mut text)).await??;
    text.trim()
        .parse()
        .with_context(|| format!("the change was not taken: {text}"))
}
