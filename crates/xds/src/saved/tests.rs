use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::istio::workload as wire;
use isobar_tls::ca::Authority;
use isobar_types::Identity;
use prost::Message as _;
use tempfile::TempDir;

use super::file::{self, Kind, Sealing};
use super::*;

const KIND: Kind = Kind {
    magic: *b"TESTTEST",
    format: 3,
    limit: 4096,
};

fn record(name: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        ..Resource::default()
    }
}

fn write(path: &Path, names: &[&str]) -> Result<(), SavedError> {
    let mut sealing = Sealing::start(path, KIND)?;
    for name in names {
        sealing.message(&record(name))?;
    }
    sealing.finish()
}

/// A folder in memory, where keys may be kept.
fn in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

#[test]
fn a_file_is_private_whole_and_replaced_at_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f");
    assert!(file::read(&path, KIND).unwrap().is_none());
    write(&path, &["a", "b"]).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let content = file::read(&path, KIND).unwrap().unwrap();
    let mut rest = &content[..];
    let first = Resource::decode_length_delimited(&mut rest).unwrap();
    let second = Resource::decode_length_delimited(&mut rest).unwrap();
    assert_eq!((&*first.name, &*second.name), ("a", "b"));
    assert!(rest.is_empty());
    // A writer that gives up leaves the old file and nothing else.
    let big = "x".repeat(5000);
    let refused = write(&path, &[&big]);
    assert!(
        matches!(refused, Err(SavedError::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(file::read(&path, KIND).unwrap().unwrap(), content);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn every_damage_is_noticed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f");
    write(&path, &["a", "b"]).unwrap();
    let good = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = file::read(&path, KIND).unwrap_err();
        assert!(matches!(error, SavedError::Damaged { .. }), "{error}");
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        refused(&bad);
        refused(&good[..at]);
    }
    refused(&[&good[..], b"x"].concat());
    let foreign = Kind {
        magic: *b"ELSEWISE",
        ..KIND
    };
    fs::write(&path, &good).unwrap();
    let error = file::read(&path, foreign).unwrap_err().to_string();
    assert!(error.ends_with("is not a file of this program"), "{error}");
    let newer = Kind { format: 4, ..KIND };
    let error = file::read(&path, newer).unwrap_err().to_string();
    assert!(
        error.ends_with("has a form that this version does not know"),
        "{error}"
    );
}

#[test]
fn what_others_could_have_written_is_not_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f");
    write(&path, &["a"]).unwrap();
    let with_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    with_mode(&path, 0o620);
    let error = file::read(&path, KIND).unwrap_err();
    assert!(matches!(error, SavedError::NotOurs { .. }), "{error}");
    with_mode(&path, 0o600);
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(file::read(&link, KIND).is_err(), "no link is followed");

    let folder = dir.path().join("state");
    SavedMesh::open(&folder, "m").unwrap();
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    with_mode(&folder, 0o777);
    let error = SavedMesh::open(&folder, "m").unwrap_err();
    assert!(matches!(error, SavedError::NotOurs { .. }), "{error}");
    let error = SavedMesh::open(&path, "m").unwrap_err();
    assert!(matches!(error, SavedError::System { .. }), "{error}");
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}

#[test]
fn certificates_are_kept_in_memory_only() {
    // By convention this one survives a reboot, so it is on a disk.
    let on_disk = TempDir::new_in("/var/tmp").unwrap();
    let refused = SavedCertificates::open(on_disk.path()).unwrap_err();
    assert!(matches!(refused, SavedError::OnDisk { .. }), "{refused}");
    assert_eq!(fs::read_dir(on_disk.path()).unwrap().count(), 0);
}

#[test]
fn a_saved_certificate_is_as_good_as_new_until_it_expires() {
    let dir = in_memory();
    let authority = Authority::generate("test").unwrap();
    let hour = Duration::from_secs(3600);
    let cert = authority.issue_workload(&id("a"), hour).unwrap();
    let saved = SavedCertificates::open(dir.path()).unwrap();
    saved.save(&cert).unwrap();
    saved
        .save(&authority.issue_workload(&id("b"), hour).unwrap())
        .unwrap();
    saved.remove(&id("b"));
    saved.remove(&id("never"));
    let folder = dir.path().join("certificates");
    let files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1);
    let mode = fs::metadata(&files[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let again = SavedCertificates::open(dir.path()).unwrap();
    let loaded = again.load(SystemTime::now());
    let [one] = &loaded[..] else {
        panic!("{loaded:?}");
    };
    assert_eq!(one.identity(), &id("a"));
    assert_eq!(one.chain(), cert.chain());
    assert_eq!(one.roots(), cert.roots());
    assert_eq!(one.not_after(), cert.not_after());

    // Files of others, or damaged, are left alone; a name that is not the content's is not used.
    let mut junk = fs::File::create(folder.join("0123")).unwrap();
    junk.write_all(b"junk").unwrap();
    fs::copy(&files[0], folder.join("4567")).unwrap();
    assert_eq!(again.load(SystemTime::now()).len(), 1);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);

    assert!(again.load(SystemTime::now() + 2 * hour).is_empty());
    assert!(!files[0].exists(), "what has expired is removed");
}

fn address(name: &str) -> Vec<u8> {
    let w = wire::Workload {
        uid: name.to_owned(),
        ..Default::default()
    };
    let message = wire::Address {
        r#type: Some(wire::address::Type::Workload(w)),
    };
    message.encode_to_vec()
}

#[test]
fn hostile_bytes_never_panic() {
    let dir = TempDir::new().unwrap();
    let saved = SavedMesh::open(dir.path(), "m").unwrap();
    let path = dir.path().join("mesh");
    let kind = Kind {
        magic: *b"ISOBARME",
        format: 1,
        limit: 1 << 20,
    };
    // Well sealed, but the content is not what it should be.
    for content in [&b""[..], b"\xff", b"\x01\xff", &address("x")] {
        let mut sealing = Sealing::start(&path, kind).unwrap();
        sealing
            .message(&Resource {
                name: String::from_utf8_lossy(content).into_owned(),
                ..Resource::default()
            })
            .unwrap();
        sealing.finish().unwrap();
        assert!(saved.load().is_err(), "{content:?}");
    }
}
