//! The commands of the page that everybody reads first, as they stand there.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use isobar_tests::page::{Ended, Page, follow};
use isobar_tests::{binaries, prefix, samples, scratch};
use tokio::process::Command;

use crate::fixture::run;

#[test]
fn the_commands_of_the_readme_work() {
    run(async {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = Page::read(&std::fs::read_to_string(root.join("README.md"))?)?;
        ensure!(page.place == "lab" && page.commands() > 5, "{page:?}");
        // What its reader has: the sources, in which everything is built.
        let folder = scratch()?;
        let manifests = samples().join("..");
        symlink(
            std::fs::canonicalize(manifests)?,
            folder.path().join("manifests"),
        )?;
        std::fs::create_dir_all(folder.path().join("target/quick"))?;
        for entry in std::fs::read_dir(binaries()?)? {
            let path = entry?.path();
            if path.is_file() && path.extension().is_none() {
                let name = path.file_name().unwrap_or_default();
                symlink(&path, folder.path().join("target/quick").join(name))?;
            }
        }
        let make = folder.path().join("target/quick/make");
        std::fs::write(&make, "#!/bin/sh\n")?;
        std::fs::set_permissions(&make, std::fs::Permissions::from_mode(0o755))?;
        let typed = async |line: &str, stays: Option<&dyn Fn(&str) -> bool>| {
            ensure!(stays.is_none(), "nothing stays there");
            type_in(line, folder.path()).await
        };
        let followed = async {
            for part in &page.parts {
                follow(part, folder.path(), typed).await?;
            }
            Ok(())
        };
        let followed = followed.await;
        // What fails in between leaves the lab up.
        type_in("isobar lab down", folder.path()).await?;
        followed
    });
}

/// Types a line into a shell, as if all before it had been typed there too.
async fn type_in(line: &str, folder: &Path) -> Result<Ended> {
    let path = std::env::var("PATH")?;
    let own = folder.join("target/quick");
    let output = Command::new("bash")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", own.display()))
        .env("ISOBAR_LAB", format!("{}readme", prefix()))
        .stdin(Stdio::null())
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}
