use std::sync::Arc;

use super::*;
use serde_json::json;

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "net.d", "image"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("image/plugin"), "program 1").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn installer(&self, mode: Mode) -> Installer {
        Installer::new(Placement {
            program: self.path("image/plugin"),
            programs: self.path("bin"),
            configurations: self.path("net.d"),
            primary: None,
            mode,
            owned: "00-isobar-cni.conflist".to_owned(),
            settings: Settings::default(),
        })
    }

    fn write(&self, name: &str, value: &Value) {
        fs::write(self.path("net.d").join(name), value.to_string()).unwrap();
    }

    fn types(&self, name: &str) -> Vec<String> {
        let text = fs::read(self.path("net.d").join(name)).unwrap();
        let list: Value = serde_json::from_slice(&text).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

fn network(plugin: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": plugin}]})
}

#[test]
fn nothing_is_done_before_there_is_a_network_and_its_first_file_counts() {
    let node = Node::new();
    let mut installer = node.installer(Mode::Chained);
    fs::write(node.path("net.d/00-broken.conflist"), "{").unwrap();
    fs::write(node.path("net.d/00-notes.txt"), "{}").unwrap();
    let error = installer.ensure().unwrap_err();
    assert!(matches!(error, InstallError::NoNetwork { .. }));
    node.write("20-second.conflist", &network("other"));
    node.write("10-first.conflist", &network("bridge"));
    installer.ensure().unwrap();
    assert_eq!(node.types("10-first.conflist"), ["bridge", PLUGIN]);
    assert_eq!(node.types("20-second.conflist"), ["other"]);
    assert!(installer.ensure().unwrap().is_empty());
}

#[test]
fn what_others_do_to_it_is_mended() {
    let node = Node::new();
    node.write("10-net.conflist", &network("bridge"));
    let mut installer = node.installer(Mode::Chained);
    installer.ensure().unwrap();
    // The network's program writes its file again, the other way round a new one comes first.
    node.write("10-net.conflist", &network("bridge2"));
    assert_eq!(
        installer.ensure().unwrap(),
        [node.path("net.d/10-net.conflist")]
    );
    assert_eq!(node.types("10-net.conflist"), ["bridge2", PLUGIN]);
    node.write("05-new.conflist", &network("new"));
    installer.ensure().unwrap();
    assert_eq!(node.types("05-new.conflist"), ["new", PLUGIN]);
    // Somebody cleans the programs, or puts another one there.
    let program = node.path("bin").join(PLUGIN);
    fs::remove_file(&program).unwrap();
    assert_eq!(installer.ensure().unwrap(), std::slice::from_ref(&program));
    fs::write(&program, "another").unwrap();
    assert_eq!(installer.ensure().unwrap(), std::slice::from_ref(&program));
    assert_eq!(fs::read_to_string(&program).unwrap(), "program 1");
    assert_eq!(mode_of(&program), 0o755);
}

#[test]
fn a_new_release_replaces_the_program_in_one_step() {
    let node = Node::new();
    node.write("10-net.conflist", &network("bridge"));
    node.installer(Mode::Chained).ensure().unwrap();
    let program = node.path("bin").join(PLUGIN);
    let before = fs::metadata(&program).unwrap().ino();
    // A runtime that runs the old one has it open.
    let held = fs::File::open(&program).unwrap();
    fs::write(node.path("image/plugin"), "program 2").unwrap();
    let written = node.installer(Mode::Chained).ensure().unwrap();
    assert_eq!(written, std::slice::from_ref(&program));
    assert_eq!(fs::read_to_string(&program).unwrap(), "program 2");
    assert_ne!(fs::metadata(&program).unwrap().ino(), before);
    assert_eq!(held.metadata().unwrap().len(), 9);
}

#[test]
fn a_single_configuration_gives_way_to_a_list_and_comes_back() {
    let node = Node::new();
    let single = json!({"cniVersion": "0.4.0", "name": "net", "type": "bridge"});
    node.write("10-net.conf", &single);
    let mut installer = node.installer(Mode::Chained);
    installer.ensure().unwrap();
    assert_eq!(
        node.names("net.d"),
        ["10-net.conf.isobar-saved", "10-net.conflist"]
    );
    assert_eq!(node.types("10-net.conflist"), ["bridge", PLUGIN]);
    assert!(installer.ensure().unwrap().is_empty());
    // Its program writes the single one again: it would be read in place of the list.
    node.write("10-net.conf", &single);
    installer.ensure().unwrap();
    assert_eq!(
        node.names("net.d"),
        ["10-net.conf.isobar-saved", "10-net.conflist"]
    );
    installer.remove().unwrap();
    assert_eq!(node.names("net.d"), ["10-net.conf"]);
    let back = fs::read_to_string(node.path("net.d/10-net.conf")).unwrap();
    assert_eq!(back, single.to_string());
    assert!(node.names("bin").is_empty());
}

#[test]
fn an_own_file_follows_the_primary_and_outlives_its_absence() {
    let node = Node::new();
    node.write("10-net.conflist", &network("bridge"));
    let original = fs::read(node.path("net.d/10-net.conflist")).unwrap();
    let mut installer = node.installer(Mode::Owned);
    installer.ensure().unwrap();
    assert_eq!(node.types("00-isobar-cni.conflist"), ["bridge", PLUGIN]);
    assert_eq!(
        fs::read(node.path("net.d/10-net.conflist")).unwrap(),
        original
    );
    node.write("10-net.conflist", &network("bridge2"));
    installer.ensure().unwrap();
    assert_eq!(node.types("00-isobar-cni.conflist"), ["bridge2", PLUGIN]);
    fs::remove_file(node.path("net.d/10-net.conflist")).unwrap();
    assert!(installer.ensure().unwrap().is_empty());
    assert_eq!(node.types("00-isobar-cni.conflist"), ["bridge2", PLUGIN]);
    node.write("00-a.conflist", &network("earlier"));
    let error = installer.ensure().unwrap_err();
    assert!(matches!(error, InstallError::NotFirst { .. }), "{error}");
    fs::remove_file(node.path("net.d/00-a.conflist")).unwrap();
    node.write("10-net.conflist", &network("bridge"));
    installer.remove().unwrap();
    assert_eq!(node.names("net.d"), ["10-net.conflist"]);
}

#[test]
fn the_modes_follow_each_other() {
    let node = Node::new();
    node.write("10-net.conflist", &network("bridge"));
    node.installer(Mode::Owned).ensure().unwrap();
    let mut chained = node.installer(Mode::Chained);
    let written = chained.ensure().unwrap();
    assert_eq!(written, [node.path("net.d/10-net.conflist")]);
    assert_eq!(node.names("net.d"), ["10-net.conflist"]);
    assert_eq!(node.types("10-net.conflist"), ["bridge", PLUGIN]);
    assert!(chained.ensure().unwrap().is_empty());
    // The primary network's program is followed again.
    node.write("10-net.conflist", &network("bridge2"));
    chained.ensure().unwrap();
    assert_eq!(node.types("10-net.conflist"), ["bridge2", PLUGIN]);
    // And back: the copy has the entry once, and without the primary it stays.
    node.installer(Mode::Owned).ensure().unwrap();
    assert_eq!(node.types("00-isobar-cni.conflist"), ["bridge2", PLUGIN]);
    fs::remove_file(node.path("net.d/10-net.conflist")).unwrap();
    assert!(chained.ensure().unwrap().is_empty());
    assert_eq!(node.names("net.d"), ["00-isobar-cni.conflist"]);
    // Who names the file as the primary's means it.
    let mut named = node.installer(Mode::Chained);
    named.placement.primary = Some("00-isobar-cni.conflist".to_owned());
    node.write("00-isobar-cni.conflist", &network("bridge3"));
    for _ in 0..2 {
        named.ensure().unwrap();
        assert_eq!(node.types("00-isobar-cni.conflist"), ["bridge3", PLUGIN]);
    }
}

#[test]
fn removing_leaves_what_was_there_and_does_it_twice() {
    let node = Node::new();
    node.write("10-net.conflist", &network("bridge"));
    let file = node.path("net.d/10-net.conflist");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let mut installer = node.installer(Mode::Chained);
    installer.ensure().unwrap();
    assert_eq!(mode_of(&file), 0o640);
    for _ in 0..2 {
        installer.remove().unwrap();
        let text = fs::read(&file).unwrap();
        let left: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(left, network("bridge"));
        assert_eq!(mode_of(&file), 0o640);
    }
}

/// Waits for `check`, but not for ever.
async fn soon(check: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(tokio::time::Instant::now() < end, "not in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn what_others_do_is_mended_when_the_system_tells_of_it() {
    let node = Node::new();
    node.write("10-net.conflist", &network("bridge"));
    let mut installer = node.installer(Mode::Chained);
    // Nothing is found by looking again.
    installer.look = Duration::from_secs(3600);
    let registry = isobar_telemetry::Registry::new();
    let metrics = Metrics::register(&registry, Arc::default(), crate::zds::Zds::default());
    let ready = isobar_telemetry::Ready::new();
    let scope = isobar_runtime::Scope::new("test");
    let gate = ready.gate("CNI plugin");
    scope.spawn("keep", installer.keep(gate, metrics, scope.lifetime()));
    let is_in = |name: &str| {
        let text = fs::read_to_string(node.path("net.d").join(name)).unwrap_or_default();
        text.contains(PLUGIN)
    };
    soon(|| is_in("10-net.conflist")).await;
    // Written over, replaced by rename, and another one that comes first.
    node.write("10-net.conflist", &network("bridge2"));
    soon(|| is_in("10-net.conflist")).await;
    node.write(".draft", &network("bridge3"));
    fs::rename(
        node.path("net.d/.draft"),
        node.path("net.d/10-net.conflist"),
    )
    .unwrap();
    soon(|| is_in("10-net.conflist")).await;
    node.write("05-new.conflist", &network("new"));
    soon(|| is_in("05-new.conflist")).await;
    let program = node.path("bin").join(PLUGIN);
    fs::remove_file(&program).unwrap();
    soon(|| program.exists()).await;
    scope.shutdown(Duration::ZERO).await;
}
