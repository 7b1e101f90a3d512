//! What a restart finds and keeps.

use super::*;

/// A base and a record; each life is a source that is opened, and ends without warning.
struct Lives(TempDir);

impl Lives {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        Self(dir)
    }

    fn record(&self) -> PathBuf {
        self.0.path().join("state/good.json")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join("base").join(name), text).unwrap();
    }

    fn open(&self) -> (DirectorySource, Receiver<Arc<Published>>) {
        let mut options = DirectoryOptions::new(vec![self.0.path().join("base")], None);
        options.last_good = Some(self.record());
        options.rescan = Duration::from_millis(200);
        let source = DirectorySource::open(options).unwrap();
        let receiver = source.subscribe();
        (source, receiver)
    }

    /// What a life says first.
    fn first(&self) -> Arc<Published> {
        self.open().1.borrow().clone()
    }

    /// What a life says once `wanted` holds.
    async fn later(&self, wanted: impl Fn(&Published) -> bool) -> Arc<Published> {
        let (_source, mut receiver) = self.open();
        let found = receiver.wait_for(|now| wanted(now));
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        found.unwrap().unwrap().clone()
    }
}

#[test]
fn a_restart_keeps_the_last_good_version_of_what_is_broken() {
    for broken in [
        service("a", 80).replace("spec:", "sepc:"),
        service("a", 80) + "foo: [bar\n",
        service("a", 80).replace("kind: Service", "kind: Servce"),
        service("a", 80).replace("name: a", "name: A_"),
        service("a", 0),
    ] {
        let lives = Lives::new();
        lives.write("a.yaml", &service("a", 80));
        lives.write("b.yaml", &service("b", 81));
        assert_eq!(lives.first().objects.len(), 2);
        lives.write("a.yaml", &broken);
        // Also the second time, when the record was written with the file broken.
        for _ in 0..2 {
            let now = lives.first();
            assert!(now.synced);
            assert_eq!(port(&now.objects, "a"), Some(80), "{broken}");
            assert!(!errors(&now).is_empty(), "{broken}");
            assert!(!now.may_hide(&reference("a")));
        }
        lives.write("a.yaml", &service("a", 82));
        assert_eq!(port(&lives.first().objects, "a"), Some(82));
    }
}

#[tokio::test]
async fn a_restart_forgets_what_was_taken_away_meanwhile() {
    let lives = Lives::new();
    lives.write("a.yaml", &service("a", 80));
    lives.write("b.yaml", &service("b", 81));
    lives.write(
        "c.yaml",
        &format!("{}---\n{}", service("c", 82), service("d", 83)),
    );
    assert_eq!(lives.first().objects.len(), 4);
    fs::remove_file(lives.0.path().join("base/a.yaml")).unwrap();
    lives.write("b.yaml", "");
    lives.write("c.yaml", &service("d", 83));
    let now = lives.later(|now| now.objects.len() == 1).await;
    assert_eq!(port(&now.objects, "d"), Some(83));
    assert!(errors(&now).is_empty(), "{:?}", now.findings);
    // And does not find it again when something is broken later.
    lives.write("c.yaml", "foo: [bar");
    let now = lives.first();
    assert_eq!(now.objects.len(), 1);
    assert!(now.may_hide(&reference("c")) && !now.may_hide(&reference("d")));
}

#[tokio::test]
async fn a_restart_without_the_folder_goes_on_with_what_was_in_it() {
    let lives = Lives::new();
    let (base, away) = (lives.0.path().join("base"), lives.0.path().join("away"));
    fs::rename(&base, &away).unwrap();
    let unknown = lives.first();
    assert!(!unknown.synced && !lives.record().exists());
    assert_eq!(errors(&unknown).len(), 1);
    fs::rename(&away, &base).unwrap();
    lives.write("a.yaml", &service("a", 80));
    assert!(lives.first().synced);
    fs::rename(&base, &away).unwrap();
    let known = lives.first();
    assert!(known.synced, "{:?}", known.findings);
    assert_eq!(port(&known.objects, "a"), Some(80));
    assert!(known.may_hide(&reference("b")));
    // It comes back with something else.
    let (_source, mut receiver) = lives.open();
    fs::write(away.join("a.yaml"), service("a", 81)).unwrap();
    fs::rename(&away, &base).unwrap();
    let back = receiver.wait_for(|now| port(&now.objects, "a") == Some(81));
    let back = tokio::time::timeout(Duration::from_secs(20), back).await;
    back.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_is_complete_before_the_folder_could_be_read() {
    let lives = Lives::new();
    fs::remove_dir(lives.0.path().join("base")).unwrap();
    let (_source, mut receiver) = lives.open();
    assert!(!receiver.borrow_and_update().synced);
    fs::create_dir(lives.0.path().join("base")).unwrap();
    let empty = receiver.wait_for(|now| now.synced);
    let empty = tokio::time::timeout(Duration::from_secs(20), empty).await;
    assert!(empty.unwrap().unwrap().objects.is_empty());
}

#[test]
fn a_damaged_record_is_ignored_and_told_while_it_matters() {
    use std::os::unix::fs::PermissionsExt as _;
    let lives = Lives::new();
    lives.write("a.yaml", &service("a", 80));
    lives.first();
    let mode = fs::metadata(lives.record()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let good = fs::read_to_string(lives.record()).unwrap();
    for damaged in [
        String::new(),
        "no json".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace("80", "81"),
        good.replace("\"format\":1", "\"format\":99"),
        good.lines().next().unwrap().to_owned(),
    ] {
        fs::write(lives.record(), &damaged).unwrap();
        lives.write("a.yaml", "foo: [bar");
        let now = lives.first();
        assert!(now.synced && now.objects.is_empty(), "{damaged}");
        let told = errors(&now);
        assert_eq!(told.len(), 2, "{damaged}: {told:?}");
        assert!(
            told.iter().any(|text| text.contains("good.json")),
            "{told:?}"
        );
        assert!(now.may_hide(&reference("a")));
        fs::write(lives.record(), &damaged).unwrap();
        lives.write("a.yaml", &service("a", 80));
        let now = lives.first();
        assert_eq!(now.findings.len(), 0, "{:?}", now.findings);
        assert_eq!(fs::read_to_string(lives.record()).unwrap(), good);
    }
}
