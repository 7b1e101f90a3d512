//! The files of a report, and the one file that they become.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::redaction;

/// Of one file, in bytes; the end of what is longer counts.
const LARGEST: usize = 32 << 20;

const README: &str = "\
A report of `isobar bug-report`.

versions.json     versions of the parts
objects/          what the mesh reads, by kind, namespace and name
control-plane/    pages of each replica
ztunnel/          configuration and metrics of node proxies
waypoint/         the same of waypoints
logs/             the ends of logs
findings.json     what `isobar analyze` says

Left out, and shown as (left out): values of Secrets and of environment variables, private keys, tokens,
values of headers, fields and parameters whose names say that they are secret. Names, addresses, routes
and policies are in it as they are: look before you give it away.
";

/// A report while it grows.
#[derive(Debug, Default)]
pub(super) struct Report {
    files: BTreeMap<String, Vec<u8>>,
    missing: Vec<String>,
}

impl Report {
    /// Adds a text, without its secrets.
    pub(super) fn text(&mut self, path: impl Into<String>, text: &str) {
        let mut from = text.len().saturating_sub(LARGEST);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let text = redaction::of_text(&text[from..]);
        self.files.insert(path.into(), text.into_bytes());
    }

    /// Adds a JSON value, without its secrets.
    pub(super) fn value(&mut self, path: impl Into<String>, mut value: Value) {
        redaction::of_value(&mut value);
        self.text(path, &format!("{value:#}\n"));
    }

    /// Adds a page: as JSON if it is that.
    pub(super) fn page(&mut self, path: impl Into<String>, page: anyhow::Result<String>) {
        let path = path.into();
        match page {
            Ok(text) => match serde_json::from_str::<Value>(&text) {
                Ok(value) => self.value(path, value),
                Err(_) => self.text(path, &text),
            },
            Err(error) => self.missing(&path, &error),
        }
    }

    /// Notes what could not be had.
    pub(super) fn missing(&mut self, what: &str, error: &anyhow::Error) {
        let text = redaction::of_text(&format!("{what}: {error:#}"));
        self.missing.push(text);
    }

    /// What could not be had.
    pub(super) fn gaps(&self) -> &[String] {
        &self.missing
    }

    /// Number of files.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Writes everything into a new file that only this user can read, below a folder `name`.
    pub(super) fn write(mut self, file: &Path, name: &str) -> anyhow::Result<()> {
        self.files.insert("README.txt".to_owned(), README.into());
        let missing = self.missing.join("\n") + "\n";
        self.files
            .insert("missing.txt".to_owned(), missing.into_bytes());
        let out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .with_context(|| format!("writing {}", file.display()))?;
        let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
        for (path, bytes) in &self.files {
            let mut head = tar::Header::new_gnu();
            head.set_size(bytes.len() as u64);
            head.set_mode(0o600);
            archive.append_data(&mut head, format!("{name}/{path}"), &bytes[..])?;
        }
        archive.into_inner()?.finish()?.sync_all()?;
        Ok(())
    }
}
