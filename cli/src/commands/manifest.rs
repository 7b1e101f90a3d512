//! `isobar manifest`: the charts rendered, without a cluster.

use std::process::ExitCode;

use anyhow::Context as _;
use isobar_chart::{Chart, Manifest as Object, Release, Values};

use crate::arguments::{Chosen, Global, Manifest};
use crate::commands::install::refuse_lost_nodes;
use crate::output::print;

/// `isobar manifest generate`.
pub(crate) fn run(what: &Manifest, global: &Global) -> anyhow::Result<ExitCode> {
    let Manifest::Generate(what) = what;
    let values = values(&what.chosen)?;
    let charts = match &what.chart[..] {
        [] => Chart::wanted(&values)?,
        names => names
            .iter()
            .map(|name| Chart::named(name))
            .collect::<Result<_, _>>()?,
    };
    let mut all = Vec::new();
    for chart in charts {
        all.extend(render(&chart, &global.mesh_namespace, &values)?);
    }
    let objects: Vec<_> = all.iter().map(|one| one.value.clone()).collect();
    refuse_lost_nodes(&objects, &global.mesh_namespace)?;
    let text: String = all.iter().map(Object::printed).collect();
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The values that files and flags say.
pub(crate) fn values(chosen: &Chosen) -> anyhow::Result<Values> {
    let mut values = Values::default();
    for file in &chosen.files {
        let context = || file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(context)?;
        values.add(&Values::read(&text).with_context(context)?);
    }
    for assignment in &chosen.set {
        values.set(assignment).context("--set")?;
    }
    let family = Chart::family()?;
    let names: Vec<_> = family.iter().map(Chart::name).collect();
    values.only(&names)?;
    Ok(values)
}

/// The objects of one chart.
pub(crate) fn render(
    chart: &Chart,
    namespace: &str,
    values: &Values,
) -> anyhow::Result<Vec<Object>> {
    let release = Release {
        name: chart.name().to_owned(),
        namespace: namespace.to_owned(),
    };
    Ok(chart.render(&release, values)?)
}
