mod invalid;
mod restart;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch::Receiver;

use super::*;
use crate::kinds::{Kind, ObjectRef};
use crate::object::ObjectHead;
use crate::overlay::OverlayWriter;
use crate::set::ObjectSet;

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

fn virtual_service(name: &str, host: &str, weight: i32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [{host}]\n  http:\n  - route:\n    - destination: {{host: {host}}}\n      weight: {weight}\n"
    )
}

/// A base, an overlay and a source that watches them.
struct Bench {
    dir: TempDir,
    receiver: Receiver<Arc<Published>>,
    _source: DirectorySource,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("base").join(name), text).unwrap();
        }
        let mut options = DirectoryOptions::new(
            vec![dir.path().join("base")],
            Some(dir.path().join("overlay")),
        );
        options.rescan = Duration::from_secs(1);
        let source = DirectorySource::open(options).unwrap();
        Self {
            receiver: source.subscribe(),
            dir,
            _source: source,
        }
    }

    fn base(&self, name: &str) -> PathBuf {
        self.dir.path().join("base").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.base(name), text).unwrap();
    }

    fn rename_into(&self, name: &str, text: &str) {
        let temporary = self.base(".temporary");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.base(name)).unwrap();
    }

    fn now(&self) -> Arc<Published> {
        self.receiver.borrow().clone()
    }

    /// Waits for a publication that fulfils `wanted`; `never` must hold for none on the way.
    async fn until_but_never(
        &mut self,
        wanted: impl Fn(&Published) -> bool,
        never: impl Fn(&Published) -> bool,
    ) -> Arc<Published> {
        let limit = Duration::from_secs(20);
        let found = tokio::time::timeout(limit, async {
            loop {
                let now = self.receiver.borrow_and_update().clone();
                assert!(!never(&now), "{:#?}", now.findings);
                if wanted(&now) {
                    return now;
                }
                self.receiver.changed().await.unwrap();
            }
        });
        found.await.unwrap_or_else(|_| panic!("{:#?}", self.now()))
    }

    async fn until(&mut self, wanted: impl Fn(&Published) -> bool) -> Arc<Published> {
        self.until_but_never(wanted, |_| false).await
    }
}

fn port(set: &ObjectSet, name: &str) -> Option<i32> {
    let service = set.services.get("default", name)?;
    Some(service.spec.as_ref()?.ports.as_ref()?.first()?.port)
}

fn weight(set: &ObjectSet, name: &str) -> Option<i32> {
    let object = set.virtual_services.get("default", name)?;
    Some(object.spec.http[0].route[0].weight)
}

fn errors(now: &Published) -> Vec<String> {
    let errors = now.findings.iter().filter(|finding| finding.is_error());
    errors.map(ToString::to_string).collect()
}

fn reference(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::Service, "default", name)
}

#[tokio::test]
async fn the_first_publication_is_complete_and_changes_follow() {
    let mut bench = Bench::new(&[
        ("a.yaml", &service("a", 80)),
        (".hidden.yaml", &service("hidden", 1)),
        ("a.yaml~", &service("backup", 1)),
        ("notes.txt", "not: [yaml"),
    ]);
    let first = bench.now();
    assert!(first.synced);
    assert_eq!(first.objects.len(), 1);
    assert!(first.findings.is_empty(), "{:?}", first.findings);

    fs::create_dir(bench.base("lesson")).unwrap();
    bench.write("lesson/a.yaml", &service("a", 1));
    bench.write("b.yml", &service("b", 81));
    let second = bench.until(|now| now.objects.len() == 2).await;
    assert!(second.objects.version > first.objects.version);
    let a = |now: &Published| Arc::clone(now.objects.services.get("default", "a").unwrap());
    assert!(Arc::ptr_eq(&a(&first), &a(&second)), "a did not change");
    let changes = second.objects.changes_since(&first.objects);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].object, reference("b"));

    bench.rename_into("a.yaml", &service("a", 8080));
    bench
        .until(|now| port(&now.objects, "a") == Some(8080))
        .await;
    fs::remove_file(bench.base("b.yml")).unwrap();
    bench.until(|now| now.objects.len() == 1).await;
}

