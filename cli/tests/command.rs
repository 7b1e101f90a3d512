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
        &["waypoint", "generate", "--help"],
        &["waypoint", "delete", "--help"],
        &["proxy-config", "ztunnel", "--help"],
        &["ztunnel-config", "--help"],
        &["install", "--help"],
        &["upgrade", "--help"],
        &["uninstall", "--help"],
        &["manifest", "generate", "--help"],
        &["analyze", "--help"],
        &["bug-report", "--help"],
        &["dashboard", "--help"],
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
fn a_saved_dump_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.json");
    let path = file.to_str().unwrap();
    let dump = r#"{"workloads":[{"name":"cart","namespace":"shop"},{"name":"a","namespace":"b"}]}"#;
    std::fs::write(&file, dump).unwrap();
    let narrow = ["zc", "w", "-f", path, "--workload-namespace", "shop"];
    let (code, out, _) = isobar(&narrow);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.starts_with("NAMESPACE") && out.lines().count() == 2,
        "{out}"
    );
    assert!(out.contains("cart"), "{out}");
    std::fs::write(&file, "{}").unwrap();
    let (code, _, err) = isobar(&narrow);
    assert!(code == 1 && err.contains("config_dump"), "{err}");
}

#[test]
fn a_waypoint_is_printed_without_a_mesh() {
    let line = ["waypoint", "generate", "-n", "shop", "--enroll-namespace"];
    let (code, out, err) = isobar(&line);
    assert_eq!(code, 0, "{err}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), &out).unwrap();
    let (code, said, _) = isobar(&["validate", dir.path().to_str().unwrap()]);
    assert_eq!((code, said.as_str()), (0, "2 objects valid\n"), "{out}");
    let (_, json, _) = isobar(&[&line[..], &["-o", "json"]].concat());
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list["items"][1]["metadata"]["name"], "shop");
}

/// A plugin is about kubectl's cluster, also where there is none and a lab would be.
#[test]
fn a_plugin_never_looks_at_labs() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("kubectl-isobar");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_isobar"), &plugin).unwrap();
    for line in [
        "proxy-config ztunnel node-1",
        "proxy-config waypoint w",
        "ztunnel-config",
        "status",
        "waypoint list -A",
        "waypoint status -A",
        "waypoint delete",
        "netpol check",
        "explain a/b c:80",
        "analyze",
        "dashboard control-plane",
    ] {
        let output = Command::new(&plugin)
            .args(line.split(' '))
            .env_remove("KUBERNETES_SERVICE_HOST")
            .env("KUBECONFIG", dir.path().join("none"))
            .env("HOME", dir.path())
            .env("ISOBAR_LAB", "mine")
            .env("ISOBAR_LAB_ROOT", dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{line}");
        let about_labs = said.contains("isobar lab") || said.contains("lab mine");
        assert!(!about_labs, "{line}: {said}");
    }
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
fn a_network_policy_that_cannot_be_read_is_no_open_door() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let write = |rules: &str| {
        let policy = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: in, namespace: shop}}\nspec: {{podSelector: {{}}, ingress: [{rules}]}}\n"
        );
        std::fs::write(dir.path().join("np.yaml"), policy).unwrap();
    };
    write("{from: [{podSelector: {}}]}");
    let (code, out, _) = isobar(&["netpol", "check", "-f", path]);
    let whole = "1 NetworkPolicy leaves open what the mesh needs\n";
    assert_eq!((code, out.as_str()), (0, whole));
    assert_eq!(isobar(&["netpol", "fix", "-f", path]).0, 0);
    write("{frm: []}");
    for command in ["check", "fix"] {
        let (code, out, said) = isobar(&["netpol", command, "-f", path]);
        assert_eq!(code, 1, "{command}: {out}");
        assert!(out.contains("1 error in the files"), "{command}: {out}");
        assert!(
            said.starts_with("error: ") && said.contains("np.yaml") && said.contains("frm"),
            "{command}: {said}"
        );
        assert_eq!(said.matches("error:").count(), 1, "{command}: {said}");
    }
    let (code, out, _) = isobar(&["netpol", "check", "-f", path, "-o", "json"]);
    assert_eq!((code, out.trim()), (1, "[]"));
}

#[test]
fn files_are_analysed_with_codes_and_pages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "a.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
    );
    let (code, out, _) = isobar(&["analyze", path]);
    assert_eq!((code, out.as_str()), (0, "1 object, no findings\n"));
    write(
        "b.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: shop}\n\
         spec: {hosts: [x], htpp: [], http: [{route: [{destination: {host: x}}]}]}\n",
    );
    let (code, out, _) = isobar(&["analyze", path]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("error ISO0104") && out.contains("b.yaml:4"),
        "{out}"
    );
    assert!(
        out.contains("did you mean http?; docs/findings.md#iso0104"),
        "{out}"
    );
    let (code, out, _) = isobar(&["analyze", path, "-S", "ISO0104", "-o", "yaml"]);
    assert_eq!((code, out.trim()), (0, "[]"), "{out}");
    let (_, list, _) = isobar(&["analyze", "--list", "-o", "json"]);
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/findings.md");
    let page = std::fs::read_to_string(page).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    for entry in list.as_array().unwrap() {
        let heading = format!("### {}\n", entry["code"].as_str().unwrap());
        assert!(page.contains(&heading), "{heading}");
    }
}

#[test]
fn nothing_to_look_at_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::write(path("notes.txt"), "remember the milk\n").unwrap();
    std::fs::write(path("broken.yaml"), "kind: [\n").unwrap();
    std::fs::write(
        path("good.yaml"),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
    )
    .unwrap();
    for named in [&["empty"][..], &["notes.txt"], &["good.yaml", "notes.txt"]] {
        let paths: Vec<String> = named.iter().map(|name| path(name)).collect();
        let arguments: Vec<&str> = ["analyze"]
            .into_iter()
            .chain(paths.iter().map(String::as_str))
            .collect();
        let (code, out, said) = isobar(&arguments);
        assert_eq!(code, 2, "{named:?}: {out}{said}");
        assert!(said.contains("holds no objects"), "{named:?}: {said}");
    }
    assert_eq!(isobar(&["analyze", &path("broken.yaml")]).0, 1);
}

#[test]
fn the_samples_have_nothing_but_what_they_teach() {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples");
    for (sample, code) in [
        ("hello", None),
        ("bookinfo", None),
        ("networkpolicy", Some("ISO0301")),
    ] {
        let (exit, out, _) = isobar(&["analyze", &format!("{samples}/{sample}")]);
        assert_eq!(exit, 0, "{out}");
        match code {
            None => assert!(out.contains("no findings"), "{sample}: {out}"),
            Some(code) => assert!(out.contains(code) && out.contains("1 warning"), "{out}"),
        }
    }
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
        (&["analyze"], 2, &["isobar lab up"]),
        (&["analyze", "-S", "ISO9"], 2, &["--list"]),
        (&["analyze", "-A", "-n", "x"], 2, &["cannot be used with"]),
        (&["bug-report"], 1, &["isobar lab up"]),
        (&["dashboard", "ztunnel", "node-1"], 1, &["isobar lab up"]),
        (&["dashboard", "grafana", "x"], 2, &["traffic, operation"]),
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
