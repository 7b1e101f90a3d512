//! A tiny lab without a mesh, in real namespaces: the parts Kubernetes plays around one.
//!
//! This program is its own supervisor and its own workload, so it has a `main` instead of the usual
//! harness. `--list` and name filters work as usual.

mod running;
mod workload;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use isobar_lab::{LabConfig, LabError, LabRoot, Target};
use running::{Running, descriptors, eventually, host_traces, own_path};

type Case = (&'static str, fn() -> Result<()>);

const CASES: &[Case] = &[
    ("a_lab_plays_kubernetes", || block(a_lab_plays_kubernetes())),
    ("two_labs_and_a_crash", || block(two_labs_and_a_crash())),
    ("a_start_that_is_given_up", || {
        block(a_start_that_is_given_up())
    }),
    ("without_root", || block(without_root())),
];

fn main() -> ExitCode {
    if let Some(code) = isobar_lab::supervisor_main() {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", port, text] => done(workload::serve(port, text)),
        ["get", to] => done(workload::get(to).map(|text| print!("{text}"))),
        ["resolve", name] => done(workload::resolve(name)),
        ["hang", folder] => done(block(hang(Path::new(folder)))),
        ["rootless", folder] => done(block(rootless(Path::new(folder)))),
        _ => run_cases(&words),
    }
}

fn done(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn block(case: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(case)
}

fn run_cases(words: &[&str]) -> ExitCode {
    let filters: Vec<&&str> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let mut code = ExitCode::SUCCESS;
    for (name, case) in CASES {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(**filter)) {
            continue;
        }
        if words.contains(&"--list") {
            println!("{name}: test");
            continue;
        }
        let begun = Instant::now();
        match case() {
            Ok(()) => println!("test {name} ... ok ({:.1?})", begun.elapsed()),
            Err(error) => {
                println!("test {name} ... FAILED\n{error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn pod(name: &str, labels: &str, node: &str, text: &str) -> Result<String> {
    let program = own_path()?;
    Ok(format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {labels}\n  \
         annotations:\n    lab.isobar.dev/command: {program} serve 8080 {text}\nspec:\n  \
         nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: any/thing\n    \
         ports: [{{containerPort: 8080}}]\n    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n---\n"
    ))
}

const SERVICES: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{port: 8080}]
";

const DENY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {friend: 'yes'}}}]
";

async fn a_lab_plays_kubernetes() -> Result<()> {
    let (before, open) = (host_traces()?, descriptors()?);
    let pods = [
        pod("one", "{app: web}", "node-1", "one")?,
        pod("two", "{app: web}", "node-2", "two")?,
        pod("friend", "{friend: 'yes'}", "node-1", "friend")?,
        pod("stranger", "{}", "node-2", "stranger")?,
    ]
    .concat();
    let begun = Instant::now();
    let lab = Running::start("kube", &[("pods.yaml", &pods), ("services.yaml", SERVICES)]).await?;
    println!("up in {:.1?}", begun.elapsed());
    ensure!(lab.status.ready, "{:#?}", lab.status);
    pods_reach_each_other(&lab).await?;
    services_and_names(&lab).await?;
    policy_is_enforced(&lab).await?;
    commands_and_logs(&lab).await?;
    deployments_follow(&lab).await?;
    lab.end()?;
    let after = host_traces()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    ensure!(descriptors()? <= open, "descriptors are left open");
    Ok(())
}

async fn pods_reach_each_other(lab: &Running) -> Result<()> {
    for (from, to) in [
        ("one", "two"),
        ("two", "one"),
        ("one", "friend"),
        ("one", "one"),
    ] {
        let text = lab
            .call(from, &["get", &format!("{}:8080", lab.ip(to)?)])
            .await?;
        ensure!(
            text == format!("{to} saw {}\n", lab.ip(from)?),
            "{from} to {to}: {text}"
        );
    }
    let stream = lab
        .lab
        .dial(
            Target::node("node-1"),
            format!("{}:8080", lab.ip("one")?).parse()?,
            Duration::from_secs(2),
        )
        .await?;
    ensure!(stream.peer_addr()?.port() == 8080);
    Ok(())
}