/// Acceptance: each kind of bad input leaves the last good version of its object and the rest.
#[tokio::test]
async fn bad_input_leaves_the_last_good_version_and_the_rest() {
    let good = virtual_service("v", "svc", 1);
    for (bad, says) in [
        ("a: [1\n".to_owned(), "not valid YAML"),
        (
            good.replace("weight: 1", "wieght: 2"),
            "unknown field \"wieght\" (did you mean weight?)",
        ),
        (
            good.replace("kind: VirtualService", "kind: VirtualServce"),
            "unknown kind VirtualServce",
        ),
        (
            good.replace("weight: 1", "weight: -1"),
            "spec.http[0].route[0].weight: weight -1 is negative",
        ),
        (
            good.replace(
                "  - route:",
                "  - match: [{uri: {regex: \"(a\"}}]\n    route:",
            ),
            "spec.http[0].match[0].uri.regex: invalid regular expression",
        ),
        (
            good.replace("hosts: [svc]", "hosts: [other]"),
            "spec.hosts[0]: duplicate host: other.",
        ),
        (
            good.replace("metadata: {name: v}", "metadata: {}"),
            "metadata.name is missing",
        ),
    ] {
        let mut bench = Bench::new(&[
            (
                "s.yaml",
                &format!("{}---\n{}", service("svc", 80), service("other", 80)),
            ),
            ("o.yaml", &virtual_service("o", "other", 7)),
            ("v.yaml", &good),
        ]);
        assert_eq!(weight(&bench.now().objects, "v"), Some(1));
        bench.write("v.yaml", &bad);
        let lost = |now: &Published| weight(&now.objects, "v") != Some(1);
        let now = bench
            .until_but_never(|now| !errors(now).is_empty(), lost)
            .await;
        let told = errors(&now);
        assert_eq!(told.len(), 1, "{told:#?}");
        assert!(
            told[0].contains(says) && told[0].contains("v.yaml:"),
            "{told:#?}"
        );

        // What changes elsewhere goes in force meanwhile.
        bench.write("o.yaml", &virtual_service("o", "other", 8));
        bench
            .until_but_never(|now| weight(&now.objects, "o") == Some(8), lost)
            .await;
        bench.write("v.yaml", &virtual_service("v", "svc", 3));
        let healed = bench
            .until(|now| weight(&now.objects, "v") == Some(3))
            .await;
        assert!(errors(&healed).is_empty(), "{:?}", errors(&healed));
    }
}

#[tokio::test]
async fn a_broken_document_keeps_what_was_read_from_its_file() {
    let both = |second: &str| format!("{}---\n{second}", service("a", 80));
    let mut bench = Bench::new(&[("x.yaml", &both(&service("b", 81)))]);
    let broken = both("b: [").replace("port: 80", "port: 90");
    bench.write("x.yaml", &broken);
    let now = bench
        .until_but_never(
            |now| port(&now.objects, "a") == Some(90),
            |now| port(&now.objects, "b") != Some(81),
        )
        .await;
    assert_eq!(errors(&now).len(), 1);
    bench.write("x.yaml", &service("a", 91));
    bench.until(|now| now.objects.len() == 1).await;
}

#[tokio::test]
async fn a_half_written_file_drops_nothing() {
    let whole = format!("{}---\n{}", service("a", 80), service("b", 81));
    let mut bench = Bench::new(&[("x.yaml", &whole), ("other.yaml", &service("other", 1))]);
    let lost = |now: &Published| port(&now.objects, "b").is_none();
    // Emptied, then written in two parts, with the file open all the time.
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(bench.base("x.yaml"))
        .unwrap();
    bench.write("other.yaml", &service("other", 2));
    bench
        .until_but_never(|now| port(&now.objects, "other") == Some(2), lost)
        .await;
    file.write_all(service("a", 82).as_bytes()).unwrap();
    bench.write("other.yaml", &service("other", 3));
    bench
        .until_but_never(
            |now| port(&now.objects, "other") == Some(3),
            |now| {
                // Long patience may end before the second part comes; only then `b` may be gone.
                port(&now.objects, "a").is_none()
            },
        )
        .await;
    file.write_all(format!("---\n{}", service("b", 83)).as_bytes())
        .unwrap();
    drop(file);
    bench.until(|now| port(&now.objects, "b") == Some(83)).await;
}

#[tokio::test]
async fn an_emptied_file_removes_its_objects_in_the_end() {
    let mut bench = Bench::new(&[("x.yaml", &service("a", 80))]);
    bench.write("x.yaml", "");
    bench.until(|now| now.objects.is_empty()).await;
}

#[tokio::test]
async fn a_renamed_file_is_no_duplicate_and_no_removal() {
    let mut bench = Bench::new(&[("x.yaml", &service("a", 80))]);
    fs::rename(bench.base("x.yaml"), bench.base("b.yaml")).unwrap();
    bench
        .until_but_never(
            |now| {
                let held = now.objects.services.get("default", "a");
                held.is_some_and(|held| held.origin.file.ends_with("b.yaml"))
            },
            |now| now.objects.is_empty() || !now.findings.is_empty(),
        )
        .await;
}

