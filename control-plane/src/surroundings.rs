//! Where objects come from and are written to, who reviews tokens, and whose authority signs:
//! directories and files, or a Kubernetes API server.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use isobar_kubernetes::election::{Candidate, Timing};
use isobar_kubernetes::{
    Cluster, KubernetesSource, KubernetesWriter, RootMaps, SourceOptions, keep_authority,
};
use isobar_objects::{
    DirectoryOptions, DirectorySource, ObjectSource, ObjectWriter, OverlayWriter,
};
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_types::Str;
use tokio::sync::watch;

use crate::auth::{ClusterReviewer, JwksReviewer, TokenReviewer};
use crate::config::Config;
use crate::controller::Earlier;

/// Directory below the overlay root that belongs to this process.
const OVERLAY: &str = "control-plane";
/// File in the state directory that keeps the last good version of every object.
const LAST_GOOD: &str = "last-good-objects.json";
/// Who we are to the API server's record of who wrote which field.
const MANAGER: &str = "isobar";
/// The lease of the replica that writes.
const LEASE: &str = "isobar-control-plane";

/// What a control plane stands in.
pub(crate) struct Surroundings {
    pub(crate) source: Box<dyn ObjectSource>,
    pub(crate) writer: Arc<dyn ObjectWriter>,
    /// How to find what earlier lives of this process wrote.
    pub(crate) earlier: Earlier,
    /// True while this replica is the one that writes.
    pub(crate) leads: watch::Receiver<bool>,
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    pub(crate) authority: Arc<Authority>,
}

impl Surroundings {
    /// Reads the configuration; nothing is watched before the source runs.
    ///
    /// # Errors
    /// When a directory, a file or the API server cannot be used.
    pub(crate) async fn find(scope: &Scope, config: &Config, state: &Path) -> Result<Self> {
        if config.kubernetes {
            in_a_cluster(scope, config, state).await
        } else {
            in_folders(config, state)
        }
    }
}

fn in_folders(config: &Config, state: &Path) -> Result<Surroundings> {
    let (Some(overlay), Some(keys)) = (&config.overlay, &config.token_keys) else {
        bail!("--overlay and --token-keys are needed with --objects");
    };
    let options = DirectoryOptions {
        last_good: Some(state.join(LAST_GOOD)),
        ..DirectoryOptions::new(config.objects.clone(), config.overlay.clone())
    };
    let source = DirectorySource::open(options).context("watching the objects")?;
    let own = overlay.join(OVERLAY);
    let trust_domain: Str = config.trust_domain.as_str().into();
    let issuer = config.token_issuer.clone();
    Ok(Surroundings {
        source: Box::new(source),
        writer: Arc::new(OverlayWriter::new(&own)?),
        earlier: Earlier::InFolder(own),
        // There is one writer of a folder.
        leads: watch::channel(true).1,
        reviewer: Arc::new(JwksReviewer::new(keys.clone(), issuer, trust_domain)),
        authority: Arc::new(authority(config, state)?),
    })
}

async fn in_a_cluster(scope: &Scope, config: &Config, state: &Path) -> Result<Surroundings> {
    let cluster = Cluster::infer().await?;
    if config.ca_dir.is_none() {
        let make = || -> Result<()> { Ok(Authority::load_or_create(state).map(drop)?) };
        keep_authority(&cluster, &config.root_namespace, state, make)
            .await
            .context("the authority's secret")?;
    }
    let authority = Arc::new(authority(config, state)?);
    let source = KubernetesSource::new(cluster.clone(), SourceOptions::default());
    let candidate = Candidate::new(
        cluster.clone(),
        &config.root_namespace,
        LEASE,
        &replica(),
        Timing::default(),
    );
    let leads = candidate.leads();
    scope.spawn("election", candidate.run(scope.lifetime()));
    let maps = RootMaps::new(cluster.clone(), MANAGER, authority.roots());
    let objects = source.subscribe();
    scope.spawn("roots", maps.run(objects, leads.clone(), scope.lifetime()));
    let trust_domain: Str = config.trust_domain.as_str().into();
    Ok(Surroundings {
        source: Box::new(source),
        writer: Arc::new(KubernetesWriter::new(cluster.clone(), MANAGER)),
        earlier: Earlier::OfClasses(config.waypoint_class.clone()),
        leads,
        reviewer: Arc::new(ClusterReviewer::new(cluster, trust_domain)),
        authority,
    })
}

/// A name that no other replica has: that of the pod, and another one each life.
fn replica() -> String {
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "isobard".to_owned());
    format!("{pod}-{:08x}", rand::random::<u32>())
}

/// The authority, and its roots in the state directory where clients look for them.
fn authority(config: &Config, state: &Path) -> Result<Authority> {
    std::fs::create_dir_all(state).with_context(|| state.display().to_string())?;
    let Some(dir) = &config.ca_dir else {
        return Ok(Authority::load_or_create(state)?);
    };
    let authority = Authority::from_intermediate(dir)?;
    let path = state.join("root-cert.pem");
    let temporary = state.join(".root-cert.pem.new");
    std::fs::write(&temporary, authority.roots())
        .and_then(|()| std::fs::rename(&temporary, &path))
        .with_context(|| path.display().to_string())?;
    Ok(authority)
}
