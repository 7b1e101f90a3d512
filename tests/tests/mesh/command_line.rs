//! The `isobar` command as a user meets it, and what a lab leaves behind: nothing.

use anyhow::{Result, ensure};
use isobar_tests::{Mesh, MeshOptions, Traces, eventually};

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
        first.down()?;
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