async fn services_and_names(lab: &Running) -> Result<()> {
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let text = lab.call("stranger", &["get", "web:80"]).await?;
        seen.insert(text.split(' ').next().unwrap_or_default().to_owned());
    }
    ensure!(seen.len() == 2, "both answer: {seen:?}");
    // A pod behind the service reaches it too, itself included.
    for _ in 0..8 {
        lab.call("one", &["get", "web.shop:80"]).await?;
    }
    let names = [
        ("web", vec![lab.service("web")?]),
        ("web.shop.svc.cluster.local", vec![lab.service("web")?]),
        ("each", vec![lab.ip("one")?, lab.ip("two")?]),
    ];
    for (name, expected) in names {
        let text = lab.call("friend", &["resolve", name]).await?;
        let found: BTreeSet<_> = text.lines().map(str::to_owned).collect();
        ensure!(found == expected.into_iter().collect(), "{name}: {found:?}");
    }
    ensure!(
        lab.call("friend", &["resolve", "nobody.example"])
            .await
            .is_err()
    );
    Ok(())
}

async fn policy_is_enforced(lab: &Running) -> Result<()> {
    let to = format!("{}:8080", lab.ip("one")?);
    let limit = Duration::from_secs(1);
    let from = Target::pod("stranger");
    let mut early = lab.lab.dial(from, to.parse()?, limit).await?;
    lab.write("policy.yaml", DENY)?;
    eventually(|| async {
        let refused = lab.call("stranger", &["get", &to]).await.is_err();
        ensure!(refused, "a stranger is let in");
        Ok(())
    })
    .await?;
    lab.call("friend", &["get", &to]).await?;
    // A connection that was there before is cut off: what it sends does not arrive.
    early.set_read_timeout(Some(limit))?;
    early.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    ensure!(
        early.read(&mut [0; 8]).is_err(),
        "an old connection goes on"
    );
    // Probes come from the node and pass.
    ensure!(lab.lab.status().await?.ready, "probes are blocked");
    lab.remove("policy.yaml")?;
    eventually(|| async { lab.call("stranger", &["get", &to]).await.map(drop) }).await
}

async fn commands_and_logs(lab: &Running) -> Result<()> {
    let say = ["/bin/sh", "-c", "echo out; echo err >&2; hostname; exit 7"];
    let output = lab.lab.output(Target::pod("one"), &say).await?;
    ensure!(
        output.code == 7 && output.stdout == "out\none\n",
        "{output:?}"
    );
    ensure!(output.stderr == "err\n", "{output:?}");
    let missing = lab
        .lab
        .output(Target::pod("one"), &["no-such-program"])
        .await?;
    ensure!(missing.code == 127, "{missing:?}");
    let none = lab.lab.output(Target::pod("nobody"), &["true"]).await;
    ensure!(matches!(none, Err(LabError::Refused { .. })), "{none:?}");
    let wrong = lab.lab.output(Target::pod("nix/one"), &["true"]).await;
    let text = format!("{:?}", wrong.map_err(|error| error.to_string()));
    for words in [
        "in namespace nix",
        "but in shop",
        "isobar lab status --lab kube",
    ] {
        ensure!(text.contains(words), "no {words} in {text}");
    }
    let none = lab.lab.log_path("isobar-cni-node-9").await;
    let text = format!("{:?}", none.map_err(|error| error.to_string()));
    ensure!(text.contains("processes are supervisor"), "{text}");
    lab.lab.kill_pod("two").await?;
    eventually(|| async {
        let status = lab.lab.status().await?;
        let two = status
            .pods
            .iter()
            .find(|pod| pod.name == "two")
            .context("two is gone")?;
        ensure!(two.restarts == 1 && two.ready, "{two:?}");
        Ok(())
    })
    .await?;
    let log = lab.lab.log_path("one").await?;
    ensure!(log.exists(), "{log:?}");
    Ok(())
}

