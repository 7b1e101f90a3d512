//! `isobar analyze`, `bug-report` and `dashboard` about a lab, as a shell sees them.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{Mesh, MeshOptions, binaries, eventually};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::fixture::run;

/// Planted where objects and logs could carry it out.
const PLANTED: &str = "hunter2-is-planted";

fn secretive() -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: holder, namespace: hello}}\n\
         spec:\n  replicas: 0\n  selector: {{matchLabels: {{app: holder}}}}\n  template:\n    metadata: {{labels: {{app: holder}}}}\n    \
         spec:\n      containers:\n      - name: c\n        image: busybox\n        args: [\"--db-password={PLANTED}\"]\n        \
         env: [{{name: DB, value: \"{PLANTED}\"}}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: vs, namespace: hello}}\n\
         spec: {{hosts: [svc-hello], http: [{{headers: {{request: {{set: {{authorization: \"{PLANTED}\"}}}}}}, \
         route: [{{destination: {{host: svc-hello}}}}]}}]}}\n"
    )
}

/// Exit code and everything printed.
async fn isobar(mesh: &Mesh, args: &[&str]) -> Result<(i32, String)> {
    let output = tokio::process::Command::new(binaries()?.join("isobar"))
        .args(args)
        .env("ISOBAR_LAB", mesh.name())
        .current_dir(mesh.objects())
        .stdin(Stdio::null())
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    Ok((output.status.code().unwrap_or(-1), said))
}

#[test]
fn a_mesh_is_analysed_reported_and_looked_into() {
    run(async {
        let sample = MeshOptions {
            sample: Some(isobar_tests::samples().join("hello")),
            ..MeshOptions::default()
        };
        let mesh = Mesh::start_with(sample, &[("planted.yaml", &secretive())]).await?;
        mesh.settled("hello/httpbin", "enrolled").await?;
        analyses(&mesh).await?;
        reports(&mesh).await?;
        looks_into(&mesh).await?;
        mesh.down()
    });
}

async fn analyses(mesh: &Mesh) -> Result<()> {
    eventually("only the route without a waypoint is told", async || {
        let (code, said) = isobar(mesh, &["analyze"]).await?;
        ensure!(code == 0 && said.contains("ISO0403"), "{code}: {said}");
        ensure!(said.contains("0 errors, 1 warning"), "{said}");
        Ok(())
    })
    .await?;
    let strict = ["analyze", "--failure-threshold", "warning"];
    ensure!(isobar(mesh, &strict).await?.0 == 1);
    let not = [&strict[..], &["-S", "ISO0403=VirtualService hello/*"]].concat();
    ensure!(isobar(mesh, &not).await?.0 == 0);
    ensure!(
        isobar(mesh, &["analyze", "-n", "elsewhere"])
            .await?
            .1
            .contains("no findings")
    );
    mesh.apply(
        "broken.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {prots: []}\n",
    )?;
    eventually("an error is told", async || {
        let (code, said) = isobar(mesh, &["analyze", "-o", "json"]).await?;
        ensure!(code == 1, "{said}");
        let found: serde_json::Value = serde_json::from_str(&said)?;
        let first = &found[0];
        ensure!(
            first["code"] == "ISO0104" && first["field"] == "spec.prots",
            "{said}"
        );
        ensure!(first["page"] == "docs/findings.md#iso0104", "{said}");
        ensure!(
            first["object"]["name"] == "x" && first["line"] == 4,
            "{said}"
        );
        Ok(())
    })
    .await?;
    mesh.delete("broken.yaml")?;
    ensure!(isobar(mesh, &["analyze", "/nonexistent"]).await?.0 == 2);
    ensure!(isobar(mesh, &["analyze", "--nonsense"]).await?.0 == 2);
    Ok(())
}

async fn reports(mesh: &Mesh) -> Result<()> {
    let report = ["bug-report", "--file", "r.tar.gz"];
    let (code, said) = isobar(mesh, &report).await?;
    ensure!(
        code == 0 && said.contains("collecting: ztunnel of node-2"),
        "{said}"
    );
    ensure!(!said.contains("could not be had"), "{said}");
    ensure!(isobar(mesh, &report).await?.0 == 1, "written over");
    let file = mesh.objects().join("r.tar.gz");
    let folder = mesh.objects().join("unpacked");
    std::fs::create_dir(&folder)?;
    let tar = std::process::Command::new("tar")
        .arg("xzf")
        .arg(&file)
        .args(["--strip-components=1", "-C"])
        .arg(&folder)
        .status()?;
    ensure!(tar.success());
    for wanted in [
        "objects/Pod/hello/httpbin.json",
        "objects/Namespace/_cluster/hello.json",
        "control-plane/isobard/debug-syncz.json",
        "control-plane/isobard/metrics.txt",
        "ztunnel/node-1/config_dump.json",
        "ztunnel/node-2/metrics.txt",
        "logs/isobard.log",
        "logs/ztunnel-node-1.log",
        "findings.json",
        "versions.json",
    ] {
        let size = std::fs::metadata(folder.join(wanted)).with_context(|| wanted.to_owned())?;
        ensure!(size.len() > 2, "{wanted} is empty");
    }
    let kept = std::fs::read_to_string(folder.join("objects/Deployment/hello/holder.json"))?;
    ensure!(
        kept.contains("\"DB\"") && kept.contains("(left out)"),
        "{kept}"
    );
    for text in everything(&folder)? {
        ensure!(!text.contains(PLANTED), "it carries a secret");
        ensure!(
            !text.contains("PRIVATE KEY") && !text.contains("eyJhbGci"),
            "a key or a token"
        );
    }
    use std::os::unix::fs::PermissionsExt as _;
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o077 == 0);
    Ok(())
}

fn everything(folder: &std::path::Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            texts.extend(everything(&path)?);
        } else {
            texts.push(String::from_utf8_lossy(&std::fs::read(&path)?).into_owned());
        }
    }
    Ok(texts)
}

async fn looks_into(mesh: &Mesh) -> Result<()> {
    for (what, path, word) in [
        (&["control-plane"][..], "/debug/syncz", "ztunnel"),
        (&["ztunnel", "node-1"], "/config_dump", "hello"),
    ] {
        let mut child = tokio::process::Command::new(binaries()?.join("isobar"))
            .arg("dashboard")
            .args(what)
            .env("ISOBAR_LAB", mesh.name())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("its output")?;
        BufReader::new(out).read_line(&mut line).await?;
        let address = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("http://"));
        let address = address.with_context(|| line.clone())?;
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        ensure!(
            page.starts_with("HTTP/1.1 200") && page.contains(word),
            "{page}"
        );
        child.kill().await?;
    }
    let (code, json) = isobar(mesh, &["dashboard", "grafana", "traffic"]).await?;
    let value: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(code == 0 && value["panels"].is_array());
    Ok(())
}
