use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::eventually_within;
use serde::Serialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::rig::{MARK, Rig, Running, own_path};
use super::{Contender, Options};
use crate::cost::usage_of_marked;

/// The pod the proxy runs in, alone: nothing is redirected to it.
const POD: &str = "bench-plain/near";
const DISCOVERY: &str = "127.0.0.1:16012";
const CHANGES: &str = "127.0.0.1:16013";
const READINESS: &str = "127.0.0.1:15021";
/// Changes measured; the report shows medians.
const TIMES: usize = 5;
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
    let _discovery = discovery(rig, &folder, workloads).await?;
    let mark = format!("scale-{}-{workloads}", contender.name().replace(' ', "-"));
    let used = || usage_of_marked(&[&format!("{MARK}={mark}"), "PROXY_WORKLOAD_INFO"]);
    let caller = rig.mesh().caller(POD).await?;
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
    Ok(Sample {
        contender,
        workloads,
        ready_seconds,
        ready_cpu: ready.cpu_seconds,
        rss_kib: ready.rss_kib,
        churn_ms,
        churn_cpu: after.cpu_seconds - ready.cpu_seconds,
        churned_rss_kib: after.rss_kib,
    })
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
