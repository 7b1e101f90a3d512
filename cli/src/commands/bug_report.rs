//! `isobar bug-report`.

mod archive;
mod of_cluster;
mod of_lab;
mod redaction;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use isobar_objects::{Object, ObjectSet};
use serde_json::{Value, json};

use self::archive::Report;
use self::of_cluster::Asked;
use super::analyze;
use crate::arguments::{BugReport, Global};
use crate::mesh_access::Mesh;
use crate::output::{Format, print, print_value, say};

/// What is asked of each control plane.
const CONTROL_PLANE_PAGES: [&str; 5] = [
    "/version",
    "/debug/syncz",
    "/debug/findings",
    "/debug/config",
    "/metrics",
];

/// Tells what is being done.
struct Progress(Format);

impl Progress {
    fn tell(&self, what: &str) -> anyhow::Result<()> {
        say(&format!("collecting: {what}\n"), self.0)
    }
}

pub(crate) async fn run(what: BugReport, global: &Global) -> anyhow::Result<ExitCode> {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let name = format!("isobar-report-{now}");
    let file = what.file.clone();
    let file = file.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    if file.exists() {
        bail!("{} exists; it is not written over", file.display());
    }
    let mesh = Mesh::chosen(global).await?;
    let (progress, mut report) = (Progress(global.output), Report::default());
    let objects = objects(&mesh, global, &mut report, &progress).await?;
    match &mesh {
        Mesh::Lab { lab, .. } => {
            let how = (what.tail, what.timeout);
            of_lab::collect(lab, how, &mut report, &progress).await?;
        }
        Mesh::Cluster {
            cluster, namespace, ..
        } => {
            let asked = Asked {
                cluster,
                namespace,
                global,
                lines: what.tail,
                limit: what.timeout,
            };
            of_cluster::collect(&asked, objects.as_ref(), &mut report, &progress).await?;
        }
    }
    let (files, gaps) = (report.len(), report.gaps().to_vec());
    report.write(&file, &name)?;
    match global.output {
        Format::Table => print(&told(&file, files, &gaps))?,
        format => {
            let value = json!({ "file": file, "files": files, "missing": gaps });
            print_value(&value, format)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn told(file: &std::path::Path, files: usize, gaps: &[String]) -> String {
    let mut text = format!("{} has {files} files", file.display());
    if gaps.is_empty() {
        return text + "\n";
    }
    text.push_str("; could not be had:\n");
    for gap in gaps {
        text.push_str(&format!("  {gap}\n"));
    }
    text
}

/// Versions, objects and findings. Without the objects the rest is worth having too.
async fn objects(
    mesh: &Mesh,
    global: &Global,
    report: &mut Report,
    progress: &Progress,
) -> anyhow::Result<Option<ObjectSet>> {
    progress.tell("objects and findings")?;
    let mut versions = json!({ "isobar": env!("CARGO_PKG_VERSION") });
    if let Mesh::Cluster { cluster, .. } = mesh {
        match cluster.version().await {
            Ok(version) => versions["kubernetes"] = version.into(),
            Err(error) => report.missing("version of the API server", &error.into()),
        }
    }
    match mesh.control_plane("/version").await {
        Ok(pages) => versions["controlPlane"] = pages.into(),
        Err(error) => report.missing("version of the control plane", &error),
    }
    report.value("versions.json", versions);
    match analyze::of_mesh(mesh, &global.mesh_namespace).await {
        Ok((_, found)) => {
            let found: Value = found.iter().map(analyze::value).collect();
            report.value("findings.json", found);
        }
        Err(error) => report.missing("findings", &error),
    }
    let set = match mesh.follow().await {
        Ok(following) => following.published.borrow().objects.as_ref().clone(),
        Err(error) => {
            report.missing("objects", &error);
            return Ok(None);
        }
    };
    for object in set.objects() {
        let path = path_of(&object);
        match object.to_value() {
            Ok(value) => report.value(path, value),
            Err(error) => report.missing(&path, &error.into()),
        }
    }
    Ok(Some(set))
}

fn path_of(object: &Object) -> String {
    let reference = object.reference();
    let place = match &*reference.namespace {
        "" => "_cluster",
        namespace => namespace,
    };
    let kind = object.kind().as_str();
    format!(
        "objects/{kind}/{place}/{}.json",
        object.head().name.as_deref().unwrap_or("-")
    )
}

/// The file of a page.
fn file_of(page: &str) -> String {
    match page {
        "/metrics" => "/metrics.txt".to_owned(),
        page => format!("/{}.json", page.trim_start_matches('/').replace('/', "-")),
    }
}

/// The last lines of a text.
fn end_of(text: &str, lines: u32) -> String {
    let all: Vec<&str> = text.lines().collect();
    let skip = all.len().saturating_sub(lines as usize);
    let mut end = all[skip..].join("\n");
    end.push('\n');
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_what_was_collected_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.tar.gz");
        let mut report = Report::default();
        report.page("a.json", Ok("{\"token\":\"abc\"}".to_owned()));
        report.page("b.txt", Ok("x_total 1\n".to_owned()));
        report.page("c.txt", Err(anyhow::anyhow!("refused")));
        report.write(&file, "r").unwrap();
        let bytes = std::fs::File::open(&file).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
        let mut all = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            all.insert(path, text);
        }
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["r/README.txt", "r/a.json", "r/b.txt", "r/missing.txt"]
        );
        assert_eq!(all["r/a.json"], "{\n  \"token\": \"(left out)\"\n}\n");
        assert_eq!(all["r/missing.txt"], "c.txt: refused\n");
        assert!(Report::default().write(&file, "r").is_err());
    }

    #[test]
    fn files_and_ends() {
        assert_eq!(file_of("/debug/syncz"), "/debug-syncz.json");
        assert_eq!(end_of("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(end_of("a\n", 9), "a\n");
    }
}
