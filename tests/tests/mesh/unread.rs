//! A caller that asks for much and reads nothing of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_runtime::Scope;
use isobar_tests::eventually;
use isobar_tests::yaml::service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{Shop, run, shop};

/// Where the application listens inside the server's pod.
const PORT: u16 = 9999;
const STREAMS: u32 = 200;
/// What such a caller may make a waypoint hold.
const MOST_KIB: u64 = 30 * 1024;

/// Answers each connection with far more than anybody takes.
async fn serve(listener: TcpListener, answers: Arc<Scope>) {
    while let Ok((tcp, _)) = listener.accept().await {
        answers.spawn("answer", async move {
            // Ends with its peer.
            let _ = answer(tcp).await;
        });
    }
}

async fn answer(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await?);
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
    tcp.write_all(head).await?;
    let piece = vec![b'x'; 64 * 1024];
    loop {
        tcp.write_all(&piece).await?;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// HTTP/2 with windows that never fill, and a request on each of [`STREAMS`].
fn requests() -> Vec<u8> {
    let most = (1_u32 << 31) - 1;
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let window = [&[0, 4][..], &most.to_be_bytes()].concat();
    said.extend(frame(4, 0, 0, &window));
    said.extend(frame(8, 0, 0, &(most - 65_535).to_be_bytes()));
    // GET, http, / and the authority (RFC 7541 appendix A), END_STREAM and END_HEADERS.
    let head = [&[0x82, 0x86, 0x84, 0x01, 4][..], b"many"].concat();
    for stream in 0..STREAMS {
        said.extend(frame(1, 5, 2 * stream + 1, &head));
    }
    said
}

/// The highest resident memory so far of the waypoint of the lab in `dir`, in KiB.
fn highest(dir: &Path) -> Result<u64> {
    let mark = dir.display().to_string();
    for process in std::fs::read_dir("/proc")? {
        let process = process?.path();
        let read = |file: &str| std::fs::read(process.join(file)).unwrap_or_default();
        let environment = read("environ");
        let mut windows = environment.windows(mark.len());
        if read("comm") != b"waypoint\n" || !windows.any(|part| part == mark.as_bytes()) {
            continue;
        }
        let status = String::from_utf8(read("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        return Ok(number.context("no VmHWM")?.trim().parse()?);
    }
    anyhow::bail!("no waypoint of {mark}")
}

#[test]
fn two_hundred_answers_that_nobody_reads_cost_a_waypoint_little() {
    run(async {
        let many = service("shop", "many", "server", PORT, false);
        let Shop { mesh, caller, .. } = shop(&[("many.yaml", &many)]).await?;
        mesh.isobar(&[
            "waypoint",
            "apply",
            "-n",
            "shop",
            "--enroll-namespace",
            "--wait",
        ])
        .await?;
        let listener = mesh.caller("shop/server").await?.listen(PORT)?;
        let (serving, answers) = (Scope::new("serving"), Arc::new(Scope::new("answers")));
        serving.spawn("accept", serve(listener, Arc::clone(&answers)));
        let to = (mesh.service_ip("shop/many").await?, PORT).into();
        eventually("the waypoint answers", async || {
            let mut tcp = caller.connect(to).await?;
            tcp.write_all(b"GET / HTTP/1.1\r\nhost: many\r\n\r\n")
                .await?;
            let mut head = vec![0; 1024];
            let count = tcp.read(&mut head).await?;
            let head = String::from_utf8_lossy(&head[..count]).into_owned();
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            ensure!(head.contains("x-envoy-upstream-service-time"), "{head}");
            Ok(())
        })
        .await?;
        let dir = mesh.lab().paths().dir().to_owned();
        let before = highest(&dir)?;
        let mut silent = caller.connect(to).await?;
        silent.write_all(&requests()).await?;
        // Until it has not grown for two seconds.
        let (mut most, mut quiet) = (before, 0);
        while quiet < 8 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = highest(&dir)?;
            quiet = if now > most { 0 } else { quiet + 1 };
            most = now;
        }
        println!("{before} KiB before, {most} KiB at most");
        ensure!(most > before, "nothing was held: are there answers?");
        ensure!(most - before <= MOST_KIB, "{} KiB", most - before);
        drop(silent);
        serving.shutdown(Duration::ZERO).await;
        if let Some(answers) = Arc::into_inner(answers) {
            answers.shutdown(Duration::ZERO).await;
        }
        mesh.down()
    });
}
