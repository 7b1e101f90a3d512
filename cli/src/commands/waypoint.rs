//! `isobar waypoint`.

mod apply;
mod bound;
mod delete;
mod readiness;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use isobar_objects::gateway_api::Gateway;
use isobar_objects::{
    Namespace, ObjectHead, ObjectRef, ObjectSet, ObjectSource as _, ObjectWriter, Origin,
    OverlayWriter, Pod, Service, ServiceAccount,
};
use isobar_types::labels;
use serde_json::{Value, json};

use self::delete::Afterwards;
use self::tables::{is_waypoint, list_table, status_table, values, waypoints};
use crate::arguments::{Apply, Global, Waypoint};
use crate::mesh_access::{Following, Mesh, folders, kubernetes_writer};
use crate::output::{Format, Table, print, print_value, say};

const POLL: Duration = Duration::from_millis(100);

/// `isobar waypoint generate`.
pub(crate) fn generate(apply: &Apply, global: &Global) -> anyhow::Result<ExitCode> {
    let objects = apply::generated(apply)?;
    match global.output {
        Format::Json => {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
            print_value(&list, Format::Json)?;
        }
        Format::Table | Format::Yaml => {
            for (number, object) in objects.iter().enumerate() {
                print(if number == 0 { "" } else { "---\n" })?;
                print_value(object, Format::Yaml)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn run(what: Waypoint, global: &Global) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::chosen(global).await?;
    let place = Place {
        objects: Objects::open(&mesh).await?,
        mesh,
        root: global.mesh_namespace.clone(),
        format: global.output,
    };
    match what {
        Waypoint::Apply(apply) => place.apply(&apply).await?,
        Waypoint::Generate(apply) => return generate(&apply, global),
        Waypoint::List { namespace, .. } => place.list(namespace.as_deref())?,
        Waypoint::Status {
            name, namespace, ..
        } => {
            place.status(name.as_deref(), namespace.as_deref())?;
        }
        Waypoint::Delete {
            names,
            all,
            force,
            unbind,
            namespace,
        } => {
            let after = Afterwards::asked(force, unbind);
            return place.delete(&namespace, &names, all, after).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A mesh with its objects, and how to print.
struct Place {
    mesh: Mesh,
    objects: Objects,
    /// Namespace of policies for all waypoints.
    root: String,
    format: Format,
}

/// The objects of a mesh, and where this command writes its own.
struct Objects {
    following: Following,
    /// What users say by themselves, without what the mesh and this command add.
    users: Arc<ObjectSet>,
    own: Own,
    writer: Arc<dyn ObjectWriter>,
}

/// What this command wrote before.
enum Own {
    /// Files in this folder.
    Folder(PathBuf),
    /// These objects, or a part of each.
    Server(BTreeSet<ObjectRef>),
}

impl Objects {
    async fn open(mesh: &Mesh) -> anyhow::Result<Self> {
        let cluster = match mesh {
            Mesh::Lab { lab, objects } => {
                return Self::in_folders(objects, &lab.paths().overlay());
            }
            Mesh::Cluster { cluster, .. } => cluster,
        };
        let following = mesh.follow().await?;
        let mut users = following.published.borrow().objects.as_ref().clone();
        let writer = kubernetes_writer(cluster);
        let mut own = BTreeSet::new();
        for object in about_waypoints(&users) {
            if writer.wrote(&object).await? {
                users.remove(&object);
                own.insert(object);
            }
        }
        Ok(Self {
            following,
            users: Arc::new(users),
            own: Own::Server(own),
            writer: Arc::new(writer),
        })
    }

    fn in_folders(base: &[PathBuf], overlay: &Path) -> anyhow::Result<Self> {
        let writer = OverlayWriter::new(overlay.join("cli"))?;
        let users = folders(base, None)?.subscribe().borrow().objects.clone();
        Ok(Self {
            following: Following::folders(base, overlay.to_owned())?,
            users,
            own: Own::Folder(writer.dir().to_owned()),
            writer: Arc::new(writer),
        })
    }

    fn now(&self) -> Arc<ObjectSet> {
        Arc::clone(&self.following.published.borrow().objects)
    }

    /// Waits until the objects are as `wanted` says; false when the time is over.
    async fn become_so(&self, limit: Duration, wanted: impl Fn(&ObjectSet) -> bool) -> bool {
        let mut published = self.following.published.clone();
        let so = published.wait_for(|published| wanted(&published.objects));
        matches!(tokio::time::timeout(limit, so).await, Ok(Ok(_)))
    }

    /// True if this command wrote the object or a patch of it.
    fn wrote(&self, reference: &ObjectRef) -> bool {
        let folder = match &self.own {
            Own::Server(own) => return own.contains(reference),
            Own::Folder(folder) => folder,
        };
        let kind = reference.kind.to_lowercase();
        let file = if reference.namespace.is_empty() {
            format!("{kind}.{}", reference.name)
        } else {
            format!("{kind}.{}.{}", reference.namespace, reference.name)
        };
        [".patch.json", ".json"]
            .iter()
            .any(|end| folder.join(format!("{file}{end}")).exists())
    }
}

/// Waypoints, and what may name one.
fn about_waypoints(objects: &ObjectSet) -> Vec<ObjectRef> {
    fn naming<T: ObjectHead>(objects: &ObjectSet, all: &mut Vec<ObjectRef>) {
        let named = T::map(objects).iter();
        let named = named.filter(|one| one.label(labels::USE_WAYPOINT).is_some());
        all.extend(named.map(|one| one.reference()));
    }
    let gateways = objects.gateways.iter().filter(|one| is_waypoint(one));
    let mut all: Vec<ObjectRef> = gateways.map(|one| one.reference()).collect();
    naming::<Namespace>(objects, &mut all);
    naming::<ServiceAccount>(objects, &mut all);
    naming::<Service>(objects, &mut all);
    naming::<Pod>(objects, &mut all);
    all
}

impl Place {
    fn list(&self, namespace: Option<&str>) -> anyhow::Result<()> {
        self.show(namespace, None, list_table)
    }

    fn status(&self, name: Option<&str>, namespace: Option<&str>) -> anyhow::Result<()> {
        self.show(namespace, name, |_, found| status_table(found))
    }

    fn show(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
        table: impl Fn(&ObjectSet, &[&Gateway]) -> Table,
    ) -> anyhow::Result<()> {
        let objects = self.objects.now();
        let found = waypoints(&objects, namespace, name);
        if let (true, Some(name)) = (found.is_empty(), name) {
            bail!(self.no_waypoint(name));
        }
        if self.format != Format::Table {
            return print_value(&values(&found)?, self.format);
        }
        if found.is_empty() {
            return print(&self.no_waypoints(namespace));
        }
        print(&table(&objects, &found).render())
    }

    /// Tells how the command goes.
    fn say(&self, text: &str) -> anyhow::Result<()> {
        say(&format!("{text}\n"), self.format)
    }

    fn no_waypoints(&self, namespace: Option<&str>) -> String {
        format!(
            "no waypoints{}; `isobar waypoint apply{} -n {} --enroll-namespace --wait` deploys one\n",
            namespace.map_or_else(String::new, |name| format!(" in namespace {name}")),
            self.mesh.flags(),
            namespace.unwrap_or("NAMESPACE"),
        )
    }

    fn no_waypoint(&self, name: &str) -> String {
        let flags = self.mesh.flags();
        format!("there is no waypoint {name}; `isobar waypoint list{flags}` shows those there are")
    }

    /// How far proxies are, as each replica of the control plane tells it.
    async fn sync(&self) -> anyhow::Result<Vec<Value>> {
        self.mesh.control_plane("/debug/syncz").await
    }
}

/// `FILE:LINE`, or that it is in the cluster.
fn place_of(origin: &Origin) -> String {
    if origin.file.as_os_str() == "-" {
        return "the cluster".to_owned();
    }
    format!("{}:{}", origin.file.display(), origin.line)
}
