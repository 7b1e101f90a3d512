//! The objects a question is about: those of a lab, or those in files.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use isobar_lab::Lab;
use isobar_objects::{DirectoryOptions, DirectorySource, ObjectSet, ObjectSource as _, Published};

use crate::arguments::Global;
use crate::lab_access::chosen_mesh;
use crate::output::complain;

/// Objects to ask about.
pub(crate) struct Subject {
    /// As they are in the lab; of files, as if everything they ask for ran.
    pub(crate) objects: ObjectSet,
    /// The lab; `None` for files.
    pub(crate) lab: Option<Lab>,
}

impl Subject {
    /// The objects in `files`, or without any those of the lab that is meant.
    pub(crate) async fn read(files: &[PathBuf], global: &Global) -> anyhow::Result<Self> {
        if files.is_empty() {
            let (lab, status) = chosen_mesh(global.lab.as_deref()).await?;
            let published = read(status.objects, Some(lab.paths().overlay()))?;
            return Ok(Self {
                objects: published.objects.as_ref().clone(),
                lab: Some(lab),
            });
        }
        let published = read(files.to_vec(), None)?;
        for finding in published.findings.iter().filter(|f| f.is_error()) {
            complain(&anyhow::anyhow!("{finding}"));
        }
        Ok(Self {
            objects: isobar_explain::imagined(&published.objects),
            lab: None,
        })
    }
}

fn read(base: Vec<PathBuf>, overlay: Option<PathBuf>) -> anyhow::Result<Arc<Published>> {
    let source = DirectorySource::open(DirectoryOptions::new(base, overlay))
        .context("reading the objects")?;
    let published = source.subscribe().borrow().clone();
    Ok(published)
}