async fn deployments_follow(lab: &Running) -> Result<()> {
    let program = own_path()?;
    let deployment = |replicas: u32, text: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many, namespace: shop}}\nspec:\n  \
             replicas: {replicas}\n  selector: {{matchLabels: {{app: many}}}}\n  template:\n    metadata:\n      \
             labels: {{app: many}}\n      annotations: {{lab.isobar.dev/command: '{program} serve 8080 {text}'}}\n    \
             spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - {{name: c, image: any/thing, ports: [{{containerPort: 8080}}]}}\n"
        )
    };
    let expect = |count: usize, text: &'static str| async move {
        eventually(|| async {
            let status = lab.lab.status().await?;
            let many: Vec<_> = status
                .pods
                .iter()
                .filter(|p| p.name.starts_with("many-"))
                .collect();
            ensure!(
                many.len() == count && many.iter().all(|p| p.ready),
                "{many:#?}"
            );
            for pod in many {
                let ip = pod.ip.context("no address")?;
                let answer = lab.call("friend", &["get", &format!("{ip}:8080")]).await?;
                ensure!(answer.starts_with(text), "{answer}");
            }
            Ok(())
        })
        .await
    };
    for (replicas, text) in [(2, "first"), (3, "first"), (1, "second"), (0, "second")] {
        lab.write("many.yaml", &deployment(replicas, text))?;
        let text = if text == "first" { "first" } else { "second" };
        expect(usize::try_from(replicas)?, text)
            .await
            .with_context(|| format!("{replicas} of {text}"))?;
    }
    lab.call("friend", &["get", &format!("{}:8080", lab.ip("two")?)])
        .await?;
    Ok(())
}

async fn two_labs_and_a_crash() -> Result<()> {
    let before = host_traces()?;
    let stranger = "apiVersion: v1\nkind: Pod\nmetadata: {name: odd, namespace: shop}\nspec:\n  \
                    containers: [{name: c, image: acme/shop}]\n---\n";
    let pods = pod("one", "{app: web}", "node-1", "one")? + stranger;
    let one = Running::start(
        "first",
        &[("pods.yaml", &pods), ("services.yaml", SERVICES)],
    )
    .await?;
    let odd = one
        .status
        .pods
        .iter()
        .find(|pod| pod.name == "odd")
        .context("no pod")?;
    ensure!(
        !one.status.ready && odd.message.contains("lab.isobar.dev/command"),
        "{odd:?}"
    );
    let two = Running::start(
        "second",
        &[("pods.yaml", &pods), ("services.yaml", SERVICES)],
    )
    .await?;
    let text = one.call("one", &["get", "web.shop:80"]).await?;
    ensure!(text.starts_with("one saw"), "{text}");
    let labs = isobar_lab::list(&two.root)?;
    let pid = labs
        .first()
        .and_then(|lab| lab.pid)
        .context("not running")?;
    // A crash of the supervisor takes everything with it; only files are left, for `down`.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    eventually(|| async {
        ensure!(
            isobar_lab::list(&two.root)?.iter().all(|lab| !lab.running),
            "it lives on"
        );
        Ok(())
    })
    .await?;
    ensure!(matches!(
        two.lab.status().await,
        Err(LabError::NotRunning { .. })
    ));
    two.end()?;
    ensure!(
        one.lab.status().await?.pods.len() == 2,
        "the other lab is unharmed"
    );
    one.end()?;
    let after = host_traces()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

/// A pod that never becomes ready.
const NEVER: &str = "apiVersion: v1
kind: Pod
metadata:
  name: never
  namespace: shop
  annotations: {lab.isobar.dev/command: sleep 1000}
