//! The `isobar` command as a user meets it, and what a lab leaves behind: nothing.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use isobar_tests::{Mesh, MeshOptions, Traces, eventually};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::fixture::run;

#[test]
fn a_lab_leaves_nothing_behind() {
    run(async {
        let sample = || MeshOptions {
            sample: Some(isobar_tests::samples().join("hello")),
            ..MeshOptions::default()
        };
        let before = Traces::now()?;
        let first = Mesh::start_with(sample(), &[]).await?;
        let second = Mesh::start_with(sample(), &[]).await?;
        for mesh in [&first, &second] {
            let reply = mesh
                .exec("hello/httpbin", &["curl", "-s", "http://svc-hello:8080"])
                .await?;
            ensure!(reply.stdout.starts_with("Hello server - v"), "{reply:?}");
        }
        what_the_tour_says_at_its_end(&first).await?;
        let reply = second
            .exec("hello/httpbin", &["curl", "-s", "http://svc-hello:8080"])
            .await?;
        ensure!(reply.code == 0, "one lab's end hurt the other: {reply:?}");

        // A crash: the supervisor is killed, then `down` cleans up.
        let labs = isobar_lab::list(&isobar_lab::LabRoot::from_env())?;
        let pid = labs
            .iter()
            .find(|l| l.name == second.name())
            .and_then(|l| l.pid)
            .expect("the lab runs");
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()?;
        ensure!(killed.success());
        second.down()?;
        eventually("nothing is left", async || Traces::now()?.same_as(&before)).await
    });
}

/// Types what the tour tells to try, down to taking the lab away; another lab runs beside it.
async fn what_the_tour_says_at_its_end(mesh: &Mesh) -> Result<()> {
    let deny = isobar_tests::samples().join("hello/lesson/deny-httpbin.yaml");
    mesh.apply_file(&deny, "deny.yaml")?;
    let steps =
        isobar_tests::tour::next_steps(mesh.name(), mesh.objects(), &isobar_tests::binaries()?);
    let path = &steps.first().expect("the first sets PATH").command;
    for step in &steps {
        // A file that was edited is in force a moment later.
        eventually(&step.command, async || {
            let typed = format!("{path}; {}", step.command);
            let output = tokio::process::Command::new("sh")
                .args(["-c", &typed])
                .env_remove("ISOBAR_LAB")
                .stdin(Stdio::null())
                .output()
                .await?;
            ensure!(output.status.success(), "{output:?}");
            Ok(())
        })
        .await?;
    }
    let labs = isobar_lab::list(&isobar_lab::LabRoot::from_env())?;
    ensure!(labs.iter().all(|lab| lab.name != mesh.name()), "{labs:?}");
    ensure!(!mesh.objects().exists(), "the objects are left");
    Ok(())
}

#[test]
fn status_and_dumps_tell_what_runs() {
    run(async {
        let mesh = Mesh::start_with(
            MeshOptions {
                sample: Some(isobar_tests::samples().join("bookinfo")),
                ..MeshOptions::default()
            },
            &[],
        )
        .await?;
        let page = mesh
            .exec(
                "bookinfo/productpage-v1",
                &["curl", "-s", "http://productpage:9080/productpage"],
            )
            .await?;
        ensure!(
            page.stdout.contains("<html") && page.stdout.contains("eview"),
            "{page:?}"
        );
        let apply = ["waypoint", "apply", "-n", "bookinfo", "--wait"];
        mesh.isobar(&[&apply[..], &["--service-account", "bookinfo-reviews"]].concat())
            .await?;
        eventually("every proxy is in step", async || {
            let status = mesh.isobar(&["status"]).await?;
            ensure!(
                !status.contains("ERROR") && !status.contains("STALE"),
                "{status}"
            );
            for word in ["NAME", "SYNCED", "ztunnel", "reviews", "node-1", "node-2"] {
                ensure!(status.contains(word), "no {word} in:\n{status}");
            }
            Ok(())
        })
        .await?;
        pages(&mesh).await?;
        mesh.isobar(&[
            "waypoint",
            "delete",
            "-n",
            "bookinfo",
            "bookinfo-reviews-waypoint",
        ])
        .await?;
        eventually("the page works without the waypoint", async || {
            let page = mesh
                .exec(
                    "bookinfo/productpage-v1",
                    &["curl", "-s", "http://reviews:9080/reviews/0"],
                )
                .await?;
            ensure!(page.code == 0 && page.stdout.contains("review"), "{page:?}");
            Ok(())
        })
        .await?;
        mesh.down()
    });
}

