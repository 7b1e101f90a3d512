//! The objects a question is about: those of a mesh, or those in files.

use std::path::PathBuf;

use isobar_explain::Started;
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
    /// How its control plane was started.
    pub(crate) started: Started,
    /// Errors in files; they are told already. What they are about is not among the objects.
    pub(crate) errors: usize,
}

impl Subject {
    /// The objects in `files`, or without any those of the mesh that is meant.
    pub(crate) async fn read(files: &[PathBuf], global: &Global) -> anyhow::Result<Self> {
        if files.is_empty() {
            let mesh = Mesh::chosen(global).await?;
            return Self::of_mesh(mesh).await;
        }
        let published = folders(files, None)?.subscribe().borrow().clone();
        let errors = published.findings.iter().filter(|f| f.is_error());
        for finding in errors.clone() {
            let told = finding.to_string();
            let told = told.strip_prefix("error: ").unwrap_or(&told);
            complain(&anyhow::anyhow!("{told}"));
        }
        Ok(Self {
            objects: isobar_explain::imagined(&published.objects),
            mesh: None,
            started: Started::default(),
            errors: errors.count(),
        })
    }

    /// The objects of a mesh.
    pub(crate) async fn of_mesh(mesh: Mesh) -> anyhow::Result<Self> {
        let following = mesh.follow().await?;
        let published = following.published.borrow().clone();
        Ok(Self {
            objects: published.objects.as_ref().clone(),
            mesh: Some(mesh),
            started: following.started,
            errors: 0,
        })
    }
}
