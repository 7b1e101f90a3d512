//! What proxies of a cluster know, asked for with the command: kubectl, the API server and a kubelet
//! forward the ports, and the proxies' pages are the test's own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use isobar_tests::{Answer, ApiServer, App, binaries, kube_tools};
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

/// A page of this text, and where it is.
async fn page(text: &str) -> Result<(App, SocketAddr)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let at = listener.local_addr()?;
    Ok((App::serve(text, listener, |_| Answer::Status(200)), at))
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
        .env("KUBECTL", programs.join("kubectl"))
        .env("HOME", programs)
        .env("KUBECONFIG", server.admin()?)
        .env("ISOBAR_LAB_ROOT", programs.join("no-labs"))
        .stdin(Stdio::null())
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    Ok((output.status.code().unwrap_or(-1), said))
}

/// Puts the programs into a folder: the plugin and kubectl.
fn install(programs: &Path) -> Result<()> {
    std::fs::create_dir(programs)?;
    let isobar = binaries()?.join("isobar");
    std::os::unix::fs::symlink(isobar, programs.join("kubectl-isobar"))?;
    let tools = kube_tools()?;
    let script = format!("#!/bin/sh\nexec {} kubectl \"$@\"\n", tools.display());
    let kubectl = programs.join("kubectl");
    std::fs::write(&kubectl, script)?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    Ok(std::fs::set_permissions(kubectl, executable)?)
}

#[test]
fn what_proxies_of_a_cluster_know() {
    run(async |server| {
        let programs = server.folder().join("programs");
        let (first, at_first) = page(&dump("first")).await?;
        let (second, at_second) = page(&dump("second")).await?;
        let (waypoint, at_waypoint) = page(WAYPOINT).await?;
        let pods = [
            ("istio-system/ztunnel-1", at_first),
            ("istio-system/ztunnel-2", at_second),
            ("shop/waypoint-1", at_waypoint),
        ]
        .map(|(pod, at)| (pod.to_owned(), at));
        install(&programs)?;
        let kubelet = server.kubelet(&["node-1", "node-2"], &pods).await?;
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
        let names = ["first", "second", "everybodys"];
        let once = names.iter().all(|name| said.matches(name).count() == 1);
        ensure!(code == 0 && once, "{said}");
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
        // A pod of which nobody can forward a port is told as such.
        pod(server, ("istio-system", "ztunnel-gone-2"), "{app: ztunnel}").await?;
        let (code, said) = ask(&["pc", "ztunnel", "ztunnel-gone-2", "workloads"]).await?;
        ensure!(code == 1 && said.contains("ztunnel-gone-2"), "{said}");
        drop(kubelet);
        let (code, said) = ask(&["pc", "ztunnel", "node-1", "workloads"]).await?;
        ensure!(
            code == 1 && said.contains("istio-system/ztunnel-1"),
            "{said}"
        );
        for app in [first, second, waypoint] {
            app.stop().await;
        }
        Ok(())
    });
}