#[cfg(unix)]
#[tokio::test]
async fn mounted_files_are_swapped_behind_a_link() {
    use std::os::unix::fs::symlink;
    let mut bench = Bench::new(&[]);
    for (version, port) in [("..1", 80), ("..2", 81)] {
        fs::create_dir(bench.base(version)).unwrap();
        bench.write(&format!("{version}/x.yaml"), &service("a", port));
    }
    symlink("..1", bench.base("..data")).unwrap();
    symlink("..data/x.yaml", bench.base("x.yaml")).unwrap();
    bench.until(|now| port(&now.objects, "a") == Some(80)).await;
    symlink("..2", bench.base("..data_tmp")).unwrap();
    fs::rename(bench.base("..data_tmp"), bench.base("..data")).unwrap();
    bench
        .until_but_never(
            |now| port(&now.objects, "a") == Some(81),
            |now| now.objects.is_empty(),
        )
        .await;
}

#[tokio::test]
async fn a_directory_that_comes_late_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = DirectoryOptions::new(vec![dir.path().join("late")], None);
    options.rescan = Duration::from_millis(100);
    let source = DirectorySource::open(options).unwrap();
    let mut receiver = source.subscribe();
    assert_eq!(errors(&receiver.borrow_and_update().clone()).len(), 1);
    fs::create_dir(dir.path().join("late")).unwrap();
    fs::write(dir.path().join("late/a.yaml"), service("a", 80)).unwrap();
    let found = receiver.wait_for(|now| now.objects.len() == 1 && now.findings.is_empty());
    tokio::time::timeout(Duration::from_secs(20), found)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_first_of_two_definitions_counts_and_keeps_counting() {
    let mut bench = Bench::new(&[("b.yaml", &service("a", 80)), ("c.yaml", &service("a", 81))]);
    let now = bench.now();
    assert_eq!(port(&now.objects, "a"), Some(80));
    let told = errors(&now);
    assert!(
        told.len() == 1 && told[0].contains("c.yaml:3: Service default/a: metadata.name"),
        "{told:?}"
    );
    bench.write("a.yaml", &service("a", 79));
    let now = bench.until(|now| errors(now).len() == 2).await;
    assert_eq!(
        port(&now.objects, "a"),
        Some(80),
        "who holds the name keeps it"
    );
}

#[tokio::test]
async fn overlays_merge_and_patches_need_their_object() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 80))]);
    let lab = OverlayWriter::new(bench.dir.path().join("overlay/kubelet")).unwrap();
    let agent = OverlayWriter::new(bench.dir.path().join("overlay/node-1")).unwrap();
    lab.merge(
        &reference("a"),
        &json!({"spec": {"clusterIP": "10.96.0.1"}}),
    )
    .unwrap();
    lab.merge(
        &reference("gone"),
        &json!({"spec": {"clusterIP": "10.96.0.2"}}),
    )
    .unwrap();
    agent
        .merge(
            &reference("a"),
            &json!({"metadata": {"annotations": {"x": "1", "y": "2"}}}),
        )
        .unwrap();
    agent
        .merge(
            &reference("a"),
            &json!({"metadata": {"annotations": {"x": null}}}),
        )
        .unwrap();
    let made = ObjectSet::of([crate::read_value(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "made"},
        "spec": {"ports": [{"port": 1}]}}))
    .0
    .unwrap()]);
    let made = made.services.get("default", "made").unwrap();
    lab.put(&made.object.clone().into()).unwrap();
    let now = bench
        .until(|now| {
            let a = now.objects.services.get("default", "a");
            a.is_some_and(|a| a.annotation("y") == Some("2"))
                && now.objects.services.get("default", "made").is_some()
        })
        .await;
    let a = now.objects.services.get("default", "a").unwrap();
    assert_eq!(a.annotation("x"), None);
    assert_eq!(
        a.spec.as_ref().unwrap().cluster_ip.as_deref(),
        Some("10.96.0.1")
    );
    assert_eq!(now.objects.len(), 2);
    assert!(now.findings.is_empty(), "{:?}", now.findings);

    lab.remove(&reference("made")).unwrap();
    agent.remove(&reference("a")).unwrap();
    let now = bench
        .until(|now| now.objects.len() == 1 && now.findings.is_empty())
        .await;
    let a = now.objects.services.get("default", "a").unwrap();
    assert!(a.annotations().is_empty());
}

