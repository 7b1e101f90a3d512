//! `isobar waypoint`.

mod apply;
mod bound;
mod delete;
mod readiness;
mod tables;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use isobar_lab::{Lab, Target};
use isobar_objects::gateway_api::Gateway;
use isobar_objects::{
    DirectoryOptions, DirectorySource, ObjectRef, ObjectSet, ObjectSource as _, Origin,
    OverlayWriter, Published,
};
use serde_json::Value;
use tokio::sync::watch;

use self::tables::{list_table, status_table, values, waypoints};
use crate::arguments::{Global, Waypoint};
use crate::lab_access::{CONTROL_PLANE, chosen_mesh, page};
use crate::output::{Format, Table, print, print_value, say};

const POLL: Duration = Duration::from_millis(100);

pub(crate) async fn run(what: Waypoint, global: &Global) -> anyhow::Result<ExitCode> {
    let (lab, status) = chosen_mesh(global.lab.as_deref()).await?;
    let place = Place {
        objects: Objects::open(status.objects, lab.paths().overlay())?,
        lab,
        format: global.output,
    };
    match what {
        Waypoint::Apply(apply) => place.apply(&apply).await?,
        Waypoint::List { namespace } => place.list(namespace.as_deref())?,
        Waypoint::Status { name, namespace } => {
            place.status(name.as_deref(), namespace.as_deref())?;
        }
        Waypoint::Delete {
            names,
            all,
            force,
            namespace,
        } => return place.delete(&namespace, &names, all, force).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// A lab with its objects, and how to print.
struct Place {
    lab: Lab,
    objects: Objects,
    format: Format,
}

/// The objects of a lab, and where this command writes its own.
struct Objects {
    // Following ends when the source is dropped.
    _source: DirectorySource,
    published: watch::Receiver<Arc<Published>>,
    /// What the user's files say by themselves, without what the mesh and this command add.
    users: Arc<ObjectSet>,
    writer: OverlayWriter,
}

impl Objects {
    fn open(base: Vec<std::path::PathBuf>, overlay: std::path::PathBuf) -> anyhow::Result<Self> {
        let reading = "reading the objects";
        let writer = OverlayWriter::new(overlay.join("cli"))?;
        let users = DirectorySource::open(DirectoryOptions::new(base.clone(), None))
            .context(reading)?
            .subscribe()
            .borrow()
            .objects
            .clone();
        let source =
            DirectorySource::open(DirectoryOptions::new(base, Some(overlay))).context(reading)?;
        Ok(Self {
            published: source.subscribe(),
            _source: source,
            users,
            writer,
        })
    }

    fn now(&self) -> Arc<ObjectSet> {
        Arc::clone(&self.published.borrow().objects)
    }

    /// Waits until the objects are as `wanted` says; false when the time is over.
    async fn become_so(&self, limit: Duration, wanted: impl Fn(&ObjectSet) -> bool) -> bool {
        let mut published = self.published.clone();
        let so = published.wait_for(|published| wanted(&published.objects));
        matches!(tokio::time::timeout(limit, so).await, Ok(Ok(_)))
    }

    /// True if this command wrote the object or a patch of it.
    fn wrote(&self, reference: &ObjectRef) -> bool {
        let kind = reference.kind.to_lowercase();
        let file = if reference.namespace.is_empty() {
            format!("{kind}.{}", reference.name)
        } else {
            format!("{kind}.{}.{}", reference.namespace, reference.name)
        };
        [".patch.json", ".json"]
            .iter()
            .any(|end| self.writer.dir().join(format!("{file}{end}")).exists())
    }
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
            "no waypoints{}; `isobar waypoint apply --lab {} -n {} --enroll-namespace --wait` \
             deploys one\n",
            namespace.map_or_else(String::new, |name| format!(" in namespace {name}")),
            self.lab.name(),
            namespace.unwrap_or("NAMESPACE"),
        )
    }

    fn no_waypoint(&self, name: &str) -> String {
        let lab = self.lab.name();
        format!(
            "there is no waypoint {name}; `isobar waypoint list --lab {lab}` shows those there are"
        )
    }

    async fn sync(&self) -> anyhow::Result<Value> {
        page(&self.lab, Target::Outer, CONTROL_PLANE, "/debug/syncz").await
    }
}

/// `FILE:LINE`.
fn place_of(origin: &Origin) -> String {
    format!("{}:{}", origin.file.display(), origin.line)
}
