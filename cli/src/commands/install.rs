//! `isobar install`, `upgrade` and `uninstall`: the charts of this program in a Kubernetes cluster.

mod in_use;
mod names;
mod place;
mod plan;
mod record;
mod removal;
mod report;
mod rollout;
mod roots;

use std::process::ExitCode;

use anyhow::bail;
use isobar_chart::Values;
use isobar_kubernetes::{Applying, Cluster, InstallError, Installer};
use serde_json::Value;

pub(crate) use self::names::refuse_lost_nodes;
use self::place::Place;
use self::plan::Plan;
use self::record::Record;
use self::report::{Change, Report};
use crate::arguments::{Global, Install, Uninstall, Upgrade, Writing};
use crate::commands::manifest::values;

/// Who we are to the API server's record of who wrote which field.
const MANAGER: &str = "isobar-install";
/// Who our control plane is to it.
const CONTROL_PLANE: &str = "isobar";
/// The secret with the authority that the control plane makes.
const SECRET: &str = "istio-ca-secret";
/// Label and value of everything that was installed by this program.
const MANAGED: (&str, &str) = ("app.kubernetes.io/managed-by", "isobar");
/// Label that says of which chart an object is.
const CHART: &str = "isobar.dev/chart";
/// Label that says of which revision's installation an object is; the first one has none.
const REVISION: &str = "isobar.dev/revision";

/// `isobar install`.
pub(crate) async fn install(what: &Install, global: &Global) -> anyhow::Result<ExitCode> {
    let given = values(&what.chosen)?;
    let installer = connect(global).await?;
    let place = Place::new(&global.mesh_namespace, &what.named);
    place.stands_beside(&installer).await?;
    let before = Record::read(&installer, &place).await?;
    let mut all = Values::default();
    if let Some(before) = &before {
        let ours = env!("CARGO_PKG_VERSION");
        if before.version != ours {
            let version = &before.version;
            bail!("version {version} is installed; `isobar upgrade` brings it to {ours}");
        }
        all = before.values.clone();
    }
    all.add(&given);
    carry_out(&installer, &place, &all, &what.writing, global).await
}

/// `isobar upgrade`.
pub(crate) async fn upgrade(what: &Upgrade, global: &Global) -> anyhow::Result<ExitCode> {
    let given = values(&what.chosen)?;
    let installer = connect(global).await?;
    let place = Place::new(&global.mesh_namespace, &what.named);
    let Some(before) = Record::read(&installer, &place).await? else {
        bail!("{place} is not installed; `isobar install` does it");
    };
    let ours = env!("CARGO_PKG_VERSION");
    if record::is_older(ours, &before.version) && !what.allow_downgrade {
        bail!(
            "version {} is installed, which is newer than this program ({ours}); \
             --allow-downgrade goes back",
            before.version
        );
    }
    let mut all = match what.reset_values {
        true => Values::default(),
        false => before.values,
    };
    all.add(&given);
    carry_out(&installer, &place, &all, &what.writing, global).await
}

/// `isobar uninstall`.
pub(crate) async fn uninstall(what: &Uninstall, global: &Global) -> anyhow::Result<ExitCode> {
    let installer = connect(global).await?;
    let mut report = Report::new(global.output);
    let place = Place::new(&global.mesh_namespace, &what.named);
    removal::run(&installer, &place, what, &mut report).await?;
    report.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn connect(global: &Global) -> anyhow::Result<Installer> {
    let cluster = match global.means_cluster() {
        true => {
            let (file, context) = (global.kubeconfig.as_deref(), global.context.as_deref());
            Cluster::of_context(file, context).await?
        }
        false => Cluster::infer().await?,
    };
    cluster.check().await?;
    Ok(Installer::new(cluster, MANAGER))
}

async fn carry_out(
    installer: &Installer,
    place: &Place,
    values: &Values,
    writing: &Writing,
    global: &Global,
) -> anyhow::Result<ExitCode> {
    let mut report = Report::new(global.output);
    let plan = Plan::make(installer, place, values).await?;
    if !writing.force {
        plan.refuse_without_nodes()?;
    }
    for note in &plan.notes {
        report.note(note)?;
    }
    if writing.dry_run {
        preview(installer, &plan, writing.force_conflicts, &mut report).await?;
        report.finish()?;
        return Ok(ExitCode::SUCCESS);
    }
    write(installer, &plan, writing.force_conflicts, &mut report).await?;
    for object in &plan.removals {
        if installer.delete(object).await? {
            report.change(Change::Removed, object)?;
        }
    }
    if !writing.no_wait {
        rollout::wait(installer, &plan.workloads(), writing.timeout, &mut report).await?;
    }
    report.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn preview(
    installer: &Installer,
    plan: &Plan,
    force: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let how = Applying {
        dry_run: true,
        force,
    };
    for write in &plan.writes {
        let after = match installer.apply(&write.object, how).await {
            Ok(after) => after,
            // What makes it possible is only about to be made.
            Err(InstallError::NoKind { .. } | InstallError::NoNamespace { .. }) => {
                write.object.clone()
            }
            Err(error) => return Err(conflict(error, force)),
        };
        report.difference(write.live.as_ref(), Some(&after), &write.object)?;
    }
    for object in &plan.removals {
        report.difference(Some(object), None, object)?;
    }
    Ok(())
}

async fn write(
    installer: &Installer,
    plan: &Plan,
    force: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let how = Applying {
        dry_run: false,
        force,
    };
    let mut definitions = Vec::new();
    for write in &plan.writes {
        let is_definition = write.object["kind"] == "CustomResourceDefinition";
        if !is_definition && !definitions.is_empty() {
            rollout::established(installer, &std::mem::take(&mut definitions)).await?;
        }
        let applied = installer.apply(&write.object, how).await;
        let after = applied.map_err(|error| conflict(error, force))?;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let change = match &write.live {
            None => Change::Created,
            Some(before) if version(before) == version(&after) => Change::Unchanged,
            Some(_) => Change::Changed,
        };
        report.change(change, &write.object)?;
        if is_definition {
            definitions.push(after);
        }
    }
    Ok(())
}

fn conflict(error: InstallError, force: bool) -> anyhow::Error {
    let hint = matches!(error, InstallError::Conflict { .. }) && !force;
    let error = anyhow::Error::from(error);
    if hint {
        return error
            .context("somebody else changed what was installed; --force-conflicts takes it back");
    }
    error
}