#[tokio::test]
async fn bad_bases_and_bad_overlays_are_told_apart() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 80))]);
    let lab = OverlayWriter::new(bench.dir.path().join("overlay/kubelet")).unwrap();
    let agent = OverlayWriter::new(bench.dir.path().join("overlay/node-1")).unwrap();
    lab.merge(
        &reference("a"),
        &json!({"spec": {"clusterIP": "10.96.0.1"}}),
    )
    .unwrap();
    // A bad base keeps its last good version while overlays go on.
    bench.write("a.yaml", &service("a", 0));
    agent
        .merge(
            &reference("a"),
            &json!({"metadata": {"annotations": {"z": "3"}}}),
        )
        .unwrap();
    let now = bench
        .until(|now| {
            let a = now.objects.services.get("default", "a").unwrap();
            a.annotation("z") == Some("3") && !errors(now).is_empty()
        })
        .await;
    assert_eq!(port(&now.objects, "a"), Some(80));

    // A bad overlay is blamed by itself and harms nobody else.
    bench.write("a.yaml", &service("a", 90));
    agent
        .merge(&reference("a"), &json!({"spec": {"clusterIP": "nonsense"}}))
        .unwrap();
    let now = bench
        .until(|now| port(&now.objects, "a") == Some(90) && !errors(now).is_empty())
        .await;
    let told = errors(&now);
    assert!(
        told[0].contains("node-1") && told[0].contains("spec.clusterIP"),
        "{told:?}"
    );
    let a = now.objects.services.get("default", "a").unwrap();
    assert_eq!(
        a.spec.as_ref().unwrap().cluster_ip.as_deref(),
        Some("10.96.0.1")
    );
    assert_eq!(a.annotation("z"), Some("3"), "its last good version stays");
}

#[test]
fn directories_inside_are_read_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("inside")).unwrap();
    fs::write(dir.path().join("inside/a.yaml"), service("a", 80)).unwrap();
    let mut options = DirectoryOptions::new(vec![dir.path().to_owned()], None);
    let flat = load(&options);
    assert!(flat.objects.is_empty());
    assert_eq!(flat.findings.len(), 1, "{:?}", flat.findings);
    assert!(!flat.findings[0].is_error());
    options.recursive = true;
    let deep = load(&options);
    assert_eq!((deep.objects.len(), deep.findings.len()), (1, 0));
}

#[test]
fn offline_validation_reads_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("s.yaml", &service("svc", 80));
    write("v.yaml", &virtual_service("v", "svc", 1));
    assert_eq!(validate_dir(&[dir.path().to_owned()]), []);
    write("w.yaml", &virtual_service("w", "svc", 1));
    write("x.yaml", "a: [");
    let found = validate_dir(&[dir.path().to_owned()]);
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("w.yaml:5: VirtualService default/w: spec.hosts[0]: duplicate host"),
        "{told:?}"
    );
    assert!(told[1].contains("x.yaml"), "{told:?}");
    assert_eq!(
        validate_dir(&[Path::new("/nowhere/at/all").to_owned()]).len(),
        1
    );
    assert_eq!(validate_dir(&[dir.path().join("s.yaml")]), []);
}

#[test]
fn the_samples_are_valid() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/samples");
    for sample in fs::read_dir(samples).unwrap().flatten() {
        assert_eq!(
            validate_dir(&[sample.path()]),
            [],
            "{}",
            sample.path().display()
        );
        // The steps of a lesson replace each other, so each stands for itself.
        for step in fs::read_dir(sample.path().join("lesson"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let found = validate_dir(&[step.path()]);
            assert!(!found.iter().any(Finding::is_error), "{found:#?}");
        }
    }
}

#[tokio::test]
async fn a_source_ends_with_its_life_and_leaves_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    let options = DirectoryOptions::new(vec![dir.path().to_owned()], None);
    let source = Box::new(DirectorySource::open(options).unwrap());
    let mut receiver = source.subscribe();
    let owner = isobar_runtime::LifetimeOwner::new();
    let run = source.run(owner.lifetime());
    owner.stop();
    run.await;
    assert!(
        receiver.changed().await.is_err(),
        "the sender is gone with the thread"
    );
}

#[test]
fn an_overlay_takes_objects_with_long_names() {
    let dir = tempfile::tempdir().unwrap();
    let writer = OverlayWriter::new(dir.path()).unwrap();
    let names = ["x", "y"].map(|end| "a".repeat(252) + end);
    for name in &names {
        let pod = ObjectRef::new(Kind::Pod, "shop", name);
        let patch = json!({"metadata": {"annotations": {"a": name}}});
        writer.merge(&pod, &patch).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    writer
        .remove(&ObjectRef::new(Kind::Pod, "shop", &names[0]))
        .unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
