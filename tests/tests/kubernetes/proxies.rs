//! What proxies of a cluster know, asked for with the command. No kubelet is there: who is asked to
//! forward a port is a script, and the proxies' pages are the test's own.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use isobar_tests::{Answer, ApiServer, App, binaries};
use tokio::net::TcpListener;

use crate::run;

/// A node proxy that knows one workload of its own, and one that all know.
fn dump(own: &str) -> String {
    let workload = |name: &str| {
        format!(
            r#"{{"name":"{name}","namespace":"shop","workloadIps":["10.0.0.1"],"protocol":"HBONE"}}"#
        )
    };
    format!(
        r#"{{"workloads":[{},{}],"services":[],"policies":[],"certificates":[],"workloadState":{{}}}}"#,
        workload(own),
        workload("everybodys"),
    )
}

const WAYPOINT: &str = r#"{"proxy":{"kind":"waypoint"},"routes":[
    {"name":"shop/by-header","hosts":["cart"],"http":[{"action":"direct","to":404}],"tcp":[]}],
    "listeners":[{"name":"of-the-waypoint"}]}"#;

/// A page of this text, and its port.
async fn page(text: &str) -> Result<(App, u16)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    Ok((App::serve(text, listener, |_| Answer::Status(200)), port))
}

/// A pod that runs, as far as the API server knows.
async fn pod(server: &ApiServer, (namespace, name): (&str, &str), labels: &str) -> Result<()> {
    let node = if name.ends_with('2') {
        "node-2"
    } else {
        "node-1"
    };
    server
        .apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}, \
             spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}}}"
        ))
        .await?;
    let running = r#"{"status":{"phase":"Running"}}"#;
    let status = ["--subresource=status", "--type=merge", "-p", running];
    let patch = [&["patch", "pod", name, "-n", namespace], &status[..]].concat();
    server.kubectl(&patch).await?;
    Ok(())
}

/// Exit code and everything printed by the plugin.
async fn plugin(server: &ApiServer, programs: &Path, args: &[&str]) -> Result<(i32, String)> {
    let output = tokio::process::Command::new(programs.join("kubectl-isobar"))
        .args(args)
        .env("KUBECTL", programs.join("forwards"))
        .env("KUBECONFIG", server.admin()?)
        .env("ISOBAR_LAB_ROOT", programs.join("no-labs"))
        .stdin(Stdio::null())
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    Ok((output.status.code().unwrap_or(-1), said))
}

/// Puts the programs into a folder: the plugin, and what forwards ports to these pods.
fn install(programs: &Path, ports: &[(&str, u16)]) -> Result<()> {
    std::fs::create_dir(programs)?;
    let isobar = binaries()?.join("isobar");
    std::os::unix::fs::symlink(isobar, programs.join("kubectl-isobar"))?;
    let cases: String = ports
        .iter()
        .map(|(pod, port)| format!("*'-n {pod} :15000') port={port};;\n"))
        .collect();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n{cases}*) echo \"asked for $*\" >&2; exit 1;;\nesac\n\
         echo \"Forwarding from 127.0.0.1:$port -> 15000\"\nexec sleep 60\n"
    );
    std::fs::write(programs.join("forwards"), script)?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    Ok(std::fs::set_permissions(
        programs.join("forwards"),
        executable,
    )?)
}

#[test]
fn what_proxies_of_a_cluster_know() {
    run(async |server| {
        let programs = server.folder().join("programs");
        let (first, at_first) = page(&dump("first")).await?;
        let (second, at_second) = page(&dump("second")).await?;
        let (waypoint, at_waypoint) = page(WAYPOINT).await?;
        let ports = [
            ("istio-system pod/ztunnel-1", at_first),
            ("istio-system pod/ztunnel-2", at_second),
            ("shop pod/waypoint-1", at_waypoint),
        ];
        install(&programs, &ports)?;
        for namespace in ["istio-system", "shop"] {
            server.namespace(namespace).await?;
        }
        let ask = async |args: &[&str]| plugin(server, &programs, args).await;
        let (code, said) = ask(&["ztunnel-config", "workloads"]).await?;
        ensure!(code == 1 && said.contains("no node proxy runs"), "{said}");

        for name in ["ztunnel-1", "ztunnel-2"] {
            pod(server, ("istio-system", name), "{app: ztunnel}").await?;
        }
        let of_gateway = "{gateway.networking.k8s.io/gateway-name: waypoint}";
        pod(server, ("shop", "waypoint-1"), of_gateway).await?;
        pod(server, ("shop", "cart-2"), "{app: cart}").await?;
        let (code, said) = ask(&["zc", "w"]).await?;
        let once = |name: &str| said.matches(name).count() == 1;
        ensure!(
            code == 0 && once("first") && once("second") && once("everybodys"),
            "{said}"
        );
        for (line, there, absent) in [
            ("zc w --node node-1", "first", "second"),
            ("zc w cart-2 -n shop", "second", "first"),
            ("pc ztunnel node-2 workloads", "second", "first"),
            ("pc ztunnel shop/cart-2 workloads", "second", "first"),
            ("pc ztunnel ztunnel-1 workloads", "first", "second"),
            (
                "pc waypoint waypoint -n shop routes",
                "by-header",
                "of-the-waypoint",
            ),
            (
                "pc waypoint waypoint-1 listeners",
                "of-the-waypoint",
                "by-header",
            ),
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            let (code, said) = ask(&args).await?;
            let good = code == 0 && said.contains(there) && !said.contains(absent);
            ensure!(good, "{line}: {said}");
        }
        let (code, said) = ask(&["pc", "ztunnel", "nobody"]).await?;
        ensure!(code == 1 && said.contains("neither a node"), "{said}");
        let (code, said) = ask(&["pc", "waypoint", "cart-2", "-n", "shop"]).await?;
        ensure!(code == 1 && said.contains("no pod of waypoint"), "{said}");
        for app in [first, second, waypoint] {
            app.stop().await;
        }
        Ok(())
    });
}
