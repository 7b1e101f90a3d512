//! What is in a program: `cargo run -p xtask -- sbom PROGRAM` prints every crate that is compiled into
//! it, with version, licence and hash, as CycloneDX 1.5. Made from `cargo metadata` and `Cargo.lock`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use serde_json::{Value, json};

/// The platform of images.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs the command.
pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let [program] = arguments else {
        eprintln!("usage: xtask sbom PROGRAM");
        return Ok(ExitCode::from(2));
    };
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            TARGET,
        ])
        .current_dir(root)
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "cargo metadata: {error}");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let lock = std::fs::read_to_string(root.join("Cargo.lock"))?;
    let bill = bill(&metadata, &hashes(&lock), program)?;
    println!("{}", serde_json::to_string_pretty(&bill)?);
    Ok(ExitCode::SUCCESS)
}

/// SHA-256 of the crates of registries, by name and version.
fn hashes(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let mut lines = package.lines();
            let start = format!("{key} = \"");
            let line = lines.find_map(|line| line.strip_prefix(&start))?;
            Some(line.trim_end_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(hash)) =
            (value("name"), value("version"), value("checksum"))
        {
            found.insert((name, version), hash);
        }
    }
    found
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn bill(
    metadata: &Value,
    hashes: &BTreeMap<(String, String), String>,
    program: &str,
) -> anyhow::Result<Value> {
    let packages: BTreeMap<&str, &Value> = list(metadata, "packages")
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let owner = packages.iter().find(|(_, package)| {
        let mut targets = list(package, "targets");
        targets.any(|t| t["name"] == program && list(t, "kind").any(|kind| kind == "bin"))
    });
    let (first, _) = owner.with_context(|| format!("no package has a program {program}"))?;
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes")
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let mut seen = BTreeSet::new();
    let mut next = vec![*first];
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = nodes.get(id).context("a package that is not resolved")?;
        // What only tests need is not in the program.
        let compiled = list(node, "deps").filter(|dep| {
            let mut kinds = list(dep, "dep_kinds");
            kinds.any(|kind| kind["kind"] != "dev")
        });
        next.extend(compiled.filter_map(|dep| dep["pkg"].as_str()));
    }
    let components: Vec<Value> = seen
        .iter()
        .filter_map(|id| packages.get(id))
        .map(|package| component(package, hashes))
        .collect();
    let version = &packages[first]["version"];
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": { "type": "application", "name": program, "version": version } },
        "components": components,
    }))
}

fn component(package: &Value, hashes: &BTreeMap<(String, String), String>) -> Value {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let (name, version) = (text("name"), text("version"));
    let mut one = json!({
        "type": "library",
        "name": name,
        "version": version,
        "purl": format!("pkg:cargo/{name}@{version}"),
    });
    if let Some(licence) = package["license"].as_str() {
        one["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
    }
    if let Some(hash) = hashes.get(&(name, version)) {
        one["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_has_what_is_compiled_and_nothing_else() {
        let package = |id: &str, bin: Option<&str>| {
            let target = json!({"name": bin.unwrap_or(id), "kind": [if bin.is_some() { "bin" } else { "lib" }]});
            json!({"id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0", "targets": [target]})
        };
        let dep = |id: &str, kind: Value| json!({"pkg": id, "dep_kinds": [{ "kind": kind }]});
        let metadata = json!({
            "packages": [package("a", Some("prog")), package("b", None), package("c", None), package("d", None)],
            "resolve": {"nodes": [
                {"id": "a", "deps": [dep("b", Value::Null), dep("c", json!("dev"))]},
                {"id": "b", "deps": [dep("d", json!("build"))]},
                {"id": "c", "deps": []}, {"id": "d", "deps": []}]},
        });
        let lock = "[[package]]\nname = \"b\"\nversion = \"1.0.0\"\nchecksum = \"beef\"\n";
        let bill = bill(&metadata, &hashes(lock), "prog").unwrap();
        let names: Vec<_> = list(&bill, "components")
            .map(|c| c["name"].clone())
            .collect();
        assert_eq!(names, ["a", "b", "d"]);
        let b = &bill["components"][1];
        assert_eq!(b["hashes"][0]["content"], "beef");
        assert_eq!(b["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(super::bill(&metadata, &hashes(lock), "none").is_err());
    }
}
