//! Which mesh is meant, in a lab or in a cluster, its objects, and what its control plane says.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use isobar_explain::Started;
use isobar_kubernetes::{Cluster, KubernetesSource, KubernetesWriter, LastValid, SourceOptions};
use isobar_lab::{Lab, Target};
use isobar_objects::{
    DirectoryOptions, DirectorySource, ObjectSource, ObjectWriter, OverlayWriter, Published,
    STRANGERS,
};
use isobar_runtime::Scope;
use isobar_types::ports;
use serde_json::Value;
use tokio::sync::watch;

use crate::arguments::Global;
use crate::control_plane::control_plane;
use crate::lab_access::{CONTROL_PLANE, chosen_mesh, page};
use crate::node_agent::enrolment;

/// Who we are to the API server's record of who wrote which field.
const MANAGER: &str = "isobar-cli";
/// Label of the pods of every control plane, whatever its revision.
pub(crate) const REPLICAS: &str = "app.kubernetes.io/name=isobard";
/// For reading every object of a cluster.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mesh to ask and to change.
pub(crate) enum Mesh {
    /// In a lab, over these folders.
    Lab {
        /// The lab.
        lab: Lab,
        /// Folders of the user's objects.
        objects: Vec<PathBuf>,
    },
    /// In a cluster.
    Cluster {
        /// Its API server.
        cluster: Cluster,
        /// Namespace of the control plane.
        namespace: String,
        /// Which one, if there are several.
        revision: Option<String>,
        /// The flags that name it, for commands that are printed.
        flags: String,
    },
}

/// Objects that follow their source until this is dropped.
pub(crate) struct Following {
    pub(crate) published: watch::Receiver<Arc<Published>>,
    /// How the control plane was started that goes by them.
    pub(crate) started: Started,
    _source: Held,
}

#[expect(dead_code, reason = "ends following when dropped")]
enum Held {
    Folder(DirectorySource),
    Server(Scope),
}

impl Following {
    /// Objects in folders, with overlays.
    pub(crate) fn folders(base: &[PathBuf], overlay: PathBuf) -> anyhow::Result<Self> {
        let source = folders(base, Some(overlay))?;
        Ok(Self {
            published: source.subscribe(),
            started: Started::default(),
            _source: Held::Folder(source),
        })
    }
}

impl Mesh {
    /// The mesh that the command line means.
    pub(crate) async fn chosen(global: &Global) -> anyhow::Result<Self> {
        Self::of(global, None).await
    }

    /// The same, with the control plane of that name.
    pub(crate) async fn of(global: &Global, revision: Option<&str>) -> anyhow::Result<Self> {
        if revision.is_some() && !global.means_cluster() {
            bail!("--revision is about control planes of a cluster: a lab has one, without a name");
        }
        if !global.means_cluster() {
            let (lab, status) = chosen_mesh(global.lab.as_deref()).await?;
            let objects = status.objects;
            let kubeconfig = lab.paths().kubernetes().join("admin-6443.kubeconfig");
            if kubeconfig.exists() {
                bail!(
                    "the objects of lab {} are in an API server: run this command in its network, as \
                     isobar lab exec outer -- isobar --kubeconfig {} ...",
                    lab.name(),
                    kubeconfig.display()
                );
            }
            return Ok(Self::Lab { lab, objects });
        }
        let (file, context) = (global.kubeconfig.as_deref(), global.context.as_deref());
        let cluster = Cluster::of_context(file, context).await?;
        cluster.check().await?;
        let file = file.map(|file| format!(" --kubeconfig {}", file.display()));
        let context = context.map(|context| format!(" --context {context}"));
        Ok(Self::Cluster {
            cluster,
            namespace: global.mesh_namespace.clone(),
            revision: revision.map(str::to_owned),
            flags: file.unwrap_or_default() + &context.unwrap_or_default(),
        })
    }

    /// The flags that name this mesh, with a space before them.
    pub(crate) fn flags(&self) -> String {
        match self {
            Self::Lab { lab, .. } => format!(" --lab {}", lab.name()),
            Self::Cluster { flags, .. } => flags.clone(),
        }
    }

    /// The command that shows what runs, for people.
    pub(crate) fn look(&self) -> String {
        match self {
            Self::Lab { .. } => format!("`isobar lab status{}`", self.flags()),
            Self::Cluster { namespace, .. } => format!("`kubectl get pods -n {namespace}`"),
        }
    }

    /// All objects, as they are and as they become.
    pub(crate) async fn follow(&self) -> anyhow::Result<Following> {
        match self {
            Self::Lab { lab, objects } => Following::folders(objects, lab.paths().overlay()),
            Self::Cluster {
                cluster,
                namespace,
                revision,
                ..
            } => {
                let started = control_plane(cluster, namespace, revision.as_deref()).await?;
                let started = started.enrolling(enrolment(cluster, namespace).await);
                let kept = LastValid::of_all(cluster.clone(), namespace);
                // What a pod may look up and become is asked about, too.
                let whole = SourceOptions {
                    slim: false,
                    ..SourceOptions::default()
                };
                let source = KubernetesSource::new(cluster.clone(), whole)
                    .with_last_valid(kept)
                    .with_object(started.mesh_config().clone())
                    .with_strangers(STRANGERS);
                let mut published = source.subscribe();
                let scope = Scope::new("objects");
                scope.spawn("source", Box::new(source).run(scope.lifetime()));
                let read = published.wait_for(|published| published.synced);
                if tokio::time::timeout(PATIENCE, read).await.is_err() {
                    bail!(
                        "not every kind could be read from {} within {PATIENCE:?}: may this user list \
                         them in all namespaces?",
                        cluster.address()
                    );
                }
                Ok(Following {
                    published,
                    started,
                    _source: Held::Server(scope),
                })
            }
        }
    }

    /// Where this command writes.
    pub(crate) fn writer(&self) -> anyhow::Result<Arc<dyn ObjectWriter>> {
        Ok(match self {
            Self::Lab { lab, .. } => {
                Arc::new(OverlayWriter::new(lab.paths().overlay().join("cli"))?)
            }
            Self::Cluster { cluster, .. } => Arc::new(kubernetes_writer(cluster)),
        })
    }

    /// A page of each replica of the control plane.
    pub(crate) async fn control_plane(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let (cluster, namespace) = match self {
            Self::Lab { lab, .. } => {
                return Ok(vec![page(lab, Target::Outer, CONTROL_PLANE, path).await?]);
            }
            Self::Cluster {
                cluster, namespace, ..
            } => (cluster, namespace),
        };
        let mut pages = Vec::new();
        for pod in cluster.running_pods(namespace, REPLICAS).await? {
            let port = ports::CONTROL_PLANE_MONITORING;
            let text = cluster.page(namespace, &pod, port, path).await?;
            pages.push(serde_json::from_str(&text)?);
        }
        if pages.is_empty() {
            bail!(
                "no control plane runs in namespace {namespace}: no running pod has label {REPLICAS}"
            );
        }
        Ok(pages)
    }
}

/// The writer into a cluster.
pub(crate) fn kubernetes_writer(cluster: &Cluster) -> KubernetesWriter {
    KubernetesWriter::new(cluster.clone(), MANAGER)
}

/// The objects in folders.
pub(crate) fn folders(
    base: &[PathBuf],
    overlay: Option<PathBuf>,
) -> anyhow::Result<DirectorySource> {
    DirectorySource::open(DirectoryOptions::new(base.to_vec(), overlay))
        .context("reading the objects")
}