/// What the command shows of proxies and waypoints, in tables and as JSON.
async fn pages(mesh: &Mesh) -> Result<()> {
    let json: serde_json::Value =
        serde_json::from_str(&mesh.isobar(&["status", "-o", "json"]).await?)?;
    ensure!(json.is_array() || json.is_object());
    for what in ["workloads", "services", "policies", "certificates"] {
        let text = mesh
            .isobar(&["proxy-config", "ztunnel", "node-1", what])
            .await?;
        ensure!(
            text.lines()
                .next()
                .is_some_and(|l| l.contains("NAME") || l.contains("NAMESPACE")),
            "{what}: {text}"
        );
    }
    let text = mesh.isobar(&["ztunnel-config", "workloads"]).await?;
    let of_both = ["node-1", "node-2"].iter().all(|node| text.contains(node));
    let pages = text.matches("productpage-v1").count();
    ensure!(of_both && pages == 1, "{text}");
    let pod = mesh.pod("bookinfo/productpage-v1").await?.name;
    let text = mesh
        .isobar(&["zc", "certificates", &pod, "-n", "bookinfo"])
        .await?;
    ensure!(text.contains("/sa/bookinfo-productpage"), "{text}");
    let text = mesh.isobar(&["zc", "connections"]).await?;
    ensure!(text.starts_with("WORKLOAD"), "{text}");
    let list = mesh.isobar(&["waypoint", "list", "-n", "bookinfo"]).await?;
    ensure!(
        list.contains("reviews") && list.contains("bookinfo-reviews"),
        "{list}"
    );
    Ok(())
}

#[test]
fn mistakes_are_explained() {
    run(async {
        let isobar = isobar_tests::binaries()?.join("isobar");
        let run = |args: &[&str]| -> Result<(bool, String)> {
            let output = std::process::Command::new(&isobar).args(args).output()?;
            let text = [output.stdout, output.stderr].concat();
            Ok((
                output.status.success(),
                String::from_utf8_lossy(&text).into_owned(),
            ))
        };
        for args in [
            &["--help"][..],
            &["lab", "--help"],
            &["version"],
            &["completion", "bash"],
        ] {
            let (good, text) = run(args)?;
            ensure!(good && !text.is_empty(), "{args:?}: {text}");
        }
        for (args, words) in [
            (
                &["lab", "up", "-f", "/nonexistent"][..],
                &["/nonexistent"][..],
            ),
            (
                &["status", "--lab", "nowhere"],
                &["nowhere", "isobar lab up"],
            ),
            (&["waypiont"], &["waypoint"]),
        ] {
            let (good, text) = run(args)?;
            ensure!(!good, "{args:?} went well: {text}");
            ensure!(words.iter().all(|w| text.contains(w)), "{args:?}: {text}");
        }
        Ok(())
    });
}

#[test]
fn an_unknown_image_is_an_error_and_an_interrupted_start_leaves_nothing() {
    run(async {
        let isobar = isobar_tests::binaries()?.join("isobar");
        let folder = isobar_tests::scratch()?;
        let text =
            std::fs::read_to_string(isobar_tests::samples().join("hello/hello-server-v1.yaml"));
        std::fs::write(folder.path().join("pod.yaml"), text?)?;
        let unknown = "apiVersion: v1\nkind: Pod\nmetadata: {name: odd}\nspec:\n  containers:\n  - {name: c, image: acme/shop}\n";
        std::fs::write(folder.path().join("odd.yaml"), unknown)?;
        let name = format!("{}cli", isobar_tests::prefix());
        let lab = |args: &[&str]| {
            let mut command = tokio::process::Command::new(&isobar);
            command.arg("lab").args(args).stdin(Stdio::null());
            command
        };
        let path = folder.path().to_string_lossy().into_owned();
        let up = ["up", "-f", &path, "--name", &name];
        let output = lab(&up).output().await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{output:?}");
        for word in ["default/odd", "acme/shop", "lab.isobar.dev/command"] {
            ensure!(said.contains(word), "no {word} in {said}");
        }
        let down = lab(&["down", "--name", &name]).output().await?;
        ensure!(down.status.success(), "{down:?}");

        // Interrupted as soon as it says something.
        let mut started = lab(&up).stderr(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(started.stderr.take().context("a pipe")?).lines();
        ensure!(said.next_line().await?.is_some(), "it said nothing");
        let pid = started.id().context("it has ended")?.to_string();
        let sent = std::process::Command::new("kill")
            .args(["-INT", &pid])
            .status()?;
        ensure!(sent.success());
        ensure!(!started.wait().await?.success());
        let list = lab(&["list"]).output().await?;
        ensure!(
            !String::from_utf8_lossy(&list.stdout).contains(&name),
            "{list:?}"
        );
        Ok(())
    });
}

#[test]
fn no_pod_sees_the_keys_of_the_lab() {
    run(async {
        let mesh = Mesh::start_with(
            MeshOptions {
                sample: Some(isobar_tests::samples().join("hello")),
                ..MeshOptions::default()
            },
            &[],
        )
        .await?;
        let paths = mesh.lab().paths();
        let key = paths.control_plane().join("ca-key.pem");
        ensure!(
            key.is_file(),
            "{} is not where this test looks",
            key.display()
        );
        let all = paths.dir().to_string_lossy().into_owned();
        let seen = mesh
            .exec("hello/httpbin", &["find", &all, "-type", "f"])
            .await?;
        ensure!(seen.code == 0 && seen.stdout.is_empty(), "{seen:?}");
        // What is kept is enough to work with.
        let reply = mesh
            .exec("hello/httpbin", &["curl", "-s", "http://svc-hello:8080"])
            .await?;
        ensure!(reply.code == 0, "{reply:?}");
        mesh.down()
    });
}
