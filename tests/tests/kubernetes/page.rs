//! The commands of docs/install.md, as they stand there.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use isobar_tests::{ApiServer, binaries, kube_tools};

use crate::charts::helm_tool;
use crate::run;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A part of the page from its heading to the next of that rank.
fn section(heading: &str) -> Result<String> {
    let page = std::fs::read_to_string(root().join("docs/install.md"))?;
    let (_, rest) = page
        .split_once(&format!("\n## {heading}"))
        .with_context(|| format!("the page has no section {heading:?}"))?;
    Ok(rest.split("\n## ").next().unwrap_or_default().to_owned())
}

/// Texts of the blocks in a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, block)) = rest.split_once(&format!("```{language}\n")) {
        let (block, after) = block.split_once("```").unwrap_or((block, ""));
        found.push(block);
        rest = after;
    }
    found
}

/// Runs one line. Nobody runs the pods, so nobody waits for them.
async fn command(server: &ApiServer, folder: &Path, line: &str) -> Result<()> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let is_writing = words
        .get(1)
        .is_some_and(|word| ["install", "upgrade"].contains(word));
    let program = match words[0] {
        "isobar" => {
            if is_writing {
                words.push("--no-wait");
            }
            binaries()?.join("isobar")
        }
        "helm" => helm_tool(),
        "kubectl" => kube_tools()?,
        other => bail!("{other:?} is no program that the page may ask for"),
    };
    // The one program is kubectl when it is called so.
    let from = usize::from(words[0] != "kubectl");
    let output = tokio::process::Command::new(&program)
        .args(&words[from..])
        .env("KUBECONFIG", server.admin()?)
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| program.display().to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    ensure!(output.status.success(), "{line}: {}\n{said}", output.status);
    Ok(())
}

/// Runs all commands of a section, in order, at an API server of their own.
fn follow(heading: &'static str, commands: usize) {
    run(async |server| {
        server.namespace("shop").await?;
        let folder = server.folder().join("user");
        std::fs::create_dir(&folder)?;
        let manifests = std::fs::canonicalize(root().join("manifests"))?;
        // What the page says that a cluster needs.
        let needed = manifests.join("charts/crds/files/gateway-api.yaml");
        let needed = needed.to_string_lossy();
        server.kubectl(&["apply", "-f", &needed]).await?;
        let served = ["wait", "--for=condition=Established", "-f", &needed];
        server.kubectl(&served).await?;
        std::os::unix::fs::symlink(&manifests, folder.join("manifests"))?;
        let text = section(heading)?;
        if let Some(values) = blocks(&text, "yaml").first() {
            std::fs::write(folder.join("values.yaml"), values)?;
        }
        let lines: Vec<&str> = blocks(&text, "console")
            .into_iter()
            .flat_map(str::lines)
            .collect();
        ensure!(lines.len() >= commands, "{lines:?}");
        for line in lines {
            command(server, &folder, line).await?;
        }
        Ok(())
    });
}

#[test]
fn the_page_installs_upgrades_and_uninstalls() {
    follow("With `isobar`", 9);
}

#[test]
fn the_page_installs_with_helm() {
    follow("With Helm", 5);
}

#[test]
fn the_page_installs_with_kubectl() {
    follow("With kubectl", 5);
}
