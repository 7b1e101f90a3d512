use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::rig::{Application, Rig};
use super::rounds::{one, plain};
use super::scene::Scene;
use super::{Contender, Options, PROXIES};

/// For a proxy to give back what it needs only at its start.
const REST: Duration = Duration::from_secs(2);

/// Memory of one proxy.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(super) contender: Contender,
    /// Just started, with ten routes for each of three services.
    pub(super) idle_kib: u64,
    /// After every load of a plain hop.
    pub(super) loaded_kib: u64,
    /// Just started, with so many more services of three endpoints each.
    pub(super) services: u32,
    pub(super) services_kib: u64,
}

pub(super) async fn all(
    application: &Application,
    options: &Options,
    into: &mut Vec<Sample>,
) -> Result<()> {
    for contender in PROXIES {
        let rig = Rig::start(contender, &Scene::plain(), application).await?;
        tokio::time::sleep(REST).await;
        let idle_kib = rig.used().rss_kib;
        let mut loaded_kib = idle_kib;
        for plan in plain() {
            let sample = one(&rig, application, &plan, options, 1).await?;
            loaded_kib = loaded_kib.max(sample.rss_kib);
        }
        drop(rig);
        let scene = Scene::services(options.services);
        let rig = Rig::start(contender, &scene, application).await?;
        tokio::time::sleep(REST).await;
        into.push(Sample {
            contender,
            idle_kib,
            loaded_kib,
            services: options.services,
            services_kib: rig.used().rss_kib,
        });
    }
    Ok(())
}
