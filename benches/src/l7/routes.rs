use anyhow::Result;

use super::rig::{Application, Rig};
use super::rounds::{Plan, Sample, in_turn, one};
use super::scene::Scene;
use super::{Options, PROXIES};

/// The last of so many routes is asked for, by both proxies.
pub(super) async fn all(
    application: &Application,
    options: &Options,
    into: &mut Vec<Sample>,
) -> Result<()> {
    let mut tables = Vec::new();
    for count in &options.routes {
        let scene = Scene::routes(*count);
        for contender in PROXIES {
            eprintln!("{count} routes: {}", contender.name());
            tables.push(Rig::start(contender, &scene, application).await?);
        }
    }
    for round in 1..=options.rounds {
        for rig in in_turn(&tables, round) {
            let routes = rig.scene.service("web").map_or(0, |called| called.routes);
            let plan = Plan::usual(&format!("The last of {routes} routes"));
            into.push(one(rig, application, &plan, options, round).await?);
        }
    }
    Ok(())
}
