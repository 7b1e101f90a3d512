//! The images of the mesh, built by the commands of the documentation as they stand there, and started:
//! `make test-images`.
//!
//! It takes podman, half an hour, and room on the disk while it runs (`store`), of which nothing stays unless
//! `ISOBAR_IMAGES_KEEP` names a folder. What a registry would give is made on this machine (`bases`), so no
//! registry is asked. Programs are compiled once: the files for images have their first stage in common.

mod bases;
mod podman;
mod store;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use isobar_tests::page::{IMAGES, Page, Step};
use isobar_tests::{Mesh, MeshOptions, eventually, samples};
use podman::Podman;
use store::Store;
use tokio::signal::unix::{SignalKind, signal};

/// What is in an image besides its bill of materials.
struct Expected {
    /// Its name, the last part of the tag.
    name: &'static str,
    /// Its programs, all in `/usr/local/bin`; the first one is started.
    programs: &'static [&'static str],
    user: &'static str,
    /// Files that are not its programs; `None` where it is a whole system.
    others: Option<&'static [&'static str]>,
}

const IMAGES_OF_THE_MESH: [Expected; 4] = [
    Expected {
        name: "isobard",
        programs: &["isobard"],
        user: "1337:1337",
        others: Some(&[]),
    },
    Expected {
        name: "ztunnel",
        programs: &["ztunnel"],
        user: "0:1337",
        others: Some(&[]),
    },
    Expected {
        name: "isobar-cni",
        programs: &["isobar-cni", "isobar-cni-plugin"],
        user: "0:0",
        others: None,
    },
    Expected {
        name: "waypoint",
        programs: &["waypoint"],
        user: "1337:1337",
        others: Some(&["etc/ssl/certs/ca-certificates.crt"]),
    },
];

/// Where the sources are: here, or a clone of what is to be released.
fn sources() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("ISOBAR_IMAGES_FROM").map_or(here, PathBuf::from)
}

/// Commands of all pages that this test has to run.
fn commands() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sources().join("docs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "md") {
            let page = Page::read(&std::fs::read_to_string(&path)?);
            let page = page.with_context(|| path.display().to_string())?;
            let blocks = page.elsewhere.into_iter().filter(|one| one.by == IMAGES);
            for step in blocks.flat_map(|block| block.steps) {
                if let Step::Command { command, .. } = step {
                    found.push(command);
                }
            }
        }
    }
    ensure!(!found.is_empty(), "no page says how images are built");
    Ok(found)
}

/// The name that a command gives to what it builds.
fn tag(command: &str) -> Result<&str> {
    let mut words = command.split_whitespace();
    words.find(|word| *word == "-t");
    words.next().with_context(|| format!("no -t in {command}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_of_the_pages_are_built_and_start() -> Result<()> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/images");
    let keep = std::env::var_os("ISOBAR_IMAGES_KEEP").map(PathBuf::from);
    let store = Store::open(keep.as_ref().unwrap_or(&own), keep.is_some())?;
    let podman = Podman::new(store.folder())?;
    let programs = tempfile::tempdir_in(store.folder())?;
    let folder = programs.path().to_owned();
    let built = tokio::task::spawn_blocking(move || images(&podman, &folder));
    let all = async {
        built.await??;
        carries_calls(programs.path()).await
    };
    tokio::select! {
        done = all => done,
        // Its store ends what runs there, when it is dropped.
        name = told_to_end() => bail!("ended by {}", name?),
    }
}

/// The signal that wants the test to end.
async fn told_to_end() -> Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    })
}

/// Builds the images, looks into them, starts them, and copies their programs into a folder.
fn images(podman: &Podman, programs: &Path) -> Result<()> {
    bases::make(podman, &sources())?;
    let mut built = Vec::new();
    for command in commands()? {
        let began = Instant::now();
        podman.follow(&command, &sources())?;
        println!("{command}: {:.0} s", began.elapsed().as_secs_f64());
        built.push(tag(&command)?.to_owned());
    }
    for expected in &IMAGES_OF_THE_MESH {
        let is_it = |tag: &&String| tag.contains(&format!("/{}:", expected.name));
        let tag = built.iter().find(is_it);
        let tag = tag.with_context(|| format!("no page builds {}", expected.name))?;
        let size = holds(podman, tag, expected)?;
        starts(podman, tag, expected)?;
        podman.copy(tag, "usr/local/bin", expected.programs, programs)?;
        println!("{tag}: {:.1} MB", size as f64 / 1e6);
    }
    ensure!(built.len() == IMAGES_OF_THE_MESH.len(), "{built:?}");
    is_ready(podman, built.iter().find(|tag| tag.contains("isobard")))?;
    is_the_same_again(podman)
}

/// What is in it and how it is to be started; returns its size in bytes.
fn holds(podman: &Podman, tag: &str, expected: &Expected) -> Result<u64> {
    let about = podman.inspect(tag)?;
    let config = &about["Config"];
    let entry = format!("/usr/local/bin/{}", expected.programs[0]);
    ensure!(config["User"] == expected.user, "{config}");
    ensure!(
        config["Entrypoint"] == serde_json::json!([entry]),
        "{config}"
    );
    let title = &config["Labels"]["org.opencontainers.image.title"];
    ensure!(title == expected.name, "{config}");
    let files = podman.files(tag)?;
    let bill = format!("usr/share/sbom/{}.cdx.json", expected.name);
    let programs = expected.programs.iter();
    let mut wanted: Vec<String> = programs.map(|p| format!("usr/local/bin/{p}")).collect();
    wanted.push(bill.clone());
    wanted.extend(
        expected
            .others
            .into_iter()
            .flatten()
            .map(|&file| file.to_owned()),
    );
    for file in &wanted {
        ensure!(files.contains(file), "{tag} has no {file}");
    }
    if expected.others.is_some() {
        let more: Vec<&String> = files.iter().filter(|file| !wanted.contains(file)).collect();
        ensure!(more.is_empty(), "{tag} has {more:?} besides");
    }
    let bill: serde_json::Value = serde_json::from_slice(&podman.read(tag, &bill)?)?;
    let parts = bill["components"].as_array().map_or(0, Vec::len);
    ensure!(
        parts > 20,
        "the bill of materials of {tag} has {parts} parts"
    );
    about["Size"].as_u64().context("a size")
}

