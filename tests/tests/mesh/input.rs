//! Bad input is named, changes nothing else, and keeps the last good version in force.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::{Mesh, eventually};

use crate::fixture::{ambient, client, hello, run};

/// What goes wrong, in which object and field, in a file of its own.
const WRONG: [(&str, &str, &[&str]); 6] = [
    (
        "broken.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: [broken\n",
        &["broken.yaml"],
    ),
    (
        "unknown-field.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: odd\n  namespace: shop\nspec:\n  host: svc-hello\n  subset:\n  - name: v1\n",
        &[
            "unknown-field.yaml",
            "DestinationRule",
            "odd",
            "spec.subset",
        ],
    ),
    (
        "unknown-kind.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServce\nmetadata:\n  name: typo\n  namespace: shop\n",
        &["unknown-kind.yaml", "VirtualServce", "typo", "kind"],
    ),
    (
        "negative.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: negative\n  namespace: shop\nspec:\n  hosts: [negative]\n  http:\n  - route:\n    - destination: {host: svc-hello-v1}\n      weight: -1\n    - destination: {host: svc-hello-v2}\n      weight: 101\n",
        &["negative.yaml", "VirtualService", "negative", "weight"],
    ),
    (
        "regex.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: pattern\n  namespace: shop\nspec:\n  hosts: [pattern]\n  http:\n  - match:\n    - uri: {regex: \"a(b\"}\n    route:\n    - destination: {host: svc-hello-v1}\n",
        &["regex.yaml", "VirtualService", "pattern", "regex"],
    ),
    (
        "zz-duplicate.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: second\n  namespace: shop\nspec:\n  hosts: [svc-hello]\n  http:\n  - route:\n    - destination: {host: svc-hello-v2}\n",
        &["zz-duplicate.yaml", "VirtualService", "second", "hosts"],
    ),
];

const GOOD: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: hello
  namespace: shop
spec:
  hosts:
  - svc-hello
  http:
  - route:
    - destination:
        host: svc-hello-v1
        port:
          number: 8080
";

fn validate(folder: &Path) -> Result<(Option<i32>, String)> {
    let isobard = isobar_tests::binaries()?.join("isobard");
    let output = Command::new(isobard)
        .arg("--validate")
        .arg(folder)
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn validation_names_file_object_and_field() {
    run(async {
        let folder = isobar_tests::scratch()?;
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text);
        write("ns.yaml", &ambient("shop"))?;
        write("hello.yaml", &hello("shop"))?;
        write("good.yaml", GOOD)?;
        let (code, text) = validate(folder.path())?;
        ensure!(code == Some(0), "good objects were refused: {text}");
        for (file, wrong, words) in WRONG {
            write(file, wrong)?;
            let (code, text) = validate(folder.path())?;
            ensure!(code == Some(1), "{file}: exit code {code:?}: {text}");
            let line = text
                .lines()
                .find(|l| words.iter().all(|w| l.contains(w)))
                .with_context(|| format!("{file}: no line has all of {words:?} in:\n{text}"))?;
            ensure!(line.len() < 500, "{line}");
            std::fs::remove_file(folder.path().join(file))?;
        }
        Ok(())
    });
}

#[test]
fn bad_objects_leave_the_rest_and_their_own_last_version_in_force() {
    run(async {
        let namespace = ambient("shop") + "    istio.io/use-waypoint: waypoint\n";
        let mesh = Mesh::start(&[
            ("ns.yaml", &namespace),
            ("client.yaml", &client("shop")),
            ("hello.yaml", &hello("shop")),
            ("good.yaml", GOOD),
        ])
        .await?;
        mesh.isobar(&["waypoint", "apply", "-n", "shop", "--wait"])
            .await?;
        let caller = mesh.caller("shop/client").await?;
        let to: SocketAddr = (mesh.service_ip("shop/svc-hello").await?, 8080).into();
        let goes_to = async |version: &str| {
            eventually(&format!("requests go to {version}"), async || {
                let reply = caller
                    .request(to, "GET", "svc-hello:8080", "/", &[])
                    .await?;
                ensure!(
                    reply.status == 200 && reply.body.contains(version),
                    "{reply:?}"
                );
                Ok(())
            })
            .await
        };
        goes_to("v1").await?;
        for (file, wrong, words) in WRONG {
            mesh.apply(file, wrong)?;
            eventually(&format!("{file} is reported"), async || {
                let findings = mesh.page(Target::Outer, 15014, "/debug/findings").await?;
                ensure!(words.iter().all(|w| findings.contains(w)), "{findings}");
                Ok(())
            })
            .await?;
            goes_to("v1").await?;
            mesh.delete(file)?;
        }
        // The object itself turns bad: its last good version stays; mended, the new one is in force.
        mesh.apply("good.yaml", &GOOD.replace("route:", "rout:"))?;
        eventually("the bad version is reported", async || {
            let findings = mesh.page(Target::Outer, 15014, "/debug/findings").await?;
            ensure!(findings.contains("rout"), "{findings}");
            Ok(())
        })
        .await?;
        goes_to("v1").await?;
        mesh.apply("good.yaml", &GOOD.replace("svc-hello-v1", "svc-hello-v2"))?;
        goes_to("v2").await?;
        mesh.down()
    });
}
