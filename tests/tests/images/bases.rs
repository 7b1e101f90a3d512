//! Images that the files for our images begin with, made on this machine, where no registry is asked:
//! the same system from the same packages, and the compiler that is installed here.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::podman::{Podman, said};

const DEBIAN: &str = "docker.io/library/debian:12-slim";
/// Its version is that of `rust-toolchain.toml`, which `xtask check` compares.
const RUST: &str = "docker.io/library/rust:";

/// What the image of the compiler has besides the compiler, as far as our builds need it.
const PACKAGES: &str = "ca-certificates curl gcc g++ git libc6-dev make pkg-config";

/// Makes those that are not there yet.
pub(crate) fn make(podman: &Podman, sources: &Path) -> Result<()> {
    for name in wanted(sources)? {
        if podman.has(&name) {
            continue;
        }
        println!("making {name}");
        if name == DEBIAN {
            debian(podman)?;
        } else if name.starts_with(RUST) {
            if !podman.has(DEBIAN) {
                debian(podman)?;
            }
            rust(podman, sources, &name)?;
        } else {
            bail!(
                "nobody makes {name} here: tests/tests/images/bases.rs knows {DEBIAN} and {RUST}"
            );
        }
    }
    Ok(())
}

/// What the files for our images begin with.
fn wanted(sources: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(sources.join("manifests/containers"))? {
        let text = std::fs::read_to_string(entry?.path())?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("FROM "));
        let names = lines.filter_map(|line| line.split_whitespace().next());
        found.extend(names.filter(|name| *name != "scratch").map(str::to_owned));
    }
    Ok(found)
}

fn debian(podman: &Podman) -> Result<()> {
    let root = podman.folder().join("debian");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let made = podman
        .command("debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(&root)
        .output()
        .context("there is no debootstrap: apt-get install debootstrap")?;
    said("debootstrap (as root)", &made)?;
    let archive = podman.folder().join("debian.tar");
    let mut tar = podman.command("tar");
    tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
    said("tar", &tar.output()?)?;
    let path = archive.to_string_lossy();
    podman.ok(["import", "--change=CMD [\"bash\"]", &path, DEBIAN])?;
    std::fs::remove_file(&archive)?;
    Ok(std::fs::remove_dir_all(root)?)
}

fn rust(podman: &Podman, sources: &Path, name: &str) -> Result<()> {
    let compiler = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(sources)
        .output()?;
    let compiler = said("rustc", &compiler)?;
    let compiler = format!("{}:/machine/rust:ro", compiler.trim());
    // Whom this machine trusts decides whether registries are reached from here.
    let roots = "/etc/ssl/certs/ca-certificates.crt";
    ensure!(
        Path::new(roots).is_file(),
        "{roots} is not there: apt-get install ca-certificates"
    );
    let roots = format!("{roots}:/machine/roots.pem:ro");
    let file = podman.folder().join("rust.Containerfile");
    let text = format!(
        "FROM {DEBIAN}\n\
         RUN apt-get update && apt-get install -y --no-install-recommends {PACKAGES} && rm -rf /var/lib/apt/lists/*\n\
         RUN mkdir -p /usr/local/rust && cp -a /machine/rust/bin /machine/rust/lib /usr/local/rust/ \
         && cp /machine/roots.pem /etc/ssl/certs/ca-certificates.crt\n\
         ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/rust/bin:/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    std::fs::write(&file, text)?;
    let empty = podman.folder().join("empty");
    std::fs::create_dir_all(&empty)?;
    let file = file.to_string_lossy();
    let args = ["-f", &*file, "-t", name, "-v", &compiler, "-v", &roots];
    podman.build(&args, &empty).map(drop)
}