spec:
  containers: [{name: c, image: any/thing, readinessProbe: {tcpSocket: {port: 9}}}]
";

fn never(folder: &Path) -> Result<LabConfig> {
    std::fs::create_dir_all(folder.join("objects"))?;
    std::fs::write(folder.join("objects/never.yaml"), NEVER)?;
    let mut config = LabConfig::new("never", vec![folder.join("objects")])?;
    config.mesh = false;
    config.root = LabRoot::at(folder.join("lab"));
    Ok(config)
}

async fn hang(folder: &Path) -> Result<()> {
    isobar_lab::up(never(folder)?, |_| {}).await?;
    Ok(())
}

async fn a_start_that_is_given_up() -> Result<()> {
    let before = host_traces()?;
    let folder = tempfile::tempdir()?;
    let mut config = never(folder.path())?;
    let state = config.root.lab("never");
    // Not ready in time: the reason is told.
    config.ready_timeout = Duration::from_millis(300);
    let late = isobar_lab::up(config.clone(), |_| {}).await;
    let told = late
        .as_ref()
        .err()
        .map(ToString::to_string)
        .unwrap_or_default();
    ensure!(told.contains("pod shop/never is not ready"), "{late:?}");
    ensure!(!state.dir().exists(), "a late lab is left");
    // Nobody waits any more.
    config.ready_timeout = Duration::from_secs(60);
    let (seen, begun) = tokio::sync::oneshot::channel();
    let mut seen = Some(seen);
    tokio::select! {
        up = isobar_lab::up(config, |_| if let Some(seen) = seen.take() { let _ = seen.send(()); }) => {
            bail!("it became ready: {up:?}");
        }
        _ = begun => {}
    }
    ensure!(!state.dir().exists(), "a dropped start is left");
    // Whoever waited was killed.
    let mut caller = std::process::Command::new(own_path()?)
        .arg("hang")
        .arg(folder.path())
        .spawn()?;
    eventually(|| async {
        ensure!(state.socket().exists(), "it does not start");
        Ok(())
    })
    .await?;
    caller.kill()?;
    caller.wait()?;
    eventually(|| async {
        ensure!(!state.dir().exists(), "the start of a dead caller is left");
        Ok(())
    })
    .await?;
    eventually(|| async {
        let after = host_traces()?;
        let left: Vec<_> = after.difference(&before).collect();
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    })
    .await
}

/// Runs a small lab as a user without rights.
async fn without_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        // Then every other case was without root.
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    // The user must be able to start this program and to read what it is started with.
    let program = folder.path().join("lab-test");
    std::fs::copy(std::env::current_exe()?, &program)?;
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))
    };
    open(folder.path())?;
    open(&program)?;
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&program)
        .arg("rootless")
        .arg(folder.path())
        .env("TMPDIR", folder.path())
        .env("HOME", folder.path())
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no setpriv here");
            return Ok(());
        }
        output => output?,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("does not allow a lab") {
        println!("skipped: {errors}");
        return Ok(());
    }
    if !output.status.success() {
        bail!("{text}\n{errors}");
    }
    Ok(())
}

async fn rootless(_folder: &Path) -> Result<()> {
    let pods = pod("one", "{app: web}", "node-1", "one")? + &pod("two", "{}", "node-2", "two")?;
    let lab = Running::start("user", &[("pods.yaml", &pods), ("services.yaml", SERVICES)]).await?;
    let text = lab.call("two", &["get", "web:80"]).await?;
    ensure!(text == format!("one saw {}\n", lab.ip("two")?), "{text}");
    // A lab goes on when the program it was started with is built anew.
    std::fs::remove_file(own_path()?)?;
    let output = lab.lab.output(Target::pod("two"), &["hostname"]).await?;
    ensure!(output.stdout == "two\n", "{output:?}");
    lab.end()
}
