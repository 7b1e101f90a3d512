//! The program as a plugin of the real kubectl, and its report about a cluster.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use isobar_tests::{ApiServer, binaries, kube_tools};

use crate::run;

/// Exit code and everything printed.
async fn kubectl(server: &ApiServer, programs: &Path, args: &[&str]) -> Result<(i32, String)> {
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let output = tokio::process::Command::new(programs.join("kubectl"))
        .args(args)
        .env("PATH", path)
        .env("KUBECONFIG", server.admin()?)
        .env("HOME", programs)
        .env_remove("ISOBAR_LAB")
        .current_dir(programs)
        .stdin(Stdio::null())
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    Ok((output.status.code().unwrap_or(-1), said))
}

#[test]
fn kubectl_finds_it_and_it_speaks_of_itself_so() {
    run(async |server| {
        let programs = server.folder().join("programs");
        std::fs::create_dir(&programs)?;
        let script = format!(
            "#!/bin/sh\nexec {} kubectl \"$@\"\n",
            kube_tools()?.display()
        );
        std::fs::write(programs.join("kubectl"), script)?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(programs.join("kubectl"), executable)?;
        let isobar = binaries()?.join("isobar");
        std::os::unix::fs::symlink(isobar, programs.join("kubectl-isobar"))?;
        let plugins = kubectl(server, &programs, &["plugin", "list"]).await?;
        ensure!(plugins.1.contains("kubectl-isobar"), "{plugins:?}");
        let (code, help) = kubectl(server, &programs, &["isobar", "--help"]).await?;
        ensure!(
            code == 0 && help.contains("Usage: kubectl isobar"),
            "{help}"
        );
        ensure!(help.contains("  kubectl isobar status"), "{help}");
        let (code, help) = kubectl(server, &programs, &["isobar", "waypiont"]).await?;
        ensure!(
            code == 2 && help.contains("Usage: kubectl isobar"),
            "{help}"
        );

        // It is about kubectl's cluster, without a flag that says so.
        let (code, said) = kubectl(server, &programs, &["isobar", "waypoint", "list"]).await?;
        ensure!(code == 0 && !said.contains("lab"), "{said}");
        let (code, said) = kubectl(server, &programs, &["isobar", "status"]).await?;
        ensure!(
            code == 1 && said.contains("no control plane runs"),
            "{said}"
        );
        let (code, said) = kubectl(server, &programs, &["isobar", "analyze"]).await?;
        ensure!(code == 0 && said.contains("ISO0407"), "{said}");
        reports(server, &programs).await?;
        server.pause();
        let (code, said) = kubectl(server, &programs, &["isobar", "analyze"]).await?;
        ensure!(code == 2 && said.contains("API server"), "{said}");
        Ok(())
    });
}

/// Nothing of the mesh runs: the report says what it could not get, and has the rest.
async fn reports(server: &ApiServer, programs: &Path) -> Result<()> {
    server
        .apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
        .await?;
    server
        .apply(
            "{apiVersion: v1, kind: Secret, metadata: {name: db, namespace: shop}, stringData: {k: planted-secret}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop},
 spec: {containers: [{name: c, image: i, env: [{name: K, value: planted-secret}]}]}}",
        )
        .await?;
    let report = [
        "isobar",
        "bug-report",
        "--file",
        "r.tar.gz",
        "--timeout",
        "5",
    ];
    let (code, said) = kubectl(server, programs, &report).await?;
    ensure!(code == 0 && said.contains("could not be had"), "{said}");
    ensure!(
        said.contains("pods with label app=ztunnel: none runs"),
        "{said}"
    );
    let list = tokio::process::Command::new("sh")
        .args([
            "-c",
            "tar tzf r.tar.gz; tar xzOf r.tar.gz | grep -c planted-secret",
        ])
        .current_dir(programs)
        .output()
        .await?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    ensure!(list.contains("objects/Pod/shop/a.json"), "{list}");
    ensure!(list.trim_end().ends_with("\n0"), "{list}");
    Ok(())
}
