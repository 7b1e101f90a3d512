//! The built program, as a shell sees it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

/// Exit code, standard output and standard error.
fn isobar(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_isobar"))
        .args(arguments)
        .env_remove("ISOBAR_LAB")
        .env(
            "ISOBAR_LAB_ROOT",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/no-labs"),
        )
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn help_teaches_and_carries_no_colours_into_a_pipe() {
    for arguments in [
        &["--help"][..],
        &["lab", "exec", "--help"],
        &["waypoint", "apply", "--help"],
        &["proxy-config", "ztunnel", "--help"],
        &["install", "--help"],
        &["upgrade", "--help"],
        &["uninstall", "--help"],
        &["manifest", "generate", "--help"],
    ] {
        let (code, out, _) = isobar(arguments);
        assert_eq!(code, 0);
        assert!(out.contains("Example"), "{arguments:?}: {out}");
        assert!(!out.contains("<NAME> <NAME>"), "{arguments:?}: {out}");
        assert!(!out.contains('\u{1b}'), "{arguments:?}");
    }
}

#[test]
fn version_in_every_form() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(isobar(&["version"]).1, format!("isobar {version}\n"));
    let json = isobar(&["version", "-o", "json"]).1;
    assert!(
        json.contains(&format!("\"version\": \"{version}\"")),
        "{json}"
    );
    let yaml = isobar(&["version", "-o", "yaml"]).1;
    assert!(yaml.starts_with("version: "), "{yaml}");
}

#[test]
fn completion_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = isobar(&["completion", shell]);
        assert_eq!(code, 0);
        assert!(out.contains("proxy-config"), "{shell}");
    }
    assert_eq!(isobar(&["completion", "cmd"]).0, 2);
}

#[test]
fn validate_names_file_and_object_and_sets_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(dir.path().join("a.yaml"), text).unwrap();
    let path = dir.path().to_str().unwrap();
    let (code, out, _) = isobar(&["validate", path]);
    assert_eq!(code, 0);
    assert!(
        out.contains("holds no YAML") && out.contains("\n0 objects valid\n"),
        "{out}"
    );
    write("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let (code, out, _) = isobar(&["validate", path]);
    assert_eq!((code, out.as_str()), (0, "1 object valid\n"));

    write("apiVersion: v1\nkind: Namespace\nmetadata: {nmae: shop}\n");
    let (code, out, _) = isobar(&["validate", path]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("a.yaml"), "{out}");
    let (code, out, _) = isobar(&["validate", path, "-o", "json"]);
    assert_eq!(code, 1);
    assert!(out.contains("\"severity\": \"error\""), "{out}");
}

#[test]
fn a_lab_over_nothing_usable_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: [\n").unwrap();
    let (code, _, err) = isobar(&["lab", "up", "-f", dir.path().to_str().unwrap()]);
    assert_eq!(code, 1, "{err}");
    let first = err.lines().next().unwrap();
    assert!(
        first.starts_with("error: ") && first.contains("a.yaml"),
        "{err}"
    );
    assert!(err.contains("no usable object"), "{err}");
}

#[test]
fn what_is_generated_is_what_is_committed() {
    for chart in ["crds", "control-plane", "node"] {
        let (code, out, err) = isobar(&["manifest", "generate", "--chart", chart]);
        assert_eq!(code, 0, "{err}");
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/kubernetes");
        let committed = std::fs::read_to_string(format!("{folder}/{chart}.yaml")).unwrap();
        assert!(out == committed, "{chart}");
    }
}

#[test]
fn mistakes_come_with_a_next_step() {
    for (arguments, code, words) in [
        (&["waypiont"][..], 2, &["waypoint"][..]),
        (&["status"], 1, &["isobar lab up"]),
        (
            &["status", "--lab", "nowhere"],
            1,
            &["nowhere", "isobar lab up"],
        ),
        (&["lab", "up", "-f", "/nonexistent"], 1, &["/nonexistent"]),
        (&["validate", "/nonexistent"], 1, &["/nonexistent"]),
        (&["completion", "bash", "-o", "json"], 1, &["text only"]),
        (&["manifest", "generate", "-o", "json"], 1, &["text only"]),
        (
            &["manifest", "generate", "--chart", "nod"],
            1,
            &["crds, control-plane, node"],
        ),
        (
            &["manifest", "generate", "--set", "node.agent.backend=bpf"],
            1,
            &["agent.backend must be one of auto, nft, iptables"],
        ),
        (
            &["install", "--kubeconfig", "/nonexistent"],
            1,
            &["/nonexistent"],
        ),
        (&["lab", "logs", "x", "-o", "yaml"], 1, &["text only"]),
        (&["lab", "down", "--all"], 0, &["no lab"]),
        (
            &["lab", "down", "--all", "-o", "json"],
            0,
            &["\"removed\": []"],
        ),
    ] {
        let (got, out, err) = isobar(arguments);
        let text = out + &err;
        assert_eq!(got, code, "{arguments:?}: {text}");
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{arguments:?}: {text}"
        );
    }
}
