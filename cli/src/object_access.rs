//! The objects a question is about: those of a mesh, or those in files.

use std::path::PathBuf;

use isobar_objects::{ObjectSet, ObjectSource as _};

use crate::arguments::Global;
use crate::mesh_access::{Mesh, folders};
use crate::output::complain;

/// Objects to ask about.
pub(crate) struct Subject {
    /// As they are in the mesh; of files, as if everything they ask for ran.
    pub(crate) objects: ObjectSet,
    /// The mesh; `None` for files.
    pub(crate) mesh: Option<Mesh>,
}

impl Subject {
    /// The objects in `files`, or without any those of the mesh that is meant.
    pub(crate) async fn read(files: &[PathBuf], global: &Global) -> anyhow::Result<Self> {
        if files.is_empty() {
            let mesh = Mesh::chosen(global).await?;
            let published = mesh.follow().await?.published.borrow().clone();
            return Ok(Self {
                objects: published.objects.as_ref().clone(),
                mesh: Some(mesh),
            });
        }
        let published = folders(files, None)?.subscribe().borrow().clone();
        for finding in published.findings.iter().filter(|f| f.is_error()) {
            complain(&anyhow::anyhow!("{finding}"));
        }
        Ok(Self {
            objects: isobar_explain::imagined(&published.objects),
            mesh: None,
        })
    }
}