/// Every program says who it is with no right at all, on a root that it cannot write to.
fn starts(podman: &Podman, tag: &str, expected: &Expected) -> Result<()> {
    for program in expected.programs {
        let path = format!("--entrypoint=/usr/local/bin/{program}");
        let said = podman.run(&[&path], tag, &["--version"])?;
        ensure!(said.contains("0.1.0"), "{program}: {said}");
        if *program == expected.programs[0] {
            let said = podman.run(&[], tag, &["--help"])?;
            ensure!(said.contains(program), "{said}");
        }
    }
    if expected.others.is_none() {
        for tool in ["nft", "iptables", "ip6tables"] {
            podman.run(&[&format!("--entrypoint={tool}")], tag, &["--version"])?;
        }
        return Ok(());
    }
    match podman.run(&["--entrypoint=/bin/sh"], tag, &["-c", "true"]) {
        Ok(_) => bail!("{tag} has a shell"),
        Err(_) => Ok(()),
    }
}

/// The control plane, as its image starts it, reads objects and says that it is ready.
fn is_ready(podman: &Podman, tag: Option<&String>) -> Result<()> {
    let tag = tag.context("no image of the control plane")?;
    let objects = std::fs::canonicalize(samples().join("hello"))?;
    let objects = format!("--volume={}:/objects:ro", objects.display());
    // Nobody asks it for certificates here, so it knows nobody's tokens.
    let keys = podman.folder().join("keys.json");
    std::fs::write(&keys, r#"{"keys":[]}"#)?;
    let keys = format!("--volume={}:/keys.json:ro", keys.display());
    let state = "--tmpfs=/state:rw,mode=1777";
    let id = podman.start(
        &[&objects, &keys, state],
        tag,
        &[
            "--objects=/objects",
            "--overlay=/state/overlay",
            "--state-dir=/state",
            "--token-keys=/keys.json",
            "--health=127.0.0.1:8080",
        ],
    )?;
    let ready = podman.ask(&id, "http://127.0.0.1:8080/ready");
    let log = podman.end(&id);
    ready.with_context(|| format!("{tag}: {log}"))
}

/// The last stage of every image, made anew from the same compiled programs, gives the same bytes.
fn is_the_same_again(podman: &Podman) -> Result<()> {
    for expected in &IMAGES_OF_THE_MESH {
        // The node agent's has packages, of which each installation writes logs with times.
        if expected.others.is_none() {
            continue;
        }
        let file = sources().join(format!(
            "manifests/containers/{}.Containerfile",
            expected.name
        ));
        let text = std::fs::read_to_string(&file)?;
        let (first, last) = text
            .split_once("\nFROM scratch\n")
            .context("a last stage")?;
        let compiled = "localhost/compiled:latest";
        let folder = tempfile::tempdir()?;
        let write = |name: &str, text: String| -> Result<String> {
            let path = folder.path().join(name);
            std::fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let first = write("first", format!("{first}\n"))?;
        podman.build(&["-f", &first, "-t", compiled], &sources())?;
        let last = write(
            "last",
            format!("FROM {compiled} AS build\nFROM scratch\n{last}"),
        )?;
        let mut digests = Vec::new();
        for tag in ["localhost/one", "localhost/two"] {
            let args = ["-f", &last, "-t", tag, "--no-cache", "--timestamp", "0"];
            podman.build(&args, folder.path())?;
            digests.push(podman.inspect(tag)?["Digest"].clone());
        }
        ensure!(digests[0] == digests[1], "{}: {digests:?}", expected.name);
        println!("{}: {} again", expected.name, digests[0]);
    }
    Ok(())
}

const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: hello}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-that, namespace: hello}
spec:
  targetRefs: [{group: '', kind: Service, name: svc-hello}]
  action: DENY
  rules: [{to: [{operation: {paths: [/denied]}}]}]
";

/// The programs of the images, as they are, are a mesh: a call goes through tunnels and a waypoint.
async fn carries_calls(folder: &Path) -> Result<()> {
    let programs = ["isobard", "isobar-cni", "ztunnel", "waypoint"];
    let options = MeshOptions {
        sample: Some(samples().join("hello")),
        programs: programs
            .map(|name| (name.to_owned(), folder.join(name)))
            .into(),
        ..MeshOptions::default()
    };
    let service = std::fs::read_to_string(samples().join("hello/svc-hello.yaml"))?;
    let mesh = Mesh::start_with(options, &[("waypoint.yaml", WAYPOINT)]).await?;
    let label = "labels:\n    istio.io/use-waypoint: waypoint\n";
    let bound = service.replacen("labels:\n", label, 1);
    ensure!(bound != service, "{service}");
    mesh.apply("svc-hello.yaml", &bound)?;
    for (path, wanted) in [("/", "200"), ("/denied", "403")] {
        let url = format!("http://svc-hello:8080{path}");
        let curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", &url];
        eventually(&format!("{path} is answered with {wanted}"), async || {
            let pod = isobar_lab::Target::pod("hello/httpbin");
            let output = mesh.lab().output(pod, &curl).await?;
            ensure!(output.stdout == wanted, "{output:?}");
            Ok(())
        })
        .await?;
    }
    mesh.down()
}
