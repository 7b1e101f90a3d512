//! Plain connections.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_runtime::Scope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::call::{CALLS, calls_read};
use super::matrix::{Matrix, Scenario};
use super::scenery::{BASE, PORTS, ROUTES, Route, Scene};
use crate::Caller;

const POD: Scenario = Scenario {
    id: "l4_pod_address",
    what: "calls to the server's pod address; the server sees its caller's address",
};
const SERVICE: Scenario = Scenario {
    id: "l4_service_address",
    what: "calls to the Service's address; the server sees its caller's address",
};
const NAME: Scenario = Scenario {
    id: "l4_service_name",
    what: "calls to the Service's name by a program in the pod, its node proxy being its resolver",
};
const BULK: Scenario = Scenario {
    id: "l4_bulk",
    what: "replies of 8 MiB each, whole",
};
const HALF: Scenario = Scenario {
    id: "l4_half_close",
    what: "the server speaks first; the caller sends 1 MiB and its end; the server then answers with what it counted",
};

/// Port of a server of this program's own.
const OWN_PORT: u16 = 9000;
const GREETING: &[u8] = b"hello\n";
const BULK_BYTES: usize = 8 << 20;
const UPLOAD: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.open(BASE).await?;
    for route in &ROUTES {
        let client = scene.client(route).await?;
        let own = scene
            .mesh
            .pod_ip(&format!("callers/{}", route.client()))
            .await?;
        let pod = scene.by_pod(BASE, route, PORTS[0]).await?;
        let service = scene.by_service(BASE, route, PORTS[0]).await?;
        let expected = format!("{CALLS}× 200 from the caller's address");
        for (scenario, to) in [(POD, pod), (SERVICE, service)] {
            matrix
                .cell(scenario, route.direction, &expected, async || {
                    let seen = calls_read(&client, to, "/ip", CALLS, |reply| {
                        let kept = reply.body.contains(&format!("\"{own}\""));
                        let whose = if kept { "the caller's" } else { "another" };
                        format!("{} from {whose} address", reply.status)
                    });
                    Ok(seen.await)
                })
                .await;
        }
        by_name(scene, matrix, route).await;
        bulk(matrix, route, &client, service).await;
        half_close(scene, matrix, route, &client).await?;
    }
    Ok(())
}

async fn by_name(scene: &Scene, matrix: &mut Matrix, route: &Route) {
    let url = format!("http://{}.{BASE}/ip", route.server);
    let pod = format!("callers/{}", route.client());
    let argv = ["curl", "-s", "-m", "5", "-w", " %{http_code}", &url];
    let expected = format!("{CALLS}× 200");
    matrix
        .cell(NAME, route.direction, &expected, async || {
            let mut good = 0;
            for _ in 0..CALLS {
                let output = scene.mesh.lab().output(Target::pod(&*pod), &argv).await?;
                let whole = output.code == 0 && output.stdout.ends_with(" 200");
                ensure!(whole, "curl: exit code {}, {}", output.code, output.stdout);
                good += 1;
            }
            Ok(format!("{good}× 200"))
        })
        .await;
}

async fn bulk(matrix: &mut Matrix, route: &Route, client: &Caller, to: SocketAddr) {
    let path = format!("/bytes/{BULK_BYTES}");
    let expected = format!("{CALLS}× {BULK_BYTES} bytes");
    matrix
        .cell(BULK, route.direction, &expected, async || {
            let seen = calls_read(client, to, &path, CALLS, |reply| {
                format!("{} bytes", reply.body.len())
            });
            Ok(seen.await)
        })
        .await;
}

async fn half_close(
    scene: &Scene,
    matrix: &mut Matrix,
    route: &Route,
    client: &Caller,
) -> Result<()> {
    let server = format!("{BASE}/{}", route.server);
    let listener = scene.mesh.caller(&server).await?.listen(OWN_PORT)?;
    let life = Scope::new("own server");
    life.spawn("count", count(listener));
    let to = scene.by_pod(BASE, route, OWN_PORT).await?;
    let expected = format!("greeted, {UPLOAD} bytes counted, then the end");
    matrix
        .cell(HALF, route.direction, &expected, async || {
            tokio::time::timeout(LIMIT, upload(client, to))
                .await
                .context("not within 10 s")?
        })
        .await;
    let _ = life.shutdown(Duration::ZERO).await;
    Ok(())
}

/// Greets, counts to the caller's end, and says how much it was.
async fn count(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            continue;
        };
        // Whoever broke off sees the end of it.
        let _ = answer(&mut stream).await;
    }
}

async fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(GREETING).await?;
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0_usize;
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => total += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.write_all(total.to_string().as_bytes()).await?;
    stream.shutdown().await
}

async fn upload(client: &Caller, to: SocketAddr) -> Result<String> {
    let mut stream = client.connect(to).await?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).await?;
    ensure!(greeting == GREETING, "greeted with {greeting:?}");
    stream.write_all(&vec![b'x'; UPLOAD]).await?;
    stream.shutdown().await?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await?;
    Ok(format!("greeted, {rest} bytes counted, then the end"))
}
